package ownerpage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"rsc.io/qr"
)

// render draws s over the whole of dst, at any size.
func render(dst draw.Image, s Status) error {
	marks, err := layout(dst.Bounds(), newView(s))
	if err != nil {
		return err
	}
	paint(dst, marks)
	return nil
}

var screenSizes = []image.Point{{X: 1280, Y: 800}, {X: 1920, Y: 1080}, {X: 800, Y: 600}, {X: 640, Y: 480}, {X: 1024, Y: 768}, {X: 1080, Y: 1920}, {X: 2560, Y: 1080}, {X: 320, Y: 240}}

// eachScreen runs test for every face on every size of screen.
func eachScreen(t *testing.T, test func(t *testing.T, s Status, size image.Point)) {
	for name, status := range faces() {
		for _, size := range screenSizes {
			t.Run(fmt.Sprintf("%s %dx%d", name, size.X, size.Y), func(t *testing.T) { test(t, status, size) })
		}
	}
}

func TestScreenHoldsAllItShows(t *testing.T) {
	eachScreen(t, func(t *testing.T, s Status, size image.Point) {
		bounds := image.Rectangle{Max: size}
		v := newView(s)
		marks, err := layout(bounds, v)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, m := range marks {
			if !m.box.In(bounds) {
				t.Errorf("%q at %v leaves the screen", m.text, m.box)
			}
			if m.text != "" {
				text = append(text, m.text)
			}
		}
		shown := strings.Join(text, " ")
		want := []string{v.Headline}
		if s.Claim != "" {
			want = append(want, testShown)
		}
		if len(s.Problems) < 3 { // else some may be left to the page
			want = append(want, v.Explain, v.LastUpdate)
			if v.Work != nil {
				want = append(want, v.Work.Line, v.Work.Sentence)
			}
			want = append(want, v.Wrong...)
			want = append(want, s.Addresses...)
		}
		for _, w := range want {
			if !strings.Contains(shown, w) && len(w) < 500 && !strings.Contains(w, "long.long.") && !strings.Contains(w, "<script>") {
				t.Errorf("%q is not on the screen: %q", w, shown)
			}
		}
	})
}

func TestScreenTextDoesNotCollide(t *testing.T) {
	eachScreen(t, func(t *testing.T, s Status, size image.Point) {
		marks, err := layout(image.Rectangle{Max: size}, newView(s))
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range marks {
			for _, b := range marks[:i] {
				// Lines of one block may share the empty rows between them.
				if a.text != "" && b.text != "" && a.box.Intersect(b.box).Dy() > min(a.box.Dy(), b.box.Dy())/3 {
					t.Errorf("%q at %v meets %q at %v", a.text, a.box, b.text, b.box)
				}
			}
		}
	})
}

func TestScreenShowsAQRCodeThatCanBeRead(t *testing.T) {
	want, err := qr.Encode("https://croft.example/claim#"+testCode, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range screenSizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			img := image.NewRGBA(image.Rectangle{Max: size})
			if err := render(img, unclaimed()); err != nil {
				t.Fatal(err)
			}
			black := color.RGBA{A: 0xff} // nothing else on the screen is
			var box image.Rectangle
			for y := range size.Y {
				for x := range size.X {
					if img.RGBAAt(x, y) == black {
						box = box.Union(image.Rect(x, y, x+1, y+1))
					}
				}
			}
			scale := box.Dx() / want.Size
			if scale < 2 || box.Dx() != scale*want.Size || box.Dy() != box.Dx() {
				t.Fatalf("QR code is at %v for %d modules", box, want.Size)
			}
			if size.Y >= 480 && scale*want.Size*10 < min(size.X, size.Y)*3 {
				t.Errorf("QR code of %d pixels is small", scale*want.Size)
			}
			white := color.RGBA{0xff, 0xff, 0xff, 0xff}
			const border = 2 // modules that are surely white; the edge of the card comes later
			for y := -border; y < want.Size+border; y++ {
				for x := -border; x < want.Size+border; x++ {
					c := white
					if want.Black(x, y) {
						c = black
					}
					if got := img.RGBAAt(box.Min.X+x*scale+scale/2, box.Min.Y+y*scale+scale/2); got != c {
						t.Fatalf("module %d, %d is %v, want %v", x, y, got, c)
					}
				}
			}
		})
	}
}

