package fleetapi

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Payload is what goes over MQTT: a pointer to one of [Hello], [State],
// [Batch], [Event], [LogLines], [JobStatus], [Desired] and [Job].
type Payload interface {
	// Subject is where the payload goes.
	Subject() Subject

	table() table
}

// Encode makes the bytes of a payload. It refuses what Decode would refuse.
func Encode(p Payload) ([]byte, error) {
	raw, err := encode(p)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", p.Subject(), err)
	}
	return raw, nil
}

func encode(p Payload) ([]byte, error) {
	members := p.table()
	if batch, ok := p.(*Batch); ok {
		c, err := batch.columns()
		if err != nil {
			return nil, err
		}
		members = append(members, c.table()...)
	}
	if err := members.check(); err != nil {
		return nil, err
	}
	raw := protowire.AppendTag(nil, versionField, protowire.VarintType)
	raw = protowire.AppendVarint(raw, Version)
	raw = members.append(raw)
	subject := p.Subject()
	if deliveries[subject].packed {
		if len(raw) > maxPlain {
			return nil, refuse(ReasonOversized, "payload has %d bytes before packing: want at most %d", len(raw), maxPlain)
		}
		raw = pack(raw)
	}
	if most := subject.MaxPayload(); len(raw) > most {
		return nil, refuse(ReasonOversized, "payload has %d bytes: want at most %d", len(raw), most)
	}
	return raw, nil
}

// Decode reads a payload that came with a topic of subject s. The result holds
// no part of raw.
func Decode(s Subject, raw []byte) (Payload, error) {
	var p Payload
	switch s {
	case SubjectHello:
		p = new(Hello)
	case SubjectState:
		p = new(State)
	case SubjectReadings:
		p = new(Batch)
	case SubjectEvent:
		p = new(Event)
	case SubjectLog:
		p = new(LogLines)
	case SubjectStatus:
		p = new(JobStatus)
	case SubjectDesired:
		p = new(Desired)
	case SubjectJob:
		p = new(Job)
	default:
		return nil, refuse(ReasonMalformed, "subject %.32q is not known", s)
	}
	if err := decode(p, raw); err != nil {
		return nil, err
	}
	return p, nil
}

// Parse reads a payload whose type is known: Parse[fleetapi.Job](raw).
func Parse[T any, P interface {
	*T
	Payload
}](raw []byte) (*T, error) {
	p := new(T)
	if err := decode(P(p), raw); err != nil {
		return nil, err
	}
	return p, nil
}

func decode(p Payload, raw []byte) error {
	if err := decodeInto(p, raw); err != nil {
		return fmt.Errorf("decode %s: %w", p.Subject(), err)
	}
	return nil
}

func decodeInto(p Payload, raw []byte) error {
	subject := p.Subject()
	if most := subject.MaxPayload(); len(raw) > most {
		return refuse(ReasonOversized, "payload has %d bytes: want at most %d", len(raw), most)
	}
	if deliveries[subject].packed {
		plain, err := unpack(raw)
		if err != nil {
			return err
		}
		raw = plain
	}
	rest, err := cutVersion(raw)
	if err != nil {
		return err
	}
	members := p.table()
	batch, isBatch := p.(*Batch)
	var c columns
	if isBatch {
		members = append(members, c.table()...)
	}
	if err := members.read(rest); err != nil {
		return err
	}
	if err := members.check(); err != nil {
		return err
	}
	if isBatch {
		return batch.fill(&c)
	}
	return nil
}

// versionField is the number of the field that every payload begins with.
const versionField = 1

// cutVersion takes the version off a message.
func cutVersion(raw []byte) (rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(raw)
	if n < 0 || num != versionField || typ != protowire.VarintType {
		return nil, refuse(ReasonMalformed, "payload does not begin with a version")
	}
	raw = raw[n:]
	version, n := protowire.ConsumeVarint(raw)
	switch {
	case n < 0 || version == 0:
		return nil, refuse(ReasonMalformed, "payload does not begin with a version")
	case version > Version:
		return nil, refuse(ReasonVersion, "payload has version %d: want at most %d", version, Version)
	}
	return raw[n:], nil
}

// table is the members of a message as they go over the wire. One table
// encodes, decodes and checks, so that the three agree.
type table []member

type member struct {
	num   protowire.Number
	name  string // for errors
	value value
}

