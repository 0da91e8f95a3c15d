// Package network joins replicas to the world and to each other, and to nothing
// else: a network namespace and a routed point-to-point link for each, one
// nftables table for all, shaping, byte counters and a name server. The machine
// has no ip, iptables or CNI; everything goes through netlink.
//
//	n, err := network.New(network.Config{Store: journal})
//	go n.Run(ctx)                                    // rules, counters, name servers
//	left, err := n.Adopt(ctx)                        // once at start: what still stands
//	err = n.SetLease(ctx, key, network.Lease{Egress: network.Full, Services: …})
//	at, err := n.Attach(ctx, id, network.Options{Down: 100_000_000, Up: 20_000_000})
//	err = n.Renew(ctx, id)                           // before each later start of the container
//	err = n.Detach(ctx, id)                          // nothing is left of it
//	err = n.GuardFetchers(ctx)                       // before the box downloads what a tenant names
//
// # What a replica can do
//
// It reaches public addresses through the uplink (class [Full]), replicas of its
// own lease on the ports exposed to its service, and the name server at the
// host's end of its link. It does not reach the box, other leases, the owner's
// network (whatever its addresses), metadata services, mail servers, or any
// address that is not public; it sends from no address but its own. What is
// refused is dropped without an answer and counted by reason ([Network.Denied]).
// A lease that [Network.SetLease] has not described reaches nothing. ICMP errors
// that a replica sends are dropped as well: they could be about connections of
// others. A port that nobody listens on is so seen by TCP, but not by UDP.
//
// The box reaches every replica: agent/ingress dials [lease.Attachment.Address].
// Nobody on the owner's network does.
//
// # What the box downloads for tenants
//
// Programs in the cgroups [Config.Fetchers] (containerd, whose registries and
// layers tenants name) connect to public addresses only, besides the box's name
// servers and what [Network.SetAllowed] names; anything else is refused with an
// error at once. The kernel knows a socket by the
// group in which it was made: such a program enters its group before it opens one,
// and a group made anew is guarded from the next [Network.GuardFetchers] or
// [Config.Check] on.
//
// # What it does not do
//
// It does not say which replicas run, closes no lease, keeps no log, reads no
// payload but names asked of its name server. It guards leases from the box and
// the box from leases; the box's own ports towards the owner's network are not
// its matter. It does not know the public address under which the owner's router
// is seen; who learns it says so with [Network.SetBlocked].
//
// # What it promises
//
// The table is complete before the first link exists, it is replaced in one
// transaction, and it is compared with what it should be every [Config.Check];
// whoever changes it is reported and overruled. Forwarding is switched on only
// after the table stands. Names, addresses and numbers from tenants are bounded.
//
// # What survives what
//
//	agent restart or crash   Links, rules, shaping and connections stay as they are.
//	                         Names are not answered while Run is not running.
//	crash in Attach, Detach  The record is written first and deleted last: Adopt
//	                         removes what is incomplete; repeating the call completes it.
//	power cut, reboot        Namespaces are gone; Adopt drops their records. Counters
//	                         lose what flowed since the last save (Config.Save,
//	                         one minute), never more, and count nothing twice.
//	full or read-only disk   Attach, SetLease, SetBlocked and Detach refuse and say so, what runs
//	                         goes on; counters go on in memory.
//	wrong clock              Nothing here reads the clock but to wait.
//	dead network             The uplink sets become empty: egress is dropped until a
//	                         default route is back; leases stay.
//	flushed rules            Until the next check nothing is filtered and, with the
//	                         masquerade gone as well, little is answered; then the
//	                         table is back and the replicas' connections are judged anew.
package network

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	croft "github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network/firewall"
)

// Bounds on what tenants and callers can make this package hold.
const (
	maxReach      = 8192   // permissions of all leases: elements of the set "reach"
	maxBlocked    = 256    // prefixes given to SetBlocked
	minRate       = 64_000 // bits a second: below, a full burst would take minutes to pass
	maxRate       = 100e9  // bits a second: above any uplink
	defaultCheck  = 15 * time.Second
	defaultSave   = time.Minute
	settle        = 300 * time.Millisecond // after a change of addresses, before it is read: they come in bursts
	defaultDir    = "/run/croft/netns"
	defaultFlows  = 2048 // connections of a replica at once: conntrack holds 262,144 on a box of 4 GB
	defaultNew    = 50   // new connections a second: a busy crawler; a scan of a /16 would take 20 minutes
	defaultBurst  = 500
	defaultGuard  = 56  // bits: what providers delegate to a household
	deniedAlarm   = 200 // denied packets between two checks that are worth an event
	storeReplica  = "network/replica/"
	storeLease    = "network/lease/"
	storeBytes    = "network/bytes/"
	storeBlocked  = "network/blocked"
	containerLink = "eth0"
	hostLink6     = "fe80::1"
)

