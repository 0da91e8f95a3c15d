// Package fleetcmd is the fleet at the command line: croft login, fleet, device,
// owner, job, alert, audit and support.
//
// It speaks the fleet's HTTP API with a token that `croft login` stored, readable to
// the user alone; programs give CROFT_FLEET and CROFT_FLEET_TOKEN instead. Nothing
// else is kept. What boxes and owners wrote is printed without control characters.
package fleetcmd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// TokenVariable holds an API token, for programs.
const TokenVariable = "CROFT_FLEET_TOKEN"

// Commands is the commands of the first level.
func Commands() []*cobra.Command {
	return []*cobra.Command{
		newLoginCommand(), newFleetCommand(), newDeviceCommand(), newOwnerCommand(), newJobCommand(), newAlertCommand(), newAuditCommand(), newSupportCommand(),
	}
}

// options are the flags that every command of this package has.
type options struct {
	*session.Options
	fleet string
}

// top gives a command of the first level the flags; without forms, not --output.
func top(cmd *cobra.Command, forms bool) *options {
	with, common := session.TopCommand("", "", "", "table")
	o := &options{Options: common}
	cmd.PersistentPreRunE = with.PersistentPreRunE
	f := cmd.PersistentFlags()
	f.AddFlag(with.PersistentFlags().Lookup("home"))
	f.StringVar(&o.fleet, "fleet", "", "address of the fleet, like https://fleet.example.org (default: of the last 'croft login')")
	if forms {
		f.AddFlag(with.PersistentFlags().Lookup("output"))
	}
	return o
}

// logins is the content of fleets.json in the home folder.
type logins struct {
	Fleet  string            `json:"fleet"`  // the one in use
	Tokens map[string]string `json:"tokens"` // by address of the fleet
}

func (o *options) path() (string, error) {
	dir, err := o.Dir()
	return filepath.Join(dir, "fleets.json"), err
}

func (o *options) logins() (logins, error) {
	l := logins{Tokens: map[string]string{}}
	path, err := o.path()
	if err != nil {
		return l, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("read logins: %w", err)
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return l, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read logins %s: %w", path, err), Remedy: "delete the file and log in again"}
	}
	return l, nil
}

func (o *options) keep(l logins) error {
	path, err := o.path()
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("write logins: %w", err)
	}
	if err := atomicfile.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write logins: %w", err)
	}
	if err := atomicfile.WriteFile(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write logins: %w", err)
	}
	return nil
}

// client speaks to the fleet that is meant.
func (o *options) client() (*fleetclient.Client, error) {
	l, err := o.logins()
	if err != nil {
		return nil, err
	}
	address := l.Fleet
	if o.fleet != "" {
		if address, err = addressOf(o.fleet); err != nil {
			return nil, err
		}
	}
	token := os.Getenv(TokenVariable)
	if token == "" {
		token = l.Tokens[address]
	}
	if address == "" || token == "" {
		return nil, &croft.Error{Kind: croft.KindMissing, Err: errors.New("you are not logged in to a fleet"), Remedy: "`croft login https://fleet.example.org`"}
	}
	return &fleetclient.Client{URL: address, Token: token}, nil
}

// addressOf checks the address of a fleet. A token goes over TLS only, but to this
// machine.
func addressOf(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", session.Usage(fmt.Errorf("%q is no address of a fleet", text), "write it like https://fleet.example.org")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", session.Usage(fmt.Errorf("%q would send the token unencrypted", text), "use https")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func newLoginCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "login URL", Short: "Log in to a fleet with an API token", Args: session.Args(1, 1),
		Long: `Log in to a fleet with an API token, which the console makes under "API tokens".

The token is asked for, or read from standard input or --token-file. It is checked,
and stored in the user's configuration, readable to the user alone.`,
		Example: "  croft login https://fleet.example.org\n  croft login https://fleet.example.org --token-file token.txt",
	}
	o := top(cmd, false)
	cmd.Flags().StringVar(&file, "token-file", "", "file with the token (default: it is asked for)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		address, err := addressOf(args[0])
		if err != nil {
			return err
		}
		token, err := readToken(cmd, file)
		if err != nil {
			return err
		}
		who, err := (&fleetclient.Client{URL: address, Token: token}).WhoAmI(cmd.Context())
		if err != nil {
			return err
		}
		l, err := o.logins()
		if err != nil {
			return err
		}
		l.Fleet, l.Tokens[address] = address, token
		if err := o.keep(l); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "Logged in to %s as %s (%s). The token may: %s.\n", address, who.Account, who.Role, orDash(strings.Join(who.Scopes, ", ")))
		return err
	}
	return cmd
}