func TestRenderDrawsAnywhere(t *testing.T) {
	a := image.NewRGBA(image.Rect(0, 0, 800, 600))
	b := image.NewRGBA(image.Rect(-37, 51, 763, 651))
	for _, img := range []*image.RGBA{a, b} {
		if err := render(img, unclaimed()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Pix, b.Pix) {
		t.Error("the picture depends on where its corner is")
	}
}

func TestRenderRefusesATinyScreen(t *testing.T) {
	if err := render(image.NewRGBA(image.Rect(0, 0, 100, 80)), healthy()); err == nil {
		t.Error("a screen of 100 by 80 is drawn on")
	}
}

// TestPictures writes every face as a PNG, for people to look at: set
// CROFT_PICTURES to a folder.
func TestPictures(t *testing.T) {
	dir := os.Getenv("CROFT_PICTURES")
	if dir == "" {
		t.Skip("CROFT_PICTURES names no folder")
	}
	for name, status := range faces() {
		for _, size := range screenSizes {
			img := image.NewRGBA(image.Rectangle{Max: size})
			if err := render(img, status); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := png.Encode(&out, img); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, fmt.Sprintf("%s-%dx%d.png", name, size.X, size.Y))
			if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Layouts that real drivers use.
var (
	xrgb8888 = pixelLayout{4, bitfield{16, 8}, bitfield{8, 8}, bitfield{0, 8}}
	xbgr8888 = pixelLayout{4, bitfield{0, 8}, bitfield{8, 8}, bitfield{16, 8}}
	rgb888   = pixelLayout{3, bitfield{16, 8}, bitfield{8, 8}, bitfield{0, 8}}
	rgb565   = pixelLayout{2, bitfield{11, 5}, bitfield{5, 6}, bitfield{0, 5}}
)

// newScreen is a screen on a file, which stands for a framebuffer.
func newScreen(t *testing.T, src Source, g geometry, log *slog.Logger) (*Screen, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fb0")
	s, err := NewScreen(ScreenConfig{Source: src, Device: file, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.geometry = func(uintptr) (geometry, error) { return g, nil }
	s.graphics = func(string) (func(), error) { return nil, errors.New("no console") }
	return s, file
}

func TestShowWritesEveryPixelLayout(t *testing.T) {
	for _, tc := range []struct {
		name string
		g    geometry
	}{
		{"32 bits", geometry{1280, 800, 1280 * 4, 0, xrgb8888}},
		{"32 bits, red first, padded lines", geometry{800, 600, 4096, 0, xbgr8888}},
		{"24 bits", geometry{640, 480, 640 * 3, 0, rgb888}},
		{"16 bits, scrolled", geometry{641, 480, 1284, 1284*480 + 8, rgb565}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, file := newScreen(t, NewSlate(unclaimed(), nil), tc.g, nil)
			memory := bytes.Repeat([]byte{0xa5}, tc.g.offset+tc.g.height*tc.g.stride)
			if err := os.WriteFile(file, memory, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := s.show(unclaimed()); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(memory) || !bytes.Equal(got[:tc.g.offset], memory[:tc.g.offset]) {
				t.Fatal("bytes outside the visible screen were written")
			}
			want := image.NewRGBA(image.Rect(0, 0, tc.g.width, tc.g.height))
			if err := render(want, unclaimed()); err != nil {
				t.Fatal(err)
			}
			p := tc.g.pixel
			for y := range tc.g.height {
				for x := range tc.g.width {
					at := tc.g.offset + y*tc.g.stride + x*p.bytes
					var raw [4]byte
					copy(raw[:p.bytes], got[at:])
					v := binary.LittleEndian.Uint32(raw[:])
					c := want.RGBAAt(x, y)
					for _, f := range []struct {
						bitfield
						want uint8
					}{{p.red, c.R}, {p.green, c.G}, {p.blue, c.B}} {
						if v>>f.shift&(1<<f.length-1) != uint32(f.want>>(8-f.length)) {
							t.Fatalf("pixel %d, %d is %#x, want %v", x, y, v, c)
						}
					}
				}
			}
		})
	}
}

func TestScreenFollowsTheStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		slate := NewSlate(healthy(), nil)
		s, file := newScreen(t, slate, geometry{320, 240, 640, 0, rgb565}, slog.New(slog.NewTextHandler(&logged, nil)))
		taken, restored := 0, 0
		s.graphics = func(string) (func(), error) { taken++; return func() { restored++ }, nil }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		drawn := func() bool { // since the last call
			t.Helper()
			synctest.Wait()
			raw, err := os.ReadFile(file)
			if err != nil {
				return false
			}
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return len(raw) == 640*240
		}

		if drawn() || logged.Len() > 0 {
			t.Errorf("without a screen: log %q", logged.String())
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if !drawn() || taken != 1 {
			t.Errorf("a screen that appears is not drawn, or the console is not kept off (%d)", taken)
		}
		if drawn() {
			t.Error("the screen is drawn without need")
		}
		slate.Update(func(s *Status) { s.State = Attention })
		if !drawn() {
			t.Error("a change is not drawn")
		}
		time.Sleep(30 * time.Second)
		if !drawn() {
			t.Error("the screen is not kept fresh")
		}
		cancel()
		if err := <-done; err != nil || taken != 1 || restored != 1 {
			t.Errorf("Run = %v, console taken %d times, restored %d times", err, taken, restored)
		}
	})
}

func TestScreenTroubleIsLoggedOnce(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		want int
	}{
		{"trouble", errors.New("odd screen"), 1},
		{"a screen whose driver is gone", fmt.Errorf("read: %w", syscall.ENODEV), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged bytes.Buffer
				s, file := newScreen(t, NewSlate(healthy(), nil), geometry{}, slog.New(slog.NewTextHandler(&logged, nil)))
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				s.geometry = func(uintptr) (geometry, error) { return geometry{}, tc.err }
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
				defer cancel()
				if err := s.Run(ctx); err != nil {
					t.Errorf("Run = %v", err)
				}
				if got := strings.Count(logged.String(), "\n"); got != tc.want {
					t.Errorf("log has %d lines, want %d: %s", got, tc.want, logged.String())
				}
			})
		})
	}
}

