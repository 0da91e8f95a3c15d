package fleetapi

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"math/bits"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// columns is a batch's instants and series as they go over the wire: by kind and
// not by series, so that zstd finds like beside like.
//
//	start    time of the first instant
//	steps    for each further instant: how much later than interval after the one before, in ms; zigzag varints
//	words    each name and label once, in order of first use, with '\n' between them
//	keys     for each series: number of labels, word of its name, words of each label's name and value; varints
//	codings  for each series one byte, see [coding]
//	gaps     for each series that misses an instant: one bit per instant, lowest first, set if there is a value
//	values   for each series its values, see [coding]
type columns struct {
	start   time.Time
	steps   []byte
	words   []byte
	keys    []byte
	codings []byte
	gaps    []byte
	values  []byte
}

var newline = []byte("\n")

// A word in keys is written as
const (
	wordNew   = 0 // the next word that no series has had yet
	wordSame  = 1 // what the series before has in this place
	wordFirst = 2 // and more: the word of that number, counted from this
)

func (c *columns) table() table {
	return table{
		{7, "start", moment{&c.start, true}},
		{8, "steps", blob{&c.steps}},
		{9, "words", blob{&c.words}},
		{10, "keys", blob{&c.keys}},
		{11, "codings", blob{&c.codings}},
		{12, "gaps", blob{&c.gaps}},
		{13, "values", blob{&c.values}},
	}
}

// coding is a series' byte in codings:
//
//	bit 0     it is a counter
//	bit 1     it has gaps
//	bits 2-3  how its values are written
//	bits 4-7  decimal: the exponent
//
// decimal: value × 10^exponent is an integer; of each the difference to the one
// before, the first to 0, as zigzag varint. xor: of each the bits XOR those of
// the one before, the first XOR 0, bytes reversed, as varint. raw: eight bytes,
// little-endian. A box takes the shortest.
type coding byte

const (
	codingCounter coding = 1 << 0
	codingGaps    coding = 1 << 1
	codingHow     coding = 3 << 2
	codingDecimal coding = 0 << 2
	codingXOR     coding = 1 << 2
	codingRaw     coding = 2 << 2
)

// maxExponent is the most decimal places that are looked for: nanoseconds.
const maxExponent = 9

// powers[e] is 10^e, exact.
var powers = [16]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15}

// maxInteger is the largest integer up to which each is a float64.
const maxInteger = 1 << 53

// columns checks a batch and takes it apart.
func (b *Batch) columns() (*columns, error) {
	if err := b.checkShape(); err != nil {
		return nil, err
	}
	c := &columns{start: b.Times[0]}
	for i := 1; i < len(b.Times); i++ {
		late := b.Times[i].Sub(b.Times[i-1]) - b.Interval
		c.steps = protowire.AppendVarint(c.steps, protowire.EncodeZigZag(late.Milliseconds()))
	}
	var keys keyWriter
	var coder coder
	for i := range b.Series {
		s := &b.Series[i]
		keys.add(s)
		how := coder.encode(s.Values)
		if s.Counter {
			how |= codingCounter
		}
		if len(coder.present) < len(s.Values) {
			how |= codingGaps
			c.gaps = appendGaps(c.gaps, s.Values)
		}
		c.codings = append(c.codings, byte(how))
		c.values = append(c.values, coder.shortest...)
	}
	c.words, c.keys = keys.words, keys.keys
	return c, nil
}

// keyWriter writes words and keys.
type keyWriter struct {
	words, keys []byte
	numbers     map[string]int
	before      []int // words of the series before, by place
	now         []int
}

func (k *keyWriter) add(s *Series) {
	k.keys = protowire.AppendVarint(k.keys, uint64(len(s.Labels)))
	k.now = k.now[:0]
	k.word(s.Name)
	for _, l := range s.Labels {
		k.word(l.Name)
		k.word(l.Value)
	}
	k.before, k.now = k.now, k.before
}

func (k *keyWriter) word(w string) {
	place := len(k.now)
	number, known := k.numbers[w]
	switch {
	case !known:
		if k.numbers == nil {
			k.numbers = make(map[string]int)
		} else {
			k.words = append(k.words, newline...)
		}
		number = len(k.numbers)
		k.numbers[w] = number
		k.words = append(k.words, w...)
		k.keys = append(k.keys, wordNew)
	case place < len(k.before) && k.before[place] == number:
		k.keys = append(k.keys, wordSame)
	default:
		k.keys = protowire.AppendVarint(k.keys, uint64(number+wordFirst))
	}
	k.now = append(k.now, number)
}

// appendGaps adds one bit for each value, set if it is there.
func appendGaps(gaps []byte, values []float64) []byte {
	from := len(gaps)
	gaps = append(gaps, make([]byte, (len(values)+7)/8)...)
	for i, v := range values {
		if !math.IsNaN(v) {
			gaps[from+i/8] |= 1 << (i % 8)
		}
	}
	return gaps
}

