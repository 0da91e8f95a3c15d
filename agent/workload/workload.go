// Package workload runs what tenants sent for their leases: it checks a
// manifest against the chain, keeps it, and sees to it that its replicas run,
// answer, are started again, are replaced by an update, and leave nothing
// behind when the lease is closed.
//
//	w, err := workload.New(workload.Config{Runtime: sandbox, Network: network, …})
//	go w.Run(ctx)                                // moves everything towards its manifest
//	err = w.Accept(ctx, tenant, dseq, body)      // the gateway's PUT manifest
//	table, changed := w.Routes()                 // for the ingress
//	err = w.Close(ctx, leaseID)                  // when the chain says it is closed
//	err = w.Sweep(ctx, active)                   // when the chain was read anew
//
// It does not bid or settle, speak HTTP, or end a lease by itself: a lease whose
// manifest never comes or never runs stays until Close; Hopeless lists those that
// nothing but a change by somebody can help. It makes no containers, disks or
// addresses; what does is passed in (Runtime, Images, Disks, Network).
//
// Each lease has one goroutine that compares what should be with what is and
// starts or stops replicas; each replica has one that carries it from state to
// state. What should be is in the manifest's file and the journal before
// anything is done about it; what is, is asked of the runtime, never remembered.
// All effects may be repeated: whoever is in the middle of one when the power
// goes repeats it afterwards.
//
// It promises, at every moment: two replicas never have one persistent volume or GPU;
// the replicas of a lease have no more memory (ram volumes included) and GPUs
// than was leased, but for what [Lender] lent for an update; during an update
// the old replicas serve until the new ones answer, unless there is no room for
// both, which an event says; replicas of services that an update does not
// change are left alone; credentials are in memory and in the manifest's file
// (mode 0600), never in logs, events or errors.
//
// A replica answers once a TCP connection to one of its exposed ports was
// accepted, or, if it exposes none, after it ran for ten seconds. An OCI image
// is resolved once for a lease: the same name in a later manifest is the same
// image as long as any service of the lease uses it.
//
// What survives what:
//
//   - this process is killed: replicas run on; the next Run finds and adopts
//     them, and finishes whatever was begun: an update, a close, a restart.
//   - containerd is killed: replicas run on; what cannot be asked is asked again.
//   - power cut: every manifest that was accepted runs again, from the image by
//     its digest if the runtime still has it; volumes are kept, what a replica
//     wrote elsewhere is not. The newest events may be lost; numbers of events
//     are not used twice.
//   - full or read-only /perm: new manifests are refused; what runs, runs on;
//     leases are closed all the same; events are kept in memory only.
//   - wrong clock: times of events are wrong, nothing else.
//   - dead network: running replicas run on, pulls are repeated with growing
//     pauses.
//   - a manifest's file is lost or damaged: the lease waits for its tenant to
//     send the manifest again, and what runs is left alone until then.
package workload

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Leases is what the chain says; agent/bidding knows it.
type Leases interface {
	// LeasesOf lists the active leases of a tenant's deployment with this
	// provider, the hash of the deployment's present manifest, and all of its
	// groups, that of gseq 1 first. No lease is no error.
	LeasesOf(ctx context.Context, tenant account.Address, dseq uint64) (active []akash.LeaseID, hash []byte, groups []*deploymentv1beta4.GroupSpec, err error)
}

// Runtime runs containers. Its methods are called from many goroutines, for one
// replica from one at a time. A call that hangs, here and below, holds up the
// lease it is about, its end included; List all of them.
type Runtime interface {
	// Start makes and starts a container. One that runs under this ID is left
	// alone; one that ended makes way.
	Start(ctx context.Context, c lease.Container) error
	// Stop ends a container after at most grace and removes it. There being
	// none is no error.
	Stop(ctx context.Context, id lease.ReplicaID, grace time.Duration) error
	// List is every container there is, also ended ones: nil for one that runs.
	List(ctx context.Context) (map[lease.ReplicaID]*lease.Exit, error)
	// NextExit waits for the end of any container. It may tell one twice or, if
	// the runtime was away, not at all: List is asked every minute anyway.
	NextExit(ctx context.Context) (lease.ReplicaID, lease.Exit, error)
}

// Images fetches what containers are made of.
type Images interface {
	// Pull makes an image ready for the lease's containers and returns its name
	// with digest, name@sha256:…. Given such a name, it asks no registry when
	// the image is there. An error with a method Temporary() bool that says true
	// is worth a repetition soon, any other will take a change by somebody; a
	// method Word() string gives the event's reason.
	Pull(ctx context.Context, key lease.Key, image string, credentials *sdl.Credentials, limit int64, progress func(done, total int64)) (string, error)
	// Release frees all images of the lease but those named (with digest).
	Release(ctx context.Context, key lease.Key, keep ...string) error
}

