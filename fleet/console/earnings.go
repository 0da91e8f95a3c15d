package console

import (
	"context"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// money is amounts of coins in base units, by denom; nil is not known, and an amount of
// 0 is known to be nothing.
type money map[string]int64

func (m *money) add(denom string, amount int64) {
	if *m == nil {
		*m = money{}
	}
	(*m)[denom] += amount
}

// earnings is what boxes bring their owner.
type earnings struct {
	paid money // to the boxes' accounts this month (of UTC), since they are the owner's
	rate money // what their leases pay in a month, at present
}

func (e *earnings) plus(other earnings) {
	for denom, amount := range other.paid {
		e.paid.add(denom, amount)
	}
	for denom, amount := range other.rate {
		e.rate.add(denom, amount)
	}
}

// looks is how often in a month the counters of earnings are looked at: a box is paid
// once a day.
const looks = 100

// earnings asks what each box earns.
func (c *Console) earnings(ctx context.Context, boxes []device.Box, now time.Time) (map[croft.DeviceID]earnings, error) {
	now = now.UTC()
	month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	begun := map[time.Time][]croft.DeviceID{}
	var online []croft.DeviceID
	for _, box := range boxes {
		from := month
		if since := box.Claim.Since.UTC(); since.After(month) {
			from = since
		}
		begun[from] = append(begun[from], box.ID)
		if box.Online {
			online = append(online, box.ID)
		}
	}
	out := map[croft.DeviceID]earnings{}
	for from, ids := range begun {
		step := max(now.Sub(from)/looks, time.Second)
		series, err := c.cfg.Series.Range(ctx, timeseries.Scope{Devices: ids}, "croft_earned_total", from, now, step)
		if err != nil {
			return nil, err
		}
		for _, one := range series {
			if len(one.Points) > 1 {
				of := out[croft.DeviceID(one.Labels["device"])]
				of.paid.add(one.Labels["denom"], gain(one.Points))
				out[croft.DeviceID(one.Labels["device"])] = of
			}
		}
	}
	series, err := c.cfg.Series.Instant(ctx, timeseries.Scope{Devices: online}, "croft_income_month", now)
	if err != nil {
		return nil, err
	}
	for _, one := range series {
		if len(one.Points) > 0 {
			of := out[croft.DeviceID(one.Labels["device"])]
			of.rate.add(one.Labels["denom"], int64(math.Round(one.Points[0].Value)))
			out[croft.DeviceID(one.Labels["device"])] = of
		}
	}
	return out, nil
}

// gain is what a counter counted. PromQL's increase guesses beyond the first and last
// point, which money is no matter for. A box that lost its memory counts anew.
func gain(points []timeseries.Point) int64 {
	sum := 0.0
	for i := 1; i < len(points); i++ {
		if before, now := points[i-1].Value, points[i].Value; now >= before {
			sum += now - before
		} else {
			sum += now
		}
	}
	return int64(math.Round(sum))
}

// noBreak is a space at which no line ends.
const noBreak = "\u00a0"

// amounts is money in words, without what is nothing: "1.23 AKT and 4.56 ACT".
func (c *Console) amounts(m money) string {
	text := ""
	for _, denom := range slices.Sorted(maps.Keys(m)) {
		if m[denom] <= 0 {
			continue
		}
		one := strings.ReplaceAll(frame.Price(strconv.FormatInt(rough(m[denom]), 10), denom), " ", noBreak)
		if text != "" {
			one = c.views.Say("earned.and", text, one)
		}
		text = one
	}
	return text
}

// rough leaves three leading digits, rounded down: what is about so much should look
// like it, and not change at every look. The owner page of the box does the same.
func rough(amount int64) int64 {
	unit := int64(1)
	for amount/unit >= 1000 {
		unit *= 10
	}
	return amount - amount%unit
}

// earned says what a box earned and earns, sentence by sentence; what is not known it
// does not say.
func (c *Console) earned(e earnings) []string {
	var say []string
	if words := c.amounts(e.paid); words != "" {
		say = append(say, c.views.Say("earned.month", words))
	} else if e.paid != nil {
		say = append(say, c.views.Say("earned.nothing"))
	}
	if words := c.amounts(e.rate); words != "" {
		say = append(say, c.views.Say("earned.rate", words))
	}
	return say
}

// earnedByAll says the same of several boxes together; empty: there is nothing to say.
func (c *Console) earnedByAll(e earnings) string {
	paid, rate := c.amounts(e.paid), c.amounts(e.rate)
	switch {
	case paid != "" && rate != "":
		return c.views.Say("earned.all", paid, rate)
	case paid != "":
		return c.views.Say("earned.all_month", paid)
	case rate != "":
		return c.views.Say("earned.all_rate", rate)
	}
	return ""
}

// allOf is all boxes of an owner.
func (c *Console) allOf(ctx context.Context, owner device.Actor) ([]device.Box, error) {
	var all []device.Box
	for cursor := ""; ; {
		boxes, next, err := c.cfg.Devices.List(ctx, owner, device.Query{Owner: owner.ID, Cursor: cursor, Limit: 500})
		if all = append(all, boxes...); err != nil || next == "" {
			return all, err
		}
		cursor = next
	}
}
