// Croft-init is the first program of the box: the only one in the initramfs of
// every unified kernel image. It loads the kernel modules, arms the watchdog,
// opens the verified root that its own command line names, makes /perm ready
// and hands over to PID 1 of that root.
//
// It writes to /perm (its boot record), to the partition table when the disk
// grew, and, only when a confirmed slot cannot be booted any more, to the name
// of that slot's UKI. Whatever goes wrong it restarts the box: the boot loader
// then counts, and takes the other slot in the end.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "croft-init: this is the first program of a croft box; it only runs as PID 1 of the initramfs")
		os.Exit(2)
	}
	b := &boot{}
	err := b.run() // returns only when the box cannot be booted
	b.giveUp(err)
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		time.Sleep(time.Second)
	}
}
