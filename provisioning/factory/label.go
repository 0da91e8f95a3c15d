package factory

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/go-pdf/fpdf"
	"rsc.io/qr"

	"github.com/croft-cloud/croft"
)

// Sheet is what labels are printed on.
type Sheet string

// The sheets.
const (
	SheetA4    Sheet = "a4-70x37" // A4, 3×8 labels of 70 × 37 mm, edge to edge
	SheetA4Gap Sheet = "a4-64x34" // A4, 3×8 labels of 63.5 × 33.9 mm with a margin
	SheetRoll  Sheet = "roll-62"  // endless roll of 62 mm, cut every 36 mm
)

// Sheets lists them, the default first.
func Sheets() []Sheet { return []Sheet{SheetA4, SheetA4Gap, SheetRoll} }

// sheet is measured in millimetres.
type sheet struct {
	pageW, pageH  float64
	columns, rows int
	w, h          float64 // of a label
	gap           float64 // between columns; what is left of the page is margin
	pad           float64 // what printers may leave white, inside a label
}

var sheets = map[Sheet]sheet{
	SheetA4:    {pageW: 210, pageH: 297, columns: 3, rows: 8, w: 70, h: 37, pad: 4},
	SheetA4Gap: {pageW: 210, pageH: 297, columns: 3, rows: 8, w: 63.5, h: 33.9, gap: 2.54, pad: 2.5},
	SheetRoll:  {pageW: 62, pageH: 36, columns: 1, rows: 1, w: 62, h: 36, pad: 2.5},
}

func (s sheet) perPage() int { return s.columns * s.rows }

// corner is the left upper corner of the label at a place of a page.
func (s sheet) corner(place int) (x, y float64) {
	left := (s.pageW - float64(s.columns)*s.w - float64(s.columns-1)*s.gap) / 2
	top := (s.pageH - float64(s.rows)*s.h) / 2
	return left + float64(place%s.columns)*(s.w+s.gap), top + float64(place/s.columns)*s.h
}

// Print says which labels to make, and how.
type Print struct {
	Address string   // required; where the console takes claims, like https://fleet.example/claim; up to [MaxAddress]
	Sheet   Sheet    // default [SheetA4]
	Only    []Serial // default all boxes of the batch, in its order
	Skip    int      // labels that the first page lacks; default 0
}

// MaxAddress is the most characters of an address: a longer one would make dots
// too small for a telephone's camera.
const MaxAddress = 64

// CheckAddress tells whether labels can lead people to an address.
func CheckAddress(address string) error {
	bad := func(why string) error {
		return usage("give the page where owners claim a box, like https://fleet.example/claim", "address %.80q %s", address, why)
	}
	u, err := url.Parse(address)
	switch {
	case address == "":
		return bad("is missing")
	case err != nil || u.Host == "" || u.Opaque != "":
		return bad("is no web address")
	case strings.ContainsFunc(address, func(r rune) bool { return r <= ' ' || r > '~' }):
		return bad("has symbols that not every telephone reads")
	case len(address) > MaxAddress:
		return bad(fmt.Sprintf("has %d characters, more than %d", len(address), MaxAddress))
	case u.User != nil:
		return bad("has a user in it")
	case strings.Contains(address, "#"):
		return bad("has a #, behind which the secret goes")
	case u.Scheme == "https" || u.Scheme == "http" && isThisMachine(u.Hostname()):
		return nil
	}
	return bad("is not of https")
}

// isThisMachine is true for hosts of a trial without certificates.
func isThisMachine(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// Labels is a PDF with a label for each box: a QR code that opens the console
// with the box's secret behind '#', the secret in groups, and the serial number.
// The same print of a batch is always the same bytes. It is as secret as the
// batch.
func (b *Batch) Labels(p Print) ([]byte, error) {
	if p.Sheet == "" {
		p.Sheet = SheetA4
	}
	s, known := sheets[p.Sheet]
	switch {
	case !known:
		return nil, usage(fmt.Sprintf("choose one of: %s", strings.Trim(fmt.Sprint(Sheets()), "[]")), "sheet %.40q is not known", string(p.Sheet))
	case p.Skip < 0 || p.Skip >= s.perPage():
		return nil, usage(fmt.Sprintf("a page has %d", s.perPage()), "cannot skip %d labels of the first page", p.Skip)
	}
	if err := CheckAddress(p.Address); err != nil {
		return nil, err
	}
	chosen, err := b.choose(p.Only)
	if err != nil {
		return nil, err
	}
	doc := fpdf.NewCustom(&fpdf.InitType{UnitStr: "mm", Size: fpdf.SizeType{Wd: s.pageW, Ht: s.pageH}})
	doc.SetAutoPageBreak(false, 0)
	doc.SetCatalogSort(true)
	doc.SetCreationDate(b.Made)
	doc.SetModificationDate(b.Made)
	doc.SetTitle("Labels of batch "+b.Name, false)
	measure := func(f face, text string) float64 {
		doc.SetFont(f.family, f.style, f.size)
		return doc.GetStringWidth(text)
	}
	for i, n := range chosen {
		place := (i + p.Skip) % s.perPage()
		if i == 0 || place == 0 {
			doc.AddPage()
		}
		l, err := b.label(n, p.Address, s, measure)
		if err != nil {
			return nil, err
		}
		l.draw(doc, s, place)
	}
	var out bytes.Buffer
	if err := doc.Output(&out); err != nil {
		return nil, fmt.Errorf("write labels: %w", err)
	}
	return out.Bytes(), nil
}

// choose finds boxes by their serial numbers.
func (b *Batch) choose(only []Serial) ([]int, error) {
	var chosen []int
	if len(only) == 0 {
		for i := range b.Boxes {
			chosen = append(chosen, i)
		}
		return chosen, nil
	}
	for _, serial := range only {
		i := slices.IndexFunc(b.Boxes, func(box Box) bool { return box.Serial == serial })
		if i < 0 {
			return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("batch %s has no box %s", b.Name, serial), Remedy: "look for it in the lists of the other batches"}
		}
		chosen = append(chosen, i)
	}
	return chosen, nil
}

