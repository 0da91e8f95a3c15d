package uplink

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func (f *fleet) told() []enroll.ClaimHash {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.claims)
}

func TestANewClaimCodeIsToldByEnrollingOnceMore(t *testing.T) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	first, second, third := enroll.HashClaim("K7QM2XWP"), enroll.HashClaim("AAAA2XWP"), enroll.HashClaim("BBBB2XWP")
	b := newBox(t, f, dir, key, func(c *Config) { c.Claim = first }).start(t)
	find(f.broker, anyOf[*fleetapi.State])
	b.SetClaim(second)
	f.broker.until(func([]message) bool {
		due, _ := b.enrolment.due()
		return !due && len(f.told()) == 2
	})
	b.SetClaim(second) // known
	b.shutdown(t)

	// The agent ended between drawing a code and telling it.
	again := newBox(t, f, dir, key, func(c *Config) { c.Claim = third }).start(t)
	f.broker.until(func([]message) bool {
		due, _ := again.enrolment.due()
		return !due && again.live.Load() != nil
	})
	again.shutdown(t)
	if got := f.told(); !slices.Equal(got, []enroll.ClaimHash{first, second, third}) {
		t.Errorf("the fleet was told %d codes, not the three", len(got))
	}

	same := newBox(t, f, dir, key, func(c *Config) { c.Claim = third })
	if due, _ := same.enrolment.due(); due {
		t.Error("a code that the fleet knows is told again")
	}
}

func TestARefusedClaimCodeKeepsNoCertificateFromRenewal(t *testing.T) {
	f := newFleet(t)
	f.life = func(now time.Time) time.Time { return now.AddDate(0, 0, -40) } // past a third
	b := newBox(t, f, t.TempDir(), newKey(t), nil)
	check(t, b.enrolment.ask(t.Context()))
	b.SetClaim(enroll.HashClaim("K7QM2XWP"))
	f.life = func(now time.Time) time.Time { return now }
	if due, byKey := b.enrolment.due(); !due || byKey {
		t.Errorf("due %v, by key %v: want the renewal first", due, byKey)
	}
	check(t, b.enrolment.ask(t.Context()))
	if due, byKey := b.enrolment.due(); !due || !byKey {
		t.Errorf("due %v, by key %v: want the claim code next", due, byKey)
	}
	f.refuse = &enroll.Refusal{Reason: enroll.ReasonVoucherMissing, Text: "no voucher"}
	if err := b.enrolment.ask(t.Context()); enroll.ReasonOf(err) != enroll.ReasonVoucherMissing {
		t.Errorf("refused: %v", err)
	}
	if cert, _ := b.enrolment.current(); cert == nil {
		t.Error("the certificate is gone")
	}
}

func TestHelloIsSaidAgain(t *testing.T) {
	f := newFleet(t)
	var mu sync.Mutex
	words := "before"
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
		c.Facts = func() []fleetapi.Label {
			mu.Lock()
			defer mu.Unlock()
			return fleetapi.Labels(map[string]string{"claim_words": words})
		}
	})
	check(t, b.SayHello(t.Context())) // there is no session: nothing to do
	b.start(t)
	f.broker.until(func([]message) bool { return b.live.Load() != nil })
	mu.Lock()
	words = "after"
	mu.Unlock()
	check(t, b.SayHello(t.Context()))
	find(f.broker, func(h *fleetapi.Hello) bool {
		return h.Epoch == 1 && fleetapi.LabelValue(h.Facts, "claim_words") == "after"
	})
}

func TestClockIsComparedHoweverWrongItIs(t *testing.T) {
	f := newFleet(t)
	b := newBox(t, f, t.TempDir(), newKey(t), func(c *Config) {
		c.Clock = func() (time.Time, bool) { return time.Now().AddDate(100, 0, 0), true } // sure of itself, and wrong
	})
	ahead, within, err := b.CompareClock(t.Context())
	check(t, err)
	if within <= 0 || ahead.Abs() > within+time.Second {
		t.Errorf("the machine's own clock is %v ahead, within %v", ahead, within)
	}
	if err := b.enrolment.ask(t.Context()); enroll.ReasonOf(err) != enroll.ReasonServerExpired {
		t.Errorf("a clock that is sure of itself finds the fleet's certificate over: %v", err)
	}
}

func TestDocumentsAreUploadedByTheBoxsCertificate(t *testing.T) {
	f := newFleet(t)
	var got []string
	status, text := http.StatusCreated, ""
	f.answer = func(r *http.Request, p enroll.Peer, raw []byte) (int, string) {
		if p.MayConnect() != nil {
			return http.StatusForbidden, ""
		}
		got = append(got, r.URL.Path+" "+r.Header.Get("Content-Type")+" "+string(p.Device)+" "+string(raw))
		return status, text
	}
	b := newBox(t, f, t.TempDir(), newKey(t), nil)
	upload := func() error {
		return b.Upload(t.Context(), "/v1/bundles/job_1", "application/zip", strings.NewReader("bytes"), 5)
	}
	if err := upload(); !errors.Is(err, errUncertified) {
		t.Errorf("without certificate: %v", err)
	}
	check(t, b.enrolment.ask(t.Context()))
	check(t, upload())
	if want := "/v1/bundles/job_1 application/zip " + string(b.device) + " bytes"; len(got) != 1 || got[0] != want {
		t.Errorf("uploaded %q, want %q", got, want)
	}
	for _, tc := range []struct {
		name         string
		status       int
		answer, want string
		final        bool
	}{
		{"a reason is handed on", http.StatusNotFound, `{"error":"no such job"}`, "no such job", true},
		{"a full fleet may have room later", http.StatusInsufficientStorage, `{"error":"no room"}`, "no room", false},
		{"the page of a proxy is not", http.StatusBadGateway, "<html>" + string(bytes.Repeat([]byte("x"), 1<<20)), "502 Bad Gateway", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status, text = tc.status, tc.answer
			err := upload()
			failed, ok := errors.AsType[*UploadError](err)
			if !ok || failed.Final() != tc.final || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error: %v", err)
			}
		})
	}
}
