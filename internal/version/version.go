// Package version tells which croft this program is.
//
// A release build is linked with
// -ldflags "-X github.com/croft-cloud/croft/internal/version.linked=1.2.3".
// Any other build names itself after its tag or, failing that, its commit.
package version

import (
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/croft-cloud/croft"
)

// linked is set by the linker and never written otherwise.
var linked string

// unknown is the version of a build that knows neither tag nor commit.
const unknown croft.Version = "devel"

// pseudo is how Go names an untagged commit, such as v0.0.0-20260102030405-0123456789ab.
var pseudo = regexp.MustCompile(`[-.]\d{14}-[0-9a-f]{12}(\+.*)?$`)

// Version is the version of the running program: the linked one, else the
// module's tag, else "devel-COMMIT" (12 digits), else "devel". A build from
// changed files ends in "-dirty".
func Version() croft.Version {
	info, _ := debug.ReadBuildInfo()
	return choose(linked, info)
}

func choose(linked string, info *debug.BuildInfo) croft.Version {
	if v, err := croft.ParseVersion(linked); err == nil {
		return v
	}
	if info == nil {
		return unknown
	}
	var commit, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			commit = "-" + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if tag, _, _ := strings.Cut(info.Main.Version, "+"); strings.HasPrefix(tag, "v") && !pseudo.MatchString(tag) {
		if v, err := croft.ParseVersion(strings.TrimPrefix(tag, "v") + dirty); err == nil {
			return v
		}
	}
	if v, err := croft.ParseVersion(string(unknown) + commit + dirty); err == nil {
		return v
	}
	return unknown
}
