package workload

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
)

// A lender may be unable to take memory back just now. Neither the end of an
// update nor that of the lease may forget the loan then.
func TestLoansAreGivenBackThoughTheLenderRefusesForATime(t *testing.T) {
	w := newWorld(t)
	w.capacity = 512<<20 + offer.ReplicaMemory
	synctest.Test(t, func(t *testing.T) {
		refuses := false
		l := w.live(t, func(s *session, _ *Config) {
			s.faults = func(effect string) error {
				if refuses && effect == "lend" {
					return errors.New("the ledger cannot be written")
				}
				return nil
			}
		})
		defer l.kill()
		loan := func() int64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.lent[lease.KeyOf(leaseID(7, 1))]
		}
		// borrow begins an update, and lets the lender refuse once it has lent.
		borrow := func(image string) {
			t.Helper()
			w.deploy(t, 7, app(image, 1, "", ""))
			l.mustAccept(t, 7)
			for range 100 {
				if loan() > 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			w.mu.Lock()
			refuses = true
			w.mu.Unlock()
			time.Sleep(time.Minute)
			if loan() == 0 {
				t.Fatal("nothing was lent")
			}
		}
		comply := func() {
			w.mu.Lock()
			refuses = false
			w.mu.Unlock()
		}
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		borrow("web:2")
		if note := l.note(t, id, diary.Failed); !strings.Contains(note, "give back memory") {
			t.Errorf("the trouble is told as %q", note)
		}
		comply()
		time.Sleep(blueprint.LongestPause)
		if n := loan(); n != 0 || l.State(id) != blueprint.AllRunning {
			t.Errorf("%d bytes still lent, state %s", n, l.State(id))
		}

		borrow("web:3")
		closed := make(chan error)
		go func() { closed <- l.Close(t.Context(), id) }()
		time.Sleep(time.Minute)
		if loan() == 0 || !slices.Contains(l.Held(), id) {
			t.Error("the lease was forgotten with its loan")
		}
		comply()
		if err := <-closed; err != nil {
			t.Error(err)
		}
	})
	w.sound(t)
	w.empty(t)
}

// The list that Sweep is given was made before it is called; a lease may have
// begun, and its manifest come, between.
func TestSweepKeepsWhatIsYoungerThanItsList(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		if err := l.Sweep(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if l.State(id) != blueprint.AllRunning || len(w.running("web")) != 1 {
			t.Errorf("state %s", l.State(id))
		}
		w.undeploy(7)
		if err := l.Sweep(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	})
	w.sound(t)
	w.empty(t)
}

// stuck is a runtime whose Stop hangs for some leases until it is let go.
type stuck struct {
	Runtime
	hangs func(lease.Key) bool
	let   chan struct{}
}

