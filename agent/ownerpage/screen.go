package ownerpage

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ScreenConfig is copied by [NewScreen], checked once, and never changed
// afterwards.
type ScreenConfig struct {
	Source  Source        // required
	Device  string        // framebuffer; default /dev/fb0
	Console string        // text console that shares the screen; default /dev/tty0
	Every   time.Duration // how often it is drawn anew though nothing changed; default 30 s
	Log     *slog.Logger  // default: no log
}

// Screen shows the status on the HDMI port, through a Linux framebuffer.
//
// It draws band by band and writes each band to the device: the agent never
// holds a whole picture in memory, and nothing flickers. The device is opened
// anew for each picture, because the kernel replaces it when the real graphics
// driver loads, and there is none while no monitor is connected.
type Screen struct {
	source  Source
	device  string
	console string
	every   time.Duration
	log     *slog.Logger

	geometry func(fd uintptr) (geometry, error)
	graphics func(console string) (restore func(), err error)
}

// NewScreen checks cfg.
func NewScreen(cfg ScreenConfig) (*Screen, error) {
	if cfg.Source == nil {
		return nil, errors.New("source of the screen is missing")
	}
	return &Screen{
		source:   cfg.Source,
		device:   cmp.Or(cfg.Device, "/dev/fb0"),
		console:  cmp.Or(cfg.Console, "/dev/tty0"),
		every:    cmp.Or(cfg.Every, 30*time.Second),
		log:      logger(cfg.Log),
		geometry: readGeometry,
		graphics: graphicsMode,
	}, nil
}

// Run draws until ctx ends, and returns nil then. A box without a screen is
// normal: Run waits for one to appear.
func (s *Screen) Run(ctx context.Context) error {
	restore := func() {}
	defer func() { restore() }()
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	var (
		trouble string // last trouble logged
		keeping bool   // the kernel's console is kept off the screen
	)
	for {
		changed := s.source.Changed()
		switch err := s.show(s.source.Status()); {
		case err == nil:
			trouble = ""
			if keeping {
				break
			}
			keeping = true
			put, err := s.graphics(s.console)
			if err != nil {
				s.log.Debug("kernel console may write over the screen", "error", err)
				break
			}
			restore = put
			continue // text may have come between
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), err.Error() == trouble: // no monitor
		default:
			trouble = err.Error()
			s.log.Warn("screen not drawn", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// bandBytes is about how much of a picture is in memory at a time.
const bandBytes = 256 << 10

// show draws one picture.
func (s *Screen) show(status Status) (err error) {
	dev, err := os.OpenFile(s.device, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open screen: %w", err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	g, err := s.geometry(dev.Fd())
	if err != nil {
		return fmt.Errorf("measure screen: %w", err)
	}
	marks, err := layout(image.Rect(0, 0, g.width, g.height), newView(status))
	if err != nil {
		return fmt.Errorf("lay out the screen: %w", err)
	}
	rows := max(1, min(g.height, bandBytes/(4*g.width)))
	band := image.NewRGBA(image.Rect(0, 0, g.width, rows))
	line := g.width * g.pixel.bytes
	raw := make([]byte, (rows-1)*g.stride+line) // no more than the last line has
	for top := 0; top < g.height; top += rows {
		band.Rect = image.Rect(0, top, g.width, min(top+rows, g.height))
		paint(band, marks)
		lines := band.Rect.Dy()
		for y := range lines {
			g.pixel.encode(raw[y*g.stride:][:line], band.Pix[y*band.Stride:])
		}
		if _, err := dev.WriteAt(raw[:(lines-1)*g.stride+line], int64(g.offset+top*g.stride)); err != nil {
			return fmt.Errorf("write to screen: %w", err)
		}
	}
	return nil
}

// geometry is how a framebuffer lies in memory.
type geometry struct {
	width, height int // visible pixels
	stride        int // bytes from one line to the next
	offset        int // bytes before the first visible pixel
	pixel         pixelLayout
}

// pixelLayout is how one pixel is stored, in little-endian order.
type pixelLayout struct {
	bytes            int
	red, green, blue bitfield
}

// bitfield is where a colour is in a pixel.
type bitfield struct{ shift, length uint32 }

func (b bitfield) of(v uint8) uint32 { return uint32(v) >> (8 - b.length) << b.shift }

// encode converts as many pixels as line holds from RGBA.
func (p pixelLayout) encode(line, rgba []byte) {
	for i, j := 0, 0; i < len(line); i, j = i+p.bytes, j+4 {
		v := p.red.of(rgba[j]) | p.green.of(rgba[j+1]) | p.blue.of(rgba[j+2])
		for k := range p.bytes {
			line[i+k] = byte(v >> (8 * k))
		}
	}
}

// The parts of linux/fb.h that are needed; the layouts are those of 64-bit
// machines.
const (
	fbioGetVScreenInfo = 0x4600
	fbioGetFScreenInfo = 0x4602
	fbVarSize          = 160
	fbFixSize          = 80
	fbPackedPixels     = 0
	fbTrueColor        = 2
	fbDirectColor      = 4
)

// parseGeometry reads struct fb_var_screeninfo and struct fb_fix_screeninfo.
func parseGeometry(variable [fbVarSize]byte, fixed [fbFixSize]byte) (geometry, error) {
	v := func(at int) uint32 { return binary.NativeEndian.Uint32(variable[at:]) }
	f := func(at int) uint32 { return binary.NativeEndian.Uint32(fixed[at:]) }
	field := func(at int) bitfield { return bitfield{v(at), v(at + 4)} }
	bits := v(24)
	g := geometry{
		width: int(v(0)), height: int(v(4)), stride: int(f(48)),
		pixel: pixelLayout{int(bits / 8), field(32), field(44), field(56)},
	}
	if kind, visual := f(28), f(36); kind != fbPackedPixels || visual != fbTrueColor && visual != fbDirectColor {
		return g, fmt.Errorf("screen type %d with visual %d: want packed true colour", kind, visual)
	}
	for _, c := range []bitfield{g.pixel.red, g.pixel.green, g.pixel.blue} {
		if c.length < 1 || c.length > 8 || c.shift+c.length > bits {
			return g, fmt.Errorf("screen has a colour of %d bits at bit %d of %d", c.length, c.shift, bits)
		}
	}
	const most = 16384
	if bits%8 != 0 || bits < 16 || bits > 32 || g.width < 1 || g.height < 1 || g.width > most || g.height > most ||
		g.stride < g.width*g.pixel.bytes || g.stride > 4*2*most {
		return g, fmt.Errorf("screen of %d×%d pixels of %d bits, %d bytes a line, makes no sense", g.width, g.height, bits, g.stride)
	}
	g.offset = int(v(20))*g.stride + int(v(16))*g.pixel.bytes
	return g, nil
}

// The parts of linux/kd.h that are needed.
const (
	kdSetMode  = 0x4b3a
	kdText     = 0
	kdGraphics = 1
)

// graphicsMode keeps the kernel's text off the screen until restore is called.
func graphicsMode(console string) (restore func(), err error) {
	tty, err := os.OpenFile(console, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open console: %w", err)
	}
	if err := unix.IoctlSetInt(int(tty.Fd()), kdSetMode, kdGraphics); err != nil {
		return nil, errors.Join(fmt.Errorf("switch console to graphics: %w", err), tty.Close())
	}
	return func() {
		_ = unix.IoctlSetInt(int(tty.Fd()), kdSetMode, kdText)
		_ = tty.Close()
	}, nil
}
