package factory

import (
	"bytes"
	"compress/zlib"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-pdf/fpdf"
	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const testAddress = "https://fleet.example/claim"

// testBatch has boxes with secrets that are easy to tell apart. Its vouchers are
// missing: no label shows one.
func testBatch(count int) *Batch {
	b := &Batch{Name: "2026-11", Made: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	for i := range count {
		digits := fmt.Sprintf("%011d", 48213077556+i)
		b.Boxes = append(b.Boxes, Box{
			Serial: serialOf(digits + string('0'+rune(damm(digits)))),
			Secret: Secret(fmt.Sprintf("Z4QM2XVPWDTB%04d", i)),
		})
	}
	return b
}

// page is what a PDF's page shows, in millimetres from its left upper corner.
type page struct {
	w, h  float64
	codes []code
	texts []text
}

type code struct {
	x, y, dot float64
	size      int
	black     map[[2]int]bool // by x, y
}

type text struct {
	x, y, size float64
	face, text string
}

var (
	fontRefForm  = regexp.MustCompile(`/F(\w+) (\d+) 0 R`)
	baseFontForm = regexp.MustCompile(`/BaseFont /(\S+)`)
	boxForm      = regexp.MustCompile(`/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]`)
	streamForm   = regexp.MustCompile(`(?s)stream\n(.*?)\nendstream`)
	fontForm     = regexp.MustCompile(`^BT /F(\w+) ([\d.]+) Tf ET$`)
	textForm     = regexp.MustCompile(`^BT ([\d.]+) ([\d.]+) Td \((.*)\) Tj ET$`)
	codeForm     = regexp.MustCompile(`^q ([\d.]+) 0 0 -([\d.]+) ([\d.]+) ([\d.]+) cm((?: \d+ \d+ \d+ 1 re)+) f Q$`)
	runForm      = regexp.MustCompile(`(\d+) (\d+) (\d+) 1 re`)
)

func number(t *testing.T, text string) float64 {
	t.Helper()
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// readPDF reads the pages of a PDF that [Batch.Labels] made.
func readPDF(t *testing.T, pdf []byte) []page {
	t.Helper()
	box := boxForm.FindSubmatch(pdf)
	if box == nil {
		t.Fatal("the pages have no size")
	}
	w, h := number(t, string(box[1])), number(t, string(box[2]))
	mm := func(text string) float64 { return number(t, text) * point }
	fonts := map[string]string{} // of the resources, by name
	for _, m := range fontRefForm.FindAllSubmatch(pdf, -1) {
		_, object, _ := bytes.Cut(pdf, append([]byte("\n"), append(m[2], " 0 obj"...)...))
		fonts[string(m[1])] = string(baseFontForm.FindSubmatch(object)[1])
	}
	var pages []page
	for _, stream := range streamForm.FindAllSubmatch(pdf, -1) {
		z, err := zlib.NewReader(bytes.NewReader(stream[1]))
		if err != nil {
			continue // a stream of another kind
		}
		raw, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(raw, []byte(" Tj ET")) {
			continue
		}
		p := page{w: w * point, h: h * point}
		var font, size string
		for line := range strings.Lines(string(raw)) {
			line = strings.TrimSuffix(line, "\n")
			if m := fontForm.FindStringSubmatch(line); m != nil {
				font, size = m[1], m[2]
			} else if m := textForm.FindStringSubmatch(line); m != nil {
				p.texts = append(p.texts, text{mm(m[1]), p.h - mm(m[2]), number(t, size), fonts[font], strings.NewReplacer(`\(`, "(", `\)`, ")").Replace(m[3])})
			} else if m := codeForm.FindStringSubmatch(line); m != nil {
				c := code{x: mm(m[3]), y: p.h - mm(m[4]), dot: mm(m[1]), black: map[[2]int]bool{}}
				if m[1] != m[2] {
					t.Errorf("dots are %s × %s", m[1], m[2])
				}
				for _, run := range runForm.FindAllStringSubmatch(m[5], -1) {
					x, y, n := int(number(t, run[1])), int(number(t, run[2])), int(number(t, run[3]))
					for i := range n {
						c.black[[2]int{x + i, y}] = true
						c.size = max(c.size, x+i+1, y+1)
					}
				}
				p.codes = append(p.codes, c)
			} else if strings.Contains(line, " re") || strings.Contains(line, "Tj") {
				t.Errorf("not understood: %.80s", line)
			}
		}
		pages = append(pages, p)
	}
	return pages
}

func TestLayoutOfLabels(t *testing.T) {
	var got strings.Builder
	for _, name := range Sheets() {
		s := sheets[name]
		// The last place of a page, and the first of the next one.
		pdf, err := testBatch(2).Labels(Print{Address: testAddress, Sheet: name, Skip: s.perPage() - 1})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s\n", name)
		for i, p := range readPDF(t, pdf) {
			fmt.Fprintf(&got, "  page %d of %.1f × %.1f mm\n", i+1, p.w, p.h)
			for _, c := range p.codes {
				fmt.Fprintf(&got, "    %6.1f %6.1f  code of %d dots of %.2f mm\n", c.x, c.y, c.size, c.dot)
			}
			for _, x := range p.texts {
				fmt.Fprintf(&got, "    %6.1f %6.1f  %s %g  %s\n", x.x, x.y, x.face, x.size, x.text)
			}
		}
	}
	golden := filepath.Join("testdata", "labels.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestEveryCodeOpensTheConsoleOfItsBox(t *testing.T) {
	longest := "https://boxes.fleet.example.com/" + strings.Repeat("o", MaxAddress-32)
	if len(longest) != MaxAddress {
		t.Fatalf("the longest address has %d characters", len(longest))
	}
	b := testBatch(9)
	for _, name := range Sheets() {
		for _, address := range []string{testAddress, longest, "http://127.0.0.1:8080/", "https://a.b"} {
			pdf, err := b.Labels(Print{Address: address, Sheet: name})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, p := range readPDF(t, pdf) {
				perBox := len(p.texts) / len(p.codes)
				for i, c := range p.codes {
					url, err := decodeQR(c)
					if want := address + "#" + string(b.Boxes[n].Secret); err != nil || url != want {
						t.Errorf("%s: code %d is %q, %v, want %q", name, n, url, err, want)
					}
					var said []string
					for _, x := range p.texts[i*perBox : (i+1)*perBox] {
						said = append(said, x.text)
					}
					shown := b.Boxes[n].Secret.Shown()
					for _, want := range []string{shown[:9], shown[10:], string(b.Boxes[n].Serial), fmt.Sprintf("%d of 9", n+1)} {
						if !strings.Contains(strings.Join(said, "\n"), want) {
							t.Errorf("%s: label %d lacks %q: %q", name, n, want, said)
						}
					}
					n++
				}
			}
			if n != len(b.Boxes) {
				t.Errorf("%s: %d labels, want %d", name, n, len(b.Boxes))
			}
		}
	}
}

func TestEverythingIsInsideItsLabel(t *testing.T) {
	for _, name := range Sheets() {
		s := sheets[name]
		pdf, err := testBatch(s.perPage()).Labels(Print{Address: "https://boxes.fleet.example.com/" + strings.Repeat("o", MaxAddress-32), Sheet: name})
		if err != nil {
			t.Fatal(err)
		}
		p := readPDF(t, pdf)[0]
		if math.Abs(p.w-s.pageW) > 0.01 || math.Abs(p.h-s.pageH) > 0.01 {
			t.Errorf("%s: the page is %.2f × %.2f mm", name, p.w, p.h)
		}
		perBox := len(p.texts) / len(p.codes)
		for place, c := range p.codes {
			left, top := s.corner(place)
			if left < -0.01 || top < -0.01 || left+s.w > s.pageW+0.01 || top+s.h > s.pageH+0.01 {
				t.Errorf("%s: label %d is beyond the page", name, place)
			}
			const slack = 0.02 // the PDF has two decimals
			side := c.dot * float64(c.size)
			if c.x < left+s.pad-slack || c.y < top+s.pad-slack || c.y+side > top+s.h-s.pad+slack {
				t.Errorf("%s: code %d is too near to the edge", name, place)
			}
			if c.dot < 0.6 {
				t.Errorf("%s: dots of %.2f mm are too small", name, c.dot)
			}
			above := top + s.pad
			for _, x := range p.texts[place*perBox : (place+1)*perBox] {
				height, width := x.size*point, measured(x)
				if x.x < c.x+side+4*c.dot-slack {
					t.Errorf("%s: %q is in the white around code %d", name, x.text, place)
				}
				if x.x+width > left+s.w-s.pad+slack || x.y > top+s.h-s.pad+slack {
					t.Errorf("%s: %q ends at %.1f, %.1f, out of label %d", name, x.text, x.x+width-left, x.y-top, place)
				}
				if x.y-height < above-slack {
					t.Errorf("%s: %q lies over what is above it", name, x.text)
				}
				above = x.y
			}
		}
	}
}

// measured is the width of a text in millimetres, as PDF readers know its letters.
func measured(x text) float64 {
	family, style, _ := strings.Cut(x.face, "-")
	doc := fpdf.New("", "mm", "", "")
	doc.SetFont(family, style[:min(1, len(style))], x.size)
	return doc.GetStringWidth(x.text)
}

func TestTheSamePrintIsTheSameFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Print{Address: testAddress}
		first, err := testBatch(30).Labels(p)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour) // the date of printing is in no label
		if again, err := testBatch(30).Labels(p); err != nil || !bytes.Equal(first, again) {
			t.Errorf("it differs: %v", err)
		}
		if other, err := testBatch(29).Labels(p); err != nil || bytes.Equal(first, other) {
			t.Errorf("another batch has the same labels: %v", err)
		}
	})
}

