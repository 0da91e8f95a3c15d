// Package figures says figures as people do, and makes text from elsewhere fit
// to stand among them.
//
// Its functions are pure, and take any value: what makes no sense comes out as
// something harmless. They round down.
package figures

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Line makes text from elsewhere safe for a line of a screen: no control
// characters, single spaces.
func Line(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.IsControl(r) || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// Clip cuts s to so many characters.
func Clip(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// Duration says a duration as people do: one unit, rounded down.
func Duration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return "less than a minute"
	case d < time.Hour:
		return Count(int(d/time.Minute), "minute")
	case d < 2*day:
		return Count(int(d/time.Hour), "hour")
	}
	return Count(int(d/day), "day")
}

// Count says "1 hour", "2 hours".
func Count(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}

// Size says bytes as they stand on packages: in decimal units for disks,
// in binary ones for memory, both called GB.
func Size(bytes, unit int64) string {
	bytes = max(bytes, 0)
	mega, giga := unit*unit, unit*unit*unit
	switch {
	case bytes < giga:
		return fmt.Sprintf("%d MB", bytes/mega)
	case bytes < 10*giga:
		tenths := bytes * 10 / giga
		return fmt.Sprintf("%d.%d GB", tenths/10, tenths%10)
	}
	return fmt.Sprintf("%d GB", bytes/giga)
}

// Share says "1.2 of 8.0 GB".
func Share(part, total, unit int64) string {
	a, b := Size(part, unit), Size(total, unit)
	if a[len(a)-2:] == b[len(b)-2:] {
		a = a[:len(a)-3]
	}
	return a + " of " + b
}

// Percent is used as a share of total, 0 to 100.
func Percent(used, total int64) int {
	if total <= 0 || used <= 0 {
		return 0
	}
	return int(min(100, float64(used)/float64(total)*100))
}

// Decimal says millionths without loss, with at least so many places.
func Decimal(millionths int64, places int) string {
	m := max(millionths, 0)
	s := fmt.Sprintf("%d.%06d", m/1_000_000, m%1_000_000)
	for range 6 - places {
		s = strings.TrimSuffix(s, "0")
	}
	return strings.TrimSuffix(s, ".")
}

// List joins words: "a, b and c".
func List(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}
