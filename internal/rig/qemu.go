package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// QEMU is a [Machine] emulated in software: a PC with UEFI firmware, two
// cores, a hardware watchdog and a random number generator.
type QEMU struct {
	cfg     Config
	program string // qemu-system-x86_64
	launch  launch
	lock    *os.File // holds the flock on Dir
	log     *Log
	logFile *os.File
	power   chan struct{} // holds one token; taken by PowerOn, Cut and Close

	mu        sync.Mutex
	run       *run          // guarded by mu; nil until the first PowerOn
	unplugged bool          // guarded by mu
	closed    bool          // guarded by mu
	events    []Event       // guarded by mu; only grows
	changed   chan struct{} // guarded by mu; closed and replaced when events grows
}

// run is the time from one PowerOn until the machine is off.
type run struct {
	qemu *process
	tpm  *process // nil without one
	qmp  *qmp
	off  chan struct{} // closed when qemu and tpm have ended and qmp is closed
	err  error         // valid after off: the fault that ended it, if any

	mu  sync.Mutex
	cut bool // guarded by mu; we killed it
}

var _ Machine = (*QEMU)(nil)

// Where Debian's ovmf package keeps the firmware.
const (
	firmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	firmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// startTimeout bounds how long QEMU may take to answer its first command.
const startTimeout = time.Minute

// NewQEMU makes a machine that is off. The caller must Close it.
func NewQEMU(cfg Config) (_ *QEMU, err error) {
	cfg.Disks = append([]Disk(nil), cfg.Disks...)
	for i := range cfg.Disks {
		cfg.Disks[i].Errors = append([]DiskError(nil), cfg.Disks[i].Errors...)
	}
	cfg.Forwards = append([]Forward(nil), cfg.Forwards...)
	if err := cfg.check(); err != nil {
		return nil, usage(fmt.Errorf("make machine: %w", err))
	}
	m := &QEMU{cfg: cfg, power: make(chan struct{}, 1), changed: make(chan struct{})}
	if m.program, err = lookPath("qemu-system-x86_64"); err != nil {
		return nil, err
	}
	if cfg.TPM {
		if _, err := lookPath("swtpm"); err != nil {
			return nil, err
		}
	}
	// QEMU runs in Dir, so that swtpm's path needs no escaping.
	if m.cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("make machine: %w", err)
	}
	if err := os.MkdirAll(m.cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make machine: %w", err)
	}
	if m.lock, err = lockDir(m.cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.lock.Close()
		}
	}()
	if err := m.prepare(); err != nil {
		return nil, err
	}

	name := cfg.Log
	if name == "" {
		name = filepath.Join(m.cfg.Dir, "serial.log")
	}
	if m.logFile, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
		return nil, fmt.Errorf("open serial log: %w", err)
	}
	raw := []io.Writer{m.logFile}
	if cfg.Tee != nil {
		raw = append(raw, cfg.Tee)
	}
	m.log = NewLog(raw...)
	m.power <- struct{}{}
	return m, nil
}

// lockDir makes sure that only one machine uses dir.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock machine directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &croft.Error{
			Kind:   croft.KindRefused,
			Err:    fmt.Errorf("another machine runs in %s: %w", dir, err),
			Remedy: "turn it off first or choose another directory",
		}
	}
	return f, nil
}

// prepare finds or makes all files and ports that the machine needs.
func (m *QEMU) prepare() error {
	if k := m.cfg.Kernel; k != nil {
		kernel := *k
		m.cfg.Kernel = &kernel
		for _, path := range []*string{&kernel.Path, &kernel.Initrd} {
			if *path == "" {
				continue
			}
			abs, err := filepath.Abs(*path)
			if err != nil {
				return fmt.Errorf("find kernel: %w", err)
			}
			if _, err := os.Stat(abs); err != nil {
				return fmt.Errorf("find kernel: %w", err)
			}
			*path = abs
		}
	} else if m.cfg.Firmware == UEFI {
		m.launch.code = firmwareCode
		if _, err := os.Stat(firmwareCode); err != nil {
			return missing(fmt.Errorf("find UEFI firmware: %w", err))
		}
		m.launch.nvram = filepath.Join(m.cfg.Dir, "nvram.fd")
		if err := copyOnce(m.launch.nvram, firmwareVars); err != nil {
			return err
		}
	}
	for i := range m.cfg.Disks {
		d := &m.cfg.Disks[i]
		if d.LogWrites != "" {
			abs, err := filepath.Abs(d.LogWrites)
			if err != nil {
				return fmt.Errorf("prepare disk %d: %w", i, err)
			}
			d.LogWrites = abs
		}
		img, err := d.prepare(m.cfg.Dir, "disk"+strconv.Itoa(i))
		if err != nil {
			return fmt.Errorf("prepare disk %d: %w", i, err)
		}
		m.launch.images = append(m.launch.images, img)
	}
	m.launch.hostPorts = map[int]int{}
	for _, f := range m.cfg.Forwards {
		// A port that is free now and, if the kernel chose it, not soon given
		// to anybody else: it is the guest's for the machine's life.
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(f.Host)))
		if err != nil {
			return &croft.Error{
				Kind:   croft.KindRefused,
				Err:    fmt.Errorf("forward to port %d of the guest: %w", f.Guest, err),
				Remedy: "choose another port of this machine",
			}
		}
		defer l.Close() // all at once, so that no two get the same
		port := l.Addr().(*net.TCPAddr).Port
		m.launch.hostPorts[f.Guest] = port
	}
	return nil
}

