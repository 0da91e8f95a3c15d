// Package agent is the daemon on the box: it wires the workers, starts them,
// and stops them when the box is shut down.
//
// It guards the boot (agent/update), makes the box's identity, shows how the box
// is (owner page, name in the home network, screen and serial port), lets the box
// earn (agent/hosting), and links it to the fleet that looks after it
// (agent/fleetlink). The last two only if its network file says so
// (provisioning/joinfile), each without the other if need be.
//
// Whatever state /perm is in, the agent runs: without a usable /perm, key and
// journal live in memory until the next boot, and the page says so.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/fleetlink"
	"github.com/croft-cloud/croft/agent/hosting"
	"github.com/croft-cloud/croft/agent/identity"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/update"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/kernel"
	"github.com/croft-cloud/croft/firmware/watchdog"
	"github.com/croft-cloud/croft/internal/supervise"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// Config says where things are; the zero value of a field means the default.
type Config struct {
	Perm     string // default /perm
	Handover string // default bootlog.HandoverFile
	Release  string // default /usr/lib/croft/release.json
	Listen   string // address of the owner page; default ":80"
	ClaimAt  string // page where a claim code is typed; default the fleet's, or [DefaultClaimAt] without a fleet
	Log      *slog.Logger
}

// DefaultClaimAt is the page a claim code's QR leads to if the box has no fleet.
const DefaultClaimAt = "https://croft.cloud/claim"

// Release is what the image says about itself (release.json in the root).
type Release struct {
	Board   string        `json:"board"`
	Version croft.Version `json:"version"`
	Built   time.Time     `json:"built"` // no clock is right that shows less
}

// Agent is one run of the daemon.
type Agent struct {
	cfg      Config
	handover bootlog.Handover
	release  Release
	records  bootlog.Log
	loader   *loader
	watchdog *watchdog.Device // nil: the box has none
	journal  *journal.Journal
	identity *identity.Identity
	slate    *ownerpage.Slate
	page     *ownerpage.Server
	guard    *update.Guard
	lines    *fleetlink.Lines  // the newest of the log
	network  *joinfile.Network // nil: the box joins none
	hosting  *hosting.Hosting  // nil: the box is let on no chain
	fleet    *fleetlink.Link   // nil: nobody looks after the box, or unlinked says why it has no link
	unlinked error             // nil: nothing keeps the box from having a link
	workers  *supervise.Supervisor
	notes    []string // for the owner, about what was found at the start
	facts    facts

	oldBaseline bool // /perm was full when this boot's agent first started
}

// newLimit is how long [New] may take before the box counts as hung. A slow TPM
// takes a minute.
const newLimit = 3 * time.Minute

// New reads what the boot left and prepares the workers. The first thing it
// does is to write down that the agent started, with the watchdog fed from here
// on.
func New(cfg Config) (*Agent, error) {
	if cfg.Perm == "" {
		cfg.Perm = "/perm"
	}
	if cfg.Handover == "" {
		cfg.Handover = bootlog.HandoverFile
	}
	if cfg.Release == "" {
		cfg.Release = "/usr/lib/croft/release.json"
	}
	if cfg.Listen == "" {
		cfg.Listen = ":80"
	}
	a := &Agent{lines: new(fleetlink.Lines)}
	cfg.Log = slog.New(a.lines.Handler(cfg.Log.Handler()))
	a.cfg = cfg
	var err error
	if a.handover, err = bootlog.ReadHandover(cfg.Handover); err != nil {
		return nil, err
	}
	if a.watchdog, err = watchdog.Adopt(1); errors.Is(err, watchdog.ErrNone) {
		cfg.Log.Warn("no watchdog")
	} else if err != nil {
		return nil, err
	}
	release := watchdog.Hold(a.watchdog, newLimit)
	defer release()
	a.records = bootlog.Open(cfg.Perm)
	if a.loader, err = newLoader(a.handover.ESP, "/run/croft/esp"); err != nil {
		cfg.Log.Warn("boot entries may not be changed", "err", err)
	}
	a.judgeBaseline()
	if err := Started(a.records, a.handover); err != nil {
		cfg.Log.Warn("boot record not written", "err", err)
	}
	raw, err := os.ReadFile(cfg.Release)
	if err == nil {
		err = json.Unmarshal(raw, &a.release)
	}
	if err != nil {
		return nil, fmt.Errorf("read the release's description: %w", err)
	}
	a.mendClock(a.release.Built)
	if err := a.openState(); err != nil {
		return nil, err
	}
	a.mendClock(fleetlink.Floor(a.journal))
	a.readNetwork()
	return a, a.prepareWorkers()
}

