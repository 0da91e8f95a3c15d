package fleetlink

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func anyOf[T any](T) bool { return true }

func TestBoxIsSeenClaimedGivenUpAndClaimableAgain(t *testing.T) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	b := newBox(t, f, dir, key, nil)
	words := b.Status().Words
	if !goodWords(words) || b.Status().Claimed || b.Status().Heard {
		t.Fatalf("a new box: %+v", b.Status())
	}
	b.start()
	hello := find(f, anyOf[*fleetapi.Hello])
	if got := fleetapi.LabelValue(hello.Facts, "claim_words"); got != words || len(hello.Facts) != 2 || fleetapi.LabelValue(hello.Facts, "cpu_model") != "Test CPU" {
		t.Errorf("facts are %v", hello.Facts)
	}
	if f.claimed(0) != enroll.HashClaim(string(firstCode)) {
		t.Error("the fleet was told another claim code")
	}
	find(f, anyOf[*fleetapi.Batch])

	f.want(&fleetapi.Desired{Version: 1, Claimed: true, Name: "Attic", Interval: 10 * time.Second})
	find(f, func(h *fleetapi.Hello) bool { return fleetapi.LabelValue(h.Facts, "claim_words") == "" })
	if s := b.Status(); !s.Claimed || s.Name != "Attic" || s.Words != "" || !s.Heard || !s.Line.Connected {
		t.Errorf("a claimed box: %+v", s)
	}
	b.shutdown()

	// Given up while it is off; the owner is known from the start.
	again := newBox(t, f, dir, key, nil)
	if !again.Status().Claimed || again.Status().Words != "" {
		t.Errorf("after a restart: %+v", again.Status())
	}
	f.want(&fleetapi.Desired{Version: 2, Interval: 10 * time.Second})
	again.start()
	fresh := find(f, func(h *fleetapi.Hello) bool {
		w := fleetapi.LabelValue(h.Facts, "claim_words")
		return w != "" && w != words
	})
	find(f, func(e *fleetapi.Event) bool { return e.Kind == "claim_renewed" })
	find(f, func(e *fleetapi.Event) bool {
		return e.Kind == "wishes_changed" && fleetapi.LabelValue(e.Fields, "claimed") == "false"
	})
	if len(again.codes) != 1 {
		t.Fatalf("%d codes were drawn", len(again.codes))
	}
	f.until(func() bool { return f.claims[len(f.claims)-1] == enroll.HashClaim(string(again.codes[0])) })
	if s := again.Status(); s.Claimed || s.Words != fleetapi.LabelValue(fresh.Facts, "claim_words") {
		t.Errorf("a box that was given up: %+v", s)
	}
}

// purse has coins.
type purse struct{}

func (purse) Earnings(context.Context) ([]sampling.Earning, error) {
	return []sampling.Earning{{Denom: "uact", Paid: new(int64(3_210_000)), Month: new(int64(12_300_000))}}, nil
}

func TestFleetHearsWhatTheBoxEarns(t *testing.T) {
	f := newFleet(t)
	newBox(t, f, t.TempDir(), newKey(t), func(c *Config) { c.Earnings = purse{} }).start()
	batch := find(f, anyOf[*fleetapi.Batch])
	said := map[string]float64{}
	for _, s := range batch.Series {
		if fleetapi.LabelValue(s.Labels, "denom") == "uact" {
			said[s.Name] = s.Values[0]
		}
	}
	if len(said) != 2 || said["croft_earned_total"] != 3_210_000 || said["croft_income_month"] != 12_300_000 {
		t.Errorf("the fleet hears %v", said)
	}
}

func TestCodeThatCannotBeDrawnIsDrawnAtTheNextStart(t *testing.T) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	b := newBox(t, f, dir, key, func(c *Config) {
		c.NewCode = func() (claim.Code, error) { return "", errors.New("no randomness") }
	})
	b.wish(fleetapi.Desired{Version: 1, Claimed: true})
	b.wish(fleetapi.Desired{Version: 2})
	if !b.Status().Claimed {
		t.Error("the box gave its old code out again")
	}
	check(t, b.cfg.Journal.Close())
	next := newBox(t, f, dir, key, nil)
	next.wish(fleetapi.Desired{Version: 2}) // as agent/uplink has kept it
	if s := next.Status(); s.Claimed || len(next.codes) != 1 || next.secrets()[0] != string(next.codes[0]) {
		t.Errorf("after the next start: %+v, %d codes", s, len(next.codes))
	}
	check(t, next.cfg.Journal.Close())
}

