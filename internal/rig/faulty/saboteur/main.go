// Saboteur is planted into the root of test images. It breaks the box in the way
// the kernel argument "saboteur" names:
//
//	port   holds TCP port 80, so that the owner page cannot listen
//	kill   kills the agent as soon as it has started, again and again
//	hang   takes all processors for good, as a driver in a loop would
//
// Without the argument it does nothing.
package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Fprintln(os.Stderr, "saboteur:", err)
		os.Exit(1)
	}
	for field := range strings.FieldsSeq(string(line)) {
		switch field {
		case "saboteur=port":
			holdPort(":80")
		case "saboteur=kill":
			killForEver("/user/croft-agent")
		case "saboteur=hang":
			hang()
		}
	}
	for {
		time.Sleep(time.Hour) // gokrazy starts what ends again
	}
}

// holdPort takes a port and keeps it. If the agent was faster, it is killed once;
// it starts again a second later.
func holdPort(address string) {
	for {
		if l, err := net.Listen("tcp", address); err == nil {
			for {
				if conn, err := l.Accept(); err == nil {
					conn.Close()
				}
			}
		}
		for _, pid := range processes("/user/croft-agent") {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// processes are the running processes of a program.
func processes(program string) (pids []int) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != program {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killForEver kills every process of the program, looking ten times a second.
func killForEver(program string) {
	for {
		for _, pid := range processes(program) {
			// Not at once: the agent is to get as far as a real one that crashes.
			time.Sleep(300 * time.Millisecond)
			_ = unix.Kill(pid, unix.SIGABRT)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// hang spins on every processor at the highest real-time priority, without the
// share the kernel keeps for others.
func hang() {
	// Wait until the agent is up, so that it is the agent that stops answering.
	for {
		if conn, err := net.Dial("tcp", "127.0.0.1:80"); err == nil {
			conn.Close()
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	_ = os.WriteFile("/proc/sys/kernel/sched_rt_runtime_us", []byte("-1"), 0)
	// Since Linux 6.12 the share for others is a "fair server" per processor.
	_ = unix.Mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "")
	servers, _ := filepath.Glob("/sys/kernel/debug/sched/fair_server/cpu*/runtime")
	for _, file := range servers {
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, "saboteur:", err)
		}
	}
	for range runtime.NumCPU() + 2 {
		go func() {
			runtime.LockOSThread()
			attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 99}
			if err := unix.SchedSetAttr(0, attr, 0); err != nil {
				fmt.Fprintln(os.Stderr, "saboteur:", err)
			}
			for { //nolint:staticcheck // SA5002: to spin is what it is for
			}
		}()
	}
}
