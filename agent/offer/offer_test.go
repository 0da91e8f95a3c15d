package offer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

const (
	box    account.Address = "akash1box"
	tenant account.Address = "akash1tenant"
)

func value(n int64) *resourcesv1beta4.ResourceValue {
	return &resourcesv1beta4.ResourceValue{Val: []byte(fmt.Sprint(n))}
}

func fakeSpec(cpu, mib, price int64) *deploymentv1beta4.GroupSpec {
	return &deploymentv1beta4.GroupSpec{Name: "home", Requirements: &attributesv1.PlacementRequirements{}, Resources: []*deploymentv1beta4.ResourceUnit{{
		Count: 1, Price: akash.Price{Denom: "uact", Amount: akash.NewDec(price)}.Wire(),
		Resource: &resourcesv1beta4.Resources{
			Id: 1, Cpu: &resourcesv1beta4.CPU{Units: value(cpu)}, Memory: &resourcesv1beta4.Memory{Quantity: value(mib << 20)},
			Storage:   []*resourcesv1beta4.Storage{{Name: "default", Quantity: value(1 << 30)}},
			Endpoints: []*resourcesv1beta4.Endpoint{{Kind: resourcesv1beta4.Endpoint_SHARED_HTTP}},
		},
	}}}
}

func fakeParams() *marketv1beta5.Params {
	return &marketv1beta5.Params{
		BidMinDeposits:       []*basev1beta1.Coin{{Denom: "uakt", Amount: "500000"}},
		MinReclamationWindow: durationpb.New(time.Hour), MaxReclamationWindow: durationpb.New(720 * time.Hour),
	}
}

func attributesOf(s string) []*attributesv1.Attribute {
	out := []*attributesv1.Attribute{}
	for f := range strings.FieldsSeq(s) {
		k, v, _ := strings.Cut(f, "=")
		out = append(out, &attributesv1.Attribute{Key: k, Value: v})
	}
	return out
}

func testBox() Box {
	return Box{
		Account: box, Attributes: attributesOf(""), Params: fakeParams(), Policy: DefaultPolicy(), Blocks: UsualBlocks, Overhead: 64 << 20,
		Capacity: Room{CPU: 4000, Memory: 8 << 30, Storage: 100 << 30, Ports: 2, GPUs: map[string]int64{"nvidia/rtx4090": 1}},
		Funds:    map[string]int64{"uakt": 1_000_000},
		Notice:   24 * time.Hour,
	}
}

