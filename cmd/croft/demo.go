package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/internal/rig"
)

func newDemoCommand() *cobra.Command {
	var check bool
	var out string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Build an image, boot it in a virtual machine and show the box",
		Long: `Build an image, boot it in a virtual machine and show the box, step by step.

Run it in the repository. The box stays on for you to look at until Ctrl-C.`,
		Example: `  croft demo
  croft demo --check      # leave when every step was seen`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &demo{out: out, w: cmd.OutOrStdout(), begin: time.Now()}
			defer d.close()
			if err := d.story(cmd.Context()); err != nil {
				return err
			}
			if check {
				return nil
			}
			fmt.Fprintln(d.w, "\nThe box stays on for you to look at. Ctrl-C switches it off.")
			<-cmd.Context().Done()
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "end after the last step; exit 0 only if every step was seen")
	cmd.Flags().StringVar(&out, "out", "build", "folder for image and machine")
	return cmd
}

// demo is the story of the README, step by step.
type demo struct {
	out   string
	w     io.Writer
	begin time.Time

	image   string
	machine *rig.QEMU
	url     string
	power   time.Time
}

func (d *demo) close() {
	if d.machine != nil {
		d.machine.Close()
	}
}

func (d *demo) story(ctx context.Context) error {
	for n, step := range []struct {
		what string
		do   func(context.Context) (string, error)
	}{
		{"the image is built", d.build},
		{"the box is switched on, behind a router", d.switchOn},
		{"the owner page answers", d.waitPage},
		{"the box finds itself healthy and keeps this version", d.waitHealthy},
		{"it shows its owner how it is", d.show},
	} {
		at := time.Now()
		said, err := d.withSignsOfLife(step.what, func() (string, error) { return step.do(ctx) })
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", n+1, step.what, err)
		}
		fmt.Fprintf(d.w, "%2d  %-52s %6.1f s  %s\n", n+1, step.what, time.Since(at).Seconds(), said)
	}
	return nil
}

// withSignsOfLife prints a line every few seconds while do works.
func (d *demo) withSignsOfLife(what string, do func() (string, error)) (string, error) {
	s := newSteps(d.w)
	s.watch(what)
	defer s.stop()
	return do()
}

func (d *demo) build(ctx context.Context) (string, error) {
	board, err := boards.Get("uefi-x86")
	if err != nil {
		return "", err
	}
	result, err := build.Build(ctx, build.Options{Board: board, Source: ".", Out: d.out})
	d.image = result.Image
	return "version " + string(result.Release.Version), err
}

func (d *demo) switchOn(ctx context.Context) (string, error) {
	dir := filepath.Join(d.out, "demo")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	machine, err := rig.NewQEMU(rig.Config{
		Dir:      dir,
		Disks:    []rig.Disk{{Path: d.image, Overlay: true, Size: 8 << 30}},
		Forwards: []rig.Forward{{Guest: 80}},
	})
	if err != nil {
		return "", err
	}
	d.machine = machine
	address, err := machine.Address(80)
	if err != nil {
		return "", err
	}
	d.url, d.power = "http://"+address+"/", time.Now()
	return "", machine.PowerOn(ctx)
}

// boxStatus is the part of the owner page's status.json that the demo looks at.
// Importing agent/ownerpage would link all of its modules into croft.
type boxStatus struct {
	Name    string     `json:"name"`
	Slot    croft.Slot `json:"slot"`
	State   string     `json:"state"`
	Network string     `json:"network"`
}

func (s boxStatus) healthy() bool { return s.State == "healthy" && s.Network == "online" }

// status asks the owner page.
func (d *demo) status(ctx context.Context) (boxStatus, error) {
	var s boxStatus
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+"status.json", nil)
	if err != nil {
		return s, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// waitFor asks the page until it says what is wanted, or three minutes passed.
func (d *demo) waitFor(ctx context.Context, want func(boxStatus) bool) (boxStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		s, err := d.status(ctx)
		if err == nil && want(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, errors.Join(errors.New("the box did not get there; its serial output is in "+filepath.Join(d.out, "demo", "serial.log")), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (d *demo) waitPage(ctx context.Context) (string, error) {
	_, err := d.waitFor(ctx, func(boxStatus) bool { return true })
	return fmt.Sprintf("%s  (%.0f s after power-on)", d.url, time.Since(d.power).Seconds()), err
}

func (d *demo) waitHealthy(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, boxStatus.healthy)
	return fmt.Sprintf("%s, slot %s", s.Name, s.Slot), err
}

func (d *demo) show(ctx context.Context) (string, error) {
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := rig.WaitSerial(waiting, d.machine, 0, `(?s)Your box is running.*?-{40}`); err != nil {
		return "", err
	}
	png, err := d.machine.Screenshot(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(d.out, "demo", "screen.png")
	if err := os.WriteFile(path, png, 0o644); err != nil {
		return "", err
	}
	if screen := lastScreen(d.machine.Serial().Text()); screen != "" {
		fmt.Fprintf(d.w, "\n%s\n\n", screen)
	}
	return "picture of its screen: " + path, nil
}

// lastScreen is the newest block that the box's text screen wrote to the serial
// port: between its last two rules.
func lastScreen(log string) string {
	rule := strings.Repeat("-", 40)
	lines := strings.Split(strings.ReplaceAll(log, "\r", ""), "\n")
	var rules []int
	for i, line := range lines {
		if strings.HasPrefix(line, rule) {
			rules = append(rules, i)
		}
	}
	if len(rules) < 2 {
		return ""
	}
	return strings.Join(lines[rules[len(rules)-2]:rules[len(rules)-1]+1], "\n")
}
