//go:build vm

package vmtest

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// The hostile lease: a service that does its deeds, and one whose deeds end it.
const (
	hostileImage = "hostile/app"
	hostileSDL   = `
version: "2.0"
services:
  evil:
    image: hostile/app
    params: {storage: {data: {mount: /data}}}
    expose: [{port: 3000, as: 80, to: [{global: true}]}]
  bomb:
    image: hostile/app
    expose: [{port: 3000, as: 80, to: [{global: true}], http_options: {read_timeout: 20000}}, {port: 3001, to: [{service: evil}]}]
profiles:
  compute:
    evil:
      resources:
        cpu: {units: 0.8}
        memory: {size: 256Mi}
        storage: [{size: 16Mi}, {name: data, size: 8Mi, attributes: {persistent: true, class: beta1}}]
    bomb: {resources: {cpu: {units: 0.3}, memory: {size: 128Mi}, storage: {size: 8Mi}}}
  placement: {dc: {pricing: {evil: {denom: uakt, amount: 1000}, bomb: {denom: uakt, amount: 1000}}}}
deployment: {evil: {dc: {profile: evil, count: 1}}, bomb: {dc: {profile: bomb, count: 1}}}
`
	hostileRoot = 16 << 20
	hostileDisk = (32 + 2*12) << 20 // what the lease pays for and two services' logs
	sandboxCPU  = 0.1 + 0.8 + 0.3
)

// attempt is what the hostile program tells of one thing that it tried.
type attempt struct {
	What, Failed, Got string
	Count             int64
}

// siege is a box with a tenant who behaves and one who does not.
type siege struct {
	*provider
	neighbour *tenant.Record
	evil      *tenant.Record
	lease     akash.LeaseID
	uris      map[string]string // by service
	settled   sight             // with the neighbour alone
	quiet     sight             // before the first deed
	size      int64             // bytes of the box's disk on this machine, then
	caught    atomic.Int64      // connections and datagrams to the owner's machine
	traps     []string          // its addresses, as a box sees them
	visitor   *http.Client
	program   string // the hostile program's file
}

func newSiege(t *testing.T) *siege {
	t.Helper()
	s := &siege{provider: newProvider(t), uris: map[string]string{}}
	s.visitor = s.world.Relay.Client()
	s.visitor.Timeout = 5 * time.Minute
	s.setTraps(t)
	s.program = filepath.Join(t.TempDir(), "hostile")
	if err := outside.Build(t.Context(), repository, "./internal/vmtest/hostile", s.program); err != nil {
		t.Fatal(err)
	}
	if _, err := s.world.Registry.Put(outside.Image{Name: hostileImage, Program: s.program}); err != nil {
		t.Fatal(err)
	}
	s.neighbour, _ = s.deploy()
	s.settled = s.look()
	begin := time.Now()
	var err error
	if s.evil, err = s.me.Run(t.Context(), []byte(hostileSDL), func(step tenant.Progress) { t.Logf("%6.1f s  %s", time.Since(begin).Seconds(), step.Step) }); err != nil {
		t.Fatal(err)
	}
	s.lease = s.evil.LeaseIDs()[0]
	status, err := s.me.Status(t.Context(), s.lease)
	if err != nil {
		t.Fatal(err)
	}
	for service, state := range status.Services {
		if len(state.URIs) == 0 {
			t.Fatalf("service %s has no address: %+v", service, state)
		}
		s.uris[service] = "http://" + strings.TrimPrefix(state.URIs[0], "http://")
	}
	s.quiet, s.size = s.look(), s.blocks(t)
	return s
}

// setTraps listens on this machine, which the box sees as its network's gateway.
func (s *siege) setTraps(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			s.caught.Add(1)
			c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			_, from, err := packets.ReadFrom(make([]byte, 100))
			if err != nil {
				return
			}
			s.caught.Add(1)
			_, _ = packets.WriteTo([]byte("here"), from) // the sender may have gone
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		packets.Close()
		<-done
		<-done
	})
	for _, address := range []net.Addr{listener.Addr(), packets.LocalAddr()} {
		c, err := net.Dial(address.Network(), address.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		c.Close()
		_, port, err := net.SplitHostPort(address.String())
		if err != nil {
			t.Fatal(err)
		}
		s.traps = append(s.traps, address.Network()+" "+net.JoinHostPort(string(outside.FromGuest), port))
	}
	s.setInternet(t)
	s.until("the traps work", func() error {
		if n := s.caught.Load(); n < 2 {
			return fmt.Errorf("%d were caught", n)
		}
		return nil
	})
	s.caught.Store(0)
}

