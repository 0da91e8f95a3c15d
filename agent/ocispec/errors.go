package ocispec

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/croft-cloud/croft"
)

// Reason says what kind of failure an [Error] is. It is one word that fits the
// reason of a lease.Event.
type Reason string

// The reasons.
const (
	RuntimeAway        Reason = "RuntimeAway"        // containerd does not answer: wait and repeat
	RuntimeRefused     Reason = "RuntimeRefused"     // containerd or runsc said no
	RegistryDown       Reason = "RegistryDown"       // no or no useful answer from the registry: wait and repeat
	UnknownImage       Reason = "UnknownImage"       // the registry has no such image
	CredentialsRefused Reason = "CredentialsRefused" // the registry wants other credentials, or does not have the image
	WrongArchitecture  Reason = "WrongArchitecture"  // the image is not for this machine
	ImageTooLarge      Reason = "ImageTooLarge"      // beyond the limit given to Pull
	BadReference       Reason = "BadReference"       // the image's name is not one, or may not be named
	BadImage           Reason = "BadImage"           // the image is damaged or asks for what it cannot have
	BadContainer       Reason = "BadContainer"       // what was asked for cannot be run
	UnknownContainer   Reason = "UnknownContainer"   // there is no such container, or it does not run
	TooManyExecs       Reason = "TooManyExecs"       // commands of this replica are running already
	BadCommand         Reason = "BadCommand"         // the program of an Exec is missing or cannot be run
)

// reasonKinds says what a caller who knows no Reason should do.
var reasonKinds = map[Reason]croft.Kind{
	RuntimeAway:        croft.KindOther,
	RuntimeRefused:     croft.KindOther,
	RegistryDown:       croft.KindOther,
	UnknownImage:       croft.KindNotFound,
	CredentialsRefused: croft.KindRefused,
	WrongArchitecture:  croft.KindInvalid,
	ImageTooLarge:      croft.KindNoSpace,
	BadReference:       croft.KindUsage,
	BadImage:           croft.KindInvalid,
	BadContainer:       croft.KindUsage,
	UnknownContainer:   croft.KindNotFound,
	TooManyExecs:       croft.KindRefused,
	BadCommand:         croft.KindUsage,
}

// reasonRemedies is what a tenant reads after the error's own words.
var reasonRemedies = map[Reason]string{
	UnknownImage:       "check the image's name and tag",
	CredentialsRefused: "check the image's name and the credentials for its registry",
	WrongArchitecture:  "build the image for linux/%ARCH%",
	ImageTooLarge:      "use a smaller image",
	BadReference:       "name the image as registry/repository:tag",
	BadImage:           "mend the image and push it again",
}

// Error is what this package and agent/sandbox fail with. It unwraps to a
// [croft.Error].
type Error struct {
	Reason Reason
	err    error
}

func (e *Error) Error() string { return e.err.Error() }

func (e *Error) Unwrap() error { return e.err }

// Temporary says that the same call may succeed later without any change by the
// tenant.
func (e *Error) Temporary() bool { return e.Reason == RuntimeAway || e.Reason == RegistryDown }

// Word is the reason as one word, for callers that may not import this package.
func (e *Error) Word() string { return string(e.Reason) }

// ReasonOf is the reason of the first [Error] in err's chain, or empty.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// Errorf makes an [Error], with the kind and the remedy that belong to the reason.
func Errorf(reason Reason, format string, args ...any) *Error {
	_, architecture := Platform()
	return &Error{Reason: reason, err: &croft.Error{
		Kind:   reasonKinds[reason],
		Err:    fmt.Errorf(format, args...),
		Remedy: strings.ReplaceAll(reasonRemedies[reason], "%ARCH%", architecture),
	}}
}

// ErrNoRange reports a registry that cannot continue a broken pull.
var ErrNoRange = errors.New("the registry cannot send a part of a file, the next attempt begins anew")

// registryStatus is how containerd words an HTTP status it did not expect.
var registryStatus = regexp.MustCompile(`unexpected status from (?:HEAD|GET|POST) request to \S+: ([0-9]{3})\b`)

// RegistryError sorts what containerd says when a pull fails: message is its
// own, missing tells that it came with the status of something that is not
// there.
//
// containerd sends a status for a missing image and nothing but words for all
// else that a registry can do, so words decide here, and only here. The worst
// that a registry can gain by choosing its words is a retry that comes too soon
// or not at all, of its own image.
func RegistryError(message, image string, missing bool) *Error {
	if found := registryStatus.FindStringSubmatch(message); found != nil {
		switch number := found[1]; {
		case number == "401" || number == "403":
			return Errorf(CredentialsRefused, "pull %s: the registry answered %s", image, number)
		case number == "404":
			return Errorf(UnknownImage, "pull %s: the registry has no such image", image)
		case number == "416":
			return Errorf(RegistryDown, "pull %s: %w", image, ErrNoRange)
		case number == "429" || number[0] == '5':
			return Errorf(RegistryDown, "pull %s: the registry answered %s", image, number)
		}
		return Errorf(BadImage, "pull %s: the registry answered %s", image, found[1])
	}
	for _, sign := range []struct {
		words  string
		reason Reason
	}{
		{"authorization failed", CredentialsRefused},
		{"no match for platform", WrongArchitecture},
		{"no unpack platforms", WrongArchitecture},
		{"no space left on device", RuntimeRefused},
		{"failed to resolve image", RegistryDown}, // what is left of it: no connection, no name, no certificate
		{"dial tcp", RegistryDown},
		{"lookup ", RegistryDown},
		{"connection re", RegistryDown}, // refused, reset
		{"unexpected EOF", RegistryDown},
		{"short read", RegistryDown},
		{"failed to copy", RegistryDown},
		{"httpReadSeeker", RegistryDown},
		{"timeout", RegistryDown},
		{"TLS handshake", RegistryDown},
		{"http2: ", RegistryDown},
	} {
		if sign.words == "failed to resolve image" && missing {
			continue
		}
		if strings.Contains(message, sign.words) {
			return Errorf(sign.reason, "pull %s: %s", image, message)
		}
	}
	if missing {
		return Errorf(UnknownImage, "pull %s: the registry has no such image", image)
	}
	return Errorf(BadImage, "pull %s: %s", image, message)
}
