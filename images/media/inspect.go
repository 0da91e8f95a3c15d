// Package media looks at finished disk images and writes them to disks.
//
// Writing is safe in this order: the disk is checked for anything in use; the
// first and the last mebibyte, where partition tables lie, are cleared; all else
// is written and read back; then come the backup table and, last of all, the
// primary one. A writing that is cut short, at whatever moment, leaves a disk
// that nothing takes for a croft disk.
//
// What the image does not use stays on the disk as it was: the free part of a
// root's partition, a blank partition behind its first mebibyte, and all that
// lies behind the image. This is no way to wipe a disk. On a disk larger than
// the image the backup table stands in the middle; firmware/perm moves it to the
// end when the box boots first.
package media

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/firmware/verity"
)

// guidPrefix begins every GUID on a croft disk (firmware/boards).
const guidPrefix = "60c24cc1-f3f9-427a-8199-"

// About is what [Inspect] finds.
type About struct {
	Path       string      `json:"path"`
	Disk       bool        `json:"disk"` // a block device, not a file
	Size       int64       `json:"size_bytes"`
	Used       int64       `json:"used_bytes"`   // what is not holes; equals Size on a disk
	Sector     int         `json:"sector_bytes"` // the unit its partition table counts in
	Partitions []Partition `json:"partitions"`
	Entries    []Entry     `json:"entries"` // in the order the boot loader tries them
	Foreign    []string    `json:"foreign"` // other files in \EFI\Linux
	Table      string      `json:"table"`   // "good", or what is wrong with the partition table
}

// Partition is one partition.
type Partition struct {
	Number int    `json:"number"`
	Name   string `json:"name"`
	GUID   string `json:"guid"`
	Start  int64  `json:"start_bytes"`
	Size   int64  `json:"size_bytes"`
}

// Entry is one unified kernel image and the slot it boots.
type Entry struct {
	File     string        `json:"file"`
	Slot     croft.Slot    `json:"slot"`
	Version  croft.Version `json:"version"`
	State    slot.State    `json:"state"`
	TryLeft  int           `json:"tries_left"`
	TryDone  int           `json:"tries_done"`
	Size     int64         `json:"size_bytes"`
	Kernel   string        `json:"kernel"`
	Board    string        `json:"board"`
	RootHash string        `json:"root_hash"`
	RootIn   string        `json:"root_in"` // partition that holds this root: root-a, root-b, or empty
	Problem  string        `json:"problem"` // empty when the UKI can be read
}

const remedyBuild = "make one with `croft image build`"

func notOurs(path string, err error) error {
	return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("%s is not a croft image: %w", path, err), Remedy: remedyBuild}
}

func damaged(path string, err error) error {
	return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("%s is a damaged croft image: %w", path, err), Remedy: remedyBuild}
}

// Inspect reads an image or a disk. It writes nothing.
func Inspect(path string) (*About, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return inspect(path, f)
}

// open opens a file or a disk for reading, and nothing else: a pipe would block.
func open(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeType != fs.ModeDevice {
		what := "neither a file nor a disk"
		if info.IsDir() {
			what = "a folder"
		}
		return nil, notOurs(path, errors.New("it is "+what))
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s does not exist", path), Remedy: "name an image or a disk; " + remedyBuild}
	case errors.Is(err, fs.ErrPermission):
		return nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("%s cannot be read: permission denied", path), Remedy: "run this as root (sudo)"}
	case errors.Is(err, unix.ENOMEDIUM):
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s is empty", path), Remedy: "put a disk into it"}
	case err != nil:
		return nil, fmt.Errorf("open image: %w", err)
	}
	return f, nil
}

func inspect(path string, f *os.File) (*About, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	about := &About{Path: path, Disk: !info.Mode().IsRegular(), Table: "good", Partitions: []Partition{}, Entries: []Entry{}, Foreign: []string{}}
	if about.Size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, fmt.Errorf("measure %s: %w", path, err)
	}
	about.Used = about.Size
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil && !about.Disk {
		about.Used = min(st.Blocks*512, about.Size)
	}
	sections, err := about.readTable(f)
	if err != nil {
		return nil, err
	}
	if err := about.readESP(sections); err != nil {
		return nil, damaged(path, err)
	}
	return about, nil
}