// internet is an address of the internet that is this machine's for a while.
const internet = "9.9.9.9"

// setInternet listens at the internet's address: mail servers are traps, and a web
// server shows that the box can be left at all.
func (s *siege) setInternet(t *testing.T) {
	t.Helper()
	must(t, "ip", "address", "replace", internet+"/32", "dev", "lo")
	t.Cleanup(func() { must(t, "ip", "address", "delete", internet+"/32", "dev", "lo") })
	var serving sync.WaitGroup
	t.Cleanup(serving.Wait) // after the listeners are closed
	for port, trap := range map[string]bool{"25": true, "465": true, "587": true, "443": false} {
		listener, err := net.Listen("tcp", net.JoinHostPort(internet, port))
		if err != nil {
			t.Fatal(err)
		}
		serving.Go(func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				if trap {
					s.caught.Add(1)
				}
				c.Close()
			}
		})
		t.Cleanup(func() { listener.Close() })
	}
}

// blocks is what the box's disk takes on this machine.
func (s *siege) blocks(t *testing.T) int64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(s.disk, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Blocks * 512
}

// visit asks for a page with as much patience as a deed may need.
func (s *siege) visit(ctx context.Context, page string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		return "", err
	}
	resp, err := s.visitor.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.300s", resp.Status, body)
	}
	return string(body), err
}

// deed has a service of the hostile lease do something. An error says that nothing
// came back, as when the deed was the service's end.
func (s *siege) deed(t *testing.T, base string, deed string, args ...string) ([]attempt, error) {
	t.Helper()
	page, err := s.visit(t.Context(), base+"/do?"+url.Values{"deed": {deed}, "arg": args}.Encode())
	if err != nil {
		return nil, fmt.Errorf("deed %s: %w", deed, err)
	}
	return attempts(page)
}

func attempts(text string) ([]attempt, error) {
	var list []attempt
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var a attempt
		err := d.Decode(&a)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, fmt.Errorf("read what the deed says: %w: %.300s", err, text)
		}
		list = append(list, a)
	}
}

// evilDoes is a deed of the service that lives on.
func (s *siege) evilDoes(t *testing.T, deed string, args ...string) []attempt {
	t.Helper()
	list, err := s.deed(t, s.uris["evil"], deed, args...)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		t.Fatalf("deed %s tried nothing", deed)
	}
	return list
}

// allFailed checks that nothing worked but what matches one of the patterns: what an
// enclosure's own kernel grants, and nobody outside sees.
func allFailed(t *testing.T, list []attempt, harmless ...string) {
	t.Helper()
	var own []string
	reasons := map[string]int{}
	for _, a := range list {
		switch {
		case a.Failed != "":
			reasons[a.Failed]++
		case slices.ContainsFunc(harmless, func(p string) bool { return regexp.MustCompile("^(" + p + ")$").MatchString(a.What) }):
			own = append(own, a.What)
		default:
			t.Errorf("%q worked: %s %d", a.What, a.Got, a.Count)
		}
	}
	t.Logf("of %d attempts these failed: %v; within the enclosure worked: %q", len(list), reasons, own)
}

// during runs a case. The neighbour is visited all the while.
func (s *siege) during(t *testing.T, name string, do func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		defer func(outer testing.TB) { s.t = outer }(s.t)
		s.t = t
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		var visits int
		var slowest time.Duration
		go func() {
			defer close(done)
			for {
				begin := time.Now()
				page, err := s.visit(t.Context(), s.neighbour.URIs[0])
				if err != nil || !strings.Contains(page, "hello from the image") {
					t.Errorf("the neighbour's page after %v: %.200s, %v", time.Since(begin), page, err)
				}
				visits++
				slowest = max(slowest, time.Since(begin))
				select {
				case <-ctx.Done():
					return
				case <-time.After(300 * time.Millisecond):
				}
			}
		}()
		begin := time.Now()
		func() {
			defer func() {
				cancel()
				<-done
				if t.Failed() {
					s.explain(t)
				}
			}()
			do(t)
		}()
		took := time.Since(begin)
		s.unharmed(t)
		t.Logf("%.1f s; the neighbour was visited %d times, the slowest visit took %.1f s", took.Seconds(), visits, slowest.Seconds())
	})
}

// explain tells what may be behind a failure.
func (s *siege) explain(t *testing.T) {
	events, err := s.me.Events(t.Context(), s.lease)
	t.Logf("the hostile lease's events: %v, %v", events, err)
	for line := range strings.Lines(s.Serial().Text()) {
		if strings.Contains(line, "out of memory") {
			t.Log(line)
		}
	}
}