// Store keeps this package's records: agent/journal.
type Store interface {
	Get(key string, into any) (bool, error)
	Put(key string, value any) error
	Delete(key string) error
	Keys(prefix string) []string
}

// EventKind names an [Event]; it is a journal's kind.
type EventKind string

// The kinds of events.
const (
	RulesRestored EventKind = "network_rules_restored" // somebody had changed the table
	UplinkChanged EventKind = "network_uplink_changed" // default routes or the owner's prefixes differ
	DeniedMuch    EventKind = "network_denied"         // a replica tries what it may not, again and again
)

// Event is something that the owner or the fleet may want to know.
type Event struct {
	Kind    EventKind       `json:"-"`
	Note    string          `json:"note"`              // a sentence
	Replica lease.ReplicaID `json:"replica,omitzero"`  // DeniedMuch: who
	Denied  *Denied         `json:"denied,omitempty"`  // DeniedMuch: packets since the last check
	Uplinks []string        `json:"uplinks,omitempty"` // UplinkChanged: interfaces with a default route
}

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Store      Store            // required
	Dir        string           // folder of the namespaces' files, on a tmpfs; default /run/croft/netns
	Sys        string           // root of the kernel's settings; default /proc/sys
	ResolvConf string           // where the box's own name servers stand; default /etc/resolv.conf
	Pools4     []netip.Prefix   // private IPv4 prefixes for links, /29 or shorter; the first that the owner's network does not overlap is used; default 10.88.0.0/16, 172.29.0.0/16, 192.168.224.0/19
	Pool6      netip.Prefix     // local IPv6 prefix for links, /64 to /120; default fd43:726f:6674::/64
	Uplinks    []string         // interfaces that lead to the internet; default: those with a default route
	GuardBits6 int              // the owner's IPv6 network is taken to be this long; default 56
	Flows      int              // connections a replica may have at once; default 2048
	NewFlows   int              // connections to the internet a replica may open a second; default 50
	NewBurst   int              // and at once; default 500
	Check      time.Duration    // between two comparisons of the table with what it should be; default 15 s
	Save       time.Duration    // between two saves of the counters; default 1 min
	Cgroups    string           // where cgroup v2 is mounted; default /sys/fs/cgroup
	Fetchers   []string         // cgroups, by path below Cgroups, whose programs reach public addresses only; default none
	Allowed    []netip.AddrPort // what they may reach by TCP all the same: the operator's mirrors; default none; see SetAllowed
	Report     func(Event)      // must not block; default: dropped
	Log        *slog.Logger     // default: discard
}

// What agent/network/firewall calls the same.
type (
	// Egress is what of the internet a lease reaches.
	Egress = firewall.Egress
	// Port is a port of a service and who may use it.
	Port = firewall.Port
	// Service is one service of a lease.
	Service = firewall.Service
	// Lease says what the replicas of a lease may do.
	Lease = firewall.Lease
	// Denied counts packets that were dropped, by reason.
	Denied = firewall.Denied
)

// The classes of egress.
const (
	None = firewall.None // nothing; names of the internet are not resolved either
	Full = firewall.Full // every public address
)

// Options are a replica's own.
type Options struct {
	Down int64 // bits a second towards the replica; 0: not shaped
	Up   int64 // bits a second from the replica; 0: not shaped
}

// replica is the record of an attached replica; it is written before anything
// is made and deleted after everything is gone.
type replica struct {
	ID       lease.ReplicaID `json:"id"`
	Link     string          `json:"link"`     // host end
	Address4 netip.Addr      `json:"address4"` // of the replica; the host end is one less
	Address6 netip.Addr      `json:"address6"`
	Identity string          `json:"identity"` // hardware address of the host end: a new link has a new one
	Down     int64           `json:"down"`
	Up       int64           `json:"up"`
	Ready    bool            `json:"ready"` // was made completely once; the container's end is not touched again but by Renew
}

func (r replica) host4() netip.Addr { return r.Address4.Prev() }
func (r replica) host6() netip.Addr { return r.Address6.Prev() }