func TestSomeLabelsOnAStartedSheet(t *testing.T) {
	b := testBatch(30)
	pdf, err := b.Labels(Print{Address: testAddress, Only: []Serial{b.Boxes[7].Serial, b.Boxes[3].Serial}, Skip: 5})
	if err != nil {
		t.Fatal(err)
	}
	pages := readPDF(t, pdf)
	if len(pages) != 1 || len(pages[0].codes) != 2 {
		t.Fatalf("there are %d pages", len(pages))
	}
	for i, want := range []Secret{b.Boxes[7].Secret, b.Boxes[3].Secret} {
		c := pages[0].codes[i]
		if got, err := decodeQR(c); err != nil || got != want.URL(testAddress) {
			t.Errorf("label %d is of %q, %v", i, got, err)
		}
		if x, y := sheets[SheetA4].corner(5 + i); c.x < x || c.y < y || c.x > x+20 || c.y > y+20 {
			t.Errorf("label %d is at %.1f, %.1f, not at place %d", i, c.x, c.y, 5+i)
		}
	}
}

func TestBadPrints(t *testing.T) {
	for _, tc := range []struct {
		name  string
		print Print
		kind  croft.Kind
		want  string
	}{
		{"no address", Print{}, croft.KindUsage, "is missing; give the page"},
		{"no scheme", Print{Address: "fleet.example/claim"}, croft.KindUsage, "is no web address"},
		{"no host", Print{Address: "https:///claim"}, croft.KindUsage, "is no web address"},
		{"not https", Print{Address: "http://fleet.example"}, croft.KindUsage, "is not of https"},
		{"another scheme", Print{Address: "javascript://fleet.example"}, croft.KindUsage, "is not of https"},
		{"a host that only begins as this machine", Print{Address: "http://localhost.example"}, croft.KindUsage, "is not of https"},
		{"a user", Print{Address: "https://a:b@fleet.example"}, croft.KindUsage, "has a user"},
		{"a fragment", Print{Address: "https://fleet.example/#x"}, croft.KindUsage, "has a #"},
		{"an empty fragment", Print{Address: "https://fleet.example/#"}, croft.KindUsage, "has a #"},
		{"letters of another script", Print{Address: "https://flöt.example/"}, croft.KindUsage, "not every telephone"},
		{"a line break", Print{Address: "https://fleet.example/\n"}, croft.KindUsage, "no web address"},
		{"too long", Print{Address: "https://fleet.example/" + strings.Repeat("a", 50)}, croft.KindUsage, "has 72 characters, more than 64"},
		{"too wide", Print{Address: "https://fleet.example/" + strings.Repeat("W", 42)}, croft.KindUsage, "too wide for a label of 70 mm; choose a shorter"},
		{"no such sheet", Print{Address: testAddress, Sheet: "a5"}, croft.KindUsage, "choose one of: a4-70x37 a4-64x34 roll-62"},
		{"a whole page skipped", Print{Address: testAddress, Skip: 24}, croft.KindUsage, "a page has 24"},
		{"less than nothing skipped", Print{Address: testAddress, Skip: -1}, croft.KindUsage, "a page has 24"},
		{"a roll skipped", Print{Address: testAddress, Sheet: SheetRoll, Skip: 1}, croft.KindUsage, "a page has 1"},
		{"a box of another batch", Print{Address: testAddress, Only: []Serial{"CR-0000-0000-0000"}}, croft.KindNotFound, "has no box CR-0000-0000-0000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pdf, err := testBatch(1).Labels(tc.print)
			if err == nil || pdf != nil || croft.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%d bytes, %v, want %s with %q", len(pdf), err, tc.kind, tc.want)
			}
		})
	}
}

