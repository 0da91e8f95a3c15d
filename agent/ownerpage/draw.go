package ownerpage

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"math"
	"strings"
	"unicode/utf8"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gobold"
	"golang.org/x/image/font/gofont/gomonobold"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
	"golang.org/x/image/vector"
	"rsc.io/qr"
)

// Colours of the screen: dark, so that it does not light up a room at night.
// State is never told by colour alone: each has its own sign and sentence.
var (
	backColor = color.RGBA{0x0e, 0x13, 0x10, 0xff}
	textColor = color.RGBA{0xf4, 0xf7, 0xf2, 0xff}
	softColor = color.RGBA{0xa3, 0xb1, 0xa6, 0xff}
	cardColor = color.RGBA{0xff, 0xff, 0xff, 0xff}
	inkColor  = color.RGBA{0x10, 0x16, 0x12, 0xff}
	dimColor  = color.RGBA{0x4c, 0x58, 0x50, 0xff}
)

func stateColor(s State) color.RGBA {
	switch s {
	case Healthy:
		return color.RGBA{0x2f, 0xae, 0x6e, 0xff}
	case Trial:
		return color.RGBA{0x3f, 0x8c, 0xe8, 0xff}
	case Attention:
		return color.RGBA{0xe8, 0x6a, 0x1f, 0xff}
	case Starting:
	}
	return color.RGBA{0x6f, 0x86, 0xaa, 0xff}
}

// stateSign is the sign in the circle: strokes on a square of 64 by 64.
func stateSign(s State) [][]fixed.Point26_6 {
	switch s {
	case Healthy: // a tick
		return [][]fixed.Point26_6{{fixed.P(19, 33), fixed.P(28, 42), fixed.P(46, 24)}}
	case Trial: // an arrow up
		return [][]fixed.Point26_6{{fixed.P(32, 46), fixed.P(32, 19)}, {fixed.P(20, 31), fixed.P(32, 19), fixed.P(44, 31)}}
	case Attention: // an exclamation mark
		return [][]fixed.Point26_6{{fixed.P(32, 17), fixed.P(32, 36)}, {fixed.P(32, 47)}}
	case Starting: // three dots
	}
	return [][]fixed.Point26_6{{fixed.P(19, 32)}, {fixed.P(32, 32)}, {fixed.P(45, 32)}}
}

// A mark is one thing on the screen. Drawing it changes nothing outside box.
type mark struct {
	box  image.Rectangle
	text string // what is written; empty for shapes
	draw func(dst draw.Image)
}

// paint draws those marks that touch dst, so that a screen can be drawn band by
// band without laying it out again.
func paint(dst draw.Image, marks []mark) {
	draw.Draw(dst, dst.Bounds(), image.NewUniform(backColor), image.Point{}, draw.Src)
	for _, m := range marks {
		if m.box.Overlaps(dst.Bounds()) {
			m.draw(dst)
		}
	}
}

// easel collects marks. Lengths are in pixels; sizes are given in thousandths of
// the screen's measure, so that a screen of any resolution shows the same.
type easel struct {
	measure              int // height of a 16:9 screen that would fit
	regular, bold, fixed *opentype.Font
	marks                []mark
}

func newEasel(bounds image.Rectangle) (*easel, error) {
	e := &easel{measure: min(bounds.Dy(), bounds.Dx()*9/16)}
	if bounds.Dy() > bounds.Dx() {
		e.measure = min(bounds.Dx(), bounds.Dy()*9/16)
	}
	for _, f := range []struct {
		to  **opentype.Font
		ttf []byte
	}{{&e.regular, goregular.TTF}, {&e.bold, gobold.TTF}, {&e.fixed, gomonobold.TTF}} {
		parsed, err := opentype.Parse(f.ttf)
		if err != nil {
			return nil, fmt.Errorf("parse font: %w", err)
		}
		*f.to = parsed
	}
	return e, nil
}

// px is thousandths of the measure in pixels.
func (e *easel) px(thousandths int) int { return max(1, thousandths*e.measure/1000) }

func (e *easel) face(f *opentype.Font, pixels int) (font.Face, error) {
	return opentype.NewFace(f, &opentype.FaceOptions{Size: float64(pixels), DPI: 72, Hinting: font.HintingFull})
}

// rect fills r with c.
func (e *easel) rect(r image.Rectangle, c color.Color) {
	e.marks = append(e.marks, mark{r, "", func(dst draw.Image) {
		draw.Draw(dst, r, image.NewUniform(c), image.Point{}, draw.Src)
	}})
}

