// Installer stands in for croft-init in the initramfs of a test machine. It does
// with firmware/esp what the kernel's argument installer= says, on disks that
// each are one bare EFI system partition, and turns the machine off:
//
//	installer=vda:install/a/b/1.1.0/400/7,count/b,confirm/b;vdb:erase/a/b
//
// As on the box, the partition is mounted for each step alone. A power cut may
// come at any time; to show that is what it is for.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/esp/crashtest"
	"github.com/croft-cloud/croft/firmware/kernel"
	"github.com/croft-cloud/croft/firmware/slot"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "installer: runs as the first program of a test machine only")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "installer: stopped: %v\n", err)
	} else {
		fmt.Fprintln(os.Stderr, "installer: done")
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, fs := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(fs.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(fs.kind, fs.dir, fs.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", fs.dir, err)
		}
	}
	for _, err := range kernel.Load("/modules/early") {
		fmt.Fprintf(os.Stderr, "installer: %v\n", err)
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	scripts, _ := kernel.Argument(string(line), "installer")
	for script := range strings.SplitSeq(scripts, ";") {
		disk, steps, _ := strings.Cut(script, ":")
		for step := range strings.SplitSeq(steps, ",") {
			if err := do("/dev/"+disk, step); err != nil {
				return fmt.Errorf("%s on %s: %w", step, disk, err)
			}
		}
	}
	return nil
}

// do mounts the partition, takes one step and unmounts it.
func do(device, step string) error {
	const dir = "/esp"
	p, notes, err := esp.Mount(device, dir)
	if err != nil {
		return err
	}
	for _, note := range notes {
		fmt.Fprintf(os.Stderr, "installer: %s: %s\n", device, note)
	}
	err = take(p, strings.Split(step, "/"))
	set, readErr := p.Read()
	fmt.Fprintf(os.Stderr, "installer: %s: %s: %v %v\n", device, step, names(set), err)
	return errors.Join(err, readErr, unix.Unmount(dir, 0))
}

func names(set slot.Set) (all []string) {
	for _, e := range set.Order() {
		all = append(all, e.Name())
	}
	return all
}

func take(p *esp.Partition, words []string) error {
	if len(words) < 2 {
		return errors.New("want STEP/SLOT…")
	}
	running := croft.Slot(words[1])
	switch {
	case words[0] == "confirm":
		return p.Confirm(running)
	case words[0] == "refund":
		return p.Refund(running)
	case words[0] == "demote":
		return p.Demote(running)
	case words[0] == "count":
		return count(p, running)
	case words[0] == "erase" && len(words) == 3:
		return p.Erase(running, croft.Slot(words[2]))
	case words[0] == "install" && len(words) == 6:
		kib, err := strconv.Atoi(words[4])
		if err != nil {
			return err
		}
		seed, err := strconv.ParseUint(words[5], 10, 64)
		if err != nil {
			return err
		}
		body := crashtest.UKI("installed", kib<<10, seed)
		_, err = p.Install(context.Background(), running, croft.Slot(words[2]), esp.UKI{
			Version: croft.Version(words[3]), Size: int64(len(body)), SHA256: sha256.Sum256(body), Body: bytes.NewReader(body),
		})
		return err
	}
	return errors.New("no such step")
}

// count takes a try as the boot loader does, but with the kernel's driver.
func count(p *esp.Partition, running croft.Slot) error {
	set, err := p.Read()
	if err != nil {
		return err
	}
	before := set.Of(running)
	after, err := before.Next(slot.Boot)
	if err != nil {
		return err
	}
	if err := os.Rename(p.Path(before), p.Path(after)); err != nil {
		return err
	}
	unix.Sync()
	return nil
}
