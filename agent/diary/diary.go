// Package diary keeps the numbered events of one lease, in memory and in a file,
// for whoever asks what happened and for whoever wants to be told.
//
//	d := diary.Open(folder, log)
//	d.Add(lease.Event{Type: lease.Normal, Reason: diary.Started, Note: "web-1-0 was started"})
//	for e := range d.Read(ctx, 0, true) { … }    // until ctx or the lease ends
//	d.End()
//
// It does not know what the events mean, and hides no secrets: whoever adds one
// has taken them out. It never fails: without a disk events are kept in memory
// only.
//
// It promises that the numbers of a lease's events grow and are not used twice,
// that memory and file are bounded, and that the file has mode 0600. It is synced
// only when it is written anew: after a power cut the newest events may be
// missing, and numbers go on after a gap that covers them, unless the disk refused
// them all for more than 500.
package diary

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// keepEvents is how many events a lease has at most: a day of a service that
// ends every few minutes, in at most 1.2 MB.
const keepEvents = 500

// maxNote bounds an event's sentence, which may quote a registry.
const maxNote = 1024

// The reasons of events, as tenants know them from Kubernetes.
const (
	Scheduled = "Scheduled"
	Updating  = "Updating"
	Replacing = "ReplacingInPlace"
	Updated   = "Updated"
	Pulling   = "Pulling"
	Pulled    = "Pulled"
	Failed    = "Failed"
	Created   = "Created"
	Started   = "Started"
	Ready     = "Ready"
	Unhealthy = "Unhealthy"
	BackOff   = "BackOff"
	OOMKilled = "OOMKilled"
	Killing   = "Killing"
)

// Diary is the newest events of one lease, in memory and in a file of one JSON
// object a line. Its methods may be called from any goroutine.
type Diary struct {
	path string
	log  *slog.Logger

	writing sync.Mutex // held by the one writer, I/O included
	file    *os.File   // guarded by writing; nil: not open
	lines   int        // guarded by writing; in the file
	ended   bool       // guarded by writing; nothing is written any more

	mu     sync.Mutex
	events []lease.Event // guarded by mu; oldest first
	last   uint64        // guarded by mu; newest number
	over   bool          // guarded by mu; there will be no more
	news   chan struct{} // guarded by mu; closed at the next event or the end
}

// Open reads the events in a folder, the file "events", and goes on with it. What
// cannot be read is left out.
func Open(folder string, log *slog.Logger) *Diary {
	d := &Diary{path: filepath.Join(folder, "events"), log: log, news: make(chan struct{}), lines: 2 * keepEvents}
	data, err := os.ReadFile(d.path)
	if err != nil {
		return d
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		var e lease.Event
		if json.Unmarshal(lines.Bytes(), &e) == nil && e.Seq > d.last {
			d.events = append(d.events, e)
			d.last = e.Seq
		}
	}
	d.events = slices.Clone(d.events[max(0, len(d.events)-keepEvents):])
	if d.last > 0 {
		d.last += keepEvents
	}
	return d
}

// Add appends an event, with its number and time. It is in memory when Add
// returns, and in the file if the disk lets it.
func (d *Diary) Add(e lease.Event) {
	d.writing.Lock()
	defer d.writing.Unlock()
	if d.ended {
		return
	}
	if len(e.Note) > maxNote {
		e.Note = strings.ToValidUTF8(e.Note[:maxNote], "") + "…"
	}
	e.At = time.Now().UTC()
	d.mu.Lock()
	d.last++
	e.Seq = d.last
	d.events = append(d.events, e)
	if len(d.events) > keepEvents {
		d.events = slices.Clone(d.events[len(d.events)-keepEvents:])
	}
	close(d.news)
	d.news = make(chan struct{})
	all := d.events
	d.mu.Unlock()

	if err := d.write(e, all); err != nil {
		d.log.Warn("event not written", "err", err)
		d.lines = 2 * keepEvents // the next one writes the file anew
	}
}

// write appends an event to the file, or writes it anew with all there are when
// it has become too long. writing is held.
func (d *Diary) write(e lease.Event, all []lease.Event) error {
	if d.lines >= 2*keepEvents {
		d.closeFile()
		if err := atomicfile.WriteFile(d.path, text(all...), 0o600); err != nil {
			return err
		}
		d.lines = len(all)
		return nil
	}
	if d.file == nil {
		file, err := os.OpenFile(d.path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		d.file = file
	}
	d.lines++
	_, err := d.file.Write(text(e))
	return err
}

// text is one line of JSON for each event.
func text(events ...lease.Event) []byte {
	var out bytes.Buffer
	for _, e := range events {
		line, _ := json.Marshal(e) // strings, numbers and a time of this century
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}

func (d *Diary) closeFile() {
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
}

// End closes the file and tells followers that nothing more will come.
func (d *Diary) End() {
	d.writing.Lock()
	d.ended = true
	d.closeFile()
	d.writing.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.over {
		d.over = true
		close(d.news)
	}
}

// After is the events numbered above seq, and a channel that is closed when
// there are more; nil: there will be none.
func (d *Diary) After(seq uint64) ([]lease.Event, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := len(d.events)
	for at > 0 && d.events[at-1].Seq > seq {
		at--
	}
	if d.over {
		return slices.Clone(d.events[at:]), nil
	}
	return slices.Clone(d.events[at:]), d.news
}

// Read iterates over the events numbered above after, oldest first. With follow
// it goes on with new ones until ctx or the diary ends; a reader who is too slow
// misses the oldest.
func (d *Diary) Read(ctx context.Context, after uint64, follow bool) iter.Seq[lease.Event] {
	return func(yield func(lease.Event) bool) {
		for {
			events, more := d.After(after)
			for _, e := range events {
				if !yield(e) {
					return
				}
				after = e.Seq
			}
			if !follow || more == nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-more:
			}
		}
	}
}
