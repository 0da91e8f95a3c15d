package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

// recheck is how often a lease is looked at when nothing happens, so that a
// failed write or a refused loan is tried again.
const recheck = 30 * time.Second

// work is the workload of one lease.
type work struct {
	w     *Workloads
	id    akash.LeaseID
	key   lease.Key
	log   *slog.Logger
	diary *diary.Diary

	wake    chan struct{} // capacity 1: something changed
	closing chan struct{} // closed when the lease is over
	gone    chan struct{} // closed when everything is freed
	once    sync.Once     // closes closing

	storing sync.Mutex // held while the record changes, I/O included
	naming  sync.Mutex // held while the network is told of the peers
	told    *[]Peer    // guarded by naming; what it knows; nil: unknown

	released bool // of the goroutine of run; images that nothing needs were freed in this life

	mu       sync.Mutex
	rec      blueprint.Record             // guarded by mu; written with storing held
	state    blueprint.State              // guarded by mu
	groups   map[uint64]sdl.Group         // guarded by mu; manifests in use, by revision
	replicas map[lease.ReplicaID]*replica // guarded by mu
	pulls    map[string]*pull             // guarded by mu; by OCI image as the tenant wrote it
	borrowed int64                        // guarded by mu; what the lender lends; -1: unknown
	disk     string                       // guarded by mu; folder of the lease's disk, empty until it is open
	problem  string                       // guarded by mu; what keeps the lease as a whole from running
	plight   Plight                       // guarded by mu; without Since: there is none
}

// close says that the lease is over. It may be called again.
func (l *work) close() {
	l.once.Do(func() {
		if err := l.update(func(r *blueprint.Record) error {
			next, err := r.State.Next(blueprint.Closed)
			r.State = next
			return err
		}, func() { l.state = blueprint.Closing }); err != nil {
			// The chain says the lease is over, and says so again after a
			// restart: freeing does not wait for the journal.
			l.log.Warn("close not recorded", "err", err)
			l.storing.Lock()
			l.mu.Lock()
			l.rec.State, l.state = blueprint.Closing, blueprint.Closing
			l.mu.Unlock()
			l.storing.Unlock()
		}
		close(l.closing)
		poke(l.wake)
	})
}

// update changes the record: in the journal, then in memory, where alongside
// runs with mu held. A change that changes nothing is not written.
func (l *work) update(change func(*blueprint.Record) error, alongside func()) error {
	l.storing.Lock()
	defer l.storing.Unlock()
	l.mu.Lock()
	rec := l.rec.Clone()
	l.mu.Unlock()
	if err := change(&rec); err != nil {
		return err
	}
	if err := l.w.cfg.Journal.Put(keyPrefix+string(l.key), rec); err != nil {
		return err
	}
	l.mu.Lock()
	l.rec = rec
	if alongside != nil {
		alongside()
	}
	l.mu.Unlock()
	poke(l.wake)
	return nil
}

// readGroups reads the manifests that the record names. Only that of the newest
// must be there; without an older one its replicas cannot be started again.
func (l *work) readGroups() error {
	for revision := range l.rec.Sources {
		raw, err := l.w.readManifest(l.key, revision)
		if err == nil {
			var manifest sdl.Manifest
			if manifest, _, err = blueprint.Parse(raw); err == nil {
				if i := slices.IndexFunc(manifest, func(g sdl.Group) bool { return g.Name == l.rec.Group }); i >= 0 {
					l.groups[revision] = manifest[i]
				} else {
					err = errors.New("it has no group for this lease")
				}
			}
		}
		if err != nil && (revision == l.rec.Revision || revision == l.rec.Applied) {
			return fmt.Errorf("read manifest %d: %w", revision, err)
		}
	}
	return nil
}