// Network is made by [New] and works while [Network.Run] does. All methods may
// be called from any goroutine.
type Network struct {
	cfg   Config
	log   *slog.Logger
	fault func(step string) error // tests: ends a change in the middle

	turn       sync.Mutex        // held by whoever changes the kernel or the store
	loaded     bool              // guarded by turn; the store has been read
	cursor4    uint64            // guarded by turn; where the search for a free address begins
	cursor6    uint64            // guarded by turn
	installed  *firewall.Ruleset // guarded by turn; what the kernel was given last; nil: unknown
	standing   bool              // guarded by turn; the table stood once: if it does not, somebody was here
	newlyLocal []netip.Prefix    // guarded by turn; became the owner's; connections there are still to be ended
	uplinkNews bool              // guarded by turn; a change is still to be reported

	mu       sync.Mutex              // never held while waiting for anything
	leases   map[lease.Key]Lease     // guarded by mu; written with turn held
	replicas map[string]replica      // guarded by mu; by container; written with turn held
	meters   map[lease.Key]*meter    // guarded by mu
	denied   map[string]*deniedMeter // guarded by mu; by link
	uplink   firewall.Uplinks        // guarded by mu; written with turn held
	blocked  []netip.Prefix          // guarded by mu; written with turn held
	fetch    firewall.Fetch          // guarded by mu; written with turn held
	servers  map[string]*nameServer  // guarded by turn; by container
	serving  bool                    // guarded by turn; Run is running: names are served
	resolver *resolver
}

var (
	linkEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)
	keyForm      = regexp.MustCompile(`^l[0-9a-v]{10}$`)
)

// linkName is the host end's name: "lv" and 65 bits of the container's hash, 15
// characters, which is all that an interface name can have.
func linkName(container string) string {
	sum := sha256.Sum256([]byte(container))
	return firewall.LinkPrefix + strings.ToLower(linkEncoding.EncodeToString(sum[:])[:13])
}

// New checks cfg. It touches neither the kernel nor the store.
func New(cfg Config) (*Network, error) {
	if cfg.Store == nil {
		return nil, errors.New("network store is missing")
	}
	cfg.Dir = cmp.Or(cfg.Dir, defaultDir)
	cfg.Sys = cmp.Or(cfg.Sys, "/proc/sys")
	cfg.ResolvConf = cmp.Or(cfg.ResolvConf, "/etc/resolv.conf")
	if len(cfg.Pools4) == 0 {
		cfg.Pools4 = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("172.29.0.0/16"), netip.MustParsePrefix("192.168.224.0/19")}
	}
	if !cfg.Pool6.IsValid() {
		cfg.Pool6 = netip.MustParsePrefix("fd43:726f:6674::/64")
	}
	cfg.Pools4, cfg.Uplinks = slices.Clone(cfg.Pools4), slices.Clone(cfg.Uplinks)
	for _, p := range cfg.Pools4 {
		if err := checkPool4(p); err != nil {
			return nil, err
		}
	}
	if err := checkPool6(cfg.Pool6); err != nil {
		return nil, err
	}
	cfg.Cgroups = cmp.Or(cfg.Cgroups, "/sys/fs/cgroup")
	cfg.Fetchers = slices.Clone(cfg.Fetchers)
	fetch := firewall.Fetch{Allowed: slices.Clone(cfg.Allowed)}
	if err := checkAllowed(fetch.Allowed); err != nil {
		return nil, err
	}
	for _, path := range cfg.Fetchers {
		level, err := levelOf(cfg.Cgroups, path)
		if err != nil {
			return nil, err
		}
		fetch.Levels = append(fetch.Levels, level)
	}
	slices.Sort(fetch.Levels)
	fetch.Levels = slices.Compact(fetch.Levels)
	cfg.GuardBits6 = cmp.Or(cfg.GuardBits6, defaultGuard)
	cfg.Flows, cfg.NewFlows, cfg.NewBurst = cmp.Or(cfg.Flows, defaultFlows), cmp.Or(cfg.NewFlows, defaultNew), cmp.Or(cfg.NewBurst, defaultBurst)
	cfg.Check, cfg.Save = cmp.Or(cfg.Check, defaultCheck), cmp.Or(cfg.Save, defaultSave)
	if cfg.GuardBits6 < 16 || cfg.GuardBits6 > 64 {
		return nil, fmt.Errorf("guard of %d bits: want 16 to 64", cfg.GuardBits6)
	}
	if cfg.Flows < 1 || cfg.NewFlows < 1 || cfg.NewBurst < 1 || cfg.Check < 0 || cfg.Save < 0 {
		return nil, errors.New("network limits must be positive")
	}
	if cfg.Report == nil {
		cfg.Report = func(Event) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Network{
		cfg: cfg, log: cfg.Log,
		// A random start, so that a restart does not give a new tenant the address
		// that an old one's peers still remember.
		cursor4: rand.Uint64(), cursor6: rand.Uint64(),
		leases: map[lease.Key]Lease{}, replicas: map[string]replica{}, meters: map[lease.Key]*meter{},
		denied: map[string]*deniedMeter{}, servers: map[string]*nameServer{}, fetch: fetch,
	}
	n.resolver = newResolver(cfg.ResolvConf, n.forbidden)
	return n, nil
}