func TestConsider(t *testing.T) {
	const auditor = "akash1auditor"
	for _, tc := range []struct {
		name   string
		order  func(*marketv1beta5.Order)
		box    func(*Box)
		why    Why
		phrase string
	}{
		{name: "a fitting order is bid on"},
		{name: "a box that is not ready says why", box: func(b *Box) { b.Unready = "the disk is ill" }, why: WhyUnready, phrase: "the disk is ill"},
		{name: "a box that is not registered waits", box: func(b *Box) { b.Attributes = nil }, why: WhyUnready, phrase: "not registered"},
		{name: "a closed order is none", order: func(o *marketv1beta5.Order) { o.State = marketv1beta5.Order_closed }, why: WhyUnclear},
		{name: "the box's own order is refused", order: func(o *marketv1beta5.Order) { o.Id.Owner = string(box) }, why: WhyMismatch, phrase: "own"},
		{name: "an attribute is missing", order: func(o *marketv1beta5.Order) { o.Spec.Requirements.Attributes = attributesOf("region=eu") }, why: WhyMismatch, phrase: "region=eu"},
		{name: "an attribute differs", order: func(o *marketv1beta5.Order) { o.Spec.Requirements.Attributes = attributesOf("region=eu") }, box: func(b *Box) { b.Attributes = attributesOf("region=us") }, why: WhyMismatch, phrase: `"us" here`},
		{name: "a glob stands for the rest of a key", order: func(o *marketv1beta5.Order) { o.Spec.Requirements.Attributes = attributesOf("feat-*=true") }, box: func(b *Box) { b.Attributes = attributesOf("feat-x=true") }},
		{name: "an auditor has not signed", order: func(o *marketv1beta5.Order) {
			o.Spec.Requirements = &attributesv1.PlacementRequirements{Attributes: attributesOf("k=v"), SignedBy: &attributesv1.SignedBy{AnyOf: []string{auditor}}}
		}, box: func(b *Box) { b.Attributes = attributesOf("k=v") }, why: WhyMismatch, phrase: "auditor"},
		{name: "an auditor has signed", order: func(o *marketv1beta5.Order) {
			o.Spec.Requirements = &attributesv1.PlacementRequirements{Attributes: attributesOf("k=v"), SignedBy: &attributesv1.SignedBy{AllOf: []string{auditor}}}
		}, box: func(b *Box) {
			b.Attributes = attributesOf("k=v")
			b.Audits = []*auditv1.AuditedProvider{{Auditor: auditor, Attributes: attributesOf("k=v")}}
		}},
		{name: "a class of storage is missing", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Storage[0].Attributes = attributesOf("class=beta3 persistent=true")
		}, why: WhyMismatch, phrase: "class=beta3"},
		{name: "five volumes are too many", order: func(o *marketv1beta5.Order) {
			r := o.Spec.Resources[0].Resource
			r.Storage = slices.Repeat(r.Storage, 5)
		}, why: WhyUnclear, phrase: "5 volumes"},
		{name: "too much memory", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Memory.Quantity = value(8 << 30)
		}, why: WhyRoom, phrase: "not enough memory: 8256 MiB wanted, 8192 of 8192 free"},
		{name: "what others have is not free", box: func(b *Box) { b.Used.CPU = 3600 }, why: WhyRoom, phrase: "400 of 4000 free"},
		{name: "too many replicas", order: func(o *marketv1beta5.Order) { o.Spec.Resources[0].Count = 1 << 31 }, why: WhyUnclear, phrase: "replicas"},
		{name: "more replicas than a lease can have", order: func(o *marketv1beta5.Order) { o.Spec.Resources[0].Count = MaxReplicas + 1 }, why: WhyUnclear, phrase: "1 to 64 are possible"},
		{name: "more replicas than a lease can have, in two services", order: func(o *marketv1beta5.Order) {
			o.Spec = alike(2, MaxReplicas/2+1)
		}, box: func(b *Box) { *b = hugeBox() }, why: WhyUnclear, phrase: "more than 64 replicas in all"},
		{name: "as many replicas as a lease can have", order: func(o *marketv1beta5.Order) {
			o.Spec = alike(2, MaxReplicas/2)
		}, box: func(b *Box) { *b = hugeBox() }},
		{name: "more services than a lease can have", order: func(o *marketv1beta5.Order) {
			o.Spec = alike(MaxServices+1, 1)
		}, box: func(b *Box) { *b = hugeBox() }, why: WhyUnclear, phrase: "33 kinds of service: 1 to 32"},
		{name: "more disk than a lease can have", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Storage[0].Quantity = value(MaxDisk - ReplicaLog + 1)
		}, box: func(b *Box) { *b = hugeBox() }, why: WhyUnclear, phrase: "more than 2048 GiB of disk"},
		{name: "as much disk as a lease can have", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Storage[0].Quantity = value(MaxDisk - ReplicaLog)
		}, box: func(b *Box) { *b = hugeBox() }},
		{name: "logs take disk on top of what is ordered", box: func(b *Box) { b.Capacity.Storage = 1<<30 + ReplicaLog - 1 }, why: WhyRoom, phrase: "not enough disk: 1036 MiB wanted"},
		{name: "no services", order: func(o *marketv1beta5.Order) { o.Spec.Resources = nil }, why: WhyUnclear},
		{name: "a quantity that is no number", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Cpu.Units = &resourcesv1beta4.ResourceValue{Val: []byte("1e9")}
		}, why: WhyUnclear, phrase: "CPU"},
		{name: "a quantity beyond all bounds", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Memory.Quantity = value(1 << 60)
		}, why: WhyUnclear, phrase: "memory"},
		{name: "an address of its own", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Endpoints[0].Kind = resourcesv1beta4.Endpoint_LEASED_IP
		}, why: WhyUnclear, phrase: "IP address"},
		{name: "more ports than there are", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Resource.Endpoints = slices.Repeat([]*resourcesv1beta4.Endpoint{{Kind: resourcesv1beta4.Endpoint_RANDOM_PORT}}, 3)
		}, why: WhyRoom, phrase: "ports"},
		{name: "the tenant pays too little", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Price = akash.Price{Denom: "uact", Amount: akash.NewDec(2)}.Wire()
		}, why: WhyPrice, phrase: "at most 0.859818 a month, the box asks 1.27"},
		{name: "the power costs more than the tenant pays", box: func(b *Box) { b.Policy.Power = Power{Watts: 100, KWh: 100_000_000} }, why: WhyPrice, phrase: "asks 913.125"},
		{name: "a denom without a price", order: func(o *marketv1beta5.Order) {
			o.Spec.Resources[0].Price = akash.Price{Denom: "gold", Amount: akash.NewDec(2)}.Wire()
		}, why: WhyPrice, phrase: "gold"},
		{name: "no money for the deposit", box: func(b *Box) { b.Funds["uakt"] = 499_999 }, why: WhyFunds, phrase: "499999"},
		{name: "a GPU without a price", order: gpu("vendor/nvidia/model/*=true"), box: gpuAttributes, why: WhyPrice, phrase: "rtx4090"},
		{name: "a GPU with a price", order: gpu("vendor/nvidia/model/rtx4090=true"), box: func(b *Box) {
			gpuAttributes(b)
			b.Policy.GPU = map[string]Money{"nvidia/rtx4090": 100_000}
		}},
		{name: "a GPU that another has", order: gpu("vendor/nvidia/model/rtx4090=true"), box: func(b *Box) {
			gpuAttributes(b)
			b.Used.GPUs = map[string]int64{"nvidia/rtx4090": 1}
		}, why: WhyUnclear, phrase: "not enough GPUs"},
		{name: "a longer notice than the box gives", order: func(o *marketv1beta5.Order) {
			o.Reclamation = &deploymentv1.DeploymentReclamation{MinWindow: durationpb.New(48 * time.Hour)}
		}, why: WhyConditions, phrase: "48h"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := testBox()
			if tc.box != nil {
				tc.box(&b)
			}
			id := akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: tenant, DSeq: 7}, GSeq: 1}, OSeq: 1}
			o := &marketv1beta5.Order{Id: id.Wire(), State: marketv1beta5.Order_open, Spec: fakeSpec(500, 512, 100)}
			if tc.order != nil {
				tc.order(o)
			}
			offer, no := Consider(o, b)
			switch {
			case tc.why == "" && no != nil:
				t.Errorf("refused: %+v", no)
			case tc.why == "" && (offer.Price.Amount.Sign() <= 0 || offer.Notice < time.Hour || offer.Deposit.Amount != 500_000):
				t.Errorf("offer = %+v", offer)
			case tc.why != "" && (no == nil || no.Why != tc.why || !strings.Contains(no.Sentence, tc.phrase)):
				t.Errorf("answer = %+v, %+v, want %s with %q", offer, no, tc.why, tc.phrase)
			}
		})
	}
}

