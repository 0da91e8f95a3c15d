package ownerpage

import (
	"fmt"
	"image"
	"image/color"
	"strings"

	"golang.org/x/image/font/opentype"
)

// The screen, seen from two metres (a tall one has the card below):
//
//	┌────────────────────────────────────────┐
//	│ ⌂ croft-k7qm            ┌────────────┐ │
//	│                         │Make it yours│ │
//	│ (✓)                     │  ▄▄ ▄ ▄▄   │ │
//	│ Your box is running.    │  █ ▀▄▀ █   │ │
//	│ What that means.        │  ▀▀ ▀ ▀▀   │ │
//	│ Open …                  │ K7QM-2XWP  │ │
//	│ version, slot, uptime   └────────────┘ │
//	└────────────────────────────────────────┘
//
// layout places v on a screen. Whatever the text, all of it stays inside: the
// column shrinks first, then says less.
func layout(bounds image.Rectangle, v view) ([]mark, error) {
	e, err := newEasel(bounds)
	if err != nil {
		return nil, err
	}
	if bounds.Dx() < 160 || bounds.Dy() < 120 {
		return nil, fmt.Errorf("screen of %v is too small", bounds.Size())
	}
	margin := e.px(64)
	column := bounds.Inset(margin)
	if v.Claim != "" {
		card := column
		if bounds.Dx() >= bounds.Dy() {
			card.Min.X = column.Max.X - e.px(620)
			column.Max.X = card.Min.X - margin
		} else {
			card.Min.Y = bounds.Min.Y + bounds.Dy()*47/100
			column.Max.Y = card.Min.Y - margin
		}
		if err := e.claim(card, v); err != nil {
			return nil, err
		}
	}
	if err := e.head(&column, v); err != nil {
		return nil, err
	}
	if err := e.foot(&column, v); err != nil {
		return nil, err
	}
	return e.marks, e.body(column, v)
}

// head places mark and name, and takes their space from column.
func (e *easel) head(column *image.Rectangle, v view) error {
	size := e.px(60)
	house := image.Rectangle{Min: column.Min, Max: column.Min.Add(image.Pt(size, size))}
	e.house(house, textColor, backColor)
	left := house.Max.X + e.px(20)
	name, err := e.oneLine(e.bold, e.px(44), column.Max.X-left, textColor, v.Name)
	if err != nil {
		return err
	}
	e.put(name, left, column.Min.Y+(size-name.height())/2+e.px(2), false)
	column.Min.Y += size + e.px(24)
	return nil
}

// foot places the small print for support, and takes its space from column.
func (e *easel) foot(column *image.Rectangle, v view) error {
	words := strings.TrimPrefix(v.Software+", "+strings.ToLower(sayUptime)+" "+v.Running, ", ")
	small, err := e.text(e.regular, max(e.px(30), 12), 125, column.Dx(), softColor, words)
	if err != nil {
		return err
	}
	column.Max.Y -= small.height()
	e.put(small, column.Min.X, column.Max.Y, false)
	column.Max.Y -= e.px(24)
	return nil
}

// claim places the card with the claim code into space, as high as it needs to
// be.
func (e *easel) claim(space image.Rectangle, v view) error {
	pad := e.px(40)
	width := space.Dx() - 2*pad
	var failed error
	line := func(f *opentype.Font, thousandths, gap int, c color.Color, s string) block {
		b, err := e.text(f, e.px(thousandths), 120, width, c, s)
		if err != nil {
			failed = err
		}
		b.gap = e.px(gap)
		return b
	}
	above := []block{line(e.bold, 60, 0, inkColor, sayClaimTitle)}
	below := []block{line(e.regular, 36, 0, dimColor, sayClaimOnly)}
	if v.ClaimURL != "" {
		above = append(above, line(e.regular, 38, 4, dimColor, sayClaimScan))
		below = []block{
			line(e.regular, 36, 0, dimColor, sayClaimType),
			line(e.bold, 36, 0, dimColor, v.ClaimSite),
		}
	}
	if failed != nil {
		return failed
	}
	code, err := e.oneLine(e.fixed, e.px(110), width, inkColor, v.Claim.Shown())
	if err != nil {
		return err
	}
	code.gap = e.px(8)
	below = append(below, code)

	text := 3*pad + heightOf(above) + heightOf(below)
	var q *qrCode
	if v.ClaimURL != "" {
		// The quiet zone may take the padding at the sides: that is white too.
		// A URL too long for this screen is typed, not scanned.
		if q, err = newQR(v.ClaimURL, min(space.Dx(), space.Dy()-text+pad)); err == nil {
			text += q.side() - pad
		}
	}
	card := space
	card.Min.Y += max(0, (space.Dy()-text)/2)
	card.Max.Y = card.Min.Y + text
	e.card(card, e.px(40), cardColor)
	middle := (card.Min.X + card.Max.X) / 2
	y := e.column(above, middle, card.Min.Y+pad, true)
	if q != nil {
		e.qr(q, image.Pt(middle-q.side()/2, y))
	}
	e.column(below, middle, card.Max.Y-pad-heightOf(below), true)
	return nil
}

