package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/identity"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/update"
	"github.com/croft-cloud/croft/firmware/bootlog"
)

// start is an agent on the /perm in dir, as far as it goes without a box; stop
// ends it.
func start(t *testing.T, dir string, handover bootlog.Handover, log *bytes.Buffer) (a *Agent, stop func()) {
	t.Helper()
	j, err := journal.Open(journal.Config{Path: filepath.Join(dir, "croft", "journal")})
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Open(identity.Config{Dir: filepath.Join(dir, "croft"), TPM: filepath.Join(dir, "no-tpm")})
	if err != nil {
		t.Fatal(err)
	}
	a = &Agent{
		cfg:      Config{Perm: dir, Handover: filepath.Join(dir, "run", "handover.json"), Log: slog.New(slog.NewTextHandler(log, nil))},
		handover: handover, journal: j, identity: id,
		records: bootlog.Open(dir),
		loader:  &loader{device: filepath.Join(dir, "no-esp")},
		slate:   ownerpage.NewSlate(ownerpage.Status{}, nil),
	}
	return a, func() {
		t.Helper()
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		if err := id.Close(); err != nil {
			t.Error(err)
		}
	}
}

func events(a *Agent, kind journal.Kind) []string {
	var fields []string
	for e := range a.journal.Events(0) {
		if e.Kind == kind {
			fields = append(fields, string(e.Fields))
		}
	}
	return fields
}

func TestClaimCodeIsMadeOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	first, stop := start(t, dir, bootlog.Handover{}, new(bytes.Buffer))
	code, err := first.claimCode()
	if err != nil || code == "" {
		t.Fatalf("code is %q, %v", string(code), err)
	}
	stop()
	second, stop := start(t, dir, bootlog.Handover{}, new(bytes.Buffer))
	again, err := second.claimCode()
	if err != nil || again != code {
		t.Errorf("after a restart the code is %q, %v, want %q", string(again), err, string(code))
	}
	if err := second.journal.Put("claim_code", "damaged"); err != nil {
		t.Fatal(err)
	}
	if other, err := second.claimCode(); err != nil || other == code || other == "" {
		t.Errorf("after damage the code is %q, %v", string(other), err)
	}
	stop()
	// A journal that cannot be written is no reason to be without a code.
	if code, err := second.claimCode(); err != nil || code == "" {
		t.Errorf("without a journal the code is %q, %v", string(code), err)
	}
}

