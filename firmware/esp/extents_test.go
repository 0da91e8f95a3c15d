package esp

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

func TestContentIsReadAcrossItsRuns(t *testing.T) {
	e := extents{strings.NewReader("..world.hello-...!"), []extent{{0, 8, 6}, {6, 2, 5}, {11, 17, 1}}}
	const want = "hello-world!"
	if err := iotest.TestReader(io.NewSectionReader(e, 0, int64(len(want))), []byte(want)); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		off  int64
		want string
		err  error
	}{{0, "hello", nil}, {4, "o-wor", nil}, {7, "orld!", nil}, {10, "d!", io.EOF}, {12, "", io.EOF}, {99, "", io.EOF}} {
		b := make([]byte, 5)
		if n, err := e.ReadAt(b, tc.off); string(b[:n]) != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("at %d: %q, %v; want %q, %v", tc.off, b[:n], err, tc.want, tc.err)
		}
	}
	if _, err := e.ReadAt(nil, -1); err == nil {
		t.Error("a negative offset was accepted")
	}
}

func TestDeviceInUseIsRefused(t *testing.T) {
	if err := busyKind(fmt.Errorf("open: %w", unix.EBUSY)); croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "mounted already") {
		t.Errorf("busy gives %v", err)
	}
	if err := busyKind(unix.EIO); croft.KindOf(err) == croft.KindRefused {
		t.Errorf("a read error gives %v", err)
	}
}
