// Command croft-runsc is gVisor's runsc as the box runs it: the commands the
// shim needs, under flags that its caller cannot loosen.
//
// containerd-shim-runc-v2 calls it in place of runc (BinaryName in the shim's
// options is its absolute path). It is called as
//
//	croft-runsc [--root FOLDER] [--log FILE] [--log-format json] COMMAND …
//
// with create, start, state, kill, delete, exec, events, ps, pause, resume,
// update, list, wait and features; boot, gofer and umount it calls itself.
// Not in it: run, do, checkpoint and restore, debug and profile, metrics, the
// installers, and the 47 MB of a prebuilt program that checkpoints need.
//
// policy holds the flags that decide how strong the sandbox is. They are put
// before the caller's; a caller that names one of them with another value is
// refused. runsc lets annotations of a container (dev.gvisor.…) change flags and
// mounts; a container with one of them, or with hooks, which are programs that
// runsc would start outside, is not created. The agent passes no annotation of a
// tenant and no hook anyway. Should one get through, runsc would hand the
// changed flag to the sandbox it starts, and that is this program again.
//
// One annotation counts: cloud.croft.root is how many bytes a container may write
// to its root. Who writes more gets ENOSPC. Without it the file behind the root
// grows until the lease's disk is full, and the sandbox, which has that file
// mapped, ends by SIGBUS.
//
// The version of gVisor is the module's, pinned in go.mod; newer ones want a
// sentry of their own and a C program beside runsc that no Go module contains
// (gvisor.dev/issue/13718), so read that before moving the pin.
//
// Sandboxes live on when the shim or containerd is killed. What they wrote to
// their root lies in a file in the upper folder of their snapshot and is lost
// with the sandbox; what they wrote to volumes is the volume's.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
)

// rule is a flag of runsc with the only value it may have.
type rule struct{ flag, value string }

// policy is how strong the sandbox is.
var policy = []rule{
	{"platform", "systrap"},                // needs no hardware and no module; KVM is untested on our boards
	{"network", "sandbox"},                 // gVisor's own network stack on the replica's link
	{"gofer-network-namespace", "new"},     // an empty one for each; the default is one for all, mounted for ever
	{"net-raw", "false"},                   // no raw sockets: nobody forges packets
	{"allow-packet-socket-write", "false"}, // likewise
	{"host-uds", "none"},                   // no Unix socket of the host, bound into a volume or not
	{"host-fifo", "none"},                  // likewise
	{"character-device-policy", "emulated-only"},
	{"overlay2", rootOverlay}, // writes to the root go to one file in the snapshot, on the lease's disk
	{"directfs", "true"},      // the sentry opens files itself, in its own empty root
	{"oci-seccomp", "true"},   // a filter in the spec counts inside too
	{"ignore-cgroups", "false"},
	{"systemd-cgroup", "false"},
	{"rootless", "false"},
	{"allow-flag-override", "false"}, // annotations change next to nothing; see above for the rest
	{"allow-rootfs-tar-annotation", "false"},
	{"debug", "false"}, // its log would hold what tenants read and write
	{"strace", "false"},
	{"profile", "false"}, // loosens seccomp
	{"reproduce-nat", "false"},
	{"nvproxy-allowed-driver-capabilities", "utility,compute"},
	{"TESTONLY-unsafe-nonroot", "false"},
	// The sentry starts from this file. Its other values want programs beside it.
	{"sidecar-usage-policy", "LEGACY_DEPRECATED_SLOW_EMBEDDED_FALLBACK"},
}

// rootOverlay may be followed by sizeOption and a number of bytes.
const (
	rootOverlay    = "root:self"
	sizeOption     = ",size="
	rootAnnotation = "cloud.croft.root"
)

// allows tells whether a flag with a rule may have a value.
func (r rule) allows(value string) bool {
	if r.value == rootOverlay {
		if bytes, sized := strings.CutPrefix(value, rootOverlay+sizeOption); sized {
			_, err := strconv.ParseUint(bytes, 10, 63)
			return err == nil
		}
	}
	return value == r.value
}

