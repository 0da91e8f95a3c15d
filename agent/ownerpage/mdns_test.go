package ownerpage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
)

// closer tells of its end.
type closer func()

func (c closer) Close() error { c(); return nil }

func TestMDNSFollowsTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu      sync.Mutex // guards all below
			logged  bytes.Buffer
			now     []network
			listErr error
			openErr error
			history []string
		)
		m, err := NewMDNS(MDNSConfig{Name: "croft-k7qm", Log: slog.New(slog.NewTextHandler(&logged, nil))})
		if err != nil {
			t.Fatal(err)
		}
		m.networks = func() ([]network, error) {
			mu.Lock()
			defer mu.Unlock()
			return now, listErr
		}
		m.answer = func(n []network) (answerer, error) {
			mu.Lock()
			defer mu.Unlock()
			if openErr != nil {
				return nil, openErr
			}
			what := fmt.Sprint(names(n), n[0].addrs)
			history = append(history, "open "+what)
			return closer(func() {
				mu.Lock()
				defer mu.Unlock()
				history = append(history, "close "+what)
			}), nil
		}
		eth0 := func(addrs ...string) []network {
			return []network{{net.Interface{Index: 2, Name: "eth0", MTU: 1500}, addrs}}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		step := func(name string, want ...string) {
			t.Helper()
			mu.Unlock()
			time.Sleep(11 * time.Second) // two looks
			mu.Lock()
			if !slices.Equal(history, want) {
				t.Errorf("%s: %q, want %q", name, history, want)
			}
			history = nil
		}
		mu.Lock()
		step("no network at first")
		now = eth0("10.0.0.2/24")
		step("a network comes", "open eth0[10.0.0.2/24]")
		step("nothing changes")
		listErr = errors.New("busy")
		step("the list cannot be read")
		listErr = nil
		now = eth0("10.0.0.3/24")
		step("the address changes", "close eth0[10.0.0.2/24]", "open eth0[10.0.0.3/24]")
		now = nil
		step("the cable is pulled", "close eth0[10.0.0.3/24]")
		openErr = errors.New("port is taken")
		now = eth0("10.0.0.4/24")
		step("answering does not work")
		openErr = nil
		step("answering works again", "open eth0[10.0.0.4/24]")
		mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if want := []string{"close eth0[10.0.0.4/24]"}; !slices.Equal(history, want) {
			t.Errorf("at the end: %q, want %q", history, want)
		}
		for _, trouble := range []string{"busy", "port is taken"} {
			if n := strings.Count(logged.String(), trouble); n != 1 {
				t.Errorf("%q is logged %d times", trouble, n)
			}
		}
	})
}

// TestMDNSAnswers asks a real question on the loopback interface.
func TestMDNSAnswers(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatalf("find the loopback interface: %v", err)
	}
	m, err := NewMDNS(MDNSConfig{Name: "croft-test-k7qm"})
	if err != nil {
		t.Fatal(err)
	}
	m.loopback = true
	server, err := m.open([]network{{*lo, []string{"127.0.0.1/8"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}()

	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ipv4.NewPacketConn(c).SetMulticastInterface(lo); err != nil {
		t.Fatal(err)
	}
	ask := func(name string, to net.IP) (dnsmessage.Message, error) {
		question := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: 7},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		}
		raw, err := question.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo(raw, &net.UDPAddr{IP: to, Port: 5353}); err != nil {
			t.Fatal(err)
		}
		var answer dnsmessage.Message
		buf := make([]byte, 2048)
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return answer, err
		}
		return answer, answer.Unpack(buf[:n])
	}
	group := net.IPv4(224, 0, 0, 251)

	if err := c.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := ask("croft-test-k7qm.local.", group)
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Answers) != 1 || answer.Answers[0].Body.(*dnsmessage.AResource).A != [4]byte{127, 0, 0, 1} {
		t.Errorf("answer = %+v", answer)
	}

	for _, tc := range []struct {
		name, question string
		to             net.IP
	}{
		{"a question for another name", "croft-test-aaaa.local.", group},
		{"a question sent straight at the box", "croft-test-k7qm.local.", net.IPv4(127, 0, 0, 1)},
	} {
		if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if answer, err := ask(tc.question, tc.to); err == nil {
			t.Errorf("%s is answered: %+v", tc.name, answer)
		}
	}
}

func TestHomeNetworksCanMulticast(t *testing.T) {
	networks, err := homeNetworks()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		if n.Flags&net.FlagMulticast == 0 || n.Flags&net.FlagLoopback != 0 || len(n.addrs) == 0 {
			t.Errorf("network %+v is listed", n)
		}
	}
}
