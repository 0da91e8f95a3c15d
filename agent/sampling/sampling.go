// Package sampling reads what the box can tell about itself: processors, memory,
// disks, heat, links, clock, leases, earnings, GPUs and the agent's own needs.
//
//	s, err := sampling.New(sampling.Config{Leases: leases, GPUs: gpus})
//	readings, at := s.Read(ctx) // each minute or faster
//	for _, m := range s.Misses() { … }
//
// Which readings there are, with label, unit and source, [Table] says; READINGS.md
// is the same table for people. The package sends nothing, keeps nothing on disk
// and judges nothing: a hot box is the fleet's finding. agent/uplink carries the
// readings to the fleet.
//
// # What it promises
//
// Nothing fails as a whole. What the machine does not have is not among the
// readings; what it has and does not give (an I/O error, nonsense, no answer in
// time) is left out and counted, in the reading croft_agent_readings_missed_total
// and in words in [Sampler.Misses]. No reading is ever made up, and zero means zero.
//
// Read returns within Config.Patience. Readings are taken in groups, each on its own:
// a disk or sensor that hangs takes only its group along, and that group is not asked
// again until the hanging call has come back.
//
// Counters are passed on as they are. One that falls (a device came again, an energy
// counter wrapped, the agent started anew) is the business of who computes rates.
//
// The labels of a sensor stay the same over reboots as long as the hardware does: they
// are made from the chip's name, its device and the sensor's own label, never from the
// number the kernel gave it. Bytes that name things are reduced to a small alphabet and
// length, and how many readings a group may have is bounded.
//
// # What survives what
//
// Nothing is kept but the counts of what was missed, from start to end of the process.
//
// # What it leaves out
//
// SMART of disks needs commands to the drive; only what the kernel shows of a drive's
// health in files is read. Panics end the boot and are found by the next. File systems
// that are mounted for a moment (the EFI partition) are not looked at unless
// Config.Mounts says so: asking could make their unmounting fail.
package sampling

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Root     string                // where /proc and /sys lie; default "/"
	Mounts   []string              // mount points whose space is read, while they are mounted; default /perm
	Patience time.Duration         // how long a Read waits for hardware, leases, earnings and GPUs; default 2 s
	Leases   Leases                // default: no readings of leases
	Earnings Earnings              // default: no readings of what is earned
	GPUs     GPUs                  // default: no readings of GPUs
	Clock    func() (Clock, error) // who knows about the clock; default [KernelClock]
}

// Sampler reads the box. Its methods may be called at the same time.
type Sampler struct {
	cfg    Config
	groups []*group
	statfs func(path string, st *unix.Statfs_t) error

	turn chan struct{} // holds one token; who has it reads, and may touch groups

	mu     sync.Mutex
	misses map[string]*Miss // by group; guarded by mu
}

// group is readings that are taken together, and are late together.
type group struct {
	name string
	read func(*pass)
	buf  []byte        // for what read reads; belongs to the running read
	done chan struct{} // closed when the last read has ended; nil before the first
}

// Miss says how often readings of a group were missed since the start, and why last.
type Miss struct {
	Group string
	Count uint64
	Last  string    // the reason, in words
	At    time.Time // when that was
}

var errBusy = errors.New("the hardware has not answered yet")

// New makes a Sampler. It reads nothing yet.
func New(cfg Config) (*Sampler, error) {
	cfg.Root = cmp.Or(cfg.Root, "/")
	cfg.Patience = cmp.Or(cfg.Patience, 2*time.Second)
	if cfg.Patience < 0 {
		return nil, fmt.Errorf("patience is %v", cfg.Patience)
	}
	if cfg.Mounts == nil {
		cfg.Mounts = []string{"/perm"}
	}
	for _, m := range cfg.Mounts {
		if !filepath.IsAbs(m) || len(m) > maxLabel || strings.ContainsFunc(m, func(r rune) bool { return r <= ' ' || r == '\\' || r > '~' }) {
			return nil, fmt.Errorf("mount point %q is not a plain absolute path", m)
		}
	}
	if cfg.Clock == nil {
		cfg.Clock = KernelClock
	}
	s := &Sampler{cfg: cfg, statfs: unix.Statfs, turn: make(chan struct{}, 1), misses: map[string]*Miss{}}
	for _, g := range []struct {
		name string
		read func(*pass)
	}{
		{"cpu", readCPU},
		{"frequency", readFrequency},
		{"throttle", readThrottle},
		{"pressure", readPressure},
		{"memory", readMemory},
		{"kernel", readKernel},
		{"filesystem", s.readMounts},
		{"disk", readDisks},
		{"sensor", readSensors},
		{"energy", readEnergy},
		{"network", readNetwork},
		{"clock", s.readClock},
		{"lease", s.readLeases},
		{"earning", s.readEarnings},
		{"gpu", s.readGPUs},
		{"agent", readAgent},
	} {
		s.groups = append(s.groups, &group{name: g.name, read: g.read})
	}
	return s, nil
}