// Run loads the records, installs the table, serves names, follows the uplink
// and saves counters until ctx is done. It returns an error if the table cannot
// be installed at all; it may be called again.
func (n *Network) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	changed := make(chan struct{}, 1)
	defer func() {
		stop()
		watching.Wait()
		n.turn.Lock()
		defer n.turn.Unlock()
		n.serving = false
		n.stopServersTurned()
		if n.loaded {
			if err := n.saveTurned(); err != nil {
				n.log.Warn("byte counters not saved", "error", err)
			}
		}
	}()
	watching.Go(func() { n.watchUplink(ctx, changed) })

	n.turn.Lock()
	err := n.checkTurned()
	if err == nil {
		n.serving = true
		n.startServersTurned()
	}
	n.turn.Unlock()
	if err != nil {
		return fmt.Errorf("install network rules: %w", err)
	}

	check, save := time.NewTicker(n.cfg.Check), time.NewTicker(n.cfg.Save)
	defer check.Stop()
	defer save.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			select { // changes come in bursts
			case <-ctx.Done():
				return nil
			case <-time.After(settle):
			}
			if err := n.inTurn(n.checkTurned); err != nil {
				n.log.Warn("uplink not followed", "error", err)
			}
		case <-check.C:
			if err := n.inTurn(n.checkTurned); err != nil {
				n.log.Warn("network rules not checked", "error", err)
			}
			if err := n.inTurn(n.readDeniedTurned); err != nil {
				n.log.Warn("denied packets not read", "error", err)
			}
			n.turn.Lock()
			n.startServersTurned()
			n.turn.Unlock()
		case <-save.C:
			if err := n.inTurn(n.saveTurned); err != nil {
				n.log.Warn("byte counters not saved", "error", err)
			}
		}
	}
}

func (n *Network) inTurn(do func() error) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	return do()
}

