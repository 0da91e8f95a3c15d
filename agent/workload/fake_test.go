package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
)

// world is a box and a chain in memory: what survives the agent. It checks at
// every start of a container what must never be.
type world struct {
	dir string

	mu         sync.Mutex
	containers map[lease.ReplicaID]*container
	links      map[lease.ReplicaID]netip.Addr
	peers      map[lease.Key][]Peer
	disks      map[lease.Key]string
	images     map[lease.Key]map[string]bool
	journal    map[string][]byte
	lent       map[lease.Key]int64
	capacity   int64            // memory that may be lent
	next       int              // of addresses
	deaf       map[string]bool  // OCI images whose programs accept no connection
	missing    map[string]error // OCI images that cannot be pulled
	pulls      map[string]int   // how often each was asked for
	deployed   map[akash.DeploymentID]*deployment
	ends       chan lease.ReplicaID
	wrong      []string // what must never be, and was
	effects    int
}

type container struct {
	spec    lease.Container
	exit    *lease.Exit
	started time.Time
}

type deployment struct {
	leases []akash.LeaseID
	hash   []byte
	groups []*deploymentv1beta4.GroupSpec
	raw    []byte
	memory map[lease.Key]int64
}

func newWorld(t testing.TB) *world {
	return &world{
		dir:        t.TempDir(),
		containers: map[lease.ReplicaID]*container{},
		links:      map[lease.ReplicaID]netip.Addr{},
		peers:      map[lease.Key][]Peer{},
		disks:      map[lease.Key]string{},
		images:     map[lease.Key]map[string]bool{},
		journal:    map[string][]byte{},
		lent:       map[lease.Key]int64{},
		deaf:       map[string]bool{},
		missing:    map[string]error{},
		pulls:      map[string]int{},
		deployed:   map[akash.DeploymentID]*deployment{},
	}
}

// deploy puts a deployment with one lease for each group on chain, or updates it.
func (w *world) deploy(t testing.TB, dseq uint64, yaml string) akash.LeaseID {
	t.Helper()
	file, err := sdl.Parse([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	id := akash.DeploymentID{Owner: tenant, DSeq: dseq}
	d := w.deployed[id]
	hash := file.Hash()
	if d == nil {
		d = &deployment{groups: file.Groups(), memory: map[lease.Key]int64{}}
		w.deployed[id] = d
		for i := range d.groups {
			l := leaseID(dseq, uint32(i+1))
			d.leases = append(d.leases, l)
			d.memory[lease.KeyOf(l)], _, _ = blueprint.Leased(file.Manifest()[i])
		}
	}
	d.hash, d.raw = hash[:], file.Manifest().JSON()
	return leaseID(dseq, 1)
}

const (
	tenant   = account.Address("akash19rl4cm2hmr8afy4kldpxz3fka4jguq0a3mq6x0")
	provider = account.Address("akash1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq7cdc78")
)

func leaseID(dseq uint64, gseq uint32) akash.LeaseID {
	return akash.LeaseID{OrderID: akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: dseq}, GSeq: gseq}, OSeq: 1}, Provider: provider}
}

// undeploy closes the leases on chain.
func (w *world) undeploy(dseq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.deployed[akash.DeploymentID{Owner: tenant, DSeq: dseq}]; d != nil {
		d.leases = nil
	}
}

func (w *world) active() []akash.LeaseID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []akash.LeaseID
	for _, d := range w.deployed {
		all = append(all, d.leases...)
	}
	return all
}

// end ends a running container.
func (w *world) end(id lease.ReplicaID, code int, oom bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.containers[id]
	if c == nil || c.exit != nil {
		return false
	}
	c.exit = &lease.Exit{Code: code, OOM: oom, At: time.Now()}
	select {
	case w.ends <- id:
	default:
	}
	return true
}

// reboot leaves of all containers an exit, or nothing.
func (w *world) reboot(records bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, c := range w.containers {
		if !records {
			delete(w.containers, id)
		} else if c.exit == nil {
			c.exit = &lease.Exit{Code: 137, At: time.Now()}
		}
	}
	clear(w.links)
	clear(w.peers)
}

func (w *world) running(service string) []lease.ReplicaID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []lease.ReplicaID
	for id, c := range w.containers {
		if c.exit == nil && (service == "" || id.Service == service) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b lease.ReplicaID) int {
		return strings.Compare(string(a.Lease)+a.Pod(), string(b.Lease)+b.Pod())
	})
	return ids
}

// serving counts the replicas of a service that a user would get an answer from.
func (w *world) serving(service string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for id, c := range w.containers {
		if c.exit == nil && id.Service == service && !w.deaf[c.spec.Image] && w.links[id].IsValid() {
			n++
		}
	}
	return n
}

