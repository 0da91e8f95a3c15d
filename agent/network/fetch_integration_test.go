//go:build integration

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	croft "github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
)

// fetchEnv makes this program dial what it names, and end with whether that
// answered: the process that stands for containerd.
const fetchEnv = "CROFT_NETWORK_TEST_FETCH"

func fetchMain(what string) int {
	network, to, _ := strings.Cut(what, " ")
	if network == "name" {
		q := new(dns.Msg)
		q.SetQuestion("good.example.", dns.TypeA)
		if _, _, err := (&dns.Client{Timeout: patience}).Exchange(q, to); err != nil {
			return 3
		}
		return 0
	}
	c, err := net.DialTimeout(network, to, patience)
	if errors.Is(err, unix.ECONNREFUSED) {
		return 2 // what the rules answer with
	}
	if err != nil {
		return 3
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return 3
	}
	return 0
}

// fetch runs the stand-in in a cgroup, from its first instruction on.
func fetch(t *testing.T, group, what string) int {
	t.Helper()
	dir, err := os.Open(group)
	must(t, err)
	defer dir.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), fetchEnv+"="+what)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	must(t, err)
	return 0
}

// newGroup makes a cgroup; only its emptiness lets it go again, and processes of
// a group linger a moment.
func newGroup(t *testing.T, path string) {
	t.Helper()
	must(t, os.Mkdir(path, 0o755))
	t.Cleanup(func() { dropGroup(t, path) })
}

func dropGroup(t *testing.T, path string) {
	t.Helper()
	eventually(t, "cgroup removed", func() bool {
		err := os.Remove(path)
		return err == nil || errors.Is(err, os.ErrNotExist)
	})
}

func TestDownloadsReachPublicAddressesOnly(t *testing.T) {
	w := newWorld(t)
	root := filepath.Join(w.dir, "cgroup")
	must(t, os.Mkdir(root, 0o755))
	must(t, unix.Mount("cgroup2", root, "cgroup2", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(root, 0)) })
	parent := filepath.Join(root, fmt.Sprintf("croft-test-%d", os.Getpid()))
	newGroup(t, parent)
	shallow, deep, free := filepath.Join(parent, "shallow"), filepath.Join(parent, "deep", "containerd"), filepath.Join(parent, "free")
	newGroup(t, free)
	newGroup(t, shallow)
	newGroup(t, filepath.Dir(deep))
	w.listen(w.outside, ":5000")
	w.listen("", ":81")
	a := w.agent(journal.NewMemory(), func(c *Config) {
		c.Cgroups, c.Fetchers, c.Check = root, []string{deep, shallow}, time.Hour
		c.Allowed = []netip.AddrPort{netip.MustParseAddrPort(hostLAN + ":5000"), netip.MustParseAddrPort("[" + hostLAN6 + "]:5000")}
	})
	ctx := t.Context()
	must(t, a.SetLease(ctx, keyA, shop(Full)))
	web := w.attach(a, id(keyA, "web", 0), Options{})
	w.listen(web.NetNS, ":80")

	var missing *croft.Error
	if err := a.GuardFetchers(ctx); !errors.As(err, &missing) || missing.Kind != croft.KindMissing {
		t.Fatalf("a cgroup that does not exist: %v", err)
	}
	newGroup(t, deep)
	must(t, a.GuardFetchers(ctx))
	below := filepath.Join(deep, "below")
	newGroup(t, below)

	forbidden := []target{
		{"owner's router", "tcp4", routerLAN + ":80"},
		{"owner's neighbour", "tcp4", hostLAN + ":80"},
		{"owner's neighbour by public IPv6", "tcp6", "[" + hostLAN6 + "]:80"},
		{"another network of the owner's delegation", "tcp6", "[" + otherVLAN6 + "]:80"},
		{"router's port of names by another service", "tcp4", hostLAN + ":53"},
		{"metadata service", "tcp4", "169.254.169.254:80"},
		{"metadata service by IPv6", "tcp6", "[fd00:ec2::254]:80"},
		{"private 10/8", "tcp4", "10.1.2.3:80"},
		{"LAN through NAT64", "tcp6", "[64:ff9b::c0a8:4d09]:80"},
		{"the box by loopback", "tcp4", "127.0.0.1:81"},
		{"the box by loopback and IPv6", "tcp6", "[::1]:81"},
		{"the box by its LAN address", "tcp4", boxLAN + ":81"},
		{"the box by its IPv6 address", "tcp6", "[" + box6 + "]:81"},
		{"a replica", "tcp4", web.Address.Addr().String() + ":80"},
		{"a mapped private address", "tcp", "[::ffff:" + hostLAN + "]:80"},
		{"another port of a mirror", "tcp4", hostLAN + ":8443"},
	}
	for _, group := range []string{shallow, deep, below} {
		t.Run("from "+filepath.Base(group), func(t *testing.T) {
			for _, x := range forbidden {
				if got := fetch(t, group, x.network+" "+x.to); got != 2 {
					t.Errorf("%s: %s %s ended with %d, want 2: refused", x.name, x.network, x.to, got)
				}
				if group != deep {
					break // the group decides, not the address
				}
			}
			for _, what := range []string{"tcp4 " + internet + ":80", "tcp6 [" + internet6 + "]:80", "tcp4 " + hostLAN + ":5000", "tcp6 [" + hostLAN6 + "]:5000", "name " + routerLAN + ":53"} {
				if got := fetch(t, group, what); got != 0 {
					t.Errorf("%s ended with %d, want an answer", what, got)
				}
			}
		})
	}
	t.Run("others of the box are not restricted", func(t *testing.T) {
		for _, x := range forbidden {
			if strings.HasSuffix(x.to, ":53") {
				continue // nobody listens there
			}
			if got := fetch(t, free, x.network+" "+x.to); got != 0 {
				t.Errorf("%s: %s %s ended with %d", x.name, x.network, x.to, got)
			}
		}
	})
	t.Run("allowed addresses change at once", func(t *testing.T) {
		must(t, a.SetAllowed(ctx, []netip.AddrPort{netip.MustParseAddrPort(hostLAN + ":8443")}))
		if got := fetch(t, deep, "tcp4 "+hostLAN+":8443"); got != 0 {
			t.Errorf("the new mirror ended with %d", got)
		}
		if got := fetch(t, deep, "tcp4 "+hostLAN+":5000"); got != 2 {
			t.Errorf("the old mirror ended with %d", got)
		}
	})
	t.Run("a group made anew is guarded", func(t *testing.T) {
		dropGroup(t, below)
		dropGroup(t, deep)
		must(t, os.Mkdir(deep, 0o755))
		must(t, a.GuardFetchers(ctx))
		if got := fetch(t, deep, "tcp4 "+hostLAN+":80"); got != 2 {
			t.Errorf("the neighbour ended with %d", got)
		}
	})
	t.Run("the periodic check finds a group by itself", func(t *testing.T) {
		a.kill()
		dropGroup(t, shallow)
		b := w.agent(journal.NewMemory(), func(c *Config) { c.Cgroups, c.Fetchers = root, []string{shallow} })
		must(t, b.SetAllowed(context.WithoutCancel(ctx), nil)) // it runs
		must(t, os.Mkdir(shallow, 0o755))
		eventually(t, "guarded", func() bool { return fetch(t, shallow, "tcp4 "+hostLAN+":80") == 2 })
		select {
		case e := <-b.events:
			if e.Kind == RulesRestored {
				t.Error("a new group was taken for somebody who changes rules")
			}
		default:
		}
	})
}