// loadTurned reads the store once.
func (n *Network) loadTurned() error {
	if n.loaded {
		return nil
	}
	replicas, leases, meters := map[string]replica{}, map[lease.Key]Lease{}, map[lease.Key]*meter{}
	for _, key := range n.cfg.Store.Keys(storeReplica) {
		var r replica
		if _, err := n.cfg.Store.Get(key, &r); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		replicas[strings.TrimPrefix(key, storeReplica)] = r
	}
	for _, key := range n.cfg.Store.Keys(storeLease) {
		var l Lease
		if _, err := n.cfg.Store.Get(key, &l); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		leases[lease.Key(strings.TrimPrefix(key, storeLease))] = l
	}
	for _, key := range n.cfg.Store.Keys(storeBytes) {
		m := new(meter)
		if _, err := n.cfg.Store.Get(key, &m.saved); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		m.now = m.saved.clone()
		meters[lease.Key(strings.TrimPrefix(key, storeBytes))] = m
	}
	var blocked []netip.Prefix
	if _, err := n.cfg.Store.Get(storeBlocked, &blocked); err != nil {
		return fmt.Errorf("read %s: %w", storeBlocked, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replicas, n.leases, n.meters, n.blocked, n.loaded = replicas, leases, meters, blocked, true
	return nil
}

// checkTurned makes kernel and table what they should be. Connections are ended
// after the rules that forbid them stand: a packet between the two would only
// open them again.
func (n *Network) checkTurned() error {
	if err := n.loadTurned(); err != nil {
		return err
	}
	if err := n.followUplinkTurned(); err != nil {
		return err
	}
	if err := n.followFetchersTurned(); err != nil {
		n.log.Debug("downloads are not guarded yet", "error", err)
	}
	if err := n.ensureRulesTurned(true); err != nil {
		return err
	}
	if added := n.newlyLocal; len(added) > 0 {
		// What is the owner's now was the internet's before.
		if err := forgetFlows(func(f flow) bool { return n.inPools(f.Src) && firewall.Contains(added, f.Dst) }); err != nil {
			return err
		}
		n.newlyLocal = nil
	}
	if n.uplinkNews {
		n.uplinkNews = false
		n.mu.Lock()
		names := n.uplink.Interfaces()
		n.mu.Unlock()
		n.cfg.Report(Event{Kind: UplinkChanged, Note: "The box's way to the internet changed; tenants' rules follow.", Uplinks: names})
	}
	return nil
}

// followUplinkTurned reads routes and addresses of the box.
func (n *Network) followUplinkTurned() error {
	up, err := readUplinks(n.cfg.Uplinks, n.cfg.GuardBits6)
	if err != nil {
		return fmt.Errorf("read uplinks: %w", err)
	}
	n.mu.Lock()
	old := n.uplink
	n.uplink = up
	n.mu.Unlock()
	if old.Known && !old.Equal(up) {
		n.newlyLocal = append(n.newlyLocal, firewall.Subtract(up.Local, old.Local)...)
		n.uplinkNews = true
	}
	return nil
}

// ensureRulesTurned brings the table up to date. With look, it reads it from
// the kernel first and overrules whoever changed it.
func (n *Network) ensureRulesTurned(look bool) error {
	want := n.wantedTurned()
	if look {
		same, err := firewall.SameStructure(want)
		if err != nil {
			return fmt.Errorf("read rules: %w", err)
		}
		changed := false
		if same {
			changed, err = firewall.Sync(want, nil)
		} else {
			err = firewall.Replace(want)
		}
		if err != nil {
			n.installed = nil
			return fmt.Errorf("restore rules: %w", err)
		}
		ours := n.installed == nil || !n.installed.Equal(want) // sets were to change anyway
		tampered := n.standing && (!same || changed && !ours)
		n.installed, n.standing = want, true
		if tampered {
			// What was opened while less was filtered is judged again.
			if err := forgetFlows(func(f flow) bool { return n.inPools(f.Src) }); err != nil {
				n.log.Warn("connections not closed", "error", err)
			}
			n.cfg.Report(Event{Kind: RulesRestored, Note: "The network rules had been changed by somebody else and were restored."})
		}
		return n.settingsTurned()
	}
	if n.installed == nil {
		return n.ensureRulesTurned(true)
	}
	if n.installed.Equal(want) {
		return nil
	}
	if _, err := firewall.Sync(want, n.installed); err != nil {
		// Somebody else was here: look.
		return n.ensureRulesTurned(true)
	}
	n.installed = want
	return nil
}

// wantedTurned is the table as it should be now.
func (n *Network) wantedTurned() *firewall.Ruleset {
	n.mu.Lock()
	defer n.mu.Unlock()
	replicas := make([]firewall.Replica, 0, len(n.replicas))
	for _, r := range n.replicas {
		replicas = append(replicas, firewall.Replica{Lease: string(r.ID.Lease), Service: r.ID.Service, Link: r.Link, Address4: r.Address4, Address6: r.Address6})
	}
	leases := make(map[string]Lease, len(n.leases))
	for key, l := range n.leases {
		leases[string(key)] = l
	}
	return firewall.Build(firewall.Limits{Flows: n.cfg.Flows, NewFlows: n.cfg.NewFlows, NewBurst: n.cfg.NewBurst},
		n.uplink, n.blocked, n.fetch, leases, replicas)
}

func (n *Network) inPools(a netip.Addr) bool {
	return n.cfg.Pool6.Contains(a) || firewall.Contains(n.cfg.Pools4, a)
}

// forbidden says whether tenants must not reach a; names must not lead there.
func (n *Network) forbidden(a netip.Addr) bool {
	a = a.Unmap()
	n.mu.Lock()
	defer n.mu.Unlock()
	return !firewall.IsPublic(a) || firewall.Contains(n.uplink.Local, a) || firewall.Contains(n.blocked, a)
}

// SetBlocked adds prefixes that no lease may reach, in place of the last ones:
// the public address of the owner's router. It is kept across restarts.
func (n *Network) SetBlocked(ctx context.Context, prefixes []netip.Prefix) error {
	if len(prefixes) > maxBlocked {
		return fmt.Errorf("block %d prefixes: more than %d", len(prefixes), maxBlocked)
	}
	clean := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() || p.Bits() == 0 {
			return fmt.Errorf("block %v: not a network", p)
		}
		clean = append(clean, p.Masked())
	}
	return n.change(ctx, func() error {
		var err error
		if len(clean) == 0 {
			err = n.cfg.Store.Delete(storeBlocked)
		} else {
			err = n.cfg.Store.Put(storeBlocked, clean)
		}
		if err != nil {
			return fmt.Errorf("block prefixes: %w", err)
		}
		n.mu.Lock()
		added := firewall.Subtract(clean, n.blocked)
		n.blocked = clean
		n.mu.Unlock()
		if err := n.ensureRulesTurned(false); err != nil {
			return fmt.Errorf("block prefixes: %w", err)
		}
		if len(added) == 0 {
			return nil
		}
		return forgetFlows(func(f flow) bool { return n.inPools(f.Src) && firewall.Contains(added, f.Dst) })
	})
}

// change runs one change of kernel and store, with the records loaded and the
// table in place.
func (n *Network) change(ctx context.Context, do func() error) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.loadTurned(); err != nil {
		return err
	}
	if n.installed == nil {
		if err := n.checkTurned(); err != nil {
			return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("install network rules: %w", err), Remedy: "load the kernel modules nf_tables, nft_ct, nft_masq, nft_chain_nat, nft_limit, nft_connlimit, nft_socket and nft_reject_inet"}
		}
	}
	return do()
}

