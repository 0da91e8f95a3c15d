package workload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
)

// app is an SDL: a web service with n replicas of an image, and optionally a
// database with a persistent volume.
func app(image string, n int, db string, extra string) string {
	text := fmt.Sprintf(`version: "2.0"
services:
  web:
    image: %s
    env: [COLOUR=%s, BARE=]
    expose:
      - {port: 8080, as: 80, accept: ["web.example.com"], to: [{global: true}]}
      - {port: 9000, to: [{global: true}]}
`, image, cmpOr(extra, "red"))
	profiles := `
profiles:
  compute:
    web: {resources: {cpu: {units: 0.5}, memory: {size: 512Mi}, storage: {size: 1Gi}}}
    db: {resources: {cpu: {units: 0.5}, memory: {size: 256Mi}, storage: [{size: 1Gi}, {name: data, size: 2Gi, attributes: {persistent: true, class: beta2}}]}}
  placement:
    home:
      pricing: {web: {denom: uact, amount: 100}, db: {denom: uact, amount: 100}}
deployment:
`
	if db != "" {
		text += fmt.Sprintf(`  db:
    image: %s
    params: {storage: {data: {mount: /var/lib/db}}}
    expose:
      - {port: 5432, to: [{service: web}]}
`, db)
	}
	text += profiles + fmt.Sprintf("  web: {home: {profile: web, count: %d}}\n", n)
	if db != "" {
		text += "  db: {home: {profile: db, count: 1}}\n"
	}
	return text
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func settle() {
	time.Sleep(20 * time.Second)
	synctest.Wait()
}

func TestManifestRunsAndCloseLeavesNothing(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 2, "db:1", ""))
		l.mustAccept(t, 7)
		status, err := l.Status(id)
		if err != nil || len(status) != 2 || status[1].Name != "web" || status[1].Total != 2 || status[1].Problem == "" {
			t.Errorf("status at once %+v, %v", status, err)
		}
		settle()
		if got := l.State(id); got != blueprint.AllRunning {
			t.Fatalf("state %s, want running: %v", got, l.reasons(t, id))
		}
		status, err = l.Status(id)
		if err != nil || len(status) != 2 || status[1].Available != 2 || status[1].Total != 2 || status[0].Problem != "" {
			t.Errorf("status %+v, %v", status, err)
		}
		if want := blueprint.AutomaticHost(l.cfg.IngressDomain, id, "web"); !slices.Contains(status[1].URIs, want) || !slices.Contains(status[1].URIs, "web.example.com") {
			t.Errorf("host names %v, want the manifest's and %s", status[1].URIs, want)
		}
		table, _ := l.Routes()
		if len(table.Hosts) != 2 || len(table.Hosts[0].Backends) != 2 || len(table.Ports) != 1 || table.Ports[0].External != 9000 {
			t.Errorf("routes %+v", table)
		}
		pod, err := l.Replica(id, "web", 1)
		if err != nil || pod.ID.Pod() != "web-1-1" || !strings.HasSuffix(pod.Log, "/replicas/web-1-1/log") {
			t.Errorf("replica %+v, %v", pod, err)
		}
		if _, err := l.Replica(id, "web", 2); !errors.Is(err, blueprint.ErrNoService) {
			t.Errorf("a third replica: %v", err)
		}
		w.mu.Lock()
		spec := w.containers[lease.ReplicaID{Lease: lease.KeyOf(id), Service: "web", Revision: 1}].spec
		w.mu.Unlock()
		for _, want := range []string{"COLOUR=red", "BARE=", "AKASH_DEPLOYMENT_SEQUENCE=7", "AKASH_CLUSTER_PUBLIC_HOSTNAME=box.example"} {
			if !slices.Contains(spec.Env, want) {
				t.Errorf("environment %v lacks %s", spec.Env, want)
			}
		}
		before := w.effects
		l.mustAccept(t, 7)
		synctest.Wait()
		if w.effects != before {
			t.Errorf("the same manifest again had %d effects", w.effects-before)
		}
		w.undeploy(7)
		if err := l.Close(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := l.accept(7); !errors.Is(err, blueprint.ErrNoLease) {
			t.Errorf("manifest after the end: %v", err)
		}
	})
	w.sound(t)
	w.empty(t)
}