// Disks holds one disk for each lease.
type Disks interface {
	// Create makes a lease's disk; one that is there already is left alone.
	Create(ctx context.Context, key lease.Key, size int64) error
	// Open mounts it, if it is not, and returns the folder.
	Open(ctx context.Context, key lease.Key) (string, error)
	// Remove unmounts and deletes it. There being none is no error.
	Remove(ctx context.Context, key lease.Key) error
	// List is every disk there is.
	List(ctx context.Context) ([]lease.Key, error)
}

// Network gives replicas addresses. The replicas of a lease reach of each other
// what SetLease says, and find each other by the names of their services.
type Network interface {
	// Attach gives a replica a link and an address. For one that has them it
	// returns the same.
	Attach(ctx context.Context, id lease.ReplicaID) (lease.Attachment, error)
	// Renew puts address and routes back that an ended sandbox took off the link.
	Renew(ctx context.Context, id lease.ReplicaID) error
	// Detach takes them away. There being none is no error.
	Detach(ctx context.Context, id lease.ReplicaID) error
	// SetLease replaces names and open ports within a lease; no peers: all of
	// the lease's are forgotten.
	SetLease(ctx context.Context, key lease.Key, peers []Peer) error
	// Attached is every replica that has a link.
	Attached(ctx context.Context) ([]lease.ReplicaID, error)
}

// Peer is one replica as the others of its lease see it.
type Peer struct {
	ID       lease.ReplicaID
	Address  netip.Addr
	Resolves bool // its service's name leads to it
	Open     []Opening
}

// Opening is a port that is open within the lease.
type Opening struct {
	Port uint16
	UDP  bool
	From string // service whose replicas may connect; empty: those of any
}

// Journal is the agent's durable memory (agent/journal).
type Journal interface {
	Get(key string, into any) (bool, error)
	Put(key string, value any) error
	Delete(key string) error
	Keys(prefix string) []string
}

// Lender lends memory that nobody leased, for as long as an update has old and
// new replicas side by side. Whoever keeps the box's capacity is it.
type Lender interface {
	// Lend makes bytes all that the lease has borrowed, 0 included, and says
	// whether it could; if not, what it had before stays lent, and giving it back
	// is tried again. Loans may be forgotten when the process ends: who still has
	// one asks for it again.
	Lend(key lease.Key, bytes int64) bool
}

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Dir     string // for manifests and events, on /perm; required, made if missing
	Leases  Leases
	Runtime Runtime
	Images  Images
	Disks   Disks
	Network Network
	Journal Journal

	Lender Lender                    // nil: nothing is lent, updates stay within what was leased
	GPUs   func(akash.LeaseID) []int // indexes of the machine's GPUs that belong to a lease; nil: none

	IngressDomain string   // automatic host names end in "." and this; empty: there are none
	ImageBytes    int64    // largest OCI image, unpacked; default 10 GiB
	PublicHost    string   // AKASH_CLUSTER_PUBLIC_HOSTNAME, where external ports are reached
	Reserved      []string // domains that no tenant may name a host in, besides the two above

	// Dial tries whether a replica accepts connections; default: a TCP dialer.
	Dial func(ctx context.Context, to netip.AddrPort) error

	Patience time.Duration // how long a manifest may be ahead of what we know of the chain; default 8 s, a block and a half
	Grace    time.Duration // between asking a container to end and ending it; default 10 s
	Log      *slog.Logger  // default: discard
}

const (
	// maxClosed is how many closed leases are remembered, against a manifest
	// that was checked just before its lease was closed.
	maxClosed = 1024
	keyPrefix = "workload/"
	// readers is how many manifests are read at once: a box has few cores and little
	// memory, and what runs needs them.
	readers = 1
	// relist is how often the runtime is asked what runs, for ends it could not
	// tell.
	relist = time.Minute
)

// Workloads is every lease's workload on this box. All methods may be called
// from any goroutine, Run once at a time.
type Workloads struct {
	cfg       Config
	log       *slog.Logger
	writeFile func(path string, data []byte, perm fs.FileMode) error

	reading    *semaphore.Weighted // by whoever reads a manifest
	turn       sync.Mutex          // held while a manifest is held against host names and stored, I/O included
	publishing sync.Mutex          // held while the table of routes is made

	wake chan struct{} // capacity 1: there may be a lease that nobody works on

	mu      sync.Mutex
	works   map[lease.Key]*work // guarded by mu
	closed  []akash.LeaseID     // guarded by mu; newest last
	strays  map[lease.Key]bool  // guarded by mu; being freed without being a workload
	table   blueprint.Table     // guarded by mu; the routes; replaced, never changed
	changed chan struct{}       // guarded by mu; closed at the next change of the routes
}

