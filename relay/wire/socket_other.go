//go:build !linux

package wire

import (
	"syscall"
	"time"
)

// tuneSocket does nothing: the beats find a dead path alone, only later when
// much data waits.
func tuneSocket(syscall.RawConn, time.Duration) error { return nil }