// alike is a group of so many services of so many replicas each, whose tenant pays
// any price.
func alike(services, replicas int) *deploymentv1beta4.GroupSpec {
	spec := fakeSpec(100, 128, 1<<40)
	spec.Resources[0].Count = uint32(replicas)
	spec.Resources = slices.Repeat(spec.Resources, services)
	return spec
}

// hugeBox has room for everything, and asks nothing for disk.
func hugeBox() Box {
	b := testBox()
	b.Capacity = Room{CPU: 1 << 40, Memory: 1 << 50, Storage: 1 << 50}
	b.Policy.Storage = map[string]Money{classEphemeral: 0}
	return b
}

func gpu(want string) func(*marketv1beta5.Order) {
	return func(o *marketv1beta5.Order) {
		o.Spec.Resources[0].Resource.Gpu = &resourcesv1beta4.GPU{Units: value(1), Attributes: attributesOf(want)}
	}
}

func gpuAttributes(b *Box) {
	b.Attributes = attributesOf("capabilities/gpu/vendor/nvidia/model/rtx4090=true")
}

// The price of a month, turned into blocks, must bring the month's price: not
// less, and not more than a millionth of a coin for each block.
func TestPricesAreExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := testBox()
		b.Capacity = Room{CPU: 1 << 40, Memory: 1 << 60, Storage: 1 << 60}
		b.Policy = Policy{CPU: Money(rng.Int64N(1e9)), Memory: Money(rng.Int64N(1e9)), Storage: map[string]Money{classEphemeral: Money(rng.Int64N(1e6))}, Worth: map[string]Money{"uact": Money(1 + rng.Int64N(1e7))}}
		b.Blocks = 1 + rng.Int64N(30_000_000)
		o := &marketv1beta5.Order{Id: &marketv1.OrderID{Owner: string(tenant), Dseq: 1, Gseq: 1, Oseq: 1}, State: marketv1beta5.Order_open, Spec: fakeSpec(1+rng.Int64N(64_000), 1+rng.Int64N(1<<20), 10_000_000)}
		o.Spec.Resources[0].Price = akash.Price{Denom: "uact", Amount: akash.NewDec(1 << 60)}.Wire()
		offer, no := Consider(o, b)
		if no != nil {
			t.Fatal(no)
		}
		if back := inMonth(offer.Price.Amount, b.Policy.Worth["uact"], b.Blocks); back > offer.Month || back < offer.Month-1 {
			t.Fatalf("a month costs %s, %d blocks of %s bring %s", offer.Month, b.Blocks, offer.Price, back)
		}
	}
	for m, want := range map[Money]string{1_600_000: "1.60", 1: "0.000001", -2_500_000: "-2.50", 0: "0.00"} {
		if m.String() != want {
			t.Errorf("%d is %s, want %s", int64(m), m, want)
		}
	}
}