func (w *world) never(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// check holds the containers against what must always be so. mu is held.
func (w *world) check() {
	users, memory := map[string]lease.ReplicaID{}, map[lease.Key]int64{}
	gpus := map[int]lease.ReplicaID{}
	for id, c := range w.containers {
		if c.exit != nil {
			continue
		}
		memory[id.Lease] += c.spec.Limits.Memory
		for _, gpu := range c.spec.GPUs {
			if other, taken := gpus[gpu]; taken {
				w.never("%s and %s both have GPU %d", id.Pod(), other.Pod(), gpu)
			}
			gpus[gpu] = id
		}
		for _, m := range c.spec.Mounts {
			if !strings.Contains(m.Source, "/replicas/") && m.Tmpfs == 0 {
				if other, taken := users[m.Source]; taken {
					w.never("%s and %s both have the persistent volume %s", id.Pod(), other.Pod(), m.Source)
				}
				users[m.Source] = id
			}
		}
	}
	for _, d := range w.deployed {
		for key, limit := range d.memory {
			if memory[key] > limit+w.lent[key] {
				w.never("lease %s has %d bytes of memory, leased %d, lent %d", key, memory[key], limit, w.lent[key])
			}
		}
	}
	lent := int64(0)
	for _, n := range w.lent {
		lent += n
	}
	if lent > w.capacity {
		w.never("%d bytes lent of %d", lent, w.capacity)
	}
}

var errDead = errors.New("the agent is dead")

// session is the world as one life of the agent meets it.
type session struct {
	w      *world
	kill   context.CancelFunc
	faults func(effect string) error // called with w.mu held; nil: none
	crash  int                       // the effect at which the agent dies; 0: none
	after  bool                      // the effect still happens

	ends <-chan lease.ReplicaID

	dead bool // guarded by w.mu
}

// act does one effect, unless the agent is dead, dies or has bad luck.
func (s *session) act(effect string, do func() error) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.dead {
		return errDead
	}
	s.w.effects++
	if s.crash > 0 && s.w.effects >= s.crash {
		s.dead = true
		s.kill()
		if s.after {
			_ = do()
		}
		return errDead
	}
	if s.faults != nil {
		if err := s.faults(effect); err != nil {
			return err
		}
	}
	return do()
}

func (s *session) die() {
	s.w.mu.Lock()
	s.dead = true
	s.w.mu.Unlock()
	s.kill()
}

func nap(ctx context.Context, d time.Duration) error {
	sleep(ctx, d)
	return ctx.Err()
}

func (s *session) LeasesOf(_ context.Context, tenant account.Address, dseq uint64) ([]akash.LeaseID, []byte, []*deploymentv1beta4.GroupSpec, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	d := s.w.deployed[akash.DeploymentID{Owner: tenant, DSeq: dseq}]
	if d == nil {
		return nil, nil, nil, nil
	}
	return slices.Clone(d.leases), d.hash, d.groups, nil
}

const (
	startTakes = 100 * time.Millisecond
	stopTakes  = 50 * time.Millisecond // and a tenth of the grace
)

func (s *session) Start(ctx context.Context, c lease.Container) error {
	if err := nap(ctx, startTakes); err != nil {
		return err
	}
	return s.act("start", func() error {
		if old := s.w.containers[c.ID]; old != nil && old.exit == nil {
			return nil
		}
		if !s.w.images[c.ID.Lease][c.Image] {
			s.w.never("%s is started without its image %s", c.ID.Pod(), c.Image)
		}
		if !s.w.links[c.ID].IsValid() {
			s.w.never("%s is started without a link", c.ID.Pod())
		}
		if !slices.ContainsFunc(s.w.peers[c.ID.Lease], func(p Peer) bool { return p.ID == c.ID }) {
			s.w.never("%s is started before its rules", c.ID.Pod())
		}
		s.w.containers[c.ID] = &container{spec: c, started: time.Now()}
		s.w.check()
		return nil
	})
}

func (s *session) Stop(ctx context.Context, id lease.ReplicaID, grace time.Duration) error {
	if err := nap(ctx, stopTakes+grace/10); err != nil {
		return err
	}
	return s.act("stop", func() error {
		delete(s.w.containers, id)
		return nil
	})
}

func (s *session) List(context.Context) (map[lease.ReplicaID]*lease.Exit, error) {
	all := map[lease.ReplicaID]*lease.Exit{}
	err := s.act("list", func() error {
		for id, c := range s.w.containers {
			all[id] = c.exit
		}
		return nil
	})
	return all, err
}

