package letting

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage/figures"
)

// Page is a [Report] in words as the owner page shows it: all of it.
type Page struct {
	Words
	Rooms    []RoomRow
	Facts    []Row // money and addresses
	Sections []Section
}

// RoomRow is how much of one kind of room is let.
type RoomRow struct {
	Name, Text string
	Percent    int // let, for a bar
}

// Section is a list with a title; none is empty.
type Section struct {
	ID    string // of its element: the page's script keeps an open one open
	Title string
	Rows  []Row
	Note  string // below the rows; may be empty
}

// Row is a line with a name or a time, and perhaps more below it.
type Row struct{ Name, Text, More string }

// Page says all that w holds.
func (w Words) Page() *Page {
	p := &Page{Words: w, Rooms: roomRows(w)}
	for _, f := range []Row{
		{Name: sayEarned, Text: coinsWords(w.Earned...)},
		{Name: sayDue, Text: coinsWords(w.Due...)},
		{Name: sayBalance, Text: coinsWords(w.Balance...)},
		{Name: sayMarket, Text: w.Network},
		{Name: sayAccount, Text: w.Account},
	} {
		if f.Text != "" {
			p.Facts = append(p.Facts, f)
		}
	}
	for _, s := range []Section{leaseSection(w.Leases), eventSection(w.Events), priceSection(w.Prices), refusalSection(w.WhyNot), relaySection(w.Relays)} {
		if len(s.Rows) > 0 {
			p.Sections = append(p.Sections, s)
		}
	}
	return p
}

func leaseSection(leases []Lease) Section {
	s := Section{ID: "leases", Title: sayLeases}
	for _, l := range leases[:min(len(leases), maxLeases)] {
		row := Row{Name: sayLeaseUndated, Text: roomWords(l.Room)}
		if !l.Since.IsZero() {
			row.Name = fmt.Sprintf(sayLeaseSince, dayWords(l.Since))
		}
		var more []string
		if l.Month.Denom != "" {
			more = append(more, fmt.Sprintf(sayLeaseMonth, roughWords(l.Month)))
		}
		row.More = strings.Join(append(more, useWords(l.Use)...), " · ")
		s.Rows = append(s.Rows, row)
	}
	if more := len(leases) - maxLeases; more > 0 {
		s.Note = fmt.Sprintf(sayMoreLeases, more)
	}
	return s
}

// useWords says what is known of what a lease uses.
func useWords(u Use) []string {
	var words []string
	if u.Memory != nil && u.Storage != nil {
		words = append(words, fmt.Sprintf(sayUses, binarySize(*u.Memory), binarySize(*u.Storage)))
	}
	if u.CPUSeconds != nil {
		words = append(words, fmt.Sprintf(sayWorked, figures.Duration(time.Duration(min(max(*u.CPUSeconds, 0), math.MaxInt32))*time.Second)))
	}
	if u.Received != nil && u.Sent != nil {
		words = append(words, fmt.Sprintf(sayMoved, figures.Size(*u.Received, 1000), figures.Size(*u.Sent, 1000)))
	}
	return words
}

func eventSection(events []Event) Section {
	s := Section{ID: "events", Title: sayEvents}
	for _, e := range events {
		s.Rows = append(s.Rows, Row{Name: minuteWords(e.At), Text: eventWords[e.What]})
	}
	return s
}

func refusalSection(refusals []Refusal) Section {
	s := Section{ID: "refused", Title: sayWhyNot}
	for _, r := range refusals {
		row := Row{Name: minuteWords(r.At), Text: fmt.Sprintf(sayRefusedOne, refusalWords(r.Why))}
		if r.Orders > 1 {
			row.Text = fmt.Sprintf(sayRefusedMany, refusalWords(r.Why), r.Orders)
		}
		if r.Sentence != "" {
			row.More = fmt.Sprintf(sayNewest, r.Sentence)
		}
		s.Rows = append(s.Rows, row)
	}
	return s
}

func relaySection(relays []Relay) Section {
	s := Section{ID: "relays", Title: sayRelays}
	for _, r := range relays {
		s.Rows = append(s.Rows, Row{Name: r.Name, Text: relayWords(r)})
	}
	return s
}

