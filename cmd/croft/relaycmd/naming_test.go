package relaycmd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/relay/wire"
)

// zone is a DNS in memory.
type zone struct {
	mu    sync.Mutex
	alias map[string]string   // canonical names; guarded by mu
	text  map[string][]string // guarded by mu
	away  error               // guarded by mu
	hangs bool                // guarded by mu
	asked int                 // guarded by mu
}

func (z *zone) set(change func(*zone)) {
	z.mu.Lock()
	defer z.mu.Unlock()
	change(z)
}

func (z *zone) LookupCNAME(ctx context.Context, host string) (string, error) {
	z.mu.Lock()
	z.asked++
	name, away, hangs := z.alias[host], z.away, z.hangs
	z.mu.Unlock()
	switch {
	case hangs:
		<-ctx.Done()
		return "", &net.DNSError{Err: "no answer", IsTimeout: true}
	case away != nil:
		return "", away
	case name == "":
		return "", &net.DNSError{Err: "no such host", IsNotFound: true}
	}
	return name, nil
}

func (z *zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if texts := z.text[name]; texts != nil && z.away == nil {
		return texts, nil
	}
	return nil, &net.DNSError{Err: "no such host", IsNotFound: true}
}

func TestHostsGoToTheDeviceThatDNSNames(t *testing.T) {
	const mine, other = croft.DeviceID("mine"), croft.DeviceID("other")
	z := &zone{
		alias: map[string]string{
			"alias.test": "mine.boxes.test.", "deep.test": "LEASE.mine.boxes.test.", "foreign.test": "other.boxes.test.", "near.test": "notmine.boxes.test.",
			"address.test": "address.test.", "relay.test": "boxes.test.",
		},
		text: map[string][]string{"_croft.apex.test": {"v=spf1 -all", " mine "}, "_croft.theirs.test": {"other"}, "apex2.test": {"mine"}},
	}
	synctest.Test(t, func(t *testing.T) {
		n := newNaming("boxes.test", z)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { n.run(ctx); close(done) }()
		for host, want := range map[string]bool{
			"alias.test": true, "deep.test": true, "apex.test": true,
			"foreign.test": false, "near.test": false, "address.test": false, "relay.test": false, "theirs.test": false, "apex2.test": false, "nothing.test": false,
		} {
			if err := n.allows(ctx, mine, host); (err == nil) != want {
				t.Errorf("%s: %v", host, err)
			}
		}
		if err := n.allows(ctx, other, "alias.test"); err == nil || !strings.Contains(err.Error(), "_croft.alias.test") {
			t.Errorf("another device gets the host of the first: %v", err)
		}
		// What DNS said is believed for a while; a no for less time than boxes take
		// to ask again.
		z.set(func(z *zone) { z.alias["nothing.test"], z.away = "mine.boxes.test.", nil })
		time.Sleep(noLasts + time.Second)
		if err := n.allows(ctx, mine, "nothing.test"); err != nil {
			t.Errorf("a host that was led here meanwhile: %v", err)
		}
		z.set(func(z *zone) { z.away = &net.DNSError{Err: "server misbehaving", IsTemporary: true} })
		if err := n.allows(ctx, mine, "nothing.test"); err != nil {
			t.Errorf("right after DNS said yes: %v", err)
		}
		time.Sleep(yesLasts + time.Second)
		if err := n.allows(ctx, mine, "nothing.test"); err != nil {
			t.Errorf("a DNS that is away takes a host: %v", err)
		}
		if err := n.allows(ctx, mine, "new.test"); !errors.Is(err, errAway) {
			t.Errorf("with DNS away a new host: %v", err)
		}
		z.set(func(z *zone) { z.hangs = true })
		time.Sleep(yesLasts + time.Second)
		if err := n.allows(ctx, mine, "nothing.test"); err != nil {
			t.Errorf("a DNS that hangs takes a host: %v", err)
		}
		time.Sleep(yesLasts + lookupTime)
		z.set(func(z *zone) { z.alias["nothing.test"], z.away, z.hangs = "other.boxes.test.", nil, false })
		if err := n.allows(ctx, mine, "nothing.test"); err == nil {
			t.Error("a host that DNS leads elsewhere stays")
		}
		cancel()
		<-done
	})
}

func TestASlowDNSIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &zone{hangs: true}
		n := newNaming("boxes.test", z)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { n.run(ctx); close(done) }()
		begin := time.Now()
		if err := n.allows(ctx, "mine", "slow.test"); err == nil || time.Since(begin) > firstAnswer {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		// One that was asked about already is not asked about again.
		if err := n.allows(ctx, "mine", "slow.test"); err == nil || z.asked != 1 {
			t.Errorf("%v, DNS was asked %d times", err, z.asked)
		}
		for i := range maxLookups + maxWaiting {
			if _, err := n.verdict(grant{"mine", strings.Repeat("a", i+1)}); err != nil && i < maxWaiting {
				t.Fatalf("host %d: %v", i, err)
			}
			synctest.Wait()
		}
		if _, err := n.verdict(grant{"mine", "more.test"}); !errors.Is(err, errBusy) {
			t.Errorf("more hosts than wait: %v", err)
		}
		cancel()
		<-done
	})
}

func TestDNSDecidesAboutHostsUnlessToldOtherwise(t *testing.T) {
	b := newDevice(t)
	z := &zone{alias: map[string]string{"shop.test": string(b.id) + ".boxes.test."}}
	r := startWith(t, z, "--data", filepath.Join(t.TempDir(), "data"))
	b.join(t, r, "shop.test", "other.test")
	hosts := b.await(t, up).Hosts
	if len(hosts) != 2 || hosts[0].Problem != "" || hosts[1].Problem != wire.ProblemRefused {
		t.Errorf("the box holds %+v, want the first and not the second", hosts)
	}
	if got := visit(t, r, "shop.test"); got != "hello" {
		t.Errorf("the host answers %q", got)
	}
	strict := startWith(t, z, "--data", filepath.Join(t.TempDir(), "data"), "--allow-host", "none")
	c := newDevice(t)
	z.set(func(z *zone) { z.alias["two.test"] = string(c.id) + ".boxes.test." })
	c.join(t, strict, "two.test")
	if hosts := c.await(t, up).Hosts; len(hosts) != 1 || hosts[0].Problem != wire.ProblemRefused {
		t.Errorf("with none allowed the box holds %+v", hosts)
	}
}
