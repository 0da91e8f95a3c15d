// Package journal is the agent's memory across restarts and power cuts: the
// last value of each key, and numbered events.
//
//	j, err := journal.Open(journal.Config{Path: "/perm/croft/agent.journal"})
//	err = j.Put("update/failed", digests)       // last value wins
//	found, err := j.Get("update/failed", &digests)
//	seq, err := j.Event("boot_confirmed", map[string]any{"slot": "b"})
//	for e := range j.Events(lastSent) { … }     // oldest first
//
// When Put, Delete or Event returns nil, the record is on the disk; when it
// returns an error, nothing has changed, the file is still valid, and the call
// can be repeated. [ErrFull] and [ErrReadOnly] tell why.
//
// What survives: power cut at any line, every acknowledged record. A damaged
// record is skipped and reported by [Journal.Damage], and costs itself only. A
// number is never given to two records, not even when the newest are damaged.
// When the file is lost, so is everything in it, and a new journal begins with
// a new [Journal.ID]; the pair of ID and number names an event for ever.
//
// The file is a text of one record a line: the CRC-32C of the JSON in eight hex
// digits, a space, the JSON. It only ever grows, until it exceeds a limit and is
// replaced as a whole by what still counts. One process has it open at a time.
// All of it is held in memory: it is meant for kilobytes. It holds no secrets.
//
// Why not a library: bbolt and SQLite keep pages, where one bad sector can take
// the whole file; the write-ahead logs in use drop all that follows a bad record.
package journal

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

// The reasons callers act upon.
var (
	// ErrFull reports that the disk has no room for the record.
	ErrFull = errors.New("disk is full")
	// ErrReadOnly reports that the file system cannot be written.
	ErrReadOnly = errors.New("file system is read-only")
	// ErrInUse reports that another process has the journal open.
	ErrInUse = errors.New("journal is in use by another process")
	// ErrTooLarge reports a record over 64 KiB, or a Put after which all values
	// together would exceed [Config.MaxBytes].
	ErrTooLarge = errors.New("record is too large")
	// ErrClosed reports a write after [Journal.Close].
	ErrClosed = errors.New("journal is closed")
)

// Kind names what an event is about: lower case, words joined by "_", such as
// "boot_confirmed".
type Kind string

// Event is one thing that happened. Its fields must not be changed.
type Event struct {
	Seq    uint64          // grows from event to event, with gaps; never used twice
	At     time.Time       // device clock, UTC; may jump until time is synced
	Kind   Kind            // what happened
	Fields json.RawMessage // as given to [Journal.Event]
}

// Config is copied by [Open] and never changed afterwards.
type Config struct {
	Path     string       // required; the journal's file, its directory is made if missing
	MaxBytes int64        // size at which the file is compacted; default 1 MiB
	Keep     int          // newest events of each kind that compaction keeps; default 256
	Log      *slog.Logger // default: discard
}

// Journal is open until [Journal.Close]. All methods may be called from any
// goroutine; readers never wait for the disk.
type Journal struct {
	path      string // empty: memory only
	maxBytes  int64
	keep      int
	log       *slog.Logger
	openFile  func(path string) (file, error)
	writeFile func(path string, data []byte, perm fs.FileMode) error

	turn      sync.Mutex // held by the one writer, also while it waits for the disk
	f         file       // guarded by turn; nil: write the file anew before the next record
	end       int64      // guarded by turn; the file is valid up to here
	torn      bool       // guarded by turn; the file may be longer than end
	newline   bool       // guarded by turn; the record before end lacks its newline
	headerDue bool       // guarded by turn; write a header with the next record
	compactAt int64      // guarded by turn; value of end that starts a compaction
	closed    bool       // guarded by turn

	mu         sync.Mutex       // never held while waiting for anything
	id         string           // guarded by mu; written with turn held
	last       uint64           // guarded by mu; newest number in use; written with turn held
	state      map[string]entry // guarded by mu; written with turn held
	stateBytes int64            // guarded by mu; of all keys and values
	events     []Event          // guarded by mu; by number; never edited in place
	damage     []Damage         // guarded by mu; set by Open
}

// entry is the last value of a key.
type entry struct {
	seq   uint64
	at    time.Time
	value json.RawMessage
}

// file is what the journal needs of an *os.File.
type file interface {
	io.ReaderAt
	io.WriterAt
	Stat() (fs.FileInfo, error)
	Sync() error
	Truncate(size int64) error
	Close() error
}

