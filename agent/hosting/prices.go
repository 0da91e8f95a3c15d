package hosting

import (
	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// What a box's power is taken to cost where its network does not say: a price
// between those of households in America and in Germany, and what small computers
// draw from the wall at full load.
const (
	usualKWh       = 250_000 // millionths of a dollar
	usualWatts     = 10
	wattsForThread = 5
)

// policyOf is what a box of a network asks for: the defaults of agent/offer, and
// what the network file says instead.
func policyOf(n *joinfile.Network, m inventory.Machine) offer.Policy {
	p := offer.DefaultPolicy()
	p.Power.KWh, p.Power.Watts = usualKWh, usualWatts+wattsForThread*int64(m.CPU.Threads)
	say := n.Prices
	set := func(price *offer.Money, said *int64) {
		if said != nil {
			*price = offer.Money(*said)
		}
	}
	set(&p.CPU, say.CPU)
	set(&p.Memory, say.Memory)
	set(&p.Endpoint, say.Endpoint)
	set(&p.Power.KWh, say.Power.KWh)
	if say.Power.Watts != nil {
		p.Power.Watts = *say.Power.Watts
	}
	p.Power.GPU = say.Power.GPU
	for class, price := range say.Storage {
		p.Storage[class] = offer.Money(price)
	}
	if len(say.GPU) > 0 {
		p.GPU = moneyOf(say.GPU)
	}
	if len(n.Chain.Worth) > 0 {
		p.Worth = moneyOf(n.Chain.Worth)
	}
	return p
}

func moneyOf(amounts map[string]int64) map[string]offer.Money {
	out := map[string]offer.Money{}
	for what, amount := range amounts {
		out[what] = offer.Money(amount)
	}
	return out
}
