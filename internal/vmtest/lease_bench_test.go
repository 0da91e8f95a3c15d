//go:build vm

package vmtest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/internal/rig"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// How long a box is watched, and how long it is left alone before.
const (
	idleFor    = 3 * time.Minute
	idleBefore = 30 * time.Second
)

// gaugePort is where the gauge listens.
const gaugePort = 9998

// gauged is the good release with the warden and the gauge.
var gauged = sync.OnceValues(func() (build.Result, error) {
	board, err := boards.Get("uefi-x86")
	if err != nil {
		return build.Result{}, err
	}
	const agent, own = `"github.com/croft-cloud/croft/cmd/croft-agent"`, `, "github.com/croft-cloud/croft/internal/vmtest/`
	board.Gokrazy = bytes.Replace(board.Gokrazy, []byte(agent), []byte(agent+own+`warden"`+own+`gauge"`), 1)
	return build.Build(context.Background(), options(board, "1.4.0", "gauged"))
})

// BenchmarkIdleBox measures what a box costs that has nothing to do: the same image
// that lets nothing, that lets and has no lease, and that has one idle lease.
//
// The emulator is slower than a processor, by a factor that depends on the work. So
// each state begins with the gauge's pieces: what QEMU works for one, beside what the
// same program works for it on this machine, is the factor. What QEMU works while the
// box idles, divided by the factors, is an estimate of what the box would cost on a
// processor like this machine's. The box's own count of its work is too high where the
// machine is busy: it takes the time for its own in which QEMU had to wait.
func BenchmarkIdleBox(b *testing.B) {
	image, err := gauged()
	if err != nil {
		b.Fatal(err)
	}
	program, err := chaind()
	if err != nil {
		b.Fatal(err)
	}
	gauge := filepath.Join(b.TempDir(), "gauge")
	if err := outside.Build(b.Context(), repository, "./internal/vmtest/gauge", gauge); err != nil {
		b.Fatal(err)
	}
	s := settings{
		from: image.Image, size: 24 << 30, memory: 3 << 30, tpm: true,
		config: func(c *rig.Config) {
			c.Forwards = append(c.Forwards, rig.Forward{Guest: wardenPort}, rig.Forward{Guest: gaugePort})
		},
	}

	alone := &provider{box: newBox(b, s)}
	alone.powerOn()
	alone.waitConfirmed()
	lets := map[string]idleness{"lets_nothing": alone.watch(gauge)}
	if err := alone.Close(); err != nil {
		b.Fatal(err)
	}

	world, err := outside.New(outside.Config{Dir: b.TempDir(), Chaind: program, Chain: outside.ChainConfig{BlockTime: 6 * time.Second}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := world.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := world.PutWeb(b.Context(), repository); err != nil {
		b.Fatal(err)
	}
	p := &provider{world: world, box: boxOn(b, world.Network(outside.FromGuest), s)}
	p.powerOn()
	with := p.waitFor("a provider with an account", func(s ownerpage.StatusJSON) bool { return s.Hosting != nil && s.Hosting.Account != "" })
	if err := world.Chain.Make(b.Context(), outside.DeployAudit(account.Address(with.Hosting.Account))); err != nil {
		b.Fatal(err)
	}
	if err := world.Chain.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	p.waitState(letting.Open)
	lets["no_lease"] = p.watch(gauge)
	if p.me, err = world.Tenant(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.me.Leave)
	record, _ := p.deploy()
	p.until("the page is there", func() error { return p.answers(record) })
	lets["one_idle_lease"] = p.watch(gauge)

	for _, state := range []string{"lets_nothing", "no_lease", "one_idle_lease"} {
		b.Run(state, func(b *testing.B) { lets[state].report(b, lets["lets_nothing"]) })
	}
}

// idleness is what a box was seen to use.
type idleness struct {
	cores    float64          // as the box counts them
	emulator float64          // processors that QEMU kept busy
	used     int64            // bytes of memory that programs and kernel hold: what cannot be had back
	short    int64            // bytes of memory that no program can have: used, and the kernel's reserve
	memory   map[string]int64 // the kernel's account, in bytes
	factors  map[string]float64
	programs map[string]usage
}

// usage is what the processes of one program use.
type usage struct {
	processes int
	cores     float64
	rss, own  int64
}

// watch lets the box be for a while and tells what it used.
func (p *provider) watch(gauge string) idleness {
	p.t.Helper()
	seen := idleness{factors: map[string]float64{}, programs: map[string]usage{}}
	for _, piece := range []string{"words", "hash", "calls"} {
		seen.factors[piece] = p.factor(gauge, piece)
	}
	<-time.After(idleBefore)
	before, worked, begin := p.look(), p.emulatorWorked(), time.Now()
	<-time.After(idleFor)
	after := p.look()
	seen.emulator = (p.emulatorWorked() - worked) / time.Since(begin).Seconds()
	const processors = 2 // of every machine of the rig
	seconds := after.Uptime - before.Uptime
	seen.cores = processors - (after.Idle-before.Idle)/seconds
	m := after.Memory
	seen.memory = m
	seen.used = m["MemTotal"] - m["MemFree"] - m["Buffers"] - m["Cached"] - m["SReclaimable"]
	seen.short = m["MemTotal"] - m["MemAvailable"]
	was := map[int]float64{}
	for _, process := range before.Processes {
		was[process.PID] = process.CPU
	}
	for _, process := range after.Processes {
		u := seen.programs[process.Program]
		u.processes++
		u.cores += (process.CPU - was[process.PID]) / seconds
		u.rss += process.RSS
		u.own += process.Own
		seen.programs[process.Program] = u
	}
	return seen
}

// factor is how many times more QEMU works for a piece than a program on this machine.
func (p *provider) factor(gauge, piece string) float64 {
	p.t.Helper()
	out, err := exec.CommandContext(p.t.Context(), gauge, piece).Output()
	if err != nil {
		p.t.Fatal(err)
	}
	native, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		p.t.Fatal(err)
	}
	address, err := p.Address(gaugePort)
	if err != nil {
		p.t.Fatal(err)
	}
	var emulated, counted float64
	p.until("the gauge answers", func() error {
		worked := p.emulatorWorked()
		resp, err := (&http.Client{Timeout: 3 * time.Minute}).Get("http://" + address + "/" + piece)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		emulated = p.emulatorWorked() - worked
		counted, err = strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
		return err
	})
	p.t.Logf("%-5s: this machine works %.3f s, QEMU %.2f s, and the box says %.2f s", piece, native, emulated, counted)
	return emulated / native
}

// emulatorWorked is the processor time of QEMU in seconds.
func (p *provider) emulatorWorked() float64 {
	p.t.Helper()
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		p.t.Fatal(err)
	}
	machine := filepath.Join(filepath.Dir(p.disk), "machine")
	for _, path := range commands {
		words, err := os.ReadFile(path)
		program, _, _ := bytes.Cut(words, []byte{0})
		if err != nil || !bytes.Contains(words, []byte(machine)) || !strings.HasPrefix(filepath.Base(string(program)), "qemu-system") {
			continue // the machine's emulated TPM, or another's
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if err != nil {
			p.t.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		var sum float64
		for _, field := range fields[11:13] {
			ticks, err := strconv.ParseFloat(field, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			sum += ticks / 100 // a second, on every Linux
		}
		return sum
	}
	p.t.Fatalf("no process of QEMU works for %s", machine)
	return 0
}

func (i idleness) report(b *testing.B, nothing idleness) {
	b.ReportMetric(0, "ns/op") // measured above
	b.ReportMetric(i.cores, "cores_as_the_box_counts")
	b.ReportMetric(i.emulator, "cores_of_QEMU")
	for piece, factor := range i.factors {
		b.ReportMetric(factor, "factor_"+piece)
		b.ReportMetric(i.emulator/factor, "cores_by_"+piece)
	}
	b.ReportMetric(i.emulator/nothing.emulator, "×lets_nothing")
	b.ReportMetric(float64(i.used)/1e6, "MB_used")
	b.ReportMetric(float64(i.short)/1e6, "MB_not_available")
	b.ReportMetric(float64(i.used)/float64(nothing.used), "×lets_nothing_memory")
	names := slices.SortedFunc(maps.Keys(i.programs), func(a, b string) int { return cmp.Compare(i.programs[b].own, i.programs[a].own) })
	var table strings.Builder
	for _, name := range names {
		u := i.programs[name]
		fmt.Fprintf(&table, "\n%-28s %2d × %6.1f MB resident, %6.1f MB own, %.4f cores", name, u.processes, float64(u.rss)/1e6, float64(u.own)/1e6, u.cores)
	}
	for _, name := range slices.SortedFunc(maps.Keys(i.memory), func(a, b string) int { return cmp.Compare(i.memory[b], i.memory[a]) }) {
		if bytes := i.memory[name]; bytes > 1e6 && !strings.HasPrefix(name, "Direct") && !strings.HasPrefix(name, "Vmalloc") {
			fmt.Fprintf(&table, "\n%-28s %8.1f MB", name, float64(bytes)/1e6)
		}
	}
	b.Log(table.String())
}
