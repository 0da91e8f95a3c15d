package law

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite deps.txt of each program and the table in ARCHITECTURE.md")

// root is the module's folder, seen from this test.
const root = "../.."

// tags are the build tags behind which croft keeps tests.
const tags = "vm,integration"

// listed is what go list tells about a package.
type listed struct {
	ImportPath, Dir, Name string
	Module                *struct {
		Path string
		Main bool
	}
	GoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string

	Imports, Deps []string
	Error         *struct{ Err string }
	DepsErrors    []*struct{ Err string }
}

// TestModuleObeysTheLaw is the law itself.
func TestModuleObeysTheLaw(t *testing.T) {
	law, err := Parse(Text)
	if err != nil {
		t.Fatal(err)
	}
	pkgs := goList(t)
	for _, v := range law.Check(treeOf(t, pkgs)) {
		t.Error(v)
	}
}

// TestModuleListsAreAsReviewed compares the modules linked into each program
// with the deps.txt beside its main: a new line there is a topic for review.
func TestModuleListsAreAsReviewed(t *testing.T) {
	pkgs := goList(t)
	byPath := make(map[string]*listed)
	for _, p := range pkgs {
		byPath[p.ImportPath] = p
	}
	for _, p := range pkgs {
		if p.Name != "main" || p.Module == nil || !p.Module.Main || strings.Contains(p.ImportPath, "/internal/") || strings.Contains(p.ImportPath, "/chaintest/") {
			continue
		}
		modules := make(map[string]bool)
		for _, dep := range p.Deps {
			if d := byPath[dep]; d != nil && d.Module != nil && !d.Module.Main {
				modules[d.Module.Path] = true
			}
		}
		var want strings.Builder
		for _, m := range slices.Sorted(maps.Keys(modules)) {
			want.WriteString(m + "\n")
		}
		golden(t, filepath.Join(p.Dir, "deps.txt"), want.String())
	}
}

// TestArchitectureShowsTheFloors keeps the table people read equal to the one
// the law enforces.
func TestArchitectureShowsTheFloors(t *testing.T) {
	const begin, end = "<!-- floors: written by go test ./internal/law -update -->\n```\n", "```\n<!-- /floors -->\n"
	file := filepath.Join(root, "ARCHITECTURE.md")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s: no place for the table, want %q … %q", file, begin, end)
	}
	_, floors, _ := strings.Cut(Text, "\n")
	floors, _, _ = strings.Cut(floors, "\n\n")
	golden(t, file, before+begin+floors+"\n"+end+after)
}

// golden compares a file with what it should hold; -update rewrites it.
func golden(t *testing.T, file, want string) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err == nil && string(got) == want {
		return
	}
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s is not as reviewed; if the change is meant, run go test ./internal/law -update and have the difference reviewed (-file +now):\n%s",
		file, cmp.Diff(strings.Split(string(got), "\n"), strings.Split(want, "\n")))
}

// goList loads the whole module and all it depends on.
func goList(t *testing.T) []*listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-deps", "-tags="+tags,
		"-json=ImportPath,Dir,Name,Module,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,Deps,Error,DepsErrors", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("list packages: %v\n%s", err, &complaints)
	}
	var pkgs []*listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("read package list: %v", err)
		}
		if p.Error != nil {
			t.Errorf("load %s: %s", p.ImportPath, p.Error.Err)
		}
		pkgs = append(pkgs, &p)
	}
}

// treeOf reads the files of the module's own packages.
func treeOf(t *testing.T, pkgs []*listed) *Tree {
	t.Helper()
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	var tree *Tree
	for _, p := range pkgs {
		if p.Module != nil && p.Module.Main {
			tree = NewTree(p.Module.Path)
			break
		}
	}
	if tree == nil {
		t.Fatal("go list names no package of the module")
	}
	for _, p := range pkgs {
		if p.Module == nil || !p.Module.Main {
			tree.AddImports(p.ImportPath, p.Imports...)
			continue
		}
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles) {
			file := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(top, file)
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.AddFile(filepath.ToSlash(rel), src); err != nil {
				t.Error(err)
			}
		}
	}
	addNestedModules(t, tree, top)
	return tree
}

