// Package simcmd is `croft sim`: simulated boxes for a fleet, as many as are asked
// for. It reads flags and files, prints figures, and leaves the rest to package
// simbox.
//
// In --dir lie the boxes' keys, certificates and claim codes: with them the next
// run brings the same boxes. Without, they are gone with the command, and the
// fleet remembers boxes that never come back.
package simcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/internal/simbox"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// settings are the flags.
type settings struct {
	fleet, root string
	boxes, full int
	interval    time.Duration
	confirm     bool
	dir, codes  string

	every  time.Duration // between two lines of figures
	stdout io.Writer
}

// Command makes `croft sim`.
func Command() *cobra.Command { return newCommand(10 * time.Second) }

// newCommand is Command with another time between two lines of figures.
func newCommand(every time.Duration) *cobra.Command {
	s := settings{every: every}
	cmd := &cobra.Command{
		Use:   "sim --fleet URL --root FILE [flags]",
		Short: "Simulate boxes for a fleet",
		Long: `Simulate boxes for a fleet, until it is told to stop.

Each box makes a key, enrols, keeps a session with the broker and sends made-up
readings, with the code and the protocol of real ones. The first --full of them
are boxes in full: they have a spool on the disk, tell of leases, follow what the
fleet wants and do its jobs, a reboot and a support bundle too. The others are
light: a connection and some 35 kB of memory each. They answer every job at once,
and what they could not send is lost.

To a fleet on this machine each box comes from an address of its own, as boxes in
different homes do. A fleet elsewhere sees them all in one home, and lets 30 of
them in at once and one each 10 s after that.

A line of figures each 10 s:
  enrolled    boxes that have a certificate
  connected   boxes in a session with the broker, now
  sent        messages of light boxes a second, since the line before
  delay       with --confirm: how long the fleet took to store half of them, and 99 of 100
  tries       connections to the broker that light boxes have begun
  waiting     messages in the spools of full boxes
  memory      of this process, for each box`,
		Example: `  croft sim --fleet https://127.0.0.1:8443 --root fleet-root.pem --boxes 20
  croft sim --fleet https://127.0.0.1:8443 --root fleet-root.pem --boxes 20000 --full 0 --dir sim --confirm
  croft sim --fleet https://fleet.example.com:8443 --root root.pem --boxes 3 --claim-codes codes.txt`,
		Args: session.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, flag := range []struct{ name, value string }{{"fleet", s.fleet}, {"root", s.root}} {
				if flag.value == "" {
					return session.MissingFlag(cmd, flag.name)
				}
			}
			s.stdout = cmd.OutOrStdout()
			return s.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.fleet, "fleet", "", "the fleet's device port, https://host:port")
	f.StringVar(&s.root, "root", "", "the fleet's root certificate, PEM")
	f.IntVar(&s.boxes, "boxes", 10, "how many boxes")
	f.IntVar(&s.full, "full", 3, "how many of them are boxes in full")
	f.DurationVar(&s.interval, "interval", time.Minute, "between two messages of a box")
	f.BoolVar(&s.confirm, "confirm", false, "light boxes send readings so that the fleet acknowledges them")
	f.StringVar(&s.dir, "dir", "", "folder of the boxes' keys (default: none is kept)")
	f.StringVar(&s.codes, "claim-codes", "", "file for devices and their claim codes, one a line")
	return cmd
}

// manyBoxes are so many that the memory they share out counts more than the time
// that collecting garbage takes.
const manyBoxes = 1000

// run simulates until ctx ends.
func (s settings) run(ctx context.Context) (err error) {
	fleet, err := s.check()
	if err != nil {
		return err
	}
	dir := s.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "croft-sim-"); err != nil {
			return fmt.Errorf("make a folder for boxes: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if s.boxes-s.full >= manyBoxes {
		defer debug.SetGCPercent(debug.SetGCPercent(50))
	}
	codes, err := openCodes(s.codes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, codes.close()) }()

	full := min(s.full, s.boxes)
	fmt.Fprintf(s.stdout, "fleet     %s\nboxes     %d, of them %d in full\ninterval  %v\n", s.fleet, s.boxes, full, s.interval)
	if s.dir != "" {
		fmt.Fprintf(s.stdout, "folder    %s\n", s.dir)
	}
	if s.codes != "" {
		fmt.Fprintf(s.stdout, "codes     %s\n", s.codes)
	}
	fmt.Fprintln(s.stdout)

	var boxes []*simbox.Box
	defer func() {
		for _, b := range boxes {
			err = errors.Join(err, b.Close())
		}
	}()
	for n := range full {
		b, err := simbox.Open(simbox.Config{
			Dir: filepath.Join(dir, fmt.Sprintf("box-%04d", n)), Fleet: fleet, Number: uint64(n), PublishEvery: s.interval,
			ReadEvery: min(10*time.Second, s.interval), Link: simbox.NewLink(simbox.Homes(uint64(n))),
		})
		if err != nil {
			return err
		}
		boxes = append(boxes, b)
		codes.add(simbox.Member{Device: b.Device(), Code: b.Code()})
	}
	var crowd *simbox.Crowd
	if s.boxes > full {
		crowd, err = simbox.NewCrowd(simbox.CrowdConfig{
			Fleet: fleet, Boxes: s.boxes - full, First: uint64(full), Dir: dir, Interval: s.interval, Confirm: s.confirm,
			Dial: simbox.Homes, Enrolled: codes.add,
		})
		if err != nil {
			return session.Usage(err, "see `croft sim --help`")
		}
	}

	work, ctx := errgroup.WithContext(ctx)
	for _, b := range boxes {
		work.Go(func() error { return b.Run(ctx) })
	}
	if crowd != nil {
		work.Go(func() error { return crowd.Run(ctx) })
	}
	work.Go(func() error { s.tell(ctx, boxes, crowd); return nil })
	err = work.Wait()
	fmt.Fprintf(s.stdout, "All boxes have left.\n")
	return err
}