// tableUnit finds the sector size the partition table of f counts in: that of
// the disk itself, or for a file, 512 or 4096.
func (about *About) tableUnit(f *os.File) (unit, disk int64) {
	disk = 512
	if n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err == nil && about.Disk {
		disk = int64(n)
	}
	for _, unit := range []int64{disk, 512, 4096} {
		for _, at := range []int64{unit, about.Size - unit} { // primary table, backup
			header := make([]byte, 92)
			if _, err := f.ReadAt(header, at); err != nil || string(header[:8]) != "EFI PART" {
				continue
			}
			// A table of another shape than all others is not worth its memory.
			if count, size := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:]); count <= 1024 && size == 128 {
				return unit, disk
			}
		}
	}
	return 0, disk
}

// readTable reads the partition table and returns the content of the partitions
// by number.
func (about *About) readTable(f *os.File) (map[int]*io.SectionReader, error) {
	unit, disk := about.tableUnit(f)
	if unit == 0 {
		return nil, notOurs(about.Path, errors.New("it has no GPT partition table"))
	}
	table, err := gpt.Read(f, int(unit), int(unit))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it is cut short")
	}
	if err != nil {
		return nil, notOurs(about.Path, err)
	}
	about.Sector = int(unit)
	switch {
	case table.RecoveredFromBackup:
		about.Table = "the primary one is damaged; the backup was read"
	case about.Disk && unit != disk:
		about.Table = fmt.Sprintf("made for sectors of %d bytes, but this disk has %d: no firmware finds it", unit, disk)
	}
	sections := map[int]*io.SectionReader{}
	end := int64(table.TotalSize())
	for _, p := range table.Partitions {
		if p.Size == 0 {
			continue
		}
		part := Partition{Number: p.Index, Name: p.Name, GUID: strings.ToLower(p.GUID), Start: int64(p.Start) * unit, Size: int64(p.Size)}
		about.Partitions = append(about.Partitions, part)
		sections[p.Index] = io.NewSectionReader(f, part.Start, part.Size)
		if !strings.HasPrefix(part.GUID, guidPrefix) {
			return nil, notOurs(about.Path, fmt.Errorf("its partition %d has the GUID %s", p.Index, part.GUID))
		}
		end = max(end, part.Start+part.Size)
	}
	if len(about.Partitions) != 4 || sections[1] == nil || sections[2] == nil || sections[3] == nil || sections[4] == nil {
		return nil, notOurs(about.Path, fmt.Errorf("it has %d partitions, want number 1 to 4", len(about.Partitions)))
	}
	slices.SortFunc(about.Partitions, func(a, b Partition) int { return a.Number - b.Number })
	if end > about.Size {
		return nil, damaged(about.Path, fmt.Errorf("it is cut short: %d bytes, want %d", about.Size, end))
	}
	return sections, nil
}

func (about *About) readESP(sections map[int]*io.SectionReader) error {
	volume, err := esp.OpenVolume(sections[1])
	if err != nil {
		return fmt.Errorf("read the EFI partition: %w", err)
	}
	files, err := volume.Files()
	if err != nil {
		return fmt.Errorf("read \\EFI\\Linux: %w", err)
	}
	var entries []slot.Entry
	found := map[string]Entry{}
	for _, file := range files {
		parsed, err := slot.ParseName(file.Name)
		if err != nil {
			about.Foreign = append(about.Foreign, file.Name)
			continue
		}
		e := Entry{
			File: file.Name, Slot: parsed.Slot, Version: parsed.Version, State: parsed.State(),
			TryLeft: parsed.Left, TryDone: parsed.Done, Size: file.Size,
		}
		var raw bytes.Buffer
		if _, err = file.WriteTo(&raw); err == nil {
			err = e.readUKI(raw.Bytes(), sections)
		}
		if err != nil {
			e.Problem = err.Error()
		}
		entries = append(entries, parsed)
		found[parsed.Name()] = e
	}
	for _, parsed := range slot.NewSet(entries...).Order() {
		about.Entries = append(about.Entries, found[parsed.Name()])
	}
	return nil
}