// New reads what the journal holds. It starts nothing.
func New(cfg Config) (*Workloads, error) {
	switch {
	case cfg.Dir == "":
		return nil, errors.New("workloads: folder is missing")
	case cfg.Leases == nil || cfg.Runtime == nil || cfg.Images == nil || cfg.Disks == nil || cfg.Network == nil || cfg.Journal == nil:
		return nil, errors.New("workloads: leases, runtime, images, disks, network and journal are required")
	}
	cfg.Patience = cmp.Or(cfg.Patience, 8*time.Second)
	cfg.ImageBytes = cmp.Or(cfg.ImageBytes, 10<<30)
	cfg.Grace = cmp.Or(cfg.Grace, 10*time.Second)
	cfg.Reserved = slices.Clone(cfg.Reserved)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	w := &Workloads{
		cfg:       cfg,
		log:       cfg.Log,
		writeFile: atomicfile.WriteFile,
		reading:   semaphore.NewWeighted(readers),
		wake:      make(chan struct{}, 1),
		works:     map[lease.Key]*work{},
		strays:    map[lease.Key]bool{},
		changed:   make(chan struct{}),
	}
	for _, name := range cfg.Journal.Keys(keyPrefix) {
		if err := w.load(lease.Key(strings.TrimPrefix(name, keyPrefix))); err != nil {
			w.log.Error("workload not loaded", "key", name, "err", err)
		}
	}
	return w, nil
}

func dialTCP(ctx context.Context, to netip.AddrPort) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// load makes the work of one record of the journal.
func (w *Workloads) load(key lease.Key) error {
	var rec blueprint.Record
	if _, err := w.cfg.Journal.Get(keyPrefix+string(key), &rec); err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	id, err := akash.ParseLeaseID(rec.Lease)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	if lease.KeyOf(id) != key {
		return fmt.Errorf("read journal: lease %s does not belong to %s", id, key)
	}
	l := w.newWork(id)
	l.diary = diary.Open(w.folder(key), w.log)
	l.rec = rec
	l.state = rec.State
	if rec.State != blueprint.Closing {
		if err := l.readGroups(); err != nil {
			w.log.Error("manifest is lost", "lease", id.String(), "err", err)
			l.add(lease.Warning, diary.Failed, "", "", "the stored manifest cannot be read: send it again")
			l.state, _ = l.state.Next(blueprint.Lost)
		}
	}
	w.works[key] = l
	return nil
}

func (w *Workloads) folder(key lease.Key) string { return filepath.Join(w.cfg.Dir, string(key)) }

// Run works until ctx ends. Containers are left running then.
func (w *Workloads) Run(ctx context.Context) error {
	if err := atomicfile.MkdirAll(w.cfg.Dir, 0o700); err != nil {
		// Not fatal: what runs can be kept running without it.
		w.log.Error("folder of manifests not made", "err", err)
	}
	var owned sync.WaitGroup
	defer owned.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hint := make(chan struct{}, 1)
	owned.Go(func() { w.hear(ctx, hint) })
	owned.Go(func() { w.look(ctx, hint) })
	working := map[*work]bool{}
	for {
		w.mu.Lock()
		for _, l := range w.works {
			if !working[l] {
				working[l] = true
				owned.Go(func() { l.run(ctx) })
			}
		}
		for l := range working {
			if w.works[l.key] != l {
				delete(working, l)
			}
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
	}
}

// hear passes on that some container ended.
func (w *Workloads) hear(ctx context.Context, hint chan<- struct{}) {
	var pause blueprint.Pause
	for ctx.Err() == nil {
		if _, _, err := w.cfg.Runtime.NextExit(ctx); err != nil {
			sleep(ctx, pause.Next())
		} else {
			pause.Reset()
		}
		poke(hint)
	}
}

// look asks the runtime what runs, at every hint and every minute, and tells
// the replicas. An end is acted upon only when List says so: a told one may be
// that of an earlier container of the same name.
func (w *Workloads) look(ctx context.Context, hint <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hint:
		case <-time.After(relist):
		}
		asked := map[*replica]int{} // which of its containers we ask about
		w.mu.Lock()
		works := slices.Collect(maps.Values(w.works))
		w.mu.Unlock()
		for _, l := range works {
			l.mu.Lock()
			for _, r := range l.replicas {
				if r.state == blueprint.Running || r.state == blueprint.Answering {
					asked[r] = r.starts
				}
			}
			l.mu.Unlock()
		}
		if len(asked) == 0 {
			continue
		}
		found, err := w.cfg.Runtime.List(ctx)
		if err != nil {
			w.log.Warn("runtime does not say what runs", "err", err)
			continue // hear's next attempt, or the next minute
		}
		for r, starts := range asked {
			exit, there := found[r.id]
			switch {
			case !there:
				r.tell(end{starts: starts, vanished: true})
			case exit != nil:
				r.tell(end{starts: starts, exit: *exit})
			}
		}
	}
}

