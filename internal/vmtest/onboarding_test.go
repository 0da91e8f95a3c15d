//go:build vm

package vmtest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// fleetd and browser are croft-fleet and the program that stands in for an owner,
// built once.
var (
	fleetd  = builtOnce("croft-fleet", "./cmd/croft-fleet")
	browser = builtOnce("owner", "./internal/rig/outside/owner")
)

func builtOnce(name, program string) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		path := filepath.Join(releases.dir, name)
		return path, outside.Build(context.Background(), repository, program, path)
	})
}

// pictures is where photographs of pages go: the folder that CROFT_SCREENSHOTS names,
// or one that is gone with the test.
func pictures(t *testing.T) string {
	if dir := os.Getenv("CROFT_SCREENSHOTS"); dir != "" {
		return dir
	}
	return t.TempDir()
}

// A new box is switched on, enrols by itself, is claimed on a phone by the code on its
// screen, and its owner sees what it does.
func TestOwnerBringsABoxHome(t *testing.T) {
	service, err := fleetd()
	if err != nil {
		t.Fatal(err)
	}
	owner, err := browser()
	if err != nil {
		t.Fatal(err)
	}
	world, err := outside.New(outside.Config{Dir: t.TempDir(), Chaind: "there is no chain", Fleetd: service})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := world.Fleet.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	network := world.Network(outside.FromGuest)
	b := boxOn(t, network, settings{from: releases.good.Image, size: 8 << 30})
	begin := time.Now()
	since := func() float64 { return time.Since(begin).Seconds() }
	b.powerOn()
	code := b.waitSerial(0, regexp.QuoteMeta("Your claim code: ")+`([0-9A-Z]{4}-[0-9A-Z]{4})`).Groups[1]
	t.Logf("%5.1f s after power-on its screen shows the code", since())
	s := b.waitFor("a box that its fleet knows", func(s ownerpage.StatusJSON) bool { return s.Fleet != nil && s.Fleet.Connected })
	t.Logf("%5.1f s after power-on the box is enrolled and connected (%s)", since(), s.Name)
	if s.Fleet.Owned {
		t.Fatal("a new box has an owner")
	}

	said, err := exec.CommandContext(t.Context(), owner, "-pictures", pictures(t), world.Fleet.Console()+"/claim#"+code).CombinedOutput()
	t.Logf("the owner, in a browser:\n%s", said)
	if err != nil {
		t.Fatal(err)
	}
	b.waitFor("a box that knows it has an owner", func(s ownerpage.StatusJSON) bool { return s.Fleet != nil && s.Fleet.Owned && !s.Claimable })
	t.Logf("%5.1f s after power-on it is claimed and its charts move", since())
}
