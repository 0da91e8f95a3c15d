package relay

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/relay/wire"
)

// PortRange is which external ports a server gives out, both ends included.
type PortRange struct{ First, Last uint16 }

func (r PortRange) size() int {
	if r.First == 0 || r.Last < r.First {
		return 0
	}
	return int(r.Last) - int(r.First) + 1
}

// Allocation is an external port that belongs to a box.
type Allocation struct {
	Device   croft.DeviceID `json:"device"`
	Port     wire.Port      `json:"for"`
	External uint16         `json:"port"`
	Used     time.Time      `json:"used"` // when the box last asked for it, to the day
}

// Store keeps allocations over a server's restarts. A server calls one method
// at a time. An error costs memory of a port, never a user.
type Store interface {
	// Load returns what was put and not deleted, in any order.
	Load() ([]Allocation, error)
	// Put adds an allocation, or replaces the one of the same Device and Port.
	Put(Allocation) error
	// Delete removes the allocation of the same Device and Port, if there is one.
	Delete(Allocation) error
}

// book is which external ports belong to whom. It does no I/O.
type book struct {
	ports PortRange
	all   map[owner]*Allocation
	taken map[external]owner
}

type owner struct {
	device croft.DeviceID
	port   wire.Port
}

type external struct {
	proto wire.Proto
	port  uint16
}

func newBook(ports PortRange, known []Allocation) *book {
	b := &book{ports: ports, all: make(map[owner]*Allocation), taken: make(map[external]owner)}
	for _, a := range known {
		// What does not fit any more, or is there twice, is given anew.
		if a.External >= ports.First && a.External <= ports.Last && a.Port.Check() == nil && ports.size() > 0 {
			b.enter(a)
		}
	}
	return b
}

func (b *book) enter(a Allocation) bool {
	who, where := owner{a.Device, a.Port}, external{a.Port.Proto, a.External}
	if _, ok := b.taken[where]; ok {
		return false
	}
	if _, ok := b.all[who]; ok {
		return false
	}
	b.all[who], b.taken[where] = &a, who
	return true
}

func (b *book) remove(who owner) {
	if a, ok := b.all[who]; ok {
		delete(b.taken, external{who.port.Proto, a.External})
		delete(b.all, who)
	}
}

// candidates yields free ports for a new owner, the likeliest first: it follows
// from the names alone, so that a relay that lost its store gives most boxes
// what they had.
func (b *book) candidates(who owner) func(yield func(uint16) bool) {
	return func(yield func(uint16) bool) {
		n := b.ports.size()
		if n == 0 {
			return
		}
		h := fnv.New64a()
		h.Write([]byte(string(who.device) + "\n" + string(who.port.Proto) + "\n" + who.port.Key))
		start := int(h.Sum64() % uint64(n))
		for i := range n {
			port := b.ports.First + uint16((start+i)%n)
			if _, ok := b.taken[external{who.port.Proto, port}]; !ok && !yield(port) {
				return
			}
		}
	}
}

// count is how many ports a device has.
func (b *book) count(device croft.DeviceID) int {
	n := 0
	for who := range b.all {
		if who.device == device {
			n++
		}
	}
	return n
}

// forgettable lists what was not used since then, the oldest first.
func (b *book) forgettable(since time.Time, held func(owner) bool) []owner {
	var old []owner
	for who, a := range b.all {
		if a.Used.Before(since) && !held(who) {
			old = append(old, who)
		}
	}
	slices.SortFunc(old, func(x, y owner) int { return b.all[x].Used.Compare(b.all[y].Used) })
	return old
}

// FileStore keeps allocations in one file, which it replaces as a whole: right
// for thousands of them. Its methods may be called from any goroutine.
type FileStore struct {
	path string

	mu  sync.Mutex
	all map[owner]Allocation // guarded by mu; nil before Load
}

// NewFileStore is the store in the file at path, whose folder exists.
func NewFileStore(path string) *FileStore { return &FileStore{path: path} }

// maxStore is far above 131,070 allocations, all that ports can make.
const maxStore = 64 << 20

// Load reads the file. There being none is no error.
func (f *FileStore) Load() ([]Allocation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = make(map[owner]Allocation)
	info, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("load ports: %w", err)
	case info.Size() > maxStore:
		return nil, fmt.Errorf("load ports: %s has %d bytes, want at most %d", f.path, info.Size(), maxStore)
	}
	raw, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("load ports: %w", err)
	}
	var list []Allocation
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("load ports from %s: %w", f.path, err)
	}
	for _, a := range list {
		f.all[owner{a.Device, a.Port}] = a
	}
	return list, nil
}

// Put adds or replaces an allocation.
func (f *FileStore) Put(a Allocation) error {
	return f.change(func() { f.all[owner{a.Device, a.Port}] = a })
}

// Delete removes an allocation.
func (f *FileStore) Delete(a Allocation) error {
	return f.change(func() { delete(f.all, owner{a.Device, a.Port}) })
}

func (f *FileStore) change(do func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = make(map[owner]Allocation)
	}
	do()
	list := make([]Allocation, 0, len(f.all))
	for _, a := range f.all {
		list = append(list, a)
	}
	slices.SortFunc(list, func(x, y Allocation) int {
		return cmp.Or(strings.Compare(string(x.Device), string(y.Device)),
			strings.Compare(string(x.Port.Proto), string(y.Port.Proto)), strings.Compare(x.Port.Key, y.Port.Key))
	})
	raw, err := json.MarshalIndent(list, "", "\t")
	if err != nil {
		return fmt.Errorf("save ports: %w", err)
	}
	if err := atomicfile.WriteFile(f.path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("save ports: %w", err)
	}
	return nil
}
