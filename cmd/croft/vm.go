package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/internal/rig"
)

func newVMCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vm", Short: "Try an image in a virtual machine", Args: noCommand, RunE: help}
	cmd.AddCommand(newVMRunCommand())
	return cmd
}

// vmOptions is what a person may choose about a virtual machine.
type vmOptions struct {
	image      string
	memory     string
	bus        string
	diskSize   string
	persist    string
	ports      []string
	cpus       int
	tpm        bool
	screenshot string
	raw        bool
}

func newVMRunCommand() *cobra.Command {
	var o vmOptions
	buses := make([]string, 0, len(rig.Buses()))
	for _, b := range rig.Buses() {
		buses = append(buses, string(b))
	}
	cmd := &cobra.Command{
		Use:   "run IMAGE",
		Short: "Boot an image, with its serial port in this terminal",
		Long: `Boot an image, with its serial port in this terminal.

The image stays as it is: what the box writes goes to a throw-away overlay, or
with --persist to a folder where the same box is found again. The box sits
behind a NAT like an owner's router; its ports are reached on this machine's
loopback address only. The processor is emulated: booting takes about half a
minute.

Ctrl-C presses the box's power button and waits up to 30 s; a second Ctrl-C
cuts its power.`,
		Example: `  croft vm run build/croft-uefi-x86.img
  croft vm run --persist ~/box --bus nvme --disk-size 16G build/croft-uefi-x86.img`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image = args[0]
			cfg, err := o.config()
			if err != nil {
				return err
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, os.Interrupt, unix.SIGTERM)
			defer signal.Stop(signals)
			return o.run(cmd.Context(), cfg, signals, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.memory, "memory", "2G", "memory of the box")
	f.IntVar(&o.cpus, "cpus", 2, "processors of the box")
	f.StringVar(&o.bus, "bus", string(rig.BusVirtio), "how the disk is attached: "+strings.Join(buses, ", "))
	f.StringVar(&o.diskSize, "disk-size", "", "size of the disk (default: 8G, or the image's if that is larger)")
	f.StringVar(&o.persist, "persist", "", "folder where the box keeps what it writes (default: it forgets)")
	f.StringArrayVar(&o.ports, "port", nil, "another TCP port of the box to reach, PORT or HERE:PORT; may be repeated")
	f.BoolVar(&o.tpm, "tpm", false, "with a TPM 2.0")
	f.StringVar(&o.screenshot, "screenshot", "", "PNG file that always shows the box's screen")
	f.BoolVar(&o.raw, "raw", false, "let the serial port clear the screen and move the cursor")
	return cmd
}

// ownerPagePort is where the box shows its page.
const ownerPagePort = 80

const defaultDiskSize = 8 << 30

// config checks the options. Dir and Tee are still to be filled in.
func (o *vmOptions) config() (rig.Config, error) {
	var cfg rig.Config
	imageSize, err := checkImage(o.image)
	if err != nil {
		return cfg, err
	}
	if cfg.Memory, err = parseSize(o.memory); err != nil {
		return cfg, usageError("--memory", err)
	}
	disk := rig.Disk{Path: o.image, Overlay: true}
	if disk.Bus, err = rig.ParseBus(o.bus); err != nil {
		return cfg, usageError("--bus", err)
	}
	if o.diskSize != "" {
		if disk.Size, err = parseSize(o.diskSize); err != nil {
			return cfg, usageError("--disk-size", err)
		}
	} else if o.persist == "" || isEmpty(o.persist) {
		disk.Size = max(defaultDiskSize, imageSize) // a kept disk stays as large as it was made
	}
	forwards := map[int]int{ownerPagePort: 0}
	order := []int{ownerPagePort}
	for _, p := range o.ports {
		f, err := parseForward(p)
		if err != nil {
			return cfg, usageError("--port", err)
		}
		if _, ok := forwards[f.Guest]; !ok {
			order = append(order, f.Guest)
		}
		forwards[f.Guest] = f.Host
	}
	for _, guest := range order {
		cfg.Forwards = append(cfg.Forwards, rig.Forward{Guest: guest, Host: forwards[guest]})
	}
	if o.cpus < 1 {
		return cfg, usageError("--cpus", fmt.Errorf("%d: want 1 or more", o.cpus))
	}
	cfg.Dir, cfg.CPUs, cfg.Disks, cfg.TPM = o.persist, o.cpus, []rig.Disk{disk}, o.tpm
	return cfg, nil
}

func usageError(flag string, err error) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("%s %w", flag, err), Remedy: "see `croft vm run --help`"}
}

// isEmpty says whether there is nothing yet in the folder at path.
func isEmpty(path string) bool {
	entries, _ := os.ReadDir(path) // what cannot be read is reported when the machine is made
	return len(entries) == 0
}

// checkImage tells a disk image from all else by its partition table, and
// returns its size.
func checkImage(path string) (int64, error) {
	const remedy = "make one with `croft image build`"
	f, err := os.Open(path)
	if err != nil {
		kind := croft.KindOther
		if errors.Is(err, fs.ErrNotExist) {
			kind = croft.KindNotFound
		}
		return 0, &croft.Error{Kind: kind, Err: fmt.Errorf("open image: %w", err), Remedy: remedy}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("open image: %w", err)
	}
	invalid := func(why string) (int64, error) {
		return 0, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("%s is not a disk image: %s", path, why), Remedy: remedy}
	}
	if !info.Mode().IsRegular() {
		return invalid("it is not a regular file")
	}
	const lba1, signature = 512, "EFI PART"
	head := make([]byte, len(signature))
	if _, err := f.ReadAt(head, lba1); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read image: %w", err)
	}
	if string(head) != signature {
		return invalid("it has no GPT partition table")
	}
	if info.Size()%512 != 0 {
		return invalid("its last sector is cut short")
	}
	return info.Size(), nil
}