func TestParseGeometry(t *testing.T) {
	// As the EFI framebuffer of a virtual machine answers.
	answer := func() (v [fbVarSize]byte, f [fbFixSize]byte) {
		put := func(b []byte, at int, values ...uint32) {
			for i, x := range values {
				binary.NativeEndian.PutUint32(b[at+4*i:], x)
			}
		}
		put(v[:], 0, 1280, 800, 1280, 800, 0, 0, 32, 0, 16, 8, 0, 8, 8, 0, 0, 8, 0, 24, 8, 0)
		copy(f[:], "EFI VGA")
		put(f[:], 24, 4096000, 0, 0, 2)
		put(f[:], 48, 5120)
		return v, f
	}
	v, f := answer()
	got, err := parseGeometry(v, f)
	if want := (geometry{1280, 800, 5120, 0, xrgb8888}); err != nil || got != want {
		t.Errorf("geometry = %+v, %v; want %+v", got, err, want)
	}
	for _, tc := range []struct {
		name      string
		inFixed   bool
		at, value uint32
		good      bool
	}{
		{"scrolled", false, 20, 3, true},
		{"planes", true, 28, 1, false},
		{"a palette", true, 36, 3, false},
		{"direct colour", true, 36, 4, true},
		{"no width", false, 0, 0, false},
		{"no height", false, 4, 0, false},
		{"a giant", false, 0, 1 << 31, false},
		{"lines longer than their stride", true, 48, 5119, false},
		{"a stride beyond reason", true, 48, 1 << 31, false},
		{"15 bits", false, 24, 15, false},
		{"64 bits", false, 24, 64, false},
		{"a colour outside the pixel", false, 32, 30, false},
		{"a colour of ten bits", false, 36, 10, false},
		{"a colour of no bits", false, 36, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, f := answer()
			b := v[:]
			if tc.inFixed {
				b = f[:]
			}
			binary.NativeEndian.PutUint32(b[tc.at:], tc.value)
			if got, err := parseGeometry(v, f); (err == nil) != tc.good {
				t.Errorf("geometry = %+v, %v", got, err)
			}
		})
	}
}

func TestFilesThatAreNoScreen(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if g, err := readGeometry(file.Fd()); err == nil {
		t.Errorf("geometry of a file = %+v", g)
	}
	if _, err := graphicsMode(file.Name()); err == nil {
		t.Error("a file is switched to graphics")
	}
}

func BenchmarkShow(b *testing.B) {
	s, err := NewScreen(ScreenConfig{Source: NewSlate(unclaimed(), nil), Device: filepath.Join(b.TempDir(), "fb0")})
	if err != nil {
		b.Fatal(err)
	}
	s.geometry = func(uintptr) (geometry, error) { return geometry{1920, 1080, 1920 * 4, 0, xrgb8888}, nil }
	if err := os.WriteFile(s.device, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := s.show(unclaimed()); err != nil {
			b.Fatal(err)
		}
	}
}
