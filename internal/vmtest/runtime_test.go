//go:build vm

package vmtest

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/slot"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/images/media"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// boxOn makes a box that is switched off and has the network's file on its EFI
// partition.
func boxOn(t testing.TB, n *joinfile.Network, s settings) *box {
	t.Helper()
	b := newBox(t, s)
	if err := media.SetNetwork(b.disk, n); err != nil {
		t.Fatal(err)
	}
	return b
}

// networkFile reads the file that [boxOn] wrote.
func (b *box) networkFile() []byte {
	b.t.Helper()
	f, err := os.Open(b.disk)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	volume, err := esp.OpenVolume(io.NewSectionReader(f, espAt, espSize))
	if err != nil {
		b.t.Fatal(err)
	}
	raw, err := volume.ReadFile(joinfile.Path, joinfile.MaxSize)
	if err != nil {
		b.t.Fatal(err)
	}
	return raw
}

// planted builds release 1.2.0: the good one and one more program.
func planted(t *testing.T, program string) build.Result {
	t.Helper()
	board, err := boards.Get("uefi-x86")
	if err != nil {
		t.Fatal(err)
	}
	const agent = `"github.com/croft-cloud/croft/cmd/croft-agent"`
	with := *board
	with.Gokrazy = []byte(strings.Replace(string(board.Gokrazy), agent, agent+`, "`+program+`"`, 1))
	opts := options(&with, "1.2.0", "")
	opts.Out = t.TempDir()
	result, err := build.Build(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// testimony is what the witness says of the container runtime.
type testimony struct {
	Uptime                    float64 // seconds
	PID                       int
	RSS, Own                  int64 // bytes
	Cgroup                    string
	Limits, Modules, Programs []string
	Modes                     map[string]string
}

// hear waits for the witness to speak after the offset.
func (b *box) hear(from int) (said testimony, end int) {
	b.t.Helper()
	m := b.waitSerial(from, `witness: (\{[^\r\n]*\})`)
	if err := json.Unmarshal([]byte(m.Groups[1]), &said); err != nil {
		b.t.Fatalf("the witness said %s: %v", m.Groups[1], err)
	}
	b.t.Logf("%.1f s after the kernel started croft-containerd serves as process %d with %d MiB of memory, %d of them its own",
		said.Uptime, said.PID, said.RSS>>20, said.Own>>20)
	return said, m.End
}

func TestRuntimeIsReadyAndComesBackOnABoxWithANetworkFile(t *testing.T) {
	t.Parallel()
	n := &joinfile.Network{
		Chain:  joinfile.Chain{ID: "croft-local", RPC: "http://10.0.2.2:26657", GRPC: "grpc://10.0.2.2:9090"},
		Relays: []joinfile.Relay{{Name: "relay.example"}},
	}
	want, err := n.Format()
	if err != nil {
		t.Fatal(err)
	}
	release := planted(t, "github.com/croft-cloud/croft/internal/vmtest/witness")
	b := boxOn(t, n, settings{from: release.Image, size: 6 << 30})
	must(t, "/sbin/fsck.fat", "-n", firstPartition(t, b.disk))
	b.powerOn()
	b.waitConfirmed()
	first, end := b.hear(0)
	b.checkRuntime(first)
	second, _ := b.hear(end) // the witness has killed the daemon
	b.checkRuntime(second)
	if second.PID == first.PID {
		t.Errorf("after its death croft-containerd is process %d still", first.PID)
	}
	if got := b.networkFile(); !bytes.Equal(got, want) {
		t.Errorf("the box has the network file %q, want %q", got, want)
	}
	b.shutDown()
	b.wantState(croft.SlotA, slot.Confirmed)
	if got := b.networkFile(); !bytes.Equal(got, want) {
		t.Errorf("a box that was shut down has the network file %q, want %q", got, want)
	}
}

// checkRuntime checks what leases rely on.
func (b *box) checkRuntime(said testimony) {
	b.t.Helper()
	if said.Cgroup != "0::/croft/containerd" {
		b.t.Errorf("the daemon's cgroup is %q", said.Cgroup)
	}
	for _, controller := range []string{"cpu", "memory", "pids", "io"} {
		if !slices.Contains(said.Limits, controller) {
			b.t.Errorf("cgroup controller %s is off: only %q are on", controller, said.Limits)
		}
	}
	for _, module := range append(network.Modules(), "overlay", "loop", "dm_crypt", "xts") {
		if !slices.Contains(said.Modules, module) {
			b.t.Errorf("module %s is not loaded", module)
		}
	}
	if want := []string{"croft-agent", "croft-containerd", "witness"}; !slices.Equal(said.Programs, want) {
		b.t.Errorf("of /user %q are running, want %q", said.Programs, want)
	}
	// Sandboxes run as users of their own and must get through to their files.
	for path, mode := range map[string]string{
		"/": "0755", "/run": "0755", "/run/croft": "0755", "/run/containerd": "0711", "/run/containerd/io.containerd.runtime.v2.task": "0711",
		"/perm": "0755", "/user": "0755", "/user/croft-runsc": "0755", "/user/croft-rotlog": "0755", "/user/containerd-shim-runc-v2": "0755",
		"/perm/containerd": "0700", "/run/croft/containerd.sock": "0600",
	} {
		if said.Modes[path] != mode {
			b.t.Errorf("%s has mode %s, want %s", path, said.Modes[path], mode)
		}
	}
}

// firstPartition is a copy of the disk's EFI partition.
func firstPartition(t *testing.T, disk string) string {
	t.Helper()
	path := t.TempDir() + "/esp"
	must(t, "dd", "if="+disk, "of="+path, "bs=1M", "skip=1", "count=512", "conv=sparse", "status=none")
	return path
}
