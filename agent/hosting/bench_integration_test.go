//go:build integration

package hosting

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// asTest runs a benchmark's body with what the tests' helpers want. What it cleans up
// is done when asTest returns.
func asTest(b *testing.B, do func(t *testing.T)) {
	all := func(string, string) (bool, error) { return true, nil }
	if !testing.RunTests(all, []testing.InternalTest{{Name: b.Name(), F: do}}) {
		b.Fatal("see above")
	}
}

// figures are what was seen, by unit.
type figures map[string][]float64

func (f figures) saw(unit string, value float64) { f[unit] = append(f[unit], value) }

func (f figures) median(unit string) float64 {
	sorted := slices.Sorted(slices.Values(f[unit]))
	return sorted[len(sorted)/2]
}

func (f figures) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // the whole, with what is not measured
	for unit := range f {
		b.ReportMetric(f.median(unit), unit)
	}
}

// BenchmarkDeploy deploys the article's file again and again and tells when, in
// milliseconds from its beginning, each step was done: as the tenant sees the first
// three, as the box does the next two, as a visitor of the relay does the last. Beside
// it stands the floor: how long the program takes to open its port if this machine
// starts it, or runsc alone, as agent/ocispec specifies it for the file, or with all
// cores.
func BenchmarkDeploy(b *testing.B) {
	f := figures{}
	asTest(b, func(t *testing.T) {
		w := newWorld(t)
		box := newBox(t, w)
		me := box.join(w)
		file, err := os.ReadFile(filepath.Join(repository, outside.DeployFile))
		if err != nil {
			t.Fatal(err)
		}
		for b.Loop() {
			f.saw("ms_process", startProcess(t, w.Web()))
			f.saw("ms_runsc", startRunsc(t, w.Web(), 100))
			f.saw("ms_runsc_all_cores", startRunsc(t, w.Web(), int64(runtime.NumCPU())*1000))
			d := box.deploy(me, file)
			for unit, value := range d.done {
				f.saw(unit, value)
			}
			f.saw("manifest_to_first_byte/runsc", (d.done["ms_6_first_byte"]-d.done["ms_3_manifest"])/f["ms_runsc"][len(f["ms_runsc"])-1])
			if _, err := me.Close(t.Context(), d.lease.DeploymentID, nil); err != nil {
				t.Fatal(err)
			}
			box.until("the lease is gone", func() bool {
				s := box.Status()
				return len(s.Leases) == 0 && !slices.ContainsFunc(s.Bidding.Items, func(i bidding.Item) bool { return !i.State.Final() })
			})
		}
	})
	f.report(b)
}

