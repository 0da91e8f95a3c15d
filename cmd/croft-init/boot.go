package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/bootdisk"
	"github.com/croft-cloud/croft/firmware/bootlog"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/kernel"
	"github.com/croft-cloud/croft/firmware/perm"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/firmware/verity"
	"github.com/croft-cloud/croft/firmware/watchdog"
)

const (
	sysroot   = "/sysroot"
	espMount  = "/esp"
	nextInit  = "/gokrazy/init"
	late      = sysroot + "/usr/lib/croft/modules"
	template  = sysroot + "/usr/lib/croft/perm.ext4"
	fsck      = sysroot + "/usr/lib/croft/e2fsck"
	permMount = sysroot + "/perm"

	watchdogTime = time.Minute // default of the argument croft.watchdog

	// For so long the watchdog is fed while one thing is done; what takes
	// longer hangs. A disk that dies slowly keeps its bus busy for minutes.
	diskLimit   = 3 * time.Minute
	moduleLimit = 2 * time.Minute
	verifyLimit = 10 * time.Minute

	// giveUpLimit is how long the last words may take before the restart.
	giveUpLimit = 30 * time.Second
)

// boot is one run of croft-init. Its fields are what is known so far.
type boot struct {
	cmdline string
	start   time.Time
	screen  io.Writer        // the HDMI port; the console is the serial port
	guard   *watchdog.Device // nil without a watchdog
	disk    bootdisk.Found
	root    verity.Root
	set     slot.Set         // as found on the ESP; empty if it could not be read
	report  bootlog.Handover // what the root's PID 1 will be told
	log     bootlog.Log      // valid once perm is set
	attempt bootlog.Attempt  // this boot's record
	perm    string           // where /perm is mounted; empty until then
	found   bool             // the root is on the partition of report.Slot
	damaged bool             // the running slot's root is known to be damaged
}

// say prints one line for support, who watch the serial port.
func (b *boot) say(format string, args ...any) {
	fmt.Printf("croft-init %5.1fs: %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// tell also shows the line on the screen, for the owner.
func (b *boot) tell(text string) {
	b.say("%s", text)
	if b.screen != nil {
		fmt.Fprintln(b.screen, text)
	}
}

// note is also handed on to the owner's page.
func (b *boot) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.tell(text)
	b.report.Notes = append(b.report.Notes, text)
}

func (b *boot) feed() {
	_ = b.guard.Feed() // a watchdog that takes no food resets the box, as it should
}

// hold keeps the watchdog fed while work is done, for limit at most.
func (b *boot) hold(limit time.Duration, work func() error) error {
	release := watchdog.Hold(b.guard, limit)
	defer release()
	return work()
}

// run boots the box; it returns only with the reason why it could not.
func (b *boot) run() error {
	b.start = time.Now()
	if err := b.mountKernel(); err != nil {
		return err
	}
	b.armWatchdog()
	b.notLoaded(kernel.Load("/modules/early"))
	b.feed()
	b.readFirmware()

	if err := b.hold(diskLimit, b.findDisk); err != nil {
		return err
	}
	b.readESP()
	b.findRoot()
	_ = b.hold(diskLimit, b.countTry)
	if err := b.hold(verifyLimit, b.mountRoot); err != nil {
		return err
	}
	loaded := make(chan []error, 1)
	go func() { loaded <- kernel.Load(late) }() // takes seconds; /perm needs none of them
	err := b.hold(perm.Limit, b.preparePerm)
	_ = b.hold(moduleLimit, func() error {
		b.notLoaded(<-loaded)
		return nil
	})
	if err != nil {
		return err
	}
	if err := b.hold(verifyLimit, b.verifyAfterUncleanEnd); err != nil {
		return err
	}
	b.feed()
	return b.handOver()
}

func (b *boot) mountKernel() error {
	for _, m := range []struct{ what, where string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := os.MkdirAll(m.where, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.what, err)
		}
	}
	if screen, err := os.OpenFile("/dev/tty1", os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
		b.screen = screen
	}
	raw, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read the kernel command line: %w", err)
	}
	b.cmdline = strings.TrimSpace(string(raw))
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read the boot ID: %w", err)
	}
	b.report.BootID = strings.TrimSpace(string(id))
	version, _ := kernel.Argument(b.cmdline, "croft.version")
	b.report.Version = croft.Version(version)
	if b.root, err = verity.FromCommandLine(b.cmdline); err != nil {
		return err
	}
	b.report.RootHash = b.root.Hash
	return nil
}

