package version

import (
	"runtime/debug"
	"testing"

	"github.com/croft-cloud/croft"
)

func TestChoose(t *testing.T) {
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123456789abcdef01234567"}
	changed := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	build := func(main string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: main}, Settings: settings}
	}
	for _, tc := range []struct {
		name   string
		linked string
		info   *debug.BuildInfo
		want   croft.Version
	}{
		{"the linked version wins", "1.2.3", build("v9.9.9", commit), "1.2.3"},
		{"a linked version that is none is passed over", "no version", build("v1.4.0"), "1.4.0"},
		{"a tag loses its v", "", build("v1.4.0", commit), "1.4.0"},
		{"a tag with changed files is dirty", "", build("v1.4.0+dirty", commit, changed), "1.4.0-dirty"},
		{"an untagged commit is named", "", build("v0.0.0-20260102030405-0123456789ab", commit), "devel-0123456789ab"},
		{"a commit after a tag is named", "", build("v1.4.1-0.20260102030405-0123456789ab+dirty", commit, changed), "devel-0123456789ab-dirty"},
		{"a build in a work tree is named by its commit", "", build("(devel)", commit), "devel-0123456789ab"},
		{"a build without a commit says devel", "", build("(devel)"), "devel"},
		{"a program without build information says devel", "", nil, "devel"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := choose(tc.linked, tc.info); got != tc.want {
				t.Errorf("version is %q, want %q", got, tc.want)
			}
		})
	}
}

func TestVersionIsAlwaysWellFormed(t *testing.T) {
	if _, err := croft.ParseVersion(string(Version())); err != nil {
		t.Error(err)
	}
}
