package crowd_test

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/agent/crowd"
)

func TestClientOf(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, remote, want string }{
		{"an IPv4 address", "192.0.2.1:80", "192.0.2.1"},
		{"an IPv4 address in IPv6", "[::ffff:192.0.2.1]:80", "192.0.2.1"},
		{"an IPv6 address is its network", "[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2::/64"},
		{"a zone does not make another client", "[fe80::1%eth0]:80", "fe80::/64"},
		{"what is no address is itself", "pipe", "pipe"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := crowd.ClientOf(tc.remote); got != tc.want {
				t.Errorf("ClientOf(%q) = %q, want %q", tc.remote, got, tc.want)
			}
		})
	}
}

func TestQuota(t *testing.T) {
	t.Parallel()
	q := crowd.NewQuota(3, 2)
	for i, step := range []struct {
		name string
		want bool
	}{{"a", true}, {"a", true}, {"a", false}, {"b", true}, {"c", false}} {
		if got := q.Take(step.name); got != step.want {
			t.Errorf("step %d: Take(%s) = %v", i, step.name, got)
		}
	}
	q.Give("a")
	if !q.Take("c") {
		t.Error("a place that was given back is not free")
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := crowd.NewRates(2, 5)
		count := func(name string, n int) (allowed int) {
			for range n {
				if r.Allow(name) {
					allowed++
				}
			}
			return allowed
		}
		if got := count("a", 10); got != 5 {
			t.Errorf("%d of 10 at once, want 5", got)
		}
		if got := count("b", 1); got != 1 {
			t.Error("one name's haste counts for another")
		}
		time.Sleep(time.Second)
		if got := count("a", 10); got != 2 {
			t.Errorf("%d a second later, want 2", got)
		}
		for i := range 3000 {
			r.Allow(fmt.Sprint(i))
		}
		if got := count("a", 1); got != 0 {
			t.Error("a few thousand other names make it forget one that is over its limit")
		}
	})
}

func TestListenClosesWhatIsTooMuch(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := crowd.Listen(inner, crowd.NewQuota(10, 1))
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial()
	first := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("a second connection of one client stays open")
	}
	first.Close()
	first.Close() // gives its place back once
	dial()
	defer (<-accepted).Close()
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("a connection that was closed twice gave two places back")
	}
}

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g crowd.Gate
		if !g.Enter() {
			t.Fatal("a new gate is shut")
		}
		shut := false
		go func() {
			g.Shut()
			shut = true
		}()
		synctest.Wait()
		if shut || g.Enter() {
			t.Error("the gate did not wait, or lets somebody in meanwhile")
		}
		g.Leave()
		synctest.Wait()
		if !shut {
			t.Error("the gate waits for nobody")
		}
	})
}