// SetLease says what the replicas of a lease may do, in place of what was said
// before; connections that are no longer allowed end. It is kept across
// restarts, until [Network.Forget].
func (n *Network) SetLease(ctx context.Context, key lease.Key, l Lease) error {
	if !keyForm.MatchString(string(key)) {
		return fmt.Errorf("set network of lease %q: not a lease key", key)
	}
	if err := firewall.Check(l); err != nil {
		return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("set network of lease %s: %w", key, err)}
	}
	return n.change(ctx, func() error {
		n.mu.Lock()
		old, had := n.leases[key]
		next := maps.Clone(n.leases)
		n.mu.Unlock()
		if had && firewall.SameLease(old, l) {
			return nil
		}
		next[key] = l
		c := 0
		for _, l := range next {
			c += l.Permissions()
		}
		if c > maxReach {
			return &croft.Error{Kind: croft.KindNoSpace, Err: fmt.Errorf("set network of lease %s: %d permissions on this box, more than %d", key, c, maxReach), Remedy: "expose fewer ports"}
		}
		if err := n.cfg.Store.Put(storeLease+string(key), l); err != nil {
			return fmt.Errorf("set network of lease %s: %w", key, err)
		}
		n.mu.Lock()
		n.leases[key] = l
		n.mu.Unlock()
		if err := n.ensureRulesTurned(false); err != nil {
			return fmt.Errorf("set network of lease %s: %w", key, err)
		}
		if !had {
			return nil
		}
		egress := (old.Egress == Full && l.Egress != Full) || (old.Mail && !l.Mail)
		inside := !firewall.SamePorts(old, l)
		if !egress && !inside {
			return nil
		}
		return forgetFlows(func(f flow) bool {
			return n.ownedBy(f.Src, key) && (inside && n.inPools(f.Dst) || egress && !n.inPools(f.Dst))
		})
	})
}

// ownedBy says whether a is the address of a replica of the lease.
func (n *Network) ownedBy(a netip.Addr, key lease.Key) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.replicas {
		if r.ID.Lease == key && (r.Address4 == a || r.Address6 == a) {
			return true
		}
	}
	return false
}

// Forget drops what is kept about a lease that has ended: its description and
// its counters. It refuses while replicas of it are attached.
func (n *Network) Forget(ctx context.Context, key lease.Key) error {
	return n.change(ctx, func() error {
		n.mu.Lock()
		for _, r := range n.replicas {
			if r.ID.Lease == key {
				n.mu.Unlock()
				return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("forget network of lease %s: replica %s is attached", key, r.ID.Pod()), Remedy: "detach it first"}
			}
		}
		n.mu.Unlock()
		for _, prefix := range []string{storeLease, storeBytes} {
			if err := n.cfg.Store.Delete(prefix + string(key)); err != nil {
				return fmt.Errorf("forget network of lease %s: %w", key, err)
			}
		}
		n.mu.Lock()
		delete(n.leases, key)
		delete(n.meters, key)
		n.mu.Unlock()
		return n.ensureRulesTurned(false)
	})
}

// Replicas are the attached replicas, by pod name. Before Run, Adopt or another
// change has read the records there are none.
func (n *Network) Replicas() []lease.ReplicaID {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make([]lease.ReplicaID, 0, len(n.replicas))
	for _, r := range n.replicas {
		ids = append(ids, r.ID)
	}
	slices.SortFunc(ids, func(a, b lease.ReplicaID) int {
		return cmp.Or(cmp.Compare(a.Lease, b.Lease), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Index, b.Index))
	})
	return ids
}