// Started writes down that the agent of this boot started once more.
func Started(records bootlog.Log, h bootlog.Handover) error {
	return records.Update(h.Slot, func(at *bootlog.Attempt) {
		if at.BootID != h.BootID {
			return
		}
		if at.Stage != bootlog.StageHealthy {
			at.Stage = bootlog.StageAgent
		}
		at.AgentStarts++
		at.Stopped = false
	})
}

// mendClock moves a clock that is before a time that has passed to that time: it
// is wrong for certain, and certificates would all seem to lie ahead.
func (a *Agent) mendClock(passed time.Time) {
	now := time.Now()
	if !now.Before(passed) {
		return
	}
	a.cfg.Log.Warn("clock was behind", "clock", now, "passed", passed, "err", setClock(passed))
}

// readNetwork reads which network the box joins. A file that cannot be read is
// none.
func (a *Agent) readNetwork() {
	var err error
	if a.network, err = a.loader.network(); err != nil {
		a.network, a.unlinked = nil, err
		a.cfg.Log.Error("the box joins no network", "err", err)
		a.notes = append(a.notes, "The box cannot read which network it belongs to, so it takes no work ("+err.Error()+").")
	}
}

// openState opens journal and identity, in memory if /perm keeps nothing.
func (a *Agent) openState() error {
	dir := ""
	if a.handover.Perm.State != bootlog.PermLost { // what cannot be written can still be read
		dir = filepath.Join(a.cfg.Perm, "croft")
	}
	a.journal = journal.NewMemory()
	if dir != "" {
		j, err := journal.Open(journal.Config{Path: filepath.Join(dir, "journal"), Log: a.cfg.Log})
		if err != nil {
			a.cfg.Log.Error("journal not opened; state is kept in memory", "err", err)
		} else {
			a.journal = j
		}
	}
	var err error
	a.identity, err = identity.Open(identity.Config{Dir: dir, Log: a.cfg.Log})
	if err != nil {
		return fmt.Errorf("open the box's identity: %w", err)
	}
	name := a.identity.DeviceID().ShortName()
	if err := unix.Sethostname([]byte(name)); err != nil {
		a.cfg.Log.Warn("host name not set", "err", err)
	}
	return nil
}

// claimCode returns the box's claim code and makes it at the first boot.
func (a *Agent) claimCode() (claim.Code, error) {
	var kept string
	if found, err := a.journal.Get("claim_code", &kept); err == nil && found {
		if code, err := claim.Normalize(kept); err == nil {
			return code, nil
		}
	}
	return a.drawClaimCode()
}

// drawClaimCode draws a code and keeps it.
func (a *Agent) drawClaimCode() (claim.Code, error) {
	code, err := claim.New(rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make a claim code: %w", err)
	}
	if err := a.journal.Put("claim_code", string(code)); err != nil {
		a.cfg.Log.Warn("claim code not kept", "err", err)
	}
	return code, nil
}

