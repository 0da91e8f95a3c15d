package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/fleetlink"
	"github.com/croft-cloud/croft/agent/hosting"
	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// supervisorSocket is where gokrazy, and nobody but root, can be asked for a
// reboot.
const supervisorSocket = "/run/gokrazy-http.sock"

// voucher reads the factory's word for this box; empty: it came without one.
func (l *loader) voucher() (string, error) {
	raw, found, err := l.readFile(joinfile.VoucherPath, joinfile.MaxVoucher)
	if err != nil || !found {
		return "", err
	}
	return joinfile.ParseVoucher(raw)
}

// prepareFleet makes the link to the box's fleet, if it has one. A box that cannot
// join is still good for all else.
func (a *Agent) prepareFleet() {
	if a.network == nil || a.network.Fleet == nil {
		return
	}
	voucher, err := a.loader.voucher()
	if err != nil { // perhaps the fleet lets the box in without
		a.cfg.Log.Warn("no voucher of the factory", "err", err)
	}
	cfg := fleetlink.Config{
		Fleet: a.network.Fleet, Voucher: voucher, Journal: a.journal, Key: a.identity, RunDir: filepath.Dir(a.cfg.Handover),
		BootID: a.handover.BootID, Board: a.release.Board, Release: a.release.Version, Slot: a.handover.Slot, Built: a.release.Built,
		Facts: sync.OnceValue(a.machineFacts), Code: a.facts.claimCode(), NewCode: a.renewClaimCode,
		Reboot: a.reboot, SetClock: setClock, Sections: a.bundleSections(), Lines: a.lines, Changed: a.refresh, Log: a.cfg.Log,
	}
	if a.handover.Perm.State != bootlog.PermLost { // what cannot be written can still be read
		cfg.Dir = filepath.Join(a.cfg.Perm, "croft", "fleet")
	}
	if a.hosting != nil {
		cfg.Leases, cfg.Earnings = leaseReadings{a.hosting}, earningReadings{a.hosting}
	}
	if a.fleet, err = fleetlink.New(cfg); err != nil {
		a.unlinked = err
		a.cfg.Log.Error("the box joins no fleet", "err", err)
		a.notes = append(a.notes, "The box cannot join its fleet ("+err.Error()+"). Please ask for help.")
	}
}

// linkFleet keeps the link to the fleet.
func (a *Agent) linkFleet(ctx context.Context) error {
	if a.fleet == nil {
		return nil
	}
	return a.fleet.Run(ctx)
}

// checkFleet passes if the fleet sees the box, or there is none. A release that
// does not understand who looks after the box has lost the fleet as well.
func (a *Agent) checkFleet(context.Context) error {
	if a.fleet == nil {
		return a.unlinked
	}
	if s := a.fleet.Status().Line; !s.Connected {
		return fmt.Errorf("it is not reached (%s)", strings.TrimSuffix(s.Problem, "."))
	}
	return nil
}

// fleetStatus is what the page says about the fleet, and whether somebody looks
// for the box; nil: there is none.
func (a *Agent) fleetStatus() (*ownerpage.Fleet, bool) {
	if a.fleet == nil {
		return nil, false
	}
	s := a.fleet.Status()
	return &ownerpage.Fleet{
		Connected: s.Line.Connected, Problem: s.Line.Problem, Owned: s.Claimed, Name: s.Name, Words: ownerpage.Words(s.Words),
	}, s.Showing
}

// leaseReadings are what leases use, for telemetry.
type leaseReadings struct{ hosting *hosting.Hosting }

// LeaseUsage implements sampling.Leases.
func (l leaseReadings) LeaseUsage(ctx context.Context) ([]sampling.LeaseUsage, error) {
	uses, err := l.hosting.LeaseUsage(ctx)
	list := make([]sampling.LeaseUsage, len(uses))
	for i, u := range uses {
		list[i] = sampling.LeaseUsage(u)
	}
	return list, err
}

// earningReadings are what the box earns, for telemetry.
type earningReadings struct{ hosting *hosting.Hosting }

// Earnings implements sampling.Earnings.
func (e earningReadings) Earnings(context.Context) ([]sampling.Earning, error) {
	return earnings(e.hosting.Status())
}

// renewClaimCode draws another code and shows it.
func (a *Agent) renewClaimCode() (claim.Code, error) {
	code, err := a.drawClaimCode()
	if err != nil {
		return "", err
	}
	a.facts.mu.Lock()
	a.facts.code = code
	a.facts.mu.Unlock()
	return code, nil
}

// machineFacts are what the box tells its fleet about its hardware.
func (a *Agent) machineFacts() map[string]string {
	facts := map[string]string{"device_key": string(a.identity.Kind()), "watchdog": a.handover.Watchdog}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		facts["kernel"] = unix.ByteSliceToString(name.Release[:])
	}
	m, err := inventory.Read(context.Background(), "/", nil)
	if err != nil {
		a.cfg.Log.Warn("hardware not read", "err", err)
		return facts
	}
	var disks int64
	for _, d := range m.Disks {
		disks += d.Bytes
	}
	facts["machine"], facts["cpu_model"], facts["cpu_arch"] = m.Board, m.CPU.Model, m.CPU.Arch
	facts["cpu_threads"], facts["memory_bytes"] = strconv.Itoa(m.CPU.Threads), strconv.FormatInt(m.Memory.Bytes, 10)
	facts["disk_bytes"], facts["virtual"] = strconv.FormatInt(disks, 10), strconv.FormatBool(m.Virtual)
	return facts
}

