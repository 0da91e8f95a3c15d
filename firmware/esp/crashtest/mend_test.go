package crashtest_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/esp/crashtest"
)

func list(t *testing.T, disk esp.Device) []string {
	t.Helper()
	v, err := esp.OpenVolume(disk)
	if err != nil {
		t.Fatal(err)
	}
	files, err := v.Files()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, fmt.Sprintf("%s %d", f.Name, f.Size))
	}
	return names
}

func TestMendKeepsTheBestOfTwoNames(t *testing.T) {
	for _, tc := range []struct{ name, from, to, keep string }{
		{"an installation", "new.tmp", fileB + "+3.efi", fileB + "+3.efi"},
		{"a confirmation", fileB + "+2-1.efi", fileB + ".efi", fileB + ".efi"},
		{"a confirmation in the last try", fileB + "+0-3.efi", fileB + ".efi", fileB + ".efi"},
		{"a refund", fileB + "+2-1.efi", fileB + "+3.efi", fileB + "+3.efi"},
		{"a count", fileB + "+3.efi", fileB + "+2-1.efi", fileB + "+3.efi"},
	} {
		t.Run(tc.name+" that was cut off", func(t *testing.T) {
			v, _ := mountVFAT(t, map[string][]byte{fileA: ukiA, tc.from: ukiB})
			start, size := v.content(tc.from)
			v.create(tc.to)
			v.setContent(tc.to, start, size)
			notes, err := esp.Mend(v)
			if err != nil || len(notes) != 1 || !strings.Contains(notes[0], tc.keep) {
				t.Errorf("Mend = %q, %v; want a note on %s", notes, err, tc.keep)
			}
			if got, want := list(t, v), []string{fmt.Sprint(fileA, " ", len(ukiA)), fmt.Sprint(tc.keep, " ", len(ukiB))}; !slices.Equal(got, want) {
				t.Errorf("files %q, want %q", got, want)
			}
		})
	}
}

func TestMendRemovesOurNamesWithoutContent(t *testing.T) {
	v, _ := mountVFAT(t, map[string][]byte{fileA: ukiA})
	for _, name := range []string{fileB + ".efi", "new.tmp", "other.tmp"} {
		v.create(name)
	}
	notes, err := esp.Mend(v)
	if err != nil || len(notes) != 2 {
		t.Errorf("Mend = %q, %v; want two notes", notes, err)
	}
	if got, want := list(t, v), []string{fmt.Sprint(fileA, " ", len(ukiA)), "other.tmp 0"}; !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

// TestMendTidiesTheFolder moves names scattered over several sectors into the
// first, and lets other people's tools judge the result.
func TestMendTidiesTheFolder(t *testing.T) {
	path, files := filepath.Join(t.TempDir(), "esp.img"), map[string][]byte{fileA: ukiA, fileB + "+3.efi": ukiB}
	for i := range 8 {
		files[fmt.Sprintf("a long name that is deleted again %d.txt", i)] = []byte("x")
	}
	if err := os.WriteFile(path, image(t, files), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		command(t, "mdel", "-i", path, fmt.Sprintf("::/EFI/Linux/a long name that is deleted again %d.txt", i))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := list(t, f)
	disk := crashtest.NewRecorder(f)
	if notes, err := esp.Mend(disk); err != nil || len(notes) != 0 {
		t.Fatalf("Mend = %q, %v", notes, err)
	}
	if len(disk.Writes) < 2 {
		t.Fatal("the names were not scattered")
	}
	n, err := crashtest.Model{Base: f, Writes: disk.Writes}.Each(func(state io.ReaderAt) error {
		b, err := crashtest.Bootable(state, known)
		if err == nil && b.Image != 1 {
			err = fmt.Errorf("image %d boots", b.Image)
		}
		return err
	})
	if err != nil || n < 3 {
		t.Errorf("%d states: %v", n, err)
	}
	if _, err := esp.Mend(f); err != nil {
		t.Fatal(err)
	}
	if after := list(t, f); !slices.Equal(before, after) {
		t.Errorf("files %q, before %q", after, before)
	}
	command(t, "fsck.fat", "-n", path)
	again := crashtest.NewRecorder(f)
	if _, err := esp.Mend(again); err != nil || len(again.Writes) > 0 {
		t.Errorf("a tidy folder was written: %v", err)
	}
}

func TestMendLeavesAFullFolderAlone(t *testing.T) {
	files := map[string][]byte{fileA: ukiA}
	for i := range 8 {
		files[fmt.Sprintf("somebody else's file number %d.txt", i)] = []byte("x")
	}
	disk := crashtest.NewRecorder(bytes.NewReader(image(t, files)))
	if notes, err := esp.Mend(disk); err != nil || len(notes) > 0 || len(disk.Writes) > 0 {
		t.Errorf("Mend = %q, %v, %d writes", notes, err, len(disk.Writes))
	}
	if got := list(t, disk); len(got) != 9 {
		t.Errorf("files %q", got)
	}
}

// TestDamageGivesErrors writes noise over the file system's own sectors. What
// reads it may say what it likes, as long as it comes back.
func TestDamageGivesErrors(t *testing.T) {
	base := bytes.NewReader(image(t, map[string][]byte{fileA: ukiA, fileB + "+3.efi": ukiB}))
	clean := newVFAT(t, image(t, nil))
	targets := []int64{0, clean.fat, clean.fat + 512, clean.data, clean.data + 512, clean.data + 1024}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		disk := crashtest.NewRecorder(base)
		at := targets[rng.IntN(len(targets))]
		b := make([]byte, crashtest.SectorSize)
		if _, err := disk.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		for range 1 + rng.IntN(8) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		if _, err := disk.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
		_, _ = crashtest.Bootable(disk, known)
		_, _ = esp.Mend(disk)
	}
}