// PowerOn starts QEMU.
func (m *QEMU) PowerOn(ctx context.Context) error {
	<-m.power
	defer func() { m.power <- struct{}{} }()
	m.mu.Lock()
	r, closed, unplugged := m.run, m.closed, m.unplugged
	m.mu.Unlock()
	if closed {
		return errors.New("power on: machine is closed")
	}
	if r != nil && !r.isOff() {
		return ErrOn
	}
	r, err := m.start(ctx)
	if err != nil {
		return fmt.Errorf("power on: %w", err)
	}
	m.mu.Lock()
	m.run = r
	m.mu.Unlock()
	if unplugged {
		err = r.setLink(ctx, false)
	}
	if err == nil {
		err = r.qmp.execute(ctx, "cont", nil, nil)
	}
	if err != nil {
		r.kill()
		return fmt.Errorf("power on: %w", err)
	}
	return nil
}

func (m *QEMU) start(ctx context.Context) (_ *run, err error) {
	l := m.launch
	cmd := exec.Command(m.program)
	cmd.Dir = m.cfg.Dir
	cmd.Stdout = m.log
	give := func(f *os.File) int {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		return 2 + len(cmd.ExtraFiles)
	}

	ours, theirs, err := socketPair("qmp")
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	l.qmpFD = give(theirs)
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("open QMP: %w", err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if m.cfg.LAN != nil {
		l.tapFD = give(m.cfg.LAN.tap)
	}
	r := &run{off: make(chan struct{})}
	if m.cfg.TPM {
		var socket *os.File
		if r.tpm, socket, err = startTPM(m.cfg.Dir); err != nil {
			return nil, err
		}
		defer socket.Close()
		l.tpmFD = give(socket)
	}
	for _, d := range m.cfg.Disks {
		if d.LogWrites != "" {
			if err := os.WriteFile(d.LogWrites, nil, 0o644); err != nil {
				r.killTPM()
				return nil, fmt.Errorf("start write log: %w", err)
			}
		}
	}

	cmd.Args = append([]string{m.program}, m.cfg.args(l)...)
	if r.qemu, err = startProcess(cmd); err != nil {
		r.killTPM()
		return nil, err
	}
	theirs.Close() // QEMU has its own; with ours closed too, its end is seen as the end of file
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("QEMU does not answer"))
	defer cancel()
	r.qmp, err = openQMP(ctx, conn, m.addEvent)
	if err != nil {
		// Mostly QEMU has ended because it did not like an option, and said so.
		select {
		case <-r.qemu.done:
		case <-ctx.Done():
			r.qemu.kill()
		}
		r.killTPM()
		if fault := r.qemu.failure(); fault != nil && ctx.Err() == nil {
			err = fmt.Errorf("QEMU ended at once: %w", fault)
		}
		return nil, err
	}
	go r.wait()
	return r, nil
}

// wait gathers everything when QEMU has ended.
func (r *run) wait() {
	<-r.qemu.done
	<-r.qmp.done // the last events are still on their way
	r.qmp.close()
	r.killTPM()
	r.mu.Lock()
	if fault := r.qemu.failure(); fault != nil && !r.cut {
		r.err = fmt.Errorf("QEMU ended: %w", fault)
	}
	r.mu.Unlock()
	close(r.off)
}

func (r *run) isOff() bool {
	select {
	case <-r.off:
		return true
	default:
		return false
	}
}

func (r *run) kill() {
	r.mu.Lock()
	r.cut = true
	r.mu.Unlock()
	r.qemu.kill()
	<-r.off
}

func (r *run) killTPM() {
	if r.tpm != nil {
		r.tpm.kill()
	}
}

func (r *run) setLink(ctx context.Context, up bool) error {
	return r.qmp.execute(ctx, "set_link", object{"name": nicID, "up": up}, nil)
}

// running is the present run, or ErrOff.
func (m *QEMU) running() (*run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil || m.run.isOff() {
		return nil, ErrOff
	}
	return m.run, nil
}

