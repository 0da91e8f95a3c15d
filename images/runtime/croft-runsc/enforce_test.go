package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
)

func TestCallerCannotLoosenTheSandbox(t *testing.T) {
	for _, tc := range []struct {
		name    string
		args    []string
		refused bool
	}{
		{"the shim's call", []string{"--root", "/run/r", "--log", "/x", "--log-format", "json", "start", "id"}, false},
		{"runsc's own call", []string{"--root=/run/r", "--platform=systrap", "--host-uds=none", "--log-fd=3", "boot", "id"}, false},
		{"runsc's own call for a root of some size", []string{"--overlay2=root:self,size=1048576", "boot", "id"}, false},
		{"a root of no size", []string{"--overlay2=root:self,size=", "create", "id"}, true},
		{"a root of a size that is more", []string{"--overlay2=root:self,size=1,mode=777", "create", "id"}, true},
		{"a root in memory", []string{"--overlay2=root:memory,size=1048576", "create", "id"}, true},
		{"another platform", []string{"--platform=ptrace", "create", "id"}, true},
		{"one dash", []string{"-platform=ptrace", "create", "id"}, true},
		{"a switch", []string{"--debug", "create", "id"}, true},
		{"a switch turned off", []string{"--debug=false", "state", "id"}, false},
		{"after the shim's flags", []string{"--root", "/r", "--network=host", "create", "id"}, true},
		{"a value that looks like a flag", []string{"--root", "--network=host", "state", "id"}, false},
		{"the value in the next argument", []string{"--network", "host", "create", "id"}, true},
		{"behind a flag with a value", []string{"--shared-root", "/x", "--network=host", "create", "id"}, true},
		{"behind a switch", []string{"--gso", "--network=host", "create", "id"}, true},
		{"an unknown flag", []string{"--no-such", "x", "--network=host", "create", "id"}, true},
		{"a flag of the tenant's program", []string{"--root", "/r", "exec", "id", "mysqld", "--debug", "--version"}, false},
		{"after the end of flags", []string{"--", "exec", "id", "--debug"}, false},
		{"nothing", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := enforce(tc.args)
			if (err != nil) != tc.refused {
				t.Fatalf("enforce(%q) = %v", tc.args, err)
			}
			if err == nil && (len(got) != len(policy)+len(tc.args) || !slices.Equal(got[len(policy):], tc.args)) {
				t.Errorf("enforce(%q) = %q", tc.args, got)
			}
		})
	}
}

func TestContainersDoNotInstructTheSandbox(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		refused    bool
	}{
		{"none", `{"process":{}}`, false},
		{"of others", `{"annotations":{"io.croft.lease":"l0123456789"}}`, false},
		{"a root of some size", `{"annotations":{"cloud.croft.root":"1048576"}}`, false},
		{"a root of a size that is more", `{"annotations":{"cloud.croft.root":"1,mode=777"}}`, true},
		{"a flag", `{"annotations":{"dev.gvisor.flag.host-uds":"all"}}`, true},
		{"a mount", `{"annotations":{"dev.gvisor.spec.mount.v.type":"bind"}}`, true},
		{"a hook", `{"hooks":{"createRuntime":[{"path":"/bin/sh"}]}}`, true},
		{"broken", `{`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bundle := t.TempDir()
			if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(tc.spec), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{
				{"--root", "/r", "create", "--bundle", bundle, "--pid-file", "/p", "id"},
				{"create", "-bundle=" + bundle, "id"},
			} {
				if _, err := enforce(args); (err != nil) != tc.refused {
					t.Errorf("enforce(%q) = %v", args, err)
				}
			}
			t.Chdir(bundle)
			if _, err := enforce([]string{"create", "id"}); (err != nil) != tc.refused {
				t.Errorf("without --bundle: %v", err)
			}
		})
	}
}

// A policy that gVisor reads in another spelling than it writes would be refused
// by the sandbox it starts.
func TestRootIsBounded(t *testing.T) {
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(`{"annotations":{"cloud.croft.root":"1048576"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := enforce([]string{"create", "--bundle", bundle, "id"})
	if err != nil || !slices.Contains(got, "--overlay2=root:self,size=1048576") {
		t.Errorf("enforce = %q, %v", got, err)
	}
}

func TestPolicyComesBackAsItWasGiven(t *testing.T) {
	flags := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(flags)
	args, err := enforce([]string{"--root=/run/r"})
	if err != nil {
		t.Fatal(err)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	conf, err := config.NewFromFlags(flags)
	if err != nil {
		t.Fatal(err)
	}
	given := conf.ToFlags()
	if _, err := enforce(given); err != nil {
		t.Error(err)
	}
	for _, r := range policy {
		if want := "--" + r.flag + "=" + r.value; !slices.Contains(given, want) {
			t.Errorf("runsc does not hand %s on: %q", want, given)
		}
	}
}

func TestVersionIsThePinnedModule(t *testing.T) {
	if !asksVersion([]string{"--version"}) || asksVersion([]string{"exec", "id", "mysqld", "--version"}) {
		t.Error("a program's --version is not runsc's")
	}
	if text := describe(); !strings.HasPrefix(text, "runsc version ") || !strings.Contains(text, "\nspec: 1.") {
		t.Errorf("the version is %q", text)
	}
}