func TestNotesAreLoggedJournaledOnceAndShown(t *testing.T) {
	dir := t.TempDir()
	a, stop := start(t, dir, bootlog.Handover{}, new(bytes.Buffer))
	if a.identity.Notes() != nil {
		t.Fatalf("a new box has notes: %q", a.identity.Notes())
	}
	stop()
	keys, err := filepath.Glob(filepath.Join(dir, "croft", "identity", "*.key"))
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys are %q, %v", keys, err)
	}
	if err := os.WriteFile(keys[0], []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}

	log := new(bytes.Buffer)
	boot := bootlog.Handover{
		BootID: "boot-2", Slot: croft.SlotA, Perm: bootlog.Perm{State: bootlog.PermOK, Detail: "it stays small"},
		Notes: []string{"Disk /dev/sdb is ignored."}, Modules: []string{"load module kvm: no"}, Panic: "VFS: no root",
	}
	a, stop = start(t, dir, boot, log)
	defer stop()
	notes := a.identity.Notes()
	if len(notes) == 0 {
		t.Fatal("a broken key is no note")
	}
	for range 2 { // the agent is started twice in one boot
		if err := a.reportBoot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range append(notes, "Disk /dev/sdb is ignored.", "load module kvm: no", "it stays small") {
		if !strings.Contains(log.String(), want) && !strings.Contains(log.String(), strings.Trim(fmt.Sprintf("%q", want), `"`)) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	if got := events(a, "identity_noted"); len(got) != 1 || !strings.Contains(got[0], notes[0]) {
		t.Errorf("events on the identity: %q", got)
	}
	if got := events(a, "kernel_panicked"); len(got) != 1 || !strings.Contains(got[0], "VFS: no root") {
		t.Errorf("events on the panic: %q", got)
	}
	if got := events(a, "agent_started"); len(got) != 2 {
		t.Errorf("%d starts are on record, want 2", len(got))
	}
	a.showVerdict(update.Verdict{Confirmed: true})
	s := a.slate.Status()
	for _, want := range append(notes, "Disk /dev/sdb is ignored.") {
		if !slices.Contains(s.Problems, want) {
			t.Errorf("the page does not say %q: %q", want, s.Problems)
		}
	}
	if s.State != ownerpage.Attention || s.Storage != "The storage works." {
		t.Errorf("the page says %s, %q", s.State, s.Storage)
	}
}

func TestConfirmedBootIsOneEventAndTheBaseline(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the agent is started again in a confirmed boot
		a, stop := start(t, dir, bootlog.Handover{BootID: "boot-1"}, new(bytes.Buffer))
		a.rememberBaseline(map[string]bool{checkPerm: false, checkNetwork: true})
		a.rememberBaseline(map[string]bool{checkPerm: true, checkNetwork: false, checkFleet: true}) // it changed since
		if got := events(a, "boot_confirmed"); len(got) != 1 {
			t.Errorf("%d events, want 1", len(got))
		}
		stop()
	}
	a, stop := start(t, dir, bootlog.Handover{BootID: "boot-2", Perm: bootlog.Perm{State: bootlog.PermOK}}, new(bytes.Buffer))
	defer stop()
	counts := map[string]bool{}
	for _, c := range a.checks() {
		counts[c.Name] = c.Before == nil || c.Before()
	}
	want := map[string]bool{checkWorkers: true, checkPage: true, checkClock: false, checkPerm: true, checkNetwork: false, checkHosting: false, checkFleet: false}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("checks that count are %v, want %v", counts, want)
	}
	a.facts.verdict.Trial = true
	for _, c := range a.checks() {
		if c.Name == checkFleet && !c.Before() {
			t.Error("a new release may lose the fleet")
		}
	}
	a.handover.Perm.State = bootlog.PermReadOnly
	for _, c := range a.checks() {
		if c.Before != nil && c.Before() {
			t.Errorf("with a /perm that keeps nothing, check %s counts by an old baseline", c.Name)
		}
	}
	a.rememberBaseline(nil)
	if got := events(a, "boot_confirmed"); len(got) != 2 {
		t.Errorf("%d events after the second boot, want 2", len(got))
	}
}

func TestBaselineOfAFullPermIsOldForThisBoot(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	for _, full := range []bool{true, false} { // the agent starts again when there is room
		a, stop := start(t, dir, bootlog.Handover{BootID: "boot-1", Perm: bootlog.Perm{State: bootlog.PermOK}}, new(bytes.Buffer))
		a.cfg.Handover = filepath.Join(run, "handover.json")
		if full {
			if err := os.WriteFile(filepath.Join(run, "baseline"), []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a.judgeBaseline()
		a.rememberBaseline(map[string]bool{checkNetwork: true})
		for _, c := range a.checks() {
			if c.Before != nil && c.Before() {
				t.Errorf("check %s counts by an old baseline", c.Name)
			}
		}
		stop()
	}
	a, stop := start(t, dir, bootlog.Handover{BootID: "boot-2", Perm: bootlog.Perm{State: bootlog.PermOK}}, new(bytes.Buffer))
	defer stop()
	a.cfg.Handover = filepath.Join(t.TempDir(), "handover.json")
	for range 2 {
		a.judgeBaseline()
		if a.oldBaseline {
			t.Error("with room on /perm the baseline is old")
		}
	}
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(a.cfg.Handover), "baseline"))
	if err != nil || string(raw) != "good" {
		t.Errorf("kept is %q, %v", raw, err)
	}
}

func TestLeftOverMountsAreTakenAway(t *testing.T) {
	for _, tc := range []struct {
		name    string
		results []error
		ok      bool
	}{
		{"none", []error{unix.EINVAL}, true},
		{"no folder yet", []error{unix.ENOENT}, true},
		{"two, one over the other", []error{nil, nil, unix.EINVAL}, true},
		{"one in use", []error{nil, unix.EBUSY}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			calls := 0
			err := clearMounts(func() error { calls++; return tc.results[calls-1] })
			if (err == nil) != tc.ok || calls != len(tc.results) {
				t.Errorf("%v after %d calls", err, calls)
			}
		})
	}
}

