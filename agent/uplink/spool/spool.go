// Package spool keeps what a box has to say to its fleet until the broker has it.
//
//	s := spool.Open(spool.Config{Dir: "/perm/croft/uplink/spool", …})
//	origin, err := s.PutNumbered(spool.Job, at, encode, nil) // it is on the disk
//	e := s.Next()
//	raw, err := s.Read(e)
//	… send raw …
//	s.Done(e) // the broker has acknowledged it
//
// What it promises and what survives what stands at package uplink, for which
// it is made.
package spool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Class says what a spooled message is worth. Those first in classes are dropped
// first.
type Class string

// The classes.
const (
	Telemetry Class = "tm"
	Log       Class = "log"
	Info      Class = "info" // events, by severity
	Warning   Class = "warning"
	Error     Class = "error"
	Critical  Class = "critical"
	Job       Class = "job"  // never dropped
	sent      Class = "sent" // acknowledged; its file keeps the newest number in mind
)

var classes = []Class{Telemetry, Log, Info, Warning, Error, Critical, Job, sent}

func (c Class) rank() int { return slices.Index(classes, c) }

func (c Class) numbered() bool { return c.rank() >= Info.rank() }

// Subject is where messages of the class go.
func (c Class) Subject() fleetapi.Subject {
	switch c {
	case Telemetry:
		return fleetapi.SubjectReadings
	case Log:
		return fleetapi.SubjectLog
	case Job:
		return fleetapi.SubjectStatus
	default:
		return fleetapi.SubjectEvent
	}
}

// OfSeverity is the class of an event.
func OfSeverity(s fleetapi.Severity) Class {
	switch s {
	case fleetapi.SeverityWarning:
		return Warning
	case fleetapi.SeverityError:
		return Error
	case fleetapi.SeverityCritical:
		return Critical
	default:
		return Info
	}
}