// coder writes the values of one series after the other, and keeps its buffers.
type coder struct {
	present           []float64
	shortest          []byte
	decimal, xor, raw []byte
}

// encode leaves the values that are there in c.present, and their shortest form
// in c.shortest.
func (c *coder) encode(values []float64) coding {
	c.present, c.decimal, c.xor, c.raw = c.present[:0], c.decimal[:0], c.xor[:0], c.raw[:0]
	for _, v := range values {
		if !math.IsNaN(v) {
			c.present = append(c.present, v)
		}
	}
	var before uint64
	for _, v := range c.present {
		now := math.Float64bits(v)
		c.raw = binary.LittleEndian.AppendUint64(c.raw, now)
		c.xor = protowire.AppendVarint(c.xor, bits.ReverseBytes64(now^before))
		before = now
	}
	how := codingRaw
	c.shortest = c.raw
	if len(c.xor) < len(c.shortest) {
		how, c.shortest = codingXOR, c.xor
	}
	if exponent, ok := c.encodeDecimal(); ok && len(c.decimal) <= len(c.shortest) {
		how, c.shortest = codingDecimal|coding(exponent<<4), c.decimal
	}
	return how
}

// encodeDecimal tries the exponents from 0 up: the first that suits all values
// gives the smallest integers.
func (c *coder) encodeDecimal() (exponent int, ok bool) {
	for exponent := range maxExponent + 1 {
		c.decimal = c.decimal[:0]
		before := int64(0)
		fits := true
		for _, v := range c.present {
			now, exact := scaled(v, exponent)
			if !exact {
				fits = false
				break
			}
			c.decimal = protowire.AppendVarint(c.decimal, protowire.EncodeZigZag(now-before))
			before = now
		}
		if fits {
			return exponent, true
		}
	}
	return 0, false
}

// scaled is v × 10^exponent, if that is an integer from which v can be had back
// to the last bit. The negative zero cannot.
func scaled(v float64, exponent int) (int64, bool) {
	product := math.Round(v * powers[exponent])
	if math.Abs(product) > maxInteger {
		return 0, false
	}
	n := int64(product)
	return n, math.Float64bits(float64(n)/powers[exponent]) == math.Float64bits(v)
}

// fill puts the columns together again and checks the whole.
func (b *Batch) fill(c *columns) error {
	if err := b.fillTimes(c); err != nil {
		return err
	}
	if err := checkSize(len(c.codings), len(b.Times)); err != nil {
		return err
	}
	if err := b.fillKeys(c); err != nil {
		return err
	}
	if err := b.fillValues(c); err != nil {
		return err
	}
	return b.checkShape()
}

func (b *Batch) fillTimes(c *columns) error {
	b.Times = append(make([]time.Time, 0, min(len(c.steps)+1, MaxInstants)), c.start)
	steps := cursor{rest: c.steps}
	at := c.start.UnixMilli()
	for len(steps.rest) > 0 && len(b.Times) <= MaxInstants {
		at += b.Interval.Milliseconds() + protowire.DecodeZigZag(steps.varint())
		if at < 0 || at > maxMilliseconds { // or the next sum might overflow
			return refuse(ReasonRange, "times: %d ms is out of range", at)
		}
		b.Times = append(b.Times, time.UnixMilli(at).UTC())
	}
	if steps.bad {
		return refuse(ReasonMalformed, "steps: end within a number")
	}
	return nil
}

func (b *Batch) fillKeys(c *columns) error {
	keys := keyReader{cursor: cursor{rest: c.keys}}
	if most := len(c.codings) * (1 + 2*MaxLabels); bytes.Count(c.words, newline) >= max(most, 1) {
		return refuse(ReasonOversized, "words: more than %d series can have", len(c.codings))
	}
	if len(c.words) > 0 {
		keys.words = strings.Split(string(c.words), string(newline)) // they share one string
	}
	b.Series = make([]Series, len(c.codings))
	labels := make([]Label, 0, min(len(c.keys)/2, len(c.codings)*MaxLabels)) // of all series
	for i := range b.Series {
		n := keys.varint()
		if n > MaxLabels {
			return refuse(ReasonOversized, "keys: series %d has %d labels: want at most %d", i, n, MaxLabels)
		}
		b.Series[i] = Series{Name: keys.word(), Counter: coding(c.codings[i])&codingCounter != 0}
		from := len(labels)
		for range n {
			labels = append(labels, Label{keys.word(), keys.word()})
		}
		if n > 0 {
			b.Series[i].Labels = labels[from:len(labels):len(labels)]
		}
		keys.before, keys.now = keys.now, keys.before[:0]
	}
	if keys.bad || len(keys.rest) > 0 || keys.used != len(keys.words) {
		return refuse(ReasonMalformed, "keys: %d bytes and %d words do not suit %d series", len(c.keys), len(keys.words), len(b.Series))
	}
	return nil
}

