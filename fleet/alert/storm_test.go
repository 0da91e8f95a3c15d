package alert_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// many adds boxes that have an owner each.
func (w *world) many(boxes int) {
	for n := range boxes {
		id := croft.DeviceIDFromDigest([32]byte{byte(n >> 16), byte(n >> 8), byte(n), 2})
		w.boxes[id] = &alert.Box{
			ID: id, Name: fmt.Sprint("Box ", n), Owner: fmt.Sprint("own_", n), Labels: map[string]string{"site": fmt.Sprint(n % 50)}, Heard: true, Online: true,
		}
	}
}

func (w *world) online(yes bool) {
	w.set(func() {
		for _, b := range w.boxes {
			b.Online = yes
		}
	})
}

// offlineAtOnce is a rule that waits for nothing, and boxes that all go offline.
func (w *world) offlineAtOnce(t testing.TB, boxes int) {
	t.Helper()
	w.many(boxes)
	_, err := w.SaveRule(t.Context(), staff, alert.Rule{
		Name: "Off", Condition: alert.Offline, Clear: 1, Severity: fleetapi.SeverityError, Sentence: "{box} is off.", Owner: "Your box is off.",
	})
	check(t, err)
	w.online(false)
}

func (w *world) exec(t testing.TB, query string, args ...any) {
	t.Helper()
	check(t, w.db.Write(t.Context(), func(tx *db.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	}))
}

func TestAStormIsOneMailForTheStaff(t *testing.T) {
	each(t, 0, func(t *testing.T, w *world) {
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		w.offlineAtOnce(t, 600)
		w.pass(t, 6)
		if got := w.to("staff@example.org"); len(got) != 1 || !strings.Contains(got[0], "600 new") || !strings.Contains(got[0], "And 550 more.") {
			t.Fatalf("the staff was told %d times: %.300q", len(got), got)
		}
		if len(w.sent) != 601 {
			t.Errorf("%d mails were sent, want one to each of 600 owners", len(w.sent))
		}
		w.online(true)
		w.pass(t, 10)
		if got := w.to("staff@example.org"); len(got) != 2 || !strings.Contains(got[1], "600 over") {
			t.Errorf("of the end the staff was told %d times: %.300q", len(got), got[1:])
		}
	})
}

func TestOwnersMailsHoldUpNobodyOfTheStaff(t *testing.T) {
	each(t, 0, func(t *testing.T, w *world) {
		w.mailTo(t, "away@example.org", fleetapi.SeverityInfo, "")
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		w.hangs = func(m alert.Mail) bool { return m.To != "staff@example.org" }
		w.offlineAtOnce(t, 200)
		ctx, ended := t.Context(), make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		time.Sleep(90 * time.Second)
		if got := w.to("staff@example.org"); len(got) != 1 {
			t.Errorf("while owners' mails hang the staff was told %q", got)
		}
		w.set(func() { w.hangs = nil })
		time.Sleep(time.Hour)
		if len(w.to("own_199@example.org")) == 0 || len(w.to("away@example.org")) == 0 {
			t.Error("when the mail server is back somebody is not told")
		}
	})
}

func TestWhatCannotBeReadHoldsUpNobodyElse(t *testing.T) {
	each(t, 0, func(t *testing.T, w *world) {
		broken := w.mailTo(t, "broken@example.org", fleetapi.SeverityInfo, "")
		time.Sleep(time.Second) // it comes before the other one
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		w.offlineAtOnce(t, 1)
		check(t, w.Judge(t.Context()))
		w.exec(t, "UPDATE alert_outbox SET body = '{' WHERE receiver = ?", broken.ID)
		time.Sleep(time.Minute)
		if err := w.Tell(t.Context()); err == nil {
			t.Error("what cannot be read is not reported")
		}
		if len(w.to("staff@example.org")) != 1 || len(w.to("own_0@example.org")) != 1 {
			t.Errorf("told %q", w.sent)
		}
	})
}