func TestPeersReachWhatIsExposedToThem(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "db:1", ""))
		l.mustAccept(t, 7)
		settle()
		w.mu.Lock()
		defer w.mu.Unlock()
		peers := w.peers[lease.KeyOf(id)]
		if len(peers) != 2 || !peers[0].Resolves || !slices.Equal(peers[0].Open, []Opening{{Port: 5432, From: "web"}}) {
			t.Errorf("peers %+v", peers)
		}
	})
}

func TestUpdateKeepsServing(t *testing.T) {
	for _, tc := range []struct {
		name     string
		replicas int
		capacity int64 // to lend
		least    int   // replicas that serve at every moment
		event    string
	}{
		{"with lent memory the old one serves until the new one answers", 1, 512<<20 + offer.ReplicaMemory, 1, ""},
		{"without, a single replica is replaced in place, which an event says", 1, 0, 0, diary.Replacing},
		{"several replicas are replaced one by one", 3, 0, 2, ""},
		{"several with lent memory never become fewer", 3, 512<<20 + offer.ReplicaMemory, 3, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.capacity = tc.capacity
			synctest.Test(t, func(t *testing.T) {
				l := w.live(t)
				defer l.kill()
				id := w.deploy(t, 7, app("web:1", tc.replicas, "db:1", ""))
				l.mustAccept(t, 7)
				settle()
				db := w.running("db")
				w.deploy(t, 7, app("web:2", tc.replicas, "db:1", ""))
				l.mustAccept(t, 7)
				least := tc.replicas
				for range 1200 {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
					least = min(least, w.serving("web"))
				}
				if least != tc.least {
					t.Errorf("%d replicas served at least, want %d", least, tc.least)
				}
				for _, id := range w.running("web") {
					if id.Revision != 2 {
						t.Errorf("%s still runs", id.Pod())
					}
				}
				if n := len(w.running("web")); n != tc.replicas || l.State(id) != blueprint.AllRunning {
					t.Errorf("%d replicas, state %s: %v", n, l.State(id), l.reasons(t, id))
				}
				if !slices.Equal(db, w.running("db")) {
					t.Errorf("the unchanged service was replaced: %v", w.running("db"))
				}
				if said := slices.Contains(l.reasons(t, id), diary.Replacing); said != (tc.event != "") {
					t.Errorf("events %v", l.reasons(t, id))
				}
				if len(w.lent) != 0 {
					t.Errorf("still lent: %v", w.lent)
				}
				if w.images[lease.KeyOf(id)]["web:1@sha256:00"] || !w.images[lease.KeyOf(id)]["web:2@sha256:00"] {
					t.Errorf("images %v", w.images)
				}
				if files, _ := filepath.Glob(filepath.Join(w.dir, "workload", "*", "manifest-*")); len(files) != 1 {
					t.Errorf("manifests %v", files)
				}
				if folders, _ := filepath.Glob(filepath.Join(w.dir, "disks", "*", "replicas", "web-1-*")); len(folders) != 0 {
					t.Errorf("folders of old replicas %v", folders)
				}
			})
			w.sound(t)
		})
	}
}

func TestUpdateThatNeverAnswersLeavesTheOldServing(t *testing.T) {
	w := newWorld(t)
	w.capacity, w.deaf["bad:1@sha256:00"] = 512<<20+offer.ReplicaMemory, true
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		w.deploy(t, 7, app("bad:1", 1, "", ""))
		l.mustAccept(t, 7)
		time.Sleep(10 * time.Minute)
		if n := w.serving("web"); n != 1 {
			t.Fatalf("%d serve", n)
		}
		if !strings.Contains(l.note(t, id, diary.Unhealthy), "web-2-0") {
			t.Errorf("events %v", l.reasons(t, id))
		}
		// The agent dies, the box restarts: the old one comes back.
		l.kill()
		w.reboot(true)
		l = w.live(t)
		settle()
		if n := w.serving("web"); n != 1 {
			t.Fatalf("%d serve after a restart: %v", n, w.running(""))
		}
		// Back to what still runs: nothing is started anew.
		old := w.running("web")
		w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		if now := w.running("web"); len(now) != 1 || !slices.Contains(old, now[0]) || l.State(id) != blueprint.AllRunning {
			t.Errorf("running %v, before %v, state %s", now, old, l.State(id))
		}
		l.kill()
	})
	w.sound(t)
}