// value is a member's value, and knows where it lies.
type value interface {
	append(raw []byte, num protowire.Number) []byte // nothing if it is zero
	read(typ protowire.Type, raw []byte) error      // raw is the field without its tag
	check() error
}

func (t table) append(raw []byte) []byte {
	for _, m := range t {
		raw = m.value.append(raw, m.num)
	}
	return raw
}

// read fills the values. Each field may appear once, unless its value is a
// list; those that are not in the table are skipped.
func (t table) read(raw []byte) error {
	var seen uint64 // bit i: member i
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return refuse(ReasonMalformed, "field: %w", protowire.ParseError(n))
		}
		raw = raw[n:]
		if n = protowire.ConsumeFieldValue(num, typ, raw); n < 0 {
			return refuse(ReasonMalformed, "field %d: %w", num, protowire.ParseError(n))
		}
		field := raw[:n]
		raw = raw[n:]
		i := slices.IndexFunc(t, func(m member) bool { return m.num == num })
		if i < 0 {
			continue
		}
		if _, list := t[i].value.(list); !list && seen&(1<<i) != 0 {
			return refuse(ReasonMalformed, "%s: is there twice", t[i].name)
		}
		seen |= 1 << i
		if err := t[i].value.read(typ, field); err != nil {
			return fmt.Errorf("%s: %w", t[i].name, err)
		}
	}
	return nil
}

