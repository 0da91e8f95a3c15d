package ocispec

import (
	"os"
	"syscall"

	"github.com/croft-cloud/croft/agent/lease"
)

// GiveVolumes makes the replica's root, which is that user of the machine, the
// owner of its volumes; 0: ids are not mapped, and it is already. With mapped ids
// the machine's root is nobody in there; what it owns is a new volume.
func GiveVolumes(mounts []lease.Mount, root uint32) error {
	if root == 0 {
		return nil
	}
	for _, m := range mounts {
		if m.Tmpfs != 0 || m.ReadOnly {
			continue
		}
		info, err := os.Lstat(m.Source)
		if err != nil {
			return err
		}
		owner, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.IsDir() || owner.Uid != 0 {
			continue
		}
		if err := os.Lchown(m.Source, int(root), int(root)); err != nil {
			return err
		}
	}
	return nil
}
