//go:build integration

package fleettest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/internal/simbox"
)

// online waits until the fleet says that a box is there.
func online(t *testing.T, c *fleetclient.Client, id croft.DeviceID) {
	t.Helper()
	until(t, "the box is online", func() bool {
		d, err := c.Device(t.Context(), id)
		return err == nil && d.Online
	})
}

// count is how many of the box's events of a kind the fleet has, by their number.
func count(t *testing.T, c *fleetclient.Client, id croft.DeviceID, kind string) map[int]int {
	t.Helper()
	seen := map[int]int{}
	for event, err := range c.Events(t.Context(), id, 500) {
		if err != nil {
			return nil // a replica went away in between
		}
		if n, err := strconv.Atoi(event.Fields["n"]); event.Kind == kind && err == nil {
			seen[n]++
		}
	}
	return seen
}

// say has the box tell events n, n+1, … of a kind.
func say(b *simbox.Box, kind string, from, to int) {
	for n := from; n < to; n++ {
		b.Event(kind, fleetapi.SeverityInfo, "This is a test.", map[string]string{"n": strconv.Itoa(n)})
		time.Sleep(2 * time.Millisecond) // more at once than the box's queue has are left out, and say so
	}
}

// arrived waits until events 0 to n-1 are there, and reports any that is there twice.
func arrived(t *testing.T, c *fleetclient.Client, id croft.DeviceID, kind string, n int) {
	t.Helper()
	var seen map[int]int
	until(t, fmt.Sprintf("%d events of %s arrive", n, kind), func() bool {
		seen = count(t, c, id, kind)
		return len(seen) >= n
	})
	for i := range n {
		if seen[i] != 1 {
			t.Errorf("event %d is there %d times", i, seen[i])
		}
	}
}

func TestABoxIsClaimedNamedRebootedAndGivenUp(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin, ann, ben := w.admin(t), w.owner(t, "ann"), w.owner(t, "ben")
		box := w.box(t)
		online(t, admin, box.Device())

		found, err := ann.StartClaim(t.Context(), string(box.Code()))
		if err != nil || found.Device != box.Device() {
			t.Fatalf("claim: %+v, %v", found, err)
		}
		if _, err := ben.ConfirmClaim(t.Context(), box.Device()); croft.KindOf(err) == croft.KindOther {
			t.Errorf("another's claim was confirmed: %v", err)
		}
		if _, err := ann.ConfirmClaim(t.Context(), box.Device()); err != nil {
			t.Fatal(err)
		}
		const name = "Attic"
		watched := make(chan error, 1)
		go func() { watched <- watchFor(t.Context(), ann, box.Device(), name) }()
		if _, err := ann.ChangeDevice(t.Context(), box.Device(), fleetclient.DevicePatch{Name: new(name)}); err != nil {
			t.Fatal(err)
		}
		until(t, "the box knows its name", func() bool {
			d := box.Status().Desired
			return d.Claimed && d.Name == name
		})
		if err := <-watched; err != nil {
			t.Error(err)
		}
		if _, err := ben.Device(t.Context(), box.Device()); croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("another owner asks for it: %v", err)
		}

		job, err := ann.StartJob(t.Context(), fleetclient.NewJob{Device: box.Device(), Kind: fleetapi.KindReboot}, "")
		if err != nil {
			t.Fatal(err)
		}
		until(t, "the box has rebooted", func() bool {
			j, err := ann.Job(t.Context(), job.ID)
			return err == nil && j.State == fleetapi.Succeeded
		})
		if boots := box.Status().Boots; boots != 2 {
			t.Errorf("the box has booted %d times, want 2", boots)
		}

		if job, err = admin.StartBundle(t.Context(), box.Device()); err != nil {
			t.Fatal(err)
		}
		until(t, "there is a bundle", func() bool {
			list, err := admin.Bundles(t.Context(), box.Device())
			return err == nil && len(list) == 1 && list[0].Job == job.ID
		})

		if err := ann.Release(t.Context(), box.Device()); err != nil {
			t.Fatal(err)
		}
		until(t, "the box is nobody's", func() bool { return !box.Status().Desired.Claimed })
		until(t, "what the owner's time left behind is gone", func() bool {
			list, err := admin.Bundles(t.Context(), box.Device())
			return err == nil && len(list) == 0
		})
		if _, err := ben.StartClaim(t.Context(), string(box.Code())); err == nil {
			t.Error("the old code opens a box that was given up")
		}
	})
}