// check reads the flags.
func (s settings) check() (simbox.Fleet, error) {
	at, err := url.Parse(s.fleet)
	if err != nil || at.Scheme != "https" || at.Hostname() == "" {
		return simbox.Fleet{}, session.Usage(fmt.Errorf("--fleet %.100q is no address of a fleet", s.fleet), "write it like https://fleet.example.com:8443")
	}
	if s.boxes < 1 || s.boxes > 1<<20 || s.full < 0 {
		return simbox.Fleet{}, session.Usage(fmt.Errorf("%d boxes, %d of them in full, cannot be", s.boxes, s.full), "give 1 to 1048576 --boxes, and --full from 0")
	}
	if s.interval < time.Second || s.interval > time.Hour {
		return simbox.Fleet{}, session.Usage(fmt.Errorf("--interval %v is too short or too long", s.interval), "give 1s to 1h")
	}
	raw, err := os.ReadFile(s.root)
	if errors.Is(err, fs.ErrNotExist) {
		return simbox.Fleet{}, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("read the fleet's root: %w", err), Remedy: "name the file with --root; the fleet's operator has it"}
	}
	if err != nil {
		return simbox.Fleet{}, fmt.Errorf("read the fleet's root: %w", err)
	}
	roots, err := enroll.ParseRoots(raw)
	if err != nil {
		return simbox.Fleet{}, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read the fleet's root %s: %w", s.root, err), Remedy: "take the root certificate that boxes have in their network file"}
	}
	return simbox.Fleet{URL: s.fleet, Roots: roots}, nil
}

// tell prints figures until ctx ends.
func (s settings) tell(ctx context.Context, boxes []*simbox.Box, crowd *simbox.Crowd) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	begin := time.Now()
	for sent := int64(0); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var all simbox.Stats
		if crowd != nil {
			all = crowd.Stats()
		}
		waiting := 0
		for _, b := range boxes {
			status := b.Status()
			if !status.CertificateUntil.IsZero() {
				all.Enrolled++
			}
			if status.Connected {
				all.Connected++
			} else if status.LastError != nil {
				all.Problem = status.LastError
			}
			waiting += status.Waiting
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		fmt.Fprintf(s.stdout, "%6.0fs  enrolled %d  connected %d  sent %.1f/s  ", time.Since(begin).Seconds(), all.Enrolled, all.Connected,
			float64(all.Sent-sent)/s.every.Seconds())
		if s.confirm {
			fmt.Fprintf(s.stdout, "delay %v, %v  ", all.HalfDelay, all.MostDelay)
		}
		fmt.Fprintf(s.stdout, "tries %d  waiting %d  memory %d kB\n", all.Tries, waiting, (mem.Sys-mem.HeapReleased)/1024/uint64(s.boxes))
		if all.Problem != nil && all.Connected < s.boxes {
			fmt.Fprintf(s.stdout, "         newest problem: %v\n", all.Problem)
		}
		sent = all.Sent
	}
}

// codes is the file of claim codes.
type codes struct {
	mu   sync.Mutex
	file *os.File // nil: nobody wants them
	err  error    // guarded by mu; the first
}

func openCodes(path string) (*codes, error) {
	if path == "" {
		return &codes{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the file of claim codes: %w", err)
	}
	return &codes{file: f}, nil
}

func (c *codes) add(m simbox.Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return
	}
	if _, err := fmt.Fprintf(c.file, "%s %s\n", m.Device, m.Code.Shown()); c.err == nil {
		c.err = err
	}
}

func (c *codes) close() error {
	if c.file == nil {
		return nil
	}
	if err := errors.Join(c.err, c.file.Close()); err != nil {
		return fmt.Errorf("write claim codes: %w", err)
	}
	return nil
}