// Attach gives a replica its namespace and link, shaped by o. Repeated, it
// repairs the host's end and the shaping and leaves the container's end alone,
// so that a running replica is not disturbed.
func (n *Network) Attach(ctx context.Context, id lease.ReplicaID, o Options) (lease.Attachment, error) {
	for _, rate := range []int64{o.Down, o.Up} {
		if rate != 0 && (rate < minRate || rate > maxRate) {
			return lease.Attachment{}, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("attach %s: rate %d bit/s is not between %d and %d", id.Pod(), rate, int64(minRate), int64(maxRate))}
		}
	}
	if !keyForm.MatchString(string(id.Lease)) || !firewall.IsService(id.Service) || id.Index < 0 {
		return lease.Attachment{}, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("attach %q of lease %q: not a replica", id.Pod(), id.Lease)}
	}
	var at lease.Attachment
	err := n.change(ctx, func() error {
		r, err := n.recordTurned(id, o)
		if err != nil {
			return err
		}
		at = n.attachment(r)
		return n.buildTurned(r, !r.Ready)
	})
	if err != nil {
		return lease.Attachment{}, fmt.Errorf("attach %s of lease %s: %w", id.Pod(), id.Lease, err)
	}
	return at, nil
}

func (n *Network) attachment(r replica) lease.Attachment {
	return lease.Attachment{NetNS: n.namespacePath(r.ID), Address: netip.PrefixFrom(r.Address4, linkBits4), Gateway: r.host4()}
}

func (n *Network) namespacePath(id lease.ReplicaID) string {
	return filepath.Join(n.cfg.Dir, id.Container())
}

// recordTurned finds the replica's record or writes a new one.
func (n *Network) recordTurned(id lease.ReplicaID, o Options) (replica, error) {
	container := id.Container()
	n.mu.Lock()
	r, known := n.replicas[container]
	all := slices.Collect(maps.Values(n.replicas))
	local := n.uplink.Local
	n.mu.Unlock()
	if known && r.Down == o.Down && r.Up == o.Up {
		return r, nil
	}
	if !known {
		if len(all) >= firewall.MaxReplicas {
			return replica{}, &croft.Error{Kind: croft.KindNoSpace, Err: fmt.Errorf("this box has %d replicas", len(all)), Remedy: "close a lease"}
		}
		r = replica{ID: id, Link: linkName(container), Identity: newIdentity()}
		taken := map[netip.Addr]bool{}
		for _, other := range all {
			if other.Link == r.Link {
				return replica{}, fmt.Errorf("link %s is that of %s", r.Link, other.ID.Container())
			}
			taken[other.Address4], taken[other.Address6] = true, true
		}
		var err error
		if r.Address4, n.cursor4, err = freeAddress4(n.cfg.Pools4, local, taken, n.cursor4); err != nil {
			return replica{}, err
		}
		if r.Address6, n.cursor6, err = freeAddress6(n.cfg.Pool6, taken, n.cursor6); err != nil {
			return replica{}, err
		}
	}
	r.Down, r.Up = o.Down, o.Up
	return r, n.putTurned(r)
}

func (n *Network) putTurned(r replica) error {
	if err := n.cfg.Store.Put(storeReplica+r.ID.Container(), r); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replicas[r.ID.Container()] = r
	return nil
}

func (n *Network) step(name string) error {
	if n.fault == nil {
		return nil
	}
	return n.fault(name)
}

// buildTurned makes everything that the record says. The rules come first: a
// link without its addresses in the sets can send nothing.
func (n *Network) buildTurned(r replica, inner bool) error {
	if err := n.step("record"); err != nil {
		return err
	}
	if err := n.ensureRulesTurned(false); err != nil {
		return err
	}
	if err := n.step("rules"); err != nil {
		return err
	}
	made, err := makeNamespace(n.cfg.Sys, n.namespacePath(r.ID))
	if err != nil {
		return err
	}
	if err := n.step("namespace"); err != nil {
		return err
	}
	identity, made2, err := makeLink(r, n.namespacePath(r.ID))
	if err != nil {
		return err
	}
	if err := n.step("link"); err != nil {
		return err
	}
	if identity != r.Identity {
		r.Identity = identity
		if err := n.putTurned(r); err != nil {
			return err
		}
	}
	if err := configureHostEnd(n.cfg.Sys, r); err != nil {
		return err
	}
	if err := n.step("host end"); err != nil {
		return err
	}
	if err := configureContainerEnd(n.cfg.Sys, r, n.namespacePath(r.ID), inner || made || made2); err != nil {
		return err
	}
	if err := n.step("container end"); err != nil {
		return err
	}
	if !r.Ready {
		r.Ready = true
		if err := n.putTurned(r); err != nil {
			return err
		}
	}
	n.startServerTurned(r)
	return nil
}

