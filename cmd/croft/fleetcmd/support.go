package fleetcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

func newSupportCommand() *cobra.Command {
	cmd := session.Group("support", "Help an owner")
	o := top(cmd, false)
	cmd.AddCommand(newBundleCommand(o))
	return cmd
}

func newBundleCommand(o *options) *cobra.Command {
	var to string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "bundle DEVICE", Short: "Collect a support bundle of a box and download it", Args: session.Args(1, 1),
		Long: `Collect a support bundle of a box and download it.

The box is asked, and the command waits until it has sent the bundle. A box that is
offline is asked when it is back, for a day: without it the command gives up after
--wait, and 'croft support bundle' may be called again later.`,
		Example: "  croft support bundle croft-k7qm\n  croft support bundle croft-k7qm -o bundle.zip",
	}
	cmd.Flags().StringVarP(&to, "file", "o", "", "file to write (default: the bundle's own name, in this folder; - is standard output)")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Minute, "how long to wait for the box")
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), wait, errLate)
		defer cancel()
		b, err := collect(ctx, cmd, c, id)
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return cause
		}
		if err != nil {
			return err
		}
		return download(cmd, c, b, to)
	})
	return cmd
}

var errLate = &croft.Error{Kind: croft.KindOther, Err: errors.New("the box has not sent the bundle in time"), Remedy: "see whether it is online, or wait longer with --wait"}

// collect asks a box for a bundle and waits for it.
func collect(ctx context.Context, cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID) (fleetclient.Bundle, error) {
	j, err := c.StartBundle(ctx, id)
	if err != nil {
		return fleetclient.Bundle{}, err
	}
	told := ""
	for {
		if now := fmt.Sprintf("%s %s %s", j.ID, j.State, j.Detail); now != told {
			fmt.Fprintln(cmd.ErrOrStderr(), clean(now))
			told = now
		}
		if j.State == fleetapi.Succeeded {
			all, err := c.Bundles(ctx, id)
			if err != nil {
				return fleetclient.Bundle{}, err
			}
			if i := slices.IndexFunc(all, func(b fleetclient.Bundle) bool { return b.Job == j.ID }); i >= 0 {
				return all[i], nil
			}
		} else if j.State.Final() {
			return fleetclient.Bundle{}, &croft.Error{Kind: croft.KindOther, Err: fmt.Errorf("the box made no bundle: %s %s", j.State, clean(j.Detail)), Remedy: "see `croft job history " + j.ID + "`"}
		}
		select {
		case <-ctx.Done():
			return fleetclient.Bundle{}, ctx.Err()
		case <-time.After(pause):
		}
		if j, err = c.Job(ctx, j.ID); err != nil {
			return fleetclient.Bundle{}, err
		}
	}
}

// download writes a bundle to a file, whole or not at all.
func download(cmd *cobra.Command, c *fleetclient.Client, b fleetclient.Bundle, to string) error {
	content, err := c.OpenBundle(cmd.Context(), b.ID)
	if err != nil {
		return err
	}
	defer content.Close()
	if to == "-" {
		_, err = io.Copy(cmd.OutOrStdout(), content)
		return err
	}
	if to == "" {
		if to = filepath.Base(filepath.Clean("/" + b.Name)); b.Name == "" || to == "/" {
			to = b.ID
		}
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".croft-bundle-")
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it was renamed, or is of no use
	size, err := io.Copy(f, content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s (%d bytes)\n", clean(to), size)
	return err
}