// Open replays the journal at cfg.Path, or begins a new one. A torn end is cut
// off. A disk that is full or read-only is no error here: what can be read is
// there, and writing fails until the disk is better. An error means that the
// file could not be read at all; [NewMemory] then stands in.
func Open(cfg Config) (*Journal, error) {
	return open(cfg, openFile, atomicfile.WriteFile)
}

// NewMemory is a journal that keeps nothing beyond the process, for a device
// whose /perm is lost.
func NewMemory() *Journal {
	j := newJournal(Config{})
	j.id = rand.Text()
	return j
}

func newJournal(cfg Config) *Journal {
	j := &Journal{
		path:     cfg.Path,
		maxBytes: cmp.Or(cfg.MaxBytes, 1<<20),
		keep:     cmp.Or(cfg.Keep, 256),
		log:      cfg.Log,
		state:    make(map[string]entry),
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	j.compactAt = j.maxBytes
	return j
}

func open(cfg Config, openFile func(string) (file, error), writeFile func(string, []byte, fs.FileMode) error) (*Journal, error) {
	if cfg.Path == "" {
		return nil, errors.New("open journal: path is missing")
	}
	j := newJournal(cfg)
	j.openFile, j.writeFile = openFile, writeFile
	if err := j.replay(); err != nil {
		return nil, fmt.Errorf("open journal %s: %w", cfg.Path, err)
	}
	if err := j.store(nil); err != nil {
		if err := classify(err); !errors.Is(err, ErrFull) && !errors.Is(err, ErrReadOnly) {
			return nil, fmt.Errorf("open journal %s: %w", cfg.Path, errors.Join(err, j.closeFile()))
		}
		j.log.Warn("journal cannot be written", "err", err)
	}
	return j, nil
}

// replay reads the file into memory and makes its end fit for appending.
func (j *Journal) replay() error {
	f, err := j.openFile(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		j.id = rand.Text()
		return nil // the first store makes the file
	case errors.Is(err, syscall.EROFS):
		ro, err := os.Open(j.path)
		if err != nil {
			return err
		}
		defer ro.Close()
		_, err = j.load(ro)
		return err
	case err != nil:
		return err
	}
	size, err := j.load(f)
	if err != nil {
		f.Close()
		return err
	}
	j.f = f
	j.torn = size > j.end
	return nil
}

// load reads and applies the records of f and returns its size.
func (j *Journal) load(f file) (size int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, min(info.Size(), maxFile)))
	if err != nil {
		return 0, err
	}
	got := parse(data)
	for _, r := range got.records {
		switch r.Type {
		case typeHeader:
			var h header
			if err := json.Unmarshal(r.Value, &h); err == nil && h.ID != "" {
				j.id = h.ID
			}
		default:
			j.apply(r)
		}
		j.last = max(j.last, r.Seq)
	}
	j.end, j.newline, j.damage = int64(got.end), got.newline, got.damage
	if beyond := info.Size() - maxFile; beyond > 0 {
		j.damage = append(j.damage, Damage{Offset: maxFile, Length: beyond, Reason: "file is too large"})
		got.lost += int(beyond)
	}
	if got.lost > 0 {
		// Each record lost at the end had a number. None of them may be used
		// again, and none was shorter than a byte.
		j.last += uint64(got.lost)
		j.headerDue = true
	}
	if j.id == "" {
		j.id = rand.Text()
		j.headerDue = true
	}
	return info.Size(), nil
}

// ID names this journal: 26 characters, chosen at random when its file began.
func (j *Journal) ID() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.id
}

// Keeps reports whether the journal outlives the process.
func (j *Journal) Keeps() bool { return j.path != "" }

// Damage lists what [Open] found damaged, in file order.
func (j *Journal) Damage() []Damage {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.damage)
}

// Get decodes the last value of key into the value that into points to, and
// reports whether there is one.
func (j *Journal) Get(key string, into any) (bool, error) {
	j.mu.Lock()
	e, ok := j.state[key]
	j.mu.Unlock()
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(e.value, into); err != nil {
		return true, fmt.Errorf("decode journal key %s: %w", key, err)
	}
	return true, nil
}

// Keys lists the keys that begin with prefix, sorted.
func (j *Journal) Keys(prefix string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var keys []string
	for key := range j.state {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// Events iterates over the events numbered above after that are still kept,
// oldest first: those of the moment the iteration begins.
func (j *Journal) Events(after uint64) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		j.mu.Lock()
		events := j.events
		j.mu.Unlock()
		for _, e := range events[firstAbove(events, after):] {
			if !yield(e) {
				return
			}
		}
	}
}