func (s *session) NextExit(ctx context.Context) (lease.ReplicaID, lease.Exit, error) {
	select {
	case id := <-s.ends:
		return id, lease.Exit{}, nil
	case <-ctx.Done():
		return lease.ReplicaID{}, lease.Exit{}, ctx.Err()
	}
}

// rightPassword opens a registry that refuses all others.
const rightPassword = "swordfish-swordfish"

// network and the others have method names in common; each is a view of the
// session.
type (
	network struct{ *session }
	disks   struct{ *session }
	store   struct{ *session }
)

func (s *session) Pull(ctx context.Context, key lease.Key, image string, credentials *sdl.Credentials, _ int64, progress func(done, total int64)) (string, error) {
	progress(1, 100)
	if err := nap(ctx, 2*time.Second); err != nil {
		return "", err
	}
	resolved := image
	err := s.act("pull", func() error {
		s.w.pulls[image]++
		if err := s.w.missing[image]; err != nil && (credentials == nil || credentials.Password != rightPassword) {
			return err
		}
		if !strings.Contains(image, "@") {
			resolved = image + "@sha256:00"
		}
		if s.w.images[key] == nil {
			s.w.images[key] = map[string]bool{}
		}
		s.w.images[key][resolved] = true
		return nil
	})
	return resolved, err
}

func (s *session) Release(_ context.Context, key lease.Key, keep ...string) error {
	return s.act("release", func() error {
		maps.DeleteFunc(s.w.images[key], func(image string, _ bool) bool { return !slices.Contains(keep, image) })
		if len(s.w.images[key]) == 0 {
			delete(s.w.images, key)
		}
		return nil
	})
}

func (s *session) Lend(key lease.Key, bytes int64) bool {
	return s.act("lend", func() error {
		sum := bytes
		for other, n := range s.w.lent {
			if other != key {
				sum += n
			}
		}
		if sum > s.w.capacity {
			return errors.New("no")
		}
		if s.w.lent[key] = bytes; bytes == 0 {
			delete(s.w.lent, key)
		}
		return nil
	}) == nil
}

func (n network) Attach(_ context.Context, id lease.ReplicaID) (lease.Attachment, error) {
	var a lease.Attachment
	err := n.act("attach", func() error {
		if !n.w.links[id].IsValid() {
			n.w.next++
			n.w.links[id] = netip.AddrFrom4([4]byte{10, 88, byte(n.w.next >> 8), byte(n.w.next)})
		}
		a.Address = netip.PrefixFrom(n.w.links[id], 30)
		return nil
	})
	return a, err
}

func (n network) Renew(_ context.Context, id lease.ReplicaID) error {
	return n.act("renew", func() error {
		if !n.w.links[id].IsValid() {
			n.w.never("%s renews a link it has not", id.Pod())
		}
		return nil
	})
}

func (n network) Detach(_ context.Context, id lease.ReplicaID) error {
	return n.act("detach", func() error {
		if c := n.w.containers[id]; c != nil && c.exit == nil {
			n.w.never("%s is detached while it runs", id.Pod())
		}
		delete(n.w.links, id)
		return nil
	})
}

func (n network) SetLease(_ context.Context, key lease.Key, peers []Peer) error {
	return n.act("set lease", func() error {
		if n.w.peers[key] = peers; len(peers) == 0 {
			delete(n.w.peers, key)
		}
		return nil
	})
}

func (n network) Attached(context.Context) (ids []lease.ReplicaID, err error) {
	err = n.act("attached", func() error {
		ids = slices.Collect(maps.Keys(n.w.links))
		return nil
	})
	return ids, err
}

func (d disks) Create(_ context.Context, key lease.Key, size int64) error {
	return d.act("create disk", func() error {
		if size <= 0 {
			d.w.never("disk of %d bytes", size)
		}
		d.w.disks[key] = filepath.Join(d.w.dir, "disks", string(key))
		return os.MkdirAll(d.w.disks[key], 0o700)
	})
}

func (d disks) Open(_ context.Context, key lease.Key) (folder string, err error) {
	err = d.act("open disk", func() error {
		if folder = d.w.disks[key]; folder == "" {
			return errors.New("there is no disk")
		}
		return nil
	})
	return folder, err
}

func (d disks) Remove(_ context.Context, key lease.Key) error {
	return d.act("remove disk", func() error {
		for id, c := range d.w.containers {
			if id.Lease == key && c.exit == nil {
				d.w.never("the disk of %s is removed under it", id.Pod())
			}
		}
		delete(d.w.disks, key)
		return os.RemoveAll(filepath.Join(d.w.dir, "disks", string(key)))
	})
}