// armWatchdog arms the first watchdog there is. The kernel's own (softdog) is
// the last in the list of modules: it is the first only without hardware.
func (b *boot) armWatchdog() {
	b.notLoaded(kernel.Load("/modules/watchdog"))
	guard, err := watchdog.Arm("/dev/watchdog0", kernel.DurationArgument(b.cmdline, "croft.watchdog", watchdogTime))
	if err != nil {
		b.say("no watchdog: %v", err)
		return
	}
	b.guard, b.report.Watchdog = guard, guard.Identity()
	b.say("watchdog %q armed", guard.Identity())
}

// notLoaded reports modules that could not be loaded. The box goes on: what is
// really missed, a health check misses.
func (b *boot) notLoaded(failed []error) {
	for _, err := range failed {
		b.say("%v", err)
		b.report.Modules = append(b.report.Modules, err.Error())
	}
}

// readFirmware mounts the EFI variables and takes over the kernel panic, if
// the firmware kept one.
func (b *boot) readFirmware() {
	if err := unix.Mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		b.say("no EFI variables: %v", err)
	}
	const store = "/sys/fs/pstore"
	if err := unix.Mount("pstore", store, "pstore", 0, ""); err != nil {
		return // a kernel without it
	}
	b.report.Panic = takePanic(store)
	if b.report.Panic != "" {
		b.say("the last kernel stopped: %s", b.report.Panic)
	}
}

// takePanic returns the newest panic line of the dumps in dir and removes
// them, so that the firmware's small memory never fills up.
func takePanic(dir string) string {
	files, _ := filepath.Glob(filepath.Join(dir, "dmesg-*"))
	// The number at the end of the name grows with time: seconds, part, count.
	slices.SortFunc(files, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	newest := ""
	for _, file := range files {
		if raw, err := os.ReadFile(file); err == nil {
			newest = cmp.Or(panicLine(string(raw)), newest)
		}
		_ = os.Remove(file)
	}
	return newest
}

// panicLine is the text after the last "Kernel panic - not syncing: ".
func panicLine(dump string) string {
	const mark = "Kernel panic - not syncing: "
	at := strings.LastIndex(dump, mark)
	if at < 0 {
		return ""
	}
	line, _, _ := strings.Cut(dump[at+len(mark):], "\n")
	return strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(line), "]---"))
}

func (b *boot) findDisk() error {
	partUUID, _, _ := strings.Cut(strings.TrimPrefix(argument(b.cmdline, "root"), "PARTUUID="), "/")
	found, err := bootdisk.Find(context.Background(), bootdisk.Config{PartUUID: partUUID})
	if err != nil {
		return err
	}
	b.disk = found
	b.report.Disk = found.Disk.Path
	b.report.ESP = found.Disk.Partition(bootdisk.ESP)
	for _, twin := range found.Twins {
		b.report.Twins = append(b.report.Twins, twin.Path)
	}
	if found.Note != "" {
		b.note("%s", found.Note)
	}
	return nil
}

// findRoot learns which slot this boot is. That is decided by content, never by
// a name that could be wrong; a name only decides when both slots hold this
// root, or none does.
func (b *boot) findRoot() {
	holds := map[croft.Slot]bool{}
	for _, s := range []croft.Slot{croft.SlotA, croft.SlotB} {
		f, err := os.Open(b.rootPartition(s))
		if err != nil {
			b.say("open root %s: %v", s, err)
			continue
		}
		holds[s] = b.root.Holds(f)
		f.Close()
	}
	named := namedSlot(bootdisk.SelectedEntry("/sys"), b.set)
	b.report.Slot = chooseSlot(holds, named)
	b.found = holds[b.report.Slot]
}

func (b *boot) rootPartition(s croft.Slot) string {
	if s == croft.SlotB {
		return b.disk.Disk.Partition(bootdisk.RootB)
	}
	return b.disk.Disk.Partition(bootdisk.RootA)
}

// namedSlot is the slot of the boot file that the loader says it started. A
// loader that says nothing took the first in its order.
func namedSlot(selected string, set slot.Set) croft.Slot {
	if e, err := slot.ParseName(selected); err == nil {
		return e.Slot
	}
	if first, ok := set.Next(); ok {
		return first.Slot
	}
	return croft.SlotA
}

