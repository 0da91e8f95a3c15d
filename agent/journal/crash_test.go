package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

// sample is a journal's file and where each of its lines ends.
func sample(t *testing.T) (data []byte, ends []int) {
	t.Helper()
	path := newPath(t)
	j := mustOpen(t, Config{Path: path})
	fill(t, j)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range data {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	if p := parse(data); len(p.records) != len(ends) || len(p.damage) != 0 {
		t.Fatalf("%d records in %d lines, damage %v", len(p.records), len(ends), p.damage)
	}
	return data, ends
}

func TestAFileCutAnywhereKeepsEveryWholeRecord(t *testing.T) {
	t.Parallel()
	data, ends := sample(t)
	whole := parse(data).records
	path := filepath.Join(t.TempDir(), "journal")
	for cut := range len(data) + 1 {
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0 // whole records before the cut; the newline may be missing
		for n < len(ends) && ends[n]-1 <= cut {
			n++
		}
		j, err := Open(Config{Path: path})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if diff := cmp.Diff(replayed(whole[:n]), contents(j)); diff != "" {
			t.Fatalf("cut at %d (-want +got):\n%s", cut, diff)
		}
		for _, d := range j.Damage() {
			if !d.Torn {
				t.Errorf("cut at %d: damage %v", cut, d)
			}
		}
		id := j.ID()
		if n > 0 && id != parseID(t, whole[0]) {
			t.Errorf("cut at %d: ID changed", cut)
		}
		seq := mustEvent(t, j, "after", nil)
		if n > 0 && seq <= whole[n-1].Seq {
			t.Errorf("cut at %d: number %d follows %d", cut, seq, whole[n-1].Seq)
		}
		want := contents(j)
		j.Close()
		again := mustOpen(t, Config{Path: path})
		if diff := cmp.Diff(want, contents(again)); diff != "" || len(again.Damage()) != 0 || again.ID() != id {
			t.Fatalf("cut at %d, second start: damage %v (-want +got):\n%s", cut, again.Damage(), diff)
		}
		again.Close()
	}
	t.Logf("%d cuts", len(data)+1)
}

// Every single-bit error, on the parser alone.
func TestAFlippedBitCostsItsRecordOnly(t *testing.T) {
	t.Parallel()
	data, ends := sample(t)
	whole := parse(data).records
	flips := 0
	for at := range data {
		hit, _ := slices.BinarySearch(ends, at+1)
		want := slices.Clone(whole)
		if at != ends[hit]-1 { // a newline belongs to no record
			want = slices.Delete(want, hit, hit+1)
		}
		for bit := range 8 {
			data[at] ^= 1 << bit
			got := parse(data)
			data[at] ^= 1 << bit
			flips++
			if diff := cmp.Diff(want, got.records); diff != "" {
				t.Fatalf("bit %d of byte %d (-want +got):\n%s", bit, at, diff)
			}
			if len(got.damage) == 0 {
				t.Fatalf("bit %d of byte %d: no damage reported", bit, at)
			}
		}
	}
	t.Logf("%d flips", flips)
}

// Single-byte errors, through files and a restart: every fifth byte, and every
// newline with the byte after it.
func TestAJournalWithAFlippedByteWorksOn(t *testing.T) {
	t.Parallel()
	data, ends := sample(t)
	whole := parse(data).records
	newest := whole[len(whole)-1].Seq
	path := filepath.Join(t.TempDir(), "journal")
	for at := range data {
		hit, _ := slices.BinarySearch(ends, at+1)
		if at%5 != 0 && at != ends[hit]-1 && !slices.Contains(ends, at) {
			continue
		}
		want := slices.Clone(whole)
		if at != ends[hit]-1 {
			want = slices.Delete(want, hit, hit+1)
		}
		damaged := slices.Clone(data)
		damaged[at] ^= 0xff
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		// A start that writes nothing of its own must not free numbers either.
		mustOpen(t, Config{Path: path}).Close()
		j := mustOpen(t, Config{Path: path})
		if diff := cmp.Diff(replayed(want), contents(j)); diff != "" {
			t.Fatalf("byte %d (-want +got):\n%s", at, diff)
		}
		if seq := mustEvent(t, j, "after", nil); seq <= newest {
			t.Fatalf("byte %d: number %d is used twice", at, seq)
		}
		before := contents(j)
		j.Close()
		again := mustOpen(t, Config{Path: path})
		if diff := cmp.Diff(before, contents(again)); diff != "" {
			t.Fatalf("byte %d, second start (-want +got):\n%s", at, diff)
		}
		again.Close()
	}
}

func TestDamageIsReported(t *testing.T) {
	data, ends := sample(t)
	zero := func(from, to int) []byte {
		out := slices.Clone(data)
		clear(out[from:to])
		return out
	}
	for _, tc := range []struct {
		name string
		data []byte
		want []Damage
	}{
		{"nothing for a clean file", data, nil},
		{"nothing for blank lines", slices.Concat([]byte("\n\n"), data, []byte("\n\n")), nil},
		{"a torn end", data[:len(data)-5], []Damage{{int64(ends[len(ends)-2]), int64(len(data) - 5 - ends[len(ends)-2]), true, "checksum is wrong"}}},
		{"a torn end of zeros", append(slices.Clone(data), make([]byte, 512)...), []Damage{{int64(len(data)), 512, true, "not a record"}}},
		{"a hole of zeros over two records", zero(ends[1]+3, ends[2]+3), []Damage{{int64(ends[1]), int64(ends[3] - ends[1] - 1), false, "not a record"}}},
		{"records played twice", slices.Concat(data, data[ends[0]:ends[1]]), []Damage{{int64(len(data)), int64(ends[1] - ends[0] - 1), false, "record 1 follows record 8"}}},
		{"a file that is none of ours", []byte("#!/bin/sh\n"), []Damage{{0, 9, false, "not a record"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, parse(tc.data).damage); diff != "" {
				t.Errorf("damage (-want +got):\n%s", diff)
			}
		})
	}
}

func TestARecordOfANewerVersionIsSkippedAndKeepsItsNumber(t *testing.T) {
	line, err := encode(record{Seq: 77, Type: "batch", Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, line, 0o600); err != nil {
		t.Fatal(err)
	}
	j := mustOpen(t, Config{Path: path})
	if seq := mustEvent(t, j, "after", nil); seq != 78 || len(j.Damage()) != 0 {
		t.Errorf("number is %d, damage %v", seq, j.Damage())
	}
}

// disk is a file system whose faults a test chooses. What it writes is real.
type disk struct {
	room   int64 // bytes that can still be written; then full
	full   error // default ENOSPC
	sync   error // of the next Sync
	cut    error // of Truncate
	rename bool  // replacing a file fails after the rename
}

type diskFile struct {
	file
	d *disk
}

func (d *disk) open(path string) (file, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	return diskFile{f, d}, nil
}

func (d *disk) take(n int64) (int64, error) {
	if n <= d.room {
		d.room -= n
		return n, nil
	}
	n, d.room = d.room, 0
	if d.full != nil {
		return n, d.full
	}
	return n, syscall.ENOSPC
}

func (d *disk) write(path string, data []byte, perm fs.FileMode) error {
	if _, err := d.take(int64(len(data))); err != nil {
		return err
	}
	err := atomicfile.WriteFile(path, data, perm)
	if d.rename {
		err = syscall.EIO
	}
	return err
}

func (f diskFile) WriteAt(p []byte, off int64) (int, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	has := max(0, min(info.Size()-off, int64(len(p)))) // written before: takes no room
	n, full := f.d.take(int64(len(p)) - has)
	n += has
	if n, err := f.file.WriteAt(p[:n], off); err != nil {
		return n, err
	}
	return int(n), full
}

func (f diskFile) Sync() error {
	if err := f.d.sync; err != nil {
		f.d.sync = nil
		return err
	}
	return f.file.Sync()
}

func (f diskFile) Truncate(size int64) error {
	if f.d.cut != nil {
		return f.d.cut
	}
	return f.file.Truncate(size)
}

const plenty = 1 << 40

func openOn(t *testing.T, d *disk, cfg Config) *Journal {
	t.Helper()
	j, err := open(cfg, d.open, d.write)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestAFullDiskRefusesAndHarmsNothing(t *testing.T) {
	t.Parallel()
	for room := int64(0); room < 200; room += 3 { // odd and even
		path := newPath(t)
		d := &disk{room: plenty}
		j := openOn(t, d, Config{Path: path})
		first := mustEvent(t, j, "before", nil)
		d.room = room
		if room%2 == 1 { // the partial record cannot be removed at once
			d.cut = syscall.EIO
		}
		var err error
		for range 5 {
			_, err = j.Event("during", nil)
		}
		if !errors.Is(err, ErrFull) && !errors.Is(err, syscall.EIO) {
			t.Fatalf("room for %d bytes: error is %v", room, err)
		}
		before := contents(j)
		crashed, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, replayed(parse(crashed).records)); diff != "" {
			t.Fatalf("room for %d bytes: a crash now would change (-want +got):\n%s", room, diff)
		}
		d.room, d.cut = plenty, nil
		if seq := mustEvent(t, j, "after", nil); seq <= first {
			t.Errorf("number %d follows %d", seq, first)
		}
		want := contents(j)
		j.Close()
		again := mustOpen(t, Config{Path: path})
		if diff := cmp.Diff(want, contents(again)); diff != "" || len(again.Damage()) != 0 {
			t.Fatalf("room for %d bytes: damage %v (-want +got):\n%s", room, again.Damage(), diff)
		}
		again.Close()
	}
}

func TestAFailedSyncIsNeverTrusted(t *testing.T) {
	path := newPath(t)
	d := &disk{room: plenty}
	j := openOn(t, d, Config{Path: path})
	mustEvent(t, j, "before", nil)
	d.sync = syscall.EIO
	if _, err := j.Event("during", nil); !errors.Is(err, syscall.EIO) {
		t.Fatalf("error is %v", err)
	}
	old, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	mustEvent(t, j, "after", nil)
	if now, err := os.Stat(path); err != nil || os.SameFile(old, now) {
		t.Errorf("file was not written anew: %v", err)
	}
	want := contents(j)
	j.Close()
	if got := contents(mustOpen(t, Config{Path: path})); !cmp.Equal(want, got) || len(got.Events) != 2 {
		t.Errorf("reopened: %s", cmp.Diff(want, got))
	}
}

func TestCompactionThatFailsLosesNothing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault func(*disk)
	}{
		{"before the rename", func(d *disk) { d.room = 1500 }},
		{"after the rename", func(d *disk) { d.rename = true }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := newPath(t)
			d := &disk{room: plenty}
			j := openOn(t, d, Config{Path: path, MaxBytes: 4 << 10, Keep: 1000})
			tc.fault(d)
			acknowledged := map[uint64]bool{}
			for range 200 {
				if seq, err := j.Event("tick", nil); err == nil {
					acknowledged[seq] = true
				}
				if j.end >= 4<<10-200 && d.room < plenty {
					d.room = 1500 // enough for records, not for a snapshot
				}
			}
			last := mustReplay(t, path)
			for seq := range acknowledged {
				if _, ok := last[seq]; !ok && seq > oldest(j) {
					t.Errorf("acknowledged event %d would be lost by a crash", seq)
				}
			}
			d.room, d.rename = plenty, false
			mustEvent(t, j, "after", nil)
			want := contents(j)
			j.Close()
			again := mustOpen(t, Config{Path: path})
			got := contents(again)
			got.Events = got.Events[max(0, len(got.Events)-len(want.Events)):] // memory lets go first
			if diff := cmp.Diff(want, got); diff != "" || len(again.Damage()) != 0 {
				t.Errorf("damage %v (-want +got):\n%s", again.Damage(), diff)
			}
		})
	}
}

