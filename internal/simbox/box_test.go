package simbox

import (
	"archive/zip"
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func TestBoxEnrolsIsClaimedAndDoesJobs(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b := run(t, w.config(t.TempDir(), 7))
		until(t, time.Minute, "the box is online", func() bool { return b.Status().Connected && w.box(b.Device()).Online })
		box := w.box(b.Device())
		if box.Facts["simulated"] != "yes" || box.BootID != b.Status().BootID || !box.Synced {
			t.Errorf("box: %+v", box)
		}
		for _, typed := range []string{b.Code().Shown(), b.Words()} {
			who := device.Claimant{Account: "own_ada", Address: netip.MustParseAddr("203.0.113.7")}
			found, err := w.devices.StartClaim(t.Context(), who, typed)
			if err != nil || found.Device != b.Device() {
				t.Errorf("claim by what the box shows: %+v, %v", found, err)
			}
		}
		must(w.devices.ConfirmClaim(t.Context(), "own_ada", b.Device()))(t)
		until(t, time.Minute, "the box knows", func() bool { return b.Status().Desired.Claimed })

		boot := b.Status().BootID
		jobs := map[fleetapi.JobKind]string{}
		for _, kind := range []fleetapi.JobKind{fleetapi.KindLocate, fleetapi.KindBundle, fleetapi.KindBenchmark, fleetapi.KindReboot} {
			jobs[kind] = w.queue(b.Device(), kind).ID
			until(t, 5*time.Minute, string(kind)+" is done", func() bool { return w.state(jobs[kind]).State.Final() })
			if j := w.state(jobs[kind]); j.State != fleetapi.Succeeded {
				t.Errorf("%s: %s, %s", kind, j.State, j.Detail)
			}
		}
		if s := b.Status(); s.Located != 1 || s.Boots != 2 || s.BootID == boot {
			t.Errorf("status: %+v", s)
		}
		until(t, time.Minute, "the fleet knows of the boot", func() bool { return w.box(b.Device()).BootID == b.Status().BootID })
		w.mu.Lock()
		raw := w.bundles[pathBundles+jobs[fleetapi.KindBundle]]
		w.mu.Unlock()
		if z, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw))); err != nil || len(z.File) != 2 {
			t.Errorf("bundle: %v", err)
		}

		time.Sleep(3 * time.Minute)
		w.mu.Lock()
		newest := w.batches[len(w.batches)-1]
		w.mu.Unlock()
		if n := len(newest.Times); n < 5 || n > 7 {
			t.Errorf("a minute's batch has %d instants", n)
		}
		b.end()
		until(t, time.Minute, "it has left", func() bool { return w.box(b.Device()).Presence == fleetapi.Lost })
	})
}

// tick makes n numbered events in a second, and returns their numbers.
func tick(b *running, from, n int) []string {
	var said []string
	for i := from; i < from+n; i++ {
		b.Event("tick", fleetapi.SeverityWarning, "", map[string]string{"n": fmt.Sprint(i)})
		said = append(said, fmt.Sprint(i))
		time.Sleep(time.Second / time.Duration(n))
	}
	return said
}

// once checks that each of these events is stored once.
func (w *world) once(t *testing.T, b *running, said []string) {
	t.Helper()
	until(t, 15*time.Minute, "the spool is empty", func() bool { s := b.Status(); return s.Connected && s.Waiting == 0 })
	stored := w.events(b.Device(), "tick")
	for _, n := range said {
		if stored[n] != 1 {
			t.Errorf("event %s is stored %d times", n, stored[n])
		}
	}
	if len(stored) != len(said) {
		t.Errorf("%d events are stored, %d were said", len(stored), len(said))
	}
	box := w.box(b.Device())
	if box.Presence != fleetapi.Online || !box.Online || box.BootID != b.Status().BootID {
		t.Errorf("state after: %s, online %v, boot %s", box.Presence, box.Online, box.BootID)
	}
}

// trouble is something that keeps a box from its fleet for a while.
type trouble struct {
	name  string
	every time.Duration              // between two events
	while func(w *world, b *running) // between the first events and the last
}

func TestNothingIsLostOrDoubled(t *testing.T) {
	loseNothing(t,
		trouble{"the link flaps", time.Second, func(w *world, b *running) {
			for range 20 {
				time.Sleep(7 * time.Second)
				b.Link().Cut()
				time.Sleep(3 * time.Second)
				b.Link().Mend()
			}
		}},
		trouble{"the link goes silent for ten minutes", 3 * time.Second, func(w *world, b *running) {
			b.Link().Silence()
			time.Sleep(10 * time.Minute)
			if w.box(b.Device()).Online {
				w.t.Error("the fleet still believes in the box")
			}
			b.Link().Mend()
		}},
		trouble{"the fleet is killed again and again", time.Second, func(w *world, b *running) {
			for range 8 {
				time.Sleep(20 * time.Second)
				w.away(2 * time.Second)
			}
		}},
	)
}