func TestATryPlannedByAWrongClockIsMadeNow(t *testing.T) {
	each(t, 0, func(t *testing.T, w *world) {
		w.mailTo(t, "staff@example.org", fleetapi.SeverityInfo, "")
		w.noMail = func(alert.Mail) (bool, error) { return false, errDown }
		w.offlineAtOnce(t, 1)
		w.pass(t, 3)
		years := 70 * 365 * 24 * time.Hour
		w.exec(t, "UPDATE alert_messages SET next_try = next_try + ?, made = made + ?", years.Microseconds(), years.Microseconds())
		w.set(func() { w.noMail = nil })
		w.pass(t, 1)
		if len(w.to("staff@example.org")) != 1 {
			t.Error("a message waits for a time that comes in 70 years")
		}
	})
}

func TestTheAuditLogHasNoURLOfAWebhook(t *testing.T) {
	each(t, 0, func(t *testing.T, w *world) {
		r, _, err := w.AddReceiver(t.Context(), staff, alert.Receiver{Name: "Chat", Kind: alert.Webhook, Address: "https://chat.example.org/hooks/T0P53CR3T?key=1"})
		check(t, err)
		check(t, w.DeleteReceiver(t.Context(), staff, r.ID))
		if all := strings.Join(w.audited, "\n"); strings.Contains(all, "T0P53CR3T") || strings.Count(all, "https://chat.example.org") != 2 {
			t.Errorf("it was recorded: %s", all)
		}
	})
}

// TestStormOnEveryEngine writes many rows at a time, which the engines do differently.
func TestStormOnEveryEngine(t *testing.T) {
	for _, engine := range dbtest.Engines() {
		t.Run(string(engine), func(t *testing.T) {
			w := newWorldOn(t, dbtest.Open(t, dbtest.URL(t, engine)), 0)
			for n := range 3 {
				w.mailTo(t, fmt.Sprintf("staff%d@example.org", n), fleetapi.SeverityInfo, "site!=49")
			}
			_, err := w.AddSilence(t.Context(), staff, alert.Silence{Selector: "site=48", Until: time.Now().Add(time.Hour), Why: "work"})
			check(t, err)
			w.offlineAtOnce(t, 1000)
			check(t, w.Judge(t.Context()))
			w.wantRows(t, "alert_alerts WHERE ended = 0 AND told = 1", 980)
			w.wantRows(t, "alert_alerts WHERE withheld = 'silence'", 20)
			w.wantRows(t, "alert_items WHERE state = 'firing'", 1000)
			w.wantRows(t, "alert_outbox WHERE receiver LIKE 'rcv!_%' ESCAPE '!'", 3*960)
			w.wantRows(t, "alert_outbox WHERE receiver LIKE 'own%' ESCAPE '!'", 980)
			check(t, w.Judge(t.Context())) // which adds nothing
			w.online(true)
			check(t, w.Judge(t.Context()))
			check(t, w.Judge(t.Context()))
			w.wantRows(t, "alert_alerts WHERE ended <> 0", 1000)
			w.wantRows(t, "alert_outbox WHERE news = 'resolved'", 4*980-60)
			w.wantRows(t, "alert_outbox", 2*(4*980-60))
			w.set(func() { clear(w.boxes) })
			check(t, w.Judge(t.Context()))
			w.wantRows(t, "alert_items", 0)
		})
	}
}

func (w *world) wantRows(t testing.TB, of string, want int) {
	t.Helper()
	got := 0
	check(t, w.db.Read(t.Context(), func(tx *db.Tx) error { return tx.Row("SELECT COUNT(*) FROM " + of).Scan(&got) }))
	if got != want {
		t.Errorf("%d rows of %s, want %d", got, of, want)
	}
}

// BenchmarkStorm is the look at which so many boxes are offline, with 3 receivers of
// the staff and an owner for each box.
func BenchmarkStorm(b *testing.B) {
	for _, engine := range dbtest.Engines() {
		for _, boxes := range []int{10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", engine, boxes), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					w := newWorldOn(b, dbtest.Open(b, dbtest.URL(b, engine)), 0)
					for n := range 3 {
						w.mailTo(b, fmt.Sprintf("staff%d@example.org", n), fleetapi.SeverityInfo, "site!=x")
					}
					w.offlineAtOnce(b, boxes)
					b.StartTimer()
					check(b, w.Judge(b.Context()))
				}
			})
		}
	}
}
