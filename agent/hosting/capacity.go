package hosting

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/sdl"
)

// What of the disk is not let.
const (
	reservePart = 5       // one part in so many of /perm is kept for OCI images and the box itself
	reserveMin  = 4 << 30 // and at least so many bytes
	lettingRest = 1 << 30 // bytes for what leases take on top of what they ordered: file systems, rounding
)

// reserveOf is how many bytes of a file system of so many are never promised.
func reserveOf(total int64) int64 { return max(total/reservePart, reserveMin) }

func fileSystemSize(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return int64(s.Blocks) * s.Bsize, nil
}

// portsLet is how many external ports leases may have together: as many as a relay
// gives one box if nobody told it otherwise.
const portsLet = 64

// measure sets anew what the box lets.
func (p *parts) measure() error {
	c := p.machine.Capacity()
	room, err := p.disks.Room()
	if err != nil {
		return err
	}
	disks, err := p.disks.Disks()
	if err != nil {
		return err
	}
	for _, d := range disks {
		room += d.Size
	}
	// GPUs are not let yet: the sandbox has no way to them.
	p.room.Store(&offer.Room{CPU: c.CPU, Memory: c.Memory, Storage: max(room-lettingRest, 0), Ports: portsLet})
	return nil
}

// lender lends memory that nobody leased; bidding keeps the ledger.
type lender struct{ p *parts }

func (l lender) Lend(key lease.Key, bytes int64) bool { return l.p.provider.Lend(key, bytes) }

// images are the sandbox's, within what the disk has left: lease disks are
// sparse, and what was promised to them is not for OCI images. Each has a loan of
// room while it is fetched.
type images struct{ p *parts }

const (
	// pullTurn ends a pull that holds room for so long: others may wait for it,
	// and the next attempt goes on where it was.
	pullTurn = 15 * time.Minute
	// pullOver is how many bytes more than its limit an image has taken before the
	// sandbox sees it.
	pullOver = 512 << 20
)

// Pull implements workload.Images. While it is fetched an image takes its limit
// twice, compressed and unpacked.
func (i images) Pull(ctx context.Context, key lease.Key, image string, credentials *sdl.Credentials, limit int64, progress func(done, total int64)) (string, error) {
	granted, giveBack, err := i.p.disks.Borrow(ctx, key, 2*limit+pullOver, i.p.promised)
	if croft.KindOf(err) == croft.KindNoSpace {
		return "", &tooFull{}
	}
	if err != nil {
		return "", err
	}
	defer giveBack()
	if limit = min(limit, (granted-pullOver)/2); limit <= 0 {
		return "", &tooFull{}
	}
	if err := i.p.measure(); err != nil { // no bid counts on what is lent
		return "", err
	}
	if err := i.p.guardFetching(ctx); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, pullTurn)
	defer cancel()
	return i.p.sandbox.Pull(ctx, key, image, credentials, limit, progress)
}

// promised is how many bytes of disk all bids and leases were promised, whether
// their disks are made or not.
func (p *parts) promised() int64 {
	s := p.provider.Status()
	return s.Reserved.Plus(s.Leased).Storage + lettingRest
}

func (i images) Release(ctx context.Context, key lease.Key, keep ...string) error {
	return i.p.sandbox.Release(ctx, key, keep...)
}

// guardFetching sees to it that containerd reaches public addresses and the
// mirrors alone: a tenant's registry may send it anywhere.
func (p *parts) guardFetching(ctx context.Context) error {
	if p.cfg.Fetcher == "" {
		return nil
	}
	var allowed []netip.AddrPort
	for _, mirrors := range p.cfg.Network.Mirrors {
		for _, mirror := range mirrors {
			allowed = append(allowed, addressesOf(ctx, mirror)...)
		}
	}
	if err := p.network.SetAllowed(ctx, allowed); err != nil {
		return err
	}
	return p.network.GuardFetchers(ctx)
}

// addressesOf is where a mirror is; nowhere, if its name is not known now.
func addressesOf(ctx context.Context, mirror string) []netip.AddrPort {
	u, err := url.Parse(mirror)
	if err != nil {
		return nil // checked by joinfile
	}
	port := uint16(443)
	if u.Scheme == "http" {
		port = 80
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
		port = uint16(n)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname()) // a literal address is answered at once
	if err != nil {
		return nil
	}
	var list []netip.AddrPort
	for _, a := range found {
		list = append(list, netip.AddrPortFrom(a.Unmap(), port))
	}
	return list
}

// tooFull says that no OCI image can be fetched now.
type tooFull struct{}

func (*tooFull) Error() string    { return "the box's disk has no room for another image" }
func (*tooFull) Temporary() bool  { return true } // images go when leases end
func (*tooFull) Word() string     { return "DiskFull" }
func (*tooFull) Kind() croft.Kind { return croft.KindNoSpace }
