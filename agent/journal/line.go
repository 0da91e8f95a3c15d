package journal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
)

const (
	maxLine      = 64 << 10 // of one record
	maxFile      = 64 << 20 // beyond that a file is damaged
	maxName      = 128
	sumLength    = 8   // hex digits of the checksum
	lineOverhead = 100 // about what a record adds to its name and value

	// formatName is the version of the format, in each header.
	// 1: 2026-10-01, as described at package journal.
	formatName = "1"
)

// recordType says what a record does. Readers skip types they do not know.
type recordType string

const (
	typeHeader recordType = "journal" // value: header; numbers up to seq are in use
	typeState  recordType = "state"   // name: key; no value: the key is deleted
	typeEvent  recordType = "event"   // name: kind; value: fields
)

// record is one line of the file.
type record struct {
	Seq   uint64          `json:"seq"`
	At    time.Time       `json:"at"`
	Type  recordType      `json:"type"`
	Name  string          `json:"name"`
	Value json.RawMessage `json:"value,omitempty"`
}

type header struct {
	ID string `json:"id"`
}

// Damage is a stretch of the file that could not be used.
type Damage struct {
	Offset int64  // bytes from the start of the file
	Length int64  // bytes
	Torn   bool   // at the end of the file, as a power cut leaves it
	Reason string // for support
}

func (d Damage) String() string {
	return fmt.Sprintf("%d bytes at offset %d: %s", d.Length, d.Offset, d.Reason)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkName refuses names that JSON or a log line would change.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("name of %d characters: want 1 to %d", len(name), maxName)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("name %q: want printable ASCII without spaces", name)
		}
	}
	return nil
}

// encode makes the record's line, newline included.
func encode(r record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	line := make([]byte, 0, sumLength+1+len(body)+1)
	line = fmt.Appendf(line, "%08x ", crc32.Checksum(body, castagnoli))
	line = append(line, body...)
	return append(line, '\n'), nil
}

// parsed is what the bytes of a journal hold.
type parsed struct {
	records []record
	damage  []Damage
	end     int  // what follows is a torn record and can be cut off
	newline bool // the record before end lacks its newline
	lost    int  // bytes in damage after the last intact record
}

// parse never fails: what is not an intact record is damage.
func parse(data []byte) parsed {
	var p parsed
	var last uint64 // number of the newest state or event
	intact := 0     // where the last intact record ends
	spoil := func(from, to int, torn bool, reason string) {
		p.damage = append(p.damage, Damage{Offset: int64(from), Length: int64(to - from), Torn: torn, Reason: reason})
		p.lost += to - from
	}
	add := func(r record, from, to int) {
		switch {
		case r.Type == typeHeader:
		case r.Seq <= last:
			spoil(from, to, false, fmt.Sprintf("record %d follows record %d", r.Seq, last))
			return
		default:
			last = r.Seq
		}
		p.lost, intact = 0, to
		switch r.Type {
		case typeHeader, typeState, typeEvent:
			p.records = append(p.records, r)
		default: // of a newer version
			p.records = append(p.records, record{Seq: r.Seq, At: r.At, Type: typeHeader})
		}
	}
	for at := 0; at < len(data); {
		length := bytes.IndexByte(data[at:], '\n')
		terminated := length >= 0
		if !terminated {
			length = len(data) - at
		}
		line := data[at : at+length]
		if r, err := decode(line); err == nil {
			add(r, at, at+length)
		} else if length > 0 {
			// A newline may be damaged, or a record be torn before the next.
			done := 0
			for from, to := range findRecords(line) {
				if from > done {
					spoil(at+done, at+from, false, err.Error())
				}
				if r, err := decode(line[from:to]); err == nil {
					add(r, at+from, at+to)
				}
				done = to
			}
			if done < length {
				torn := !terminated && done == 0
				spoil(at+done, at+length, torn, err.Error())
			}
		}
		if !terminated {
			p.newline = intact > at
			p.end = max(intact, at)
			return p
		}
		at += length + 1
		p.end = at
	}
	return p
}

// decode reads one record without its newline.
func decode(line []byte) (record, error) {
	if !beginsRecord(line) {
		return record{}, errors.New("not a record")
	}
	sum, body := line[:sumLength], line[sumLength+1:]
	if got := fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)); got != string(sum) {
		return record{}, errors.New("checksum is wrong")
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return record{}, fmt.Errorf("decode: %w", err)
	}
	if r.Type == "" {
		return record{}, errors.New("record without a type")
	}
	return r, nil
}

// beginsRecord reports whether b starts as every record does.
func beginsRecord(b []byte) bool {
	if len(b) < sumLength || !bytes.HasPrefix(b[sumLength:], []byte(` {"seq":`)) {
		return false
	}
	for _, c := range b[:sumLength] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// findRecords iterates over the stretches of a damaged line that are intact
// records, from and to.
func findRecords(line []byte) func(yield func(from, to int) bool) {
	return func(yield func(from, to int) bool) {
		for from := 0; from < len(line); {
			length := intactPrefix(line[from:])
			if length == 0 {
				from++
				continue
			}
			if !yield(from, from+length) {
				return
			}
			from += length
		}
	}
}

// intactPrefix is the length of the intact record that b begins with, or 0. Its
// end is the brace up to which the checksum is the promised one.
func intactPrefix(b []byte) int {
	if !beginsRecord(b) {
		return 0
	}
	promised, err := hex.DecodeString(string(b[:sumLength]))
	if err != nil {
		return 0
	}
	want := uint32(promised[0])<<24 | uint32(promised[1])<<16 | uint32(promised[2])<<8 | uint32(promised[3])
	var sum uint32
	b = b[:min(len(b), maxLine)]
	for done := sumLength + 1; ; {
		brace := bytes.IndexByte(b[done:], '}')
		if brace < 0 {
			return 0
		}
		sum = crc32.Update(sum, castagnoli, b[done:done+brace+1])
		done += brace + 1
		if sum != want {
			continue
		}
		if _, err := decode(b[:done]); err == nil {
			return done
		}
	}
}
