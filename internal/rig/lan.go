package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
)

// LAN is a network with one cable, for one machine: a network namespace with
// a tap device and a DHCP server. It leads nowhere: the guest gets an address,
// a router and a name server, and neither answers. From it every port of the
// guest can be reached, as an enemy in the owner's house would. It needs root.
// Nothing of it is left when it is closed or the program ends.
type LAN struct {
	ns    *os.File // the namespace
	tap   *os.File // the cable's end that QEMU gets
	index int      // of the tap device in the namespace
	dhcp  net.PacketConn
	done  chan struct{} // closed when the DHCP server has ended

	mu     sync.Mutex
	guest  net.HardwareAddr // guarded by mu; nil until the guest has its address
	leased chan struct{}    // guarded by mu; closed when guest is set
}

const lanTap = "tap0"

var (
	lanHost  = netip.MustParseAddr("10.83.0.1")
	lanGuest = netip.MustParseAddr("10.83.0.2")
	lanHost6 = netip.MustParseAddr("fe80::1")
)

const lanBits = 24

// NewLAN makes a network for one machine; put it into [Config].LAN.
func NewLAN() (*LAN, error) { return newLAN("") }

// newLAN offers bootFile to be booted from the network. Only a test wants it:
// firmware takes no address where it finds nothing to boot.
func newLAN(bootFile string) (_ *LAN, err error) {
	if os.Geteuid() != 0 {
		return nil, &croft.Error{
			Kind:   croft.KindRefused,
			Err:    errors.New("making a network namespace and a tap device needs root"),
			Remedy: "run as root",
		}
	}
	ip, err := lookPath("ip")
	if err != nil {
		return nil, err
	}
	l := &LAN{done: make(chan struct{}), leased: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = l.closeFiles() // err says why there is no LAN
			err = fmt.Errorf("make LAN: %w", err)
		}
	}()
	if l.ns, err = newNamespace(); err != nil {
		return nil, err
	}
	err = l.Do(func() error {
		if l.tap, err = openTap(lanTap); err != nil {
			return err
		}
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"addr", "add", netip.PrefixFrom(lanHost, lanBits).String(), "dev", lanTap},
			{"link", "set", lanTap, "up"},
			{"addr", "add", netip.PrefixFrom(lanHost6, 64).String(), "dev", lanTap, "nodad"},
		} {
			if said, err := exec.Command(ip, args...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(said)))
			}
		}
		tap, err := net.InterfaceByName(lanTap)
		if err != nil {
			return err
		}
		l.index = tap.Index
		l.dhcp, err = server4.NewIPv4UDPConn(lanTap, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort})
		return err
	})
	if err != nil {
		return nil, err
	}
	go l.serveDHCP(bootFile)
	return l, nil
}

// Do runs f on a thread within the network. Sockets that f makes stay in it,
// goroutines that f starts do not. f must return: it must not call t.FailNow
// or panic.
func (l *LAN) Do(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread has left its namespace and must end.
		runtime.LockOSThread()
		if err := unix.Setns(int(l.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// DialContext connects from within the network, for a [net/http.Transport]
// say. The address must be a literal one; an IPv6 link-local address needs no
// zone.
func (l *LAN) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial within LAN: %w", err)
	}
	var conn net.Conn
	err = l.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, l.zoned(target).String())
		return err
	})
	return conn, err
}

// zoned gives a link-local address the zone it needs, by number: names are
// looked up in a cache of the whole program.
func (l *LAN) zoned(a netip.AddrPort) netip.AddrPort {
	if !a.Addr().Is6() || !a.Addr().IsLinkLocalUnicast() || a.Addr().Zone() != "" {
		return a
	}
	return netip.AddrPortFrom(a.Addr().WithZone(strconv.Itoa(l.index)), a.Port())
}

// Guest waits until the guest has got its address, and returns that and the
// link-local one that goes with its network card.
func (l *LAN) Guest(ctx context.Context) (v4, v6 netip.Addr, err error) {
	l.mu.Lock()
	leased := l.leased
	l.mu.Unlock()
	select {
	case <-leased:
	case <-ctx.Done():
		return v4, v6, fmt.Errorf("wait until guest asks for an address: %w", context.Cause(ctx))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return lanGuest, linkLocal(l.guest), nil
}

// linkLocal is the address that Linux gives a card with this MAC (RFC 4291,
// modified EUI-64).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:], mac[:3])
	copy(a[13:], mac[3:6])
	a[8] ^= 2
	return netip.AddrFrom16(a)
}

// Scan finds the open TCP ports of the guest, from first to last, on its IPv4
// and its IPv6 link-local address. It waits until the guest answers on both.
// A guest that refuses connections is scanned in some fifteen seconds, one that
// drops them silently in half an hour.
func (l *LAN) Scan(ctx context.Context, first, last int) ([]netip.AddrPort, error) {
	v4, v6, err := l.Guest(ctx)
	if err != nil {
		return nil, fmt.Errorf("scan ports: %w", err)
	}
	var open []netip.AddrPort
	for _, addr := range []netip.Addr{v4, v6} {
		found, err := l.scan(ctx, addr, first, last)
		if err != nil {
			return nil, fmt.Errorf("scan ports of %s: %w", addr, err)
		}
		open = append(open, found...)
	}
	return open, nil
}

const (
	scanners     = 128             // connections at a time
	scanTimeout  = 4 * time.Second // two lost packets are sent again within it
	scanPatience = time.Minute     // until the guest answers at all
)