// add puts an event on record, for the tenant, without secrets.
func (l *work) add(kind lease.EventType, reason, service, pod, format string, args ...any) {
	l.diary.Add(lease.Event{Type: kind, Reason: reason, Service: service, Pod: pod, Note: l.hide(fmt.Sprintf(format, args...))})
}

// hide takes passwords of registries out of a text that others wrote.
func (l *work) hide(text string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return blueprint.Hide(l.groups, text)
}

// run moves the lease towards its manifest until ctx ends or nothing is left of
// it.
func (l *work) run(ctx context.Context) {
	l.mu.Lock()
	over := l.rec.State == blueprint.Closing
	l.mu.Unlock()
	if over {
		l.once.Do(func() { close(l.closing) })
	}
	if l.work(ctx) {
		l.free(ctx)
	}
}

// work returns true when the lease is over and all its goroutines have ended.
func (l *work) work(ctx context.Context) bool {
	var owned sync.WaitGroup
	defer owned.Wait()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	owned.Go(func() {
		select {
		case <-l.closing:
			cancel()
		case <-inner.Done():
		}
	})
	l.released = false
	l.naming.Lock()
	l.told = nil
	l.naming.Unlock()
	l.mu.Lock()
	clear(l.replicas) // of an earlier Run
	clear(l.pulls)
	l.disk, l.borrowed = "", -1
	l.mu.Unlock()
	var pause blueprint.Pause
	adopted := false
	for {
		wait := recheck
		err := error(nil)
		if !adopted {
			adopted, err = l.adopt(ctx, inner, &owned)
		}
		if adopted {
			err = l.step(ctx, inner, &owned)
		}
		switch {
		case inner.Err() != nil:
		case err != nil:
			wait = pause.Next()
			l.blame(err)
		default:
			pause.Reset()
			l.blame(nil)
		}
		l.despair(err)
		select {
		case <-ctx.Done():
			return false
		case <-l.closing:
			return true
		case <-l.wake:
			if err != nil {
				// Whatever changed, what failed just now gets its pause.
				sleep(inner, wait)
			}
		case <-time.After(wait):
		}
	}
}

// blame keeps what holds up the lease as a whole, and tells its tenant once.
func (l *work) blame(err error) {
	text := ""
	if err != nil {
		text = l.hide(err.Error())
	}
	l.mu.Lock()
	before := l.problem
	l.problem = text
	l.mu.Unlock()
	if text != "" && text != before {
		l.log.Warn("workload held up", "err", text)
		l.add(lease.Warning, diary.Failed, "", "", "%s; the box tries again by itself", text)
	}
}

// despair finds out whether there is anything to hope for.
func (l *work) despair(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	why := ""
	if blueprint.Hopeless(err) {
		why = l.problem
	}
	for _, r := range l.replicas {
		switch p := l.pulls[r.spec.Image]; {
		case r.state == blueprint.Answering:
			l.plight = Plight{}
			return
		case r.vain:
			why = r.id.Pod() + ": " + blueprint.Hide(l.groups, r.problem)
		case p != nil && p.vain && r.state == blueprint.Pulling:
			why = p.problem
		}
	}
	switch {
	case why == "":
		l.plight = Plight{}
	case l.plight.Since.IsZero():
		l.plight = Plight{Lease: l.id, Since: time.Now()}
	}
	l.plight.Why = why
}