func TestPersistentVolumeIsHandedOver(t *testing.T) {
	w := newWorld(t)
	w.capacity = 10 << 30
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "db:1", ""))
		l.mustAccept(t, 7)
		settle()
		volume := func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			for id, c := range w.containers {
				if id.Service == "db" {
					return c.spec.Mounts[0].Source
				}
			}
			return ""
		}
		before := volume()
		if err := os.WriteFile(filepath.Join(before, "precious"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.deploy(t, 7, app("web:1", 1, "db:2", ""))
		l.mustAccept(t, 7)
		settle()
		if after := volume(); after != before {
			t.Errorf("volume %s, before %s", after, before)
		}
		if _, err := os.Stat(filepath.Join(before, "precious")); err != nil {
			t.Error(err)
		}
		if !strings.Contains(l.note(t, id, diary.Replacing), "persistent volume") {
			t.Errorf("events %v", l.reasons(t, id))
		}
	})
	w.sound(t)
}

func TestEndsAreToldAndRepeatedWithPauses(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		if !w.end(w.running("web")[0], 137, true) {
			t.Fatal("nothing ran")
		}
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if got := l.State(id); got != blueprint.Degraded {
			t.Errorf("state %s, want degraded", got)
		}
		if note := l.note(t, id, diary.OOMKilled); !strings.Contains(note, "512Mi") {
			t.Errorf("note %q names no limit", note)
		}
		settle()
		web := lease.ReplicaID{Lease: lease.KeyOf(id), Service: "web", Revision: 1}
		// pause ends the replica and says how long nothing was done about it.
		pause := func() time.Duration {
			t.Helper()
			if !w.end(web, 3, false) {
				t.Fatal("nothing ran")
			}
			ended := time.Now()
			for len(w.running("web")) == 0 {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.containers[web].started.Sub(ended) - stopTakes - startTakes
		}
		least := blueprint.ShortestPause // the first end was the one above
		for n := range 12 {
			least = min(2*least, blueprint.LongestPause/2)
			if got := pause(); got < least || got >= 2*least {
				t.Errorf("pause %d was %s, want at least %s and less than twice that", n+2, got, least)
			}
		}
		if !w.end(web, 3, false) {
			t.Fatal("nothing ran")
		}
		time.Sleep(time.Second)
		status, _ := l.Status(id)
		if !strings.Contains(status[0].Problem, "exit code 3, 13 times in a row") || !strings.Contains(l.note(t, id, diary.BackOff), "ended with exit code 3, 13 times in a row") {
			t.Errorf("problem %q, note %q", status[0].Problem, l.note(t, id, diary.BackOff))
		}
		time.Sleep(blueprint.LongestPause + steadyAfter + time.Minute)
		if l.State(id) != blueprint.AllRunning {
			t.Errorf("state %s", l.State(id))
		}
		if got := pause(); got < blueprint.ShortestPause || got >= 2*blueprint.ShortestPause {
			t.Errorf("pause after a long run was %s", got)
		}
	})
	w.sound(t)
}

func TestPullsThatFail(t *testing.T) {
	for _, tc := range []struct {
		name     string
		err      error
		want     string
		least    int // attempts in an hour: all pauses as long as they can be
		most     int // as short as they can be
		hopeless bool
	}{
		{"a registry that is down is asked again with growing pauses", errors.New("registry is down"), "registry is down", 18, 30, false},
		{
			"an unknown image is asked for rarely, and the event says what to do",
			&croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such image")}, "check the image's name and tag", 6, 6, true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.missing["web:1"] = tc.err
			synctest.Test(t, func(t *testing.T) {
				l := w.live(t)
				defer l.kill()
				id := w.deploy(t, 7, app("web:1", 3, "", ""))
				l.mustAccept(t, 7)
				time.Sleep(time.Hour)
				w.mu.Lock()
				n := w.pulls["web:1"]
				w.mu.Unlock()
				if n > tc.most || n < tc.least {
					t.Errorf("%d attempts, want %d to %d", n, tc.least, tc.most)
				}
				plights := l.Hopeless()
				if tc.hopeless != (len(plights) == 1) {
					t.Errorf("hopeless: %+v", plights)
				}
				for _, p := range plights {
					if p.Lease != id || time.Since(p.Since) < 58*time.Minute || !strings.Contains(p.Why, "image web:1 is not here: no such image") {
						t.Errorf("plight %+v, now %s", p, time.Now())
					}
				}
				status, _ := l.Status(id)
				if note := l.note(t, id, diary.Failed); !strings.Contains(note, tc.want) || !strings.Contains(status[0].Problem, tc.want) {
					t.Errorf("note %q, problem %q", note, status[0].Problem)
				}
				w.mu.Lock()
				delete(w.missing, "web:1")
				w.pulls["web:1"] = 0
				w.mu.Unlock()
				time.Sleep(2 * slowRetry)
				if l.State(id) != blueprint.AllRunning || w.pulls["web:1"] != 1 {
					t.Errorf("state %s after %d pulls for three replicas", l.State(id), w.pulls["web:1"])
				}
				if plights := l.Hopeless(); len(plights) != 0 {
					t.Errorf("still hopeless: %+v", plights)
				}
			})
			w.sound(t)
		})
	}
}

