package hosting

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// model is a box, its chain and its tenants: what outlives the agent. It holds
// them at every effect against what must always be so.
type model struct {
	seed uint64
	dir  string
	me   account.Address
	log  *slog.Logger

	mu sync.Mutex
	ledger
	machinery
	open      context.Context // ends with the story
	calls     sync.WaitGroup  // of tenants and others
	life      *life
	drawn     map[string]uint64 // how often luck was asked about what
	chance    float64           // of a fault
	nodeDown  bool
	nodeUp    time.Time // since when the node is back
	relayDown bool
	sick      bool
	era       int // of the journal: it may be lost
	rooms     map[akash.OrderID]offer.Room
	keys      map[lease.Key]akash.LeaseID
	settled   map[lease.Key]int     // era in which the workload said that it is gone
	accepted  map[akash.LeaseID]int // variant that the box has accepted
	wrong     []string              // what must never be, and was
	effects   int
	crashes   int
	starts    int
	lost      int
	tidied    int             // times that certificates of hosts that are gone were removed
	tunnels   tunnels         // nil: the model's
	granter   account.Address // of all fees; empty: the box pays them
}

// modelMachine lets modelRoom: two or three of the apps.
var (
	modelMachine = inventory.Machine{CPU: inventory.CPU{Threads: 4}, Memory: inventory.Memory{Bytes: 3640 << 20}}
	modelRoom    = offer.Room{CPU: modelMachine.Capacity().CPU, Memory: modelMachine.Capacity().Memory, Storage: 16 << 30, Ports: portsLet}
)

const (
	modelRival    = account.Address("akash1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq7cdc78")
	modelTenant   = account.Address("akash19rl4cm2hmr8afy4kldpxz3fka4jguq0a3mq6x0")
	modelOverhead = 64 << 20 // bidding's default
	manifestWait  = 90 * time.Second
)

// app is one SDL file with the variants that its tenant may send: other images,
// other variables, the same groups.
type app struct {
	groups   []*deploymentv1beta4.GroupSpec
	variants []sdl.Manifest
	raw      [][]byte
	hash     [][32]byte
}

// deployment is one of a tenant.
type deployment struct {
	id      akash.DeploymentID
	app     *app
	variant int
	silent  bool // its tenant sends no manifest
	orders  []akash.OrderID
	rooms   []offer.Room
}

const variants = 6

var apps = sync.OnceValue(func() []*app {
	var all []*app
	for _, text := range []string{
		services("web") + profiles + "  web: {home: {profile: small, count: 1}}\n",
		services("web", "db") + profiles + "  web: {home: {profile: small, count: 2}}\n  db: {home: {profile: data, count: 1}}\n",
		services("web", "job") + profiles + "  web: {home: {profile: small, count: 1}}\n  job: {away: {profile: small, count: 1}}\n",
	} {
		a := &app{}
		for v := range variants {
			replace := strings.NewReplacer("$web", fmt.Sprintf("web:%d", v%3), "$db", fmt.Sprintf("db:%d", v%2), "$job", "job:0", "$colour", fmt.Sprint(v))
			file, err := sdl.Parse([]byte(replace.Replace(text)))
			if err != nil {
				panic(err)
			}
			a.groups = file.Groups()
			a.variants = append(a.variants, file.Manifest())
			a.raw = append(a.raw, file.Manifest().JSON())
			a.hash = append(a.hash, file.Hash())
		}
		all = append(all, a)
	}
	return all
})

const profiles = `profiles:
  compute:
    small: {resources: {cpu: {units: 0.5}, memory: {size: 512Mi}, storage: {size: 1Gi}}}
    data: {resources: {cpu: {units: 0.5}, memory: {size: 256Mi}, storage: [{size: 1Gi}, {name: data, size: 2Gi, attributes: {persistent: true, class: beta2}}]}}
  placement:
    home:
      pricing: {small: {denom: uact, amount: 100000}, data: {denom: uact, amount: 100000}}
    away:
      pricing: {small: {denom: uact, amount: 100000}, data: {denom: uact, amount: 100000}}
deployment:
`