// roomRows says what is let, kept and free of each kind of room that the box
// has.
func roomRows(w Words) []RoomRow {
	var rows []RoomRow
	for _, r := range []struct {
		name                         string
		leased, offered, free, total int64
		words                        func(amount int64) string
		share                        func(part, total int64) string
	}{
		{
			sayCores, w.Leased.CPU, w.Offered.CPU, w.Free.CPU, w.Capacity.CPU, coresWords,
			func(part, total int64) string { return coresWords(part) + " of " + countCores(total) },
		},
		{sayMemory, w.Leased.Memory, w.Offered.Memory, w.Free.Memory, w.Capacity.Memory, binarySize, binaryShare},
		{sayStorage, w.Leased.Storage, w.Offered.Storage, w.Free.Storage, w.Capacity.Storage, binarySize, binaryShare},
		{
			sayGPUs, w.Leased.GPUs, w.Offered.GPUs, w.Free.GPUs, w.Capacity.GPUs, func(n int64) string { return fmt.Sprint(n) },
			func(part, total int64) string { return fmt.Sprintf("%d of %d", part, total) },
		},
	} {
		if r.total <= 0 {
			continue
		}
		text := fmt.Sprintf(sayLet, r.share(max(r.leased, 0), r.total))
		if r.offered > 0 {
			text += fmt.Sprintf(sayOffered, r.words(r.offered))
		}
		text += fmt.Sprintf(sayFree, r.words(r.free))
		rows = append(rows, RoomRow{r.name, text, figures.Percent(r.leased, r.total)})
	}
	return rows
}

// roomWords says the room of a lease: "2 cores, 1.0 GB memory and 10 GB storage".
func roomWords(r Room) string {
	var words []string
	if r.CPU > 0 {
		words = append(words, countCores(r.CPU))
	}
	if r.GPUs > 0 {
		words = append(words, figures.Count(int(r.GPUs), "GPU"))
	}
	if r.Memory > 0 {
		words = append(words, binarySize(r.Memory)+" memory")
	}
	if r.Storage > 0 {
		words = append(words, binarySize(r.Storage)+" storage")
	}
	return figures.List(words)
}

// priceSection says what the box asks, and below what it never goes.
func priceSection(p *Prices) Section {
	s := Section{ID: "prices", Title: sayPrices}
	if p == nil {
		return s
	}
	currency := figures.Line(p.Currency)
	add := func(what string, millionths int64) {
		if millionths > 0 {
			s.Rows = append(s.Rows, Row{Name: what, Text: fmt.Sprintf(sayMonthly, figures.Decimal(millionths, 2), currency)})
		}
	}
	add(sayPerCore, p.CPU)
	add(sayPerMemory, p.Memory)
	for _, class := range slices.Sorted(maps.Keys(p.Storage)) {
		add(fmt.Sprintf(sayPerStorage, figures.Line(class)), p.Storage[class])
	}
	for _, model := range slices.Sorted(maps.Keys(p.GPU)) {
		add(fmt.Sprintf(sayPerGPU, figures.Line(model)), p.GPU[model])
	}
	add(sayPerEndpoint, p.Endpoint)
	if p.PowerWatts > 0 && p.PowerKWh > 0 {
		s.Note = fmt.Sprintf(sayFloor, p.PowerWatts, figures.Decimal(p.PowerKWh, 2), currency)
	}
	return s
}

// relayWords says whether tenants can come through a relay.
func relayWords(r Relay) string {
	state := sayDown
	if r.Up {
		state = sayUp
	}
	if r.Since.IsZero() {
		return state
	}
	return fmt.Sprintf(saySince, state, minuteWords(r.Since))
}

// countCores says "1 core", "2.5 cores".
func countCores(millis int64) string {
	if millis == 1000 {
		return "1 core"
	}
	return coresWords(millis) + " cores"
}

// binarySize and binaryShare say what is let in the units it is priced in.
func binarySize(bytes int64) string        { return figures.Size(bytes, 1024) }
func binaryShare(part, total int64) string { return figures.Share(part, total, 1024) }

// Times are said in UTC, since the box does not know where it stands: a day for
// what lasts, and the minute for what just was.
func dayWords(t time.Time) string    { return t.UTC().Format("2 January 2006") }
func minuteWords(t time.Time) string { return t.UTC().Format("2 January, 15:04 UTC") }