// Close frees all that belongs to a lease, for good. It returns when that is
// done or ctx ends; the work goes on in Run, also after a crash. Closing what
// is not there is no error.
func (w *Workloads) Close(ctx context.Context, id akash.LeaseID) error {
	w.turn.Lock()
	w.mu.Lock()
	if !slices.Contains(w.closed, id) {
		w.closed = append(w.closed, id)
		w.closed = slices.Delete(w.closed, 0, max(0, len(w.closed)-maxClosed))
	}
	l := w.works[lease.KeyOf(id)]
	w.mu.Unlock()
	w.turn.Unlock()
	if l == nil || l.id != id {
		return nil
	}
	l.close()
	select {
	case <-l.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close workload of lease %s: %w", id, ctx.Err())
	}
}

// Sweep frees everything on the box that belongs to none of the leases that
// are active on the confirmed chain: workloads whose lease was closed unseen,
// and containers, links, disks and images of leases that the journal does not
// know. A lease that Leases knows as active is kept besides: it may be younger
// than the list.
func (w *Workloads) Sweep(ctx context.Context, active []akash.LeaseID) error {
	keep := map[lease.Key]bool{}
	for _, id := range active {
		keep[lease.KeyOf(id)] = true
	}
	w.mu.Lock()
	known := maps.Clone(w.works)
	w.mu.Unlock()
	strays, err := w.keys(ctx)
	var each errgroup.Group // one may take long
	for key, l := range known {
		if !keep[key] {
			each.Go(func() error { return w.closeUnlessActive(ctx, l.id) })
		}
		keep[key] = true
	}
	for key := range strays {
		if !keep[key] {
			each.Go(func() error { return w.freeStray(ctx, key) })
		}
	}
	return errors.Join(err, each.Wait())
}

// keys are the leases that there is anything of on the box.
func (w *Workloads) keys(ctx context.Context) (map[lease.Key]bool, error) {
	keys := map[lease.Key]bool{}
	containers, links, err := w.there(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, id := range slices.AppendSeq(links, maps.Keys(containers)) {
		keys[id.Lease] = true
	}
	disks, err := w.cfg.Disks.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	for _, key := range disks {
		keys[key] = true
	}
	for _, name := range w.cfg.Journal.Keys(keyPrefix) { // also damaged records
		keys[lease.Key(strings.TrimPrefix(name, keyPrefix))] = true
	}
	folders, err := os.ReadDir(w.cfg.Dir) // also of a manifest whose record was never written
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list manifests: %w", err)
	}
	for _, f := range folders {
		keys[lease.Key(f.Name())] = true
	}
	delete(keys, "") // would name all
	return keys, nil
}

func (w *Workloads) closeUnlessActive(ctx context.Context, id akash.LeaseID) error {
	active, _, _, err := w.cfg.Leases.LeasesOf(ctx, id.Owner, id.DSeq)
	switch {
	case err != nil:
		return fmt.Errorf("look up lease %s: %w", id, err)
	case slices.Contains(active, id):
		return nil
	}
	return w.Close(ctx, id)
}

// freeStray frees what no workload of ours has. A manifest that comes meanwhile
// is refused.
func (w *Workloads) freeStray(ctx context.Context, key lease.Key) error {
	w.turn.Lock() // none is being stored
	w.mu.Lock()
	busy := w.works[key] != nil || w.strays[key]
	if !busy {
		w.strays[key] = true
	}
	w.mu.Unlock()
	w.turn.Unlock()
	if busy {
		return nil
	}
	err := w.free(ctx, key)
	if err == nil {
		err = w.cfg.Journal.Delete(keyPrefix + string(key))
	}
	w.mu.Lock()
	delete(w.strays, key)
	w.mu.Unlock()
	return err
}

