package main

import (
	"bytes"
	"encoding/json"
	"time"
	"unicode/utf8"
)

// record is one line of the log.
type record struct {
	Time    time.Time `json:"t"`
	Stream  string    `json:"s"`              // stdout or stderr
	Text    string    `json:"m"`              // without its newline
	Partial bool      `json:"p,omitempty"`    // the line goes on in the stream's next record
	Lost    int       `json:"lost,omitempty"` // records before this one that were not written
}

// splitter makes records of a stream.
type splitter struct {
	stream  string
	pending []byte // the line that has not ended; at most maxLine
}

func newSplitter(stream string) *splitter {
	return &splitter{stream: stream, pending: make([]byte, 0, maxLine)}
}

// split passes each line that ends in data, and each piece of maxLine bytes, to
// emit.
func (s *splitter) split(data []byte, now time.Time, emit func(record)) {
	for len(data) > 0 {
		line, rest, ended := bytes.Cut(data, []byte{'\n'})
		for len(s.pending)+len(line) > maxLine {
			room := maxLine - len(s.pending)
			s.pending = append(s.pending, line[:room]...)
			line = line[room:]
			s.cut(now, emit)
		}
		s.pending = append(s.pending, line...)
		if ended {
			emit(record{Time: now, Stream: s.stream, Text: string(s.pending)})
			s.pending = s.pending[:0]
		}
		data = rest
	}
}

// cut emits what is pending as a piece of a line, less the first bytes of a
// character whose others are still to come.
func (s *splitter) cut(now time.Time, emit func(record)) {
	whole := len(s.pending)
	for back := 1; back < utf8.UTFMax && back < len(s.pending); back++ {
		if b := s.pending[len(s.pending)-back]; utf8.RuneStart(b) {
			if !utf8.FullRune(s.pending[len(s.pending)-back:]) {
				whole = len(s.pending) - back
			}
			break
		}
	}
	emit(record{Time: now, Stream: s.stream, Text: string(s.pending[:whole]), Partial: true})
	s.pending = append(s.pending[:0], s.pending[whole:]...)
}

// flush emits a line that has not ended: as a piece if it may go on.
func (s *splitter) flush(now time.Time, goesOn bool, emit func(record)) {
	if len(s.pending) == 0 {
		return
	}
	if goesOn {
		s.cut(now, emit)
		return
	}
	emit(record{Time: now, Stream: s.stream, Text: string(s.pending)})
	s.pending = s.pending[:0]
}

// encode is r as a line of the log.
func encode(to []byte, r record) []byte {
	r.Time = r.Time.UTC()
	line, err := json.Marshal(r)
	if err != nil { // a time beyond the year 9999: a clock gone mad
		r.Time = time.Unix(0, 0).UTC()
		line, _ = json.Marshal(r)
	}
	return append(append(to, line...), '\n')
}

// batch collects records and writes them in pieces of batchSize or little more.
type batch struct {
	log     *rotation
	data    []byte
	records int
	written int
}

func (b *batch) add(r record) {
	b.data = encode(b.data, r)
	b.records++
	if len(b.data) >= batchSize {
		b.write(r.Time)
	}
}

func (b *batch) write(now time.Time) {
	if b.records == 0 {
		return
	}
	b.log.write(b.data, b.records, now)
	b.written += len(b.data)
	b.data, b.records = b.data[:0], 0
}

// flush writes what is there and returns how many bytes went out since the last
// flush.
func (b *batch) flush() int {
	b.write(time.Now())
	n := b.written
	b.written = 0
	return n
}
