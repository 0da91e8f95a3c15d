package workload

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/lease"
)

// variant is one of the manifests of a deployment; all fit the same group.
func variant(dseq uint64, n int) string {
	text := app(fmt.Sprintf("web:%d", n%3), 2, fmt.Sprintf("db:%d", n%2), fmt.Sprintf("c%d", n%4))
	return strings.ReplaceAll(text, "web.example.com", fmt.Sprintf("d%d.example.com", dseq))
}

// complete fails the test unless each active lease with a manifest has exactly
// the containers that its newest manifest asks for, and nothing else is there.
func (w *world) complete(t *testing.T, l *life, accepted map[uint64]int) {
	t.Helper()
	want := 0
	for dseq, n := range accepted {
		id := leaseID(dseq, 1)
		if got := l.State(id); got != blueprint.AllRunning {
			status, _ := l.Status(id)
			t.Errorf("lease %d is %s: %+v", dseq, got, status)
		}
		want += 3
		for _, r := range w.running("") {
			if r.Lease != lease.KeyOf(id) {
				continue
			}
			w.mu.Lock()
			image := w.containers[r].spec.Image
			w.mu.Unlock()
			if image != fmt.Sprintf("web:%d@sha256:00", n%3) && image != fmt.Sprintf("db:%d@sha256:00", n%2) {
				t.Errorf("%s of lease %d runs %s under manifest %d", r.Pod(), dseq, image, n)
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.containers) != want || len(w.links) != want || len(w.disks) != len(accepted) || len(w.journal) != len(accepted) || len(w.lent) != 0 {
		t.Errorf("%d leases: %d containers, %d links, %d disks, %d records, lent %v", len(accepted), len(w.containers), len(w.links), len(w.disks), len(w.journal), w.lent)
	}
}

// story plays one random life of a box: manifests, updates, ends, faults,
// crashes and reboots in any order, then quiet. At the end everything is as the
// last manifests say, and after closing nothing is left. It returns how many
// things happened.
func story(t *testing.T, seed uint64) (events int) {
	random := rand.New(rand.NewPCG(seed, 1))
	luck := rand.New(rand.NewPCG(seed, 2)) // used with w.mu held
	w := newWorld(t)
	w.capacity = int64(random.IntN(3)) * 600 << 20
	synctest.Test(t, func(t *testing.T) {
		chance := 0.0
		live := func() *life {
			return w.live(t, func(s *session, _ *Config) {
				s.faults = func(string) error {
					if luck.Float64() < chance {
						return errors.New("bad luck")
					}
					return nil
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				if random.IntN(2) == 0 {
					s.crash, s.after = w.effects+1+random.IntN(60), random.IntN(2) == 0
				}
			})
		}
		l := live()
		sent := map[uint64]int{}
		events = 12 + random.IntN(12)
		for range events {
			dseq := uint64(1 + random.IntN(2))
			switch random.IntN(8) {
			case 0, 1, 2:
				n := random.IntN(12)
				w.deploy(t, dseq, variant(dseq, n))
				if err := l.accept(dseq); err == nil {
					sent[dseq] = n
				} else {
					delete(sent, dseq) // whether it was stored is open
				}
			case 3:
				if running := w.running(""); len(running) > 0 {
					w.end(running[random.IntN(len(running))], random.IntN(140), random.IntN(2) == 0)
				}
			case 4:
				w.mu.Lock()
				chance = random.Float64() * 0.3
				w.deaf[fmt.Sprintf("web:%d@sha256:00", random.IntN(3))] = random.IntN(2) == 0
				w.mu.Unlock()
			case 5:
				l.kill()
				if random.IntN(2) == 0 {
					w.reboot(random.IntN(2) == 0)
				}
				l = live()
			case 6:
				w.undeploy(dseq)
				delete(sent, dseq)
				go func(l *life) { _ = l.Close(t.Context(), leaseID(dseq, 1)) }(l)
			}
			select {
			case <-l.over: // it met its end in the middle of an effect
				l = live()
			default:
			}
			time.Sleep(time.Duration(random.IntN(4000)) * time.Millisecond)
		}
		// Quiet: no faults, a good registry, a chain that is read.
		l.kill()
		w.mu.Lock()
		chance = 0
		clear(w.deaf)
		w.mu.Unlock()
		l = w.live(t)
		for dseq := uint64(1); dseq <= 2; dseq++ {
			if n, ok := sent[dseq]; ok {
				w.deploy(t, dseq, variant(dseq, n))
				l.mustAccept(t, dseq)
			} else {
				w.undeploy(dseq)
			}
		}
		if err := l.Sweep(t.Context(), w.active()); err != nil {
			t.Error(err)
		}
		time.Sleep(12 * time.Minute)
		synctest.Wait()
		w.complete(t, l, sent)
		w.undeploy(1)
		w.undeploy(2)
		if err := l.Sweep(t.Context(), nil); err != nil {
			t.Error(err)
		}
		l.kill()
	})
	w.sound(t)
	w.empty(t)
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
	return events
}

func TestStoriesEndWell(t *testing.T) {
	for seed := range uint64(*stories) {
		if story(t, seed); t.Failed() {
			return
		}
	}
}

// stories fit the time of a unit test; TestManyStoriesEndWell plays the rest.
var stories = flag.Int("stories", 40, "how many random lives TestStoriesEndWell plays")

// TestKilledAtEveryEffect kills the agent once at each effect of a deployment,
// an update and a close, before and after it, with and without a reboot, and
// lets the next one finish.
func TestKilledAtEveryEffect(t *testing.T) {
	for _, after := range []bool{false, true} {
		for _, reboot := range []bool{false, true} {
			for at := 1; ; at++ {
				w := newWorld(t)
				w.capacity = 600 << 20
				reached := false
				synctest.Test(t, func(t *testing.T) {
					l := w.live(t, func(s *session, _ *Config) { s.crash, s.after = at, after })
					again := func() {
						synctest.Wait()
						select {
						case <-l.over:
							if !reached {
								reached = true
								if reboot {
									w.reboot(after)
								}
							}
							l = w.live(t)
						default:
						}
					}
					send := func(n int) {
						w.deploy(t, 1, variant(1, n))
						if l.accept(1) != nil {
							again()
							l.mustAccept(t, 1)
						}
						settle()
						again()
					}
					send(1)
					send(2)
					time.Sleep(time.Minute)
					again()
					time.Sleep(time.Minute)
					w.complete(t, l, map[uint64]int{1: 2})
					w.undeploy(1)
					ctx, give := context.WithCancel(t.Context())
					defer give()
					closed := make(chan error, 1)
					go func(l *life) { closed <- l.Close(ctx, leaseID(1, 1)) }(l)
					settle()
					again()
					if l.Sweep(ctx, nil) != nil {
						again()
						if err := l.Sweep(ctx, nil); err != nil {
							t.Error(err)
						}
					}
					give()
					<-closed //nolint:errcheck // a close that was given up may fail
					l.kill()
				})
				w.sound(t)
				w.empty(t)
				if t.Failed() {
					t.Fatalf("killed at effect %d, after it: %v, reboot: %v", at, after, reboot)
				}
				if !reached {
					t.Logf("%d effects, after: %v, reboot: %v", at-1, after, reboot)
					break
				}
			}
		}
	}
}