func TestTheWhyNotListIsBounded(t *testing.T) {
	var list Refusals
	for i := range 5 {
		list = list.With(Refusal{Order: fmt.Sprint(i), Sentence: "first"}, 3)
	}
	list = list.With(Refusal{Order: "3", Sentence: "again"}, 3)
	if len(list) != 3 || list[0].Order != "2" || list[2].Sentence != "again" {
		t.Errorf("list = %+v", list)
	}
	if list = list.Without("2"); len(list) != 2 || list[0].Order != "4" {
		t.Errorf("list without an order = %+v", list)
	}
}

func TestHowLongATenantsMoneyLasts(t *testing.T) {
	price := akash.Price{Denom: "uact", Amount: akash.NewDec(10)}
	escrow := func(denom string, amount int64) *escrowtypesv1.AccountState {
		return &escrowtypesv1.AccountState{SettledAt: 100, Funds: []*escrowtypesv1.Balance{{Denom: denom, Amount: akash.NewDec(amount).Wire()}}}
	}
	for _, tc := range []struct {
		name   string
		escrow *escrowtypesv1.AccountState
		price  akash.Price
		want   int64
	}{
		{"what is not settled is taken off", escrow("uact", 1009), price, 80},
		{"an account in debt is below 0", escrow("uact", 50), price, -15},
		{"another denom pays nothing", escrow("uakt", 1000), price, -20},
		{"no account tells nothing", nil, price, math.MaxInt64},
		{"a price of 0 is paid for ever", escrow("uact", 1000), akash.Price{Denom: "uact"}, math.MaxInt64},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := PaidBlocks(tc.escrow, tc.price, 120); got != tc.want {
				t.Errorf("PaidBlocks = %d, want %d", got, tc.want)
			}
		})
	}
	if got := MonthBlocks(10, time.Minute); got != 10*MonthMinutes {
		t.Errorf("ten blocks a minute are %d a month", got)
	}
}

func TestTheLedgerNeverHoldsMoreThanThereIs(t *testing.T) {
	var l Ledger
	capacity := Room{CPU: 1000, Memory: 1000, Storage: 1000, GPUs: map[string]int64{"nvidia/rtx4090": 1}}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			name, rng := fmt.Sprint(g), rand.New(rand.NewPCG(uint64(g), 1))
			for range 500 {
				r := Room{CPU: rng.Int64N(500), Memory: rng.Int64N(500), GPUs: map[string]int64{"nvidia/rtx4090": rng.Int64N(2)}}
				reserved := l.Reserve(name, r, capacity)
				l.Lend(name, rng.Int64N(600), capacity)
				if lack := l.Used().Lack(Room{}, capacity); lack != "" {
					t.Error(lack)
				}
				if reserved {
					l.Free(name)
				}
			}
			l.Lend(name, 0, capacity)
		})
	}
	wg.Wait()
	if used := l.Used(); used.CPU != 0 || used.Memory != 0 {
		t.Errorf("at rest %+v is taken", used)
	}
	l.Hold("found", Room{CPU: 1500})
	if l.Reserve("next", Room{CPU: 1}, capacity) || !l.Reserve("next", Room{Memory: 1}, capacity) {
		t.Error("what is held beyond the capacity leaves more than there is, or less")
	}
}

