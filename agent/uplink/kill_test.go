package uplink

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// victim is what a process that will be killed needs to know.
type victim struct {
	Dir, Key, Root, Fleet string
	From                  int // number of its first event
}

const victimEnv = "CROFT_UPLINK_VICTIM"

func TestMain(m *testing.M) {
	if raw := os.Getenv(victimEnv); raw != "" {
		fmt.Println("end", live([]byte(raw)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// live is a victim's life: it notes events, tells which are safe, and does jobs.
func live(raw []byte) error {
	var v victim
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(v.Key))
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return err
	}
	roots, err := enroll.ParseRoots([]byte(v.Root))
	if err != nil {
		return err
	}
	j, err := journal.Open(journal.Config{Path: filepath.Join(v.Dir, "journal")})
	if err != nil {
		return err
	}
	u, err := New(Config{
		Dir: filepath.Join(v.Dir, "uplink"), Journal: j, Key: key, Fleet: v.Fleet, Roots: roots, Clock: known,
		BootID: testBoot, Board: "uefi-x86", Release: "1.0.0", Slot: croft.SlotA,
		Handlers: map[fleetapi.JobKind]Handler{"benchmark": {Run: func(_ context.Context, job fleetapi.Job) (Result, error) {
			f, err := os.OpenFile(filepath.Join(v.Dir, "done"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return Result{}, err
			}
			defer f.Close()
			_, err = f.WriteString(job.ID + "\n")
			return Result{Detail: "Done."}, err
		}}},
	})
	if err != nil {
		return err
	}
	u.pauses, u.enrolment.pauses = hurry(), hurry()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- u.Run(ctx) }()
	for n := v.From; ; n++ {
		at, synced := u.stamp()
		fmt.Println("try", n)
		u.record(event{at: at, synced: synced, kind: "tick", severity: fleetapi.SeverityError, fields: map[string]string{"n": strconv.Itoa(n)}})
		fmt.Println("safe", n)
		if n == v.From+40 { // enough of one life; the broker may want to be killed alone
			return <-ended
		}
	}
}

// TestKillsLoseAndDoubleNothing kills box and broker between any two steps and
// looks at what the fleet has in the end, if it drops numbers that it knows.
func TestKillsLoseAndDoubleNothing(t *testing.T) { killMany(t, 40) }

func killMany(t *testing.T, kills int) {
	f := newFleet(t)
	dir, key := t.TempDir(), newKey(t)
	der, err := x509.MarshalECPrivateKey(key)
	check(t, err)
	v := victim{
		Dir: dir, Key: string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
		Root: string(f.authority.RootCertificate()), Fleet: f.url,
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) // of this goroutine
	fate := rand.New(rand.NewPCG(seed, 1))   // guarded by dice
	dice := make(chan struct{}, 1)           // held by who throws
	f.broker.mu.Lock()
	f.broker.fate = func() bool {
		dice <- struct{}{}
		defer func() { <-dice }()
		return fate.IntN(50) == 0
	}
	f.broker.mu.Unlock()

	safe := make(map[int]bool)
	var boxKills int
	for boxKills+f.broker.killCount() < kills {
		f.broker.mu.Lock()
		f.broker.down = append(f.broker.down, &fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: "benchmark"})
		if n := len(f.broker.down); n > 4 {
			f.broker.down = f.broker.down[n-4:]
		}
		f.broker.mu.Unlock()
		v.From += 1000
		lines := 1 + random.IntN(80)
		sessions := random.IntN(3)
		life(t, v, safe, func(line int) bool { return line >= lines && f.broker.sessions() >= sessions })
		boxKills++
	}

	// A last life in peace: all must arrive.
	f.broker.mu.Lock()
	f.broker.fate = nil
	f.broker.mu.Unlock()
	v.From += 1000
	life(t, v, safe, func(line int) bool {
		if line < 80 {
			return false
		}
		f.broker.until(func([]message) bool {
			seen := arrivals(t, f.broker)
			for n := range safe {
				if seen[n] == 0 {
					return false
				}
			}
			return true
		})
		return true
	})
	for n, times := range arrivals(t, f.broker) {
		if times > 1 {
			t.Errorf("event %d has %d numbers", n, times)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "done"))
	check(t, err)
	ran := strings.Fields(string(raw))
	slices.Sort(ran)
	if once := slices.Compact(slices.Clone(ran)); len(once) != len(ran) {
		t.Errorf("of %d jobs, %d ran again", len(once), len(ran)-len(once))
	}
	statuses := jobStatuses(f.broker)
	t.Logf("%d kills of the box, %d of the broker; %d events safe, %d messages, %d jobs ran, %d jobs told of", boxKills, f.broker.killCount(), len(safe), len(f.broker.messages()), len(ran), len(statuses))
	for _, id := range ran {
		final := 0
		for _, state := range statuses[id] {
			if state.Final() {
				final++
			}
		}
		if final != 1 {
			t.Errorf("job %s ended %d times: %v", id, final, statuses[id])
		}
	}
}

// killCount is how often the broker was killed.
func (b *broker) killCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kills
}

func (b *broker) sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// arrivals counts under how many numbers each event arrived.
func arrivals(t *testing.T, b *broker) map[int]int {
	origins := make(map[fleetapi.Origin]int)
	seen := make(map[int]int)
	for _, m := range b.messages() {
		e, ok := m.payload.(*fleetapi.Event)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(fleetapi.LabelValue(e.Fields, "n"))
		check(t, err)
		was, known := origins[e.Origin]
		if known && was != n {
			t.Errorf("number %+v is of events %d and %d", e.Origin, was, n)
		}
		if !known {
			origins[e.Origin] = n
			seen[n]++
		}
	}
	return seen
}

// jobStatuses is which states of each job arrived, under different numbers.
func jobStatuses(b *broker) map[string][]fleetapi.JobState {
	origins := make(map[fleetapi.Origin]bool)
	type version struct {
		job string
		n   uint64
	}
	versions := make(map[version]fleetapi.JobState)
	for _, m := range b.messages() {
		if s, ok := m.payload.(*fleetapi.JobStatus); ok && !origins[s.Origin] {
			origins[s.Origin] = true
			versions[version{s.Job, s.Version}] = s.State
		}
	}
	states := make(map[string][]fleetapi.JobState)
	for _, v := range slices.SortedFunc(maps.Keys(versions), func(a, b version) int { return int(a.n) - int(b.n) }) {
		states[v.job] = append(states[v.job], versions[v])
	}
	return states
}

// life runs a victim until kill wants it dead, which is asked after each of its
// lines.
func life(t *testing.T, v victim, safe map[int]bool, kill func(line int) bool) {
	t.Helper()
	raw, err := json.Marshal(v)
	check(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), victimEnv+"="+string(raw))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(out)
	line := 0
	for killed := false; lines.Scan(); line++ {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(rest)
		switch {
		case word == "end" || err != nil:
			t.Fatalf("victim says %q", lines.Text())
		case word == "safe":
			safe[n] = true
		}
		if !killed && (kill(line) || line >= 81) {
			killed = true
			check(t, cmd.Process.Kill())
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("victim ended by itself")
	}
}