// services are the first half of an SDL file. Their ports are UDP's: nothing is
// dialled in a model.
func services(names ...string) string {
	text := "version: \"2.0\"\nservices:\n"
	for _, name := range names {
		text += fmt.Sprintf("  %s:\n    image: $%s\n    env: [COLOUR=$colour]\n    expose:\n      - {port: 5353, proto: udp, to: [{global: true}]}\n", name, name)
		if name == "db" {
			text += "    params: {storage: {data: {mount: /var/lib/db}}}\n"
		}
	}
	return text
}

// luck is a number from 0 to 1 that depends on the seed, on what is asked about
// and on how often it was: not on which goroutine is first. mu is held.
func (m *model) luck(what string) float64 {
	m.drawn[what]++
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d/%s/%d", m.seed, what, m.drawn[what])
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return float64((x^x>>31)>>11) / (1 << 53)
}

// pick is a number below n. mu is held.
func (m *model) pick(what string, n int) int { return int(m.luck(what) * float64(n)) }

func (m *model) unlucky(what string) bool { return m.chance > 0 && m.luck(what) < m.chance }

func (m *model) never(format string, args ...any) {
	m.wrong = append(m.wrong, fmt.Sprintf(format, args...))
}

// closedByBox is told of each lease whose end the box asks for. mu is held.
func (m *model) closedByBox(id akash.LeaseID, reason marketv1.LeaseClosedReason) {
	switch reason {
	case marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout:
		if _, ok := m.accepted[id]; ok {
			m.never("lease %s is closed for want of a manifest, and the box has accepted one", id)
		}
		if had := time.Since(m.made[id]); had < manifestWait {
			m.never("lease %s is closed for want of a manifest after %s", id, had)
		}
	case marketv1.LeaseClosedReason_lease_closed_reason_unstable:
		if had := time.Since(m.made[id]); had < patience || len(m.missing) == 0 {
			m.never("lease %s is given up after %s", id, had)
		}
	default:
		m.never("lease %s is closed for %s, and nobody asked", id, reason)
	}
}

// sound is what holds at every moment. mu is held.
func (m *model) sound() {
	var promised offer.Room
	for id, b := range m.bids {
		if s := b.GetState(); id.Provider == m.me && (s == marketv1beta5.Bid_open || s == marketv1beta5.Bid_active) {
			promised = promised.Plus(m.rooms[id.OrderID])
		}
	}
	if lack := promised.Lack(offer.Room{}, modelRoom); lack != "" {
		m.never("bids and leases on the chain: %s", lack)
	}
	var used offer.Room
	for id, c := range m.containers {
		if c.exit == nil {
			used.Memory += c.spec.Limits.Memory
		}
		_ = id
	}
	for _, size := range m.disks {
		used.Storage += size
	}
	if lack := used.Lack(offer.Room{}, modelRoom); lack != "" {
		m.never("containers and disks on the box: %s", lack)
	}
	for id, n := range m.bidCount {
		if n > 1 {
			m.never("order %s has %d bids", id, n)
		}
	}
	if l := m.life; l != nil && !l.dead {
		s := l.p.provider.Status()
		if lack := s.Reserved.Plus(s.Leased).Lack(offer.Room{}, s.Capacity); lack != "" {
			m.never("reserved and leased: %s", lack)
		}
	}
}

