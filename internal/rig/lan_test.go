package rig

import (
	"net"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestDHCP(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	for _, tc := range []struct {
		name   string
		with   []dhcpv4.Modifier
		want   dhcpv4.MessageType
		silent bool
	}{
		{"a discovery is offered the address", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)}, dhcpv4.MessageTypeOffer, false},
		{"a request for it is granted", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(lanGuest.AsSlice()))}, dhcpv4.MessageTypeAck, false},
		{"a renewal is granted", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(lanGuest.AsSlice())}, dhcpv4.MessageTypeAck, false},
		{"a request for another address is refused", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 1, 7)))}, dhcpv4.MessageTypeNak, false},
		{"a release needs no answer", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)}, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			request, err := dhcpv4.New(append(tc.with, dhcpv4.WithHwAddr(mac))...)
			if err != nil {
				t.Fatal(err)
			}
			reply, err := dhcpReply(request, "")
			if err != nil {
				t.Fatal(err)
			}
			if reply == nil || tc.silent {
				if (reply == nil) != tc.silent {
					t.Errorf("reply is %v", reply)
				}
				return
			}
			if got := reply.MessageType(); got != tc.want {
				t.Errorf("reply is %s, want %s", got, tc.want)
			}
			if given := !reply.YourIPAddr.IsUnspecified(); given != (tc.want != dhcpv4.MessageTypeNak) {
				t.Errorf("reply gives address %s", reply.YourIPAddr)
			}
		})
	}
}

func TestLinkLocalAddressFollowsTheMAC(t *testing.T) {
	got := linkLocal(net.HardwareAddr{0x52, 0x54, 0x00, 0x12, 0x34, 0x56})
	if want := netip.MustParseAddr("fe80::5054:ff:fe12:3456"); got != want {
		t.Errorf("linkLocal = %s, want %s", got, want)
	}
}