func (s stuck) Stop(ctx context.Context, id lease.ReplicaID, grace time.Duration) error {
	if s.hangs(id.Lease) {
		select {
		case <-s.let:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Runtime.Stop(ctx, id, grace)
}

func TestAContainerThatCannotBeStoppedHoldsUpNoOtherLease(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		for dseq := uint64(1); dseq <= 3; dseq++ {
			w.deploy(t, dseq, variant(dseq, 0))
			l.mustAccept(t, dseq)
		}
		settle()
		l.kill()
		// Of the first lease nothing is left but what runs.
		first, second := lease.KeyOf(leaseID(1, 1)), lease.KeyOf(leaseID(2, 1))
		w.mu.Lock()
		delete(w.journal, keyPrefix+string(first))
		w.mu.Unlock()
		if err := os.RemoveAll(filepath.Join(w.dir, "workload", string(first))); err != nil {
			t.Fatal(err)
		}
		let := make(chan struct{})
		l = w.live(t, func(s *session, c *Config) {
			c.Runtime = stuck{s, func(key lease.Key) bool { return key == first || key == second }, let}
		})
		defer l.kill()
		settle()
		for dseq := uint64(1); dseq <= 3; dseq++ {
			w.undeploy(dseq)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
		defer cancel()
		swept := make(chan error, 1)
		go func() { swept <- l.Sweep(ctx, nil) }()
		time.Sleep(time.Hour)
		if held := l.Held(); len(held) != 1 || held[0] != leaseID(2, 1) {
			t.Errorf("held after an hour: %v", held)
		}
		id := w.deploy(t, 4, variant(4, 0))
		l.mustAccept(t, 4)
		settle()
		if l.State(id) != blueprint.AllRunning {
			t.Errorf("a new lease is %s", l.State(id))
		}
		close(let)
		if err := <-swept; err != nil {
			t.Error(err)
		}
		w.undeploy(4)
		if err := l.Sweep(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
	w.sound(t)
	w.empty(t)
}

func TestVolumesCanBeWrittenToAndStayAsTheirTenantLeftThem(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "volumes", "db", "0", "data")
	// The agent was killed before the mode was set.
	if err := os.MkdirAll(folder+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	mode := func() os.FileMode {
		t.Helper()
		if err := makeVolume(folder); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(folder)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	if got := mode(); got != 0o777 {
		t.Errorf("mode %o, nobody but root can write", got)
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := mode(); got != 0o700 {
		t.Errorf("mode %o, the tenant set 700", got)
	}
}

func TestGPUsStayWithTheirReplicas(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		live := func() *life {
			return w.live(t, func(_ *session, c *Config) { c.GPUs = func(akash.LeaseID) []int { return []int{4, 5, 6} } })
		}
		with := func(image string) string {
			return strings.Replace(app(image, 3, "", ""), "memory: {size: 512Mi}", "memory: {size: 512Mi}, gpu: {units: 1, attributes: {vendor: {nvidia: }}}", 1)
		}
		have := func() map[string][]int {
			w.mu.Lock()
			defer w.mu.Unlock()
			all := map[string][]int{}
			for id, c := range w.containers {
				all[id.Pod()] = c.spec.GPUs
				if len(c.spec.GPUs) != 1 {
					t.Errorf("%s has GPUs %v", id.Pod(), c.spec.GPUs)
				}
			}
			return all
		}
		l := live()
		w.deploy(t, 7, with("web:1"))
		l.mustAccept(t, 7)
		settle()
		before := have()
		for range 5 { // with a new agent each time
			l.kill()
			l = live()
			settle()
			for _, id := range w.running("web")[:2] {
				w.end(id, 1, false)
			}
			settle()
			for pod, gpus := range have() {
				if !slices.Equal(gpus, before[pod]) {
					t.Fatalf("%s had GPUs %v, has %v", pod, before[pod], gpus)
				}
			}
		}
		w.deploy(t, 7, with("web:2"))
		l.mustAccept(t, 7)
		time.Sleep(3 * time.Minute)
		if l.State(leaseID(7, 1)) != blueprint.AllRunning || len(have()) != 3 {
			t.Errorf("after the update: %s, %v", l.State(leaseID(7, 1)), have())
		}
		l.kill()
	})
	w.sound(t)
}

func TestNewCredentialsAreTriedAtOnce(t *testing.T) {
	w := newWorld(t)
	w.missing["web:1"] = &croft.Error{Kind: croft.KindRefused, Err: errors.New("login refused")}
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		with := func(password string) string {
			return strings.Replace(app("web:1", 1, "", ""), "    env:",
				"    credentials: {host: registry.example.com, username: joe, password: "+password+"}\n    env:", 1)
		}
		id := w.deploy(t, 7, with("wrong"))
		l.mustAccept(t, 7)
		settle()
		w.deploy(t, 7, with(rightPassword))
		l.mustAccept(t, 7)
		settle()
		if l.State(id) != blueprint.AllRunning || w.pulls["web:1"] != 2 {
			t.Errorf("state %s after %d pulls", l.State(id), w.pulls["web:1"])
		}
	})
	w.sound(t)
}

func TestALostDiskIsToldAndTheLeaseKept(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t, func(s *session, _ *Config) {
			s.faults = func(effect string) error {
				if effect == "open disk" {
					return &croft.Error{Kind: croft.KindInvalid, Err: errors.New("the disk of this lease and all that was on it is lost")}
				}
				return nil
			}
		})
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		time.Sleep(time.Hour)
		plights := l.Hopeless()
		if len(plights) != 1 || plights[0].Lease != id || !strings.Contains(plights[0].Why, "is lost") || time.Since(plights[0].Since) < 59*time.Minute {
			t.Errorf("hopeless: %+v", plights)
		}
		if status, err := l.Status(id); err != nil || !strings.Contains(status[0].Problem, "is lost") {
			t.Errorf("status %+v, %v", status, err)
		}
		if !slices.Contains(l.Held(), id) {
			t.Error("the lease was closed without being asked to")
		}
	})
	w.sound(t)
}
