package alert_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

var (
	staff   = alert.Actor{ID: "usr_staff", Staff: true}
	ada     = alert.Actor{ID: "own_ada"}
	errDown = errors.New("it is down")
)

const hotExpr = "max by (device) (croft_temperature_celsius) >= 85"

func idOf(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest([32]byte{byte(n >> 8), byte(n), 1})
}

// world is boxes, their readings, a mail server and an audit log in memory, and
// one replica of the alerts. Boxes 0 and 1 are ada's, the others bob's.
type world struct {
	*alert.Store
	db *db.DB

	mu         sync.Mutex
	boxes      map[croft.DeviceID]*alert.Box
	celsius    map[croft.DeviceID]float64
	silent     map[croft.DeviceID]bool // no readings
	noReadings error
	noBoxes    error
	noMail     func(alert.Mail) (taken bool, err error)
	hangs      func(alert.Mail) bool     // the mail server says nothing
	answers    map[string][]alert.Sample // of other expressions
	sent       []alert.Mail              // each once
	again      int                       // mails that came again
	audited    []string
}

func (w *world) Ask(_ context.Context, expr string) ([]alert.Sample, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noReadings != nil {
		return nil, w.noReadings
	}
	var out []alert.Sample
	for id := range w.boxes {
		one := alert.Sample{Labels: map[string]string{"device": string(id)}, Value: w.celsius[id]}
		switch {
		case w.silent[id]:
		case strings.HasPrefix(expr, "group by"), expr == hotExpr && one.Value >= 85:
			out = append(out, one)
		}
	}
	return append(out, w.answers[expr]...), nil
}

func (w *world) Boxes(context.Context) ([]alert.Box, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []alert.Box
	for _, b := range w.boxes {
		out = append(out, *b)
	}
	return out, w.noBoxes
}

func (w *world) Email(_ context.Context, owner string) (string, error) {
	if owner == "own_none" {
		return "", nil
	}
	return owner + "@example.org", nil
}

func (w *world) Send(ctx context.Context, m alert.Mail) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hangs != nil && w.hangs(m) {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return ctx.Err()
	}
	taken, err := true, error(nil)
	if w.noMail != nil {
		taken, err = w.noMail(m)
	}
	if !taken {
		return err
	}
	if at := slices.IndexFunc(w.sent, func(o alert.Mail) bool { return o.ID == m.ID }); at >= 0 {
		w.again++
		if w.sent[at] != m {
			return fmt.Errorf("mail %s came again with another text", m.ID)
		}
		return err
	}
	w.sent = append(w.sent, m)
	return err
}

func (w *world) Record(_ *db.Tx, e alert.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.audited = append(w.audited, fmt.Sprint(e.Action, e.Before, e.After))
	return nil
}

// to is the texts of the mails to an address.
func (w *world) to(address string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.sent {
		if m.To == address {
			out = append(out, m.Subject+"\n"+m.Text)
		}
	}
	return out
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func wantKind(t testing.TB, err error, want croft.Kind) {
	t.Helper()
	if err == nil || croft.KindOf(err) != want {
		t.Errorf("error = %v, of kind %q; want kind %q", err, croft.KindOf(err), want)
	}
}

// each runs a test in a bubble of time.
func each(t *testing.T, boxes int, test func(t *testing.T, w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(t, dir, boxes)) })
}

func newWorld(t testing.TB, dir string, boxes int) *world {
	t.Helper()
	d := must(db.Open(t.Context(), "sqlite:"+filepath.Join(dir, "fleet.db"), slog.New(slog.DiscardHandler)))(t)
	t.Cleanup(func() { check(t, d.Close()) })
	return newWorldOn(t, d, boxes)
}

func newWorldOn(t testing.TB, d *db.DB, boxes int) *world {
	t.Helper()
	w := &world{
		boxes: map[croft.DeviceID]*alert.Box{}, celsius: map[croft.DeviceID]float64{}, silent: map[croft.DeviceID]bool{}, answers: map[string][]alert.Sample{},
		db: d,
	}
	for n := range boxes {
		w.boxes[idOf(n)] = &alert.Box{
			ID: idOf(n), Name: fmt.Sprintf("Box %d", n), Owner: "own_bob", Labels: map[string]string{"region": []string{"north", "south"}[n%2]}, Heard: true, Online: true,
		}
		if n < 2 {
			w.boxes[idOf(n)].Owner = ada.ID
		}
		w.celsius[idOf(n)] = 40
	}
	w.Store = w.replica(t)
	return w
}

func (w *world) replica(t testing.TB) *alert.Store {
	t.Helper()
	return must(alert.New(t.Context(), alert.Config{
		DB: w.db, Readings: w, Boxes: w, Owners: w, Mailer: w, Audit: w, Key: bytes.Repeat([]byte{7}, 32),
		Interval: time.Minute, AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	}))(t)
}

// mailTo adds a receiver of the staff.
func (w *world) mailTo(t testing.TB, address string, severity fleetapi.Severity, selector string) alert.Receiver {
	t.Helper()
	r, secret, err := w.AddReceiver(t.Context(), staff, alert.Receiver{Name: "Staff", Kind: alert.Email, Address: address, Severity: severity, Selector: selector})
	check(t, err)
	if secret != "" {
		t.Error("mail has a secret")
	}
	return r
}

// pass is so many minutes, with a round at each.
func (w *world) pass(t testing.TB, minutes int) {
	t.Helper()
	for range minutes {
		time.Sleep(time.Minute)
		check(t, w.Round(t.Context()))
	}
}

// firing is what fires, as "rule target", sorted.
func (w *world) firing(t testing.TB) []string {
	t.Helper()
	found, _, err := w.List(t.Context(), staff, alert.Query{Firing: true, Limit: 500})
	check(t, err)
	set := map[string]bool{}
	for _, a := range found {
		target := a.Target
		if a.Device != "" {
			target = a.Box
		}
		set[strings.TrimSpace(a.Rule+" "+target)] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func (w *world) wantFiring(t testing.TB, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := w.firing(t); !slices.Equal(got, want) {
		t.Errorf("fires: %q, want %q", got, want)
	}
}
