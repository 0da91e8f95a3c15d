package hosting

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ingress"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/leasedisk"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

func keyOf(id akash.LeaseID) lease.Key { return lease.KeyOf(id) }

// machinery is what lies on the model's box, and outlives the agent. It is
// guarded by model.mu.
type machinery struct {
	journal    *journal.Journal
	containers map[lease.ReplicaID]*container
	links      map[lease.ReplicaID]netip.Addr
	rules      map[lease.Key]network.Lease
	disks      map[lease.Key]int64 // sizes
	mounted    map[lease.Key]bool
	images     map[lease.Key]map[string]bool
	missing    map[string]bool // OCI images that no registry has
	addresses  int
}

type container struct {
	spec lease.Container
	exit *lease.Exit // nil: it runs
}

func newMachinery() machinery {
	return machinery{
		journal: journal.NewMemory(), containers: map[lease.ReplicaID]*container{}, links: map[lease.ReplicaID]netip.Addr{},
		rules: map[lease.Key]network.Lease{}, disks: map[lease.Key]int64{}, mounted: map[lease.Key]bool{}, images: map[lease.Key]map[string]bool{}, missing: map[string]bool{},
	}
}

// stop ends a running container. mu is held.
func (m *model) stop(id lease.ReplicaID, code int, oom bool) {
	if c := m.containers[id]; c != nil && c.exit == nil {
		c.exit = &lease.Exit{Code: code, OOM: oom, At: time.Now()}
		select {
		case m.life.ends <- id:
		default:
		}
	}
}

// reboot leaves of containers their exits or nothing, and of links nothing. mu is
// held.
func (m *model) reboot(records bool) {
	for id := range m.containers {
		if records {
			m.stop(id, 137, false)
		} else {
			delete(m.containers, id)
		}
	}
	clear(m.links)
	clear(m.rules)
	clear(m.mounted)
}

// life is one agent, from start to end, and the box and the chain as it meets
// them.
type life struct {
	m      *model
	p      *parts
	began  time.Time
	kill   context.CancelFunc
	ends   chan lease.ReplicaID
	over   chan struct{} // closed when all its goroutines have ended
	crash  int           // the effect at which it ends; 0: none
	after  bool          // that effect still happens
	killed bool          // guarded by m.mu; it ended in the middle of an effect
	dead   bool          // guarded by m.mu
}

var (
	errDead = errors.New("the agent is dead")
	errLuck = errors.New("bad luck")
)

// takes is the time that an answer takes. Nobody may hold a lock.
func (l *life) takes(ctx context.Context, what string, most time.Duration) error {
	l.m.mu.Lock()
	d := time.Millisecond + time.Duration(l.m.luck(what+" takes")*float64(most))
	if l.m.luck(what+" hangs") < l.m.chance/20 {
		d += time.Minute
	}
	l.m.mu.Unlock()
	nap(ctx, d)
	return ctx.Err()
}

// act does one effect, unless the agent is dead, dies or has bad luck.
func (l *life) act(what string, do func() error) error {
	m := l.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.dead {
		return errDead
	}
	m.effects++
	if l.crash > 0 && m.effects >= l.crash {
		l.dead, l.killed = true, true
		m.crashes++
		l.kill()
		if l.after {
			_ = do()
		}
		return errDead
	}
	if m.unlucky(what) {
		return errLuck
	}
	err := do()
	m.sound()
	return err
}

// owner says whether anything may be made for a lease; mu is held.
func (l *life) wanted(key lease.Key, what string) {
	m := l.m
	id, known := m.keys[key]
	if !known {
		m.never("%s for %s, which was never a lease", what, key)
		return
	}
	if at, over := m.over[id]; over && time.Since(at) > longAfter && time.Since(l.began) > longAfter && time.Since(m.nodeUp) > longAfter {
		m.never("%s for lease %s, which ended %s ago", what, id, time.Since(at))
	}
	if m.settled[key] == m.era {
		m.never("%s for lease %s, of which the workload said that it is gone", what, id)
	}
}

