package hosting

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/sdl"
)

// What of the disk is not let.
const (
	reservePart = 5         // one part in so many of /perm is kept for OCI images and the box itself
	reserveMin  = 4 << 30   // and at least so many bytes
	lettingRest = 1 << 30   // bytes for what leases take on top of their volumes: file systems, logs
	imagesRest  = 512 << 20 // bytes that a pull leaves free
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

func fileSystemFree(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// portsLet is how many external ports leases may have together: as many as one
// box may want of a relay.
const portsLet = 128

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
// sparse, and what was promised to them is not for OCI images.
type images struct{ p *parts }

func (i images) Pull(ctx context.Context, key lease.Key, image string, credentials *sdl.Credentials, limit int64, progress func(done, total int64)) (string, error) {
	room, err := i.p.imageRoom()
	if err != nil {
		return "", err
	}
	if err := i.p.guardFetching(ctx); err != nil {
		return "", err
	}
	return i.p.sandbox.Pull(ctx, key, image, credentials, min(limit, room), progress)
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

// imageRoom is how large an OCI image may be: compressed and unpacked it lies on
// /perm for a while.
func (p *parts) imageRoom() (int64, error) {
	free, err := fileSystemFree(p.cfg.Dir)
	if err != nil {
		return 0, err
	}
	disks, err := p.disks.Disks()
	if err != nil {
		return 0, err
	}
	for _, d := range disks {
		used, total, err := p.disks.Usage(d.Lease)
		if err != nil {
			continue // lost or half removed: it takes no more
		}
		free -= total - used
	}
	room := (free - imagesRest) / 2
	if room <= 0 {
		return 0, &tooFull{}
	}
	return room, nil
}

// tooFull says that no OCI image can be fetched now.
type tooFull struct{}

func (*tooFull) Error() string    { return "the box's disk has no room for another image" }
func (*tooFull) Temporary() bool  { return true } // images go when leases end
func (*tooFull) Word() string     { return "DiskFull" }
func (*tooFull) Kind() croft.Kind { return croft.KindNoSpace }