const (
	diskBlock    = 4096    // what the smallest file takes
	memoryBudget = 1 << 20 // of messages that no disk takes
	evictions    = 8       // tries to make room on a disk that others filled
	sumBytes     = 4       // of a file: the CRC-32C of the rest
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDropped reports that a message has no room and is worth less than all
// that has.
var ErrDropped = errors.New("spool is full of what is worth more")

// Entry is one message that waits. All but busy stays as it is.
type Entry struct {
	order  uint64
	class  Class
	at     int64           // seconds since 1970 when it was made; 0 if the clock was not known
	origin fleetapi.Origin // zero without a number
	size   int64           // bytes of budget
	data   []byte          // of a message in memory; nil: it is in the file
	busy   bool            // on its way to the broker; guarded by Spool.mu
}

// Class says what the message is worth.
func (e *Entry) Class() Class { return e.class }

// name is the file's name: all that must be known without reading it.
func (e *Entry) name() string {
	return fmt.Sprintf("%016x-%s-%x-%x-%x", e.order, e.class, e.at, e.origin.Journal, e.origin.Seq)
}

func parseName(name string) (*Entry, error) {
	part := strings.Split(name, "-")
	if len(part) != 5 || Class(part[1]).rank() < 0 {
		return nil, fmt.Errorf("parse name of spooled message %.80q: not one of ours", name)
	}
	var number [5]uint64
	for _, i := range []int{0, 2, 3, 4} {
		var err error
		if number[i], err = strconv.ParseUint(part[i], 16, 64); err != nil {
			return nil, fmt.Errorf("parse name of spooled message %.80q: %w", name, err)
		}
	}
	e := &Entry{
		order: number[0], class: Class(part[1]), at: int64(number[2]),
		origin: fleetapi.Origin{Journal: number[3], Seq: number[4]},
	}
	if e.name() != name {
		return nil, fmt.Errorf("parse name of spooled message %.80q: not as we write it", name)
	}
	return e, nil
}

// Spool keeps messages until the broker has them: one file each, so that a bad
// sector costs one message, dropping is unlinking, and nothing is ever rewritten.
// What no disk takes is kept in memory, up to a budget, under another journal
// number: one that ends with the process, as the messages do.
type Spool struct {
	dir       string // empty: memory only
	budget    int64
	maxAge    time.Duration
	clock     func() (now time.Time, known bool)
	log       *slog.Logger
	remember  func(uint64) error
	writeFile func(path string, data []byte, perm fs.FileMode) error
	wake      chan struct{} // something to send, or room to send it; holds one

	// turn is held by the one who changes files. It is never wanted while mu is
	// held.
	turn     sync.Mutex
	order    uint64          // guarded by turn; of the newest message
	volatile fleetapi.Origin // guarded by turn; the newest number of messages in memory
	holder   *Entry          // guarded by turn; of class sent, nil if a message holds the newest number
	last     uint64          // guarded by turn; newest number of origin

	mu       sync.Mutex
	origin   uint64           // guarded by mu; journal number of messages on the disk; 0: there is none
	numbered []*Entry         // guarded by mu; in order
	backlog  []*Entry         // guarded by mu; without numbers, in order
	used     int64            // guarded by mu; on the disk, but for jobs
	inMemory int64            // guarded by mu; bytes
	dropped  map[Class]uint64 // guarded by mu
	damaged  uint64           // guarded by mu
	fault    error            // guarded by mu; why the disk took nothing last time
}

// Config is copied by [Open] and never changed afterwards.
type Config struct {
	Dir    string                             // empty: memory only
	Budget int64                              // bytes on the disk, job statuses not counted; required
	MaxAge time.Duration                      // of readings and log lines; required
	Clock  func() (now time.Time, known bool) // required
	Log    *slog.Logger                       // required

	// Journal is the number under which messages were numbered last, as the
	// caller remembers it; 0: it does not. If the spool does not know the same,
	// one of them was lost, and a new number is drawn, which Remember keeps.
	Journal  uint64
	Remember func(journal uint64) error // required
}

// Open reads which messages wait. Whatever is wrong with the disk, there is a
// spool: [Stats] says what.
func Open(cfg Config) *Spool { return open(cfg, atomicfile.WriteFile) }

func open(cfg Config, writeFile func(string, []byte, fs.FileMode) error) *Spool {
	dir, log, stored := cfg.Dir, cfg.Log, cfg.Journal
	s := &Spool{
		dir: dir, budget: cfg.Budget, maxAge: cfg.MaxAge, clock: cfg.Clock, log: log, remember: cfg.Remember, writeFile: writeFile,
		wake:     make(chan struct{}, 1),
		volatile: fleetapi.Origin{Journal: fleetapi.NewJournal()},
		dropped:  make(map[Class]uint64),
	}
	if dir == "" {
		return s
	}
	if err := s.scan(); err != nil {
		s.fault = err
		log.Warn("spool cannot be read", "err", err)
		return s
	}
	if stored != 0 && s.knows(stored) {
		s.origin = stored
	}
	if err := s.begin(); err != nil {
		s.fault = err
		log.Warn("spool takes no messages", "err", err)
	}
	return s
}

// scan reads the directory. Nobody else has the spool yet.
func (s *Spool) scan() error {
	if err := atomicfile.MkdirAll(s.dir, 0o700); err != nil && !errors.Is(err, syscall.EROFS) {
		return err
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") { // left by a write that was cut
			_ = os.Remove(filepath.Join(s.dir, f.Name())) // in the way of nobody
			continue
		}
		e, err := parseName(f.Name())
		if err != nil {
			s.log.Warn("spool has a foreign file", "err", err)
			continue
		}
		info, err := f.Info()
		if err != nil {
			return fmt.Errorf("read spool: %w", err)
		}
		e.size = onDisk(info.Size())
		s.order = max(s.order, e.order)
		switch {
		case e.class == sent:
			if s.holder == nil || e.order > s.holder.order {
				s.holder, e = e, s.holder
			}
			if e != nil {
				_ = os.Remove(filepath.Join(s.dir, e.name())) // else the next start does it
			}
		case e.class.numbered():
			s.numbered = append(s.numbered, e)
		default:
			s.backlog = append(s.backlog, e)
		}
		if e != nil && e.class != sent && e.class != Job {
			s.used += e.size
		}
	}
	return nil
}

