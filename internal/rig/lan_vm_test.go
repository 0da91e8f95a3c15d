//go:build vm

package rig

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"golang.org/x/sys/unix"
)

// neighbour is a guest without a machine: a second namespace whose network
// card hangs on the LAN's cable.
type neighbour struct{ LAN } // only its namespace and tap are used

const neighbourMAC = "52:54:00:12:34:56"

func newNeighbour(t *testing.T, l *LAN) *neighbour {
	t.Helper()
	n := &neighbour{}
	var err error
	if n.ns, err = newNamespace(); err != nil {
		t.Fatal(err)
	}
	err = n.Do(func() error {
		if n.tap, err = openTap("eth0"); err != nil {
			return err
		}
		return errors.Join(
			exec.Command("ip", "link", "set", "lo", "up").Run(), // Go's net package looks for ::1 once
			exec.Command("ip", "link", "set", "eth0", "address", neighbourMAC).Run(),
			exec.Command("ip", "link", "set", "eth0", "up").Run(),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	forward := func(to, from *os.File) {
		frame := make([]byte, 2048)
		for {
			size, err := from.Read(frame)
			if err != nil {
				break
			}
			if _, err := to.Write(frame[:size]); err != nil && !errors.Is(err, unix.EIO) {
				break
			}
		}
		done <- struct{}{}
	}
	go forward(n.tap, l.tap)
	go forward(l.tap, n.tap)
	t.Cleanup(func() {
		if err := errors.Join(n.tap.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		<-done
		<-done
		n.ns.Close()
	})
	return n
}

// askForAddress is what a DHCP client does, and what the system does with it.
func (n *neighbour) askForAddress() error {
	return n.Do(func() error {
		conn, err := server4.NewIPv4UDPConn("eth0", &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ClientPort})
		if err != nil {
			return err
		}
		defer conn.Close()
		mac, err := net.ParseMAC(neighbourMAC)
		if err != nil {
			return err
		}
		ask := func(m *dhcpv4.DHCPv4, err error) (*dhcpv4.DHCPv4, error) {
			if err != nil {
				return nil, err
			}
			if _, err := conn.WriteTo(m.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ServerPort}); err != nil {
				return nil, err
			}
			buf := make([]byte, 2048)
			size, _, err := conn.ReadFrom(buf)
			if err != nil {
				return nil, err
			}
			return dhcpv4.FromBytes(buf[:size])
		}
		offer, err := ask(dhcpv4.NewDiscovery(mac))
		if err != nil {
			return err
		}
		ack, err := ask(dhcpv4.NewRequestFromOffer(offer))
		if err != nil {
			return err
		}
		bits, _ := ack.SubnetMask().Size()
		addr, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
		return exec.Command("ip", "addr", "add", netip.PrefixFrom(addr, bits).String(), "dev", "eth0").Run()
	})
}

func TestScanFindsOpenPortsOfBothAddresses(t *testing.T) {
	ctx := soon(t)
	lan, err := NewLAN()
	if err != nil {
		t.Fatal(err)
	}
	n := newNeighbour(t, lan)
	if err := n.askForAddress(); err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{"10.83.0.2:80", "[::]:1234"} {
		err := n.Do(func() error {
			l, err := net.Listen("tcp", listen)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	open, err := lan.Scan(ctx, 1, 65535)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.AddrPort{
		netip.MustParseAddrPort("10.83.0.2:80"),
		netip.MustParseAddrPort("10.83.0.2:1234"),
		netip.MustParseAddrPort("[fe80::5054:ff:fe12:3456]:1234"),
	}
	if !slices.Equal(open, want) {
		t.Errorf("open ports are %v, want %v", open, want)
	}

	conn, err := lan.DialContext(ctx, "tcp", want[2].String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
