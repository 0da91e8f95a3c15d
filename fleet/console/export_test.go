package console

// For tests: what the pages are made of, what charts show, and how money is counted.
var (
	Part  = part
	Span  = span
	Gain  = gain
	Rough = rough
)