// knows looks for the newest number of an origin. Nobody else has the spool yet.
func (s *Spool) knows(origin uint64) bool {
	found := false
	for _, e := range append([]*Entry{s.holder}, s.numbered...) {
		if e != nil && e.origin.Journal == origin {
			found, s.last = true, max(s.last, e.origin.Seq)
		}
	}
	return found
}

// begin makes the spool fit for numbers: it has an origin whose newest number is
// on the disk. The caller holds turn, or nobody else has the spool yet.
func (s *Spool) begin() error {
	if s.dir == "" || s.Journal() != 0 {
		return nil
	}
	origin := fleetapi.NewJournal()
	holder := &Entry{order: s.order + 1, class: sent, origin: fleetapi.Origin{Journal: origin}}
	if err := s.write(holder, nil); err != nil {
		return err
	}
	if err := s.remember(origin); err != nil {
		return errors.Join(err, os.Remove(filepath.Join(s.dir, holder.name())))
	}
	if s.holder != nil {
		_ = os.Remove(filepath.Join(s.dir, s.holder.name())) // else the next start does it
	}
	s.order, s.holder, s.last = holder.order, holder, 0
	s.mu.Lock()
	s.origin, s.fault = origin, nil
	s.mu.Unlock()
	return nil
}

// Retry is begin, for a disk that may have become better.
func (s *Spool) Retry() {
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.begin(); err != nil {
		s.blame(err)
	}
}

// Journal is the journal number of messages on the disk, 0 if there is none.
func (s *Spool) Journal() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.origin
}

// Has reports whether a number was given to a message that is, or was, on the
// disk.
func (s *Spool) Has(o fleetapi.Origin) bool {
	s.turn.Lock()
	defer s.turn.Unlock()
	return o.Seq != 0 && o.Journal == s.Journal() && o.Seq <= s.last
}

func onDisk(size int64) int64 { return max(1, (size+diskBlock-1)/diskBlock) * diskBlock }

// write puts a message into its file; on an error there is none.
func (s *Spool) write(e *Entry, raw []byte) error {
	path := filepath.Join(s.dir, e.name())
	data := binary.BigEndian.AppendUint32(make([]byte, 0, sumBytes+len(raw)), crc32.Checksum(raw, castagnoli))
	if err := s.writeFile(path, append(data, raw...), 0o600); err != nil {
		if gone := os.Remove(path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return err
	}
	e.size = onDisk(int64(sumBytes + len(raw)))
	return nil
}

// Put keeps a message without a number. at is 0 if the clock is not known.
func (s *Spool) Put(c Class, at int64, raw []byte) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	e := &Entry{order: s.order + 1, class: c, at: at}
	if s.dir != "" {
		err := s.store(e, raw)
		if err == nil || errors.Is(err, ErrDropped) {
			return err
		}
	}
	return s.hold(e, raw)
}

// PutNumbered keeps a message that must arrive. build makes it under the number
// it is given; before, if there is one, is called with the same number when the
// message is about to go to the disk, and its error keeps the message in memory.
// The number it got in the end is returned.
func (s *Spool) PutNumbered(c Class, at int64, build func(fleetapi.Origin) ([]byte, error), before func(fleetapi.Origin) error) (fleetapi.Origin, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	if origin := s.Journal(); origin != 0 {
		e := &Entry{order: s.order + 1, class: c, at: at, origin: fleetapi.Origin{Journal: origin, Seq: s.last + 1}}
		raw, err := build(e.origin)
		if err != nil {
			return fleetapi.Origin{}, err
		}
		if before != nil {
			err = before(e.origin)
		}
		if err == nil {
			err = s.store(e, raw)
		}
		if err == nil || errors.Is(err, ErrDropped) {
			return e.origin, err
		}
	}
	e := &Entry{order: s.order + 1, class: c, at: at, origin: fleetapi.Origin{Journal: s.volatile.Journal, Seq: s.volatile.Seq + 1}}
	raw, err := build(e.origin)
	if err != nil {
		return fleetapi.Origin{}, err
	}
	if err := s.hold(e, raw); err != nil {
		return fleetapi.Origin{}, err
	}
	s.volatile = e.origin
	return e.origin, nil
}

