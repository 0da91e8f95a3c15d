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
	// Load returns what was put and is not gone, in any order.
	Load() ([]Allocation, error)
	// Save removes the allocations of the same Device and Port as those in gone,
	// and then adds those in put or replaces their likes.
	Save(put, gone []Allocation) error
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

func (a Allocation) owner() owner { return owner{a.Device, a.Port} }

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
	who, where := a.owner(), external{a.Port.Proto, a.External}
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

// find lists what fits, the one first that was not used for longest.
func (b *book) find(fits func(Allocation) bool) []Allocation {
	var found []Allocation
	for _, a := range b.all {
		if fits(*a) {
			found = append(found, *a)
		}
	}
	slices.SortFunc(found, func(x, y Allocation) int { return x.Used.Compare(y.Used) })
	return found
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
		f.all[a.owner()] = a
	}
	return list, nil
}

// Save writes the file anew.
func (f *FileStore) Save(put, gone []Allocation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = make(map[owner]Allocation)
	}
	for _, a := range gone {
		delete(f.all, a.owner())
	}
	for _, a := range put {
		f.all[a.owner()] = a
	}
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