func TestJournalsEventsAreToldOnce(t *testing.T) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	b := newBox(t, f, dir, key, nil)
	put := func(b *box, kind journal.Kind, fields any) {
		_, err := b.cfg.Journal.Event(kind, fields)
		check(t, err)
	}
	put(b, "lease_ended", map[string]any{"lease": "akash1…/7/1/1", "reason": "closed by its tenant", "count": 7, "Bad-Name": "x", "deep": map[string]int{"a": 1}})
	put(b, "uplink_changed", map[string]any{"note": "The way out is eth1 now.", "uplinks": []string{"eth1"}})
	b.start()
	ended := find(f, func(e *fleetapi.Event) bool { return e.Kind == "lease_ended" })
	if got := len(ended.Fields); got != 4 || fleetapi.LabelValue(ended.Fields, "count") != "7" || fleetapi.LabelValue(ended.Fields, "sentence") != "A lease ended." {
		t.Errorf("fields are %v", ended.Fields)
	}
	changed := find(f, func(e *fleetapi.Event) bool { return e.Kind == "uplink_changed" })
	if fleetapi.LabelValue(changed.Fields, "sentence") != "The way out is eth1 now." || len(changed.Fields) != 1 {
		t.Errorf("fields are %v", changed.Fields)
	}
	b.shutdown()
	again := newBox(t, f, dir, key, nil)
	put(again, "kernel_panicked", map[string]string{"panic": "VFS"})
	again.start()
	find(f, func(e *fleetapi.Event) bool {
		return e.Kind == "kernel_panicked" && e.Severity == fleetapi.SeverityError
	})
	again.shutdown()
	told := map[fleetapi.Origin]bool{} // one number may come twice: the fleet drops it
	f.until(func() bool {
		for _, p := range f.said {
			if e, ok := p.(*fleetapi.Event); ok && e.Kind == "lease_ended" {
				told[e.Origin] = true
			}
		}
		return true
	})
	if len(told) != 1 {
		t.Errorf("the end of the lease was told %d times", len(told))
	}
}

func TestEventsOfTheLastMomentAreLeftForTheNextStart(t *testing.T) {
	b := newBox(t, newFleet(t), t.TempDir(), newKey(t), nil)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- b.tellEvents(ctx) }()
		synctest.Wait()
		_, err := b.cfg.Journal.Event("lease_ended", nil)
		check(t, err)
		cancel() // the line ends as well, and nobody takes events from it
		check(t, <-ended)
	})
	var last told
	_, err := b.cfg.Journal.Get(toldKey, &last)
	check(t, err)
	left := 0
	for range b.cfg.Journal.Events(last.Seq) {
		left++
	}
	if left == 0 {
		t.Error("an event counts as told that no line took")
	}
	check(t, b.cfg.Journal.Close())
}

func TestRebootIsToldAsWhatItBecame(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   fleetapi.JobState
		detail string
	}{
		{"the box started again", func(c *Config) { c.BootID = "1fb3e4e5-8a5b-4c5e-9d2e-3f1f6a7b8c9d" }, fleetapi.Succeeded, "The box started again."},
		{"only the agent did", func(*Config) {}, fleetapi.Failed, "The box's software was started again, but not the box."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFleet(t)
			dir, key := t.TempDir(), newKey(t)
			asked := make(chan struct{})
			b := newBox(t, f, dir, key, func(c *Config) {
				c.Reboot = func(context.Context) error { close(asked); return nil }
			}).start()
			job := newJob(fleetapi.KindReboot, nil)
			f.want(job)
			<-asked
			b.shutdown()
			newBox(t, f, dir, key, tc.change).start()
			if s := ends(f, job); s.State != tc.want || s.Detail != tc.detail {
				t.Errorf("the job is %s: %s", s.State, s.Detail)
			}
		})
	}
	t.Run("it was refused", func(t *testing.T) {
		f := newFleet(t)
		newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
			c.Reboot = func(context.Context) error { return errors.New("the box is trying a new version out") }
		}).start()
		job := newJob(fleetapi.KindReboot, nil)
		f.want(job)
		if s := ends(f, job); s.State != fleetapi.Failed || s.Detail != "The box is trying a new version out." {
			t.Errorf("the job is %s: %s", s.State, s.Detail)
		}
	})
}

func TestWhatTheBoxCannotDoIsRejected(t *testing.T) {
	f := newFleet(t)
	newBox(t, f, t.TempDir(), newKey(t), nil).start()
	benchmark, locate := newJob(fleetapi.KindBenchmark, nil), newJob(fleetapi.KindLocate, map[string]string{"seconds": "-3"})
	f.want(benchmark)
	f.want(locate)
	if s := ends(f, benchmark); s.State != fleetapi.Rejected {
		t.Errorf("a benchmark is %s: %s", s.State, s.Detail)
	}
	if s := ends(f, locate); s.State != fleetapi.Failed || !strings.Contains(s.Detail, "seconds") {
		t.Errorf("nonsense is %s: %s", s.State, s.Detail)
	}
}