// Read returns what the box can tell now, always in the same order, and the instant at
// which it began to ask. If ctx ends early the readings that are there are returned. Of
// two calls at the same time one waits for the other.
func (s *Sampler) Read(ctx context.Context) ([]fleetapi.Reading, time.Time) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	at := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()

	// A read that hangs outlives this call; the next call waits for it.
	passes := make([]*pass, len(s.groups))
	for i, g := range s.groups {
		if g.running() {
			continue
		}
		p := &pass{ctx: ctx, files: files{root: s.cfg.Root, buf: g.buf}}
		passes[i], g.done = p, make(chan struct{})
		go func() {
			defer close(g.done)
			g.read(p)
		}()
	}
	var readings []fleetapi.Reading
	for i, g := range s.groups {
		p := passes[i]
		if p != nil {
			select {
			case <-g.done:
			case <-ctx.Done():
			}
		}
		if p == nil || g.running() {
			s.miss(g.name, at, 1, errBusy)
			continue
		}
		g.buf = p.buf
		readings = append(readings, p.readings...)
		if p.missed > 0 {
			s.miss(g.name, at, p.missed, p.reason)
		}
	}
	for _, m := range s.Misses() {
		readings = append(readings, readingsMissed.reading(float64(m.Count), m.Group))
	}
	return readings, at
}

func (g *group) running() bool {
	if g.done == nil {
		return false
	}
	select {
	case <-g.done:
		return false
	default:
		return true
	}
}

func (s *Sampler) miss(group string, at time.Time, n uint64, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.misses[group]
	if m == nil {
		m = &Miss{Group: group}
		s.misses[group] = m
	}
	m.Count += n
	m.Last, m.At = why.Error(), at
}

// Misses returns the groups of which readings were missed, in the order in which they
// are read.
func (s *Sampler) Misses() []Miss {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Miss
	for _, g := range s.groups {
		if m := s.misses[g.name]; m != nil {
			list = append(list, *m)
		}
	}
	return list
}

// BootID returns the kernel's random name of this boot.
func (s *Sampler) BootID() (string, error) {
	f := files{root: s.cfg.Root}
	text, err := f.read("proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot's id: %w", err)
	}
	id := strings.TrimSpace(text)
	if len(id) != 36 || strings.Trim(id, "0123456789abcdef-") != "" {
		return "", fmt.Errorf("the boot's id is %.64q", id)
	}
	return id, nil
}

// Bounds of what is read: more than any box has.
const (
	maxReadings = 2048 // of a group
	maxLabel    = 64   // bytes of a label's value
)

// pass is one reading of one group.
type pass struct {
	ctx context.Context // of the Read this belongs to
	files
	readings []fleetapi.Reading
	told     map[series]bool // what is among them
	missed   uint64
	reason   error // why the last was missed
}

// series is a metric and the values of its labels, of which none has more than two.
type series struct {
	metric        metric
	first, second string
}

// add adds a reading, unless it is none.
func (p *pass) add(m metric, value float64, labels ...string) {
	key := series{metric: m}
	if len(labels) > 0 {
		key.first = labels[0]
	}
	if len(labels) > 1 {
		key.second = labels[1]
	}
	switch {
	case math.IsNaN(value), math.IsInf(value, 0), table[m].Counter && value < 0:
		p.miss(table[m].Name, fmt.Errorf("value is %v", value))
	case p.told[key]:
		p.miss(table[m].Name, fmt.Errorf("it is told twice for %q", labels))
	case len(p.readings) == maxReadings:
		p.miss(table[m].Name, errors.New("there are too many readings"))
	default:
		if p.told == nil {
			p.told = map[series]bool{}
		}
		p.told[key] = true
		p.readings = append(p.readings, m.reading(value, labels...))
	}
}

// miss counts a reading that is left out.
func (p *pass) miss(what string, err error) {
	p.missed++
	p.reason = fmt.Errorf("read %s: %w", what, err)
}
