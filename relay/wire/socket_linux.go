package wire

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsentLimit is how much the kernel may hold that it has not sent yet. More
// would only make a user who says little wait behind one who says much.
const unsentLimit = 128 << 10

// tuneSocket tells the kernel to give the connection up when bytes were not
// acknowledged for that long: a beat that waits behind much data cannot see it.
func tuneSocket(c syscall.RawConn, dead time.Duration) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(dead.Milliseconds()))
		if failed == nil {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
		}
	})
	if err != nil {
		return err
	}
	return failed
}