// longAfter the end of a lease everybody knows of it.
const longAfter = 15 * time.Minute

type (
	modelJournal struct{ *life }
	modelCells   struct{ *life }
	modelWires   struct{ *life }
	modelDisks   struct{ *life }
	modelRelay   struct{ *life }
	modelIngress struct{ *life }
)

func (modelIngress) Run(ctx context.Context) error            { <-ctx.Done(); return nil }
func (modelIngress) Set(ingress.Routes) error                 { return nil }
func (modelIngress) Handle(ingress.Stream) error              { return errors.New("the model has no users") }
func (modelIngress) Counters() map[lease.Key]ingress.Counters { return nil }

func (i modelIngress) Tidy() {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	i.m.tidied++
}

// The journal is written with locks held: it takes no time.

func (j modelJournal) Get(key string, into any) (bool, error) { return j.m.journal.Get(key, into) }
func (j modelJournal) Keys(prefix string) []string            { return j.m.journal.Keys(prefix) }

func (j modelJournal) Put(key string, value any) error {
	return j.act("put", func() error { return j.m.journal.Put(key, value) })
}

func (j modelJournal) Delete(key string) error {
	return j.act("delete", func() error {
		if k, ok := strings.CutPrefix(key, keyWon); ok {
			j.m.settled[lease.Key(k)] = j.m.era
		}
		return j.m.journal.Delete(key)
	})
}

func (j modelJournal) Event(kind journal.Kind, fields any) (n uint64, err error) {
	err = j.act("event", func() error {
		n, err = j.m.journal.Event(kind, fields)
		return err
	})
	return n, err
}

func (c modelCells) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (c modelCells) Close() error                  { return nil }

func (c modelCells) Exec(context.Context, lease.ReplicaID, []string, bool, io.Reader, io.Writer, io.Writer, <-chan [2]uint16) (int, error) {
	return 0, errors.New("the model has no shell")
}

// modelUse is what each container of the model uses, always.
var modelUse = lease.Usage{CPU: 3 * time.Second, Memory: 5 << 20}

func (c modelCells) Usage(context.Context, lease.ReplicaID) (lease.Usage, error) {
	return modelUse, nil
}

func (c modelCells) Start(ctx context.Context, spec lease.Container) error {
	if err := c.takes(ctx, "start", time.Second); err != nil {
		return err
	}
	m := c.m
	return c.act("start", func() error {
		if old := m.containers[spec.ID]; old != nil && old.exit == nil {
			return nil
		}
		if !m.images[spec.ID.Lease][spec.Image] {
			return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such image")}
		}
		if !m.links[spec.ID].IsValid() {
			m.never("%s is started without a link", spec.ID.Pod())
		}
		if _, ruled := m.rules[spec.ID.Lease]; !ruled {
			m.never("%s is started before its rules", spec.ID.Pod())
		}
		if m.disks[spec.ID.Lease] == 0 || !m.mounted[spec.ID.Lease] {
			m.never("%s is started without a disk", spec.ID.Pod())
		}
		c.wanted(spec.ID.Lease, "a container")
		m.containers[spec.ID] = &container{spec: spec}
		m.starts++
		return nil
	})
}

func (c modelCells) Stop(ctx context.Context, id lease.ReplicaID, grace time.Duration) error {
	if err := c.takes(ctx, "stop", grace); err != nil {
		return err
	}
	return c.act("stop", func() error {
		delete(c.m.containers, id)
		return nil
	})
}

func (c modelCells) List(ctx context.Context) (map[lease.ReplicaID]*lease.Exit, error) {
	if err := c.takes(ctx, "list", 100*time.Millisecond); err != nil {
		return nil, err
	}
	all := map[lease.ReplicaID]*lease.Exit{}
	err := c.act("list", func() error {
		for id, at := range c.m.containers {
			all[id] = at.exit
		}
		return nil
	})
	return all, err
}