var broken = regexp.MustCompile(`Kernel panic|Oops|BUG: |(?m)Out of memory: Killed|blocked for more than|EXT4-fs error`)

// unharmed checks the box from outside.
func (s *siege) unharmed(t *testing.T) {
	t.Helper()
	if page, err := s.visit(t.Context(), s.neighbour.URIs[0]); err != nil || !strings.Contains(page, "hello from the image") {
		t.Errorf("the neighbour's page is %.200s, %v", page, err)
	}
	now := s.look()
	for _, program := range []string{"croft-agent", "croft-containerd"} {
		if before, after := s.quiet.pids(program), now.pids(program); len(before) != 1 || !slices.Equal(before, after) {
			t.Errorf("%s was process %d and is %d", program, before, after)
		}
	}
	for _, program := range now.programs() {
		if !slices.Contains(s.quiet.programs(), program) {
			t.Errorf("%s runs on the box", program)
		}
	}
	was, is := s.quiet, now
	was.Processes, is.Processes = nil, nil
	if added := leftover(was, is); len(added) > 0 {
		t.Errorf("the box has got %q", added)
	}
	if available := now.Memory["MemAvailable"]; available < 256<<20 {
		t.Errorf("%d MiB of memory are available", available>>20)
	}
	if n := s.caught.Load(); n > 0 {
		t.Errorf("%d connections reached the owner's machine", n)
	}
	if found := broken.FindString(s.Serial().Text()); found != "" {
		t.Errorf("the box's kernel says %q", found)
	}
}

func (s sight) pids(program string) []int {
	var list []int
	for _, p := range s.Processes {
		if p.Program == program {
			list = append(list, p.PID)
		}
	}
	slices.Sort(list)
	return list
}

// sandboxes is how long all enclosures have worked, in seconds.
func (s sight) sandboxes() (sum float64) {
	for _, p := range s.Processes {
		if p.Program == "croft-runsc" {
			sum += p.CPU
		}
	}
	return sum
}

// addresses are the replicas' ends of the links, of which the host's are known.
func (s sight) replicas(t *testing.T) (links, replicas []netip.Addr) {
	t.Helper()
	for _, text := range s.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		if prefix.Bits() == 32 || prefix.Bits() == 31 || prefix.Bits() == 30 || prefix.Bits() == 127 || prefix.Bits() == 126 {
			links, replicas = append(links, prefix.Addr()), append(replicas, prefix.Addr().Next())
		}
	}
	return links, replicas
}

// event waits for one of the hostile lease.
func (s *siege) event(t *testing.T, what string, is func(gatewayclient.Event) bool) gatewayclient.Event {
	t.Helper()
	var found gatewayclient.Event
	s.until(what, func() error {
		events, err := s.me.Events(t.Context(), s.lease)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(events, is)
		if i < 0 {
			return fmt.Errorf("events are %v", events)
		}
		found = events[i]
		return nil
	})
	return found
}

// again waits until a service answers as another program than before.
func (s *siege) again(t *testing.T, service, born string) {
	t.Helper()
	s.until(service+" runs again", func() error {
		page, err := s.visit(t.Context(), s.uris[service]+"/")
		if err == nil && page == born {
			err = errors.New("it has not ended")
		}
		return err
	})
}