func chooseSlot(holds map[croft.Slot]bool, named croft.Slot) croft.Slot {
	if !holds[named] && holds[named.Other()] {
		return named.Other()
	}
	return named
}

func argument(line, key string) string {
	value, _ := kernel.Argument(line, key)
	return value
}

// readESP learns which slots the boot loader can choose from.
func (b *boot) readESP() {
	f, err := os.Open(b.report.ESP)
	if err != nil {
		b.note("The EFI partition could not be opened: %v.", err)
		return
	}
	defer f.Close()
	volume, err := esp.OpenVolume(f)
	if err == nil {
		b.set, err = volume.Read()
	}
	if err != nil {
		b.note("The EFI partition could not be read: %v.", err)
	}
}

// demote sets the running slot aside, so that the loader prefers the other.
func (b *boot) demote() error {
	partition, _, err := esp.Mount(b.report.ESP, espMount)
	if err != nil {
		return err
	}
	return errors.Join(partition.Demote(b.report.Slot), unix.Unmount(espMount, 0))
}

// countTry takes a try of the running slot that the firmware could not count. A
// trial whose tries nobody counts would never end.
func (b *boot) countTry() error {
	if !uncounted(bootdisk.SelectedEntry("/sys"), b.set.Of(b.report.Slot)) || !b.alternative() {
		return nil
	}
	partition, _, err := esp.Mount(b.report.ESP, espMount)
	if err == nil {
		err = partition.Count(b.report.Slot)
		if set, readErr := partition.Read(); readErr == nil {
			b.set = set
		}
		err = errors.Join(err, unix.Unmount(espMount, 0))
	}
	if err != nil {
		b.note("The tries of a new version cannot be counted: %v.", err)
		return err
	}
	b.say("the firmware did not count this try; done for it")
	return nil
}

// uncounted reports whether a running entry with tries still has the name under
// which the loader selected it: the loader selects first, then counts.
func uncounted(selected string, running slot.Entry) bool {
	return running.State() == slot.Trial && strings.EqualFold(selected, running.Name())
}

// alternative reports whether the loader has another slot to turn to.
func (b *boot) alternative() bool {
	state := b.set.Of(b.report.Slot.Other()).State()
	return state == slot.Trial || state == slot.Confirmed
}

func (b *boot) mountRoot() error {
	if !b.found {
		b.damaged = true
		return fmt.Errorf("no root partition carries the root of this kernel (%s…): %w", b.root.Hash[:12], verity.ErrCorrupt)
	}
	partition := b.rootPartition(b.report.Slot)
	dev, err := b.root.Open("root", partition, b.panicOnCorruption())
	if err == nil {
		err = os.MkdirAll(sysroot, 0o755)
	}
	if err == nil {
		err = unix.Mount(dev, sysroot, "squashfs", unix.MS_RDONLY, "")
	}
	if err != nil {
		b.damaged = errors.Is(b.root.Verify(partition), verity.ErrCorrupt)
		return fmt.Errorf("mount the root of slot %s: %w", b.report.Slot, err)
	}
	b.say("slot %s, version %s, verified root on %s", b.report.Slot, b.report.Version, partition)
	return nil
}

// panicOnCorruption reports whether the kernel may panic at the first damaged
// block: only in a trial, whose tries the loader counts. A confirmed slot would
// panic at the same block in every boot, before this program could look; it gets
// read errors instead, and verifyAfterUncleanEnd sets it aside in the next boot.
func (b *boot) panicOnCorruption() bool {
	state := b.set.Of(b.report.Slot).State()
	return b.alternative() && (state == slot.Trial || state == slot.Exhausted)
}

func (b *boot) preparePerm() error {
	state, err := perm.Prepare(context.Background(), perm.Config{
		Disk: b.disk.Disk.Path, Partition: b.disk.Disk.Partition(bootdisk.Perm), Number: bootdisk.Perm,
		Target: permMount, Template: template, Fsck: fsck, Say: b.tell,
	})
	b.report.Perm = state
	if err != nil {
		return err
	}
	b.perm = permMount
	b.say("/perm is %s %s", state.State, state.Detail)

	b.log = bootlog.Open(permMount)
	before, err := b.log.Read()
	if err != nil {
		b.say("%v", err)
	}
	b.report.Before = before
	b.attempt = before[b.report.Slot].Next(b.report.BootID, b.report.Version, b.root.Hash)
	b.attempt.At = time.Now().UTC()
	if err := b.log.Write(b.report.Slot, b.attempt); err != nil {
		b.say("%v", err) // full or read-only: the box boots all the same
	}
	return nil
}

