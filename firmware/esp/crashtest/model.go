// Package crashtest shows what a power cut leaves of an EFI system partition:
// from a recorded series of block writes it builds every state the disk can be
// in, and checks that each of them boots. It is for tests only.
//
// The disk it models writes 512-byte sectors whole. Writes that a later flush
// covers are durable; of the others any subset may be, and the last one may be
// torn at any sector. Of two writes to one sector the later one wins if both
// reached the disk. A FUA flag is not relied upon. The model knows no bit rot and
// no disk that lies about flushes.
//
// A test records an installation, by a [Recorder] or by a log of QEMU's
// blklogwrites or Linux's dm-log-writes ([ReadLog]), and has [Model.Each] call
// [Bootable] for every state.
package crashtest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
)

// SectorSize is what a disk writes whole or not at all, in bytes.
const SectorSize = 512

// Write is one write to the disk.
type Write struct {
	Offset int64  // bytes from the start of the partition; a multiple of SectorSize
	Data   []byte // whole sectors; may be empty if Flush is set
	Flush  bool   // all writes before this one are durable before this one starts
}

// Model is a disk and what was written to it.
type Model struct {
	Base    io.ReaderAt // the partition before the first write
	Writes  []Write
	Samples int    // random subsets per window between flushes, where it has more than 6 writes; default 64
	Tears   int    // positions at which a write is torn, evenly spread; default every sector
	Seed    uint64 // of the random subsets
}

// allSubsets is the number of writes in a window up to which every subset is
// tried.
const allSubsets = 6

// Each calls check for every state a power cut can leave, the one before the
// first write and the one after the last included, and stops at the first error.
// It returns how many states were checked. A state is valid during the call only.
func (m Model) Each(check func(state io.ReaderAt) error) (int, error) {
	for i, w := range m.Writes {
		if w.Offset%SectorSize != 0 || len(w.Data)%SectorSize != 0 {
			return 0, fmt.Errorf("write %d at %d: not whole sectors", i, w.Offset)
		}
	}
	e := &explorer{check: check, disk: &overlay{base: m.Base, sectors: map[int64][]byte{}}}
	e.state("before the first write")
	e.prefixes(m)
	e.disk = &overlay{base: m.Base, sectors: map[int64][]byte{}}
	start := 0
	for i, w := range m.Writes {
		if w.Flush {
			e.window(m, start, i)
			start = i
		}
	}
	e.window(m, start, len(m.Writes))
	return e.states, e.err
}

// explorer visits states and remembers the first error.
type explorer struct {
	check  func(io.ReaderAt) error
	disk   *overlay
	states int
	err    error
}

func (e *explorer) state(format string, args ...any) {
	if e.err != nil {
		return
	}
	e.states++
	if err := e.check(e.disk); err != nil {
		e.err = fmt.Errorf("power cut %s: %w", fmt.Sprintf(format, args...), err)
	}
}

// prefixes visits each number of writes that arrived in order, the last one torn
// and whole.
func (e *explorer) prefixes(m Model) {
	for i, w := range m.Writes {
		if len(w.Data) == 0 {
			continue
		}
		sectors := len(w.Data) / SectorSize
		step := 1
		if m.Tears > 0 {
			step = max(1, sectors/m.Tears)
		}
		done := 0
		for n := step; n < sectors && e.err == nil; n += step {
			e.disk.put(w.Offset+int64(done)*SectorSize, w.Data[done*SectorSize:n*SectorSize])
			done = n
			e.state("in write %d of %d, %d of %d sectors done", i+1, len(m.Writes), n, sectors)
		}
		e.disk.put(w.Offset+int64(done)*SectorSize, w.Data[done*SectorSize:])
		e.state("after write %d of %d", i+1, len(m.Writes))
	}
}

