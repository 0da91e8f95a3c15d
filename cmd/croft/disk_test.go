//go:build integration

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestDisks runs the part of the manual that touches disks and mounts, on loop
// devices. Its scripts know as well:
//
//	disk NAME SIZE [OPTION...]   make a disk full of old data, as losetup has it;
//	                             $NAME is its path, $NAME_NAME what a person types
//	mount ARGUMENT... FOLDER     mount(8), undone at the end
//	unmount FOLDER               undone now
func TestDisks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes loop devices and mounts them: run it as root")
	}
	runScripts(t, "testdata/disk", func(p *testscript.Params) {
		p.Cmds["disk"] = disk
		p.Cmds["mount"] = mount
		p.Cmds["unmount"] = func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(ts.Exec("umount", args...)) }
	})
}

func disk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: disk NAME SIZE [OPTION...]")
	}
	backing := ts.MkAbs(args[0] + ".disk")
	ts.Check(ts.Exec("truncate", "-s", args[1], backing))
	info, err := os.Stat(backing)
	ts.Check(err)
	ts.Check(os.WriteFile(backing, []byte(strings.Repeat("old!", int(info.Size()/4))), 0o600))
	out, err := exec.Command("losetup", append(args[2:], "--find", "--show", "--partscan", backing)...).Output()
	ts.Check(err)
	device := strings.TrimSpace(string(out))
	ts.Defer(func() {
		_ = exec.Command("swapoff", device+"p4").Run() // of a script that failed in the middle
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			ts.Logf("detach %s: %v: %s", device, err, out)
		}
	})
	ts.Setenv(args[0], device)
	ts.Setenv(args[0]+"_NAME", filepath.Base(device))
	ts.Check(os.WriteFile(ts.MkAbs("name-of-"+args[0]), []byte(filepath.Base(device)+"\n"), 0o600))
}

func mount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mount ARGUMENT...")
	}
	ts.Check(ts.Exec("mount", args...))
	where := ts.MkAbs(args[len(args)-1])
	ts.Defer(func() {
		_ = exec.Command("umount", "--lazy", where).Run() // unless the script did
	})
}