// live starts an agent. The last one is over.
func (m *model) live(t *testing.T) {
	for {
		ctx, cancel := context.WithCancel(context.Background())
		l := &life{m: m, kill: cancel, ends: make(chan lease.ReplicaID, 100), over: make(chan struct{}), began: time.Now()}
		m.mu.Lock()
		if m.chance > 0 && m.luck("crash") < 0.6 {
			l.crash, l.after = m.effects+1+m.pick("crash at", 120), m.luck("crash after") < 0.5
		}
		m.mu.Unlock()
		if err := l.open(ctx); err != nil {
			cancel()
			m.mu.Lock()
			healthy := m.chance == 0
			m.mu.Unlock()
			if healthy {
				t.Fatalf("open: %v", err)
			}
			nap(context.Background(), time.Second)
			continue
		}
		m.mu.Lock()
		m.life = l
		m.mu.Unlock()
		var running sync.WaitGroup
		for name, run := range map[string]func(context.Context) error{"workload": l.p.workloads.Run, "bidding": l.p.provider.Run, "sweep": l.p.sweep} {
			running.Go(func() {
				if err := run(ctx); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		go func() {
			running.Wait()
			close(l.over)
		}()
		return
	}
}

// open joins the parts as the real open does, with the model's where those reach
// outside.
func (l *life) open(ctx context.Context) error {
	p := &parts{cfg: Config{
		Network: &joinfile.Network{Chain: joinfile.Chain{ID: "croft-test", FeeGranter: string(l.m.granter)}, Relays: []joinfile.Relay{{Name: "relay.example"}}},
		Device:  "box", Journal: modelJournal{l}, Dir: l.m.dir, Log: l.m.log,
		Ready: func() string {
			l.m.mu.Lock()
			defer l.m.mu.Unlock()
			if l.m.sick {
				return "the box is ill"
			}
			return ""
		},
		pace: pace{BidTimeout: 90 * time.Second, ManifestTimeout: manifestWait, ReconcileEvery: time.Minute},
	}}
	p.class = inventory.Beta2
	p.machine = modelMachine
	p.room.Store(&modelRoom)
	p.chain, p.network, p.disks, p.sandbox, p.ingress, p.relay = modelNode{l}, modelWires{l}, modelDisks{l}, modelCells{l}, modelIngress{l}, modelRelay{l}
	if l.m.tunnels != nil {
		p.relay = l.m.tunnels
	}
	l.p = p
	if err := p.openWorkloads(ctx); err != nil {
		return err
	}
	return p.openProvider(ctx)
}

// end ends the agent, in the middle of whatever it does.
func (l *life) end() {
	l.m.mu.Lock()
	l.dead = true
	l.m.mu.Unlock()
	l.kill()
	<-l.over
}

// deploy opens orders.
func (m *model) deploy() {
	d := &deployment{id: akash.DeploymentID{Owner: modelTenant, DSeq: uint64(len(m.deployed) + 1)}}
	d.app = apps()[m.pick("app", len(apps()))]
	d.variant, d.silent = m.pick("variant", variants), m.luck("silent") < 0.1
	for i, g := range d.app.groups {
		id := akash.OrderID{GroupID: akash.GroupID{DeploymentID: d.id, GSeq: uint32(i + 1)}, OSeq: 1}
		room, err := offer.RoomOf(g, nil, modelOverhead)
		if err != nil {
			panic(err)
		}
		d.orders = append(d.orders, id)
		m.rooms[id] = room
		m.orders[id] = &marketv1beta5.Order{Id: id.Wire(), State: marketv1beta5.Order_open, CreatedAt: m.height, Spec: g}
		m.emit(akash.EventOrderCreated{ID: id})
	}
	m.deployed[d.id] = d
}

func (m *model) leaseOf(id akash.OrderID) akash.LeaseID {
	return akash.LeaseID{OrderID: id, Provider: m.me}
}

// send sends a deployment's manifest to the box that lives now. mu is held.
func (m *model) send(d *deployment, variant int) {
	l := m.life
	if l.dead {
		return
	}
	m.calls.Go(func() {
		ctx, cancel := context.WithTimeout(m.open, 40*time.Second)
		defer cancel()
		m.mu.Lock()
		wait := time.Duration(m.luck("post") * float64(time.Second))
		m.mu.Unlock()
		nap(ctx, wait)
		if (backend{l.p}).Accept(ctx, d.id, d.app.raw[variant]) != nil {
			return
		}
		for _, at := range l.p.provider.Leases() {
			// A lease whose end was decided before takes manifests, and ends.
			if at.ID.DeploymentID != d.id || at.State != bidding.Leased {
				continue
			}
			_, err := l.p.workloads.Manifest(at.ID)
			m.mu.Lock()
			if err == nil && !l.dead {
				m.accepted[at.ID] = variant
			}
			m.mu.Unlock()
		}
	})
}

// newModel is a box that was never switched on, and an empty chain.
func newModel(t *testing.T, seed uint64) *model {
	t.Helper()
	m := &model{
		seed: seed, dir: storyFolder(t), me: accountAddress(), log: slog.New(slog.DiscardHandler), era: 1, drawn: map[string]uint64{},
		rooms: map[akash.OrderID]offer.Room{}, keys: map[lease.Key]akash.LeaseID{}, settled: map[lease.Key]int{}, accepted: map[akash.LeaseID]int{},
	}
	if *modelLog {
		m.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	folder := filepath.Join(m.dir, "account")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(filepath.Join(folder, "account.words"), []byte(accountWords), 0o600)); err != nil {
		t.Fatal(err)
	}
	apps() // of no bubble
	return m
}

// begin makes the chain's and the box's things, within the bubble.
func (m *model) begin(ctx context.Context, blockTime time.Duration) {
	m.ledger, m.machinery = newLedger(), newMachinery()
	m.open, m.moved = ctx, make(chan struct{})
	m.calls.Go(func() { m.mint(ctx, blockTime) })
}

// story plays one random life of a box and then lets it come to rest, twice: with
// the leases that are left, and when all are over.
func story(t *testing.T, seed uint64, total *tally) {
	happened := 0
	defer func() {
		if t.Failed() {
			t.Logf("seed %d; -model.seed=%d plays it again", seed, seed)
		}
	}()
	m := newModel(t, seed)
	defer os.RemoveAll(m.dir)
	defer func() {
		total.add(m, happened)
		for _, wrong := range slices.Compact(m.wrong) {
			t.Error(wrong)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		open, stop := context.WithCancel(t.Context())
		defer m.calls.Wait()
		defer stop()
		m.begin(open, 3*time.Second)
		if m.luck("faults") < 0.85 {
			m.chance = m.luck("chance") * 0.12
		}
		length := 20 + m.pick("length", 30)
		m.live(t)
		for happened = range length {
			m.step(t)
			m.noted()
			m.mu.Lock()
			killed, wait := m.life.killed, time.Duration(m.luck("pause")*m.luck("pause")*float64(25*time.Second))
			bad := len(m.wrong) > 0
			m.mu.Unlock()
			if killed {
				<-m.life.over
				m.live(t)
			}
			if bad {
				break
			}
			nap(t.Context(), wait)
		}
		m.quiet(t)
		m.rest(t, "with the leases that are left")
		m.mu.Lock()
		for id := range m.orders {
			m.end(id, marketv1.Lease_closed, marketv1.LeaseClosedReason_lease_closed_owner)
		}
		m.mu.Unlock()
		m.rest(t, "when all leases are over")
		m.life.end()
	})
}

// step is one thing that happens.
func (m *model) step(t *testing.T) {
	m.mu.Lock()
	var alive []*deployment
	for _, id := range slices.SortedFunc(maps.Keys(m.deployed), func(a, b akash.DeploymentID) int { return int(a.DSeq) - int(b.DSeq) }) {
		d := m.deployed[id]
		open := false
		for _, o := range d.orders {
			s := m.orders[o].GetState()
			open = open || s != marketv1beta5.Order_closed
			if m.luck("choose") < 0.5 {
				m.choose(o)
			}
			if _, had := m.accepted[m.leaseOf(o)]; !had && !d.silent && runs(m.leases[m.leaseOf(o)]) && m.luck("sends") < 0.4 {
				m.send(d, d.variant)
			}
		}
		if open {
			alive = append(alive, d)
		}
	}
	var d *deployment
	var o akash.OrderID
	if len(alive) > 0 {
		d = alive[m.pick("deployment", len(alive))]
		o = d.orders[m.pick("order", len(d.orders))]
	}
	restart := false
	switch what := m.pick("what", 26); {
	case what <= 5 || d == nil:
		if len(alive) < 6 {
			m.deploy()
		}
	case what == 6:
		m.rival(o)
	case what == 7 || what == 8:
		for _, o := range d.orders {
			m.end(o, marketv1.Lease_closed, marketv1.LeaseClosedReason_lease_closed_owner)
		}
	case what == 9:
		m.end(o, marketv1.Lease_insufficient_funds, marketv1.LeaseClosedReason_lease_closed_reason_insufficient_funds)
	case what == 10:
		m.send(d, m.pick("any variant", variants))
	case what <= 13:
		d.variant = m.pick("variant", variants)
		m.emit(akash.EventDeploymentUpdated{ID: d.id})
		m.send(d, d.variant)
	case what == 14, what == 15:
		ids := m.replicas()
		if len(ids) > 0 {
			id := ids[m.pick("replica", len(ids))]
			if m.luck("vanish") < 0.3 {
				delete(m.containers, id)
			} else {
				m.stop(id, m.pick("code", 140), m.luck("oom") < 0.5)
			}
		}
	case what == 16:
		for _, key := range slices.Sorted(maps.Keys(m.images)) {
			for _, image := range slices.Sorted(maps.Keys(m.images[key])) {
				if m.luck("image lost") < 0.3 {
					m.forgetImage(key, image)
				}
			}
		}
	case what == 17:
		m.nodeDown, m.nodeUp = !m.nodeDown, time.Now()
	case what == 18:
		m.relayDown = !m.relayDown
	case what == 19:
		m.sick = !m.sick
	case what == 20:
		image := fmt.Sprintf("web:%d", m.pick("image", 3))
		m.missing[image] = !m.missing[image]
	case what == 21 || what == 22:
		restart = true
	case what == 23:
		l, on := m.life, m.luck("drain") < 0.4
		m.calls.Go(func() {
			ctx, cancel := context.WithTimeout(m.open, time.Minute)
			defer cancel()
			_ = l.p.provider.Drain(ctx, on)
		})
	case what == 24:
		l := m.life
		m.calls.Go(func() {
			ctx, cancel := context.WithTimeout(m.open, time.Minute)
			defer cancel()
			if s := l.p.provider.Status(); s.Surveyed && s.Reached { // as in sweep
				_ = l.p.sweepNow(ctx)
			}
		})
	case what == 25:
		for range m.pick("blocks", 5) {
			m.block()
		}
	}
	m.mu.Unlock()
	if restart {
		m.restart()
		m.live(t)
	}
}

// restart ends the agent, in one of the ways that it may end, and sometimes the
// box with it.
func (m *model) restart() {
	l := m.life
	m.mu.Lock()
	how := m.luck("restart")
	m.mu.Unlock()
	if how < 0.2 {
		l.kill()
		<-l.over
		_ = l.p.powerOff() // bad luck, or the box dies in the middle
	}
	l.end()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case how < 0.2:
		m.reboot(false)
	case how < 0.5:
		m.reboot(m.luck("records") < 0.5)
	case how < 0.5+*modelLoss:
		m.journal = journal.NewMemory()
		m.era++
		clear(m.accepted)
		m.lost++
	}
}

// noted holds what bidding knows of manifests against what workload has.
func (m *model) noted() {
	l := m.life
	for _, at := range l.p.provider.Leases() {
		if !at.Manifest {
			continue
		}
		_, err := l.p.workloads.Manifest(at.ID)
		m.mu.Lock()
		if err != nil && !l.dead && m.lost == 0 && runs(m.leases[at.ID]) { // one that was taken up is noted to have one
			m.never("lease %s is noted to have a manifest, and has none: %v", at.ID, err)
		}
		m.mu.Unlock()
	}
}

// replicas are those that run, in order. mu is held.
func (m *model) replicas() []lease.ReplicaID {
	var ids []lease.ReplicaID
	for id, c := range m.containers {
		if c.exit == nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b lease.ReplicaID) int {
		return strings.Compare(string(a.Lease)+a.Pod(), string(b.Lease)+b.Pod())
	})
	return ids
}

// quiet ends all faults.
func (m *model) quiet(t *testing.T) {
	m.mu.Lock()
	m.chance, m.nodeDown, m.relayDown, m.sick = 0, false, false, false
	m.life.crash = 0
	clear(m.missing)
	m.nodeUp = time.Now()
	restart := m.life.killed || m.luck("restart") < 0.3
	m.mu.Unlock()
	if restart {
		m.life.end()
		m.live(t)
	}
	if err := m.life.p.provider.Drain(t.Context(), false); err != nil {
		t.Error(err)
	}
}

// rest waits until everything is as chain and tenants have it.
func (m *model) rest(t *testing.T, when string) {
	why := ""
	for round := range 40 {
		m.learn()
		m.mu.Lock()
		bad := len(m.wrong) > 0
		for _, d := range m.deployed {
			for _, o := range d.orders {
				if v, had := m.accepted[m.leaseOf(o)]; runs(m.leases[m.leaseOf(o)]) && (!had && (!d.silent || m.lost > 0) || had && v != d.variant) {
					m.send(d, d.variant)
					break
				}
			}
		}
		m.mu.Unlock()
		if bad {
			return
		}
		nap(t.Context(), 45*time.Second)
		synctest.Wait()
		if round%3 == 2 {
			if err := m.life.p.sweepNow(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if why = m.restless(); why == "" {
			return
		}
	}
	t.Errorf("no rest %s: %s", when, why)
}

// learn notes the manifests that leases have of their siblings.
func (m *model) learn() {
	for _, at := range m.life.p.provider.Leases() {
		taken, err := m.life.p.workloads.Manifest(at.ID)
		m.mu.Lock()
		if d := m.deployed[at.ID.DeploymentID]; err == nil && d != nil && at.State == bidding.Leased {
			if v := slices.IndexFunc(d.app.raw, func(raw []byte) bool { return bytes.Equal(raw, taken.Raw) }); v >= 0 {
				m.accepted[at.ID] = v
			}
		}
		m.mu.Unlock()
	}
}

// restless is what is not yet as it should be.
func (m *model) restless() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.life.p.provider.Status()
	var leased offer.Room
	want := map[lease.ReplicaID]string{} // image
	keys := map[lease.Key]bool{}
	images := map[lease.Key]map[string]bool{}
	for id, l := range m.leases {
		if !runs(l) {
			continue
		}
		key := lease.KeyOf(id)
		d := m.deployed[id.DeploymentID]
		leased = leased.Plus(m.rooms[id.OrderID])
		if m.accepted[id] != d.variant {
			return fmt.Sprintf("lease %s runs on the chain and has not the manifest %d", id, d.variant)
		}
		if state := m.life.p.workloads.State(id); state != blueprint.AllRunning {
			return fmt.Sprintf("the workload of lease %s is %s", id, state)
		}
		keys[key], images[key] = true, map[string]bool{}
		name := d.app.groups[id.GSeq-1].GetName()
		for _, g := range d.app.variants[d.variant] {
			if g.Name != name {
				continue
			}
			for _, service := range g.Services {
				images[key][service.Image+"@sha256:00"] = true
				n := 0
				for rid, c := range m.containers {
					if rid.Lease != key || rid.Service != service.Name {
						continue
					}
					n++
					if c.exit != nil || c.spec.Image != service.Image+"@sha256:00" || !slices.Contains(c.spec.Env, service.Env[0]) {
						return fmt.Sprintf("%s of lease %s is not what manifest %d asks for: %+v", rid.Pod(), id, d.variant, *c)
					}
					want[rid] = service.Image
				}
				if n != int(service.Count) {
					return fmt.Sprintf("service %s of lease %s has %d of %d containers", service.Name, id, n, service.Count)
				}
			}
		}
	}
	for _, item := range s.Items {
		switch item.State {
		case bidding.Leased, bidding.Settled, bidding.Lost, bidding.Withdrawn, bidding.Refused:
		default:
			return fmt.Sprintf("order %s rests in state %s", item.Order, item.State)
		}
	}
	for id, b := range m.bids {
		if b.GetState() == marketv1beta5.Bid_open {
			return fmt.Sprintf("bid %s is open", id)
		}
	}
	free := modelRoom.Memory - leased.Memory
	lend := m.life.p.provider.Lend
	switch {
	case fmt.Sprint(s.Reserved) != fmt.Sprint(offer.Room{}), fmt.Sprint(s.Leased) != fmt.Sprint(leased):
		return fmt.Sprintf("the ledger has %+v reserved and %+v leased, the chain %+v", s.Reserved, s.Leased, leased)
	case lend("model", free+1), !lend("model", free), !lend("model", 0):
		return fmt.Sprintf("the ledger does not have %d bytes to lend", free)
	case len(m.containers) != len(want):
		return fmt.Sprintf("containers %v, wanted %v", slices.Collect(maps.Keys(m.containers)), want)
	case !sameKeys(m.links, want):
		return fmt.Sprintf("links %v, wanted %v", m.links, want)
	case !sameKeys(m.rules, keys):
		return fmt.Sprintf("rules %v, wanted %v", m.rules, keys)
	case !sameKeys(m.disks, keys):
		return fmt.Sprintf("disks %v, wanted %v", m.disks, keys)
	case len(m.journal.Keys("workload/")) != len(keys), len(m.journal.Keys(keyWon)) != len(keys):
		return fmt.Sprintf("the journal has %v and %v, wanted are %v", m.journal.Keys("workload/"), m.journal.Keys(keyWon), keys)
	}
	for key, has := range m.images {
		for image := range has { // fewer: one was lost while it ran
			if len(images[key]) == 0 {
				return fmt.Sprintf("image %s is kept for %s, wanted are %v", image, key, images)
			}
		}
	}
	folders, _ := os.ReadDir(filepath.Join(m.dir, "workload"))
	for _, f := range folders {
		if !keys[lease.Key(f.Name())] {
			return fmt.Sprintf("folder %s belongs to no lease", f.Name())
		}
	}
	return ""
}

func sameKeys[K comparable, A, B any](a map[K]A, b map[K]B) bool {
	for k := range a {
		if _, ok := b[k]; !ok {
			return false
		}
	}
	return len(a) == len(b)
}

// storyFolder is where a story's files lie: in memory, where there is room.
func storyFolder(t *testing.T) string {
	t.Helper()
	in := ""
	if free, err := fileSystemFree("/dev/shm"); err == nil && free > 4<<30 {
		in = "/dev/shm"
	}
	dir, err := os.MkdirTemp(in, "croft-model") //nolint:usetesting // t.TempDir is not in memory
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// accountWords are the box's account, the same in all stories.
const accountWords = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon " +
	"abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon art\n"

var accountAddress = sync.OnceValue(func() account.Address {
	words, err := account.ParseMnemonic(accountWords)
	if err != nil {
		panic(err)
	}
	key, err := words.Key(0, 0)
	if err != nil {
		panic(err)
	}
	return key.Address()
})

var (
	modelSeed    = flag.Uint64("model.seed", 0, "play this one story of the model")
	modelStories = flag.Int("model.stories", 40, "how many stories TestTheBoxKeepsChainAndWorkloadTogether plays")
	modelFirst   = flag.Uint64("model.first", 1, "the seed of the first story")
	modelLoss    = flag.Float64("model.loss", 0.03, "how likely the agent finds its journal lost when it starts again")
	modelLog     = flag.Bool("model.log", false, "show what the agent logs in the stories")
)

func TestTheBoxKeepsChainAndWorkloadTogether(t *testing.T) {
	total := newTally()
	if *modelSeed != 0 {
		story(t, *modelSeed, total)
		return
	}
	for i := range *modelStories {
		if story(t, *modelFirst+uint64(i), total); t.Failed() {
			return
		}
	}
	total.check(t)
}

// tally is what the stories reached.
type tally struct {
	mu             sync.Mutex
	stories        int
	happened       int
	leases         int
	starts         int
	accepted       int
	crashes        int
	executed, ends map[string]int
}

func (y *tally) add(m *model, happened int) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.stories++
	y.happened += happened
	y.leases += len(m.leases)
	y.starts += m.starts
	y.accepted += len(m.accepted)
	y.crashes += m.crashes
	for what, n := range m.executed {
		y.executed[what] += n
	}
	for _, l := range m.leases {
		y.ends[l.GetLease().GetReason().String()]++
	}
}

// check fails the test if the stories did not reach what they are about.
func (y *tally) check(t *testing.T) {
	t.Logf("%d stories, %d things happened, %d crashes, %d leases, %d with a manifest, %d containers started, executed %v, ends %v",
		y.stories, y.happened, y.crashes, y.leases, y.accepted, y.starts, y.executed, y.ends)
	for _, what := range []string{"*marketv1beta5.MsgCreateBid", "*marketv1beta5.MsgCloseBid", "*marketv1beta5.MsgLeaseStartReclaim"} {
		if y.executed[what] == 0 {
			t.Errorf("no story had a %s", what)
		}
	}
	for _, reason := range []string{"lease_closed_owner", "lease_closed_reason_insufficient_funds", "lease_closed_reason_manifest_timeout"} {
		if y.ends[reason] == 0 {
			t.Errorf("in no story a lease ended by %s", reason)
		}
	}
	if y.crashes == 0 || y.starts == 0 || y.accepted == 0 {
		t.Error("the stories do not reach what they are about")
	}
}

func newTally() *tally { return &tally{executed: map[string]int{}, ends: map[string]int{}} }

// A tenant whose image is nowhere pays for a day at most.
func TestALeaseThatCannotRunIsGivenUp(t *testing.T) {
	m := newModel(t, 1)
	defer os.RemoveAll(m.dir)
	synctest.Test(t, func(t *testing.T) {
		open, stop := context.WithCancel(t.Context())
		defer m.calls.Wait()
		defer stop()
		m.begin(open, 20*time.Second)
		m.live(t)
		m.mu.Lock()
		m.deploy()
		d := m.deployed[akash.DeploymentID{Owner: modelTenant, DSeq: 1}]
		for _, g := range d.app.variants[d.variant] {
			for _, s := range g.Services {
				m.missing[s.Image] = true
			}
		}
		m.mu.Unlock()
		for range 12 {
			nap(t.Context(), 20*time.Second)
			m.mu.Lock()
			for _, o := range d.orders {
				m.choose(o)
			}
			m.send(d, d.variant)
			m.mu.Unlock()
		}
		nap(t.Context(), patience-time.Hour)
		m.mu.Lock()
		for _, o := range d.orders {
			if l := m.leases[m.leaseOf(o)]; !runs(l) {
				t.Errorf("after 23 hours the lease is %v", l)
			}
		}
		m.mu.Unlock()
		nap(t.Context(), 2*time.Hour+2*notice) // hosting looks every hour
		m.mu.Lock()
		for _, o := range d.orders {
			if l := m.leases[m.leaseOf(o)].GetLease(); l.GetReason() != marketv1.LeaseClosedReason_lease_closed_reason_unstable {
				t.Errorf("after 25 hours the lease is %v", l)
			}
		}
		m.mu.Unlock()
		m.rest(t, "after the lease was given up")
		m.life.end()
	})
	for _, wrong := range m.wrong {
		t.Error(wrong)
	}
}
