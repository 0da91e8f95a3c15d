package device_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func boxEvent(seq uint64, kind string) *fleetapi.Event {
	return &fleetapi.Event{
		Origin: fleetapi.Origin{Journal: 7, Seq: seq}, At: time.Now(), Synced: true, Kind: kind, Severity: fleetapi.SeverityInfo,
		Fields: fleetapi.Labels(map[string]string{"note": `<img src=x onerror=alert(1)>'; DROP TABLE device_events`}),
	}
}

func TestEventsAreStoredOnce(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		var events []fleetapi.Payload
		for seq := range uint64(40) {
			e := boxEvent(seq+1, fmt.Sprintf("kind_%d", seq+1))
			e.At = e.At.Add(time.Duration(seq) * time.Second)
			events = append(events, e)
		}
		again := append(append([]fleetapi.Payload{}, events...), events...)
		rand.New(rand.NewPCG(1, 1)).Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
		f.say(t, id, again...)
		f.say(t, id, events...)

		var got []device.Event
		cursor := ""
		for pages := 0; ; pages++ {
			page, next, err := f.Timeline(t.Context(), staff, id, cursor, 7)
			check(t, err)
			got = append(got, page...)
			if cursor = next; cursor == "" {
				break
			}
		}
		var boxes []device.Event
		for _, e := range got {
			if e.Journal != 0 {
				boxes = append(boxes, e)
			}
		}
		if len(boxes) != 40 || len(got) != 42 { // and what the fleet saw: enrolled, online
			t.Fatalf("timeline has %d events, %d of the box", len(got), len(boxes))
		}
		for i, e := range boxes {
			if want := uint64(40 - i); e.Seq != want {
				t.Errorf("event %d is number %d, want %d", i, e.Seq, want)
			}
		}
		if _, _, err := f.Timeline(t.Context(), staff, id, "!!", 0); croft.KindOf(err) != croft.KindUsage {
			t.Errorf("a bad cursor: %v", err)
		}
	})
}

func TestEventsOfAWrongClockStandWhereTheyArrived(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		for seq, at := range []time.Time{time.Unix(0, 0).Add(time.Hour), time.Now().AddDate(99, 0, 0), time.Now().Add(-time.Minute)} {
			e := boxEvent(uint64(seq+1), "x")
			e.At = at
			f.say(t, id, e)
		}
		events, _, err := f.Timeline(t.Context(), staff, id, "", 3)
		check(t, err)
		for _, e := range events {
			if d := time.Since(e.At); d < 0 || d > 2*time.Minute {
				t.Errorf("event %d stands at %v, %v ago", e.Seq, e.At, d)
			}
		}
	})
}

func TestPresenceFollowsTheNewestSession(t *testing.T) {
	state := func(p fleetapi.Presence, journal, epoch uint64) *fleetapi.State {
		return &fleetapi.State{Presence: p, Journal: journal, Epoch: epoch}
	}
	each(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		for _, tc := range []struct {
			name string
			say  *fleetapi.State
			want bool
		}{
			{"its will ends a session", state(fleetapi.Lost, 7, 1), false},
			{"its birth told twice, late", state(fleetapi.Online, 7, 1), false},
			{"a new session", state(fleetapi.Online, 7, 2), true},
			{"the will of the old one, late", state(fleetapi.Lost, 7, 1), true},
			{"the will of another journal", state(fleetapi.Lost, 6, 9), true},
			{"a journal begun again", state(fleetapi.Online, 8, 1), true},
			{"the will of the journal before", state(fleetapi.Lost, 7, 2), true},
			{"the end of it all", state(fleetapi.Lost, 8, 1), false},
		} {
			f.say(t, id, tc.say)
			if box := must(f.Box(t.Context(), staff, id))(t); box.Online != tc.want {
				t.Errorf("%s: online is %v", tc.name, box.Online)
			}
		}
	})
}

func TestHellosThatAreLateChangeNothing(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		f.say(t, id, hello(3, "1.2.0"))
		f.say(t, id, hello(2, "1.1.0"))
		f.say(t, id, hello(3, "1.2.0"))
		box := must(f.Box(t.Context(), staff, id))(t)
		if box.Release != "1.2.0" || box.Slot != croft.SlotA {
			t.Errorf("box runs %s in slot %q", box.Release, box.Slot)
		}
	})
}

func TestSilentBoxIsOfflineUntilItSpeaks(t *testing.T) {
	timed(t, func(t *testing.T, f *fleet) {
		f.run(t)
		id := f.box(t, 1)
		told := f.db.Listen(t.Context(), device.Topic)
		for range 10 {
			time.Sleep(time.Minute)
			f.Seen(id, time.Now())
		}
		time.Sleep(11 * time.Second)
		if box := must(f.Box(t.Context(), staff, id))(t); !box.Online || time.Since(box.Seen) > 12*time.Second {
			t.Errorf("online %v, seen %v", box.Online, box.Seen)
		}
		time.Sleep(device.Silence)
		if box := must(f.Box(t.Context(), staff, id))(t); box.Online {
			t.Error("a silent box is online")
		}
		f.say(t, id, &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: 1})
		time.Sleep(2 * time.Second)
		select {
		case <-told:
		default:
			t.Error("live pages were not told of a box that went away")
		}
	})
}

func TestLogIsKeptWithinBounds(t *testing.T) {
	timed(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		for n := range 30 {
			l := &fleetapi.LogLines{Dropped: uint64(n / 29)}
			for i := range 10 {
				l.Lines = append(l.Lines, fleetapi.LogLine{At: time.Now(), Level: "info", Text: fmt.Sprint(n*10 + i)})
			}
			f.say(t, id, l)
		}
		lines := must(f.LogAfter(t.Context(), staff, id, 0, 500))(t)
		if len(lines) != 100 || lines[99].Text != "299" || lines[89].Text != "1 lines were left out here" {
			t.Fatalf("%d lines are kept, the last is %+v", len(lines), lines[len(lines)-1])
		}
		if more := must(f.LogAfter(t.Context(), staff, id, lines[97].N, 500))(t); len(more) != 2 {
			t.Errorf("%d lines after the 98th", len(more))
		}
		time.Sleep(8 * 24 * time.Hour)
		f.run(t)
		time.Sleep(2 * time.Minute)
		if left := must(f.LogAfter(t.Context(), staff, id, 0, 500))(t); len(left) != 0 {
			t.Errorf("%d lines are left after their week", len(left))
		}
	})
}

func TestStrangersAreDropped(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		if n := f.say(t, idOf(9), hello(1, "1.0.0"), boxEvent(1, "x"), &fleetapi.LogLines{}); n != 3 {
			t.Errorf("%d strangers, want 3", n)
		}
		_, err := f.Receive(t.Context(), []device.Message{{Device: f.box(t, 1), At: time.Now(), Payload: &fleetapi.Batch{}}})
		if err == nil {
			t.Error("a batch of readings was stored")
		}
	})
}
