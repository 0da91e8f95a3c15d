package boards

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/network"
)

func TestBoardsAreComplete(t *testing.T) {
	names := Names()
	if !slices.Contains(names, "uefi-x86") || !slices.IsSorted(names) {
		t.Errorf("boards %q: want uefi-x86 among them, in order", names)
	}
	seen := map[string]string{}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			b, err := Get(name)
			if err != nil {
				t.Fatal(err)
			}
			if b.Name != name {
				t.Errorf("the folder %s holds the board %s", name, b.Name)
			}
			if b.Title == "" || b.KernelPackage == "" || b.KernelSuite == "" || len(b.CommandLine) == 0 || len(b.EarlyModules) == 0 {
				t.Errorf("something is missing: %+v", b)
			}
			if !regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(b.DiskID) {
				t.Errorf("disk ID %q: want 8 hex digits in lower case", b.DiskID)
			}
			if other := seen[b.DiskID]; other != "" {
				t.Errorf("disk ID %s is also that of %s", b.DiskID, other)
			}
			seen[b.DiskID] = name
			for _, argument := range b.CommandLine {
				if argument == "" || strings.ContainsAny(argument, " \t\n\"") || strings.HasPrefix(argument, "croft.") {
					t.Errorf("kernel argument %q: want one word, and none of croft's own", argument)
				}
			}
			modules := slices.Concat(b.WatchdogModules, b.EarlyModules, b.LateModules, b.WorkloadModules)
			for i, module := range modules {
				if !regexp.MustCompile(`^[0-9A-Za-z_-]+$`).MatchString(module) {
					t.Errorf("module %q: want a name without folder and ending", module)
				}
				if slices.Contains(modules[:i], module) {
					t.Errorf("module %s is listed twice", module)
				}
			}
			known := json.NewDecoder(bytes.NewReader(raw(t, name+"/board.json")))
			known.DisallowUnknownFields()
			if err := known.Decode(new(Board)); err != nil {
				t.Errorf("board.json: %v", err)
			}
		})
	}
}

func raw(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := folders.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Nothing on a box loads a module when it is first needed.
func TestBoardsLoadWhatLeasesNeed(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			b, err := Get(name)
			if err != nil {
				t.Fatal(err)
			}
			loaded := slices.Concat(b.EarlyModules, b.LateModules, b.WorkloadModules)
			for _, needs := range []struct {
				what    string
				modules []string
			}{
				{"OCI images", []string{"overlay"}},
				{"encrypted disks", []string{"loop", "dm_crypt", "xts", "ext4"}},
				{"networks", network.Modules()},
			} {
				for _, module := range needs.modules {
					if !slices.Contains(loaded, module) {
						t.Errorf("%s of leases need the module %s, which is in no list", needs.what, module)
					}
				}
			}
		})
	}
}

// What a box must never have, whatever its board: a password file to lose, an
// update port, programs of other modules than ours and gokrazy's.
func TestBoardsOpenNoDoor(t *testing.T) {
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			b, err := Get(name)
			if err != nil {
				t.Fatal(err)
			}
			var cfg struct {
				Update                    struct{ NoPassword bool }
				Packages, GokrazyPackages []string
			}
			if err := json.Unmarshal(b.Gokrazy, &cfg); err != nil {
				t.Fatal(err)
			}
			if !cfg.Update.NoPassword {
				t.Error("gokrazy would listen for updates: Update.NoPassword is not set")
			}
			if !slices.Contains(cfg.Packages, "github.com/croft-cloud/croft/cmd/croft-agent") {
				t.Error("the agent is missing")
			}
			for _, pkg := range slices.Concat(cfg.Packages, cfg.GokrazyPackages) {
				if !strings.HasPrefix(pkg, "github.com/croft-cloud/croft/") && !strings.HasPrefix(pkg, "github.com/gokrazy/gokrazy/") {
					t.Errorf("%s is neither ours nor gokrazy's", pkg)
				}
			}
		})
	}
}

func TestGetNamesTheBoardsItKnows(t *testing.T) {
	for _, name := range []string{"", ".", "toaster", "UEFI-X86", "../boards/uefi-x86", "/uefi-x86"} {
		t.Run(name, func(t *testing.T) {
			b, err := Get(name)
			if b != nil || croft.KindOf(err) != croft.KindNotFound || !strings.Contains(err.Error(), "choose one of: uefi-x86") {
				t.Errorf("Get(%q) = %v, %v; want an error of kind %q that lists the boards", name, b, err, croft.KindNotFound)
			}
		})
	}
}

func TestPartitionGUIDsAreWhatGokrazyExpects(t *testing.T) {
	b := Board{DiskID: "c40f7a86"}
	for n, want := range []string{
		"60c24cc1-f3f9-427a-8199-c40f7a860000", "60c24cc1-f3f9-427a-8199-c40f7a860001", "60c24cc1-f3f9-427a-8199-c40f7a860002",
	} {
		if got := b.PartitionGUID(n); got != want {
			t.Errorf("PartitionGUID(%d) = %s, want %s", n, got, want)
		}
	}
}