// verifyAfterUncleanEnd reads the whole root when the slot's last boot ended
// without a clean shutdown, or nothing is known of it because /perm keeps
// nothing. A block that went bad under a confirmed slot would otherwise crash
// the box again and again.
func (b *boot) verifyAfterUncleanEnd() error {
	if b.report.Perm.Keeps() && !b.report.Before[b.report.Slot].Unclean() {
		return nil
	}
	err := b.root.Verify(b.rootPartition(b.report.Slot))
	switch {
	case err == nil:
		b.say("the last boot may have ended without a shutdown; the root is intact")
		return nil
	case !errors.Is(err, verity.ErrCorrupt):
		b.note("The root could not be checked: %v.", err)
		return nil
	case !b.alternative():
		b.note("The system on this box is damaged and there is no second one to start. Please ask for help: it has to be installed again.")
		return nil
	}
	b.damaged = true
	return fmt.Errorf("check slot %s: %w", b.report.Slot, err)
}

// handOver moves the mounts to the real root and becomes its PID 1.
func (b *boot) handOver() error {
	env := []string{"PATH=/user:/gokrazy:/usr/lib/croft"}
	if b.guard != nil {
		fd, err := b.guard.Inherit()
		if err != nil {
			return err
		}
		env = append(env, watchdog.FDEnv+"="+strconv.Itoa(fd))
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err == nil {
		b.report.Uptime = time.Duration(up.Nano())
	}
	report, err := json.Marshal(b.report)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	env = append(env, bootlog.HandoverEnv+"="+string(report))
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, sysroot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.Chdir(sysroot); err != nil {
		return err
	}
	b.say("handing over to %s", nextInit)
	freeInitramfs()
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	b.perm = strings.TrimPrefix(permMount, sysroot)
	b.log = bootlog.Open(b.perm)
	// PID 1 reads its standard input for a request to start a shell; there is
	// no shell and no one to ask.
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	if err := unix.Dup2(int(null.Fd()), 0); err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", nextInit, unix.Exec(nextInit, []string{nextInit}, env))
}

// freeInitramfs removes the files of the initramfs, which live in memory; no
// other file system is mounted below these names.
func freeInitramfs() {
	for _, name := range []string{"/modules", "/init"} {
		_ = os.RemoveAll(name)
	}
}

// giveUp leaves word of why the boot failed and sees to it that the loader
// turns to the other slot; the caller restarts the box. It returns in bounded
// time, also when the disk does not answer any more.
func (b *boot) giveUp(cause error) {
	b.feed()
	b.tell("This start failed: " + cause.Error() + ".")
	done := make(chan struct{})
	go func() { // abandoned when it hangs: the box is restarted over it
		defer close(done)
		if b.damaged && b.alternative() {
			if err := b.demote(); err != nil {
				b.say("slot %s could not be set aside: %v", b.report.Slot, err)
			}
		}
		b.leaveWord(cause)
		unix.Sync()
	}()
	select {
	case <-done:
	case <-time.After(giveUpLimit):
		b.say("the disk does not answer")
	}
	if !b.alternative() {
		b.tell("There is no other version to start. The box tries again.")
		time.Sleep(10 * time.Second) // time to read the screen
	}
}

// leaveWord writes the cause into the slot's record on /perm, which may not be
// mounted yet.
func (b *boot) leaveWord(cause error) {
	if b.report.Disk == "" || b.report.Slot == "" {
		return
	}
	if b.perm == "" {
		const mount = "/perm"
		if err := os.MkdirAll(mount, 0o755); err != nil {
			return
		}
		if err := unix.Mount(b.disk.Disk.Partition(bootdisk.Perm), mount, "ext4", unix.MS_NOATIME, ""); err != nil {
			return
		}
		b.perm, b.log = mount, bootlog.Open(mount)
		before, _ := b.log.Read()
		b.attempt = before[b.report.Slot].Next(b.report.BootID, b.report.Version, b.root.Hash)
	}
	b.attempt.Reason, b.attempt.At = cause.Error(), time.Now().UTC()
	if err := b.log.Write(b.report.Slot, b.attempt); err != nil {
		b.say("%v", err)
	}
	_ = unix.Unmount(b.perm, 0)
}