// loseNothing has a box tell of events before, during and after each trouble.
func loseNothing(t *testing.T, troubles ...trouble) {
	for _, tc := range troubles {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				b := run(t, w.config(t.TempDir(), 3))
				said := tick(b, 0, 5)
				until(t, time.Minute, "the box is there", func() bool { return b.Status().Connected })
				stop := make(chan struct{})
				more := make(chan []string)
				go func() {
					var mine []string
					for n := 100; ; n++ {
						select {
						case <-stop:
							more <- mine
							return
						default:
							mine = append(mine, tick(b, n, 1)...)
							time.Sleep(tc.every - time.Second)
						}
					}
				}()
				tc.while(w, b)
				close(stop)
				said = append(said, <-more...)
				w.once(t, b, append(said, tick(b, 10, 5)...))
				t.Logf("%d events", len(said)+5)
			})
		})
	}
}

func TestClocksMayBeWrong(t *testing.T) {
	for _, year := range []int{1970, 2038, 2099} {
		t.Run(fmt.Sprint(year), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				cfg := w.config(t.TempDir(), 4)
				cfg.Clock = &Clock{}
				cfg.Clock.Set(time.Date(year, 1, 20, 0, 0, 0, 0, time.UTC), false)
				b := run(t, cfg)
				said := tick(b, 0, 3)
				until(t, 5*time.Minute, "the box is there", func() bool { return b.Status().Connected })
				w.once(t, b, said)
				if box := w.box(b.Device()); box.Synced {
					t.Error("the fleet believes that the clock is right")
				}
				// A server that lies: the box believes a time at which it cannot
				// believe the fleet. What it has to say waits.
				b.Clock().Set(time.Date(year, 1, 20, 0, 0, 0, 0, time.UTC), true)
				b.Link().Cut()
				b.Link().Mend()
				said = append(said, tick(b, 3, 3)...)
				time.Sleep(10 * time.Minute)
				if s := b.Status(); s.Connected || s.Waiting < 3 {
					t.Errorf("status: %+v", s)
				}
				b.Clock().Correct()
				until(t, 2*time.Hour, "the box is back", func() bool { return b.Status().Connected && w.box(b.Device()).Synced })
				w.once(t, b, said)
			})
		})
	}
}

func TestBoxIsTheSameOnItsFolder(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		dir := t.TempDir()
		b := run(t, w.config(dir, 5))
		said := tick(b, 0, 3)
		until(t, time.Minute, "the box is there", func() bool { return b.Status().Connected })
		b.Link().Cut()
		said = append(said, tick(b, 3, 3)...)
		b.end() // it cannot say goodbye
		if got := w.box(b.Device()); got.Presence != fleetapi.Lost {
			t.Errorf("the will was not told: %s", got.Presence)
		}
		again := run(t, w.config(dir, 5))
		if again.Device() != b.Device() || again.Code() != b.Code() || again.Words() != b.Words() {
			t.Error("it is another box")
		}
		w.once(t, again, append(said, tick(again, 6, 2)...))
	})
}

func TestFullSpoolKeepsWhatIsWorthMost(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		cfg := w.config(t.TempDir(), 6)
		cfg.Budget = 192 << 10 // 48 blocks: the events have room, readings not
		b := run(t, cfg)
		until(t, time.Minute, "the box is there", func() bool { return b.Status().Connected })
		b.Link().Cut()
		said := tick(b, 0, 15)
		time.Sleep(time.Hour) // of readings
		if b.Status().Dropped == 0 {
			t.Fatal("the spool is not full")
		}
		said = append(said, tick(b, 15, 15)...)
		b.Link().Mend()
		w.once(t, b, said)
	})
}

func TestDoubledAndReorderedMessagesChangeNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		b := run(t, w.config(t.TempDir(), 8))
		said := tick(b, 0, 3)
		until(t, time.Minute, "the box is there", func() bool { return b.Status().Connected })
		done := w.queue(b.Device(), fleetapi.KindLocate).ID
		until(t, time.Minute, "the job is done", func() bool { return w.state(done).State == fleetapi.Succeeded })
		pass := must(b.Pass(t.Context()))(t)
		b.Link().Cut() // the box leaves; somebody says its messages again
		until(t, time.Minute, "the box has left", func() bool {
			return !b.Status().Connected && w.box(b.Device()).Presence == fleetapi.Lost
		})
		line := must(Connect(t.Context(), w.fleet(), pass, LineConfig{Dial: w.net.from("198.51.100.99")}))(t)
		w.mu.Lock()
		again := slices.Clone(w.numbered)
		w.mu.Unlock()
		slices.Reverse(again)
		journal := again[0].(*fleetapi.JobStatus).Journal
		before := w.box(b.Device())
		for range 3 {
			for _, p := range again {
				check(t, line.Say(pass, p))
			}
			// The birth and the will of the session before the last.
			check(t, line.Say(pass, &fleetapi.State{Presence: fleetapi.Online, Journal: journal, Epoch: 1}))
			check(t, line.Say(pass, &fleetapi.State{Presence: fleetapi.Lost, Journal: journal, Epoch: 1}))
		}
		line.Close()
		if got := w.state(done); got.State != fleetapi.Succeeded {
			t.Errorf("job: %s", got.State)
		}
		if after := w.box(b.Device()); after.Presence != fleetapi.Lost || before.BootID != after.BootID {
			t.Errorf("box: %+v", after)
		}
		b.Link().Mend()
		until(t, 5*time.Minute, "the box is back", func() bool { return b.Status().Connected })
		w.once(t, b, said)
		if got := w.box(b.Device()); got.Presence != fleetapi.Online {
			t.Errorf("presence: %s", got.Presence)
		}
	})
}
