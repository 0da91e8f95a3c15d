package sampling

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is what is known about the box's clock.
type Clock struct {
	Synced bool           // it is known to be right
	Offset *time.Duration // by how much the true time was ahead when last compared; nil if unknown
	Error  *time.Duration // by how much it may be wrong at most; nil if unknown
}

// KernelClock asks the kernel. It knows only of clocks that a program steers by adjtimex
// (chrony, ntpd, systemd-timesyncd); a program that sets the clock outright, as gokrazy's
// ntp does, makes the kernel say that the clock is not synchronised.
func KernelClock() (Clock, error) {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return Clock{}, fmt.Errorf("ask the kernel: %w", err)
	}
	return parseTimex(state, &tx), nil
}

func parseTimex(state int, tx *unix.Timex) Clock {
	if state == unix.TIME_ERROR || tx.Status&unix.STA_UNSYNC != 0 {
		return Clock{}
	}
	unit := time.Microsecond
	if tx.Status&unix.STA_NANO != 0 {
		unit = time.Nanosecond
	}
	return Clock{
		Synced: true,
		Offset: new(time.Duration(tx.Offset) * unit),
		Error:  new(time.Duration(tx.Maxerror) * time.Microsecond),
	}
}

func (s *Sampler) readClock(p *pass) {
	c, err := s.cfg.Clock()
	if err != nil {
		p.miss("the clock's state", err)
		return
	}
	synced := 0.0
	if c.Synced {
		synced = 1
	}
	p.add(clockSynced, synced)
	if c.Synced && c.Offset != nil {
		p.add(clockOffset, c.Offset.Seconds())
	}
	if c.Synced && c.Error != nil {
		p.add(clockError, c.Error.Seconds())
	}
}
