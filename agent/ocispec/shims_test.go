package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestShimsAreFoundByTheirArguments(t *testing.T) {
	proc := t.TempDir()
	for pid, args := range map[string][]string{
		"11":   {"/user/containerd-shim-runc-v2", "-namespace", "croft", "-id", "l1-web", "-address", "/run/c.sock"},
		"12":   {"/user/containerd-shim-runc-v2", "-namespace", "croft", "-address", "/run/c.sock", "-id", "l1-web", "start"},
		"13":   {"/user/containerd-shim-runc-v2", "-namespace", "croft", "-id", "l1-web2"},
		"14":   {"/user/containerd-shim-runc-v2", "-namespace", "other", "-id", "l1-web"},
		"15":   {"/user/croft-runsc", "-namespace", "croft", "-id", "l1-web"},
		"16":   {"/user/containerd-shim-runc-v2", "-namespace", "croft", "-id"},
		"17":   {""},
		"self": {"/user/containerd-shim-runc-v2", "-namespace", "croft", "-id", "l1-web"},
	} {
		if err := os.Mkdir(filepath.Join(proc, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "cmdline"), []byte(strings.Join(args, "\x00")+"\x00"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(proc, "18"), 0o755); err != nil { // it has just ended
		t.Fatal(err)
	}
	if got := Shims(proc, "croft", "l1-web"); !slices.Equal(got, []int{11, 12}) {
		t.Errorf("found %v, want 11 and 12", got)
	}
}
