package ownerpage

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readGeometry asks the framebuffer behind fd.
func readGeometry(fd uintptr) (geometry, error) {
	var (
		variable [fbVarSize]byte
		fixed    [fbFixSize]byte
	)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, fbioGetVScreenInfo, uintptr(unsafe.Pointer(&variable))); errno != 0 {
		return geometry{}, fmt.Errorf("read variable screen info: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, fbioGetFScreenInfo, uintptr(unsafe.Pointer(&fixed))); errno != 0 {
		return geometry{}, fmt.Errorf("read fixed screen info: %w", errno)
	}
	return parseGeometry(variable, fixed)
}