// store writes e to the disk, if need be in the place of what is worth less. The
// caller holds turn.
func (s *Spool) store(e *Entry, raw []byte) error {
	need := onDisk(int64(sumBytes + len(raw)))
	s.expire()
	for e.class != Job && s.usage()+need > s.budget {
		if !s.evict(e.class, false) {
			s.count(e.class)
			return ErrDropped
		}
	}
	err := s.write(e, raw)
	for range evictions {
		if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) || !s.evict(e.class, false) {
			break
		}
		err = s.write(e, raw)
	}
	if err != nil {
		s.blame(err)
		return err
	}
	s.order = e.order
	if e.origin.Seq != 0 {
		s.last = e.origin.Seq
		if s.holder != nil {
			_ = os.Remove(filepath.Join(s.dir, s.holder.name())) // else the next start does it
			s.holder = nil
		}
	}
	s.mu.Lock()
	s.fault = nil
	s.mu.Unlock()
	s.add(e)
	return nil
}

// hold keeps e in memory. The caller holds turn.
func (s *Spool) hold(e *Entry, raw []byte) error {
	e.data, e.size = raw, int64(len(raw))
	for {
		s.mu.Lock()
		full := s.inMemory+e.size > memoryBudget
		s.mu.Unlock()
		if !full {
			break
		}
		if !s.evict(e.class, true) {
			s.count(e.class)
			return ErrDropped
		}
	}
	s.order = e.order
	s.add(e)
	return nil
}

func (s *Spool) add(e *Entry) {
	s.mu.Lock()
	if e.class.numbered() {
		s.numbered = append(s.numbered, e)
	} else {
		s.backlog = append(s.backlog, e)
	}
	s.account(e, e.size)
	s.mu.Unlock()
	s.signal()
}

// account adds to what e takes. The caller holds mu.
func (s *Spool) account(e *Entry, bytes int64) {
	switch {
	case e.data != nil:
		s.inMemory += bytes
	case e.class != Job:
		s.used += bytes
	}
}

func (s *Spool) usage() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *Spool) count(c Class) {
	s.mu.Lock()
	s.dropped[c]++
	s.mu.Unlock()
}

func (s *Spool) blame(err error) {
	s.mu.Lock()
	was := s.fault
	s.fault = err
	s.mu.Unlock()
	if was == nil {
		s.log.Warn("spool cannot be written", "err", err)
	}
}

func (s *Spool) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// evict drops the oldest of what is worth least, of what waits on the disk or
// in memory, if it is worth no more than c. The caller holds turn.
func (s *Spool) evict(c Class, inMemory bool) bool {
	s.mu.Lock()
	var victim *Entry
	for _, list := range [][]*Entry{s.backlog, s.numbered} {
		for _, e := range list {
			if e.busy || e.class == Job || e.class.rank() > c.rank() || (e.data != nil) != inMemory {
				continue
			}
			if victim == nil || e.class.rank() < victim.class.rank() {
				victim = e
			}
		}
		if victim != nil {
			break // what has no number is worth less than what has one
		}
	}
	s.mu.Unlock()
	if victim == nil {
		return false
	}
	s.remove(victim)
	s.count(victim.class)
	return true
}

