package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long an answer may take. What the box drops is never answered.
const patience = 4 * time.Second

// reach connects to each address, "tcp HOST:PORT" or "udp HOST:PORT", where LINK in
// the host stands for its own link. What is told as worked had an answer, be it a
// refusal: then somebody is there.
func reach(r *reporter, args []string) {
	answers := make([]Attempt, len(args))
	var wg sync.WaitGroup
	for i, arg := range args {
		wg.Go(func() {
			answers[i] = Attempt{What: arg}
			network, address, _ := strings.Cut(arg, " ")
			got, err := ask(network, strings.ReplaceAll(address, "LINK", linkName()))
			if err != nil {
				answers[i].Failed = word(err)
			}
			answers[i].Got = got
		})
	}
	wg.Wait()
	for _, a := range answers {
		r.tell(a)
	}
}

func ask(network, address string) (string, error) {
	begin := time.Now()
	c, err := net.DialTimeout(network, address, patience)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
		return word(err), nil
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", os.ErrDeadlineExceeded
		}
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(begin.Add(patience)); err != nil {
		return "", err
	}
	question := []byte("GET / HTTP/1.0\r\n\r\n")
	if network == "udp" { // the address of the root's name servers
		question = []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01")
	}
	if _, err := c.Write(question); err != nil {
		return "", err
	}
	answer := make([]byte, 80)
	n, err := c.Read(answer)
	switch {
	case n > 0:
		return fmt.Sprintf("%.80q", answer[:n]), nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return word(err), nil
	case network != "udp":
		return "connected", nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", os.ErrDeadlineExceeded
	}
	return "", err
}

// names looks names up.
func names(r *reporter, args []string) {
	for _, name := range args {
		r.try(name, func() (string, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			defer cancel()
			list, err := net.DefaultResolver.LookupHost(ctx, name)
			return strings.Join(list, " "), err
		})
	}
}

// raw opens the sockets with which packets are forged, and changes the link.
func raw(r *reporter, _ []string) {
	for _, s := range []struct {
		what                     string
		family, kind, proto, bad int
	}{
		{"a raw socket for ICMP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, 0},
		{"a raw socket for IP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, 0},
		{"a raw socket for TCP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP, 0},
		{"a raw socket for ICMPv6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, 0},
		{"a packet socket", unix.AF_PACKET, unix.SOCK_RAW, 0x0300, 0},
		{"a packet socket without headers", unix.AF_PACKET, unix.SOCK_DGRAM, 0x0300, 0},
		{"a socket to the hypervisor", unix.AF_VSOCK, unix.SOCK_STREAM, 0, 0},
		{"a socket for the kernel's ciphers", unix.AF_ALG, unix.SOCK_SEQPACKET, 0, 0},
		{"a socket for Bluetooth", unix.AF_BLUETOOTH, unix.SOCK_RAW, 0, 0},
		{"a socket for XDP", unix.AF_XDP, unix.SOCK_RAW, 0, 0},
		{"a socket for the firewall", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER, 0},
	} {
		r.try(s.what, func() (string, error) {
			fd, err := unix.Socket(s.family, s.kind, s.proto)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return "opened", nil
		})
	}
	r.try("another address on the link", func() (string, error) { return "added", addAddress(netip.MustParseAddr("10.0.2.15")) })
}

// sources sends from addresses that are not its own.
func sources(r *reporter, args []string) {
	for _, own := range args {
		for _, option := range []int{0, unix.IP_FREEBIND, unix.IP_TRANSPARENT} {
			r.try(fmt.Sprintf("a datagram from %s with option %d", own, option), func() (string, error) {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					return "", err
				}
				defer unix.Close(fd)
				if option != 0 {
					if err := unix.SetsockoptInt(fd, unix.SOL_IP, option, 1); err != nil {
						return "", err
					}
				}
				if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(own).As4()}); err != nil {
					return "", err
				}
				return "sent", unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{9, 9, 9, 9}})
			})
		}
	}
}

// scan knocks at the ports FIRST to LAST of a host and counts answers.
func scan(r *reporter, args []string) {
	first, last := number(args, 1, 1), number(args, 2, 1024)
	var mu sync.Mutex
	var open []int
	var wg sync.WaitGroup
	for port := first; port <= last; port++ {
		wg.Go(func() {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(args[0], fmt.Sprint(port)), patience)
			if err == nil {
				c.Close()
			}
			if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				mu.Lock()
				open = append(open, port)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(open)
	a := Attempt{What: fmt.Sprintf("ports %d to %d of %s", first, last, args[0]), Count: int64(last - first + 1), Failed: "no port answers"}
	if len(open) > 0 {
		a.Failed, a.Got = "", fmt.Sprint(open)
	}
	r.tell(a)
}

// linkName is the name of the first link that is no loop.
func linkName() string {
	links, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 {
			return l.Name
		}
	}
	return "none"
}

// addAddress asks the kernel for another address on the first link that is no loop.
func addAddress(a netip.Addr) error {
	own, err := net.InterfaceByName(linkName())
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	four := a.As4()
	message := []byte{
		32, 0, 0, 0, unix.RTM_NEWADDR, 0, unix.NLM_F_REQUEST | unix.NLM_F_ACK, unix.NLM_F_CREATE >> 8, 1, 0, 0, 0, 0, 0, 0, 0,
		unix.AF_INET, 24, 0, 0, byte(own.Index), 0, 0, 0,
		8, 0, unix.IFA_LOCAL, 0, four[0], four[1], four[2], four[3],
	}
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 || answer[4] != unix.NLMSG_ERROR {
		return errors.New("no answer")
	}
	if code := int32(uint32(answer[16]) | uint32(answer[17])<<8 | uint32(answer[18])<<16 | uint32(answer[19])<<24); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}