// reboot has the box started again in good order. A trial must end first: its
// boot counts.
func (a *Agent) reboot(ctx context.Context) error {
	a.facts.mu.Lock()
	v := a.facts.verdict
	a.facts.mu.Unlock()
	if v.Trial {
		return errors.New("the box is trying a new version out: ask again in a few minutes")
	}
	a.cfg.Log.Info("the box was asked to start again")
	return askSupervisor(ctx, supervisorSocket)
}

// askSupervisor asks gokrazy to end all programs, this one among them, and to
// start the box again. Not by kexec: the boot loader counts tries, and the EFI
// partition would stay mounted.
func askSupervisor(ctx context.Context, socket string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://supervisor/reboot?kexec=off", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the box's supervisor did not take the request: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the box's supervisor answered %s", resp.Status)
	}
	return nil
}

func setClock(to time.Time) error {
	tv := unix.NsecToTimeval(to.UnixNano())
	return unix.Settimeofday(&tv)
}

// bundleSections are the parts of a support bundle that only the agent knows.
func (a *Agent) bundleSections() []fleetlink.Section {
	sections := []fleetlink.Section{
		{Name: "boot.json", Write: func(_ context.Context, w io.Writer) error {
			attempts, err := a.records.Read()
			a.facts.mu.Lock()
			verdict := a.facts.verdict
			a.facts.mu.Unlock()
			set, looked := a.loader.Read()
			return errors.Join(err, looked, fleetlink.WriteJSON(w, map[string]any{
				"handover": a.handover, "attempts": attempts, "verdict": verdict, "slots": set, "identity_notes": a.identity.Notes(),
				"workers": a.workerStates(),
			}))
		}},
		{Name: "network.txt", Write: func(_ context.Context, w io.Writer) error {
			return errors.Join(writeInterfaces(w), writeFiles(w, "/proc/net/route", "/proc/net/ipv6_route", "/etc/resolv.conf", "/proc/net/dev", "/proc/net/sockstat"))
		}},
		{Name: "machine.txt", Write: func(_ context.Context, w io.Writer) error {
			return writeFiles(w, "/proc/cmdline", "/proc/loadavg", "/proc/meminfo", "/proc/pressure/cpu", "/proc/pressure/memory", "/proc/pressure/io",
				"/proc/mounts", "/proc/partitions", "/proc/diskstats", "/proc/vmstat")
		}},
	}
	if a.hosting != nil {
		sections = append(sections, fleetlink.Section{Name: "hosting.json", Write: a.writeHosting})
	}
	return sections
}

func (a *Agent) workerStates() map[string]string {
	states := map[string]string{}
	for _, w := range a.workers.States() {
		states[w.Name] = string(w.Phase)
		if w.LastError != nil {
			states[w.Name] += ": " + w.LastError.Error()
		}
	}
	return states
}

// writeHosting writes how the box is doing as a provider: of leases their keys,
// states and numbers, of what tenants run nothing.
func (a *Agent) writeHosting(_ context.Context, w io.Writer) error {
	s := a.hosting.Status()
	b := s.Bidding
	items := map[string]int{}
	for _, i := range b.Items {
		items[string(i.State)]++
	}
	var trouble, refusals []map[string]string
	for _, e := range s.Trouble {
		trouble = append(trouble, map[string]string{"at": e.At.UTC().Format(time.RFC3339), "reason": e.Reason})
	}
	for _, r := range b.WhyNot {
		refusals = append(refusals, map[string]string{"at": r.At.UTC().Format(time.RFC3339), "why": string(r.Why)})
	}
	return fleetlink.WriteJSON(w, map[string]any{
		"network": s.Network, "fault": s.Fault, "sick": s.Sick, "machine": s.Machine, "relays": s.Relays, "domain": s.Domain,
		"uses": s.Uses, "trouble": trouble, "refusals": refusals, "orders": items, "leases": len(s.Leases),
		"account": b.Account, "height": b.Height, "chain_time": b.ChainTime, "reached": b.Reached, "surveyed": b.Surveyed,
		"registered": b.Registered, "draining": b.Draining, "unready": b.Unready, "problems": b.Problems,
		"capacity": b.Capacity, "reserved": b.Reserved, "leased": b.Leased, "balance": b.Balance, "earned": b.Earned,
	})
}

func writeInterfaces(w io.Writer) error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if _, failed := fmt.Fprintf(w, "%s %s mtu %d: %v\n", i.Name, i.Flags, i.MTU, addrs); failed != nil || err != nil {
			return errors.Join(failed, err)
		}
	}
	return nil
}

// writeFiles writes files with their names. One that is not there is left out.
func writeFiles(w io.Writer, paths ...string) error {
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if _, err := fmt.Fprintf(w, "== %s\n%s\n", path, raw); err != nil {
			return err
		}
	}
	return nil
}