// Renew gives the container's end its addresses and routes again: gVisor takes
// them off. It is called before every start of the replica's container but the
// first, and never while it runs.
func (n *Network) Renew(ctx context.Context, id lease.ReplicaID) error {
	return n.change(ctx, func() error {
		n.mu.Lock()
		r, known := n.replicas[id.Container()]
		n.mu.Unlock()
		if !known {
			return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("renew network of %s: it is not attached", id.Pod())}
		}
		if err := n.buildTurned(r, true); err != nil {
			return fmt.Errorf("renew network of %s: %w", id.Pod(), err)
		}
		return nil
	})
}

// Detach removes all that Attach made. A replica that is not attached is fine.
func (n *Network) Detach(ctx context.Context, id lease.ReplicaID) error {
	return n.change(ctx, func() error {
		n.mu.Lock()
		r, known := n.replicas[id.Container()]
		n.mu.Unlock()
		if !known {
			return nil
		}
		if err := n.removeTurned(r); err != nil {
			return fmt.Errorf("detach %s of lease %s: %w", id.Pod(), id.Lease, err)
		}
		return nil
	})
}

// removeTurned: nothing flows any more, what flowed is saved, then everything
// goes, the record last.
func (n *Network) removeTurned(r replica) error {
	container := r.ID.Container()
	n.stopServerTurned(container)
	if err := stopLink(r.Link); err != nil {
		return err
	}
	if err := n.step("stopped"); err != nil {
		return err
	}
	n.meterLink(r)
	if err := n.saveLeaseTurned(r.ID.Lease); err != nil {
		return err
	}
	if err := n.step("saved"); err != nil {
		return err
	}
	if err := removeLink(r.Link); err != nil {
		return err
	}
	if err := n.step("link removed"); err != nil {
		return err
	}
	if err := removeNamespace(n.namespacePath(r.ID)); err != nil {
		return err
	}
	if err := n.step("namespace removed"); err != nil {
		return err
	}
	// The next owner of these addresses must not inherit their connections.
	if err := forgetFlows(func(f flow) bool {
		return f.Src == r.Address4 || f.Src == r.Address6 || f.Dst == r.Address4 || f.Dst == r.Address6
	}); err != nil {
		return err
	}
	if err := n.cfg.Store.Delete(storeReplica + container); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.replicas, container)
	delete(n.denied, r.Link)
	if m := n.meters[r.ID.Lease]; m != nil {
		m.drop(r.Identity)
	}
	n.mu.Unlock()
	if err := n.ensureRulesTurned(false); err != nil {
		return err
	}
	return firewall.DropLink(r.Link)
}

// Adopt compares the records with the kernel, at the start of the agent: what
// is complete stays untouched and is returned, by pod name; all else of ours is
// removed, also links and namespaces without a record.
func (n *Network) Adopt(ctx context.Context) ([]lease.ReplicaID, error) {
	err := n.change(ctx, func() error {
		n.mu.Lock()
		all := slices.Collect(maps.Values(n.replicas))
		n.mu.Unlock()
		links, files := map[string]bool{}, map[string]bool{}
		for _, r := range all {
			if r.Ready && n.stands(r) {
				links[r.Link], files[r.ID.Container()] = true, true
				if err := configureHostEnd(n.cfg.Sys, r); err != nil {
					return fmt.Errorf("adopt %s: %w", r.ID.Pod(), err)
				}
				n.startServerTurned(r)
				continue
			}
			if err := n.removeTurned(r); err != nil {
				return fmt.Errorf("remove rest of %s: %w", r.ID.Pod(), err)
			}
		}
		return removeOthers(n.cfg.Dir, links, files)
	})
	if err != nil {
		return nil, fmt.Errorf("adopt replicas' networks: %w", err)
	}
	return n.Replicas(), nil
}

func (n *Network) stands(r replica) bool {
	return isNamespace(n.namespacePath(r.ID)) && linkStands(r, n.namespacePath(r.ID))
}

// Modules are the kernel modules this package needs, in an order in which they
// can be loaded, beside what they depend on: the box has no modprobe that the
// kernel could ask. Debian builds all of them as modules.
func Modules() []string {
	return append([]string{
		"veth",    // links
		"sch_tbf", // shaping
	}, firewall.Modules()...)
}