func (s *siege) born(t *testing.T, service string) string {
	t.Helper()
	page, err := s.visit(t.Context(), s.uris[service]+"/")
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// A tenant who tries everything gets nothing but what it pays for, and nobody else
// notices.
func TestAHostileTenantHarmsNobody(t *testing.T) {
	t.Parallel()
	s := newSiege(t)
	s.reachesNobody(t)
	s.staysInside(t)
	s.takesNoMore(t)
	s.during(t, "its lease ends and leaves nothing, whatever lay in its volume", func(t *testing.T) {
		s.leave(t, s.evil)
	})
	s.quiet = s.settled
	s.during(t, "images that are snares are refused or run like any other", func(t *testing.T) { s.judgeSnares(t) })
	t.Run("the owner finds in the journal who scanned", func(t *testing.T) {
		s.cut()
		if !s.deniedOf(t, "evil") {
			t.Error("it does not say")
		}
	})
}

// leave closes a deployment and waits until nothing of it is left on the box.
func (s *siege) leave(t *testing.T, record *tenant.Record) {
	t.Helper()
	if _, err := s.me.Close(t.Context(), record.ID(), nil); err != nil {
		t.Error(err)
		return
	}
	s.until("nothing is left", func() error {
		if left := leftover(s.settled, s.look()); len(left) > 0 {
			return fmt.Errorf("left are %q", left)
		}
		return nil
	})
}

// reachesNobody is what the network refuses.
func (s *siege) reachesNobody(t *testing.T) {
	links, replicas := s.quiet.replicas(t)
	if len(links) < 4 { // of both families, for the neighbour and the hostile services
		t.Fatalf("the box has the addresses %q", s.quiet.Addresses)
	}
	var box, others []string
	var neighbour string
	for _, link := range links {
		for _, port := range []string{"80", "9999", "22"} {
			box = append(box, "tcp "+net.JoinHostPort(link.String(), port))
		}
		box = append(box, "udp "+net.JoinHostPort(link.String(), "123"))
	}
	box = append(box, "tcp 10.0.2.15:80", "tcp 10.0.2.15:9999", "udp 10.0.2.15:53", "tcp [fe80::1%LINK]:80", "tcp [fe80::1%LINK]:9999")
	own := s.evilDoes(t, "names", "evil", "bomb")
	for _, replica := range replicas {
		if !slices.ContainsFunc(own, func(a attempt) bool { return strings.Contains(a.Got, replica.String()) }) {
			others = append(others, "tcp "+net.JoinHostPort(replica.String(), "3000"), "udp "+net.JoinHostPort(replica.String(), "3000"))
			if replica.Is4() {
				neighbour = replica.String()
			}
		}
	}
	network := s.world.Network(outside.FromGuest)
	owner := slices.Clone(s.traps)
	for _, address := range []string{network.Chain.RPC, network.Chain.GRPC, network.Chain.Faucet, network.Mirrors["docker.io"][0]} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		owner = append(owner, "tcp "+u.Host)
	}
	owner = append(owner, "tcp "+network.Relays[0].Address, "tcp 10.0.2.2:80", "tcp 10.0.2.3:53", "udp 10.0.2.3:53", "tcp 192.168.1.1:80", "tcp 172.16.0.1:80", "tcp 10.0.0.1:80",
		"tcp [fec0::2]:80", "udp [fec0::3]:53", "udp 10.0.2.255:53", "udp 255.255.255.255:67", "udp 224.0.0.251:5353")
	groups := []struct {
		name      string
		addresses []string
	}{
		{"the box, by its addresses on every link", box},
		{"the owner's network: its gateway, its name server, its machines", owner},
		{"the metadata of clouds", []string{"tcp 169.254.169.254:80", "udp 169.254.169.254:53", "tcp [fd00:ec2::254]:80", "tcp 100.100.100.200:80", "tcp 169.254.170.2:80"}},
		{"another tenant's replicas", others},
		{"mail servers", []string{"tcp " + internet + ":25", "tcp " + internet + ":465", "tcp " + internet + ":587", "tcp 10.0.2.2:25"}},
		{"programs of the box behind the loop", []string{"tcp 127.0.0.1:80", "tcp 127.0.0.1:9999", "tcp 127.1.2.3:80", "udp 127.0.0.53:53", "tcp [::1]:80", "tcp [::ffff:127.0.0.1]:80", "tcp 0.0.0.0:80"}},
	}
	if len(others) < 4 {
		t.Errorf("the neighbour's addresses are not among %v", replicas)
	}
	var all []string
	for _, g := range groups {
		all = append(all, g.addresses...)
	}
	told := map[string]attempt{}
	s.during(t, "its own services answer and have names", func(t *testing.T) {
		for _, a := range append(own, s.evilDoes(t, "reach", "tcp bomb:3000", "udp bomb:3001", "tcp bomb:3001")...) {
			told[a.What] = a
		}
		if told["evil"].Failed != "" || told["bomb"].Failed != "" || told["tcp bomb:3001"].Failed != "" {
			t.Errorf("names and the exposed port: %+v", told)
		}
	})
	s.during(t, "it knocks at every door", func(t *testing.T) {
		if a := s.evilDoes(t, "reach", "tcp "+internet+":443")[0]; a.Failed != "" {
			t.Errorf("the internet: %+v", a)
		}
		for _, a := range s.evilDoes(t, "reach", all...) {
			told[a.What] = a
		}
	})
	for _, g := range groups {
		t.Run("it does not reach "+g.name, func(t *testing.T) {
			for _, address := range g.addresses {
				a, tried := told[address]
				// Its own loop refuses: nobody but itself is there.
				if mine := strings.Contains(g.name, "loop") && a.Got == "ECONNREFUSED"; !tried || a.Failed == "" && !mine {
					t.Errorf("%s: %+v", address, a)
				}
			}
		})
	}
	s.during(t, "a scan of the box, the owner's machine and the neighbour finds no port", func(t *testing.T) {
		for _, host := range []string{links[0].String(), "10.0.2.2", "10.0.2.15", neighbour} {
			allFailed(t, s.evilDoes(t, "scan", host, "1", "150"))
		}
	})
	s.during(t, "raw sockets, packet sockets and other addresses for its link are refused", func(t *testing.T) {
		allFailed(t, s.evilDoes(t, "raw"))
	})
	s.during(t, "it sends from no address but its own", func(t *testing.T) {
		allFailed(t, s.evilDoes(t, "sources", "10.0.2.15", "10.0.2.2", replicas[0].String(), internet))
	})
}

