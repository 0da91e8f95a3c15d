package blueprint

import (
	"errors"
	"fmt"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

// What an error of the box's machinery means for who waits: the parts that fail
// say so by methods and kinds.

// Lasting says whether a repetition soon would be in vain.
func Lasting(err error) bool {
	if t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err); ok {
		return !t.Temporary()
	}
	return croft.KindOf(err) != croft.KindOther
}

// Hopeless says whether somebody else than the box has to change something: what
// the machinery refuses of its own is of no kind.
func Hopeless(err error) bool {
	return err != nil && Lasting(err) && croft.KindOf(err) != croft.KindOther
}

// Word is the error's reason as one word, if it has one.
func Word(err error) string {
	if e, ok := errors.AsType[interface {
		error
		Word() string
	}](err); ok {
		return e.Word()
	}
	return ""
}

// PullRemedy is what to do about a pull that failed, to be added to its error;
// empty if that says so itself, or nothing can be said.
func PullRemedy(err error) string {
	if e, ok := errors.AsType[*croft.Error](err); ok && e.Remedy != "" {
		return ""
	}
	switch croft.KindOf(err) {
	case croft.KindNotFound, croft.KindUsage:
		return "; check the image's name and tag"
	case croft.KindRefused:
		return "; check the image's name and the credentials of its registry"
	case croft.KindInvalid, croft.KindMissing:
		return "; build the image for this provider's architecture"
	case croft.KindNoSpace:
		return "; use a smaller image"
	default:
		return ""
	}
}

// ExitText says how a container with this limit of memory ended, for "pod ...".
func ExitText(exit lease.Exit, memory int64) string {
	switch {
	case exit.OOM:
		return fmt.Sprintf("ran out of its %s of memory", BytesText(memory))
	case exit.Code > 128 && exit.Code < 128+65:
		return fmt.Sprintf("was ended by signal %d (exit code %d)", exit.Code-128, exit.Code)
	default:
		return fmt.Sprintf("ended with exit code %d", exit.Code)
	}
}

// TimesText says how often.
func TimesText(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
