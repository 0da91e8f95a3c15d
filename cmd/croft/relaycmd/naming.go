package relaycmd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// resolver is what is asked of DNS: net.DefaultResolver.
type resolver interface {
	LookupCNAME(ctx context.Context, host string) (string, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// naming lets a device have the hosts that DNS leads to it by name. Who can write
// that into a host's zone decides about the host; an address alone is no proof,
// for all boxes of a relay share it.
type naming struct {
	domain string
	dns    resolver
	asked  chan grant // to run

	mu       sync.Mutex
	verdicts map[grant]*verdict // guarded by mu
}

// verdict is what DNS says about a grant.
type verdict struct {
	yes   bool          // the last one was yes: it counts until DNS says no
	done  chan struct{} // closed when there is one
	err   error         // nil: the device may have the host; read after done
	until time.Time     // read after done
}

const (
	maxVerdicts = 10_000           // that are remembered
	maxLookups  = 16               // at once
	maxWaiting  = 1024             // for a lookup
	lookupTime  = 10 * time.Second // that one may take
	firstAnswer = time.Second      // how long a box waits; then it asks again, after half a minute
	yesLasts    = 10 * time.Minute
	noLasts     = 20 * time.Second
)

func newNaming(domain string, dns resolver) *naming {
	return &naming{domain: domain, dns: dns, asked: make(chan grant, maxWaiting), verdicts: map[grant]*verdict{}}
}

// run asks DNS until ctx ends.
func (n *naming) run(ctx context.Context) {
	var askers sync.WaitGroup
	for range maxLookups {
		askers.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case g := <-n.asked:
					n.settle(g, n.look(ctx, g))
				}
			}
		})
	}
	askers.Wait()
}

func (n *naming) settle(g grant, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.verdicts[g]
	if v.yes && errors.Is(err, errAway) {
		err = nil
	}
	v.err, v.until = err, time.Now().Add(noLasts)
	if err == nil {
		v.until = time.Now().Add(yesLasts)
	}
	close(v.done)
}

// look asks DNS whom it leads a host to.
func (n *naming) look(ctx context.Context, g grant) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	box := string(g.device) + "." + n.domain
	alias, err := n.dns.LookupCNAME(ctx, g.host)
	if alias = strings.ToLower(strings.TrimSuffix(alias, ".")); err == nil && (alias == box || strings.HasSuffix(alias, "."+box)) {
		return nil
	}
	texts, noText := n.dns.LookupTXT(ctx, joinfile.HostRecord+g.host)
	for _, text := range texts {
		if strings.TrimSpace(text) == string(g.device) {
			return nil
		}
	}
	for _, err := range []error{err, noText} {
		if e, ok := errors.AsType[*net.DNSError](err); ok && !e.IsNotFound {
			return fmt.Errorf("%w: %w", errAway, err)
		}
	}
	return fmt.Errorf("DNS does not make the host an alias of %s, and %s%s does not name the device", box, joinfile.HostRecord, g.host)
}

// allows says whether a device may have a host, as DNS had it a short while ago.
// A slow DNS does not hold up what else the box wants, and takes no host away.
func (n *naming) allows(ctx context.Context, id croft.DeviceID, host string) error {
	v, err := n.verdict(grant{id, host})
	if err != nil {
		return err
	}
	patience := time.NewTimer(firstAnswer)
	defer patience.Stop()
	select {
	case <-v.done:
		return v.err
	case <-patience.C:
		if v.yes {
			return nil
		}
		return errAway
	case <-ctx.Done():
		return ctx.Err()
	}
}

// verdict finds or orders one.
func (n *naming) verdict(g grant) (*verdict, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if v := n.verdicts[g]; v != nil && !v.stale(now) {
		return v, nil
	}
	if len(n.verdicts) >= maxVerdicts {
		maps.DeleteFunc(n.verdicts, func(_ grant, v *verdict) bool { return v.stale(now) })
	}
	if len(n.verdicts) >= maxVerdicts {
		return nil, errBusy
	}
	select {
	case n.asked <- g:
	default:
		return nil, errBusy
	}
	v := &verdict{done: make(chan struct{})}
	if old := n.verdicts[g]; old != nil {
		v.yes = old.err == nil
	}
	n.verdicts[g] = v
	return v, nil
}

var (
	errBusy = errors.New("too many hosts are looked up in DNS now")
	errAway = errors.New("DNS does not answer about the host")
)

func (v *verdict) stale(now time.Time) bool {
	select {
	case <-v.done:
		return now.After(v.until)
	default:
		return false
	}
}