// staysInside is what an enclosure must not let out.
func (s *siege) staysInside(t *testing.T) {
	for _, c := range []struct {
		name, deed string
		args       []string
		harmless   []string
	}{
		{
			"the kernel's settings in /proc and /sys stay as they are, and its secrets secret", "settings", nil,
			[]string{"/proc/sys/kernel/yama/ptrace_scope", "/proc/sys/net/ipv4/ip_forward", "/proc/(self|1)/oom_score_adj", "read /proc/1/(maps|environ)", "read /sys/module"},
		},
		{"devices of the box cannot be opened, made or not", "devices", []string{"/data"}, []string{"(open /dev/|make and open /.*/hostile-)(fuse|tun)"}},
		{"it mounts nothing: no disk of the box, no kernel's file system, nothing of its own", "mounts", nil, nil},
		{
			"in namespaces of its own it finds nothing of the box, and no release agent (CVE-2022-0492)", "spaces", nil,
			[]string{"a namespace for time", "users of its own", "as root of users of its own, (make mounts shared|open a file system)"},
		},
		{"system calls that change the machine or were holes before are refused", "calls", nil, []string{"read the kernel's log", "join a session of keys"}},
		{"it takes hold of no process but its own", "ptrace", nil, []string{"attach to process 1"}}, // which is its first program
		{"neither the runtime's program (CVE-2019-5736) nor a folder it left open (CVE-2024-21626) leads out", "runtime", nil, nil},
		{"no socket of the box's programs is there", "sockets", nil, nil},
		{"set-user-id programs make nobody root, and capabilities are few", "privileges", []string{"/tmp", "/data", "/dev/shm"}, nil},
	} {
		s.during(t, c.name, func(t *testing.T) { allFailed(t, s.evilDoes(t, c.deed, c.args...), c.harmless...) })
	}
	s.during(t, "after all that it reaches its own service still", func(t *testing.T) {
		if a := s.evilDoes(t, "reach", "tcp bomb:3001")[0]; a.Failed != "" {
			t.Errorf("%+v", a)
		}
	})
}

// takesNoMore is what limits bound.
func (s *siege) takesNoMore(t *testing.T) {
	bomb := s.born(t, "bomb")
	s.during(t, "a memory bomb ends its own service, and an event says so", func(t *testing.T) {
		// It goes on when the visitor is sent away for want of an answer.
		page, err := s.visit(t.Context(), s.uris["bomb"]+"/memory?mib=4096")
		if err == nil {
			t.Errorf("it got %s", page)
		}
		t.Logf("%s, %v", page, err)
		e := s.event(t, "the pause", func(e gatewayclient.Event) bool {
			return e.Reason == "BackOff" && strings.HasPrefix(e.Object.Name, "bomb")
		})
		t.Logf("%+v", e)
		e = s.event(t, "the event", func(e gatewayclient.Event) bool { return e.Reason == "OOMKilled" })
		if !strings.Contains(e.Note, "128") || !strings.HasPrefix(e.Object.Name, "bomb") {
			t.Errorf("the event is %+v", e)
		}
		t.Logf("%+v", e)
	})
	s.during(t, "processor time is what was leased, however many threads ask", func(t *testing.T) {
		before := s.look()
		s.evilDoes(t, "spin", "8")
		after := s.look()
		worked, passed := after.sandboxes()-before.sandboxes(), after.Uptime-before.Uptime
		t.Logf("all enclosures worked %.1f s in %.1f s", worked, passed)
		if most := sandboxCPU*passed*1.15 + 1; worked > most {
			t.Errorf("all enclosures worked %.1f s in %.1f s, want at most %.1f s", worked, passed, most)
		}
	})
	s.during(t, "files in memory are bounded", func(t *testing.T) {
		list := s.evilDoes(t, "shared", "96", "/dev/shm")
		if list[0].Failed != "ENOSPC" || list[0].Count > 64<<20 {
			t.Errorf("%+v", list)
		}
	})
	s.during(t, "threads and processes of one service leave the box its own", func(t *testing.T) {
		processes := len(s.look().Processes)
		t.Logf("%+v, %+v", s.evilDoes(t, "threads", "200"), s.evilDoes(t, "forks", "20"))
		if got, err := s.me.Shell(t.Context(), s.lease, "evil", "/bin/app", "whoami"); err != nil || !strings.Contains(got, "user 0 in /") {
			t.Errorf("a shell afterwards: %q, %v", got, err)
		}
		if now := len(s.look().Processes); now > processes+512 {
			t.Errorf("there were %d processes and are %d", processes, now)
		}
	})
	s.during(t, "the service that ran out of memory runs again", func(t *testing.T) { s.again(t, "bomb", bomb) })
	s.during(t, "a fork bomb ends its own service at worst", func(t *testing.T) {
		list, err := s.deed(t, s.uris["bomb"], "forks")
		if err == nil && len(list) > 0 && list[0].Failed == "" {
			t.Errorf("it got %+v", list)
		}
		t.Logf("%+v, %v", list, err)
	})
	s.fillsDisks(t)
	s.during(t, "the service with the fork bomb runs again", func(t *testing.T) {
		s.until("it answers", func() error { _, err := s.visit(t.Context(), s.uris["bomb"]+"/"); return err })
	})
}

