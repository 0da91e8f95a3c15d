package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/update"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/provisioning/claim"
)

// The names of the health checks, as the baseline remembers them.
const (
	checkWorkers = "workers"
	checkPage    = "owner page"
	checkClock   = "clock"
	checkPerm    = "storage"
	checkNetwork = "network"
	checkHosting = "leases"
	checkFleet   = "fleet"
)

// These workers are judged by checks of their own: an update must be able to cure
// a box that could not host, or reach its fleet, before it either.
const (
	workerHosting = "hosting"
	workerFleet   = "fleet"
)

// facts are what the box observes about itself while it runs.
type facts struct {
	mu      sync.Mutex
	network ownerpage.Network // guarded by mu
	verdict update.Verdict    // guarded by mu
	code    claim.Code        // guarded by mu; to claim the box with
}

func (f *facts) claimCode() claim.Code {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.code
}

// checks are the conditions of a healthy boot.
func (a *Agent) checks() []update.Check {
	before := func(name string) func() bool {
		return func() bool {
			if a.oldBaseline || !a.handover.Perm.Keeps() {
				return false // the baseline is out of date: nobody could write a newer one
			}
			var baseline map[string]bool
			found, err := a.journal.Get("baseline", &baseline)
			return err == nil && found && baseline[name]
		}
	}
	return []update.Check{
		{Name: checkWorkers, Run: a.checkWorkers},
		{Name: checkPage, Run: a.checkPage},
		{Name: checkClock, Run: a.checkClock, Before: before(checkClock)},
		{Name: checkPerm, Run: a.checkPerm, Before: before(checkPerm)},
		{Name: checkNetwork, Run: a.checkNetwork, Before: before(checkNetwork)},
		{Name: checkHosting, Run: a.checkHosting, Before: before(checkHosting)},
		// A fleet that is away holds up a trial, and nothing else.
		{Name: checkFleet, Run: a.checkFleet, Before: func() bool {
			a.facts.mu.Lock()
			trial := a.facts.verdict.Trial
			a.facts.mu.Unlock()
			return trial && before(checkFleet)()
		}},
	}
}

// judgeBaseline decides, once per boot, whether the stored baseline is out of
// date because /perm was full: room that is made later does not make it newer.
// A file next to the handover keeps the decision should the agent start again.
func (a *Agent) judgeBaseline() {
	path := filepath.Join(filepath.Dir(a.cfg.Handover), "baseline")
	if raw, err := os.ReadFile(path); err == nil {
		a.oldBaseline = string(raw) == "old"
		return
	}
	word := "good"
	if isFull(a.cfg.Perm) {
		a.oldBaseline, word = true, "old"
	}
	if err := os.WriteFile(path, []byte(word), 0o600); err != nil {
		a.cfg.Log.Warn("decision on the baseline not kept", "err", err)
	}
}

func (a *Agent) checkWorkers(context.Context) error {
	for _, w := range a.workers.States() {
		if w.Name == workerHosting || w.Name == workerFleet {
			continue
		}
		if !w.Up() && w.LastError != nil {
			return fmt.Errorf("worker %s fails: %w", w.Name, w.LastError)
		}
		if !w.Up() {
			return fmt.Errorf("worker %s is %s", w.Name, w.Phase)
		}
	}
	return nil
}