func (l *LAN) scan(ctx context.Context, addr netip.Addr, first, last int) ([]netip.AddrPort, error) {
	if first < 1 || last > 65535 || first > last {
		return nil, usage(fmt.Errorf("ports %d to %d: want 1 to 65535", first, last))
	}
	at := func(port int) netip.AddrPort { return netip.AddrPortFrom(addr, uint16(port)) }

	// An unreachable guest must not pass for one with all ports closed.
	deadline := time.Now().Add(scanPatience)
	for {
		verdict, err := l.probe(ctx, at(first))
		if verdict != portSilent && err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(errors.New("the guest does not answer"), err)
		}
	}

	ports := make(chan int)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		open []netip.AddrPort
	)
	for range min(scanners, last-first+1) {
		wg.Go(func() {
			err := l.Do(func() error {
				for port := range ports {
					verdict, err := l.probeHere(ctx, at(port))
					if err != nil {
						return err
					}
					if verdict == portOpen {
						mu.Lock()
						open = append(open, at(port))
						mu.Unlock()
					}
				}
				return nil
			})
			if err != nil {
				cancel(err)
			}
		})
	}
feed:
	for port := first; port <= last; port++ {
		select {
		case ports <- port:
		case <-ctx.Done():
			break feed
		}
	}
	close(ports)
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(open, netip.AddrPort.Compare)
	return open, nil
}

type verdict int

const (
	portSilent verdict = iota // no answer
	portClosed
	portOpen
)

func (l *LAN) probe(ctx context.Context, target netip.AddrPort) (v verdict, err error) {
	err = l.Do(func() error {
		v, err = l.probeHere(ctx, target)
		return err
	})
	return v, err
}

// probeHere tries one port. The thread must be within the network.
func (l *LAN) probeHere(ctx context.Context, target netip.AddrPort) (verdict, error) {
	dialer := net.Dialer{Timeout: scanTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", l.zoned(target).String())
	var timeout net.Error
	switch {
	case err == nil:
		conn.Close()
		return portOpen, nil
	case ctx.Err() != nil:
		return portSilent, context.Cause(ctx)
	case errors.Is(err, unix.ECONNREFUSED):
		return portClosed, nil
	case errors.As(err, &timeout) && timeout.Timeout():
		return portSilent, nil
	}
	return portSilent, err
}

// serveDHCP answers until Close.
func (l *LAN) serveDHCP(bootFile string) {
	defer close(l.done)
	buf := make([]byte, 4096)
	for {
		n, peer, err := l.dhcp.ReadFrom(buf)
		if err != nil {
			return
		}
		request, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || len(request.ClientHWAddr) != 6 {
			continue
		}
		reply, err := dhcpReply(request, bootFile)
		if err != nil || reply == nil {
			continue
		}
		if request.ClientIPAddr.IsUnspecified() {
			peer = &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}
		}
		if _, err := l.dhcp.WriteTo(reply.ToBytes(), peer); err != nil {
			continue // the guest asks again
		}
		if reply.MessageType() == dhcpv4.MessageTypeAck {
			l.mu.Lock()
			if l.guest == nil {
				close(l.leased)
			}
			l.guest = request.ClientHWAddr
			l.mu.Unlock()
		}
	}
}

// dhcpReply answers a request, or gives nil if it wants no answer.
func dhcpReply(request *dhcpv4.DHCPv4, bootFile string) (*dhcpv4.DHCPv4, error) {
	answer := dhcpv4.MessageTypeOffer
	switch request.MessageType() {
	case dhcpv4.MessageTypeDiscover:
	case dhcpv4.MessageTypeRequest:
		answer = dhcpv4.MessageTypeAck
		wanted := request.RequestedIPAddress()
		if wanted == nil || wanted.IsUnspecified() {
			wanted = request.ClientIPAddr
		}
		if !wanted.Equal(lanGuest.AsSlice()) {
			answer = dhcpv4.MessageTypeNak
		}
	default:
		return nil, nil
	}
	host := net.IP(lanHost.AsSlice())
	modifiers := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(answer),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(host)),
	}
	if answer != dhcpv4.MessageTypeNak {
		modifiers = append(modifiers,
			dhcpv4.WithYourIP(lanGuest.AsSlice()),
			dhcpv4.WithServerIP(host),
			dhcpv4.WithNetmask(net.CIDRMask(lanBits, 32)),
			dhcpv4.WithOption(dhcpv4.OptRouter(host)),
			dhcpv4.WithOption(dhcpv4.OptDNS(host)),
			dhcpv4.WithLeaseTime(3600),
		)
		if bootFile != "" {
			modifiers = append(modifiers, dhcpv4.WithOption(dhcpv4.OptBootFileName(bootFile)))
		}
	}
	return dhcpv4.NewReplyFromRequest(request, modifiers...)
}

// Close ends the DHCP server and removes the network. Turn the machine on it
// off first.
func (l *LAN) Close() error {
	err := l.closeFiles()
	<-l.done
	return err
}

func (l *LAN) closeFiles() error {
	var errs []error
	if l.dhcp != nil {
		errs = append(errs, l.dhcp.Close())
	}
	for _, f := range []*os.File{l.tap, l.ns} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// newNamespace makes a network namespace that lives as long as the file.
func newNamespace() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked, see Do
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, fmt.Errorf("make network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	return r.f, r.err
}

// openTap makes the tap device called name in the thread's namespace. It goes
// when the file and QEMU's copy of it are closed.
func openTap(name string) (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap device: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
