package bundle

// What the tests of masks look at.
var (
	Inspect = inspect
	Rewrite = rewrite
)

// Masked is a text with its masks.
func Masked(text string) string { return string(mask([]byte(text), scan([]byte(text)))) }