// fillsDisks writes as much as it can wherever it can.
func (s *siege) fillsDisks(t *testing.T) {
	full := func(t *testing.T, deed, folder, count string, most int64) {
		t.Helper()
		list := s.evilDoes(t, deed, folder, count)
		if list[0].Failed != "ENOSPC" || list[0].Count == 0 || list[0].Count > most {
			t.Errorf("%+v", list)
		}
		t.Logf("%s: %d until %s", deed, list[0].Count, list[0].Failed)
		if page, err := s.visit(t.Context(), strings.TrimSuffix(s.neighbour.URIs[0], "/")+"/write?mib=2"); err != nil {
			t.Errorf("the neighbour writes: %s, %v", page, err)
		}
	}
	s.during(t, "a full root is the lease's own matter", func(t *testing.T) {
		s.evilDoes(t, "clear", "/tmp") // other deeds have left things there
		full(t, "fill", "/tmp", "400", hostileRoot)
		s.evilDoes(t, "clear", "/tmp")
	})
	s.during(t, "a full volume is the lease's own matter", func(t *testing.T) {
		full(t, "fill", "/data", "400", hostileDisk)
		s.evilDoes(t, "clear", "/data")
	})
	s.during(t, "a flood of log lines is kept short", func(t *testing.T) {
		if page, err := s.visit(t.Context(), s.uris["evil"]+"/flood?mib=16"); err != nil {
			t.Errorf("%s, %v", page, err)
		}
	})
	s.during(t, "links and names that are snares stay in the volume", func(t *testing.T) {
		for _, a := range s.evilDoes(t, "links", "/data") {
			if a.Failed != "" {
				t.Logf("%+v", a)
			}
		}
	})
	s.during(t, "so many files that no more fit are the lease's own matter", func(t *testing.T) {
		full(t, "inodes", "/data", "40000", hostileDisk) // they stay: closing the lease has to do with them
	})
	s.during(t, "the box's disk has not grown by more than the lease's", func(t *testing.T) {
		const others = 64 << 20 // journals, the neighbour, the chain's blocks
		if grown := s.blocks(t) - s.size; grown > hostileDisk+others {
			t.Errorf("it has grown by %d MiB", grown>>20)
		} else {
			t.Logf("it has grown by %d MiB", grown>>20)
		}
	})
}

// deniedOf looks into the journal of a box that is off for the event about a service.
func (s *siege) deniedOf(t *testing.T, service string) bool {
	t.Helper()
	dir := t.TempDir()
	must(t, "mount", "-t", "ext4", "-o", fmt.Sprintf("loop,offset=%d", permAt), s.disk, dir)
	defer must(t, "umount", dir)
	j, err := journal.Open(journal.Config{Path: filepath.Join(dir, "croft", "journal")})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	found := false
	for e := range j.Events(0) {
		if string(e.Kind) == "network_denied" {
			t.Logf("%s", e.Fields)
			found = found || strings.Contains(string(e.Fields), `"service":"`+service+`"`)
		}
	}
	return found
}

// snare is an OCI image that is meant to harm whoever unpacks or starts it.
type snare struct {
	service string
	config  func(*v1.Config)
	files   []tar.Header        // beside bin/app
	runs    bool                // it is a program like any other in the end
	deeds   map[string][]string // if it runs
}