func (a *Agent) prepareWorkers() error {
	code, err := a.claimCode()
	if err != nil {
		return err
	}
	a.facts.code = code
	if a.cfg.ClaimAt == "" {
		a.cfg.ClaimAt = DefaultClaimAt
		if a.network != nil && a.network.Fleet != nil {
			a.cfg.ClaimAt = a.network.Fleet.ClaimPage()
		}
	}
	log := a.cfg.Log
	id := a.identity.DeviceID()
	a.slate = ownerpage.NewSlate(ownerpage.Status{
		Name: id.ShortName(), DeviceID: id, Version: a.handover.Version, Slot: a.handover.Slot,
		Claim: code, ClaimAt: a.cfg.ClaimAt,
	}, a.liveFigures)
	if a.page, err = ownerpage.New(ownerpage.Config{Listen: a.cfg.Listen, Source: a.slate, Log: log}); err != nil {
		return err
	}
	mdns, err := ownerpage.NewMDNS(ownerpage.MDNSConfig{Name: id.ShortName(), Log: log})
	if err != nil {
		return err
	}
	screen, err := ownerpage.NewScreen(ownerpage.ScreenConfig{Source: a.slate, Log: log})
	if err != nil {
		return err
	}
	serial, err := ownerpage.NewTextScreen(ownerpage.TextConfig{Source: a.slate, Out: serialPort("/dev/ttyS0"), Log: log})
	if err != nil {
		return err
	}
	if err := a.prepareGuard(); err != nil {
		return err
	}
	if err := a.prepareHosting(); err != nil {
		return err
	}
	a.prepareFleet()
	a.workers, err = supervise.New(supervise.Config{Log: log, Workers: []supervise.Worker{
		{Name: "boot_guard", Run: a.guard.Run},
		{Name: "owner_page", Run: a.page.Run},
		{Name: "mdns", Run: mdns.Run},
		{Name: "screen", Run: screen.Run},
		{Name: "serial", Run: serial.Run},
		{Name: "facts", Run: a.watchFacts},
		{Name: "report", Run: a.reportBoot},
		{Name: workerHosting, Run: a.host},
		{Name: workerFleet, Run: a.linkFleet},
	}})
	return err
}

func (a *Agent) prepareGuard() error {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read the kernel command line: %w", err)
	}
	cfg := update.Config{
		Handover: a.handover, Loader: a.loader, Records: a.records,
		Checks:  a.checks(),
		Limit:   kernel.DurationArgument(string(cmdline), "croft.confirm", 3*time.Minute),
		Uptime:  func() time.Duration { return uptime() - a.handover.Uptime },
		Restart: restart,
		Healthy: a.rememberBaseline,
		Changed: a.showVerdict,
		Log:     a.cfg.Log,
	}
	if a.watchdog != nil {
		cfg.Watchdog = a.watchdog
	}
	a.guard, err = update.New(cfg)
	return err
}

// ErrPowerOff is the cause with which Run's context ends when the box is being
// switched off: workloads are then ended in good order.
var ErrPowerOff = hosting.ErrPowerOff

// Run works until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	a.showVerdict(a.guard.Verdict())
	if a.watchdog != nil {
		held := make(chan (func()), 1)
		stop := context.AfterFunc(ctx, func() { held <- watchdog.Hold(a.watchdog, newLimit) }) // workloads take their time to end
		defer func() {
			if !stop() {
				release := <-held
				release()
			}
		}()
	}
	err := a.workers.Run(ctx)
	a.guard.Stop()
	return errors.Join(err, a.identity.Close(), a.journal.Close())
}

// event writes a numbered event; a journal that cannot be written is a problem
// shown elsewhere.
func (a *Agent) event(kind journal.Kind, fields map[string]string) {
	if _, err := a.journal.Event(kind, fields); err != nil {
		a.cfg.Log.Warn("event not kept", "event", kind, "err", err)
	}
}

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// restart ends this boot without asking the services: a trial has failed, and
// the sooner the old slot is back the better. It does not wait for a disk that
// no longer answers.
func restart() error {
	synced := make(chan struct{})
	go func() { // ends with the box
		defer close(synced)
		unix.Sync()
	}()
	select {
	case <-synced:
	case <-time.After(5 * time.Second):
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// serialPort is a serial port opened for each block of text, so that nobody is
// kept from using it in between.
type serialPort string

func (path serialPort) Write(p []byte) (int, error) {
	f, err := os.OpenFile(string(path), os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	n, err := f.Write(p)
	return n, errors.Join(err, f.Close())
}