func heightOf(blocks []block) int {
	sum := 0
	for i, b := range blocks {
		if sum += b.height(); i > 0 {
			sum += b.gap
		}
	}
	return sum
}

// column places blocks below each other and returns where they end.
func (e *easel) column(blocks []block, x, y int, centred bool) int {
	for i, b := range blocks {
		if i > 0 {
			y += b.gap
		}
		e.put(b, x, y, centred)
		y += b.height()
	}
	return y
}

// body places sign, headline, what is wrong and the address into column.
func (e *easel) body(column image.Rectangle, v view) error {
	const smallest = 70 // percent; below, nobody could read it from two metres
	wrong, percent := v.Wrong, 100
	if v.Claim == "" {
		percent = 125 // all the screen is free
	}
	for {
		blocks, sign, err := e.bodyBlocks(column.Dx(), percent, v, wrong)
		if err != nil {
			return err
		}
		room := column.Dy() - sign
		need := heightOf(blocks)
		if need > room {
			switch {
			case percent > smallest:
				percent -= 5
				continue
			case len(wrong) > 1: // the worst comes first, the page has the rest
				wrong = wrong[:len(wrong)-1]
				continue
			}
			blocks = cut(blocks, room)
			need = room
		}
		y := column.Min.Y + (room-need)/2
		if sign > 0 {
			size := sign * 80 / 100
			e.sign(image.Rect(column.Min.X, y, column.Min.X+size, y+size), v.Look)
			y += sign
		}
		e.column(blocks, column.Min.X, y, false)
		return nil
	}
}

// bodyBlocks makes the blocks of the column at a share of their full size, and
// says how much room the sign above takes.
func (e *easel) bodyBlocks(width, percent int, v view, wrong []string) (blocks []block, sign int, err error) {
	add := func(f *opentype.Font, thousandths, leading, gap int, c color.Color, s string) {
		if err != nil || s == "" {
			return
		}
		var b block
		b, err = e.text(f, e.px(thousandths)*percent/100, leading, width, c, s)
		b.gap = e.px(gap) * percent / 100
		blocks = append(blocks, b)
	}
	add(e.bold, 98, 112, 0, textColor, v.Headline)
	for _, s := range wrong {
		add(e.regular, 56, 130, 28, textColor, s)
	}
	if rest := len(v.Wrong) - len(wrong); rest > 0 {
		add(e.regular, 44, 130, 20, softColor, fmt.Sprintf(sayMore, rest))
	}
	add(e.regular, 52, 130, 24, softColor, v.Explain)
	if v.Work != nil {
		add(e.regular, 52, 130, 24, textColor, v.Work.Line)
		add(e.regular, 44, 130, 4, softColor, v.Work.Sentence)
	}
	add(e.regular, 40, 130, 24, softColor, v.LastUpdate)
	add(e.regular, 40, 130, 24, softColor, v.FleetLine)
	if len(v.Addresses) > 0 {
		add(e.regular, 36, 130, 48, softColor, sayOpen)
		add(e.bold, 52, 130, 2, textColor, v.Addresses[0])
		if len(v.Addresses) > 1 {
			add(e.regular, 40, 130, 2, softColor, sayOr+" "+v.Addresses[1])
		}
	}
	return blocks, e.px(150) * percent / 100, err
}

// cut shortens blocks to room: what does not fit is left out from below, and a
// sentence cut short ends in an ellipsis.
func cut(blocks []block, room int) []block {
	for i, b := range blocks {
		if i > 0 {
			room -= b.gap
		}
		if b.height() <= room {
			room -= b.height()
			continue
		}
		if n := max(0, room/b.pitch); n > 0 {
			last := strings.TrimRight(b.lines[n-1], ".,:; ")
			if j := strings.LastIndexByte(last, ' '); j > 0 {
				last = last[:j]
			}
			b.lines = append(b.lines[:n-1:n-1], last+" …")
			return append(blocks[:i:i], b)
		}
		return blocks[:i]
	}
	return blocks
}