func TestCloseDuringThePullLeavesNothing(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 3, "", ""))
		l.mustAccept(t, 7)
		time.Sleep(time.Second)
		follow, err := l.Events(t.Context(), id, 0, true)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan bool)
		go func() {
			for range follow {
			}
			close(ended)
		}()
		if err := l.Close(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		<-ended
	})
	w.sound(t)
	w.empty(t)
}

func TestCloseWithoutJournalStillFrees(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		full := false
		l := w.live(t, func(s *session, _ *Config) {
			s.faults = func(effect string) error {
				if full && (effect == "put" || effect == "write") {
					return errors.New("disk is full")
				}
				return nil
			}
		})
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		w.mu.Lock()
		full = true
		w.mu.Unlock()
		w.deploy(t, 7, app("web:2", 1, "", ""))
		if err := l.accept(7); err == nil {
			t.Error("a manifest was accepted that could not be stored")
		}
		settle()
		if len(w.running("web")) != 1 {
			t.Error("the workload did not go on")
		}
		if err := l.Close(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	})
	w.sound(t)
	w.empty(t)
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		ctx := t.Context()
		if err := l.Accept(ctx, tenant, 1, []byte("[")); !errors.Is(err, blueprint.ErrNoLease) {
			t.Errorf("bad JSON without a lease: %v", err)
		}
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		if err := l.Accept(ctx, tenant, 7, []byte("[")); !errors.Is(err, blueprint.ErrBadJSON) || croft.KindOf(err) != croft.KindInvalid {
			t.Errorf("bad JSON: %v", err)
		}
		raw := w.deployed[id.DeploymentID].raw
		if err := l.Accept(ctx, tenant, 8, raw); !errors.Is(err, blueprint.ErrNoLease) || croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("no lease: %v", err)
		}
		other := account.Address("akash1another")
		if err := l.Accept(ctx, other, 7, raw); !errors.Is(err, blueprint.ErrNoLease) {
			t.Errorf("manifest of another tenant: %v", err)
		}
		if err := l.Accept(ctx, tenant, 7, bytes.Replace(raw, []byte("COLOUR=red"), []byte("COLOUR=tea"), 1)); !errors.Is(err, blueprint.ErrWrongHash) {
			t.Errorf("wrong hash: %v", err)
		}
		if err := l.Accept(ctx, tenant, 7, bytes.Replace(raw, []byte(`"name":"web"`), []byte(`"name":"WEB"`), 1)); !errors.Is(err, blueprint.ErrInvalid) {
			t.Errorf("invalid: %v", err)
		}
		if err := l.Accept(ctx, tenant, 7, make([]byte, blueprint.MaxManifest+1)); !errors.Is(err, blueprint.ErrTooMany) {
			t.Errorf("too large: %v", err)
		}
		w.deploy(t, 7, app("web:1", 2, "", "")) // the group on chain has one
		if err := l.accept(7); !errors.Is(err, blueprint.ErrMismatch) {
			t.Errorf("more replicas than leased: %v", err)
		}
		w.deploy(t, 7, strings.ReplaceAll(app("web:1", 1, "", ""), "web.example.com", "x.ingress.example"))
		if err := l.accept(7); !errors.Is(err, blueprint.ErrHostTaken) {
			t.Errorf("host below the ingress domain: %v", err)
		}
		// A tenant who is a block ahead of us is waited for.
		go func() {
			time.Sleep(3 * time.Second)
			w.deploy(t, 9, app("web:1", 1, "", ""))
		}()
		if err := l.Accept(ctx, tenant, 9, raw); err != nil {
			t.Errorf("early manifest: %v", err)
		}
		// The host belongs to deployment 9 now; another tenant cannot have it.
		w.mu.Lock()
		mine := w.deployed[akash.DeploymentID{Owner: tenant, DSeq: 9}]
		foreign := leaseID(10, 1)
		foreign.Owner = other
		w.deployed[foreign.DeploymentID] = &deployment{leases: []akash.LeaseID{foreign}, hash: mine.hash, groups: mine.groups}
		w.mu.Unlock()
		if err := l.Accept(ctx, other, 10, raw); !errors.Is(err, blueprint.ErrHostTaken) {
			t.Errorf("host of another tenant: %v", err)
		}
		if _, err := l.MigrateHosts(other, 10, 1, []string{"web.example.com"}); !errors.Is(err, blueprint.ErrNoLease) {
			t.Errorf("migration without a workload: %v", err)
		}
		settle()
		for _, left := range []akash.LeaseID{id, foreign} {
			if _, err := l.Status(left); !errors.Is(err, blueprint.ErrNoLease) {
				t.Errorf("a refused manifest left something: %v", err)
			}
		}
	})
	w.sound(t)
}