func snares() []snare {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}
	}
	return []snare{
		{service: "workdir", config: func(c *v1.Config) { c.WorkingDir = "/proc/self/fd/8" }, deeds: map[string][]string{"runtime": nil}},
		{service: "volumes", runs: true, config: func(c *v1.Config) {
			c.Volumes = map[string]struct{}{"/proc": {}, "/sys": {}, "/dev": {}, "/": {}, "/perm": {}}
			c.User = "1000:1000"
		}, deeds: map[string][]string{"runtime": nil}},
		{service: "devices", files: []tar.Header{
			{Typeflag: tar.TypeBlock, Name: "vda", Mode: 0o666, Devmajor: 254},
			{Typeflag: tar.TypeBlock, Name: "vdb", Mode: 0o666, Devmajor: 253},
			{Typeflag: tar.TypeChar, Name: "mem", Mode: 0o666, Devmajor: 1, Devminor: 1},
			{Typeflag: tar.TypeChar, Name: "kmsg", Mode: 0o666, Devmajor: 1, Devminor: 11},
			{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o666},
		}, deeds: map[string][]string{"open": {"/vda", "/vdb", "/mem", "/kmsg"}}},
		{service: "climbing", files: []tar.Header{
			link("up", "/perm"), file("up/hostile-climbed"), link("far", "../../../../../../../../perm/croft"), file("far/hostile-climbed"),
			file("../../../../../../perm/hostile-climbed"),
			{Typeflag: tar.TypeLink, Name: "journal", Linkname: "../../../../../../perm/croft/journal"},
		}, deeds: map[string][]string{"runtime": nil, "open": {"/journal"}}},
		{service: "linked", files: []tar.Header{link("data", "/proc/1/root/perm"), link("etc", "/proc/self/cwd")}, deeds: map[string][]string{"runtime": nil}},
		{service: "accounts", config: func(c *v1.Config) { c.User = "nobody-like-that" }, files: []tar.Header{
			{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o755}, link("etc/passwd", "/dev/zero"), link("etc/group", "../../../../../../dev/zero"),
		}},
		{service: "environ", config: func(c *v1.Config) { c.Env = append(c.Env, "LONG="+strings.Repeat("x", 1<<20)) }},
		{service: "missing", config: func(c *v1.Config) { c.Entrypoint = []string{"/no/such/program"} }},
		{service: "somebody", config: func(c *v1.Config) { c.User = "4294967295" }},
	}
}