const testVoucher = "croft1.eyJpZCI6IkFCQyJ9.c2lnbmF0dXJl"

func TestBundleArrivesWholeAndWithoutSecrets(t *testing.T) {
	f := newFleet(t)
	f.answers = []int{http.StatusServiceUnavailable}
	stuck := make(chan struct{})
	defer close(stuck)
	var b *box
	b = newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
		c.Voucher = testVoucher
		c.Sections = []Section{
			{"leaks.txt", func(_ context.Context, w io.Writer) error {
				_, err := io.WriteString(w, "code "+strings.ToLower(firstCode.Shown())+" words "+b.words+" voucher "+testVoucher+"\xff end\n")
				return err
			}},
			{"endless.txt", func(_ context.Context, w io.Writer) error {
				_, err := io.Copy(w, io.LimitReader(zeros{}, 64<<20))
				return err
			}},
			{"stuck.txt", func(context.Context, io.Writer) error { <-stuck; return nil }},
			{"broken.txt", func(context.Context, io.Writer) error { panic("no such thing") }},
		}
	})
	b.patience = 200 * time.Millisecond
	b.cfg.Log.Info("before the line is up", "password", "hunter2")
	b.start()
	find(f, anyOf[*fleetapi.State])
	job := newJob(fleetapi.KindBundle, nil)
	f.want(job)
	s := ends(f, job)
	if s.State != fleetapi.Succeeded || !strings.HasPrefix(s.Detail, "The support bundle of ") {
		t.Fatalf("the job is %s: %s", s.State, s.Detail)
	}
	if got := fleetapi.LabelValue(s.Results, "incomplete"); !strings.Contains(got, "endless.txt, stuck.txt, broken.txt") {
		t.Errorf("incomplete are %q", got)
	}
	f.mu.Lock()
	raw := f.bundles["/v1/bundles/"+job.ID]
	f.mu.Unlock()
	if len(raw) > 8<<20 {
		t.Errorf("the bundle has %d bytes", len(raw))
	}
	pack, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	check(t, err)
	text := map[string]string{}
	for _, file := range pack.File {
		r, err := file.Open()
		check(t, err)
		raw, err := io.ReadAll(r)
		check(t, err)
		text[file.Name] = string(raw)
		for _, secret := range []string{testVoucher, "hunter2", b.words, string(firstCode), strings.ToLower(firstCode.Shown())} {
			if strings.Contains(string(raw), secret) {
				t.Errorf("%s says %q", file.Name, secret)
			}
		}
	}
	for name, want := range map[string]string{
		"box.json": `"enrolment": "enrolled"`, "agent.log": "before the line is up", "readings.txt": "# at ", "goroutines.txt": "goroutine ",
		"leaks.txt": "? end", "stuck.txt": "it took too long", "broken.txt": "it panicked", "endless.txt": "more than",
	} {
		if !strings.Contains(text[name], want) {
			t.Errorf("%s does not say %q", name, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(b.cfg.RunDir, "bundle-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

func TestBundleThatNobodyWantsIsNotSentAgain(t *testing.T) {
	f := newFleet(t)
	f.answers = []int{http.StatusNotFound}
	newBox(t, f, t.TempDir(), newKey(t), nil).start()
	find(f, anyOf[*fleetapi.State])
	job := newJob(fleetapi.KindBundle, nil)
	f.want(job)
	if s := ends(f, job); s.State != fleetapi.Failed || !strings.Contains(s.Detail, "the fleet does not want it") {
		t.Errorf("the job is %s: %s", s.State, s.Detail)
	}
}

func TestBundleOfBeforeARestartIsEnough(t *testing.T) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	f.answers = []int{http.StatusServiceUnavailable, http.StatusConflict}
	b := newBox(t, f, dir, key, nil)
	b.pauses = func() func() time.Duration { return func() time.Duration { return time.Hour } }
	b.start()
	find(f, anyOf[*fleetapi.State])
	job := newJob(fleetapi.KindBundle, nil)
	f.want(job)
	f.until(func() bool { return len(f.answers) == 1 })
	b.shutdown()
	newBox(t, f, dir, key, nil).start()
	if s := ends(f, job); s.State != fleetapi.Succeeded || !strings.Contains(s.Detail, "was sent before") {
		t.Errorf("the job is %s: %s", s.State, s.Detail)
	}
}

func TestLinkWantsItsParts(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a link of nothing is made")
	}
	f := newFleet(t)
	good := newBox(t, f, t.TempDir(), newKey(t), nil)
	defer good.cfg.Journal.Close()
	bad := good.cfg
	fleet := *bad.Fleet
	fleet.Roots = nil
	bad.Fleet = &fleet
	if _, err := New(bad); err == nil {
		t.Error("a link that believes everybody is made")
	}
}