func firstAbove(events []Event, seq uint64) int {
	i, _ := slices.BinarySearchFunc(events, seq+1, func(e Event, seq uint64) int { return cmp.Compare(e.Seq, seq) })
	return i
}

// Put makes value, encoded as JSON, the last value of key. A key is 1 to 128
// printable ASCII characters without spaces. Putting the value that is already
// there writes nothing.
func (j *Journal) Put(key string, value any) error {
	raw, err := json.Marshal(value)
	if err == nil {
		_, err = j.append(record{Type: typeState, Name: key, Value: raw})
	}
	if err != nil {
		return fmt.Errorf("put journal key %s: %w", key, err)
	}
	return nil
}

// Delete forgets key. Deleting what is not there writes nothing.
func (j *Journal) Delete(key string) error {
	if _, err := j.append(record{Type: typeState, Name: key}); err != nil {
		return fmt.Errorf("delete journal key %s: %w", key, err)
	}
	return nil
}

// Event records that something happened, with its fields encoded as JSON, and
// returns its number.
func (j *Journal) Event(kind Kind, fields any) (uint64, error) {
	raw, err := json.Marshal(fields)
	var seq uint64
	if err == nil {
		seq, err = j.append(record{Type: typeEvent, Name: string(kind), Value: raw})
	}
	if err != nil {
		return 0, fmt.Errorf("record event %s: %w", kind, err)
	}
	return seq, nil
}

// Close gives the file back. Reading stays possible.
func (j *Journal) Close() error {
	j.turn.Lock()
	defer j.turn.Unlock()
	j.closed = true
	return j.closeFile()
}