// face is a letter of the fonts that every PDF reader has.
type face struct {
	family, style string
	size          float64 // points
}

var (
	faceCall   = face{"Helvetica", "B", 7}
	faceSecret = face{"Courier", "B", 13}
	faceSmall  = face{"Helvetica", "", 5.5}
	faceSerial = face{"Courier", "B", 7.5}
	faceDesk   = face{"Helvetica", "", 5} // for whoever sticks it on
)

// label is what stands on one, in millimetres from its left upper corner.
type label struct {
	code     *qr.Code
	x, y     float64 // of the code's first dot
	dot      float64 // side of a dot
	lines    []line
	colWidth float64 // that lines have
}

type line struct {
	face face
	x, y float64 // of the left end of the base line
	text string
}

// Shares of a label.
const (
	quietZone = 4    // dots that must be white around a code
	codeShare = 0.42 // of the label's width, at most
	point     = 25.4 / 72
)

// label lays out the label of the box with an index. The code is to the left, as
// large as it may be; the lines are to its right, and end at the padding.
func (b *Batch) label(n int, address string, s sheet, measure func(face, string) float64) (*label, error) {
	box := b.Boxes[n]
	code, err := qr.Encode(box.Secret.URL(address), qr.M)
	if err != nil {
		return nil, errors.New("write labels: an address does not fit into a QR code") // the error would tell the secret
	}
	side := min(s.h-2*s.pad, codeShare*s.w)
	l := &label{code: code, x: s.pad, y: (s.h - side) / 2, dot: side / float64(code.Size)}
	left := l.x + side + quietZone*l.dot
	l.colWidth = s.w - s.pad - left

	base := s.pad
	add := func(above float64, f face, texts ...string) {
		for _, text := range texts {
			base += above + f.size*point
			l.lines = append(l.lines, line{f, left, base, text})
			above = 0.1 * f.size * point
		}
	}
	groups := box.Secret.groups()
	half := len(groups) / 2
	add(0, faceCall, "Scan to claim this box,")
	add(0.2, faceSmall, "or type this code:")
	add(0.4, faceSecret, strings.Join(groups[:half], "-"), strings.Join(groups[half:], "-"))
	add(0.8, faceSmall, broken(strings.TrimPrefix(address, "https://"), l.colWidth, faceSmall, measure)...)
	add(1, faceSmall, "Serial number")
	add(0.3, faceSerial, string(box.Serial))
	add(0.5, faceDesk, broken(fmt.Sprintf("%s, %d of %d", b.Name, n+1, len(b.Boxes)), l.colWidth, faceDesk, measure)...)
	if base > s.h-s.pad {
		return nil, usage("choose a shorter address, or another sheet", "address %.80q and batch %s are too wide for a label of %g mm", address, b.Name, s.w)
	}
	return l, nil
}

// broken breaks text into lines that are no wider than width.
func broken(text string, width float64, f face, measure func(face, string) float64) []string {
	var lines []string
	for text != "" {
		n := len(text)
		for n > 1 && measure(f, text[:n]) > width {
			n--
		}
		lines, text = append(lines, text[:n]), text[n:]
	}
	return lines
}

// draw puts a label on a place of the page. The dots of a code are one filled
// path, with runs of a row as rectangles: so no hairlines show between them.
func (l *label) draw(doc *fpdf.Fpdf, s sheet, place int) {
	x, y := s.corner(place)
	_, pageH := doc.GetPageSize()
	var path strings.Builder
	fmt.Fprintf(&path, "q %.4f 0 0 %.4f %.4f %.4f cm", l.dot/point, -l.dot/point, (x+l.x)/point, (pageH-y-l.y)/point)
	for row := range l.code.Size {
		for column := 0; column < l.code.Size; column++ {
			from := column
			for l.code.Black(column, row) {
				column++
			}
			if column > from {
				fmt.Fprintf(&path, " %d %d %d 1 re", from, row, column-from)
			}
		}
	}
	doc.RawWriteStr(path.String() + " f Q")
	for _, line := range l.lines {
		doc.SetFont(line.face.family, line.face.style, line.face.size)
		doc.Text(x+line.x, y+line.y, line.text)
	}
}
