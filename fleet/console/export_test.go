package console

// For tests: what the pages are made of, and what charts show.
var (
	Part = part
	Span = span
)
