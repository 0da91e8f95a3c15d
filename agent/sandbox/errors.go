package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/agent/ocispec"
)

// Error is what this package's methods return, Reason what kind of failure it is.
type (
	Error  = ocispec.Error
	Reason = ocispec.Reason
)

// The reasons; agent/ocispec says what each means.
const (
	RuntimeAway        = ocispec.RuntimeAway
	RuntimeRefused     = ocispec.RuntimeRefused
	RegistryDown       = ocispec.RegistryDown
	UnknownImage       = ocispec.UnknownImage
	CredentialsRefused = ocispec.CredentialsRefused
	WrongArchitecture  = ocispec.WrongArchitecture
	ImageTooLarge      = ocispec.ImageTooLarge
	BadReference       = ocispec.BadReference
	BadImage           = ocispec.BadImage
	BadContainer       = ocispec.BadContainer
	UnknownContainer   = ocispec.UnknownContainer
	TooManyExecs       = ocispec.TooManyExecs
	BadCommand         = ocispec.BadCommand
)

// ReasonOf is the reason of the first [Error] in err's chain, or empty.
func ReasonOf(err error) Reason { return ocispec.ReasonOf(err) }

func fail(reason Reason, format string, args ...any) *Error {
	return ocispec.Errorf(reason, format, args...)
}

// sortError turns an error of containerd's API into an [Error]: away or refused.
func sortError(err error, doing string) error {
	if _, ok := errors.AsType[*Error](err); ok || err == nil {
		return err
	}
	switch code(err) {
	case codes.Canceled:
		return fmt.Errorf("%s: %w", doing, context.Canceled)
	case codes.Unavailable, codes.DeadlineExceeded:
		return fail(RuntimeAway, "%s: container runtime is away: %s", doing, text(err))
	default: // it was reached, and said no
		return fail(RuntimeRefused, "%s: %s", doing, text(err))
	}
}

// code is the status of a call, also when the context ended it.
func code(err error) codes.Code {
	switch {
	case err == nil:
		return codes.OK
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

func isMissing(err error) bool { return code(err) == codes.NotFound }

// messageLength bounds what of a foreign error's text is passed on. Registries
// and runtimes quote what they were sent.
const messageLength = 600

// text is an error's message for people: no status code, one line, bounded.
func text(err error) string {
	message := err.Error()
	if s, ok := status.FromError(err); ok {
		message = s.Message()
	}
	message = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, message)
	if len(message) > messageLength {
		message = strings.ToValidUTF8(message[:messageLength], "") + "…"
	}
	return message
}

// sortPullError turns an error of a transfer into an [Error].
func sortPullError(err error, image string) error {
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	message := text(err)
	switch code(err) {
	case codes.Canceled:
		return fmt.Errorf("pull %s: %w", image, context.Canceled)
	case codes.DeadlineExceeded:
		return fail(RegistryDown, "pull %s: it took too long", image)
	case codes.Unavailable:
		// The transfer itself never says so about a registry: it is the connection.
		return fail(RuntimeAway, "pull %s: container runtime is away: %s", image, message)
	case codes.ResourceExhausted:
		return fail(RuntimeRefused, "pull %s: %s", image, message)
	default: // what the registry said is in the text
		return ocispec.RegistryError(message, image, code(err) == codes.NotFound)
	}
}
