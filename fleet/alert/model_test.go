package alert_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// model holds what the fleet does against what is true.
type model struct {
	*world
	rng      *rand.Rand
	lastGood map[string]time.Time // by "rule target": a look that found it well
	lastBad  map[string]time.Time
	ended    map[string]bool // alerts that were seen to end
	fired    map[string]bool
}

// TestModel lets boxes get hot, flap, fall silent and go offline while queries
// fail, leaders change and are killed in the middle of anything, and mails get lost
// before or after they were taken.
func TestModel(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			each(t, 12, func(t *testing.T, w *world) {
				w.mailTo(t, "all@example.org", fleetapi.SeverityInfo, "")
				w.mailTo(t, "north@example.org", fleetapi.SeverityInfo, "region=north")
				m := &model{
					world: w, rng: rand.New(rand.NewPCG(seed, 1)), lastGood: map[string]time.Time{}, lastBad: map[string]time.Time{},
					ended: map[string]bool{}, fired: map[string]bool{},
				}
				for range 80 {
					m.change(t)
					m.step(t)
				}
				m.rest(t)
			})
		})
	}
}

func (m *model) chance(of int) bool { return m.rng.IntN(of) == 0 }

// change is what happens to the world.
func (m *model) change(t *testing.T) {
	m.set(func() {
		for n := range len(m.boxes) {
			id := idOf(n)
			if m.chance(6) {
				m.celsius[id] = []float64{50, 90}[m.rng.IntN(2)]
			}
			if m.chance(10) {
				m.silent[id] = !m.silent[id]
			}
			if m.chance(10) {
				m.boxes[id].Online = !m.boxes[id].Online
			}
		}
		if m.chance(15) { // a region goes dark, or comes back
			up := m.chance(2)
			for n := 0; n < len(m.boxes); n += 2 {
				m.boxes[idOf(n)].Online = up
			}
		}
		m.noReadings, m.noBoxes, m.noMail = nil, nil, nil
		if m.chance(5) {
			m.noReadings = errDown
		}
		if m.chance(12) {
			m.noBoxes = errDown
		}
		if m.chance(3) {
			taken := m.chance(2)
			m.noMail = func(alert.Mail) (bool, error) { return taken, errDown }
		}
	})
	if m.chance(3) {
		m.Store = m.replica(t)
	}
}

// killer ends a context at its nth use.
type killer struct {
	context.Context
	left atomic.Int64
	end  context.CancelFunc
}

func (k *killer) Value(key any) any {
	if k.left.Add(-1) == 0 {
		k.end()
	}
	return k.Context.Value(key)
}