// checkPage asks the owner page for a sign of life, as a browser would.
func (a *Agent) checkPage(ctx context.Context) error {
	addr, ok := a.page.Addr().(*net.TCPAddr)
	if !ok {
		return errors.New("it does not listen")
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/healthz", addr.Port)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}

// clockSpan is how far after its release a box may believe itself to be.
const clockSpan = 20 * 365 * 24 * time.Hour

func (a *Agent) checkClock(context.Context) error {
	if now := time.Now(); now.Before(a.release.Built) || now.After(a.release.Built.Add(clockSpan)) {
		return fmt.Errorf("it shows %s", now.UTC().Format("2 January 2006"))
	}
	return nil
}

// checkPerm writes and removes a small file.
func (a *Agent) checkPerm(context.Context) error {
	if !a.handover.Perm.Keeps() {
		return errors.New("/perm is " + string(a.handover.Perm.State))
	}
	path := filepath.Join(a.cfg.Perm, "croft", "write-check")
	err := os.WriteFile(path, []byte("x"), 0o600)
	if err != nil {
		_ = os.Remove(path)
		return err
	}
	return os.Remove(path)
}

// isFull reports whether nothing is left on the file system but the share that
// it keeps for the system itself.
func isFull(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Bavail == 0
}

func (a *Agent) checkNetwork(context.Context) error {
	if state, _ := network(); state != ownerpage.Online {
		return errors.New(state.Words())
	}
	return nil
}

// rememberBaseline keeps which checks hold in a healthy boot: the next release
// has to do as well.
func (a *Agent) rememberBaseline(passed map[string]bool) {
	if err := a.journal.Put("baseline", passed); err != nil {
		a.cfg.Log.Warn("health baseline not kept", "err", err)
	}
	a.once("boot_confirmed", a.handover.BootID, map[string]string{"boot_id": a.handover.BootID, "slot": string(a.handover.Slot), "version": string(a.handover.Version)})
}

// showVerdict puts the guard's verdict in front of the owner.
func (a *Agent) showVerdict(v update.Verdict) {
	a.facts.mu.Lock()
	a.facts.verdict = v
	a.facts.mu.Unlock()
	a.refresh()
}

// watchFacts looks every few seconds at what changes by itself.
func (a *Agent) watchFacts(ctx context.Context) error {
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for {
		a.refresh()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// refresh writes what is known now on the slate.
func (a *Agent) refresh() {
	state, addresses := network()
	a.facts.mu.Lock()
	a.facts.network = state
	v := a.facts.verdict
	a.facts.mu.Unlock()
	full := a.handover.Perm.Keeps() && isFull(a.cfg.Perm)

	problems := slices.Concat(permProblems(a.handover.Perm.State, full), a.handover.Notes, a.identity.Notes(), a.notes)
	failing := failure(v, full)
	mood := mood(v, failing != "", len(problems) > 0)
	if failing != "" {
		problems = append(problems, failing)
	}
	urls := addresses
	if state == ownerpage.Online {
		urls = append([]string{"http://" + a.identity.DeviceID().ShortName() + ".local/"}, addresses...)
	}
	fleet, here := a.fleetStatus()
	code := a.facts.claimCode()
	if fleet != nil && fleet.Owned {
		code = ""
	}
	a.slate.Update(func(s *ownerpage.Status) {
		s.Claim, s.Fleet, s.Here = code, fleet, here
		s.State, s.Network, s.Addresses, s.Problems = mood, state, urls, problems
		s.Storage = permSentence(a.handover.Perm.State, full)
		s.Hosting = a.hostingStatus(state == ownerpage.Online)
	})
}

// mood is the state the owner sees. What the boot found makes it at once, but
// for a trial, which may cure it; a check that does not hold only when failing
// says that it should.
func mood(v update.Verdict, failing, problems bool) ownerpage.State {
	onTrial := v.Trial && v.Alternative
	switch {
	case onTrial:
		return ownerpage.Trial
	case failing, problems, v.Overdue:
		return ownerpage.Attention
	case v.Confirmed:
		return ownerpage.Healthy
	}
	return ownerpage.Starting
}

// failure is the sentence on a check that does not hold although it should by
// now: in the first minutes that is no news. The network, the fleet and a full
// storage have sentences of their own.
func failure(v update.Verdict, full bool) string {
	name, _, _ := strings.Cut(v.Failing, ":")
	switch {
	case v.Failing == "", !v.Confirmed && !v.Overdue, name == checkNetwork, name == checkFleet, name == checkPerm && full:
		return ""
	}
	return "A part of the box does not work (" + v.Failing + "). It tries again by itself; if this stays, please ask for help."
}

func permSentence(state bootlog.PermState, full bool) string {
	if full {
		return "The storage is full."
	}
	switch state {
	case bootlog.PermOK:
		return "The storage works."
	case bootlog.PermCreated:
		return "The storage was set up for the first time."
	case bootlog.PermRepaired:
		return "The storage was damaged and has been repaired."
	case bootlog.PermRenewed:
		return "The storage was damaged beyond repair and has been set up anew."
	case bootlog.PermReadOnly:
		return "The storage cannot be written."
	case bootlog.PermLost:
		return "The storage cannot be used."
	}
	return ""
}

// permProblems are the sentences an owner should act on.
func permProblems(state bootlog.PermState, full bool) []string {
	var problems []string
	switch state {
	case bootlog.PermReadOnly:
		problems = append(problems, "The storage of the box cannot be written, so it takes no new work. Please ask for help: the disk is probably worn out.")
	case bootlog.PermLost:
		problems = append(problems, "The storage of the box cannot be used, so it takes no new work and forgets its settings when switched off. Please ask for help.")
	case bootlog.PermRenewed:
		problems = append(problems, "The storage of the box was damaged and had to be set up anew; it may have to be claimed again.")
	case bootlog.PermOK, bootlog.PermCreated, bootlog.PermRepaired:
	}
	if full {
		problems = append(problems, "The storage of the box is full, so it takes no new work. It makes room by itself when leases end; if this stays, please ask for help.")
	}
	return problems
}

// reportBoot leaves word, for support and for the fleet, of what this boot
// found. It is a worker of its own: looking at the EFI partition may take time.
func (a *Agent) reportBoot(context.Context) error {
	h, log := a.handover, a.cfg.Log
	log.Info("boot found", "slot", h.Slot, "version", h.Version, "disk", h.Disk, "watchdog", h.Watchdog, "handed_over_after", h.Uptime,
		"perm", h.Perm.State, "perm_device", h.Perm.Device, "perm_grown", h.Perm.Grown, "perm_detail", h.Perm.Detail)
	for _, failed := range h.Modules {
		log.Warn("kernel module not loaded", "reason", failed)
	}
	for _, note := range h.Notes {
		log.Warn("boot note", "note", note)
	}
	a.event("agent_started", map[string]string{"boot_id": h.BootID, "slot": string(h.Slot), "version": string(h.Version)})
	if a.guard != nil && a.guard.Verdict().Trial {
		a.once("trial_began", h.BootID, map[string]string{"boot_id": h.BootID, "slot": string(h.Slot), "version": string(h.Version)})
	}
	if last, found := lastBoot(h.Before); found && last.Unclean() {
		a.once("ended_uncleanly", h.BootID, map[string]string{"boot_id": last.BootID, "version": string(last.Version), "stage": string(last.Stage), "reason": last.Reason})
	}
	if h.Panic != "" {
		a.once("kernel_panicked", h.BootID, map[string]string{"boot_id": h.BootID, "panic": h.Panic})
	}
	for _, note := range a.identity.Notes() {
		log.Warn("identity note", "note", note)
	}
	if notes := strings.Join(a.identity.Notes(), " "); notes != "" {
		a.once("identity_noted", notes, map[string]string{"notes": notes})
	}
	a.reportOtherSlot()
	return nil
}

// lastBoot is the newest of the boots on record.
func lastBoot(before map[croft.Slot]bootlog.Attempt) (last bootlog.Attempt, found bool) {
	for _, attempt := range before {
		if !found || attempt.At.After(last.At) {
			last, found = attempt, true
		}
	}
	return last, found
}

// once writes an event unless the last one of its kind was about the same:
// the agent may be started several times in one boot.
func (a *Agent) once(kind journal.Kind, about string, fields map[string]string) {
	key := "last/" + string(kind)
	var last string
	if found, err := a.journal.Get(key, &last); err == nil && found && last == about {
		return
	}
	a.event(kind, fields)
	if err := a.journal.Put(key, about); err != nil {
		a.cfg.Log.Warn("event may be repeated", "event", kind, "err", err)
	}
}

// reportOtherSlot tells what became of the other slot, if it was given up or
// cannot be started. The
// first finding is kept: what it rests on, like a kernel's last words, is gone
// by the next boot.
func (a *Agent) reportOtherSlot() {
	entry, report, err := update.Examine(a.loader, a.handover)
	if err != nil {
		a.cfg.Log.Warn("other slot not examined", "err", err)
	}
	if report == "" {
		return
	}
	key := "given_up/" + entry.Name()
	var kept string
	if found, err := a.journal.Get(key, &kept); err == nil && found {
		report = kept
	} else {
		kind := journal.Kind("slot_given_up")
		if entry.State() != slot.Exhausted {
			kind = "slot_passed_over"
		}
		a.cfg.Log.Warn("other slot is not fit to start", "report", report)
		a.event(kind, map[string]string{"entry": entry.Name(), "report": report})
		if err := a.journal.Put(key, report); err != nil {
			a.cfg.Log.Warn("report not kept", "err", err)
		}
	}
	a.slate.Update(func(s *ownerpage.Status) { s.LastUpdate = report })
}

// liveFigures fills in what changes all the time.
func (a *Agent) liveFigures(s *ownerpage.Status) {
	s.Uptime = uptime()
	var fs unix.Statfs_t
	if a.handover.Perm.State != bootlog.PermLost && unix.Statfs(a.cfg.Perm, &fs) == nil {
		s.DiskTotal = int64(fs.Blocks) * fs.Bsize
		s.DiskUsed = s.DiskTotal - int64(fs.Bfree)*fs.Bsize
	}
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		total, available := meminfo(string(raw))
		s.MemoryTotal, s.MemoryUsed = total, total-available
	}
	if raw, err := os.ReadFile("/proc/self/statm"); err == nil {
		s.AgentMemory = residentPages(string(raw)) * int64(os.Getpagesize())
	}
}

// residentPages reads the resident set from /proc/self/statm, in pages: the
// second of its numbers.
func residentPages(text string) int64 {
	var size, resident int64
	if n, _ := fmt.Sscan(text, &size, &resident); n < 2 {
		return 0
	}
	return resident
}

// meminfo reads total and available memory in bytes from /proc/meminfo.
func meminfo(text string) (total, available int64) {
	for line := range strings.Lines(text) {
		var name string
		var kib int64
		if n, _ := fmt.Sscan(line, &name, &kib); n < 2 {
			continue
		}
		switch name {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			available = kib << 10
		}
	}
	return total, available
}

// network says how far the way into the home network reaches, and the
// addresses of the page there.
func network() (ownerpage.Network, []string) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return ownerpage.Unplugged, nil
	}
	state := ownerpage.Unplugged
	var urls []string
	for _, i := range interfaces {
		if !strings.HasPrefix(i.Name, "eth") || i.Flags&net.FlagRunning == 0 {
			continue
		}
		if state == ownerpage.Unplugged {
			state = ownerpage.NoAddress
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // gone meanwhile
		}
		for _, addr := range addrs {
			ipnet, ok := addr.(*net.IPNet)
			if ok && ipnet.IP.To4() != nil && ipnet.IP.IsGlobalUnicast() {
				state = ownerpage.Online
				urls = append(urls, "http://"+ipnet.IP.String()+"/")
			}
		}
	}
	return state, urls
}
