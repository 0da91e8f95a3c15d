// Package ownerpage is the face of the box: what its owner sees without an app.
//
// It says the same thing in three places: a page in the home network ([Server],
// found by the name that [MDNS] announces), the screen on the HDMI port
// ([Screen]) and the serial port ([TextScreen]). All four are workers, made with
// New… and run with Run; they read a [Status] from a [Source] and share one set
// of words.
//
// Whoever can see the box may claim it from anywhere. So the claim code is on the
// screen and the serial port, and never on the page or in its JSON: a guest's
// phone or a hacked television can read those. A box that has a fleet and no owner
// has three words on its page, for who has neither screen nor sticker; the fleet
// takes them from the home network alone, and not often. That is as much as the
// network is trusted with: once a box has an owner, nothing on the page can change
// that. For the same reason the page says what the box does and earns as a provider
// ([letting.Report]), but nothing of who its tenants are and what they run.
//
// The package decides nothing and stores nothing: there is nothing to survive a
// crash. It takes no commands either; the page only answers GET and HEAD.
package ownerpage

import (
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
	"github.com/croft-cloud/croft/provisioning/claim"
)

// Status is all that an owner is told, at one instant. The receiver may keep it
// but must not change what its slices hold. Logging it shows no secret.
type Status struct {
	Name      string         // name of the box in the home network, e.g. "croft-k7qm"
	DeviceID  croft.DeviceID // for support; empty until the key is made
	Addresses []string       // URLs of the page, best first: the .local name, then IP addresses; empty without network
	Version   croft.Version  // release that runs
	Slot      croft.Slot     // slot that runs
	State     State          // empty is [Starting]

	// Problems are what the owner or support should know or do, the worst
	// first: each one sentence in plain words, ending with what to do. A
	// missing network is not among them, the package says that itself.
	Problems []string

	Claim   claim.Code // code to claim the box with; empty when there is nothing to claim
	ClaimAt string     // URL of the page where the code is typed, without the code; empty if not known

	Network    Network       // empty is [NoAddress]
	Uptime     time.Duration // since power-on
	Storage    string        // one sentence on /perm, e.g. "The storage works."; may be empty
	LastUpdate string        // one sentence on the newest update; empty if there was none

	MemoryUsed  int64 // bytes, page cache excluded
	MemoryTotal int64 // bytes; 0 if not known
	DiskUsed    int64 // bytes of /perm
	DiskTotal   int64 // bytes; 0 if not known

	Fleet *Fleet // how the box stands with who looks after it; nil: nobody does
	Here  bool   // somebody looks for this very box

	Hosting *letting.Report // what the box does and earns as a provider; nil: it is none yet

	// AgentMemory is the agent's resident set in bytes; 0 if not known. It is
	// for support: only /status.json has it.
	AgentMemory int64
}

// Fleet is how the box stands with its fleet.
type Fleet struct {
	Connected bool
	Problem   string // one sentence on why it is not; may be empty
	Owned     bool   // the box has an owner; who that is the page does not say
	Name      string // that the owner gave the box; may be empty
	Words     Words  // to claim it with; empty if it has an owner
}

// Words are three words with dashes between, with which a box can be claimed from
// its home network. Printing or logging them hides them; [Words.Shown] lets them
// out.
type Words string

// Shown is the words as on the page.
func (w Words) Shown() string { return string(w) }

// String hides the words.
func (w Words) String() string {
	if w == "" {
		return ""
	}
	return "[claim words]"
}

// GoString hides them from %#v.
func (w Words) GoString() string { return w.String() }

// MarshalText hides them from JSON and logs.
func (w Words) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// State is how the box is, in one word.
type State string

// The states.
const (
	Starting  State = "starting"        // health checks still run
	Trial     State = "trial"           // health checks of a new version run; it may be given up
	Healthy   State = "healthy"         // all checks passed
	Attention State = "needs_attention" // something keeps the box from its work
)

// Network is how far the box's way into the home network reaches.
type Network string

// The states of the network.
const (
	Unplugged Network = "unplugged"  // no cable, or the other end is off
	NoAddress Network = "no_address" // the cable is in, the router gave no address
	Online    Network = "online"     // there is an address
)

// Source is where the workers read the status. Its methods may be called by
// many goroutines at once.
type Source interface {
	// Status is the newest status.
	Status() Status
	// Changed is closed when a status newer than the newest at the time of
	// this call exists. Call it before Status, so that no change is missed.
	Changed() <-chan struct{}
}

// Slate is a [Source] that remembers what was last written on it.
// Make one with [NewSlate].
type Slate struct {
	live func(*Status)

	mu      sync.Mutex
	status  Status        // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced at each change
}

// NewSlate makes a slate. If live is not nil, it is called on every reading to
// bring fast-moving figures (uptime, memory, disk) up to date; such a movement
// is no change. It may be called by many goroutines at once.
func NewSlate(first Status, live func(*Status)) *Slate {
	if live == nil {
		live = func(*Status) {}
	}
	return &Slate{live: live, status: first, changed: make(chan struct{})}
}

// Update lets change alter the status, and wakes the readers if it did. change
// must be quick and must not call the slate. It replaces slices, Fleet and
// Hosting, rather than writing into them.
func (s *Slate) Update(change func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.status
	change(&s.status)
	if !same(before, s.status) {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// Status implements [Source].
func (s *Slate) Status() Status {
	s.mu.Lock()
	status := s.status
	s.mu.Unlock()
	s.live(&status)
	return status
}

// Changed implements [Source].
func (s *Slate) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// same reports whether a and b tell the owner the same, figures that move all
// the time left out.
func same(a, b Status) bool {
	return a.Name == b.Name && a.DeviceID == b.DeviceID && slices.Equal(a.Addresses, b.Addresses) &&
		a.Version == b.Version && a.Slot == b.Slot && a.State == b.State &&
		slices.Equal(a.Problems, b.Problems) && a.Claim == b.Claim && a.ClaimAt == b.ClaimAt &&
		a.Network == b.Network && a.Storage == b.Storage && a.LastUpdate == b.LastUpdate && a.Here == b.Here &&
		reflect.DeepEqual(a.Fleet, b.Fleet) &&
		reflect.DeepEqual(a.Hosting, b.Hosting)
}