const maxToken = 4096

func readToken(cmd *cobra.Command, file string) (string, error) {
	var token string
	var err error
	if file != "" {
		var raw []byte
		raw, err = os.ReadFile(file)
		token = strings.TrimSpace(string(raw))
	} else {
		token, err = session.Secret(cmd, "API token: ")
	}
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	if token == "" || len(token) > maxToken || strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return "", session.Usage(errors.New("that is no API token"), "make one in the console, under API tokens")
	}
	return token, nil
}

// clean is text that others wrote, fit for a terminal and one line.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, text)
}

// row adds cleaned cells to a table.
func row(t *session.Table, cells ...string) {
	for i, cell := range cells {
		cells[i] = clean(cell)
	}
	t.Row(cells...)
}

func when(at fleetapi.Stamp) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format(time.DateTime) + "Z"
}

func yesNo(b bool) string { return map[bool]string{true: "yes", false: "no"}[b] }

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// pairs is labels, arguments and the like in one cell.
func pairs(m map[string]string) string {
	var all []string
	for name, value := range m {
		all = append(all, name+"="+value)
	}
	slices.Sort(all)
	return orDash(strings.Join(all, ","))
}

// some is the first of a list, 0 for all. It tells people when there are more.
func some[T any](cmd *cobra.Command, limit int, list iter.Seq2[T, error]) ([]T, error) {
	out := []T{}
	for one, err := range list {
		if err != nil {
			return nil, err
		}
		if limit > 0 && len(out) == limit {
			fmt.Fprintf(cmd.ErrOrStderr(), "There are more than %d; --limit 0 shows all.\n", limit)
			break
		}
		out = append(out, one)
	}
	return out, nil
}

func addLimit(cmd *cobra.Command, limit *int, standard int) {
	cmd.Flags().IntVar(limit, "limit", standard, "how many at most; 0 is all")
}

func pageSize(limit int) int {
	if limit <= 0 || limit >= 500 {
		return 500
	}
	return limit + 1 // to know whether there are more
}

func form(cmd *cobra.Command) string { return cmd.Flag("output").Value.String() }

// line prints one of many answers that come one after another.
func line(cmd *cobra.Command, text string, v any) error {
	if f := form(cmd); f == "json" || f == "yaml" {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
		if text = strings.TrimSpace(b.String()); f == "yaml" {
			text = "--- " + text // a document each; JSON is YAML
		}
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

// findDevice finds the one box that a word means: an id, or the beginning of what
// search knows.
func findDevice(ctx context.Context, c *fleetclient.Client, word string) (croft.DeviceID, error) {
	if id, err := croft.ParseDeviceID(word); err == nil {
		return id, nil
	}
	found, err := c.Search(ctx, word)
	if err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return "", &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("no box is found by %q", word), Remedy: "`croft device list` shows the boxes"}
	case 1:
		return found[0].ID, nil
	}
	var ids []string
	for _, d := range found[:min(len(found), 5)] {
		ids = append(ids, string(d.ID))
	}
	return "", session.Usage(fmt.Errorf("%q means more than one box", word), "say which: "+strings.Join(ids, ", "))
}

// onDevice is a command about one box.
func onDevice(o *options, do func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if cmd.Flag("output") != nil && cmd.Flag("output").DefValue == "table" {
			if err := o.CheckFormat(cmd); err != nil {
				return err
			}
		}
		c, err := o.client()
		if err != nil {
			return err
		}
		id, err := findDevice(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		return do(cmd, c, id, args[1:])
	}
}

// onFleet is a command about the fleet.
func onFleet(o *options, do func(cmd *cobra.Command, c *fleetclient.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := o.CheckFormat(cmd); err != nil {
			return err
		}
		c, err := o.client()
		if err != nil {
			return err
		}
		return do(cmd, c, args)
	}
}