// Command sends one command of QEMU's machine protocol and decodes its answer
// into result, which may be nil. It is for what [Machine] has no word for.
func (m *QEMU) Command(ctx context.Context, name string, arguments, result any) error {
	r, err := m.running()
	if err != nil {
		return fmt.Errorf("run %s in QEMU: %w", name, err)
	}
	return r.qmp.execute(ctx, name, arguments, result)
}

// PressPower pushes the ACPI power button.
func (m *QEMU) PressPower(ctx context.Context) error {
	return m.Command(ctx, "system_powerdown", nil, nil)
}

// PressReset pushes the reset button.
func (m *QEMU) PressReset(ctx context.Context) error {
	return m.Command(ctx, "system_reset", nil, nil)
}

// Pause stops the processors until Resume; the machine stays on.
func (m *QEMU) Pause(ctx context.Context) error { return m.Command(ctx, "stop", nil, nil) }

// Resume lets the processors run on after Pause.
func (m *QEMU) Resume(ctx context.Context) error { return m.Command(ctx, "cont", nil, nil) }

// Cut kills QEMU.
func (m *QEMU) Cut() error {
	<-m.power
	defer func() { m.power <- struct{}{} }()
	if r, err := m.running(); err == nil {
		r.kill()
	}
	return nil
}

// WaitOff waits until QEMU has ended.
func (m *QEMU) WaitOff(ctx context.Context) error {
	m.mu.Lock()
	r := m.run
	m.mu.Unlock()
	if r == nil {
		return nil
	}
	select {
	case <-r.off:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("wait until machine is off: %w", context.Cause(ctx))
	}
}

// Serial is the log of the serial port.
func (m *QEMU) Serial() *Log { return m.log }

// Address is a port on the host's loopback, or on a LAN the guest's own
// address, to be dialled through [LAN.DialContext].
func (m *QEMU) Address(guestPort int) (string, error) {
	if lan := m.cfg.LAN; lan != nil {
		return net.JoinHostPort(lanGuest.String(), strconv.Itoa(guestPort)), nil
	}
	port, ok := m.launch.hostPorts[guestPort]
	if !ok {
		return "", usage(fmt.Errorf("port %d of the guest is not forwarded", guestPort))
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
}

// Screenshot asks QEMU for a PNG.
func (m *QEMU) Screenshot(ctx context.Context) (_ []byte, err error) {
	f, err := os.CreateTemp(m.cfg.Dir, "screen-*.png")
	if err != nil {
		return nil, fmt.Errorf("take screenshot: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("take screenshot: %w", err)
	}
	if err := m.Command(ctx, "screendump", object{"filename": f.Name(), "format": "png"}, nil); err != nil {
		return nil, fmt.Errorf("take screenshot: %w", err)
	}
	picture, err := os.ReadFile(f.Name())
	if err != nil {
		return nil, fmt.Errorf("take screenshot: %w", err)
	}
	return picture, nil
}

// SetLink plugs the cable in or pulls it.
func (m *QEMU) SetLink(ctx context.Context, up bool) error {
	<-m.power // not while PowerOn is between reading the wish and running
	defer func() { m.power <- struct{}{} }()
	m.mu.Lock()
	m.unplugged = !up
	m.mu.Unlock()
	r, err := m.running()
	if errors.Is(err, ErrOff) {
		return nil
	}
	return r.setLink(ctx, up)
}

func (m *QEMU) addEvent(e Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, e)
	close(m.changed)
	m.changed = make(chan struct{})
}

// Events are all events since the machine was made, oldest first.
func (m *QEMU) Events() []Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Event(nil), m.events...)
}

// WaitEvent waits for the event called name, the first at or after the
// position from in [QEMU.Events], and returns it with the position after it.
func (m *QEMU) WaitEvent(ctx context.Context, from int, name string) (Event, int, error) {
	for {
		m.mu.Lock()
		events, changed := m.events, m.changed
		m.mu.Unlock()
		for ; from < len(events); from++ {
			if events[from].Name == name {
				return events[from], from + 1, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Event{}, from, fmt.Errorf("wait for event %s: %w", name, context.Cause(ctx))
		}
	}
}

// Close cuts the power and lets go of the directory, whose files stay.
func (m *QEMU) Close() error {
	m.mu.Lock()
	closed := m.closed
	m.closed = true
	m.mu.Unlock()
	if closed {
		return nil
	}
	err := m.Cut()
	m.log.mu.Lock()
	rawErr := m.log.rawErr
	m.log.mu.Unlock()
	return errors.Join(err, rawErr, m.logFile.Close(), m.lock.Close())
}

// socketPair makes two connected sockets, one for us and one for a child.
func socketPair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}
