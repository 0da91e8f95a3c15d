// Command guest is what the integration test runs in a sandbox: one word says
// what to do.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	word := ""
	if len(os.Args) > 1 {
		word = os.Args[1]
	}
	switch word {
	case "report": // what a program sees of itself
		dir, _ := os.Getwd()
		host, _ := os.Hostname()
		hosts, _ := os.ReadFile("/etc/hosts")
		resolver, _ := os.ReadFile("/etc/resolv.conf")
		status, _ := os.ReadFile("/proc/self/status")
		groups, _ := os.Getgroups()
		seen := map[string]any{
			"args": os.Args[1:], "dir": dir, "uid": os.Getuid(), "gid": os.Getgid(), "groups": groups,
			"env": os.Environ(), "host": host, "hosts": string(hosts), "resolver": string(resolver),
			"root": write("/written"), "volume": write("/data/written"), "readonly": write("/fixed/written"), "etc": write("/etc/hosts"),
		}
		for _, line := range strings.Split(string(status), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && (name == "CapEff" || name == "NoNewPrivs") {
				seen[name] = strings.TrimSpace(value)
			}
		}
		line, _ := json.Marshal(seen)
		fmt.Println(string(line))
		fmt.Fprintln(os.Stderr, "and this is the other stream")
	case "fork": // without end
		fmt.Println("forking")
		for {
			if _, err := syscall.ForkExec("/guest", []string{"/guest", "deaf"}, &syscall.ProcAttr{}); err != nil {
				time.Sleep(time.Millisecond)
			}
		}
	case "attack": // all that must not work
		attack()
	case "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "eat": // memory, without end
		var all [][]byte
		for {
			part := make([]byte, 1<<20)
			for i := range part {
				part[i] = byte(i)
			}
			all = append(all, part)
			_ = all
		}
	case "fill": // a folder with files
		part, written := make([]byte, 1<<16), 0
		f, err := os.Create(filepath.Join(os.Args[2], "filled"))
		for err == nil {
			var n int
			n, err = f.Write(part)
			written += n
		}
		fmt.Println(written>>20, errors.Is(err, syscall.ENOSPC), err)
	case "wait": // for a signal
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("waiting")
		fmt.Println("got", <-signals)
	case "deaf": // to all but SIGKILL
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("waiting")
		time.Sleep(time.Hour)
	case "until": // a file is there, then exit with the code in it
		for {
			if raw, err := os.ReadFile(os.Args[2]); err == nil {
				code, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
				os.Exit(code)
			}
			time.Sleep(20 * time.Millisecond)
		}
	case "chatter": // without end
		for {
			fmt.Println(strings.Repeat("words ", 1000))
		}
	case "processes": // that this one can see, with their arguments
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			if line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && len(line) > 0 && strings.Trim(e.Name(), "0123456789") == "" {
				fmt.Println(strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
			}
		}
	case "upper": // input to output
		in := bufio.NewReader(os.Stdin)
		for {
			line, err := in.ReadString('\n')
			fmt.Print(strings.ToUpper(line))
			if err == io.EOF {
				fmt.Fprintln(os.Stderr, "end of input")
				os.Exit(7)
			}
		}
	case "size": // of the terminal, whenever it changes
		signals := make(chan os.Signal, 8)
		signal.Notify(signals, syscall.SIGWINCH)
		in := bufio.NewReader(os.Stdin)
		go func() {
			for range signals {
				fmt.Println("changed")
			}
		}()
		line, _ := in.ReadString('\n')
		fmt.Printf("read %q\n", line)
	default:
		fmt.Println("hello from the sandbox")
	}
}

func write(path string) string {
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		return err.Error()
	}
	return "written"
}