// there is what runs, or ran, and what is linked under a lease's key; an empty
// key means all. It has the containers also when links could not be listed.
func (w *Workloads) there(ctx context.Context, key lease.Key) (map[lease.ReplicaID]*lease.Exit, []lease.ReplicaID, error) {
	containers, err := w.cfg.Runtime.List(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list containers: %w", err)
	}
	other := func(id lease.ReplicaID) bool { return key != "" && id.Lease != key }
	maps.DeleteFunc(containers, func(id lease.ReplicaID, _ *lease.Exit) bool { return other(id) })
	links, err := w.cfg.Network.Attached(ctx)
	if err != nil {
		return containers, nil, fmt.Errorf("list links: %w", err)
	}
	return containers, slices.DeleteFunc(links, other), nil
}

// free takes from the box all that carries the lease's key, but its record in
// the journal. It may be repeated.
func (w *Workloads) free(ctx context.Context, key lease.Key) error {
	containers, links, unlisted := w.there(ctx, key)
	var stops sync.WaitGroup // each may take all of its grace
	errs := make([]error, len(containers))
	for i, id := range slices.Collect(maps.Keys(containers)) {
		stops.Go(func() {
			if err := w.cfg.Runtime.Stop(ctx, id, w.cfg.Grace); err != nil {
				errs[i] = fmt.Errorf("stop %s: %w", id.Pod(), err)
			}
		})
	}
	stops.Wait()
	if err := errors.Join(append(errs, unlisted)...); err != nil {
		return err
	}
	for _, id := range links {
		if err := w.cfg.Network.Detach(ctx, id); err != nil {
			return fmt.Errorf("detach %s: %w", id.Pod(), err)
		}
	}
	if err := w.cfg.Network.SetLease(ctx, key, nil); err != nil {
		return fmt.Errorf("forget rules: %w", err)
	}
	// A start that was broken off by the end of an earlier agent may have gone
	// on behind its back.
	containers, _, err := w.there(ctx, key)
	if err != nil {
		return err
	}
	for id := range containers {
		return fmt.Errorf("container of %s is there again", id.Pod())
	}
	if err := w.cfg.Images.Release(ctx, key); err != nil {
		return fmt.Errorf("release images: %w", err)
	}
	if err := w.cfg.Disks.Remove(ctx, key); err != nil {
		return fmt.Errorf("remove disk: %w", err)
	}
	if w.cfg.Lender != nil && !w.cfg.Lender.Lend(key, 0) {
		return errors.New("give back memory: the lender refused")
	}
	if err := os.RemoveAll(w.folder(key)); err != nil {
		return fmt.Errorf("remove files: %w", err)
	}
	return nil
}

// Held lists the leases that have something on this box, closing ones
// included.
func (w *Workloads) Held() []akash.LeaseID {
	w.mu.Lock()
	defer w.mu.Unlock()
	ids := make([]akash.LeaseID, 0, len(w.works))
	for _, l := range w.works {
		ids = append(ids, l.id)
	}
	slices.SortFunc(ids, func(a, b akash.LeaseID) int { return strings.Compare(a.String(), b.String()) })
	return ids
}

// find is the workload of a lease; it has a manifest, or had one.
func (w *Workloads) find(id akash.LeaseID) (*work, error) {
	w.mu.Lock()
	l := w.works[lease.KeyOf(id)]
	w.mu.Unlock()
	if l == nil || l.id != id {
		return nil, blueprint.Refuse(blueprint.ErrNoLease, fmt.Errorf("lease %s has no manifest", id), "send the manifest first")
	}
	return l, nil
}

// forget ends a lease that is freed.
func (w *Workloads) forget(l *work) {
	w.mu.Lock()
	delete(w.works, l.key)
	w.mu.Unlock()
	w.publish()
	poke(w.wake)
	close(l.gone)
}

func (w *Workloads) readManifest(key lease.Key, revision uint64) ([]byte, error) {
	raw, err := os.ReadFile(blueprint.ManifestFile(w.folder(key), revision))
	if err != nil {
		return nil, fmt.Errorf("read manifest %d: %w", revision, err)
	}
	return raw, nil
}

func (w *Workloads) newWork(id akash.LeaseID) *work {
	return &work{
		w:        w,
		id:       id,
		key:      lease.KeyOf(id),
		rec:      blueprint.Record{Lease: id.String(), State: blueprint.WaitingManifest},
		state:    blueprint.WaitingManifest,
		log:      w.log.With("lease", id.String()),
		wake:     make(chan struct{}, 1),
		closing:  make(chan struct{}),
		gone:     make(chan struct{}),
		groups:   map[uint64]sdl.Group{},
		replicas: map[lease.ReplicaID]*replica{},
		pulls:    map[string]*pull{},
	}
}

// poke says "look again" to whoever reads c.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