func (c modelCells) NextExit(ctx context.Context) (lease.ReplicaID, lease.Exit, error) {
	select {
	case id := <-c.ends:
		return id, lease.Exit{}, nil
	case <-ctx.Done():
		return lease.ReplicaID{}, lease.Exit{}, ctx.Err()
	}
}

func (c modelCells) Pull(ctx context.Context, key lease.Key, image string, _ *sdl.Credentials, _ int64, _ func(done, total int64)) (string, error) {
	if err := c.takes(ctx, "pull", 8*time.Second); err != nil {
		return "", err
	}
	resolved := image
	if !strings.Contains(image, "@") {
		resolved += "@sha256:00"
	}
	return resolved, c.act("pull", func() error {
		if c.m.images[key][resolved] {
			return nil
		}
		if name, _, _ := strings.Cut(image, "@"); c.m.missing[name] {
			return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("the registry has no such image")}
		}
		c.wanted(key, "an image")
		if c.m.images[key] == nil {
			c.m.images[key] = map[string]bool{}
		}
		c.m.images[key][resolved] = true
		return nil
	})
}

func (c modelCells) Release(ctx context.Context, key lease.Key, keep ...string) error {
	if err := c.takes(ctx, "release", 100*time.Millisecond); err != nil {
		return err
	}
	return c.act("release", func() error {
		for image := range c.m.images[key] {
			if !slices.Contains(keep, image) {
				c.m.forgetImage(key, image)
			}
		}
		return nil
	})
}

// forgetImage takes an image from a lease. mu is held.
func (m *model) forgetImage(key lease.Key, image string) {
	delete(m.images[key], image)
	if len(m.images[key]) == 0 {
		delete(m.images, key)
	}
}

func (c modelCells) Collect(ctx context.Context, keep []lease.Key) error {
	if err := c.takes(ctx, "collect", 100*time.Millisecond); err != nil {
		return err
	}
	return c.act("collect", func() error {
		for key := range c.m.images {
			if !slices.Contains(keep, key) {
				delete(c.m.images, key) // what runs keeps its layers
			}
		}
		return nil
	})
}

func (w modelWires) Run(ctx context.Context) error                      { <-ctx.Done(); return nil }
func (w modelWires) SetAllowed(context.Context, []netip.AddrPort) error { return nil }
func (w modelWires) GuardFetchers(context.Context) error                { return nil }

func (w modelWires) Counters(lease.Key) (in, out uint64) { return 7, 9 }
func (w modelWires) Denied(lease.Key) network.Denied     { return network.Denied{Mail: 2, Box: 1} }

func (w modelWires) Replicas() []lease.ReplicaID {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return slices.Collect(maps.Keys(w.m.links))
}

func (w modelWires) Attach(ctx context.Context, id lease.ReplicaID, _ network.Options) (lease.Attachment, error) {
	if err := w.takes(ctx, "attach", 50*time.Millisecond); err != nil {
		return lease.Attachment{}, err
	}
	var a lease.Attachment
	err := w.act("attach", func() error {
		if !w.m.links[id].IsValid() {
			w.wanted(id.Lease, "a link")
			w.m.addresses++
			w.m.links[id] = netip.AddrFrom4([4]byte{10, 88, byte(w.m.addresses >> 8), byte(w.m.addresses)})
		}
		a.Address = netip.PrefixFrom(w.m.links[id], 30)
		return nil
	})
	return a, err
}

func (w modelWires) Renew(ctx context.Context, id lease.ReplicaID) error {
	return w.act("renew", func() error {
		if !w.m.links[id].IsValid() {
			w.m.never("%s renews a link that it has not", id.Pod())
		}
		return nil
	})
}