// Whatever an account without a lease sends, it costs the box nothing.
func TestAManifestWithoutALeaseIsNotRead(t *testing.T) {
	w := newWorld(t)
	workloads, err := New(Config{
		Dir: filepath.Join(w.dir, "workload"), Leases: &session{w: w}, Runtime: &session{w: w}, Images: &session{w: w}, Disks: disks{&session{w: w}},
		Network: network{&session{w: w}}, Journal: store{&session{w: w}}, Patience: time.Nanosecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	raw := []byte(`[{"services":[` + strings.TrimSuffix(strings.Repeat("{},", 1000), ",") + `]}]`) // as much as is decoded at all
	cost := func(raw []byte, want error) float64 {
		t.Helper()
		return testing.AllocsPerRun(5, func() {
			if err := workloads.Accept(t.Context(), tenant, 7, raw); !errors.Is(err, want) {
				t.Errorf("answer is %v", err)
			}
		})
	}
	least, most := cost([]byte(`[]`), blueprint.ErrNoLease), cost(raw, blueprint.ErrNoLease)
	if most > least+10 {
		t.Errorf("a large manifest costs %v allocations, an empty one %v", most, least)
	}
	w.deploy(t, 7, app("web:1", 1, "", ""))
	if read := cost(raw, blueprint.ErrInvalid); read < 1000 {
		t.Errorf("a tenant's costs %v allocations: this test counts nothing", read)
	}
}

func TestManifestsAreReadInTurn(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		defer l.kill()
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		if !l.reading.TryAcquire(readers) {
			t.Fatal("somebody reads")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		err := l.Accept(ctx, tenant, 7, w.deployed[id.DeploymentID].raw)
		if !errors.Is(err, context.DeadlineExceeded) || croft.KindOf(err) != croft.KindOther || time.Since(began) != time.Minute {
			t.Errorf("nobody is done, and after %s the answer is %v", time.Since(began), err)
		}
		if l.State(id) != blueprint.WaitingManifest {
			t.Error("it was stored all the same")
		}
		time.AfterFunc(time.Second, func() { l.reading.Release(readers) })
		l.mustAccept(t, 7)
	})
}

func TestWithoutAutomaticHostsEachNeedsOne(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t, func(_ *session, c *Config) { c.IngressDomain = "" })
		defer l.kill()
		w.deploy(t, 7, strings.ReplaceAll(app("web:1", 1, "", ""), `accept: ["web.example.com"], `, ""))
		if err := l.accept(7); !errors.Is(err, blueprint.ErrHostMissing) {
			t.Errorf("got %v", err)
		}
	})
}