// decodeQR reads a code as a camera's program does after it has found the dots:
// ISO/IEC 18004, versions 1 to 6, error correction M, bytes. A code with a wrong
// dot in its data is an error.
func decodeQR(c code) (string, error) {
	dot := func(x, y int) int {
		if c.black[[2]int{x, y}] {
			return 1
		}
		return 0
	}
	version := (c.size - 17) / 4
	if version < 1 || version > 6 || c.size != 17+4*version {
		return "", fmt.Errorf("%d dots", c.size)
	}
	format := 0
	for _, at := range [][2]int{{0, 8}, {1, 8}, {2, 8}, {3, 8}, {4, 8}, {5, 8}, {7, 8}, {8, 8}, {8, 7}, {8, 5}, {8, 4}, {8, 3}, {8, 2}, {8, 1}, {8, 0}} {
		format = format<<1 | dot(at[0], at[1])
	}
	format ^= 0x5412
	rest := format
	for bit := 14; bit >= 10; bit-- {
		if rest>>bit&1 == 1 {
			rest ^= 0x537 << (bit - 10)
		}
	}
	if rest != 0 || format>>13 != 0 {
		return "", fmt.Errorf("format %015b is damaged or not M", format)
	}
	inverted := []func(x, y int) bool{
		func(x, y int) bool { return (y+x)%2 == 0 },
		func(_, y int) bool { return y%2 == 0 },
		func(x, _ int) bool { return x%3 == 0 },
		func(x, y int) bool { return (y+x)%3 == 0 },
		func(x, y int) bool { return (y/2+x/3)%2 == 0 },
		func(x, y int) bool { return y*x%2+y*x%3 == 0 },
		func(x, y int) bool { return (y*x%2+y*x%3)%2 == 0 },
		func(x, y int) bool { return ((y+x)%2+y*x%3)%2 == 0 },
	}[format>>10&7]
	n := c.size
	pattern := func(x, y int) bool {
		corner := x < 9 && y < 9 || x >= n-8 && y < 9 || x < 9 && y >= n-8
		small := version > 1 && x >= n-9 && x < n-4 && y >= n-9 && y < n-4
		return corner || small || x == 6 || y == 6
	}
	var words []byte
	var bits, word int
	up := true
	for right := n - 1; right > 0; right -= 2 {
		if right == 6 {
			right--
		}
		for i := range n {
			y := i
			if up {
				y = n - 1 - i
			}
			for _, x := range []int{right, right - 1} {
				if pattern(x, y) {
					continue
				}
				bit := dot(x, y)
				if inverted(x, y) {
					bit ^= 1
				}
				word = word<<1 | bit
				if bits++; bits%8 == 0 {
					words, word = append(words, byte(word)), 0
				}
			}
		}
		up = !up
	}
	block := [][3]int{1: {1, 16, 10}, 2: {1, 28, 16}, 3: {1, 44, 26}, 4: {2, 32, 18}, 5: {2, 43, 24}, 6: {4, 27, 16}}[version] // blocks, data and check bytes in each
	blocks, data, check := block[0], block[1], block[2]
	if len(words) != blocks*(data+check) {
		return "", fmt.Errorf("%d bytes in version %d", len(words), version)
	}
	var message []byte
	for b := range blocks {
		var all []byte
		for i := range data + check {
			all = append(all, words[i*blocks+b])
		}
		for power := range check {
			var sum byte
			for _, w := range all {
				sum = times(sum, exp2(power)) ^ w
			}
			if sum != 0 {
				return "", errors.New("a dot of the data is wrong")
			}
		}
		message = append(message, all[:data]...)
	}
	if message[0]>>4 != 4 {
		return "", fmt.Errorf("mode %d is not that of bytes", message[0]>>4)
	}
	length := int(message[0]&15)<<4 | int(message[1]>>4)
	var out []byte
	for i := range length {
		out = append(out, message[i+1]<<4|message[i+2]>>4)
	}
	return string(out), nil
}

// times multiplies in the field of 256 elements that QR codes use.
func times(a, b byte) byte {
	var product int
	for i := range 8 {
		if b>>i&1 == 1 {
			product ^= int(a) << i
		}
	}
	for bit := 14; bit >= 8; bit-- {
		if product>>bit&1 == 1 {
			product ^= 0x11d << (bit - 8)
		}
	}
	return byte(product)
}

func exp2(n int) byte {
	power := byte(1)
	for range n {
		power = times(power, 2)
	}
	return power
}

func TestADamagedCodeIsNotDecoded(t *testing.T) {
	pdf, err := testBatch(1).Labels(Print{Address: testAddress})
	if err != nil {
		t.Fatal(err)
	}
	c := readPDF(t, pdf)[0].codes[0]
	at := [2]int{c.size - 1, c.size - 1}
	c.black[at] = !c.black[at]
	if got, err := decodeQR(c); err == nil {
		t.Errorf("it is read as %q", got)
	}
}
