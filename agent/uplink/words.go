package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// isRefusal reports whether the fleet answered, and does not want this box, or
// this box does not believe that it is the fleet.
func isRefusal(err error) bool {
	if enroll.ReasonOf(err) != "" || errors.Is(err, packets.ErrorRefusedNotAuthorised) ||
		errors.Is(err, packets.ErrorRefusedBadUsernameOrPassword) || errors.Is(err, packets.ErrorRefusedIDRejected) {
		return true
	}
	// In TLS 1.3 a server that refuses our certificate says so after the
	// handshake, with an alert.
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// words says in one sentence for the owner why the fleet at peer was not reached.
func words(peer string, err error) string {
	if person, ok := errors.AsType[*croft.Error](err); ok {
		return sentence(person.Error())
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && !dns.IsTimeout {
		return fmt.Sprintf("The name %s is not known here. Is the box's internet connection working?", dns.Name)
	}
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case isRefusal(err):
		return fmt.Sprintf("The fleet at %s does not accept this box's certificate.", peer)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("The fleet at %s takes no connections right now.", peer)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "There is no way to the internet. Is the network cable plugged in?"
	case isNet && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errSilent):
		return fmt.Sprintf("The fleet at %s does not answer.", peer)
	}
	return fmt.Sprintf("The line to the fleet at %s broke: %v.", peer, err)
}

// sentence is an error's text as a sentence.
func sentence(text string) string {
	if text == "" {
		return ""
	}
	first := text[0]
	if 'a' <= first && first <= 'z' {
		first -= 'a' - 'A'
	}
	return string(first) + text[1:] + "."
}
