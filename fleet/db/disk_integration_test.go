//go:build integration

package db_test

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

// TestSQLiteOnABadDisk needs root, to mount a small one.
func TestSQLiteOnABadDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a small disk, as root: %v", err)
	}
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	d := dbtest.Open(t, "sqlite:"+filepath.Join(dir, "fleet.db"))
	things(t, d)
	write := run("INSERT INTO test_things (name, n) VALUES (?, 1)", "big")
	var rows int64
	t.Run("a full one says so and keeps what was committed", func(t *testing.T) {
		var err error
		for ; err == nil && rows < 1000; rows++ {
			err = d.Write(t.Context(), run("INSERT INTO test_things (name, n) VALUES (?, ?)", strings.Repeat("x", 10_000)+string(rune('a'+rows)), rows))
		}
		if rows--; croft.KindOf(err) != croft.KindNoSpace || !strings.Contains(err.Error(), "free some space") {
			t.Errorf("after %d rows: %v", rows, err)
		}
		if n := number(t, d, "SELECT COUNT(*) FROM test_things"); n != rows+1 {
			t.Errorf("%d rows of %d are there", n, rows+1)
		}
	})
	t.Run("once there is space it goes on", func(t *testing.T) {
		must(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=8m"))
		must(t, d.Write(t.Context(), write))
	})
	t.Run("a second program cannot open it on a disk that is read-only", func(t *testing.T) {
		must(t, d.Close())
		must(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
		_, err := db.Open(t.Context(), "sqlite:"+filepath.Join(dir, "fleet.db"), nil)
		if croft.KindOf(err) != croft.KindRefused || !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "mount its disk") {
			t.Errorf("got %v", err)
		}
	})
}
