// Command containerd-shim-runc-v2 stands between croft-containerd and one
// container: it starts croft-runsc, keeps the container's pipes and its exit
// code, and lives on when the daemon is killed. It is containerd's own shim for
// runc; "runc" is whatever program BinaryName in the task's options names.
//
// Its name is not free. Containers name the runtime io.containerd.runc.v2, and
// containerd makes the program's name of that; on the box gokrazy names programs
// by the last element of their import path, which is this folder.
//
// gVisor's own shim is not used: without Kubernetes' annotations it hangs, it
// needs a capability that some machines lack, and it knows no log programs.
//
// What survives what: kill -9 of the shim ends its container; croft-containerd
// notices, cleans up and reports exit code 137.
package main

import (
	"context"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin" // the task service
	"github.com/containerd/containerd/v2/pkg/shim"
)

func main() {
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
}
