package notice

import (
	"strconv"
	"strings"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

const maxFilled = 1000 // bytes

// Fill puts words into a sentence.
func Fill(sentence string, words map[string]string) string {
	var pairs []string
	for _, name := range []string{"box", "device", "value", "group", "count", "of"} {
		pairs = append(pairs, "{"+name+"}", words[name])
	}
	return fleetapi.CleanText(strings.NewReplacer(pairs...).Replace(sentence), maxFilled)
}

// Number is a number as people read it.
func Number(v float64) string {
	switch size := max(v, -v); {
	case size >= 1e9 || size != 0 && size < 0.001:
		return strconv.FormatFloat(v, 'g', 3, 64)
	case size >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	text := strconv.FormatFloat(v, 'f', 3, 64)
	return strings.TrimRight(strings.TrimRight(text, "0"), ".")
}