func TestPricesAtTheBeginningOfAChain(t *testing.T) {
	for _, tc := range []struct {
		blocks int64
		took   time.Duration
		want   int64
	}{
		{9, time.Second, 0}, {10, 0, 0}, {10, -time.Second, 0}, // too few, or at no time: it cannot be told
		{1000, 300 * time.Second, 8_766_000}, {1000, 6000 * time.Second, 438_300}, {10, 100_000 * time.Hour, 1}, {1 << 62, 1, 0},
	} {
		if got := MonthBlocks(tc.blocks, tc.took); got != tc.want {
			t.Errorf("%d blocks in %s are %d a month, want %d", tc.blocks, tc.took, got, tc.want)
		}
	}
	for _, blocks := range []int64{438_300, 8_766_000} { // 6 s and 300 ms bring the same in a month
		b := testBox()
		b.Blocks = blocks
		o := &marketv1beta5.Order{Id: &marketv1.OrderID{Owner: string(tenant), Dseq: 1, Gseq: 1, Oseq: 1}, State: marketv1beta5.Order_open, Spec: fakeSpec(500, 512, 100)}
		offer, no := Consider(o, b)
		if no != nil || offer.Month != 1_270_000 {
			t.Errorf("with %d blocks a month: %+v, %v", blocks, offer, no)
		}
	}
}

func TestABidHasAWindowWhereverTheChainHasAny(t *testing.T) {
	for _, tc := range []struct{ least, most, want time.Duration }{
		{time.Hour, 720 * time.Hour, time.Hour},
		{2 * time.Hour, 720 * time.Hour, 2 * time.Hour},
		{0, 720 * time.Hour, time.Hour},
		{0, time.Minute, time.Minute},
		{0, 0, 0},
	} {
		b := testBox()
		b.Params.MinReclamationWindow, b.Params.MaxReclamationWindow = durationpb.New(tc.least), durationpb.New(tc.most)
		o := &marketv1beta5.Order{Id: &marketv1.OrderID{Owner: string(tenant), Dseq: 1, Gseq: 1, Oseq: 1}, State: marketv1beta5.Order_open, Spec: fakeSpec(500, 512, 100)}
		offer, no := Consider(o, b)
		if no != nil || offer.Notice != tc.want {
			t.Errorf("windows of %s to %s: %s, %v", tc.least, tc.most, offer.Notice, no)
		}
		if msg := offer.Bid(akash.BidID{OrderID: akash.OrderIDOf(o.GetId()), Provider: box}); msg.GetReclamationWindow().AsDuration() != tc.want || msg.GetDeposit().GetAmount().GetAmount() != "500000" {
			t.Errorf("bid = %v", msg)
		}
	}
}

func TestAPriceBeyondAllBoundsIsARefusal(t *testing.T) {
	b := testBox()
	b.Policy.CPU = math.MaxInt64
	b.Capacity.CPU = 1 << 40
	o := &marketv1beta5.Order{Id: &marketv1.OrderID{Owner: string(tenant), Dseq: 1, Gseq: 1, Oseq: 1}, State: marketv1beta5.Order_open, Spec: fakeSpec(384_000, 512, 10_000_000)}
	if _, no := Consider(o, b); no == nil || no.Why != WhyPrice || strings.Contains(no.Sentence, "-") {
		t.Errorf("answer = %+v", no)
	}
}

func TestAmountsStopAtTheLargestNumber(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "500000": 500_000, "9223372036854775808": math.MaxInt64} {
		if got, ok := AmountOf(text); !ok || got != want {
			t.Errorf("AmountOf(%q) = %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "-1", "1.5"} {
		if got, ok := AmountOf(text); ok || got != 0 {
			t.Errorf("AmountOf(%q) = %d, %v", text, got, ok)
		}
	}
	if got := Sum(math.MaxInt64-1, 2); got != math.MaxInt64 || Sum(1, 2) != 3 {
		t.Errorf("Sum = %d", got)
	}
	if got := DenomsOf(fakeParams(), "uakt"); !slices.Equal(got, []string{"uakt"}) {
		t.Errorf("DenomsOf = %q", got)
	}
}