func TestAJournalOpensOnABadDisk(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		is   error
	}{
		{"that is full", syscall.ENOSPC, ErrFull},
		{"whose quota is used up", syscall.EDQUOT, ErrFull},
		{"that is read-only", syscall.EROFS, ErrReadOnly},
	} {
		t.Run("a new one, on a disk "+tc.name, func(t *testing.T) {
			path := newPath(t)
			d := &disk{full: tc.err}
			j := openOn(t, d, Config{Path: path})
			id := j.ID()
			if err := j.Put("slot", "a"); !errors.Is(err, tc.is) || !errors.Is(err, tc.err) {
				t.Errorf("Put says %v", err)
			}
			if found, _ := j.Get("slot", new(string)); found {
				t.Error("a value that was refused is there")
			}
			d.room = plenty
			if err := j.Put("slot", "a"); err != nil {
				t.Fatal(err)
			}
			j.Close()
			again := mustOpen(t, Config{Path: path})
			wantValue(t, again, "slot", "a")
			if again.ID() != id {
				t.Errorf("ID is %q, was %q", again.ID(), id)
			}
		})
		t.Run("a torn one, on a disk "+tc.name, func(t *testing.T) {
			data, _ := sample(t)
			path := filepath.Join(t.TempDir(), "journal")
			if err := os.WriteFile(path, data[:len(data)-3], 0o600); err != nil {
				t.Fatal(err)
			}
			d := &disk{full: tc.err}
			j := openOn(t, d, Config{Path: path})
			wantValue(t, j, "slot", "b")
			if err := j.Put("slot", "a"); !errors.Is(err, tc.is) {
				t.Errorf("Put says %v", err)
			}
			d.room = plenty
			if err := j.Put("slot", "a"); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("an old one that can only be read", func(t *testing.T) {
		data, _ := sample(t)
		path := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		readOnly := func(string) (file, error) { return nil, syscall.EROFS }
		j, err := open(Config{Path: path}, readOnly, func(string, []byte, fs.FileMode) error { return syscall.EROFS })
		if err != nil {
			t.Fatal(err)
		}
		wantValue(t, j, "slot", "b")
		if _, err := j.Event("tick", nil); !errors.Is(err, ErrReadOnly) {
			t.Errorf("Event says %v", err)
		}
	})
	t.Run("but not one that cannot be read", func(t *testing.T) {
		failing := func(string) (file, error) { return nil, syscall.EIO }
		if _, err := open(Config{Path: newPath(t)}, failing, atomicfile.WriteFile); !errors.Is(err, syscall.EIO) {
			t.Errorf("error is %v", err)
		}
	})
}

// The kernel itself refuses, in the middle of a record.
func TestAFileSizeLimitIsAFullDisk(t *testing.T) {
	path := newPath(t)
	j := mustOpen(t, Config{Path: path})
	mustEvent(t, j, "before", nil)
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = uint64(j.end) + 40
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	_, err := j.Event("during", nil)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("error is %v", err)
	}
	mustEvent(t, j, "after", nil)
	want := contents(j)
	j.Close()
	again := mustOpen(t, Config{Path: path})
	if diff := cmp.Diff(want, contents(again)); diff != "" || len(want.Events) != 2 || len(again.Damage()) != 0 {
		t.Errorf("damage %v (-want +got):\n%s", again.Damage(), diff)
	}
}

func FuzzParse(f *testing.F) {
	var clean []byte
	for _, r := range []record{
		{Seq: 0, Type: typeHeader, Name: formatName, Value: json.RawMessage(`{"id":"X"}`)},
		{Seq: 1, Type: typeEvent, Name: "tick", Value: json.RawMessage(`null`)},
		{Seq: 2, Type: typeState, Name: "slot", Value: json.RawMessage(`"b"`)},
		{Seq: 3, Type: typeState, Name: "slot"},
	} {
		line, err := encode(r)
		if err != nil {
			f.Fatal(err)
		}
		clean = append(clean, line...)
	}
	f.Add(clean)
	f.Add(clean[:len(clean)-4])
	f.Add(bytes.ReplaceAll(clean, []byte("\n"), []byte("")))
	f.Add(append(make([]byte, 64), clean...))
	f.Add(fmt.Appendf(nil, "%08x {}\n", 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := parse(data)
		if p.end > len(data) || p.lost > len(data) || p.newline && p.end == 0 {
			t.Fatalf("impossible: %+v", p)
		}
		at := int64(0)
		for _, d := range p.damage {
			if d.Offset < at || d.Length <= 0 || d.Offset+d.Length > int64(len(data)) {
				t.Fatalf("impossible damage %v", d)
			}
			at = d.Offset + d.Length
		}
		var again []byte
		for _, r := range p.records {
			line, err := encode(r)
			if err != nil {
				t.Fatalf("record %+v cannot be written again: %v", r, err)
			}
			again = append(again, line...)
		}
		q := parse(again)
		if len(q.records) != len(p.records) || len(q.damage) != 0 || q.end != len(again) {
			t.Fatalf("%d records written again are %d, damage %v", len(p.records), len(q.records), q.damage)
		}
		for i := range p.records {
			if p.records[i].Seq != q.records[i].Seq || p.records[i].Type != q.records[i].Type {
				t.Fatalf("record %d became %+v, was %+v", i, q.records[i], p.records[i])
			}
		}
		// Cutting at end and adding a record never harms what was there.
		rest := slices.Clone(data[:p.end])
		if p.newline {
			rest = append(rest, '\n')
		}
		line, err := encode(record{Seq: 1 << 62, Type: typeEvent, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if r := parse(append(rest, line...)); len(r.records) < len(p.records) {
			t.Fatalf("an appended record turned %d records into %d", len(p.records), len(r.records))
		}
	})
}

// replayed is what a journal of these records holds.
func replayed(records []record) content {
	j := NewMemory()
	for _, r := range records {
		j.apply(r)
	}
	return contents(j)
}

func parseID(t *testing.T, r record) string {
	t.Helper()
	var h header
	if err := json.Unmarshal(r.Value, &h); err != nil {
		t.Fatal(err)
	}
	return h.ID
}

func mustReplay(t *testing.T, path string) map[uint64]record {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	records := map[uint64]record{}
	for _, r := range parse(data).records {
		records[r.Seq] = r
	}
	return records
}

func oldest(j *Journal) uint64 {
	for e := range j.Events(0) {
		return e.Seq
	}
	return 0
}
