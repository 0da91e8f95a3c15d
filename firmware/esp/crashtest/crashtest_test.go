package crashtest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/firmware/esp/crashtest"
)

const (
	fileA = "croft_0001_a_1.0.0.efi"
	fileB = "croft_0003_b_1.1.0"
)

var (
	ukiA   = crashtest.UKI("root=a", 40<<10, 1)
	ukiOld = crashtest.UKI("root=old", 40<<10, 2)
	ukiB   = crashtest.UKI("root=b", 96<<10, 3)
	known  = crashtest.Known{ukiA, ukiB}
)

// TestCrashModel replays what firmware/esp and the loader do, on a model of
// Linux's vfat driver, and asks of every state: does it boot, at once and a
// whole image; and does it still after Mend, at whatever line that is cut?
func TestCrashModel(t *testing.T) {
	install := func(old string) func(*vfat) {
		return func(v *vfat) {
			if old != "" {
				v.remove(old)
				v.sync()
			}
			v.create("new.tmp")
			v.write("new.tmp", ukiB)
			v.sync()
			v.rename("new.tmp", fileB+"+3.efi")
			v.sync()
			v.rename(fileB+"+3.efi", fileB+"+2-1.efi") // the loader counts
			v.sync()
			v.rename(fileB+"+2-1.efi", fileB+".efi") // the agent confirms
			v.sync()
		}
	}
	rename := func(from, to string) func(*vfat) {
		return func(v *vfat) {
			v.rename(from, to)
			v.sync()
		}
	}
	total := 0
	for _, tc := range []struct {
		name  string
		files map[string][]byte
		do    func(*vfat)
		boots []int // images that boot in some state
	}{
		{"an update into an empty slot", map[string][]byte{fileA: ukiA}, install(""), []int{0, 1}},
		{"an update after a failed one", map[string][]byte{fileA: ukiA, "croft_0002_b_0.9.0+0-3.efi": ukiOld}, install("croft_0002_b_0.9.0+0-3.efi"), []int{0, 1}},
		{"an update after a good one", map[string][]byte{"croft_0002_a_1.0.0.efi": ukiA, "croft_0001_b_0.9.0.efi": ukiOld}, install("croft_0001_b_0.9.0.efi"), []int{0, 1}},
		{"an update in place of one not yet tried", map[string][]byte{fileA: ukiA, "croft_0002_b_0.9.0+3.efi": ukiB}, install("croft_0002_b_0.9.0+3.efi"), []int{0, 1}},
		{"an update after one that was cut off", map[string][]byte{fileA: ukiA, "new.tmp": ukiOld}, install("new.tmp"), []int{0, 1}},
		{"the first confirmation, with no other slot", map[string][]byte{"croft_0001_a_1.0.0+2-1.efi": ukiA}, rename("croft_0001_a_1.0.0+2-1.efi", fileA), []int{0}},
		{"a try given back, with no other slot", map[string][]byte{"croft_0001_a_1.0.0+2-1.efi": ukiA}, rename("croft_0001_a_1.0.0+2-1.efi", "croft_0001_a_1.0.0+3.efi"), []int{0}},
		{"a slot demoted", map[string][]byte{fileA: ukiA, fileB + ".efi": ukiB}, rename(fileB+".efi", fileB+"+0-3.efi"), []int{0, 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, base := mountVFAT(t, tc.files)
			tc.do(v)
			booted := map[int]int{}
			n, err := crashtest.Model{Base: bytes.NewReader(base), Writes: v.Writes, Samples: 256, Seed: 1}.Each(func(state io.ReaderAt) error {
				b, err := crashtest.Sound(state, known)
				booted[b.Image]++
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(booted)); !slices.Equal(got, tc.boots) {
				t.Errorf("images %v boot, want %v", got, tc.boots)
			}
			t.Logf("%d states of %d writes: %v boot images 0 and 1", n, len(v.Writes), booted)
			total += n
		})
	}
	t.Logf("%d states in all", total)
	if total < 5000 {
		t.Errorf("%d states are too few to mean anything", total)
	}
}

func TestTheModelCatchesBadInstallers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		install func(v *vfat)
		want    string // part of the complaint
	}{
		{"one that writes over the running slot's file", func(v *vfat) {
			start, _ := v.content(fileA)
			v.put(v.at(start), ukiB[:4096])
		}, "again and again"},
		{"one that removes the running slot's file first", func(v *vfat) {
			v.remove(fileA)
			v.sync()
			v.create("new.tmp")
			v.write("new.tmp", ukiB)
			v.sync()
			v.rename("new.tmp", fileB+"+3.efi")
		}, "no boot file is left"},
		{"one that frees a file's content before its name is gone for good", func(v *vfat) {
			v.create("new.tmp")
			v.write("new.tmp", ukiB)
			v.sync()
			v.rename("new.tmp", fileB+"+3.efi")
			v.sync()
			cluster, _ := v.content(fileB + "+3.efi")
			v.drop(fileB + "+3.efi")
			v.free(cluster)
		}, "wasted"},
		{"one that writes under the name the loader knows", func(v *vfat) {
			v.create(fileB + "+3.efi")
			v.write(fileB+"+3.efi", ukiB)
		}, "wasted"},
		{"one that writes under a name without a counter", func(v *vfat) {
			v.create(fileB + ".efi")
			v.write(fileB+".efi", ukiB)
		}, "again and again"},
		{"one that renames before it syncs the data", func(v *vfat) {
			v.create("new.tmp")
			v.write("new.tmp", ukiB)
			v.rename("new.tmp", fileB+"+3.efi")
			v.sync()
		}, "writes ["},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, base := mountVFAT(t, map[string][]byte{fileA: ukiA})
			tc.install(v)
			n, err := crashtest.Model{Base: bytes.NewReader(base), Writes: v.Writes, Seed: 1}.Each(func(state io.ReaderAt) error {
				_, err := crashtest.Sound(state, known)
				return err
			})
			if err == nil {
				t.Fatalf("%d states, none is found bad", n)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}

func TestBootableWalksTheTries(t *testing.T) {
	cut := ukiB[:len(ukiB)-2048]
	for _, tc := range []struct {
		name   string
		files  map[string][]byte
		image  int
		wasted int
		err    bool
	}{
		{"the newest whole image", map[string][]byte{fileA: ukiA, fileB + "+3.efi": ukiB}, 1, 0, false},
		{"a damaged one with tries costs those", map[string][]byte{fileA: ukiA, fileB + "+2-1.efi": cut}, 0, 2, false},
		{"a damaged one without tries costs nothing", map[string][]byte{fileA: ukiA, fileB + "+0-3.efi": cut}, 0, 0, false},
		{"a damaged confirmed one is the end", map[string][]byte{fileA: ukiA, fileB + ".efi": cut}, 0, 0, true},
		{"a damaged one alone is the end", map[string][]byte{fileB + "+3.efi": cut}, 0, 0, true},
		{"what is no program is skipped", map[string][]byte{fileA: ukiA, fileB + ".efi": make([]byte, 5000)}, 0, 0, false},
		{"what has no suffix .efi is skipped", map[string][]byte{fileA: ukiA, "new.tmp": cut}, 0, 0, false},
		{"foreign programs count", map[string][]byte{fileA: ukiA, "zzz.efi": cut}, 0, 0, true},
		{"nothing", nil, 0, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := crashtest.Bootable(bytes.NewReader(image(t, tc.files)), known)
			if (err != nil) != tc.err || err == nil && (got.Image != tc.image || got.Wasted != tc.wasted) {
				t.Errorf("Bootable = %+v, %v; want image %d after %d wasted boots, error %v", got, err, tc.image, tc.wasted, tc.err)
			}
		})
	}
}

