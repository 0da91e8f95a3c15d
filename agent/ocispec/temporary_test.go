package ocispec

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/croft-cloud/croft/agent/lease"
)

func TestTemporaryFilesStayOnDisk(t *testing.T) {
	owner := uint32(os.Getuid())
	for name, tc := range map[string]struct {
		image func(root string) error
		mode  fs.FileMode // of what lies above; 0: nothing does
	}{
		"none":    {func(string) error { return nil }, 0o777 | fs.ModeSticky},
		"empty":   {func(root string) error { return os.Mkdir(root+"/tmp", 0o750) }, 0o750},
		"content": {func(root string) error { return os.MkdirAll(root+"/tmp/app", 0o755) }, 0},
		"a link":  {func(root string) error { return os.Symlink("/var/tmp", root+"/tmp") }, 0},
		"a file":  {func(root string) error { return os.WriteFile(root+"/tmp", nil, 0o644) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			root, upper := t.TempDir(), t.TempDir()
			if err := tc.image(root); err != nil {
				t.Fatal(err)
			}
			if err := (Layers{root}).KeepTemporary(upper, owner); err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(filepath.Join(upper, "tmp"))
			if tc.mode == 0 {
				if !os.IsNotExist(err) {
					t.Fatalf("/tmp lies above the image's: %v, %v", info, err)
				}
				return
			}
			if err != nil || info.Mode() != tc.mode|fs.ModeDir {
				t.Fatalf("/tmp is %v, %v, want mode %v", info, err, tc.mode)
			}
			if names, err := os.ReadDir(filepath.Join(upper, "tmp")); err != nil || len(names) != 1 {
				t.Errorf("in it lie %v, %v", names, err)
			}
		})
	}
}

func TestEachLeaseHasItsOwnUsers(t *testing.T) {
	if got := UserIDs(0, "l0123456789"); got != 0 {
		t.Errorf("not mapped: %d", got)
	}
	const first = 1 << 20
	seen := map[uint32]bool{}
	for n := range 1000 {
		id := UserIDs(first, lease.Key("l"+string(rune('a'+n%26))+string(rune('a'+n/26))))
		if id < first || (id-first)%MappedIDs != 0 || uint64(id)+MappedIDs > math.MaxUint32 {
			t.Fatalf("ids from %d on", id)
		}
		seen[id] = true
	}
	if len(seen) < 980 {
		t.Errorf("a thousand leases have %d ranges", len(seen))
	}
}
