// Package rig holds machines to try an image on: one [Machine] interface with
// power, serial port, network, screen and disk faults, and [QEMU] behind it.
//
// Most callers fill a [Config], call [NewQEMU], [Machine].PowerOn and then
// [WaitSerial] or speak to [Machine].Address. A machine on a [LAN] can be
// scanned and dialled on every port from a network namespace of its own.
//
// The rig promises that no process it started outlives the program, however
// the program ends, and that disks, firmware variables and TPM state in
// [Config].Dir survive power cuts, [Machine] life and the program itself: a new
// machine on the same Dir is the same box. What a power cut may lose: writes
// that the guest had not flushed, and only if the disk is an overlay, because
// the overlay's tables are written behind. Other disks keep every write that
// QEMU accepted. A power cut of the host is not survived.
//
// It does not judge the guest and never touches a base image.
package rig

import (
	"context"
	"errors"
)

// Machine is one computer a test or a person can switch on.
//
// A machine is off when made. PowerOn turns it on; it turns off when the guest
// powers off, by Cut, or by a fault of the machine itself. A reset, whoever
// asks for it, leaves it on. What it stores (disks, firmware variables, TPM)
// stays through all of these.
//
// All methods may be called from any goroutine. Those that need power give
// [ErrOff] without it. A context bounds only how long the call waits: it never
// turns the machine off.
type Machine interface {
	// PowerOn applies power and returns once the processor runs. It gives
	// ErrOn if there is power already.
	PowerOn(ctx context.Context) error
	// PressPower pushes the power button for an instant (ACPI). Whether and
	// when the guest turns itself off is up to the guest; see WaitOff.
	PressPower(ctx context.Context) error
	// PressReset pushes the reset button: the processor starts anew at once,
	// disks keep their caches.
	PressReset(ctx context.Context) error
	// Cut takes the power away at once, as pulling the plug does, and returns
	// when the machine is off. Cutting a machine that is off does nothing.
	Cut() error
	// WaitOff returns nil when the machine is off, whatever turned it off, or
	// the reason if that was a fault of the machine and not of the guest.
	WaitOff(ctx context.Context) error
	// Serial is all that came out of the serial port since the machine was
	// made, over all power cycles.
	Serial() *Log
	// Address is where the host reaches a TCP port of the guest, as host:port.
	// It is the same for the machine's whole life.
	Address(guestPort int) (string, error)
	// Screenshot is the picture on the screen as a PNG file.
	Screenshot(ctx context.Context) ([]byte, error)
	// SetLink plugs the network cable in or pulls it. It works without power
	// too, and lasts until called again.
	SetLink(ctx context.Context, up bool) error
}

// ErrOff reports that the machine has no power.
var ErrOff = errors.New("machine is off")

// ErrOn reports that the machine has power already.
var ErrOn = errors.New("machine is on")

// WaitSerial waits until pattern, a regular expression, appears in m's serial
// output at or after the offset from, which is 0, [Log.Len] at some earlier
// moment, or the End of an earlier match. It gives up, quoting the last lines,
// when ctx ends or the machine turns off without having printed it.
func WaitSerial(ctx context.Context, m Machine, from int, pattern string) (Match, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		if err := m.WaitOff(ctx); ctx.Err() == nil {
			cancel(errors.Join(ErrOff, err))
		}
	}()
	match, err := m.Serial().Wait(ctx, from, pattern)
	cancel(nil)
	<-watching
	return match, err
}