// join makes the chain for a box, waits until the box is known there, and returns a tenant.
func (b *box) join(w *outside.World) *outside.Tenant {
	b.t.Helper()
	if err := w.Chain.Make(b.t.Context(), outside.DeployAudit(b.Status().Bidding.Account)); err != nil {
		b.t.Fatal(err)
	}
	if err := w.Chain.Start(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.until("the box is registered", func() bool { return b.Status().Bidding.Registered })
	me, err := w.Tenant(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(me.Leave)
	return me
}

// deployed is a deployment that answered, and when what was done.
type deployed struct {
	lease akash.LeaseID
	done  map[string]float64 // milliseconds from the beginning
}

func (b *box) deploy(me *outside.Tenant, file []byte) *deployed {
	b.t.Helper()
	begun := time.Now()
	d := &deployed{done: map[string]float64{}}
	mark := func(step string, at time.Time) {
		if _, ok := d.done[step]; !ok {
			d.done[step] = float64(at.Sub(begun).Milliseconds())
		}
	}
	var visiting sync.WaitGroup
	var answered time.Time
	_, err := me.Run(b.t.Context(), file, func(p tenant.Progress) {
		if len(p.Offers) > 0 {
			mark("ms_1_bid", time.Now())
		}
		if len(p.Record.Leases) == 0 {
			return
		}
		mark("ms_2_lease", time.Now())
		if !p.Record.Leases[0].Sent || d.lease != (akash.LeaseID{}) {
			return
		}
		mark("ms_3_manifest", time.Now())
		d.lease = p.Record.LeaseIDs()[0]
		page := "http://" + blueprint.AutomaticHost(b.Status().Domain, d.lease, "web") + "/"
		visiting.Go(func() {
			b.until("a visitor has an answer", func() bool {
				_, err := me.Get(b.t.Context(), page)
				answered = time.Now()
				return err == nil
			})
		})
	})
	visiting.Wait()
	if err != nil {
		b.t.Fatal(err)
	}
	mark("ms_6_first_byte", answered)
	mark("ms_7_tenant_knows", time.Now())
	for _, event := range b.events(d.lease) {
		switch event.Reason {
		case diary.Pulled:
			mark("ms_4_image", event.At)
		case diary.Started:
			mark("ms_5_container", event.At)
		}
	}
	return d
}

func (b *box) events(id akash.LeaseID) []lease.Event {
	b.t.Helper()
	parts, fault := b.open()
	if parts == nil {
		b.t.Fatal(fault)
	}
	all, err := parts.workloads.Events(b.t.Context(), id, 0, false)
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.Collect(all)
}

// startProcess returns the milliseconds until a process of the program listens.
func startProcess(t *testing.T, program string) float64 {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program)
	took := untilListens(t, cmd, func() error { return cmd.Start() })
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return took
}

// startRunsc returns the milliseconds until the program listens in a sandbox that
// runsc makes without containerd, as specified for so many thousandths of a core.
// What agent/sandbox takes back once the program runs is left to it here.
func startRunsc(t *testing.T, program string, cpu int64) float64 {
	t.Helper()
	bundle := t.TempDir()
	id := lease.ReplicaID{Lease: "floor", Service: "web", Revision: 1}
	spec, err := ocispec.Build(ocispec.Input{Container: lease.Container{
		ID: id, Command: []string{"/bin/app"}, Limits: lease.Limits{CPU: cpu, Memory: 512 << 20}, Hostname: "web",
	}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	app, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600),
		os.MkdirAll(filepath.Join(bundle, "rootfs", "bin"), 0o755),
		os.WriteFile(filepath.Join(bundle, "rootfs", "bin", "app"), app, 0o755),
	); err != nil {
		t.Fatal(err)
	}
	runsc := func(args ...string) *exec.Cmd {
		return exec.Command(filepath.Join(programs, "croft-runsc"), append([]string{"--root", filepath.Join(bundle, "state")}, args...)...)
	}
	create := runsc("create", "--bundle", bundle, id.Container())
	took := untilListens(t, create, func() error {
		if err := create.Run(); err != nil {
			return err
		}
		return runsc("start", id.Container()).Run()
	})
	if out, err := runsc("delete", "--force", id.Container()).CombinedOutput(); err != nil {
		t.Fatalf("delete the sandbox: %v: %s", err, out)
	}
	return took
}

// untilListens calls start and returns the milliseconds until the program, which has
// cmd's output, says that it listens.
func untilListens(t *testing.T, cmd *exec.Cmd, start func() error) float64 {
	t.Helper()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = in
	begun := time.Now()
	err = start()
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	took := time.Since(begun)
	if err != nil && !errors.Is(err, io.EOF) || !strings.Contains(line, "listening") {
		t.Fatalf("the program said %q, %v", line, err)
	}
	return float64(took.Microseconds()) / 1000
}

// idleFor is how long a provider without work is watched.
const idleFor = time.Minute

// BenchmarkIdleProvider tells what a provider costs this machine that has nothing to
// do: its processors and memory without a lease and with one that nobody visits. The
// agent's part is this process, which holds the relay and the registry as well. Blocks
// are as far apart as on Akash. With -cpuprofile and -memprofile it tells why.
func BenchmarkIdleProvider(b *testing.B) {
	for b.Loop() {
		f := figures{}
		asTest(b, func(t *testing.T) {
			w, err := outside.New(outside.Config{
				Dir: t.TempDir(), Chaind: filepath.Join(programs, "croft-chaind"), Chain: outside.ChainConfig{BlockTime: 6 * time.Second},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := w.PutWeb(t.Context(), repository); err != nil {
				t.Fatal(err)
			}
			box := newBox(t, w)
			me := box.join(w)
			box.idle(f, "no_lease")
			file, err := os.ReadFile(filepath.Join(repository, outside.DeployFile))
			if err != nil {
				t.Fatal(err)
			}
			d := box.deploy(me, file)
			box.idle(f, "one_lease")
			if _, err := me.Close(context.WithoutCancel(t.Context()), d.lease.DeploymentID, nil); err != nil {
				t.Fatal(err)
			}
			box.until("the lease is gone", func() bool { return len(box.Status().Leases) == 0 })
		})
		f.report(b)
	}
}

// idle watches the box's processes.
func (b *box) idle(f figures, state string) {
	b.t.Helper()
	<-time.After(10 * time.Second) // what came with the change is over
	before, begun := b.processes(), time.Now()
	<-time.After(idleFor)
	after, seconds := b.processes(), time.Since(begun).Seconds()
	cores, memory := map[string]float64{}, map[string]float64{}
	for pid, now := range after {
		cores[now.program] += (now.worked - before[pid].worked) / seconds
		memory[now.program] += now.own
	}
	runtime.GC()
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/sched/goroutines:goroutines"}}
	metrics.Read(heap)
	f.saw(state+"_live_heap_MB", float64(heap[0].Value.Uint64())/1e6)
	f.saw(state+"_goroutines", float64(heap[1].Value.Uint64()))
	for program := range cores {
		f.saw(fmt.Sprintf("%s_%s_cores", state, program), cores[program])
		f.saw(fmt.Sprintf("%s_%s_own_MB", state, program), memory[program])
	}
}

// process is what one process has used.
type process struct {
	program string
	worked  float64 // seconds
	own     float64 // MB of memory that are no file's
}

// processes are this one, the box's containerd and all that runs for its leases.
func (b *box) processes() map[int]process {
	b.t.Helper()
	found := map[int]process{}
	paths, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, path := range paths {
		dir := filepath.Dir(path)
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			b.t.Fatal(err)
		}
		words, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || pid != os.Getpid() && !strings.Contains(string(words), b.dir+"/") {
			continue
		}
		program, err := os.Readlink(path)
		stat, statErr := os.ReadFile(filepath.Join(dir, "stat"))
		status, statusErr := os.ReadFile(filepath.Join(dir, "status"))
		if cmp.Or(err, statErr, statusErr) != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		var ticks [2]float64
		for i := range ticks {
			if ticks[i], err = strconv.ParseFloat(fields[11+i], 64); err != nil {
				b.t.Fatal(err)
			}
		}
		p := process{program: filepath.Base(program), worked: (ticks[0] + ticks[1]) / 100}
		for line := range strings.Lines(string(status)) {
			if kib, is := strings.CutPrefix(line, "RssAnon:"); is {
				n, err := strconv.ParseFloat(strings.Fields(kib)[0], 64)
				if err != nil {
					b.t.Fatal(err)
				}
				p.own = n * 1024 / 1e6
			}
		}
		found[pid] = p
	}
	return found
}