func (w modelWires) Detach(ctx context.Context, id lease.ReplicaID) error {
	if err := w.takes(ctx, "detach", 50*time.Millisecond); err != nil {
		return err
	}
	return w.act("detach", func() error {
		if c := w.m.containers[id]; c != nil && c.exit == nil {
			w.m.never("%s is detached while it runs", id.Pod())
		}
		delete(w.m.links, id)
		return nil
	})
}

func (w modelWires) SetLease(_ context.Context, key lease.Key, l network.Lease) error {
	return w.act("rules", func() error {
		w.m.rules[key] = l
		return nil
	})
}

func (w modelWires) Forget(_ context.Context, key lease.Key) error {
	return w.act("forget", func() error {
		delete(w.m.rules, key)
		return nil
	})
}

func (d modelDisks) Create(ctx context.Context, key lease.Key, size int64) error {
	if err := d.takes(ctx, "create disk", time.Second); err != nil {
		return err
	}
	return d.act("create disk", func() error {
		if d.m.disks[key] == 0 {
			d.wanted(key, "a disk")
		}
		d.m.disks[key] = size
		return os.MkdirAll(d.folder(key), 0o700)
	})
}

func (d modelDisks) folder(key lease.Key) string { return filepath.Join(d.m.dir, "disks", string(key)) }

func (d modelDisks) Open(ctx context.Context, key lease.Key) (string, error) {
	if err := d.takes(ctx, "open disk", time.Second); err != nil {
		return "", err
	}
	return d.folder(key), d.act("open disk", func() error {
		if d.m.disks[key] == 0 {
			return errors.New("there is no such disk")
		}
		d.m.mounted[key] = true
		return nil
	})
}

func (d modelDisks) Remove(ctx context.Context, key lease.Key) error {
	if err := d.takes(ctx, "remove disk", time.Second); err != nil {
		return err
	}
	return d.act("remove disk", func() error {
		if d.used(key) {
			d.m.never("the disk of %s is removed while its containers run", key)
		}
		delete(d.m.disks, key)
		delete(d.m.mounted, key)
		return os.RemoveAll(d.folder(key))
	})
}

func (d modelDisks) List(ctx context.Context) (keys []lease.Key, err error) {
	if err := d.takes(ctx, "list disks", 50*time.Millisecond); err != nil {
		return nil, err
	}
	err = d.act("list disks", func() error {
		keys = slices.Collect(maps.Keys(d.m.disks))
		return nil
	})
	return keys, err
}

func (d modelDisks) Close(ctx context.Context, key lease.Key) error {
	if err := d.takes(ctx, "close disk", time.Second); err != nil {
		return err
	}
	return d.act("close disk", func() error {
		if d.used(key) {
			return errors.New("the disk is in use")
		}
		delete(d.m.mounted, key)
		return nil
	})
}

// used reports whether a container has the disk. mu is held.
func (d modelDisks) used(key lease.Key) bool {
	for id, c := range d.m.containers {
		if id.Lease == key && c.exit == nil {
			return true
		}
	}
	return false
}

func (d modelDisks) Disks() ([]leasedisk.Disk, error)           { return nil, nil }
func (d modelDisks) Usage(lease.Key) (used, all int64, _ error) { return 11, 20, nil }
func (d modelDisks) Room() (int64, error)                       { return modelRoom.Storage + lettingRest, nil }

func (d modelDisks) Borrow(_ context.Context, _ lease.Key, bytes int64, _ func() int64) (int64, func(), error) {
	return bytes, func() {}, nil
}

func (r modelRelay) Run(ctx context.Context) error   { <-ctx.Done(); return nil }
func (r modelRelay) Set([]string, []wire.Port) error { return nil }
func (r modelRelay) States() ([]relay.RelayState, <-chan struct{}) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.m.relayDown {
		return []relay.RelayState{{Phase: relay.Waiting}}, nil
	}
	return []relay.RelayState{{Phase: relay.Up}}, nil
}

// nap waits for d, or until ctx ends.
func nap(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