func TestStartIsOnRecordForItsOwnBootOnly(t *testing.T) {
	records := bootlog.Open(t.TempDir())
	h := bootlog.Handover{BootID: "this", Slot: croft.SlotB}
	if err := records.Write(croft.SlotB, bootlog.Attempt{BootID: "this", Stage: bootlog.StageSystem, Stopped: true}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Started(records, h); err != nil {
			t.Fatal(err)
		}
	}
	got, err := records.Read()
	if a := got[croft.SlotB]; err != nil || a.Stage != bootlog.StageAgent || a.AgentStarts != 2 || a.Stopped {
		t.Errorf("record is %+v, %v", a, err)
	}
	if err := records.Write(croft.SlotB, bootlog.Attempt{BootID: "this", Stage: bootlog.StageHealthy}); err != nil {
		t.Fatal(err)
	}
	if err := Started(records, h); err != nil {
		t.Fatal(err)
	}
	if got, err := records.Read(); err != nil || got[croft.SlotB].Stage != bootlog.StageHealthy {
		t.Errorf("a healthy boot went back to %+v, %v", got[croft.SlotB], err)
	}
	h.BootID = "another"
	if err := Started(records, h); err != nil {
		t.Fatal(err)
	}
	if got, err := records.Read(); err != nil || got[croft.SlotB].AgentStarts != 1 {
		t.Errorf("the record of another boot is %+v, %v", got[croft.SlotB], err)
	}
}

func TestStorageCheck(t *testing.T) {
	a, stop := start(t, t.TempDir(), bootlog.Handover{Perm: bootlog.Perm{State: bootlog.PermOK}}, new(bytes.Buffer))
	defer stop()
	if err := a.checkPerm(t.Context()); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(a.cfg.Perm, "croft", "write*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the check leaves %q", left)
	}
	a.handover.Perm.State = bootlog.PermLost
	if err := a.checkPerm(t.Context()); err == nil {
		t.Error("a lost /perm is well")
	}
	a.handover.Perm.State = bootlog.PermOK
	a.cfg.Perm = filepath.Join(a.cfg.Perm, "missing")
	if err := a.checkPerm(t.Context()); err == nil || isFull(a.cfg.Perm) {
		t.Errorf("a missing /perm: %v, full = %v", err, isFull(a.cfg.Perm))
	}
}

func TestClockCheck(t *testing.T) {
	for _, tc := range []struct {
		name  string
		built time.Duration // from now
		well  bool
	}{
		{"an hour after the release", -time.Hour, true},
		{"before the release", time.Hour, false},
		{"decades after the release", -21 * 365 * 24 * time.Hour, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &Agent{release: Release{Built: time.Now().Add(tc.built)}}
			if err := a.checkClock(t.Context()); (err == nil) != tc.well {
				t.Errorf("checkClock() = %v", err)
			}
		})
	}
}

var permStates = []bootlog.PermState{
	bootlog.PermOK, bootlog.PermCreated, bootlog.PermRepaired, bootlog.PermRenewed, bootlog.PermReadOnly, bootlog.PermLost,
}

func TestEveryStateOfPermHasItsWords(t *testing.T) {
	problem := map[bootlog.PermState]string{
		bootlog.PermReadOnly: "cannot be written", bootlog.PermLost: "cannot be used", bootlog.PermRenewed: "set up anew",
	}
	seen := map[string]bool{}
	for _, state := range permStates {
		sentence := permSentence(state, false)
		if sentence == "" || seen[sentence] {
			t.Errorf("%s: the sentence is %q", state, sentence)
		}
		seen[sentence] = true
		told := strings.Join(permProblems(state, false), " ")
		if want := problem[state]; !strings.Contains(told, want) || (told == "") != (want == "") {
			t.Errorf("%s: the problem is %q, want it to say %q", state, told, want)
		}
		if !(bootlog.Perm{State: state}).Keeps() {
			continue // nobody finds it full
		}
		if got := permSentence(state, true); got != "The storage is full." {
			t.Errorf("%s and full: the sentence is %q", state, got)
		}
		told = strings.Join(permProblems(state, true), " ")
		if !strings.Contains(told, problem[state]) || !strings.Contains(told, "is full") {
			t.Errorf("%s and full: the problem is %q", state, told)
		}
	}
	if got := permSentence("later", false); got != "" {
		t.Errorf("a state from the future is %q", got)
	}
}

