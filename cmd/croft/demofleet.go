package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/croft-cloud/croft/internal/rig/outside"
)

// boxFleet is how a box stands with its fleet.
type boxFleet struct {
	Connected bool   `json:"connected"`
	Owned     bool   `json:"owned"`
	Sentence  string `json:"sentence"`
}

func (d *demo) fleetd() string { return filepath.Join(d.dir, "croft-fleet") }
func (d *demo) owner() string  { return filepath.Join(d.dir, "owner") }

// buildFleet builds the fleet's program and the one that stands in for an owner.
func (d *demo) buildFleet(ctx context.Context) error {
	d.tell("building the fleet's program")
	return errors.Join(outside.Build(ctx, ".", "./cmd/croft-fleet", d.fleetd()), outside.Build(ctx, ".", "./internal/rig/outside/owner", d.owner()))
}

func (d *demo) startFleet(ctx context.Context) (string, error) {
	return d.world.Fleet.Console(), d.world.Fleet.Start(ctx)
}

func (d *demo) waitEnrolled(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, 5*time.Minute, func(s boxStatus) bool { return s.Fleet.Connected })
	return s.Fleet.Sentence, err
}

// screenCode is the claim code as the box's serial port says it.
var screenCode = regexp.QuoteMeta("Your claim code: ") + `([0-9A-Z]{4}-[0-9A-Z]{4})`

// claim claims the box as its owner would, in a browser of the size of a phone.
func (d *demo) claim(ctx context.Context) (string, error) {
	seen, err := d.machine.Serial().Wait(ctx, 0, screenCode)
	if err != nil {
		return "", d.missed(fmt.Errorf("the box shows no claim code: %w", err))
	}
	code := seen.Groups[1]
	d.tell("the box's screen shows the code " + code)
	cmd := exec.CommandContext(ctx, d.owner(), "-pictures", d.dir, d.world.Fleet.Console()+"/claim#"+code)
	said := &indented{w: d.w}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		return "", d.missed(fmt.Errorf("claim the box in a browser: %w", err))
	}
	s, err := d.waitFor(ctx, 2*time.Minute, func(s boxStatus) bool { return s.Fleet.Owned })
	return s.Fleet.Sentence, err
}

// admin is what a person can do to see the console as its staff does.
func (d *demo) admin() string {
	url, err := d.world.Fleet.AdminURL()
	if err != nil {
		return err.Error()
	}
	return "signs up, once, at " + url
}
