package agent

import (
	"context"
	"errors"
	"maps"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/hosting"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/firmware/perm"
	"github.com/croft-cloud/croft/provisioning/joinfile"
	"github.com/croft-cloud/croft/relay"
)

const (
	// modulesLoaded is there once the kernel modules of workloads are, or could
	// not be: images/gokrazy/init writes it.
	modulesLoaded = "/run/croft/workload-modules"

	// userIDs are those that programs of tenants run under, from here on. It never
	// changes, for files of volumes carry them.
	userIDs = 1 << 20

	// runtimeCgroup is croft-containerd's.
	runtimeCgroup = "/sys/fs/cgroup/croft/containerd"
)

// network reads which network the box joins; nil: none.
func (l *loader) network() (*joinfile.Network, error) {
	raw, found, err := l.readFile(joinfile.Path, joinfile.MaxSize)
	if err != nil || !found {
		return nil, err
	}
	return joinfile.Parse(raw)
}

// prepareHosting makes the box a provider, if it joins a chain and has somewhere to keep what is let.
func (a *Agent) prepareHosting() error {
	if a.network == nil || !a.network.Lets() || !a.handover.Perm.Keeps() || !a.journal.Keeps() {
		return nil
	}
	var err error
	a.hosting, err = hosting.New(hosting.Config{
		Network: a.network, Device: a.identity.DeviceID(), Key: a.identity, Keeper: a.identity, Journal: a.journal,
		Dir: filepath.Join(a.cfg.Perm, "croft", "hosting"), RunDir: filepath.Dir(a.cfg.Handover),
		Version: string(a.release.Version), Floor: a.release.Built, UserIDs: userIDs, Fetcher: runtimeCgroup,
		Repair: perm.Repair, Ready: a.readyForLeases, Log: a.cfg.Log,
	})
	return err
}

