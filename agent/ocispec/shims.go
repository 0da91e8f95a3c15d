package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Shims are the processes of containerd's shim for a container, below a /proc.
// One that containerd does not know (it was killed while the shim began) answers
// nobody, and holds the address at which the container's next shim would listen.
func Shims(proc, namespace, id string) []int {
	var found []int
	folders, _ := filepath.Glob(filepath.Join(proc, "[0-9]*")) // the pattern is sound
	for _, folder := range folders {
		raw, _ := os.ReadFile(filepath.Join(folder, "cmdline")) // it may have ended
		args := strings.Split(string(raw), "\x00")
		follows := func(flag, value string) bool {
			i := slices.Index(args, flag)
			return i >= 0 && i+1 < len(args) && args[i+1] == value
		}
		pid, err := strconv.Atoi(filepath.Base(folder))
		if err == nil && filepath.Base(args[0]) == "containerd-shim-runc-v2" && follows("-namespace", namespace) && follows("-id", id) {
			found = append(found, pid)
		}
	}
	return found
}
