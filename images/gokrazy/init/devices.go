package main

import (
	"log"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/firmware/kernel"
)

// workloadModules is where the image keeps the modules that the box itself does
// without. ModulesReady is made when they are loaded.
const (
	workloadModules = "/usr/lib/croft/workload-modules"
	modulesReady    = "/run/croft/workload-modules"
)

// loadWorkloadModules loads what only workloads need, while the agent starts and
// with less right to the processor than it has.
func loadWorkloadModules() {
	runtime.LockOSThread() // never unlocked: the thread ends with this function
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 10); err != nil {
		log.Printf("lower priority: %v", err)
	}
	for _, err := range kernel.Load(workloadModules) {
		log.Print(err)
	}
	if err := os.WriteFile(modulesReady, nil, 0o644); err != nil {
		log.Print(err)
	}
}

// raiseLinks switches the network ports on. dhcp does so too, but later, and
// then waits for the link.
func raiseLinks(dir string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		log.Printf("open a socket: %v", err)
		return
	}
	defer unix.Close(fd)
	for _, nic := range wiredInterfaces(dir) {
		if err := raiseLink(fd, nic); err != nil {
			log.Printf("switch %s on: %v", nic, err)
		}
	}
}

func raiseLink(fd int, nic string) error {
	request, err := unix.NewIfreq(nic)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