func (j *Journal) closeFile() error {
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

// append numbers, stores and applies one record.
func (j *Journal) append(r record) (uint64, error) {
	j.turn.Lock()
	defer j.turn.Unlock()
	if j.closed {
		return 0, ErrClosed
	}
	if err := checkName(r.Name); err != nil {
		return 0, err
	}
	if r.Type == typeState {
		was, ok := j.state[r.Name]
		if ok == (r.Value != nil) && bytes.Equal(was.value, r.Value) {
			return was.seq, nil
		}
		if r.Value != nil && j.stateBytes+entryBytes(r.Name, r.Value)-entryBytes(r.Name, was.value) > j.maxBytes {
			return 0, ErrTooLarge
		}
	}
	r.Seq = j.last + 1
	r.At = time.Now().UTC().Round(0)
	line, err := encode(r)
	if err != nil {
		return 0, err
	}
	if len(line) > maxLine {
		return 0, ErrTooLarge
	}
	if err := j.store(line); err != nil {
		return 0, classify(err)
	}
	j.mu.Lock()
	j.last = r.Seq
	j.apply(r)
	j.mu.Unlock()
	if j.end >= j.compactAt {
		j.compact()
	}
	return r.Seq, nil
}

// apply makes a stored record count. The caller holds mu, or is Open.
func (j *Journal) apply(r record) {
	switch r.Type {
	case typeState:
		if was, ok := j.state[r.Name]; ok {
			j.stateBytes -= entryBytes(r.Name, was.value)
			delete(j.state, r.Name)
		}
		if r.Value != nil {
			j.stateBytes += entryBytes(r.Name, r.Value)
			j.state[r.Name] = entry{r.Seq, r.At, r.Value}
		}
	case typeEvent:
		j.events = append(j.events, Event{r.Seq, r.At, Kind(r.Name), r.Value})
	case typeHeader:
	}
}

func entryBytes(key string, value json.RawMessage) int64 {
	if value == nil {
		return 0
	}
	return int64(len(key) + len(value))
}

// store writes lines, and a header if one is due, to the end of the file and
// syncs it. On an error the file is valid up to j.end all the same. The caller
// holds turn.
func (j *Journal) store(lines []byte) error {
	if j.path == "" {
		j.end += int64(len(lines))
		return nil
	}
	if j.f == nil {
		if err := j.rewrite(); err != nil {
			return err
		}
	}
	if j.torn {
		if err := j.f.Truncate(j.end); err != nil {
			return err
		}
		j.torn = false
	}
	if j.headerDue {
		h, err := j.header()
		if err != nil {
			return err
		}
		lines = append(h, lines...)
	}
	if len(lines) == 0 {
		return nil
	}
	if j.newline {
		lines = append([]byte{'\n'}, lines...)
	}
	if n, err := j.f.WriteAt(lines, j.end); err != nil {
		j.torn = true
		if j.f.Truncate(j.end) == nil { // else the next store tries again
			j.torn = false
		} else if n > 0 {
			// What was refused must not be found after a crash, and a record that
			// lacks only its newline would be: blank it. Room for it is there.
			_, blank := j.f.WriteAt(bytes.Repeat([]byte{'\n'}, n), j.end)
			return errors.Join(err, blank)
		}
		return err
	}
	if err := j.f.Sync(); err != nil {
		// The kernel may now take pages for clean that never reached the disk.
		// Trust nothing it holds of this file: write it anew.
		return errors.Join(err, j.closeFile())
	}
	j.end += int64(len(lines))
	j.newline, j.headerDue = false, false
	return nil
}

// compact lets go of what no longer counts, in memory and in the file. When
// that fails, the file stays as it is and grows on for a while.
func (j *Journal) compact() {
	j.mu.Lock()
	j.events = newest(j.events, j.keep, j.maxBytes/2)
	j.mu.Unlock()
	if err := j.rewrite(); err != nil {
		j.compactAt = j.end + j.maxBytes/4
		j.log.Warn("compacting journal failed", "err", err)
	}
}

// newest returns the newest events: at most keep of each kind, and together at
// most about limit bytes.
func newest(events []Event, keep int, limit int64) []Event {
	var kept []Event
	count := make(map[Kind]int)
	for _, e := range slices.Backward(events) {
		if count[e.Kind]++; count[e.Kind] > keep {
			continue
		}
		if limit -= int64(len(e.Kind)+len(e.Fields)) + lineOverhead; limit < 0 {
			break
		}
		kept = append(kept, e)
	}
	slices.Reverse(kept)
	return kept
}

// rewrite replaces the file by what memory holds. The caller holds turn.
func (j *Journal) rewrite() error {
	snapshot, err := j.snapshot()
	if err != nil {
		return err
	}
	if j.path != "" {
		if err := j.replace(snapshot); err != nil {
			return err
		}
	}
	j.end = int64(len(snapshot))
	j.torn, j.newline, j.headerDue = false, false, false
	j.compactAt = max(j.maxBytes, 2*j.end)
	return nil
}

func (j *Journal) replace(snapshot []byte) error {
	if err := atomicfile.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		return err
	}
	if err := j.writeFile(j.path, snapshot, 0o600); err != nil {
		// An error after the rename leaves the open file without a name:
		// records appended to it would be lost.
		if !j.isNamed() {
			err = errors.Join(err, j.closeFile())
		}
		return err
	}
	if err := j.closeFile(); err != nil {
		return err
	}
	f, err := j.openFile(j.path)
	if err != nil {
		return err
	}
	j.f = f
	return nil
}

// isNamed reports whether the open file is the one at the journal's path.
func (j *Journal) isNamed() bool {
	if j.f == nil {
		return false
	}
	opened, err := j.f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(j.path)
	return err == nil && os.SameFile(opened, named)
}

// snapshot is the file that holds just what memory holds, in number order.
func (j *Journal) snapshot() ([]byte, error) {
	records := make([]record, 0, len(j.state)+len(j.events))
	for _, key := range slices.Sorted(maps.Keys(j.state)) {
		e := j.state[key]
		records = append(records, record{Seq: e.seq, At: e.at, Type: typeState, Name: key, Value: e.value})
	}
	for _, e := range j.events {
		records = append(records, record{Seq: e.Seq, At: e.At, Type: typeEvent, Name: string(e.Kind), Value: e.Fields})
	}
	slices.SortFunc(records, func(a, b record) int { return cmp.Compare(a.Seq, b.Seq) })
	out, err := j.header()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		line, err := encode(r)
		if err != nil {
			return nil, err
		}
		out = append(out, line...)
	}
	return out, nil
}

// header is the line that names the journal and the numbers already in use.
func (j *Journal) header() ([]byte, error) {
	value, err := json.Marshal(header{ID: j.id})
	if err != nil {
		return nil, err
	}
	return encode(record{Seq: j.last, At: time.Now().UTC(), Type: typeHeader, Name: formatName, Value: value})
}

// openFile opens an existing journal for this process alone.
func openFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// classify adds to an error of the file system the reason callers act upon.
func classify(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}