func (d disks) List(context.Context) (keys []lease.Key, err error) {
	err = d.act("list disks", func() error {
		keys = slices.Collect(maps.Keys(d.w.disks))
		return nil
	})
	return keys, err
}

func (s store) Get(key string, into any) (bool, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	value, ok := s.w.journal[key]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(value, into)
}

func (s store) Put(key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return s.act("put", func() error {
		if len(text) > 64<<10 {
			s.w.never("a record of %d bytes", len(text))
		}
		s.w.journal[key] = text
		return nil
	})
}

func (s store) Delete(key string) error {
	return s.act("delete", func() error {
		delete(s.w.journal, key)
		return nil
	})
}

func (s store) Keys(prefix string) []string {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	var keys []string
	for key := range s.w.journal {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (s *session) writeFile(path string, data []byte, perm fs.FileMode) error {
	return s.act("write", func() error {
		if perm != 0o600 {
			s.w.never("%s has mode %o", path, perm)
		}
		return os.WriteFile(path, data, perm)
	})
}

func (s *session) dial(ctx context.Context, to netip.AddrPort) error {
	if err := nap(ctx, time.Millisecond); err != nil {
		return err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for id, a := range s.w.links {
		if c := s.w.containers[id]; a == to.Addr() && c != nil && c.exit == nil && !s.w.deaf[c.spec.Image] {
			return nil
		}
	}
	return errors.New("connection refused")
}

// life is one agent, from start to end.
type life struct {
	*Workloads
	s    *session
	over chan struct{}
}

type option func(*session, *Config)

// live starts an agent in the world. It ends at the latest with the test.
func (w *world) live(t testing.TB, options ...option) *life {
	t.Helper()
	w.mu.Lock()
	w.ends = make(chan lease.ReplicaID, 1000) // of this test's bubble
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{w: w, kill: cancel, ends: w.ends}
	cfg := Config{
		Dir: filepath.Join(w.dir, "workload"), Leases: s, Runtime: s, Images: s, Disks: disks{s}, Network: network{s}, Journal: store{s},
		Lender: s, IngressDomain: "ingress.example", PublicHost: "box.example", Dial: s.dial, Log: slog.New(slog.DiscardHandler),
	}
	for _, o := range options {
		o(s, &cfg)
	}
	workloads, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	workloads.writeFile = s.writeFile
	l := &life{Workloads: workloads, s: s, over: make(chan struct{})}
	go func() {
		defer close(l.over)
		if err := workloads.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return l
}

// kill ends the agent at once, in the middle of whatever it does.
func (l *life) kill() {
	l.s.die()
	<-l.over
}

// accept sends the deployment's present manifest.
func (l *life) accept(dseq uint64) error {
	l.s.w.mu.Lock()
	raw := l.s.w.deployed[akash.DeploymentID{Owner: tenant, DSeq: dseq}].raw
	l.s.w.mu.Unlock()
	return l.Accept(context.Background(), tenant, dseq, raw)
}

func (l *life) mustAccept(t testing.TB, dseq uint64) {
	t.Helper()
	if err := l.accept(dseq); err != nil {
		t.Fatal(err)
	}
}

// reasons are those of a lease's events for a service or pod, oldest first.
func (l *life) reasons(t testing.TB, id akash.LeaseID) []string {
	t.Helper()
	events, err := l.Events(context.Background(), id, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for e := range events {
		reasons = append(reasons, e.Reason)
	}
	return reasons
}

// note is the newest event with this reason.
func (l *life) note(t testing.TB, id akash.LeaseID, reason string) string {
	t.Helper()
	events, err := l.Events(context.Background(), id, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	note := ""
	for e := range events {
		if e.Reason == reason {
			note = e.Note
		}
	}
	return note
}

// sound fails the test for whatever must never be and was.
func (w *world) sound(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wrong := range w.wrong {
		t.Error(wrong)
	}
	w.wrong = nil
}

// empty fails the test for whatever is left on the box.
func (w *world) empty(t testing.TB) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	left := len(w.containers) + len(w.links) + len(w.peers) + len(w.disks) + len(w.images) + len(w.journal) + len(w.lent)
	var files []string
	_ = filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !slices.Contains([]string{w.dir, filepath.Join(w.dir, "disks"), filepath.Join(w.dir, "workload")}, path) {
			files = append(files, path)
		}
		return nil
	})
	if left > 0 || len(files) > 0 {
		t.Errorf("left on the box: containers %v, links %v, rules %v, disks %v, images %v, journal %v, loans %v, files %v",
			w.containers, w.links, w.peers, w.disks, w.images, slices.Collect(maps.Keys(w.journal)), w.lent, files)
	}
}