// shape fills what path draws into r, in coordinates of r.
func (e *easel) shape(r image.Rectangle, c color.Color, path func(z *vector.Rasterizer)) {
	e.marks = append(e.marks, mark{r, "", func(dst draw.Image) {
		z := vector.NewRasterizer(r.Dx(), r.Dy())
		path(z)
		// The rasterizer does not clip at the edge of dst; drawing a mask does.
		mask := image.NewAlpha(image.Rectangle{Max: r.Size()})
		z.DrawOp = draw.Src
		z.Draw(mask, mask.Bounds(), image.Opaque, image.Point{})
		draw.DrawMask(dst, r, image.NewUniform(c), image.Point{}, mask, image.Point{}, draw.Over)
	}})
}

// disc adds a circle to a path.
func disc(z *vector.Rasterizer, x, y, radius float32) {
	const k = 0.5522847 // of the radius: where the controls of a quarter circle stand
	c := k * radius
	z.MoveTo(x+radius, y)
	z.CubeTo(x+radius, y+c, x+c, y+radius, x, y+radius)
	z.CubeTo(x-c, y+radius, x-radius, y+c, x-radius, y)
	z.CubeTo(x-radius, y-c, x-c, y-radius, x, y-radius)
	z.CubeTo(x+c, y-radius, x+radius, y-c, x+radius, y)
	z.ClosePath()
}

// card fills r with c and rounds its corners.
func (e *easel) card(r image.Rectangle, radius int, c color.Color) {
	e.rect(image.Rect(r.Min.X+radius, r.Min.Y, r.Max.X-radius, r.Max.Y), c)
	e.rect(image.Rect(r.Min.X, r.Min.Y+radius, r.Min.X+radius, r.Max.Y-radius), c)
	e.rect(image.Rect(r.Max.X-radius, r.Min.Y+radius, r.Max.X, r.Max.Y-radius), c)
	corner := func(x, y int, cx, cy float32) {
		e.shape(image.Rect(x, y, x+radius, y+radius), c, func(z *vector.Rasterizer) {
			disc(z, cx*float32(radius), cy*float32(radius), float32(radius))
		})
	}
	corner(r.Min.X, r.Min.Y, 1, 1)
	corner(r.Max.X-radius, r.Min.Y, 0, 1)
	corner(r.Min.X, r.Max.Y-radius, 1, 0)
	corner(r.Max.X-radius, r.Max.Y-radius, 0, 0)
}

// sign draws the round sign of a state into the square r.
func (e *easel) sign(r image.Rectangle, s State) {
	k := float32(r.Dx()) / 64
	e.shape(r, stateColor(s), func(z *vector.Rasterizer) { disc(z, 32*k, 32*k, 32*k) })
	e.shape(r, cardColor, func(z *vector.Rasterizer) {
		const half = 3.4 // of the stroke's width
		for _, stroke := range stateSign(s) {
			for i, p := range stroke {
				x, y := float32(p.X)/64*k, float32(p.Y)/64*k
				disc(z, x, y, half*k) // round ends and corners
				if i > 0 {
					line(z, float32(stroke[i-1].X)/64*k, float32(stroke[i-1].Y)/64*k, x, y, half*k)
				}
			}
		}
	})
}

// house draws the mark of the project into the square r.
func (e *easel) house(r image.Rectangle, wall, door color.Color) {
	k := float32(r.Dx()) / 32
	e.shape(r, wall, func(z *vector.Rasterizer) {
		polygon(z, k, 16, 3, 30, 15.5, 27, 18.5, 26.5, 18, 26.5, 29, 5.5, 29, 5.5, 18, 5, 18.5, 2, 15.5)
	})
	e.shape(r, door, func(z *vector.Rasterizer) {
		polygon(z, k, 12.5, 29, 12.5, 21, 14, 19, 18, 19, 19.5, 21, 19.5, 29)
	})
}

func polygon(z *vector.Rasterizer, k float32, xy ...float32) {
	z.MoveTo(xy[0]*k, xy[1]*k)
	for i := 2; i < len(xy); i += 2 {
		z.LineTo(xy[i]*k, xy[i+1]*k)
	}
	z.ClosePath()
}

// line adds a straight stroke to a path, wound like [disc] so that both fill.
func line(z *vector.Rasterizer, x0, y0, x1, y1, half float32) {
	dx, dy := x1-x0, y1-y0
	length := float32(math.Hypot(float64(dx), float64(dy)))
	nx, ny := -dy/length*half, dx/length*half
	z.MoveTo(x0-nx, y0-ny)
	z.LineTo(x1-nx, y1-ny)
	z.LineTo(x1+nx, y1+ny)
	z.LineTo(x0+nx, y0+ny)
	z.ClosePath()
}

// qrCode is a QR code with a size in pixels.
type qrCode struct {
	*qr.Code
	scale int // pixels per module
}

// quietZone is the white border that the QR standard asks for, in modules.
const quietZone = 4