// window visits subsets of the writes from..to, which no flush separates, and
// then makes all of them durable.
func (e *explorer) window(m Model, from, to int) {
	var pending []int
	for i := from; i < to; i++ {
		if len(m.Writes[i].Data) > 0 {
			pending = append(pending, i)
		}
	}
	n := len(pending)
	visit := func(chosen func(k int) bool, tear func(k int) int) {
		if e.err != nil {
			return
		}
		var lost []int
		undo := e.disk.mark()
		for k, i := range pending {
			data := m.Writes[i].Data
			if !chosen(k) {
				lost = append(lost, i+1)
				continue
			}
			e.disk.put(m.Writes[i].Offset, data[:len(data)-tear(k)*SectorSize])
		}
		e.state("in the window of writes %d to %d, with writes %v lost", from+1, to, lost)
		undo()
	}
	whole := func(int) int { return 0 }
	switch {
	case n <= 1: // prefixes visited it
	case n <= allSubsets:
		for set := range 1 << n {
			visit(func(k int) bool { return set>>k&1 == 1 }, whole)
		}
	default:
		// A single write lost, or alone on disk, shows most mistakes: always try
		// these for a share of the writes, then subsets by chance.
		rng := rand.New(rand.NewPCG(m.Seed, uint64(from)))
		samples := m.Samples
		if samples == 0 {
			samples = 64
		}
		for s, order := 0, rng.Perm(n); s < min(n, samples); s++ {
			visit(func(k int) bool { return k != order[s] }, whole)
			visit(func(k int) bool { return k == order[s] }, whole)
		}
		for range samples {
			share := []float64{0.1, 0.5, 0.9}[rng.IntN(3)]
			keep, torn := make([]bool, n), make([]int, n)
			for k, i := range pending {
				keep[k] = rng.Float64() < share
				if sectors := len(m.Writes[i].Data) / SectorSize; rng.IntN(4) == 0 {
					torn[k] = rng.IntN(sectors)
				}
			}
			visit(func(k int) bool { return keep[k] }, func(k int) int { return torn[k] })
		}
	}
	for _, i := range pending {
		e.disk.put(m.Writes[i].Offset, m.Writes[i].Data)
	}
}

// overlay is a disk with some sectors replaced.
type overlay struct {
	base    io.ReaderAt
	sectors map[int64][]byte
	undo    []change // set while changes are to be taken back
	record  bool
}

type change struct {
	sector int64
	before []byte // nil: as in base
}

func (o *overlay) put(offset int64, data []byte) {
	for ; len(data) > 0; offset, data = offset+SectorSize, data[SectorSize:] {
		n := offset / SectorSize
		if o.record {
			o.undo = append(o.undo, change{n, o.sectors[n]})
		}
		o.sectors[n] = data[:SectorSize:SectorSize]
	}
}

// mark returns a function that takes back what is put from here on.
func (o *overlay) mark() func() {
	o.undo, o.record = o.undo[:0], true
	return func() {
		for _, c := range slices.Backward(o.undo) {
			if c.before == nil {
				delete(o.sectors, c.sector)
			} else {
				o.sectors[c.sector] = c.before
			}
		}
		o.record = false
	}
}

// ReadAt reads the disk as it is now.
func (o *overlay) ReadAt(b []byte, offset int64) (int, error) {
	n, err := o.base.ReadAt(b, offset)
	for s := offset / SectorSize; s*SectorSize < offset+int64(n); s++ {
		if sector, ok := o.sectors[s]; ok {
			at := s*SectorSize - offset
			copy(b[max(at, 0):n], sector[max(-at, 0):])
		}
	}
	return n, err
}

// Recorder is a disk in memory that remembers what is written to it. It has
// what esp.Mend asks for.
type Recorder struct {
	disk   overlay
	Writes []Write // in order
	flush  bool
}

// NewRecorder returns a Recorder whose disk begins as base.
func NewRecorder(base io.ReaderAt) *Recorder {
	return &Recorder{disk: overlay{base: base, sectors: map[int64][]byte{}}}
}

// ReadAt reads the disk as it is now.
func (r *Recorder) ReadAt(b []byte, offset int64) (int, error) { return r.disk.ReadAt(b, offset) }

// WriteAt writes whole sectors.
func (r *Recorder) WriteAt(b []byte, offset int64) (int, error) {
	if offset%SectorSize != 0 || len(b)%SectorSize != 0 {
		return 0, fmt.Errorf("write %d bytes at %d: not whole sectors", len(b), offset)
	}
	b = bytes.Clone(b)
	r.disk.put(offset, b)
	r.Writes = append(r.Writes, Write{Offset: offset, Data: b, Flush: r.flush})
	r.flush = false
	return len(b), nil
}

// Sync flushes what was written so far.
func (r *Recorder) Sync() error {
	r.flush = len(r.Writes) > 0
	return nil
}
