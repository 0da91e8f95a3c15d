package quote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/client"
)

// Periods that costs are told for. A month is a twelfth of 365.25 days.
const (
	Hour  = time.Hour
	Day   = 24 * time.Hour
	Month = 730*time.Hour + 30*time.Minute
)

// Pace is how fast a chain makes blocks.
type Pace struct {
	Height int64         // the latest
	Time   time.Time     // of the latest block
	Block  time.Duration // from one block to the next, measured; above 0
}

// Blocks is what measuring a pace needs; [client.Client] has it.
type Blocks interface {
	Status(context.Context) (client.Status, error)
	Watch(ctx context.Context, from int64) iter.Seq2[client.Block, error]
}

// paceBlocks is over how many blocks the pace is measured.
const paceBlocks = 1000

// MeasurePace looks at the time the last thousand blocks took, or as many as
// there are. A chain that makes no blocks while nothing happens is slower than
// its blocks follow each other at best; nothing is paid while it rests, either.
func MeasurePace(ctx context.Context, chain Blocks) (Pace, error) {
	status, err := chain.Status(ctx)
	if err != nil {
		return Pace{}, fmt.Errorf("measure block time: %w", err)
	}
	// The first block has the time of the genesis, not its own.
	from := max(status.Height-paceBlocks, status.First, 2)
	if from >= status.Height {
		return Pace{}, fmt.Errorf("measure block time: chain %s has too few blocks yet", status.ChainID)
	}
	for block, err := range chain.Watch(ctx, from) {
		if err != nil {
			return Pace{}, fmt.Errorf("measure block time: %w", err)
		}
		return PaceOf(block.Height, block.Time, status.Height, status.Time)
	}
	return Pace{}, fmt.Errorf("measure block time: %w", cmp.Or(ctx.Err(), errors.New("chain shows no block")))
}

// PaceOf is the pace between two blocks.
func PaceOf(height int64, at time.Time, laterHeight int64, later time.Time) (Pace, error) {
	if laterHeight <= height || !later.After(at) {
		return Pace{}, errors.New("measure block time: the two blocks do not follow each other")
	}
	block := later.Sub(at) / time.Duration(laterHeight-height)
	return Pace{Height: laterHeight, Time: later, Block: max(block, 1)}, nil
}

// Cost is what a price for each block comes to over a period, at this pace, in
// the same unit as the price: uact, not ACT. Decimals below 10^-18 are cut.
func Cost(price akash.Price, pace Pace, period time.Duration) akash.Price {
	if pace.Block <= 0 {
		return akash.Price{Denom: price.Denom}
	}
	atto := wire(price.Amount)
	atto.Mul(atto, big.NewInt(int64(period)))
	atto.Quo(atto, big.NewInt(int64(pace.Block)))
	return akash.Price{Denom: price.Denom, Amount: decOf(atto)}
}

// SumPrices adds up prices of the same denom, and orders the sums by it.
func SumPrices(prices []akash.Price) []akash.Price {
	var sums []akash.Price
	for _, p := range prices {
		i := slices.IndexFunc(sums, func(s akash.Price) bool { return s.Denom == p.Denom })
		if i < 0 {
			sums = append(sums, p)
			continue
		}
		sums[i].Amount = sums[i].Amount.Add(p.Amount)
	}
	slices.SortFunc(sums, func(a, b akash.Price) int { return strings.Compare(a.Denom, b.Denom) })
	return sums
}

// Runway is how long an escrow account lasts.
type Runway struct {
	Blocks int64         // until the money is used up; 0: it is
	Left   time.Duration // the same in time, from the latest block
	End    time.Time     // when that is
	// Forever is set when nothing is drawn from the account, or when it lasts for
	// centuries; the other fields are 0 then.
	Forever bool
}

// maxLeft keeps a runway below what a time.Duration holds.
const maxLeft = 200 * 365 * Day