// readUKI takes what a UKI says about itself from its sections.
func (e *Entry) readUKI(raw []byte, sections map[int]*io.SectionReader) error {
	program, err := pe.NewFile(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("read the kernel image: %w", err)
	}
	for _, s := range program.Sections {
		if int64(s.Offset)+int64(s.Size) > int64(len(raw)) {
			return fmt.Errorf("read the kernel image: section %s is cut short", s.Name)
		}
	}
	text := func(name string) string {
		s := program.Section(name)
		if s == nil {
			return ""
		}
		data, err := s.Data()
		if err != nil {
			return ""
		}
		return strings.TrimRight(string(data[:min(uint32(len(data)), s.VirtualSize)]), "\x00\n ")
	}
	e.Kernel = text(".uname")
	cmdline := text(".cmdline")
	for field := range strings.FieldsSeq(cmdline) {
		if board, ok := strings.CutPrefix(field, "croft.board="); ok {
			e.Board = board
		}
	}
	root, err := verity.FromCommandLine(cmdline)
	if err != nil {
		return err
	}
	e.RootHash = root.Hash
	for n, name := range []string{2: "root-a", 3: "root-b"} { // croft-init takes the first as well
		if name != "" && e.RootIn == "" && root.Holds(sections[n]) {
			e.RootIn = name
		}
	}
	if e.RootIn == "" {
		return errors.New("no partition holds its root")
	}
	return nil
}

// Text is the explanation for a person.
func (about *About) Text() string {
	var w strings.Builder
	what := "croft image"
	if about.Disk {
		what = "croft disk"
	}
	fmt.Fprintf(&w, "%s: %s, %s", about.Path, what, size(about.Size))
	if about.Used < about.Size {
		fmt.Fprintf(&w, " (%s used, the rest are holes)", size(about.Used))
	}
	fmt.Fprintf(&w, ", partition table: %s\n\n", about.Table)
	for _, p := range about.Partitions {
		fmt.Fprintf(&w, "  partition %d  %-7s %9s  %s\n", p.Number, p.Name, size(p.Size), p.GUID)
	}
	if len(about.Entries) == 0 {
		w.WriteString("\n  Nothing on it can boot: \\EFI\\Linux has no unified kernel image.\n")
	}
	for i, e := range about.Entries {
		order := "then"
		if i == 0 {
			order = "boots first"
		}
		fmt.Fprintf(&w, "\n  slot %s  version %s  (%s)\n", e.Slot, e.Version, order)
		switch e.State {
		case slot.Confirmed:
			fmt.Fprintf(&w, "    confirmed: it has run well\n")
		case slot.Trial:
			fmt.Fprintf(&w, "    on trial: %d tries left, %d used\n", e.TryLeft, e.TryDone)
		case slot.Exhausted:
			fmt.Fprintf(&w, "    given up after %d tries: taken only when nothing else is left\n", e.TryDone)
		case slot.Empty:
		}
		fmt.Fprintf(&w, "    file   \\EFI\\Linux\\%s, %s\n", e.File, size(e.Size))
		if e.Kernel != "" {
			fmt.Fprintf(&w, "    kernel %s, board %s\n", e.Kernel, e.Board)
		}
		if e.RootIn != "" {
			fmt.Fprintf(&w, "    root   %s in %s\n", e.RootHash, e.RootIn)
		}
		if e.Problem != "" {
			fmt.Fprintf(&w, "    problem: %s\n", e.Problem)
		}
	}
	for _, name := range about.Foreign {
		fmt.Fprintf(&w, "\n  also in \\EFI\\Linux, not ours: %s\n", name)
	}
	return w.String()
}

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