// sector is one sector full of one letter.
func sector(letter byte) []byte { return bytes.Repeat([]byte{letter}, crashtest.SectorSize) }

// letters is the first letter of each of the first n sectors.
func letters(t *testing.T, r io.ReaderAt, n int) string {
	t.Helper()
	b := make([]byte, n*crashtest.SectorSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for i := 0; i < len(b); i += crashtest.SectorSize {
		out = append(out, b[i])
	}
	return string(out)
}

func TestEachVisitsExactlyThePossibleStates(t *testing.T) {
	base := bytes.Repeat(sector('.'), 3)
	for _, tc := range []struct {
		name   string
		writes []crashtest.Write
		want   []string
	}{
		{"a write is torn at each sector", []crashtest.Write{{Data: slices.Concat(sector('a'), sector('b'), sector('c'))}}, []string{"...", "a..", "ab.", "abc"}},
		{"a flush orders", []crashtest.Write{{Data: sector('a')}, {Offset: 512, Data: sector('b'), Flush: true}}, []string{"...", "a..", "ab."}},
		{"without a flush any may be lost", []crashtest.Write{{Data: sector('a')}, {Offset: 512, Data: sector('b')}}, []string{"...", ".b.", "a..", "ab."}},
		{"the later write to a sector wins", []crashtest.Write{{Data: sector('a')}, {Data: sector('b')}}, []string{"...", "a..", "b.."}},
		{"what a flush covers is not lost later", []crashtest.Write{{Data: sector('a')}, {Flush: true}, {Offset: 512, Data: sector('b')}, {Offset: 1024, Data: sector('c')}}, []string{"...", "a..", "a.c", "ab.", "abc"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen := map[string]bool{}
			n, err := crashtest.Model{Base: bytes.NewReader(base), Writes: tc.writes}.Each(func(state io.ReaderAt) error {
				seen[letters(t, state, 3)] = true
				return nil
			})
			var got []string
			for s := range seen {
				got = append(got, s)
			}
			slices.Sort(got)
			if err != nil || n < len(got) || !slices.Equal(got, tc.want) {
				t.Errorf("visited %v (%d states), %v; want %v", got, n, err, tc.want)
			}
		})
	}
}

func TestEachStopsAtTheFirstError(t *testing.T) {
	bad := errors.New("bad")
	calls := 0
	n, err := crashtest.Model{Base: bytes.NewReader(sector('.')), Writes: []crashtest.Write{{Data: sector('a')}}}.Each(func(state io.ReaderAt) error {
		if calls++; letters(t, state, 1) == "a" {
			return bad
		}
		return nil
	})
	if n != 2 || calls != 2 || !errors.Is(err, bad) || !strings.Contains(err.Error(), "after write 1 of 1") {
		t.Errorf("%d states, %d calls, %v", n, calls, err)
	}
	if _, err := (crashtest.Model{Writes: []crashtest.Write{{Offset: 5, Data: sector('a')}}}).Each(func(io.ReaderAt) error { return nil }); err == nil {
		t.Error("a write of half a sector was accepted")
	}
}

func TestEachSamplesLargeWindowsTheSameWayEachTime(t *testing.T) {
	var writes []crashtest.Write
	for i := range 20 {
		writes = append(writes, crashtest.Write{Offset: int64(i) * 512, Data: sector(byte('a' + i))})
	}
	run := func(seed uint64) (all []string) {
		if _, err := (crashtest.Model{Base: bytes.NewReader(bytes.Repeat(sector('.'), 20)), Writes: writes, Samples: 30, Seed: seed}).Each(func(state io.ReaderAt) error {
			all = append(all, letters(t, state, 20))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if first := run(7); !slices.Equal(first, run(7)) || len(first) != 21+2*20+30 {
		t.Errorf("%d states, or not the same twice", len(first))
	}
	if slices.Equal(run(7), run(8)) {
		t.Error("the seed makes no difference")
	}
}

func logOf(entries ...[]byte) []byte {
	b := make([]byte, 512)
	le := binary.LittleEndian
	le.PutUint64(b, 0x6a736677736872)
	le.PutUint64(b[8:], 1)
	le.PutUint64(b[16:], uint64(len(entries)))
	le.PutUint32(b[24:], 512)
	return append(b, bytes.Join(entries, nil)...)
}

func entry(sectorNumber, count, flags uint64, data ...[]byte) []byte {
	b := make([]byte, 512)
	for i, n := range []uint64{sectorNumber, count, flags} {
		binary.LittleEndian.PutUint64(b[8*i:], n)
	}
	return append(b, bytes.Join(data, nil)...)
}

func TestReadLog(t *testing.T) {
	log := logOf(
		entry(4, 2, 0, sector('a'), sector('b')),
		entry(0, 0, 1),
		entry(9, 1, 2, sector('c')),
		entry(9, 1, 4), // discard: no data
		entry(0, 0, 8), // mark: its text is in the entry's own sector
		entry(1, 1, 1|2, sector('d')),
	)
	got, err := crashtest.ReadLog(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	want := []crashtest.Write{
		{Offset: 2048, Data: append(sector('a'), sector('b')...)},
		{Flush: true},
		{Offset: 4608, Data: sector('c')},
		{Offset: 512, Data: sector('d'), Flush: true},
	}
	same := func(a, b crashtest.Write) bool {
		return (a.Offset == b.Offset || len(a.Data) == 0) && a.Flush == b.Flush && bytes.Equal(a.Data, b.Data)
	}
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("ReadLog = %v", got)
	}
	clipped := crashtest.Clip(got, 2560, 1024)
	if want := []crashtest.Write{{Data: sector('b')}, {Flush: true}, {Flush: true}}; !slices.EqualFunc(clipped, want, same) {
		t.Errorf("Clip = %v", clipped)
	}
}

func TestReadLogRefusesDamage(t *testing.T) {
	whole := logOf(entry(4, 2, 0, sector('a'), sector('b')))
	wrong := func(at int, value byte) []byte {
		b := bytes.Clone(whole)
		b[at] = value
		return b
	}
	for name, log := range map[string][]byte{
		"empty": nil, "cut off": whole[:len(whole)-1], "another magic": wrong(0, 1), "another version": wrong(8, 2),
		"sector size 0": wrong(25, 0), "more entries than there are": wrong(16, 2), "a huge entry": wrong(512+8+3, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if w, err := crashtest.ReadLog(bytes.NewReader(log)); err == nil {
				t.Errorf("accepted as %v", w)
			}
		})
	}
}