// keyReader reads keys.
type keyReader struct {
	cursor
	words       []string
	used        int   // words that series have had
	before, now []int // as in keyWriter
}

func (k *keyReader) word() string {
	place := len(k.now)
	var number int
	switch code := k.varint(); {
	case code == wordNew && k.used < len(k.words):
		number = k.used
		k.used++
	case code == wordSame && place < len(k.before):
		number = k.before[place]
	case code >= wordFirst && code-wordFirst < uint64(k.used):
		number = int(code - wordFirst)
	default:
		k.rest, k.bad = nil, true
		return ""
	}
	k.now = append(k.now, number)
	return k.words[number]
}

func (b *Batch) fillValues(c *columns) error {
	n := len(b.Times)
	all := make([]float64, len(b.Series)*n) // checkSize has bounded it
	gaps, values := c.gaps, cursor{rest: c.values}
	for i := range b.Series {
		row := all[i*n : (i+1)*n : (i+1)*n]
		how := coding(c.codings[i])
		var there []byte // nil: all
		if how&codingGaps != 0 {
			size := (n + 7) / 8
			if len(gaps) < size {
				return refuse(ReasonMalformed, "gaps: too short")
			}
			there, gaps = gaps[:size], gaps[size:]
		}
		if err := values.series(how, there, row); err != nil {
			return err
		}
		b.Series[i].Values = row
	}
	if values.bad || len(values.rest) > 0 || len(gaps) > 0 {
		return refuse(ReasonMalformed, "values: %d bytes do not suit %d series", len(c.values), len(b.Series))
	}
	return nil
}

// cursor reads varints and values one after the other. Beyond the end it reads
// zeros, and is bad.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) varint() uint64 {
	v, n := protowire.ConsumeVarint(c.rest)
	if n < 0 {
		c.rest, c.bad = nil, true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

func (c *cursor) fixed() uint64 {
	v, n := protowire.ConsumeFixed64(c.rest)
	if n < 0 {
		c.rest, c.bad = nil, true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

// series reads the values of one series into row.
func (c *cursor) series(how coding, there []byte, row []float64) error {
	var float uint64
	var integer int64
	power := powers[how>>4]
	for i := range row {
		if there != nil && there[i/8]&(1<<(i%8)) == 0 {
			row[i] = math.NaN()
			continue
		}
		switch how & codingHow {
		case codingDecimal:
			integer += protowire.DecodeZigZag(c.varint())
			if integer < -maxInteger || integer > maxInteger { // or the next sum might overflow
				return refuse(ReasonRange, "values: an integer has more than 53 bits")
			}
			row[i] = float64(integer) / power
		case codingXOR:
			float ^= bits.ReverseBytes64(c.varint())
			row[i] = math.Float64frombits(float)
		case codingRaw:
			row[i] = math.Float64frombits(c.fixed())
		default:
			return refuse(ReasonMalformed, "codings: %#x is not known", byte(how))
		}
		if math.IsNaN(row[i]) {
			return refuse(ReasonRange, "values: one is no number")
		}
	}
	return nil
}

// blob is bytes that something else reads.
type blob struct{ at *[]byte }

func (v blob) append(raw []byte, num protowire.Number) []byte { return appendBytes(raw, num, *v.at) }

func (v blob) read(typ protowire.Type, raw []byte) (err error) {
	*v.at, err = readBytes(typ, raw)
	return err
}

func (blob) check() error { return nil }

// bootID is a UUID: a text to callers, sixteen bytes on the wire.
type bootID struct{ at *string }

const bootIDBytes = 16

func (v bootID) append(raw []byte, num protowire.Number) []byte {
	id, _ := hex.DecodeString(strings.ReplaceAll(*v.at, "-", "")) // check has looked at it
	return appendBytes(raw, num, id)
}

func (v bootID) read(typ protowire.Type, raw []byte) error {
	id, err := readBytes(typ, raw)
	if err == nil && len(id) != bootIDBytes {
		err = refuse(ReasonMalformed, "has %d bytes: want %d", len(id), bootIDBytes)
	}
	if err == nil {
		*v.at = formatUUID(id)
	}
	return err
}

func (v bootID) check() error {
	if *v.at == "" {
		return refuse(ReasonMissing, "is missing")
	}
	id, err := hex.DecodeString(strings.ReplaceAll(*v.at, "-", ""))
	if err != nil || len(id) != bootIDBytes || *v.at != formatUUID(id) {
		return refuse(ReasonText, "%.40q: want a UUID in lower case", *v.at)
	}
	return nil
}

func formatUUID(id []byte) string {
	h := hex.EncodeToString(id)
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
