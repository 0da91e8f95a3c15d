package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/fleetlink"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/internal/supervise"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// withFleet is an agent whose network is a fleet that nobody answers for.
func withFleet(t *testing.T, dir string, log *bytes.Buffer) (*Agent, func()) {
	t.Helper()
	authority, err := enroll.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	handover := bootlog.Handover{BootID: "0fb3e4e5-8a5b-4c5e-9d2e-3f1f6a7b8c9d", Slot: croft.SlotA, Perm: bootlog.Perm{State: bootlog.PermOK}}
	a, stop := start(t, dir, handover, log)
	if err := os.MkdirAll(filepath.Dir(a.cfg.Handover), 0o755); err != nil {
		t.Fatal(err)
	}
	a.release = Release{Board: "uefi-x86", Version: "1.0.0", Built: time.Now().AddDate(0, -1, 0)}
	a.lines = new(fleetlink.Lines)
	a.network = &joinfile.Network{Fleet: &joinfile.Fleet{
		URL: "https://" + l.Addr().String(), Console: "https://fleet.example",
		Roots: joinfile.Roots{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Root().Raw}))},
	}}
	if err := a.network.Check(); err != nil {
		t.Fatal(err)
	}
	if a.facts.code, err = a.claimCode(); err != nil {
		t.Fatal(err)
	}
	if a.workers, err = supervise.New(supervise.Config{}); err != nil {
		t.Fatal(err)
	}
	a.prepareFleet()
	if a.fleet == nil {
		t.Fatalf("the box has no link: %s", log)
	}
	return a, stop
}

func TestBoxWithAFleetAndNoChainIsLookedAfter(t *testing.T) {
	dir, log := t.TempDir(), new(bytes.Buffer)
	a, stop := withFleet(t, dir, log)
	defer stop()
	if err := a.prepareHosting(); err != nil || a.hosting != nil {
		t.Errorf("the box is let without a chain: %v", err)
	}
	a.showVerdict(a.facts.verdict)
	s := a.slate.Status()
	if s.Fleet == nil || s.Fleet.Connected || s.Fleet.Owned || strings.Count(s.Fleet.Words.Shown(), "-") != 2 || s.Claim == "" {
		t.Errorf("the page says %+v, claimed with %q", s.Fleet, s.Claim)
	}
	if err := a.checkFleet(t.Context()); err == nil {
		t.Error("a fleet that does not answer counts as reached")
	}
	if facts := a.machineFacts(); facts["device_key"] != "file" || facts["memory_bytes"] == "" || facts["kernel"] == "" {
		t.Errorf("facts are %v", facts)
	}
	for _, section := range a.bundleSections() {
		var out bytes.Buffer
		err := section.Write(t.Context(), &out)
		if out.Len() == 0 || err != nil && section.Name != "boot.json" { // there is no EFI partition here
			t.Errorf("section %s has %d bytes, %v", section.Name, out.Len(), err)
		}
		if strings.Contains(out.String(), string(a.facts.claimCode())) {
			t.Errorf("section %s has the claim code", section.Name)
		}
	}
}

func TestCodeOfABoxWithOwnerIsNotShown(t *testing.T) {
	dir := t.TempDir()
	first, stop := withFleet(t, dir, new(bytes.Buffer))
	if err := first.journal.Put("fleetlink/claimed", true); err != nil {
		t.Fatal(err)
	}
	stop()
	a, stop := withFleet(t, dir, new(bytes.Buffer))
	defer stop()
	a.refresh()
	if s := a.slate.Status(); s.Claim != "" || !s.Fleet.Owned || s.Fleet.Words != "" {
		t.Errorf("the page says %+v, claimed with %q", s.Fleet, s.Claim.Shown())
	}
	before := a.facts.claimCode()
	after, err := a.renewClaimCode()
	if err != nil || after == before || after != a.facts.claimCode() {
		t.Errorf("renewed: %v", err)
	}
	if kept, err := a.claimCode(); err != nil || kept != after {
		t.Errorf("kept is another code, %v", err)
	}
}

func TestBoxWhoseFleetMakesNoSenseSaysSo(t *testing.T) {
	a, stop := start(t, t.TempDir(), bootlog.Handover{}, new(bytes.Buffer))
	defer stop()
	a.prepareFleet()
	if fleet, here := a.fleetStatus(); fleet != nil || here || a.checkFleet(t.Context()) != nil || a.linkFleet(t.Context()) != nil {
		t.Errorf("without a fleet the page says %+v", fleet)
	}
	code, err := claim.New(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.facts.code, a.lines = code, new(fleetlink.Lines)
	a.network = &joinfile.Network{Fleet: &joinfile.Fleet{URL: "https://fleet.example", Roots: joinfile.Roots{"none"}}}
	a.prepareFleet()
	if a.fleet != nil || len(a.notes) != 1 || !strings.HasPrefix(a.notes[0], "The box cannot join its fleet (") {
		t.Errorf("notes are %q", a.notes)
	}
	if a.checkFleet(t.Context()) == nil {
		t.Error("a release that cannot link the box to its fleet would be kept")
	}
}

func TestReleaseThatCannotReadTheNetworkFileHasLostTheFleet(t *testing.T) {
	a, stop := start(t, t.TempDir(), bootlog.Handover{}, new(bytes.Buffer))
	defer stop()
	a.readNetwork() // there is no EFI partition here
	a.prepareFleet()
	if a.network != nil || a.fleet != nil || a.checkFleet(t.Context()) == nil {
		t.Error("a release that cannot read whose the box is would be kept")
	}
}

func TestSupervisorIsAskedForAReboot(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := askSupervisor(t.Context(), socket); err == nil {
		t.Error("nobody is there, and the reboot is on its way")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked, status := "", http.StatusOK
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path + " kexec " + r.FormValue("kexec")
		w.WriteHeader(status)
	}))
	server.Listener = l
	server.Start()
	defer server.Close()
	if err := askSupervisor(t.Context(), socket); err != nil || asked != "POST /reboot kexec off" {
		t.Errorf("asked for %q, %v", asked, err)
	}
	status = http.StatusInternalServerError
	if err := askSupervisor(t.Context(), socket); err == nil {
		t.Error("a refusal is taken for a yes")
	}
	a, stop := start(t, t.TempDir(), bootlog.Handover{}, new(bytes.Buffer))
	defer stop()
	a.facts.verdict.Trial = true
	if err := a.reboot(t.Context()); err == nil || !strings.Contains(err.Error(), "trying a new version") {
		t.Errorf("during a trial: %v", err)
	}
}

func TestUncleanEndIsOneEvent(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name   string
		before map[croft.Slot]bootlog.Attempt
		want   int
	}{
		{"a new box", nil, 0},
		{"it was shut down", map[croft.Slot]bootlog.Attempt{croft.SlotA: {BootID: "a", Stopped: true, At: now}}, 0},
		{"the power was cut", map[croft.Slot]bootlog.Attempt{croft.SlotA: {BootID: "a", At: now}, croft.SlotB: {BootID: "b", Stopped: true, At: now.Add(-time.Hour)}}, 1},
		{"it was cut in an earlier boot", map[croft.Slot]bootlog.Attempt{croft.SlotA: {BootID: "a", At: now.Add(-time.Hour)}, croft.SlotB: {BootID: "b", Stopped: true, At: now}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, stop := start(t, t.TempDir(), bootlog.Handover{BootID: "c", Before: tc.before}, new(bytes.Buffer))
			defer stop()
			for range 2 {
				if err := a.reportBoot(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := events(a, "ended_uncleanly"); len(got) != tc.want {
				t.Errorf("events: %q", got)
			}
		})
	}
}