// newQR makes the QR code of text, as large as whole pixels per module allow in
// a square of the given side.
func newQR(text string, side int) (*qrCode, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return nil, fmt.Errorf("encode QR code: %w", err)
	}
	q := &qrCode{code, side / (code.Size + 2*quietZone)}
	if q.scale < 1 {
		return nil, fmt.Errorf("encode QR code: %d modules in %d pixels", code.Size, side)
	}
	return q, nil
}

// side is the code's length and height with its quiet zone.
func (q *qrCode) side() int { return (q.Size + 2*quietZone) * q.scale }

// qr places a QR code with its corner at at, on a white ground.
func (e *easel) qr(q *qrCode, at image.Point) {
	first := at.Add(image.Pt(quietZone, quietZone).Mul(q.scale))
	box := image.Rectangle{Min: first, Max: first.Add(image.Pt(q.Size, q.Size).Mul(q.scale))}
	e.marks = append(e.marks, mark{box, "", func(dst draw.Image) {
		for y := range q.Size {
			for x := range q.Size {
				if q.Black(x, y) {
					p := first.Add(image.Pt(x, y).Mul(q.scale))
					draw.Draw(dst, image.Rectangle{Min: p, Max: p.Add(image.Pt(q.scale, q.scale))}, image.Black, image.Point{}, draw.Src)
				}
			}
		}
	}})
}

// block is text broken into lines of one face.
type block struct {
	face  font.Face
	color color.Color
	lines []string
	pitch int // distance of lines
	gap   int // space above, but for the first block of a column
}

// smallestText is the smallest size of letters, in pixels, at which one can
// still read them from anywhere.
const smallestText = 9

// text breaks s into lines no wider than width. leading is the line distance in
// percent of the size.
func (e *easel) text(f *opentype.Font, pixels, leading, width int, c color.Color, s string) (block, error) {
	pixels = max(pixels, smallestText)
	face, err := e.face(f, pixels)
	if err != nil {
		return block{}, fmt.Errorf("size font: %w", err)
	}
	return block{face: face, color: c, lines: balance(face, s, width), pitch: pixels * leading / 100}, nil
}

// oneLine makes s as large as fits into width, pixels at most. What is too long
// even for the smallest letters is cut.
func (e *easel) oneLine(f *opentype.Font, pixels, width int, c color.Color, s string) (block, error) {
	for {
		b, err := e.text(f, pixels, 120, math.MaxInt16, c, s)
		if err != nil {
			return b, err
		}
		wide := font.MeasureString(b.face, s).Ceil()
		if wide <= width {
			return b, nil
		}
		if pixels <= smallestText {
			b.lines = wrap(b.face, s, width)[:1]
			return b, nil
		}
		pixels = max(smallestText, min(pixels-1, pixels*width/wide))
	}
}

func (b block) height() int { return len(b.lines) * b.pitch }

// put places a block with its upper edge at y; it begins at x, or is centred on
// it.
func (e *easel) put(b block, x, y int, centred bool) {
	m := b.face.Metrics()
	for i, s := range b.lines {
		left, width := x, font.MeasureString(b.face, s).Ceil()
		if centred {
			left = x - width/2
		}
		base := y + i*b.pitch + (b.pitch+m.Ascent.Ceil()-m.Descent.Ceil())/2
		e.marks = append(e.marks, mark{
			image.Rect(left, base-m.Ascent.Ceil(), left+width, base+m.Descent.Ceil()),
			s,
			func(dst draw.Image) {
				d := font.Drawer{Dst: dst, Src: image.NewUniform(b.color), Face: b.face, Dot: fixed.P(left, base)}
				d.DrawString(s)
			},
		})
	}
}

// balance wraps s so that its lines are about equally long; no word is left
// alone on the last one.
func balance(face font.Face, s string, width int) []string {
	lines := wrap(face, s, width)
	if len(lines) < 2 || len(lines) > 3 {
		return lines
	}
	for narrow := width; narrow > width/2; narrow -= max(1, width/50) {
		tighter := wrap(face, s, narrow)
		if len(tighter) > len(lines) {
			break
		}
		lines = tighter
	}
	return lines
}

// wrap breaks s between words; a word wider than a line is broken anywhere.
func wrap(face font.Face, s string, width int) []string {
	fits := func(s string) bool { return font.MeasureString(face, s).Ceil() <= width }
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if joined := strings.TrimSpace(line + " " + word); fits(joined) {
			line = joined
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for !fits(word) {
			_, cut := utf8.DecodeRuneInString(word)
			for {
				_, n := utf8.DecodeRuneInString(word[cut:])
				if n == 0 || !fits(word[:cut+n]) {
					break
				}
				cut += n
			}
			if cut == len(word) {
				break // even one letter is wider than the line
			}
			lines, word = append(lines, word[:cut]), word[cut:]
		}
		line = word
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