// adopt finds out what is there, from before a restart, and takes over what is
// wanted. The rest goes. It reports false while there is no manifest to know that
// from.
func (l *work) adopt(base, ctx context.Context, owned *sync.WaitGroup) (bool, error) {
	l.mu.Lock()
	rec, state := l.rec.Clone(), l.state
	l.mu.Unlock()
	if state == blueprint.WaitingManifest || state == blueprint.Closing {
		return false, nil // what runs is left alone, or freed at once
	}
	containers, links, err := l.w.there(ctx, l.key)
	if err != nil {
		return false, err
	}
	if rec.Applied != rec.Revision {
		// What ran under the last manifest counts as having answered: it served
		// before we were away.
		if err := l.follow(func(id lease.ReplicaID) bool { exit, there := containers[id]; return there && exit == nil }); err != nil {
			return false, err
		}
	}
	wants := l.wants()
	named := func(id lease.ReplicaID) bool {
		return slices.ContainsFunc(wants, func(w blueprint.Want) bool { return w.Name == id.Service && w.Names(id) })
	}
	for id := range containers {
		if !named(id) {
			if err := l.w.cfg.Runtime.Stop(ctx, id, l.w.cfg.Grace); err != nil {
				return false, fmt.Errorf("stop %s: %w", id.Pod(), err)
			}
			delete(containers, id)
		}
	}
	for _, id := range links {
		if _, kept := containers[id]; !kept {
			if err := l.w.cfg.Network.Detach(ctx, id); err != nil {
				return false, fmt.Errorf("detach %s: %w", id.Pod(), err)
			}
		}
	}
	disk, err := l.openDisk(ctx)
	if err != nil {
		return false, err
	}
	if err := l.tidy(disk, containers); err != nil {
		return false, err
	}
	for id, exit := range containers {
		r := l.launch(base, ctx, owned, id, true)
		if exit != nil {
			r.tell(end{exit: *exit})
		}
	}
	return true, nil
}