// RunwayOf tells how long the funds of an account last at these rates (prices
// for each block of the leases it pays), counted from the block of pace. What
// was used since the account was last settled is taken off first.
func RunwayOf(escrow *escrowtypesv1.Account, rates []akash.Price, pace Pace) (Runway, error) {
	if escrow.GetState().GetState() != escrowtypesv1.State_open {
		return Runway{End: pace.Time}, nil
	}
	funds := map[string]akash.Dec{}
	for _, b := range escrow.GetState().GetFunds() {
		amount, err := akash.ParseWireDec(b.GetAmount())
		if err != nil {
			return Runway{}, fmt.Errorf("funds of escrow account %s: %w", escrow.GetId().GetXid(), err)
		}
		funds[b.GetDenom()] = funds[b.GetDenom()].Add(amount)
	}
	runway := Runway{Forever: true}
	for _, rate := range SumPrices(rates) {
		if rate.Amount.Sign() <= 0 {
			continue
		}
		blocks := new(big.Int)
		if total := funds[rate.Denom]; total.Sign() > 0 {
			blocks.Quo(wire(total), wire(rate.Amount))
		}
		blocks.Sub(blocks, big.NewInt(max(pace.Height-escrow.GetState().GetSettledAt(), 0)))
		if blocks.Sign() < 0 {
			blocks.SetInt64(0)
		}
		left := new(big.Int).Mul(blocks, big.NewInt(int64(pace.Block)))
		if !left.IsInt64() || time.Duration(left.Int64()) > maxLeft {
			continue
		}
		if runway.Forever || blocks.Int64() < runway.Blocks {
			runway = Runway{Blocks: blocks.Int64(), Left: time.Duration(left.Int64()), End: pace.Time.Add(time.Duration(left.Int64()))}
		}
	}
	return runway, nil
}

// String is for people: "runs out in 3 days 4 hours".
func (r Runway) String() string {
	switch {
	case r.Forever:
		return "does not run out"
	case r.Blocks == 0:
		return "has run out"
	default:
		return "runs out in " + Words(r.Left)
	}
}

// Words is a duration in its two largest units: "3 days 4 hours".
func Words(d time.Duration) string {
	if d < time.Second {
		return "less than a second"
	}
	units := []struct {
		name string
		of   time.Duration
	}{{"year", 365 * Day}, {"day", Day}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}}
	i := slices.IndexFunc(units, func(u struct {
		name string
		of   time.Duration
	},
	) bool {
		return d >= u.of
	})
	text := count(d/units[i].of, units[i].name)
	if i+1 < len(units) {
		if rest := d % units[i].of / units[i+1].of; rest > 0 {
			text += " " + count(rest, units[i+1].name)
		}
	}
	return text
}

func count(n time.Duration, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", int64(n), what)
}

// Money is an amount for people: "1.234568 ACT" for 1234567.8 uact, rounded to
// the nearest millionth, half away from zero. A denom that does not begin with u
// keeps its name and its unit.
func Money(p akash.Price) string {
	name, micro := strings.CutPrefix(p.Denom, "u")
	if !micro || name == "" {
		return p.Amount.String() + " " + p.Denom
	}
	one := new(big.Int).Exp(big.NewInt(10), big.NewInt(18), nil)
	n := wire(p.Amount)
	half := new(big.Int).Rsh(one, 1)
	if n.Sign() < 0 {
		half.Neg(half)
	}
	n.Add(n, half).Quo(n, one) // whole millionths
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
	}
	whole, rest := n.Abs(n).QuoRem(n, big.NewInt(1_000_000), new(big.Int))
	return fmt.Sprintf("%s%s.%06d %s", sign, whole, rest, strings.ToUpper(name))
}

// wire is the integer of d's 10^-18. The caller owns it.
func wire(d akash.Dec) *big.Int {
	n, ok := new(big.Int).SetString(d.Wire(), 10)
	if !ok {
		panic("a Dec has a wire form") // a mistake in package client
	}
	return n
}

// decOf is the Dec with this wire form, or the largest there is.
func decOf(n *big.Int) akash.Dec {
	d, err := akash.ParseWireDec(n.String())
	if err != nil {
		return akash.NewDec(math.MaxInt64)
	}
	return d
}