func TestHostsMigrateBetweenLeasesOfOneTenant(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		one, two := w.deploy(t, 1, app("web:1", 1, "", "")), w.deploy(t, 2, app("web:1", 1, "", ""))
		l.mustAccept(t, 1)
		l.mustAccept(t, 2)
		settle()
		holds := func() akash.LeaseID {
			table, _ := l.Routes()
			for _, h := range table.Hosts {
				if h.Name == "web.example.com" {
					return h.Lease
				}
			}
			return akash.LeaseID{}
		}
		if holds() != one {
			t.Errorf("%s has the host, want the first", holds())
		}
		_, changed := l.Routes()
		moved, err := l.MigrateHosts(tenant, 2, 1, []string{"web.example.com"})
		if err != nil || len(moved) != 1 || holds() != two {
			t.Errorf("moved %v to %s, %v", moved, holds(), err)
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told of the new routes")
		}
		if _, err := l.MigrateHosts(tenant, 2, 1, []string{"other.example.com"}); !errors.Is(err, blueprint.ErrInvalid) {
			t.Errorf("a host that the manifest does not name: %v", err)
		}
		l.kill()
		l = w.live(t)
		settle()
		if holds() != two {
			t.Errorf("%s has the host after a restart", holds())
		}
		if err := l.Close(t.Context(), two); err != nil {
			t.Fatal(err)
		}
		settle()
		if holds() != one {
			t.Errorf("%s has the host after its lease was closed", holds())
		}
		l.kill()
	})
	w.sound(t)
}

func TestLostManifestWaitsForItsTenant(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		id := w.deploy(t, 7, app("web:1", 1, "", ""))
		l.mustAccept(t, 7)
		settle()
		before := w.running("")
		l.kill()
		files, _ := filepath.Glob(filepath.Join(w.dir, "workload", "*", "manifest-*"))
		if len(files) != 1 || os.WriteFile(files[0], []byte("[{"), 0o600) != nil {
			t.Fatalf("manifests %v", files)
		}
		l = w.live(t)
		defer l.kill()
		settle()
		if l.State(id) != blueprint.WaitingManifest || !slices.Equal(w.running(""), before) {
			t.Errorf("state %s, running %v", l.State(id), w.running(""))
		}
		if err := l.Sweep(t.Context(), w.active()); err != nil {
			t.Fatal(err)
		}
		l.mustAccept(t, 7)
		settle()
		if l.State(id) != blueprint.AllRunning || !slices.Equal(w.running(""), before) {
			t.Errorf("state %s, running %v, before %v", l.State(id), w.running(""), before)
		}
	})
	w.sound(t)
}

func TestSweepFreesWhatNoLeaseOwns(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t)
		w.deploy(t, 7, app("web:1", 1, "db:1", ""))
		w.deploy(t, 8, strings.ReplaceAll(app("web:1", 1, "", ""), "web.example.com", "two.example.com"))
		l.mustAccept(t, 7)
		l.mustAccept(t, 8)
		settle()
		l.kill()
		clear(w.journal) // /perm was lost
		if err := os.RemoveAll(filepath.Join(w.dir, "workload")); err != nil {
			t.Fatal(err)
		}
		l = w.live(t)
		defer l.kill()
		settle()
		if len(w.running("")) != 3 {
			t.Fatalf("running %v: nothing may be freed before the chain was read", w.running(""))
		}
		w.undeploy(8)
		if err := l.Sweep(t.Context(), w.active()); err != nil {
			t.Fatal(err)
		}
		if len(w.running("")) != 2 || len(w.disks) != 1 {
			t.Errorf("running %v, disks %v", w.running(""), w.disks)
		}
		w.undeploy(7)
		if err := l.Sweep(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	})
	w.sound(t)
	w.empty(t)
}

func TestSecretsStayInTheManifest(t *testing.T) {
	w := newWorld(t)
	w.missing["registry.example.com/web:1"] = &croft.Error{Kind: croft.KindRefused, Err: errors.New("login of joe with hunter2-hunter2 refused")}
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		l := w.live(t, func(_ *session, c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		id := w.deploy(t, 7, strings.Replace(app("registry.example.com/web:1", 1, "", ""), "    env:",
			"    credentials: {host: registry.example.com, username: joe, password: hunter2-hunter2}\n    env:", 1))
		l.mustAccept(t, 7)
		settle()
		status, _ := l.Status(id)
		events, _ := l.Events(t.Context(), id, 0, false)
		text := fmt.Sprint(status, slices.Collect(events))
		if !strings.Contains(text, "***") {
			t.Errorf("no trace of the refusal: %s", text)
		}
		l.kill()
		text += log.String()
		for key, value := range w.journal {
			text += key + string(value)
		}
		if data, err := os.ReadFile(filepath.Join(w.dir, "workload", string(lease.KeyOf(id)), "events")); err != nil {
			t.Error(err)
		} else {
			text += string(data)
		}
		if strings.Contains(text, "hunter2") {
			t.Errorf("the password is in %s", text)
		}
	})
}