// host lets the box earn.
func (a *Agent) host(ctx context.Context) error {
	if a.hosting == nil {
		return nil
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(modulesLoaded); err == nil {
			return a.hosting.Run(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readyForLeases says why the box itself takes no new lease, a sentence.
func (a *Agent) readyForLeases() string {
	a.facts.mu.Lock()
	v := a.facts.verdict
	a.facts.mu.Unlock()
	switch {
	case isFull(a.cfg.Perm):
		return "the storage of the box is full"
	case a.checkClock(context.Background()) != nil:
		return "the clock of the box is not set yet"
	case !v.Confirmed:
		return "the box is trying its software out"
	}
	return ""
}

// checkHosting passes if what leases need works, or none are wanted.
func (a *Agent) checkHosting(ctx context.Context) error {
	if a.hosting == nil {
		return nil
	}
	return a.hosting.Check(ctx)
}

// hostingStatus is what the page says about the box as a provider; nil: it joins
// no network.
func (a *Agent) hostingStatus(online bool) *letting.Report {
	if a.hosting == nil {
		return nil
	}
	s := a.hosting.Status()
	b := s.Bidding
	h := &letting.Report{
		Network: s.Network, Account: string(b.Account),
		Capacity: hostedRoom(b.Capacity), Leased: hostedRoom(b.Leased), Offered: hostedRoom(b.Reserved),
		Earned: coins(b.Earned), Balance: coins(b.Balance),
	}
	h.State, h.Why = hostingState(s, online)
	tenants := map[account.Address]bool{}
	for _, l := range s.Leases {
		tenants[l.ID.Owner] = true
		h.Leases = append(h.Leases, letting.Lease{Since: l.Since, Room: hostedRoom(l.Room), Month: monthly(l, b.Blocks), Use: useOf(s.Uses, lease.KeyOf(l.ID))})
	}
	h.Tenants = len(tenants)
	if p := b.Prices; p.Worth != nil {
		h.Prices = &letting.Prices{
			Currency: "USD", CPU: int64(p.CPU), Memory: int64(p.Memory), Storage: millionths(p.Storage), Endpoint: int64(p.Endpoint),
			GPU: millionths(p.GPU), PowerWatts: p.Power.Watts, PowerKWh: int64(p.Power.KWh),
		}
	}
	for _, r := range b.WhyNot {
		h.WhyNot = append(h.WhyNot, letting.Refusal{At: r.At, Why: string(r.Why), Sentence: r.Sentence})
	}
	for _, r := range s.Relays {
		h.Relays = append(h.Relays, letting.Relay{Name: r.Name, Up: r.Phase == relay.Up, Since: r.Since})
	}
	h.Events = a.hostingEvents(s)
	return h
}

// monthly is what a lease pays in a month of so many blocks; nothing if they are not
// known.
func monthly(l bidding.Lease, blocks int64) letting.Coin {
	if blocks <= 0 {
		return letting.Coin{}
	}
	return letting.Coin{Denom: l.Price.Denom, Amount: whole(l.Price.Amount.Mul(blocks).Int())}
}

// earnings are what the box earns, for telemetry, by denom: of those it takes also when
// it is nothing. Until it has asked the chain it may know of less than there was: nothing
// is said then.
func earnings(s hosting.Status) ([]sampling.Earning, error) {
	b := s.Bidding
	switch {
	case s.Fault != "":
		return nil, errors.New(s.Fault)
	case !b.Surveyed:
		return nil, nil
	}
	months := map[string]int64{}
	for denom := range b.Prices.Worth {
		months[denom] = 0
	}
	for denom := range b.Earned {
		months[denom] = 0
	}
	for _, l := range s.Leases {
		if month := monthly(l, b.Blocks); month.Denom != "" {
			months[month.Denom] = offer.Sum(months[month.Denom], month.Amount)
		}
	}
	var list []sampling.Earning
	for _, denom := range slices.Sorted(maps.Keys(months)) {
		e := sampling.Earning{Denom: denom, Paid: new(b.Earned[denom])}
		if b.Blocks > 0 {
			e.Month = new(months[denom])
		}
		list = append(list, e)
	}
	return list, nil
}

// useOf is what a lease was last seen to use.
func useOf(uses []hosting.Use, key lease.Key) letting.Use {
	i := slices.IndexFunc(uses, func(u hosting.Use) bool { return u.Lease == string(key) })
	if i < 0 {
		return letting.Use{}
	}
	u := uses[i]
	return letting.Use{
		CPUSeconds: floor(u.CPUSeconds), Memory: floor(u.MemoryBytes), Storage: floor(u.DiskBytes), Received: floor(u.ReceivedBytes), Sent: floor(u.SentBytes),
		Requests: int64(u.Requests), Refused: int64(u.Refused), Denied: int64(u.Denied),
	}
}

// floor rounds down; nil stays nil.
func floor(x *float64) *int64 {
	if x == nil {
		return nil
	}
	return new(int64(*x))
}

// hostingState sums up how far the box is.
func hostingState(s hosting.Status, online bool) (letting.State, string) {
	b := s.Bidding
	up := slices.ContainsFunc(s.Relays, func(r relay.RelayState) bool { return r.Phase == relay.Up })
	working := letting.Open
	if len(s.Leases) > 0 {
		working = letting.Working
		if nothingLeft(b.Capacity, b.Leased.Plus(b.Reserved)) {
			working = letting.Full
		}
	}
	switch {
	case !online:
		return letting.NoInternet, ""
	case s.Fault != "":
		return letting.Unable, "The part of the box that works for tenants does not start. It tries again by itself; if this stays, please ask for help."
	case !b.Reached:
		return letting.NoChain, ""
	case !up:
		return letting.NoRelay, ""
	case b.Draining:
		return letting.Paused, ""
	case b.Surveyed && len(coins(b.Balance)) == 0:
		return letting.NoCoins, ""
	case !b.Registered:
		return letting.Registering, ""
	case s.Sick != "":
		return working, s.Sick
	}
	return working, ""
}

// nothingLeft reports whether hardly any order still fits.
func nothingLeft(all, taken offer.Room) bool {
	return all.CPU-taken.CPU < 100 || all.Memory-taken.Memory < 128<<20 || all.Storage-taken.Storage < 512<<20
}

// hostingEvents are what an owner wants to hear, newest first.
func (a *Agent) hostingEvents(s hosting.Status) []letting.Event {
	var list []letting.Event
	words := map[journal.Kind]letting.Happening{hosting.EventWon: letting.LeaseWon, hosting.EventEnded: letting.LeaseEnded}
	for e := range a.journal.Events(0) {
		if what, ok := words[e.Kind]; ok {
			list = append(list, letting.Event{At: e.At, What: what})
		}
	}
	for _, e := range s.Trouble {
		if what, ok := troubleWords[e.Reason]; ok {
			list = append(list, letting.Event{At: e.At, What: what})
		}
	}
	slices.SortStableFunc(list, func(x, y letting.Event) int { return y.At.Compare(x.At) })
	return list[:min(len(list), 16)]
}

// troubleWords sorts the reasons of a lease's events.
var troubleWords = map[string]letting.Happening{
	diary.OOMKilled: letting.OutOfMemory, diary.BackOff: letting.KeepsFailing,
	"UnknownImage": letting.NotFetched, "RegistryDown": letting.NotFetched, "CredentialsRefused": letting.NotFetched,
	"WrongArchitecture": letting.NotFetched, "ImageTooLarge": letting.NotFetched, "BadImage": letting.NotFetched,
}

func hostedRoom(r offer.Room) letting.Room {
	out := letting.Room{CPU: r.CPU, Memory: r.Memory, Storage: r.Storage}
	for _, n := range r.GPUs {
		out.GPUs += n
	}
	return out
}

func coins(amounts map[string]int64) []letting.Coin {
	var list []letting.Coin
	for denom, amount := range amounts {
		if amount > 0 {
			list = append(list, letting.Coin{Denom: denom, Amount: amount})
		}
	}
	slices.SortFunc(list, func(x, y letting.Coin) int { return strings.Compare(x.Denom, y.Denom) })
	return list
}

func millionths(prices map[string]offer.Money) map[string]int64 {
	out := map[string]int64{}
	for what, price := range prices {
		out[what] = int64(price)
	}
	return out
}

// whole is n, or the largest number there is.
func whole(n *big.Int) int64 {
	if !n.IsInt64() {
		return math.MaxInt64
	}
	return n.Int64()
}