// parseSize reads sizes such as 512M and 8G; the units are powers of 1024.
func parseSize(s string) (int64, error) {
	number, shift := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "IB"), "B"), 0
	for i, unit := range []string{"K", "M", "G", "T"} {
		if rest, ok := strings.CutSuffix(number, unit); ok {
			number, shift = rest, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q: want a size such as 512M or 8G", s)
	}
	return n << shift, nil
}

// parseForward reads PORT or HERE:PORT.
func parseForward(s string) (rig.Forward, error) {
	here, there, both := strings.Cut(s, ":")
	if !both {
		here, there = "0", s
	}
	host, hostErr := strconv.ParseUint(here, 10, 16)
	guest, guestErr := strconv.ParseUint(there, 10, 16)
	if hostErr != nil || guestErr != nil || guest == 0 || both && host == 0 {
		return rig.Forward{}, fmt.Errorf("%q: want PORT or HERE:PORT, each 1 to 65535", s)
	}
	return rig.Forward{Guest: int(guest), Host: int(host)}, nil
}

// run boots the machine and stays with it until it is off.
func (o *vmOptions) run(ctx context.Context, cfg rig.Config, signals <-chan os.Signal, stdout, stderr io.Writer) (err error) {
	if cfg.Dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "croft-vm-"); err != nil {
			return fmt.Errorf("make folder for the box: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(cfg.Dir)) }()
	}
	cfg.Tee = stdout
	if !o.raw {
		cfg.Tee = &rig.Readable{W: stdout}
	}
	m, err := rig.NewQEMU(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	stderr = &lockedWriter{w: stderr}

	page := ""
	for _, f := range cfg.Forwards {
		address, err := m.Address(f.Guest)
		if err != nil {
			return err
		}
		if f.Guest == ownerPagePort {
			page = "http://" + address
			fmt.Fprintf(stderr, "owner page: %s once the box is up\n", page)
			continue
		}
		fmt.Fprintf(stderr, "port %d of the box: %s\n", f.Guest, address)
	}
	if o.persist != "" {
		fmt.Fprintf(stderr, "the box is kept in %s\n", o.persist)
	}
	fmt.Fprintln(stderr, "Ctrl-C presses the power button, twice cuts the power")

	// A cancelled ctx presses the power button; starting is not to be torn.
	if err := m.PowerOn(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	attended, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	started := time.Now()
	wg.Go(func() {
		if waitPage(attended, page) {
			fmt.Fprintf(stderr, "\nowner page: %s is up after %d s\n", page, int(time.Since(started).Seconds()))
		}
	})
	if o.screenshot != "" {
		wg.Go(func() {
			if err := keepScreenshot(attended, m, o.screenshot); err != nil {
				fmt.Fprintf(stderr, "\nscreenshots end: %v\n", err)
			}
		})
	}
	return attend(ctx, m, signals, stderr)
}

// powerButtonPatience is how long a box may take to turn itself off.
const powerButtonPatience = 30 * time.Second

// attend stays with a machine until it is off, and turns it off when a person
// wants it: the first signal, or ctx, presses the power button, the second
// cuts.
func attend(ctx context.Context, m rig.Machine, signals <-chan os.Signal, stderr io.Writer) error {
	quiet := context.WithoutCancel(ctx)
	off := make(chan error, 1)
	go func() { off <- m.WaitOff(quiet) }()

	interrupt := ctx.Done()
	var signalled int
	var tooLate <-chan time.Time
	press := func() {
		if tooLate != nil {
			return // one Ctrl-C may come both ways
		}
		tooLate = time.After(powerButtonPatience)
		fmt.Fprintf(stderr, "\npressing the power button; waiting up to %d s\n", int(powerButtonPatience.Seconds()))
		if err := m.PressPower(quiet); err != nil && !errors.Is(err, rig.ErrOff) {
			fmt.Fprintf(stderr, "%v\n", err)
		}
	}
	for {
		select {
		case err := <-off:
			if err == nil {
				fmt.Fprintln(stderr, "\nthe box is off")
			}
			return err
		case <-interrupt:
			interrupt = nil
			press()
		case <-signals:
			if signalled++; signalled == 1 {
				press()
				continue
			}
			fmt.Fprintln(stderr, "\ncutting the power")
			return errors.Join(m.Cut(), <-off)
		case <-tooLate:
			fmt.Fprintf(stderr, "\nthe box is still on after %d s: cutting the power\n", int(powerButtonPatience.Seconds()))
			return errors.Join(m.Cut(), <-off)
		}
	}
}

// waitPage asks for the owner page until it is there.
func waitPage(ctx context.Context, url string) bool {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func() bool {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusOK
	}
	for tick := time.Tick(time.Second); ; {
		select {
		case <-ctx.Done():
			return false
		case <-tick:
			if ask() {
				return true
			}
		}
	}
}

// lockedWriter lets several goroutines write to w.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// keepScreenshot writes the screen to path again and again.
func keepScreenshot(ctx context.Context, m rig.Machine, path string) error {
	var failed error
	for tick := time.Tick(5 * time.Second); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		picture, err := m.Screenshot(ctx)
		if errors.Is(err, rig.ErrOff) || ctx.Err() != nil {
			return nil
		}
		if err != nil && failed == nil {
			failed = err // mostly the box is turning off just now
			continue
		}
		if err != nil {
			return err
		}
		failed = nil
		if err := atomicfile.WriteFile(path, picture, 0o644); err != nil {
			return fmt.Errorf("write screenshot: %w", err)
		}
	}
}
