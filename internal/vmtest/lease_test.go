//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/npmpeer"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/internal/rig"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// watched is release 1.2.0: the good one and the warden, which tests ask what is on
// the box. It is built once.
var watched = sync.OnceValues(func() (build.Result, error) {
	board, err := boards.Get("uefi-x86")
	if err != nil {
		return build.Result{}, err
	}
	const agent = `"github.com/croft-cloud/croft/cmd/croft-agent"`
	board.Gokrazy = bytes.Replace(board.Gokrazy, []byte(agent), []byte(agent+`, "github.com/croft-cloud/croft/internal/vmtest/warden"`), 1)
	return build.Build(context.Background(), options(board, "1.3.0", "watched"))
})

// chaind is the chain's program, built once.
var chaind = sync.OnceValues(func() (string, error) {
	path := filepath.Join(releases.dir, "croft-chaind")
	return path, outside.Build(context.Background(), repository, "./cmd/croft-chaind", path)
})

// wardenPort is where the warden listens.
const wardenPort = 9999

// provider is a box that lets, and the world it lets to.
type provider struct {
	*box
	world *outside.World
	me    *outside.Tenant
}

// newProvider boots a box with a disk of 24 GiB behind NAT, makes the chain for the
// account that the box has made for itself, and waits until it is open for work.
func newProvider(t *testing.T) *provider {
	t.Helper()
	program, err := chaind()
	if err != nil {
		t.Fatal(err)
	}
	image, err := watched()
	if err != nil {
		t.Fatal(err)
	}
	world, err := outside.New(outside.Config{Dir: t.TempDir(), Chaind: program, Chain: outside.ChainConfig{BlockTime: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := world.PutWeb(t.Context(), repository); err != nil {
		t.Fatal(err)
	}
	p := &provider{world: world, box: boxOn(t, world.Network(outside.FromGuest), settings{
		from: image.Image, size: 24 << 30, memory: 3 << 30, tpm: true,
		config: func(c *rig.Config) {
			c.Forwards = append(c.Forwards, rig.Forward{Guest: wardenPort})
			c.InTurn = true
		},
	})}
	p.powerOn()
	begin := time.Now()
	s := p.waitFor("a provider with an account", func(s ownerpage.StatusJSON) bool { return s.Hosting != nil && s.Hosting.Account != "" })
	t.Logf("%.0f s after power-on the box has the account %s", time.Since(begin).Seconds(), s.Hosting.Account)
	if err := world.Chain.Make(t.Context(), outside.DeployAudit(account.Address(s.Hosting.Account))); err != nil {
		t.Fatal(err)
	}
	if err := world.Chain.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.waitState(letting.Open)
	t.Logf("%.0f s after power-on it is open for work", time.Since(begin).Seconds())
	if p.me, err = world.Tenant(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.me.Leave)
	return p
}

func (p *provider) waitState(want letting.State) ownerpage.StatusJSON {
	p.t.Helper()
	return p.waitFor(string(want), func(s ownerpage.StatusJSON) bool { return s.Hosting != nil && s.Hosting.State == want })
}

// deploy deploys the article's file, unchanged.
func (p *provider) deploy() (*tenant.Record, akash.LeaseID) {
	p.t.Helper()
	file, err := os.ReadFile(filepath.Join(repository, outside.DeployFile))
	if err != nil {
		p.t.Fatal(err)
	}
	begin := time.Now()
	record, err := p.me.Run(p.t.Context(), file, func(step tenant.Progress) {
		p.t.Logf("%6.1f s  %s", time.Since(begin).Seconds(), step.Step)
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return record, record.LeaseIDs()[0]
}

// until waits for what must become true.
func (p *provider) until(what string, is func() error) {
	p.t.Helper()
	var last error
	for deadline := time.Now().Add(bootLimit); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		if last = is(); last == nil {
			return
		}
	}
	p.t.Fatalf("never: %s: %v", what, last)
}

// answers reports whether the workload answers through the relay.
func (p *provider) answers(record *tenant.Record) error {
	page, err := p.me.Get(p.t.Context(), record.URIs[0])
	if err == nil && !strings.Contains(page, "hello from the image") {
		err = fmt.Errorf("the page is %s", page)
	}
	return err
}

// sight is what the warden sees.
type sight struct {
	Processes []struct {
		PID     int
		Program string
		RSS     int64
		Own     int64
		CPU     float64
	}
	Mounts, Links, Mapper, Loops, Spaces, Groups, Disks, Addresses []string
	Images                                                         int64
	Memory                                                         map[string]int64 // as in /proc/meminfo, in bytes
	Idle, Uptime                                                   float64
}

func (s sight) programs() []string {
	var list []string
	for _, p := range s.Processes {
		list = append(list, p.Program)
	}
	slices.Sort(list)
	return list
}

func (p *provider) warden(method, what string) (*http.Response, error) {
	address, err := p.Address(wardenPort)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(p.t.Context(), method, "http://"+address+"/"+what, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	return client.Do(req)
}

func (p *provider) look() (s sight) {
	p.t.Helper()
	p.until("the warden answers", func() error {
		resp, err := p.warden(http.MethodGet, "look")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		s = sight{}
		return json.NewDecoder(resp.Body).Decode(&s)
	})
	return s
}

// kill ends a program of the box as a fault would.
func (p *provider) kill(program string) {
	p.t.Helper()
	resp, err := p.warden(http.MethodPost, "kill?program="+program)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	var n int
	if _, err := fmt.Fscan(resp.Body, &n); err != nil || n == 0 {
		p.t.Fatalf("%d processes of %s were killed, %v", n, program, err)
	}
}

// permIsClean reports whether the box that is off had unmounted /perm: then its
// ext4 does not ask for recovery (the field s_feature_incompat of the superblock).
func (p *provider) permIsClean() bool {
	p.t.Helper()
	f, err := os.Open(p.disk)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	const superblock, incompat, recover = 1024, 96, 4
	var field [4]byte
	if _, err := f.ReadAt(field[:], permAt+superblock+incompat); err != nil {
		p.t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(field[:])&recover == 0
}

// leftover compares what is on the box with what was there before the lease.
func leftover(before, after sight) []string {
	var left []string
	for what, lists := range map[string][2][]string{
		"process": {before.programs(), after.programs()}, "mount": {before.Mounts, after.Mounts}, "link": {before.Links, after.Links},
		"mapped device": {before.Mapper, after.Mapper}, "loop device": {before.Loops, after.Loops}, "namespace": {before.Spaces, after.Spaces},
		"cgroup": {before.Groups, after.Groups}, "disk": {before.Disks, after.Disks}, "address": {before.Addresses, after.Addresses},
	} {
		was := slices.Clone(lists[0])
		for _, name := range lists[1] {
			if i := slices.Index(was, name); i >= 0 {
				was = slices.Delete(was, i, i+1)
			} else {
				left = append(left, what+" "+name)
			}
		}
	}
	if after.Images > before.Images {
		left = append(left, fmt.Sprintf("%d bytes of images", after.Images-before.Images))
	}
	slices.Sort(left)
	return left
}

// The article's file on a box behind NAT, from its deployment to the last byte on
// disk; in between everything that can go wrong around a lease goes wrong, and the
// lease lives on.
func TestALeaseOutlivesEverythingButItsEnd(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	before := p.look()
	t.Run("the client of Akash's own tenants leads a lease from bid to close", func(t *testing.T) {
		mnemonic, err := p.world.Chain.Mnemonic(outside.TenantAccount)
		if err != nil {
			t.Fatal(err)
		}
		file, err := filepath.Abs(filepath.Join(repository, outside.DeployFile)) // node runs elsewhere
		if err != nil {
			t.Fatal(err)
		}
		deal := npmpeer.Lease(t, npmpeer.LeaseConfig{
			RPC: p.world.Chain.RPC(), GRPC: strings.Replace(p.world.Chain.GRPC(), "grpc:", "http:", 1),
			TLS: p.world.Relay.TLS(), HTTP: p.world.Relay.HTTP(), Tenant: mnemonic, SDL: file, DSeq: 1_000_000,
		})
		if deal.Manifest != http.StatusOK || deal.BeyondTheToken != http.StatusUnauthorized || !strings.Contains(deal.Page, "hello from the image") {
			t.Errorf("deal is %+v", deal)
		}
		p.waitState(letting.Open)
	})
	record, lease := p.deploy()
	p.until("the page is there", func() error { return p.answers(record) })

	t.Run("status, logs, shell and events", func(t *testing.T) {
		if status, err := p.me.Status(t.Context(), lease); err != nil || !status.Ready() {
			t.Errorf("status is %+v, %v", status, err)
		}
		if got, err := p.me.Shell(t.Context(), lease, "web", "/bin/app", "say", "hello"); err != nil || got != "hello\n" {
			t.Errorf("shell: %q, %v", got, err)
		}
		if lines, err := p.me.Logs(t.Context(), lease); err != nil || len(lines) == 0 {
			t.Errorf("logs: %v, %v", lines, err)
		}
		events, err := p.me.Events(t.Context(), lease)
		if err != nil || !slices.ContainsFunc(events, func(e gatewayclient.Event) bool { return e.Reason == "Pulled" }) {
			t.Errorf("events: %v, %v", events, err)
		}
	})
	t.Run("the owner sees it", func(t *testing.T) {
		s := p.waitState(letting.Working)
		if s.Hosting.Tenants != 1 || len(s.Hosting.Leases) != 1 {
			t.Errorf("the page says %+v", s.Hosting)
		}
		t.Log(s.Hosting.Line, s.Hosting.Month)
	})
	during := p.look()
	for _, fault := range []struct {
		what string
		do   func()
	}{
		{"the agent is killed", func() { p.kill("croft-agent") }},
		{"containerd is killed", func() { p.kill("croft-containerd") }},
		{"the relay is restarted", func() {
			if err := p.world.Relay.Restart(); err != nil {
				t.Fatal(err)
			}
		}},
		{"the chain stops and starts", func() {
			if err := p.world.Chain.Stop(); err != nil {
				t.Fatal(err)
			}
			p.until("it answers without a chain", func() error { return p.answers(record) })
			p.kill("croft-agent")
			p.until("it answers without a chain and with another agent", func() error { return p.answers(record) })
			if err := p.world.Chain.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{"the power is cut", func() {
			p.cut()
			p.powerOn()
		}},
		{"the box is switched off and on", func() {
			p.shutDown()
			if !p.permIsClean() {
				t.Error("/perm was not unmounted")
			}
			p.powerOn()
		}},
	} {
		t.Run(fault.what, func(t *testing.T) {
			begin := time.Now()
			fault.do()
			p.until("it answers again", func() error { return p.answers(record) })
			t.Logf("it answers again after %.1f s", time.Since(begin).Seconds())
			s := p.waitState(letting.Working)
			if s.Hosting.Tenants != 1 || len(s.Hosting.Leases) != 1 || s.Hosting.Offered != (letting.Room{}) {
				t.Errorf("the page says %+v", s.Hosting)
			}
			now := p.look()
			if !slices.Equal(now.Disks, during.Disks) || len(now.Spaces) != len(during.Spaces) {
				t.Errorf("before: disks %q, namespaces %q; now: %q, %q", during.Disks, during.Spaces, now.Disks, now.Spaces)
			}
		})
	}

	if _, err := p.me.Close(t.Context(), record.ID(), nil); err != nil {
		t.Fatal(err)
	}
	p.waitState(letting.Open)
	p.until("nothing is left", func() error {
		if left := leftover(before, p.look()); len(left) > 0 {
			return fmt.Errorf("left are %q", left)
		}
		return nil
	})
}