// tidy removes the folders of replicas that are no more.
func (l *work) tidy(disk string, keep map[lease.ReplicaID]*lease.Exit) error {
	pods := map[string]bool{}
	for id := range keep {
		pods[id.Pod()] = true
	}
	for _, w := range l.wants() {
		for _, id := range w.Replicas(l.key) {
			pods[id.Pod()] = true // its log may still be wanted
		}
	}
	entries, err := os.ReadDir(filepath.Join(disk, "replicas"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read disk: %w", err)
	}
	for _, e := range entries {
		if !pods[e.Name()] {
			if err := os.RemoveAll(filepath.Join(disk, "replicas", e.Name())); err != nil {
				return fmt.Errorf("remove folder of %s: %w", e.Name(), err)
			}
		}
	}
	return nil
}

func (l *work) openDisk(ctx context.Context) (disk string, err error) {
	l.mu.Lock()
	disk, group := l.disk, l.groups[l.rec.Applied]
	l.mu.Unlock()
	if disk != "" {
		return disk, nil
	}
	_, size, _ := blueprint.Leased(group)
	if err := l.w.cfg.Disks.Create(ctx, l.key, size); err != nil {
		return "", fmt.Errorf("create disk: %w", err)
	}
	if disk, err = l.w.cfg.Disks.Open(ctx, l.key); err != nil {
		return "", fmt.Errorf("open disk: %w", err)
	}
	l.mu.Lock()
	l.disk = disk
	l.mu.Unlock()
	return disk, nil
}

// follow takes in the newest manifest: the plan is stored, the rest follows
// from it.
func (l *work) follow(answering func(lease.ReplicaID) bool) error {
	var changed []string
	var first bool
	err := l.update(func(r *blueprint.Record) error {
		if r.State == blueprint.Closing {
			return errors.New("the lease is over")
		}
		first = r.Applied == 0
		groups := l.manifests()
		r.Plan, changed = r.Follow(groups, answering, l.key)
		return nil
	}, nil)
	if err != nil {
		return fmt.Errorf("record plan: %w", err)
	}
	if first {
		l.add(lease.Normal, diary.Scheduled, "", "", "manifest received: the workload is being set up")
	}
	for _, name := range changed {
		l.add(lease.Normal, diary.Updating, name, "", "the new manifest changes service %s: new replicas are started", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pulls {
		poke(p.again) // it may bring other credentials
	}
	return nil
}

// manifests is a copy of those in use. Within a change of the record it has at
// least those that the record names.
func (l *work) manifests() map[uint64]sdl.Group {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.groups)
}

// step compares what should be with what is, and acts.
func (l *work) step(base, ctx context.Context, owned *sync.WaitGroup) error {
	l.mu.Lock()
	rec, state := l.rec.Clone(), l.state
	l.mu.Unlock()
	if state == blueprint.WaitingManifest || state == blueprint.Closing {
		return nil
	}
	if rec.Applied != rec.Revision {
		if err := l.follow(l.answering); err != nil {
			return err
		}
	}
	if _, err := l.openDisk(ctx); err != nil {
		return err
	}
	lender := l.w.cfg.Lender != nil
	for ctx.Err() == nil {
		if err := l.settle(); err != nil {
			return err
		}
		deeds := blueprint.Decide(l.situation(lender))
		if len(deeds) == 0 {
			break
		}
		for _, d := range deeds {
			refused, err := l.do(base, ctx, owned, d)
			if err != nil {
				return err
			}
			if refused {
				lender = false
			}
		}
	}
	l.fetch(ctx, owned)
	l.judge()
	if err := l.name(ctx); err != nil {
		return err
	}
	l.w.publish()
	return l.discard(ctx)
}

// do carries out one deed. It reports true when a loan was refused.
func (l *work) do(base, ctx context.Context, owned *sync.WaitGroup, d blueprint.Deed) (refused bool, err error) {
	switch {
	case d.Start != nil:
		if err := l.equip(*d.Start); err != nil {
			return false, err
		}
		l.launch(base, ctx, owned, *d.Start, false)
	case d.Stop != nil:
		l.dismiss(*d.Stop)
	case d.Retire != nil:
		id := *d.Retire
		err := l.update(func(r *blueprint.Record) error {
			r.Retire(id)
			return nil
		}, nil)
		if err != nil {
			return false, fmt.Errorf("record that %s makes way: %w", id.Pod(), err)
		}
		if d.Alone {
			l.add(lease.Warning, diary.Replacing, id.Service, id.Pod(), "service %s is replaced in place, nothing answers meanwhile: %s", id.Service, d.Lack)
		}
		l.dismiss(id)
	case d.Lend > 0:
		if !l.lend(d.Lend) {
			return true, nil
		}
		return false, l.recordLoan(d.Lend)
	case d.Lend < 0:
		return false, l.recordLoan(0)
	}
	return false, nil
}

// settle makes what the lender lends what the record says: the agent may have
// ended, or the journal failed, between the two. Memory is borrowed before it is
// recorded and given back after, so nothing counts on more than is lent.
func (l *work) settle() error {
	l.mu.Lock()
	lent, right := l.rec.Lent, l.borrowed == l.rec.Lent
	l.mu.Unlock()
	if right || l.lend(lent) {
		return nil
	}
	// It is lent elsewhere by now, or the lender has trouble.
	if err := l.recordLoan(0); err != nil {
		return err
	}
	if !l.lend(0) {
		return errors.New("give back memory: the lender refused")
	}
	return nil
}

func (l *work) lend(bytes int64) bool {
	switch {
	case l.w.cfg.Lender == nil:
		return bytes == 0
	case !l.w.cfg.Lender.Lend(l.key, bytes):
		return false
	}
	l.mu.Lock()
	l.borrowed = bytes
	l.mu.Unlock()
	return true
}

func (l *work) recordLoan(bytes int64) error {
	if err := l.update(func(r *blueprint.Record) error { r.Lent = bytes; return nil }, nil); err != nil {
		return fmt.Errorf("record loan: %w", err)
	}
	return nil
}

func (l *work) answering(id lease.ReplicaID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.replicas[id]
	return r != nil && r.state == blueprint.Answering
}

// wants is what the record asks for.
func (l *work) wants() []blueprint.Want {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wantsLocked()
}

func (l *work) wantsLocked() []blueprint.Want { return l.rec.Wants(l.groups) }

func (l *work) situation(lender bool) blueprint.Situation {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := blueprint.Situation{Key: l.key, Services: l.wantsLocked(), Lent: l.rec.Lent, Lender: lender}
	s.Memory, _, s.GPUs = blueprint.Leased(l.groups[l.rec.Applied])
	for _, r := range l.replicas {
		s.Have = append(s.Have, blueprint.Have{
			ID: r.id, Memory: blueprint.MemoryOf(r.spec), GPUs: blueprint.GPUsOf(r.spec), Exclusive: blueprint.Exclusive(r.spec),
			Answering: r.state == blueprint.Answering, Leaving: r.leaving,
		})
	}
	slices.SortFunc(s.Have, func(a, b blueprint.Have) int { return strings.Compare(a.ID.Pod(), b.ID.Pod()) })
	return s
}

// crowded says that a start has to wait until others made way: the plan counted on
// lent memory, which may be lost with a restart.
func (l *work) crowded() bool {
	s := l.situation(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Lent = l.borrowed
	return blueprint.Crowded(s)
}

// launch starts the goroutine of a replica.
func (l *work) launch(base, ctx context.Context, owned *sync.WaitGroup, id lease.ReplicaID, there bool) *replica {
	l.mu.Lock()
	defer l.mu.Unlock()
	spec := l.rec.Spec(l.groups, id)
	work, quit := context.WithCancel(ctx)
	r := &replica{l: l, id: id, spec: spec, state: blueprint.Wanted, quit: quit, ends: make(chan end, 1)}
	l.replicas[id] = r
	owned.Go(func() {
		defer quit()
		r.run(work, ctx, base, there)
	})
	return r
}

// equip puts on record which GPUs of the lease a new replica gets: such as no
// other has.
func (l *work) equip(id lease.ReplicaID) error {
	l.mu.Lock()
	n := blueprint.GPUsOf(l.rec.Spec(l.groups, id))
	pods := map[string]bool{}
	for other := range l.replicas {
		pods[other.Pod()] = true
	}
	l.mu.Unlock()
	if n == 0 || l.w.cfg.GPUs == nil {
		return nil
	}
	mine := l.w.cfg.GPUs(l.id)
	if err := l.update(func(r *blueprint.Record) error { return r.Equip(id.Pod(), n, mine, pods) }, nil); err != nil {
		return fmt.Errorf("record GPUs: %w", err)
	}
	return nil
}

// dismiss tells a replica to end.
func (l *work) dismiss(id lease.ReplicaID) {
	l.mu.Lock()
	r := l.replicas[id]
	if r != nil {
		r.leaving = true
	}
	l.mu.Unlock()
	if r != nil {
		r.quit()
	}
}

// judge finds out the lease's state from that of its replicas.
func (l *work) judge() {
	l.mu.Lock()
	states := map[lease.ReplicaID]blueprint.ReplicaState{}
	for id, r := range l.replicas {
		states[id] = r.state
	}
	before, updated := l.state, l.rec.Updated()
	after := before.Judge(l.key, l.wantsLocked(), states)
	l.state = after
	l.mu.Unlock()
	if after != before {
		l.log.Info("workload changed", "state", string(after), "before", string(before))
		if before == blueprint.Deploying && after == blueprint.AllRunning {
			for _, name := range updated {
				l.add(lease.Normal, diary.Updated, name, "", "all replicas of service %s are new and answer", name)
			}
		}
	}
}

// name tells the network who the peers are and what is open between them.
func (l *work) name(ctx context.Context) error {
	l.naming.Lock()
	defer l.naming.Unlock()
	l.mu.Lock()
	var peers []Peer
	ready := map[string]bool{}
	for _, r := range l.replicas {
		ready[r.id.Service] = ready[r.id.Service] || r.state == blueprint.Answering && !r.leaving
	}
	for _, r := range l.replicas {
		if r.attachment == nil {
			continue
		}
		// One that is told to stop may finish what it began, but gets nothing new.
		p := Peer{ID: r.id, Address: r.attachment.Address.Addr(), Resolves: !r.leaving && (r.state == blueprint.Answering || !ready[r.id.Service])}
		for _, e := range l.rec.Spec(l.groups, r.id).Expose {
			p.Open = append(p.Open, Opening{Port: uint16(e.Port), UDP: e.Proto == "UDP", From: e.Service})
		}
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b Peer) int { return strings.Compare(a.ID.Pod(), b.ID.Pod()) })
	l.mu.Unlock()
	if l.told != nil && reflect.DeepEqual(peers, *l.told) {
		return nil
	}
	l.told = nil
	if err := l.w.cfg.Network.SetLease(ctx, l.key, peers); err != nil {
		return fmt.Errorf("set names and rules: %w", err)
	}
	l.told = &peers
	return nil
}

// discard drops manifests and images that nothing needs any more.
func (l *work) discard(ctx context.Context) error {
	l.mu.Lock()
	rec := l.rec.Clone()
	before := len(rec.Images)
	rec.Prune(l.groups)
	// An earlier life may have recorded an update and not released what it freed.
	idle := l.released && len(rec.Sources) == len(l.groups) && len(rec.Images) == before || rec.Unresolved(l.groups)
	for _, r := range l.replicas {
		idle = idle || r.leaving // its image may still be in use
	}
	keep := slices.Collect(maps.Values(rec.Images))
	late := false // something that is being broken off may still come
	for image, p := range l.pulls {
		switch {
		case !l.rec.Needs(l.groups, image):
			late = late || p.begun && p.resolved == ""
			p.quit()
			delete(l.pulls, image)
		case p.begun && p.resolved == "":
			idle = true // what it fetches must not be released
		case p.resolved != "":
			keep = append(keep, p.resolved)
		}
	}
	l.mu.Unlock()
	if idle {
		l.released = l.released && !late
		return nil
	}
	// What is forgotten must be gone: first the effects, then the record.
	if err := l.w.cfg.Images.Release(ctx, l.key, slices.Compact(slices.Sorted(slices.Values(keep)))...); err != nil {
		return fmt.Errorf("release images: %w", err)
	}
	l.released = !late
	stale := map[uint64]bool{}
	if err := l.update(func(r *blueprint.Record) error { r.Prune(l.manifests()); return nil }, func() {
		for revision := range l.groups {
			if !l.rec.Sources[revision] {
				stale[revision] = true
				delete(l.groups, revision)
			}
		}
	}); err != nil {
		return fmt.Errorf("record manifests in use: %w", err)
	}
	for revision := range stale {
		// A file that stays goes with the lease.
		if err := os.Remove(blueprint.ManifestFile(l.w.folder(l.key), revision)); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.log.Warn("manifest not removed", "revision", revision, "err", err)
		}
	}
	return nil
}

// free takes everything of the lease from the box and ends it. Only the end of
// the agent keeps it from trying again.
func (l *work) free(ctx context.Context) {
	l.mu.Lock()
	l.state = blueprint.Closing
	clear(l.replicas)
	clear(l.pulls)
	l.mu.Unlock()
	l.w.publish()
	l.add(lease.Normal, diary.Killing, "", "", "the lease is over: everything is stopped and removed")
	l.diary.End()
	var pause blueprint.Pause
	for ctx.Err() == nil {
		err := l.w.free(ctx, l.key)
		if err == nil {
			l.w.turn.Lock()
			err = l.w.cfg.Journal.Delete(keyPrefix + string(l.key))
			l.w.turn.Unlock()
		}
		if err == nil {
			l.mu.Lock()
			l.state, _ = l.state.Next(blueprint.Freed)
			l.mu.Unlock()
			l.log.Info("workload freed")
			l.w.forget(l)
			return
		}
		l.log.Warn("workload not freed yet", "err", err)
		sleep(ctx, pause.Next())
	}
}