func TestMood(t *testing.T) {
	onTrial := update.Verdict{Trial: true, Alternative: true}
	first := update.Verdict{Trial: true} // a factory image's first boot
	with := func(v update.Verdict, change func(*update.Verdict)) update.Verdict {
		change(&v)
		return v
	}
	overdue := func(v *update.Verdict) { v.Overdue = true }
	for _, tc := range []struct {
		name              string
		v                 update.Verdict
		failing, problems bool
		want              ownerpage.State
	}{
		{"nothing is known yet", update.Verdict{}, false, false, ownerpage.Starting},
		{"a new version", onTrial, false, false, ownerpage.Trial},
		{"a new version with old problems, which it may cure", onTrial, false, true, ownerpage.Trial},
		{"a new version about to be given up", with(onTrial, overdue), true, false, ownerpage.Trial},
		{"the first boot of all is no trial for the owner", first, false, false, ownerpage.Starting},
		{"the first boot that never gets well", with(first, overdue), true, false, ownerpage.Attention},
		{"the first boot with a worn disk", first, false, true, ownerpage.Attention},
		{"a later boot", update.Verdict{Alternative: true}, false, false, ownerpage.Starting},
		{"a later boot without a network", update.Verdict{Overdue: true}, false, false, ownerpage.Attention},
		{"all is well", update.Verdict{Confirmed: true, Alternative: true}, false, false, ownerpage.Healthy},
		{"it was well", update.Verdict{Confirmed: true}, true, false, ownerpage.Attention},
		{"all is well but the storage", update.Verdict{Confirmed: true}, false, true, ownerpage.Attention},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := mood(tc.v, tc.failing, tc.problems); got != tc.want {
				t.Errorf("mood is %s, want %s", got, tc.want)
			}
		})
	}
}

func TestFailureIsToldWhenItShouldHoldAndNobodyElseTells(t *testing.T) {
	sick := update.Verdict{Confirmed: true, Failing: "workers: mdns fails"}
	for _, tc := range []struct {
		name string
		v    update.Verdict
		full bool
		told bool
	}{
		{"all checks hold", update.Verdict{Confirmed: true}, false, false},
		{"one fails in a healthy boot", sick, false, true},
		{"one fails after the limit", update.Verdict{Overdue: true, Failing: "clock: it shows 1970"}, false, true},
		{"one does not hold yet", update.Verdict{Failing: "clock: it shows 1970"}, false, false},
		{"the page itself tells of the network", update.Verdict{Confirmed: true, Failing: checkNetwork + ": No cable"}, false, false},
		{"a full storage is told of already", update.Verdict{Confirmed: true, Failing: checkPerm + ": no space"}, true, false},
		{"another trouble with it is not", update.Verdict{Confirmed: true, Failing: checkPerm + ": read-only"}, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := failure(tc.v, tc.full); (got != "") != tc.told || tc.told && !strings.Contains(got, tc.v.Failing) {
				t.Errorf("the owner is told %q", got)
			}
		})
	}
}

func TestMeminfo(t *testing.T) {
	for _, tc := range []struct {
		name, text       string
		total, available int64
	}{
		{"a box's", "MemTotal:        8010216 kB\nMemFree:          512000 kB\nMemAvailable:    7012000 kB\nHugePages_Total:       0\n", 8010216 << 10, 7012000 << 10},
		{"a line without a number", "MemTotal:\nMemAvailable: many kB\n", 0, 0},
		{"nothing", "", 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if total, available := meminfo(tc.text); total != tc.total || available != tc.available {
				t.Errorf("meminfo() = %d, %d, want %d, %d", total, available, tc.total, tc.available)
			}
		})
	}
}

func FuzzMeminfo(f *testing.F) {
	f.Add("MemTotal:        8010216 kB\nMemAvailable:    7012000 kB\n")
	f.Fuzz(func(_ *testing.T, text string) { meminfo(text) }) // it does not panic
}

func TestReleaseIsReadAsTheImageWritesIt(t *testing.T) {
	var r Release
	if err := json.Unmarshal([]byte(`{"board":"uefi-x86","version":"1.0.0","built":"2026-07-01T00:00:00Z"}`), &r); err != nil {
		t.Fatal(err)
	}
	if r.Board != "uefi-x86" || r.Version != "1.0.0" || r.Built.Year() != 2026 {
		t.Errorf("release is %+v", r)
	}
}