// step is some time and one round of the leader, which may be killed in it.
func (m *model) step(t *testing.T) {
	t.Helper()
	time.Sleep(time.Duration(30+m.rng.IntN(90)) * time.Second)
	if m.chance(25) {
		time.Sleep(40 * time.Minute) // the fleet is down
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	lethal := ctx
	if m.chance(4) {
		k := &killer{Context: ctx, end: end}
		k.left.Store(1 + m.rng.Int64N(40))
		lethal = k
	}
	before := must(m.Rules(t.Context()))(t)
	err := m.Judge(lethal)
	if err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	after := must(m.Rules(t.Context()))(t)
	m.look(t, before, after)
	if ctx.Err() == nil {
		if err := m.Tell(lethal); err != nil && ctx.Err() == nil {
			t.Fatal(err)
		}
	}
	m.told(t)
}

// look notes what a round saw, if it was stored, and judges what it did.
func (m *model) look(t *testing.T, before, after []alert.Judged) {
	t.Helper()
	for n, r := range after {
		if r.At.Equal(before[n].At) || r.ID != "hot" && r.ID != "offline" {
			continue
		}
		if m.noBoxes != nil || m.noReadings != nil && r.ID == "hot" {
			t.Fatalf("%s was judged though nothing was known", r.ID)
		}
		for id, box := range m.boxes {
			bad := !box.Online
			if r.ID == "hot" {
				bad = m.celsius[id] >= 85
				if m.silent[id] {
					continue
				}
			}
			if bad {
				m.lastBad[r.ID+string(id)] = r.At
			} else {
				m.lastGood[r.ID+string(id)] = r.At
			}
		}
	}
	rules := map[string]alert.Judged{}
	for _, r := range after {
		rules[r.ID] = r
	}
	for _, a := range m.alerts(t) {
		r, key := rules[a.Rule], a.Rule+a.Target
		if !m.fired[a.ID] {
			m.fired[a.ID] = true
			switch {
			case a.Fired.Sub(a.Since) < r.For:
				t.Fatalf("%s fired too soon: %+v", a.Rule, a)
			case a.Device != "" && !m.lastGood[key].Before(a.Since):
				t.Fatalf("%s fired, and was well at %s: %+v", a.Rule, m.lastGood[key], a)
			case a.Device != "" && m.lastBad[key] != a.Fired:
				t.Fatalf("%s fired blindly: %+v", a.Rule, a)
			}
		}
		if !a.Ended.IsZero() && !m.ended[a.ID] {
			m.ended[a.ID] = true
			if a.Device != "" && (m.lastGood[key] != a.Ended || a.Ended.Sub(m.lastBad[key]) <= 0) {
				t.Fatalf("%s was resolved blindly: %+v", a.Rule, a)
			}
		}
	}
}

func (m *model) alerts(t *testing.T) (out []alert.Alert) {
	t.Helper()
	cursor := ""
	for {
		page, next, err := m.List(t.Context(), staff, alert.Query{Cursor: cursor, Limit: 100})
		check(t, err)
		out = append(out, page...)
		if cursor = next; cursor == "" {
			return out
		}
	}
}

// told is how often each receiver was told of each alert, that it fires and that
// it is over. Nothing is told twice, and nothing after its end.
func (m *model) told(t *testing.T) (fire, over map[string]int) {
	t.Helper()
	fire, over = map[string]int{}, map[string]int{}
	for _, to := range []string{"all@example.org", "north@example.org"} {
		for _, text := range m.to(to) {
			now, past, _ := strings.Cut(text, "These are over:")
			for n, part := range []string{now, past} {
				for line := range strings.Lines(part) {
					id, ok := strings.CutPrefix(strings.TrimSpace(line), "alert ")
					if !ok || !strings.HasPrefix(id, "alr_") {
						continue
					}
					key := to + " " + id
					if n == 0 {
						fire[key]++
					} else {
						over[key]++
					}
					if fire[key] > 1 || over[key] > 1 || n == 0 && over[key] > 0 {
						t.Fatalf("%s was told %d times that it fires and %d times that it is over", key, fire[key], over[key])
					}
				}
			}
		}
	}
	return fire, over
}

// rest lets the world come to rest with three boxes that are not well, and sees
// that everybody knows everything.
func (m *model) rest(t *testing.T) {
	t.Helper()
	m.set(func() {
		m.noReadings, m.noBoxes, m.noMail = nil, nil, nil
		for n := range len(m.boxes) {
			m.celsius[idOf(n)], m.silent[idOf(n)], m.boxes[idOf(n)].Online = 40, false, true
		}
		m.celsius[idOf(3)], m.celsius[idOf(4)], m.boxes[idOf(5)].Online = 99, 99, false
	})
	for range 30 {
		time.Sleep(3 * time.Minute)
		check(t, m.Judge(t.Context()))
		check(t, m.Tell(t.Context()))
	}
	m.wantFiring(t, "hot Box 3", "hot Box 4", "offline Box 5")
	fire, over := m.told(t)
	for _, a := range m.alerts(t) {
		if a.Ended.IsZero() && !a.Told {
			t.Errorf("nobody is told of %+v", a)
		}
		receivers := map[string]bool{"all@example.org": true, "north@example.org": a.Labels["region"] == "north"}
		for to, due := range receivers {
			key := to + " " + a.ID
			told := fire[key]+over[key] > 0
			if told != (due && a.Told) || told && !a.Ended.IsZero() && over[key] != 1 || over[key] > 0 && a.Ended.IsZero() {
				t.Errorf("%s: told %d times that it fires, %d that it is over; due %v, %+v", to, fire[key], over[key], due, a)
			}
		}
	}
	if len(m.fired) < 10 || m.again == 0 {
		t.Errorf("the model is idle: %d alerts, %d mails came again", len(m.fired), m.again)
	}
}