// enforce returns args with the policy before them, or an error if args, up to
// the command, contradict it, or if the container to create does.
func enforce(args []string) ([]string, error) {
	known := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(known)
	i := 0
	for ; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "-")
		if !isFlag || name == "" || name == "-" {
			break // the command; what follows is its own
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(name, "-"), "=")
		if !hasValue {
			f := known.Lookup(name)
			if f == nil { // gVisor's own calls write --flag=value
				return nil, fmt.Errorf("flag --%s is unknown", name)
			}
			value = "true"
			if b, ok := f.Value.(interface{ IsBoolFlag() bool }); (!ok || !b.IsBoolFlag()) && i+1 < len(args) {
				i++
				value = args[i]
			}
		}
		for _, r := range policy {
			if name == r.flag && !r.allows(value) {
				return nil, fmt.Errorf("flag --%s=%s is refused: on the box it is always %s", name, value, r.value)
			}
		}
	}
	root := ""
	if i < len(args) && args[i] == "create" {
		var err error
		if root, err = checkSpec(valueOf(args[i+1:], "bundle")); err != nil {
			return nil, err
		}
	}
	enforced := make([]string, 0, len(policy)+len(args))
	for _, r := range policy {
		value := r.value
		if value == rootOverlay && root != "" {
			value += sizeOption + root
		}
		enforced = append(enforced, "--"+r.flag+"="+value)
	}
	return append(enforced, args...), nil
}

// report writes err where the caller looks for it: to its log, as JSON, or else to
// stderr, which the shim does not read.
func report(args []string, err error) {
	line, _ := json.Marshal(map[string]string{"level": "error", "msg": err.Error(), "time": time.Now().UTC().Format(time.RFC3339)})
	if f, openErr := os.OpenFile(valueOf(args, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); openErr == nil {
		fmt.Fprintf(f, "%s\n", line)
		f.Close()
	}
	fmt.Fprintln(os.Stderr, "croft-runsc:", err)
}

// valueOf is what args say for a flag; empty if nothing.
func valueOf(args []string, wanted string) string {
	for i, arg := range args {
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if name != wanted || !strings.HasPrefix(arg, "-") {
			continue
		}
		if hasValue {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// checkSpec refuses a container whose annotations speak to gVisor, or that wants
// programs run outside. It returns how many bytes the root may take, or nothing.
func checkSpec(bundle string) (root string, err error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json")) // no bundle: the working folder
	if err != nil {
		return "", fmt.Errorf("read the container's specification: %w", err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Hooks       json.RawMessage   `json:"hooks"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", fmt.Errorf("read the container's specification: %w", err)
	}
	if spec.Hooks != nil {
		return "", errors.New("hooks are refused: on the box no container has programs run outside of its sandbox")
	}
	for key := range spec.Annotations {
		if strings.HasPrefix(key, "dev.gvisor.") {
			return "", fmt.Errorf("annotation %s is refused: on the box no container instructs its sandbox", key)
		}
	}
	root = spec.Annotations[rootAnnotation]
	if _, err := strconv.ParseUint(root, 10, 63); err != nil && root != "" {
		return "", fmt.Errorf("annotation %s=%q is no number of bytes", rootAnnotation, root)
	}
	return root, nil
}

// asksVersion tells that all the caller typed is --version, as Docker and people do.
func asksVersion(args []string) bool {
	return len(args) == 1 && (args[0] == "--version" || args[0] == "-version")
}

// describe is the answer to --version, in runc's form. gVisor's own variable for
// it is set by its build system only.
func describe() string {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "gvisor.dev/gvisor" {
				version = m.Version
			}
		}
	}
	return fmt.Sprintf("runsc version %s\nspec: %s\n", version, specs.Version)
}