// watchFor watches a box until it has a name.
func watchFor(ctx context.Context, c *fleetclient.Client, id croft.DeviceID, name string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for change, err := range c.WatchDevice(ctx, id) {
		if err != nil {
			return fmt.Errorf("watch a box: %w", err)
		}
		if change.Device != nil && change.Device.Name == name {
			return nil
		}
	}
	return errors.New("the watch of a box ended before it had its name")
}

func TestNothingIsLostOrDoubled(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin := w.admin(t)
		box := w.box(t)
		online(t, admin, box.Device())
		const batch = 60
		for round, disturb := range []func(){
			func() {},
			box.Link().Cut,
			func() { w.replicas[0].Kill() },
			func() {
				if w.broker != nil {
					w.broker.stop()
				}
			},
		} {
			done := make(chan struct{})
			go func() { defer close(done); say(box, "test_event", round*batch, (round+1)*batch) }()
			time.Sleep(60 * time.Millisecond) // in the middle of it
			disturb()
			<-done
			box.Link().Mend()
			if round == 2 && len(w.replicas) == 1 {
				w.start(t, w.replicas[0])
			}
			if round == 3 && w.broker != nil {
				w.broker.start(t)
			}
			begin := time.Now()
			arrived(t, admin, box.Device(), "test_event", (round+1)*batch)
			t.Logf("round %d: all there after %.1f s", round, time.Since(begin).Seconds())
		}
	})
}

func TestReadingsAreAskedForInPromQL(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin, ann := w.admin(t), w.owner(t, "ann")
		box := w.box(t)
		query := `croft_load1{device="` + string(box.Device()) + `"}`
		for i, replica := range w.replicas { // each has all of them
			until(t, fmt.Sprintf("replica %d has readings", i), func() bool {
				return len(ask(t, "http://"+replica.Web(), admin.Token, query)) == 1
			})
		}
		if got := ask(t, w.origin, ann.Token, query); len(got) != 0 {
			t.Errorf("a stranger sees %v", got)
		}
	})
}

// ask asks as Grafana does.
func ask(t *testing.T, origin, token, query string) []any {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, origin+"/api/v1/prometheus/api/v1/query?query="+url.QueryEscape(query), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	var found struct {
		Status string
		Data   struct{ Result []any }
	}
	if err != nil || json.Unmarshal(raw, &found) != nil || found.Status != "success" {
		t.Fatalf("query: %s %s %v", answer.Status, raw, err)
	}
	return found.Data.Result
}

func TestWrongClocks(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin := w.admin(t)
		boxes := map[int]*simbox.Box{}
		for _, year := range []int{1970, 2038, 2099} {
			clock := &simbox.Clock{}
			clock.Set(time.Date(year, 3, 1, 0, 0, 0, 0, time.UTC), false)
			boxes[year] = w.boxOf(t, simbox.Config{Clock: clock})
		}
		for year, box := range boxes {
			online(t, admin, box.Device())
			say(box, "test_event", 0, 10)
			arrived(t, admin, box.Device(), "test_event", 10)
			for event, err := range admin.Events(t.Context(), box.Device(), 500) {
				if at := event.At.Time; err == nil && time.Since(at).Abs() > time.Hour {
					t.Errorf("a box of %d has an event at %v", year, at)
				}
			}
			until(t, "its readings are of now", func() bool {
				return len(ask(t, w.origin, admin.Token, `croft_load1{device="`+string(box.Device())+`"}`)) == 1
			})
			box.Clock().Correct()
			say(box, "test_event", 10, 20)
			arrived(t, admin, box.Device(), "test_event", 20)
		}
	})
}