func (t table) check() error {
	for _, m := range t {
		if err := m.value.check(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// list marks a value that takes several fields.
type list interface{ isList() }

var errFieldType = errors.New("field has another type")

func readVarint(typ protowire.Type, raw []byte) (uint64, error) {
	if typ != protowire.VarintType {
		return 0, &RefusedError{Reason: ReasonMalformed, Err: errFieldType}
	}
	v, _ := protowire.ConsumeVarint(raw) // ConsumeFieldValue has looked at it
	return v, nil
}

func readBytes(typ protowire.Type, raw []byte) ([]byte, error) {
	if typ != protowire.BytesType {
		return nil, &RefusedError{Reason: ReasonMalformed, Err: errFieldType}
	}
	v, _ := protowire.ConsumeBytes(raw)
	return v, nil
}

func appendVarint(raw []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return raw
	}
	raw = protowire.AppendTag(raw, num, protowire.VarintType)
	return protowire.AppendVarint(raw, v)
}

func appendBytes[B ~string | ~[]byte](raw []byte, num protowire.Number, v B) []byte {
	if len(v) == 0 {
		return raw
	}
	raw = protowire.AppendTag(raw, num, protowire.BytesType)
	raw = protowire.AppendVarint(raw, uint64(len(v)))
	return append(raw, v...)
}

// number is an integer of at least least.
type number struct {
	at    *uint64
	least uint64
}

func (v number) append(raw []byte, num protowire.Number) []byte {
	return appendVarint(raw, num, *v.at)
}

func (v number) read(typ protowire.Type, raw []byte) (err error) {
	*v.at, err = readVarint(typ, raw)
	return err
}

func (v number) check() error {
	switch {
	case *v.at < v.least:
		return refuse(ReasonMissing, "is missing")
	case *v.at > math.MaxInt64: // databases know no larger ones
		return refuse(ReasonRange, "%d is too large", *v.at)
	}
	return nil
}

// yesNo is one of the two.
type yesNo struct{ at *bool }

func (v yesNo) append(raw []byte, num protowire.Number) []byte {
	return appendVarint(raw, num, protowire.EncodeBool(*v.at))
}

func (v yesNo) read(typ protowire.Type, raw []byte) error {
	bit, err := readVarint(typ, raw)
	if err == nil && bit > 1 {
		err = refuse(ReasonRange, "%d is neither yes nor no", bit)
	}
	*v.at = bit != 0
	return err
}

func (yesNo) check() error { return nil }

// span is a duration in whole milliseconds.
type span struct {
	at          *time.Duration
	least, most time.Duration
}

func (v span) append(raw []byte, num protowire.Number) []byte {
	return appendVarint(raw, num, uint64(v.at.Milliseconds()))
}

func (v span) read(typ protowire.Type, raw []byte) error {
	ms, err := readVarint(typ, raw)
	if err == nil && ms > uint64(v.most.Milliseconds()) { // before it is multiplied
		err = refuse(ReasonRange, "%d ms is more than %s", ms, v.most)
	}
	*v.at = time.Duration(ms) * time.Millisecond
	return err
}

func (v span) check() error {
	switch d := *v.at; {
	case d == 0 && v.least > 0:
		return refuse(ReasonMissing, "is missing")
	case d < v.least || d > v.most || d%time.Millisecond != 0:
		return refuse(ReasonRange, "%s: want %s to %s in whole milliseconds", d, v.least, v.most)
	}
	return nil
}

// moment is a time in whole milliseconds; the zero time is none.
type moment struct {
	at       *time.Time
	required bool
}

// maxMilliseconds is the year 2200. Clocks are wrong by decades, not by
// centuries, and no sum of two times overflows.
const maxMilliseconds = 7_258_118_400_000

func (v moment) append(raw []byte, num protowire.Number) []byte {
	if v.at.IsZero() {
		return raw
	}
	return appendVarint(raw, num, uint64(v.at.UnixMilli()))
}

func (v moment) read(typ protowire.Type, raw []byte) error {
	ms, err := readVarint(typ, raw)
	if err == nil && ms > maxMilliseconds {
		err = refuse(ReasonRange, "%d ms is after the year 2199", ms)
	}
	*v.at = time.UnixMilli(int64(ms)).UTC()
	return err
}

func (v moment) check() error {
	if v.at.IsZero() {
		if v.required {
			return refuse(ReasonMissing, "is missing")
		}
		return nil
	}
	return checkTime(*v.at)
}

// checkTime accepts what survives the wire unchanged. The first millisecond of
// 1970 does not: it would be no time at all.
func checkTime(at time.Time) error {
	if ms := at.UnixMilli(); ms < 1 || ms > maxMilliseconds || !at.Equal(time.UnixMilli(ms)) {
		return refuse(ReasonRange, "%s: want whole milliseconds from 1970 to 2199", at)
	}
	return nil
}

// Truncate is the time as it goes over the wire: UTC, in whole milliseconds.
func Truncate(at time.Time) time.Time { return time.UnixMilli(at.UnixMilli()).UTC() }

// text is a text that obeys a rule.
type text[S ~string] struct {
	at   *S
	rule textRule
}

func textOf[S ~string](at *S, rule textRule) text[S] { return text[S]{at, rule} }

func (v text[S]) append(raw []byte, num protowire.Number) []byte {
	return appendBytes(raw, num, *v.at)
}

func (v text[S]) read(typ protowire.Type, raw []byte) error {
	s, err := readBytes(typ, raw)
	*v.at = S(s)
	return err
}

func (v text[S]) check() error { return v.rule(string(*v.at)) }

// rows is a list of messages.
type rows[T any] struct {
	at    *[]T
	most  int
	table func(*T) table
}

func (rows[T]) isList() {}

func (v rows[T]) append(raw []byte, num protowire.Number) []byte {
	for i := range *v.at {
		raw = protowire.AppendTag(raw, num, protowire.BytesType)
		raw = protowire.AppendBytes(raw, v.table(&(*v.at)[i]).append(nil))
	}
	return raw
}

func (v rows[T]) read(typ protowire.Type, raw []byte) error {
	row, err := readBytes(typ, raw)
	if err != nil {
		return err
	}
	if len(*v.at) == v.most {
		return refuse(ReasonOversized, "has more than %d entries", v.most)
	}
	var one T
	if err := v.table(&one).read(row); err != nil {
		return err
	}
	*v.at = append(*v.at, one)
	return nil
}

func (v rows[T]) check() error {
	if len(*v.at) > v.most {
		return refuse(ReasonOversized, "has more than %d entries", v.most)
	}
	for i := range *v.at {
		if err := v.table(&(*v.at)[i]).check(); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return nil
}

// labels is a list of names with values, in order of the names, none twice.
type labels struct{ rows[Label] }

func labelsOf(at *[]Label, most, longest int) labels {
	return labels{rows[Label]{at, most, func(l *Label) table {
		return table{
			{1, "name", textOf(&l.Name, word)},
			{2, "value", textOf(&l.Value, sentence(0, longest))},
		}
	}}}
}

func (v labels) check() error {
	if err := v.rows.check(); err != nil {
		return err
	}
	return checkOrder(*v.at)
}

func checkOrder(sorted []Label) error {
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Name >= sorted[i].Name {
			return refuse(ReasonMalformed, "%q follows %q: want each name once, sorted", sorted[i].Name, sorted[i-1].Name)
		}
	}
	return nil
}