// addNestedModules adds the packages of the modules inside this one. Foreign
// packages they alone use stay unknown; their go.mod is the list to review.
func addNestedModules(t *testing.T, tree *Tree, top string) {
	t.Helper()
	mods, err := filepath.Glob(filepath.Join(top, "*", "*", "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	for _, mod := range mods {
		err := filepath.WalkDir(filepath.Dir(mod), func(file string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case d.IsDir() && d.Name() == "testdata":
				return filepath.SkipDir
			case filepath.Ext(file) != ".go":
				return nil
			}
			src, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(top, file)
			if err != nil {
				return err
			}
			return tree.AddFile(filepath.ToSlash(rel), src)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestLawFindsBreaches shows that the law can fail: small trees, each with one
// breach, and what the law says to it.
func TestLawFindsBreaches(t *testing.T) {
	law, err := Parse(`
floors: a small house
  0  .                ground
  1  internal/paper   paper
  2  firmware/slot    slots
  2  firmware/disk    disks
  2  chain/api/*      messages
  2  chain/gogo/*     messages again
  2  chain/x/*        keepers
  3  chain/client     door to the chain
  4  agent/market     bids
  5  agent            wires
  6  internal/rig     machines
  6  fleet/fleettest  a fleet
  7  cmd/croft        command
  7  cmd/croft-agent  daemon

never: bans
  box = agent/... cmd/croft-agent
  box reaches chain/x/... # no keepers on the box
  agent/... reaches testing # not in a shipped program
  fleet/... reaches firmware/... except firmware/slot # wire only
  chain/... reaches ./... except . chain/... # alone

twins: twins
  chain/api/* chain/gogo/* # two codecs

doors: doors
  example.org/heavy opens to firmware/disk tests # one door
  internal/rig opens to cmd/croft tests # test support
  C opens to cmd/croft # static
`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, tree, want string }{
		{"a good tree has no breach", `
-- croft.go --
// Package croft is the ground.
package croft
import "fmt"
-- firmware/disk/disk.go --
// Package disk writes disks.
package disk
import _ "croft.test/internal/paper"
import _ "example.org/heavy/part"
-- firmware/disk/disk_test.go --
package disk
import _ "croft.test/internal/rig"
-- internal/paper/paper.go --
// Package paper is paper.
package paper
import _ "croft.test"
-- cmd/croft/main.go --
// Croft is a command.
package main
import _ "croft.test/internal/rig"
-- internal/rig/rig.go --
// Package rig makes machines.
package rig
-- fleet/fleettest/fleettest.go --
// Package fleettest is a fleet.
package fleettest
import _ "croft.test/firmware/slot"
`, ""},
		{"a sibling is not imported", `
-- firmware/slot/slot.go --
// Package slot has slots.
package slot

import _ "croft.test/firmware/disk"
`, "firmware/slot/slot.go:4: firmware/slot (floor 2) imports firmware/disk (floor 2)"},
		{"a higher floor is not imported", `
-- internal/paper/paper.go --
// Package paper is paper.
package paper
import _ "croft.test/agent"
`, "internal/paper/paper.go:3: internal/paper (floor 1) imports agent (floor 5)"},
		{"a package outside the table is named", `
-- agent/gossip/gossip.go --
// Package gossip gossips.
package gossip
`, "agent/gossip: package is not in the table"},
		{"a folder below a package needs its own line", `
-- firmware/slot/inner/inner.go --
// Package inner is hidden.
package inner
`, "firmware/slot/inner: package is not in the table"},
		{"a banned package is found behind another", `
-- agent/market/market.go --
// Package market bids.
package market
import _ "croft.test/chain/client"
-- chain/client/client.go --
// Package client is a door.
package client
import _ "example.org/signer"
import _ "croft.test/chain/x/bank"
`, "agent/market: reaches croft.test/chain/x/bank by way of croft.test/agent/market → croft.test/chain/client → croft.test/chain/x/bank (no keepers on the box)"},
		{"a banned package is found behind a foreign one", `
-- agent/agent.go --
// Package agent wires.
package agent
import _ "example.org/careless"
`, "agent: reaches testing by way of croft.test/agent → example.org/careless → testing"},
		{"the chain sees nothing but itself", `
-- chain/client/client.go --
// Package client is a door.
package client
import _ "croft.test/internal/paper"
`, "chain/client: reaches croft.test/internal/paper"},
		{"an exception is no more than itself", `
-- fleet/fleettest/fleettest.go --
// Package fleettest is a fleet.
package fleettest
import _ "croft.test/firmware/disk"
`, "fleet/fleettest: reaches croft.test/firmware/disk"},
		{"a heavy library has one door", `
-- agent/agent.go --
// Package agent wires.
package agent
import _ "example.org/heavy/part"
`, "agent/agent.go:3: agent imports example.org/heavy/part, which opens to firmware/disk, tests only (one door)"},
		{"test support stays out of shipped programs", `
-- cmd/croft-agent/main.go --
// Croft-agent is a daemon.
package main
import _ "croft.test/internal/rig"
`, "cmd/croft-agent/main.go:3: cmd/croft-agent imports croft.test/internal/rig, which opens to cmd/croft, tests only"},
		{"cgo is found behind any build tag", `
-- agent/agent.go --
// Package agent wires.
package agent
-- agent/agent_cgo.go --
//go:build cgo && windows

package agent
import "C"
`, "agent/agent_cgo.go:4: agent imports C"},
		{"the root package imports the standard library only", `
-- croft.go --
// Package croft is the ground.
package croft
import _ "example.org/other"
`, "croft.go:3: the root package imports example.org/other"},
		{"the root package declares no interface that does I/O", `
-- croft.go --
// Package croft is the ground.
package croft
type Namer interface{ Name() string }
type Opener interface{ Open(name string) error }
`, "croft.go:4: interface that does I/O"},
		{
			"the root package is capped", "-- croft.go --\n// Package croft is the ground.\npackage croft\n" + strings.Repeat("\n", 1500),
			".: package has 1502 lines, more than 1500",
		},
		{"generated packages of one contract may share a name", `
-- chain/api/marketv1/doc.go --
// Package marketv1 is for clients.
package marketv1
-- chain/gogo/marketv1/doc.go --
// Package marketv1 is for keepers.
package marketv1
`, ""},
		{"a generated file may import a package of its own floor", `
-- chain/api/marketv1/m.pb.go --
// Code generated by protogen. DO NOT EDIT.

// Package marketv1 is for clients.
package marketv1

import _ "croft.test/chain/api/basev1"
-- chain/api/basev1/doc.go --
// Package basev1 holds coins.
package basev1
`, ""},
		{"a written file may not", `
-- chain/api/marketv1/m.go --
// Package marketv1 is for clients.
package marketv1

import _ "croft.test/chain/api/basev1"
-- chain/api/basev1/doc.go --
// Package basev1 holds coins.
package basev1
`, "chain/api/marketv1/m.go:4: chain/api/marketv1 (floor 2) imports chain/api/basev1 (floor 2)"},
		{
			"a package is capped", "-- agent/agent.go --\n// Package agent wires.\npackage agent\n" + strings.Repeat("\n", 2500),
			"agent: package has 2502 lines, more than 2500",
		},
		{"an empty name is refused", `
-- chain/x/types/types.go --
// Package types holds types.
package types
`, "chain/x/types: package name types is empty"},
		{"a name is used once", `
-- agent/market/market.go --
// Package market bids.
package market
-- chain/x/market/market.go --
// Package market settles.
package market
`, "chain/x/market: package name market is also that of agent/market"},
		{"a package without a comment is named", `
-- agent/agent.go --
package agent
`, "agent: package has no comment"},
		{"two package comments are one too many", `
-- agent/agent.go --
// Package agent wires.
package agent
-- agent/other.go --
// Package agent wires more.
package agent
`, "agent: package has a comment in each of agent/agent.go, agent/other.go"},
		{"a package comment begins with the name", `
-- agent/agent.go --
// This is the agent.
package agent
`, `agent/agent.go: package comment does not begin with "Package agent"`},
		{"init is refused", `
-- agent/agent.go --
// Package agent wires.
package agent
func init() {}
`, "agent/agent.go:3: function init"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree := NewTree("croft.test")
			for _, f := range txtar.Parse([]byte(tc.tree)).Files {
				if err := tree.AddFile(path.Clean(f.Name), f.Data); err != nil {
					t.Fatal(err)
				}
			}
			tree.AddImports("example.org/careless", "fmt", "testing")
			found := law.Check(tree)
			if tc.want == "" && len(found) > 0 {
				t.Fatalf("a good tree is accused: %v", found)
			}
			if tc.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0].String(), tc.want)) {
				t.Errorf("Check found\n%v\nwant one that begins\n%s", found, tc.want)
			}
		})
	}
}

func TestParseRefusesWhatItCannotRead(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"an unknown section", "roofs: high", `line 1: section "roofs" is not known`},
		{"a line before any section", "  0 . ground", "line 1: line stands outside a section"},
		{"a floor that is no number", "floors:\n  x . ground", "line 2: read floor of ."},
		{"a package without a purpose", "floors:\n  1 agent", "line 2: want floor, package and what it holds"},
		{"a package on two floors", "floors:\n  1 a x\n  2 a x", "line 3: package a stands on two floors"},
		{"a ban without a reason", "never:\n  a reaches b", "line 2: want PACKAGES reaches"},
		{"a door without a reason", "doors:\n  a opens to b #", "line 2: want LIBRARY opens to"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse(tc.text)
			if want := "parse law, " + tc.want; err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("Parse says %v, want %s…", err, want)
			}
		})
	}
}

// Example shows the form in which a breach is reported.
func ExampleViolation() {
	fmt.Println(Violation{"agent/agent.go:3", "agent imports C", "everything else is static"})
	// Output: agent/agent.go:3: agent imports C (everything else is static)
}
