package slot

import (
	"cmp"
	"strconv"
	"strings"
)

// CompareNames orders two names of boot files as systemd-boot 252 does: it is
// negative if the loader prefers a to b. Names that are not croft's are ordered
// as well.
//
// This mirrors, in systemd 252, config_entry_parse_tries and
// config_entry_compare in src/boot/efi/boot.c and strverscmp_improved in
// src/fundamental/string-util-fundamental.c, for entries whose .osrel sections
// have the same ID or none, and no version: files with no tries left come last,
// then the higher version, taken from the whole name in lower case, comes first;
// of equal names the one with more tries left, then the one tried less often.
func CompareNames(a, b string) int {
	aLeft, aDone := counter(a)
	bLeft, bDone := counter(b)
	if r := compareBool(aLeft == 0, bLeft == 0); r != 0 {
		return r
	}
	if r := compareVersions(strings.ToLower(b), strings.ToLower(a)); r != 0 || aLeft < 0 || bLeft < 0 {
		return r
	}
	return cmp.Or(cmp.Compare(bLeft, aLeft), cmp.Compare(aDone, bDone))
}

// counter reads the counter behind the last plus sign; left is -1 if there is none.
func counter(name string) (left, done int64) {
	const none = -1
	stem, ok := cutSuffixFold(name, ".efi")
	plus := strings.LastIndexByte(stem, '+')
	if !ok || plus < 0 {
		return none, 0
	}
	leftDigits, doneDigits, hasDone := strings.Cut(stem[plus+1:], "-")
	l, err := strconv.ParseUint(leftDigits, 10, 31)
	if err != nil {
		return none, 0
	}
	if !hasDone {
		return int64(l), 0
	}
	d, err := strconv.ParseUint(doneDigits, 10, 31)
	if err != nil {
		return none, 0
	}
	return int64(l), int64(d)
}

func cutSuffixFold(s, suffix string) (string, bool) {
	if n := len(s) - len(suffix); n >= 0 && strings.EqualFold(s[n:], suffix) {
		return s[:n], true
	}
	return s, false
}

// compareVersions compares by the rules of the UAPI version format: segments of
// digits or of letters; '~', '-', '^' and '.' before a segment make it older, in
// this order; numbers are newer than letters; other bytes only separate.
func compareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, foreign), strings.TrimLeftFunc(b, foreign)
		if r := cutMark(&a, &b, '~'); r != 0 {
			return r
		}
		if a == "" || b == "" {
			return cmp.Compare(min(len(a), 1), min(len(b), 1))
		}
		for _, mark := range []byte("-^.") {
			if r := cutMark(&a, &b, mark); r != 0 {
				return r
			}
		}
		var r int
		if starts(a, digit) || starts(b, digit) {
			x, y := cutSegment(&a, digit), cutSegment(&b, digit)
			if r = compareBool(x != "", y != ""); r == 0 {
				x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
				r = cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y))
			}
		} else {
			// A prefix sorts before what it begins, here as in strings.Compare.
			r = strings.Compare(cutSegment(&a, letter), cutSegment(&b, letter))
		}
		if r != 0 {
			return r
		}
	}
}

// cutMark drops mark from the front of both. If only one has it, that is older.
func cutMark(a, b *string, mark byte) int {
	inA, inB := strings.HasPrefix(*a, string(mark)), strings.HasPrefix(*b, string(mark))
	if inA && inB {
		*a, *b = (*a)[1:], (*b)[1:]
	}
	return compareBool(inB, inA)
}

// cutSegment takes the longest front of s that is of one kind.
func cutSegment(s *string, kind func(rune) bool) string {
	rest := strings.TrimLeftFunc(*s, kind)
	segment := (*s)[:len(*s)-len(rest)]
	*s = rest
	return segment
}

func starts(s string, kind func(rune) bool) bool { return s != "" && kind(rune(s[0])) }

func digit(r rune) bool   { return '0' <= r && r <= '9' }
func letter(r rune) bool  { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' }
func foreign(r rune) bool { return !digit(r) && !letter(r) && !strings.ContainsRune("~-^.", r) }

// compareBool puts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