// build makes the image.
func (n snare) build(program []byte) (v1.Image, error) {
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	all := append([]tar.Header{{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, {Typeflag: tar.TypeReg, Name: "bin/app", Mode: 0o755, Size: int64(len(program))}}, n.files...)
	for _, h := range all {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if h.Size > 0 {
			if _, err := w.Write(program); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: []string{"/bin/app"}, Env: []string{"PATH=/bin"}}
	if n.config != nil {
		n.config(&config.Config)
	}
	return mutate.ConfigFile(image, config)
}

// push puts an image into a repository of a registry, as its newest.
func push(ctx context.Context, repository string, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	layer, err := layers[0].Compressed()
	if err != nil {
		return err
	}
	defer layer.Close()
	content, err := io.ReadAll(layer)
	if err != nil {
		return err
	}
	digest, err := layers[0].Digest()
	if err != nil {
		return err
	}
	name, err := image.ConfigName()
	if err != nil {
		return err
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := image.RawManifest()
	if err != nil {
		return err
	}
	kind, err := image.MediaType()
	if err != nil {
		return err
	}
	for _, part := range []struct {
		method, path, kind string
		body               []byte
	}{
		{http.MethodPost, "/blobs/uploads/?digest=" + digest.String(), "application/octet-stream", content},
		{http.MethodPost, "/blobs/uploads/?digest=" + name.String(), "application/octet-stream", config},
		{http.MethodPut, "/manifests/latest", string(kind), manifest},
	} {
		req, err := http.NewRequestWithContext(ctx, part.method, repository+part.path, bytes.NewReader(part.body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", part.kind)
		resp, err := (&http.Client{}).Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode >= http.StatusMultipleChoices {
			return fmt.Errorf("%s %s: %s", part.method, part.path, resp.Status)
		}
	}
	return nil
}

// sendSnares puts a registry with the snares in the place of the world's and has the
// box run them all, and one from the owner's machine.
func (s *siege) sendSnares(t *testing.T) *tenant.Record {
	t.Helper()
	program, err := os.ReadFile(s.program)
	if err != nil {
		t.Fatal(err)
	}
	s.world.Registry.Stop()
	listener, err := net.Listen("tcp", s.world.Registry.Address())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // it ends with the test
	}()
	t.Cleanup(func() { server.Close(); <-done })
	_, trap, _ := strings.Cut(s.traps[0], " ")
	services, profiles, placed, deployed := "", "", "", ""
	add := func(service, image string, cores float64) {
		services += fmt.Sprintf("  %s: {image: %q, params: {storage: {data: {mount: /data}}}, expose: [{port: 3000, as: 80, to: [{global: true}]}]}\n", service, image)
		profiles += fmt.Sprintf("    %s: {resources: {cpu: {units: %.2f}, memory: {size: 32Mi}, storage: [{size: 16Mi}, {name: data, size: 16Mi, attributes: {persistent: true, class: beta1}}]}}\n", service, cores)
		placed += fmt.Sprintf("%s: {denom: uakt, amount: 1000}, ", service)
		deployed += fmt.Sprintf("  %s: {dc: {profile: %s, count: 1}}\n", service, service)
	}
	for _, n := range snares() {
		image, err := n.build(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := push(t.Context(), "http://"+s.world.Registry.Address()+"/v2/hostile/"+n.service, image); err != nil {
			t.Fatal(err)
		}
		cores := 0.02 // it is not to run
		if n.deeds != nil {
			cores = 0.2
		}
		add(n.service, "hostile/"+n.service, cores)
	}
	add("owners", trap+"/hostile/app", 0.02)
	file := "version: \"2.0\"\nservices:\n" + services + "profiles:\n  compute:\n" + profiles + "  placement: {dc: {pricing: {" + strings.TrimSuffix(placed, ", ") + "}}}\ndeployment:\n" + deployed
	parsed, err := sdl.Parse([]byte(file))
	if err != nil {
		t.Fatalf("%v in\n%s", err, file)
	}
	plan, err := s.me.Plan(t.Context(), parsed, tenant.PlanConfig{})
	if err != nil {
		t.Fatal(err)
	}
	record, err := s.me.Deploy(t.Context(), plan.ID(), tenant.DeployConfig{Detach: true, BidTimeout: 30 * time.Second})
	if err != nil {
		status, askErr := s.ask(t.Context())
		t.Fatalf("%v; the box lets %+v, has let %+v, and says %+v, %v", err, status.Hosting.Capacity, status.Hosting.Leased, status.Hosting.WhyNot, askErr)
	}
	return record
}

// judgeSnares waits until each of them was refused, in words, or runs.
func (s *siege) judgeSnares(t *testing.T) {
	record := s.sendSnares(t)
	defer s.leave(t, record)
	lease := record.LeaseIDs()[0]
	all := append(snares(), snare{service: "owners"})
	failed, ready := map[string]string{}, map[string]string{}
	s.until("each was refused or runs", func() error {
		events, err := s.me.Events(t.Context(), lease)
		if err != nil {
			return err
		}
		for _, n := range all {
			for _, e := range events {
				image := "hostile/" + n.service + `"` // the registry's refusals are the lease's events
				if n.service == "owners" {
					image = `/hostile/app"`
				}
				if ofIts := strings.HasPrefix(e.Object.Name, n.service+"-"); ofIts && e.Reason == "Ready" {
					ready[n.service] = e.Note
				} else if e.Type == "Warning" && (ofIts || strings.Contains(e.Note, image)) {
					failed[n.service] = e.Note
				}
			}
			if failed[n.service] == "" && ready[n.service] == "" {
				return fmt.Errorf("nothing is said of %s in %v", n.service, events)
			}
		}
		return nil
	})
	for _, n := range all {
		t.Run(n.service, func(t *testing.T) {
			failed, ready := failed[n.service], ready[n.service]
			t.Logf("refused: %.300q; runs: %q", failed, ready)
			if n.runs && ready == "" || ready != "" && n.deeds == nil {
				t.Errorf("refused: %q; runs: %q", failed, ready)
			}
			if ready == "" {
				return
			}
			status, err := s.me.Status(t.Context(), lease)
			if err != nil || len(status.Services[n.service].URIs) == 0 {
				t.Fatalf("status is %+v, %v", status, err)
			}
			for deed, args := range n.deeds {
				list, err := s.deed(t, "http://"+strings.TrimPrefix(status.Services[n.service].URIs[0], "http://"), deed, args...)
				if err != nil {
					t.Fatal(err)
				}
				allFailed(t, list)
			}
		})
	}
}