// Whatever a box with a good certificate says to topics that are not its own, or that
// the fleet alone may use, changes nothing.
func TestABoxSpeaksForItselfOnly(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin := w.admin(t)
		victim, thief := w.box(t), w.box(t)
		online(t, admin, victim.Device())
		online(t, admin, thief.Device())
		pass, err := thief.Pass(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		forged, err := fleetapi.Encode(&fleetapi.Event{
			Origin: fleetapi.Origin{Journal: 7, Seq: 1}, At: fleetapi.Truncate(time.Now()), Kind: "forged", Severity: fleetapi.SeverityCritical,
		})
		if err != nil {
			t.Fatal(err)
		}
		desired, err := fleetapi.Encode(&fleetapi.Desired{Version: 1 << 40, Name: "stolen", Interval: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		for topic, raw := range map[string][]byte{
			fleetapi.SubjectEvent.Topic(victim.Device()):   forged,
			fleetapi.SubjectDesired.Topic(victim.Device()): desired,
			fleetapi.SubjectDesired.Topic(thief.Device()):  desired,
			"croft/v1/+/up/event":                          forged,
			"$SYS/broker/version":                          forged,
			"croft/v1/" + string(victim.Device()):          forged,
		} {
			line, err := simbox.Connect(t.Context(), w.boxes, pass, simbox.LineConfig{})
			if err != nil {
				t.Fatal(err)
			}
			_ = line.Publish(topic, 0, true, raw) // a broker may answer by hanging up
			line.Drop()
		}
		for _, filter := range []string{
			"#", "croft/v1/#", "croft/v1/+/up/event", fleetapi.DownFilter(victim.Device()), fleetapi.SubjectEvent.Topic(victim.Device()), "$share/fleet/croft/v1/+/up/tm", "$SYS/#",
		} {
			line, err := simbox.Connect(t.Context(), w.boxes, pass, simbox.LineConfig{})
			if err != nil {
				t.Fatal(err)
			}
			if granted, err := line.Subscribe(filter); err == nil && granted {
				// Mosquitto grants and then sends nothing: wait for what the victim says.
				say(victim, "secret", 0, 3)
				for until := time.Now().Add(2 * time.Second); ; {
					m, err := line.Next(until)
					if err != nil {
						break
					}
					if device, _, err := fleetapi.ParseTopic(m.Topic); err != nil || device != thief.Device() {
						t.Errorf("with %q a box hears %+v", filter, m)
					}
				}
			}
			line.Drop()
		}
		if _, err := simbox.Connect(t.Context(), w.boxes, pass, simbox.LineConfig{ClientID: string(victim.Device())}); err == nil && w.broker == nil {
			t.Error("a box may call itself another")
		}
		say(victim, "test_event", 0, 3)
		arrived(t, admin, victim.Device(), "test_event", 3)
		for _, id := range []croft.DeviceID{victim.Device(), thief.Device()} {
			for event, err := range admin.Events(t.Context(), id, 500) {
				if err != nil || event.Kind == "forged" {
					t.Errorf("events of %s: %+v, %v", id, event, err)
				}
			}
		}
		if victim.Status().Desired.Name != "" {
			t.Error("a box believes what another box wants of it")
		}
	})
}

func TestARevokedBoxIsShutOut(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		admin := w.admin(t)
		box := w.box(t)
		online(t, admin, box.Device())
		if err := admin.Retire(t.Context(), box.Device()); err != nil {
			t.Fatal(err)
		}
		if w.broker != nil {
			until(t, "the broker's list has it", func() bool { return w.broker.revoked(t) == 1 })
			w.broker.readAgain(t)
			box.Link().Cut() // a broker judges at the handshake
			box.Link().Mend()
		}
		until(t, "the box is refused", func() bool { return !box.Status().Connected })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := box.Pass(ctx); err == nil {
			t.Error("a retired box was given a certificate")
		}
		time.Sleep(3 * time.Second) // its pauses are shorter in the beginning
		if box.Status().Connected {
			t.Error("a retired box is connected again")
		}
	})
}