// expire drops what is too old to be of use, as far as the clock allows to tell.
// The caller holds turn.
func (s *Spool) expire() {
	now, known := s.clock()
	if !known {
		return
	}
	oldest := now.Add(-s.maxAge).Unix()
	s.mu.Lock()
	var old []*Entry
	for _, e := range s.backlog {
		if e.at != 0 && e.at < oldest && !e.busy {
			old = append(old, e)
		}
	}
	s.mu.Unlock()
	for _, e := range old {
		s.remove(e)
		s.count(e.class)
	}
}

// remove forgets e. A file that holds the newest number stays, as one that was
// sent. The caller holds turn.
func (s *Spool) remove(e *Entry) {
	s.mu.Lock()
	list := &s.backlog
	if e.class.numbered() {
		list = &s.numbered
	}
	i, found := slices.BinarySearchFunc(*list, e.order, func(e *Entry, order uint64) int { return cmp.Compare(e.order, order) })
	if !found {
		s.mu.Unlock()
		return
	}
	*list = slices.Delete(*list, i, i+1)
	s.account(e, -e.size)
	newest := e.data == nil && e.origin.Journal == s.origin && e.origin.Seq == s.last && s.last != 0
	s.mu.Unlock()
	if e.data != nil {
		return
	}
	path := filepath.Join(s.dir, e.name())
	var err error
	if newest {
		s.holder = &Entry{order: e.order, class: sent, at: e.at, origin: e.origin}
		err = os.Rename(path, filepath.Join(s.dir, s.holder.name()))
	} else {
		err = os.Remove(path)
	}
	if err != nil { // it is sent again after the next start, under its number
		s.blame(err)
	}
}

// Next takes the message to be sent next: what has a number in order of the
// numbers, then what has none, newest first. It is nil if none waits.
func (s *Spool) Next() *Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.numbered {
		if !e.busy {
			e.busy = true
			return e
		}
	}
	for _, e := range slices.Backward(s.backlog) {
		if !e.busy {
			e.busy = true
			return e
		}
	}
	return nil
}

// Read returns the bytes of a message. One that is damaged is given up.
func (s *Spool) Read(e *Entry) ([]byte, error) {
	if e.data != nil {
		return e.data, nil
	}
	data, err := os.ReadFile(filepath.Join(s.dir, e.name()))
	if err == nil && (len(data) < sumBytes || crc32.Checksum(data[sumBytes:], castagnoli) != binary.BigEndian.Uint32(data)) {
		err = errors.New("its checksum is wrong")
	}
	if err != nil {
		s.mu.Lock()
		s.damaged++
		s.mu.Unlock()
		s.Done(e)
		return nil, fmt.Errorf("read spooled message %s: %w", e.name(), err)
	}
	return data[sumBytes:], nil
}

// Done forgets a message that the broker has.
func (s *Spool) Done(e *Entry) {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.remove(e)
}

// Release lets all that was on its way be sent again.
func (s *Spool) Release() {
	s.mu.Lock()
	for _, list := range [][]*Entry{s.numbered, s.backlog} {
		for _, e := range list {
			e.busy = false
		}
	}
	s.mu.Unlock()
	s.signal()
}

// Waits reports whether a message of this number still waits for its
// acknowledgement.
func (s *Spool) Waits(o fleetapi.Origin) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.numbered, func(e *Entry) bool { return e.origin == o })
}

// Wake tells that there is something to send, or room to send it.
func (s *Spool) Wake() <-chan struct{} { return s.wake }

// Stats is how the spool is doing.
type Stats struct {
	Waiting int
	Bytes   int64            // of what waits, job statuses not counted
	Dropped map[Class]uint64 // since the start, for lack of room or for their age
	Damaged uint64           // since the start
	Fault   error            // why messages are only in memory; nil if they are on the disk
}

// Stats returns how the spool is doing now.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Waiting: len(s.numbered) + len(s.backlog), Bytes: s.used + s.inMemory,
		Dropped: maps.Clone(s.dropped), Damaged: s.damaged, Fault: s.fault,
	}
}
