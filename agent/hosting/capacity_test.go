package hosting

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/leasedisk"
	"github.com/croft-cloud/croft/agent/ocispec"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

func fileSystemFree(dir string) (int64, error) {
	var s unix.Statfs_t
	err := unix.Statfs(dir, &s)
	return int64(s.Bavail) * s.Bsize, err
}

// What is decided in one part and obeyed in another is the same in both.
func TestPartsAgreeOnWhatALeaseMayHave(t *testing.T) {
	if leasedisk.MaxSize != offer.MaxDisk {
		t.Errorf("a disk has at most %d bytes, an order %d", int64(leasedisk.MaxSize), int64(offer.MaxDisk))
	}
	if ocispec.SandboxMemory != offer.ReplicaMemory || modelOverhead != offer.ReplicaMemory {
		t.Errorf("an enclosure has %d bytes, the ledger counts %d", ocispec.SandboxMemory, offer.ReplicaMemory)
	}
}

// fullDisks has so many bytes for all OCI images, and counts who has a loan.
type fullDisks struct {
	modelDisks
	mu   sync.Mutex
	free int64
	lent int64
	said int64 // what all leases were promised
}

func (d *fullDisks) Borrow(ctx context.Context, _ lease.Key, bytes int64, promised func() int64) (int64, func(), error) {
	for {
		sum := promised()
		d.mu.Lock()
		d.said = sum
		left := d.free - d.lent
		if left >= bytes || left > 0 && d.lent == 0 {
			granted := min(bytes, left)
			d.lent += granted
			d.mu.Unlock()
			return granted, func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				d.lent -= granted
			}, nil
		}
		idle := d.lent == 0
		d.mu.Unlock()
		if idle {
			return 0, nil, &croft.Error{Kind: croft.KindNoSpace, Err: errors.New("full")}
		}
		nap(ctx, time.Second)
		if ctx.Err() != nil {
			return 0, nil, ctx.Err()
		}
	}
}

// greedyCells are a registry whose images are as large as they may be, each twice:
// compressed and unpacked.
type greedyCells struct {
	modelCells
	mu    sync.Mutex
	takes int64 // bytes that images on their way may have together at this moment
	most  int64
	least int64 // limit that any had
	hang  bool
}

func (c *greedyCells) Pull(ctx context.Context, _ lease.Key, image string, _ *sdl.Credentials, limit int64, _ func(done, total int64)) (string, error) {
	c.mu.Lock()
	c.takes += 2 * limit
	c.most, c.least = max(c.most, c.takes), min(c.least, limit)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.takes -= 2 * limit
		c.mu.Unlock()
	}()
	if c.hang {
		<-ctx.Done()
		return "", ctx.Err()
	}
	nap(ctx, time.Minute)
	if image == "bad" {
		return "", errors.New("bad luck")
	}
	return image, nil
}

// pulling is a box in which images are pulled, with so many bytes for them.
func pulling(t *testing.T, free int64, do func(t *testing.T, m *model, p *parts, disks *fullDisks, cells *greedyCells)) {
	m := newModel(t, 1)
	defer os.RemoveAll(m.dir)
	synctest.Test(t, func(t *testing.T) {
		open, stop := context.WithCancel(t.Context())
		defer m.calls.Wait()
		defer stop()
		m.begin(open, 20*time.Second)
		m.live(t)
		disks, cells := &fullDisks{modelDisks: modelDisks{m.life}, free: free}, &greedyCells{modelCells: modelCells{m.life}, least: 1 << 60}
		p := &parts{cfg: m.life.p.cfg, disks: disks, sandbox: cells, network: m.life.p.network, provider: m.life.p.provider}
		do(t, m, p, disks, cells)
		if disks.lent != 0 {
			t.Errorf("%d bytes are lent to nobody", disks.lent)
		}
		m.life.end()
	})
	for _, wrong := range m.wrong {
		t.Error(wrong)
	}
}

// However many images are fetched at once: what they may take together is there.
func TestPullsAtOnceShareTheRoom(t *testing.T) {
	const free, limit = 24 << 30, 10 << 30
	pulling(t, free, func(t *testing.T, _ *model, p *parts, _ *fullDisks, cells *greedyCells) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 8 {
			image := fmt.Sprintf("web:%d", i)
			if i == 3 {
				image = "bad"
			}
			wg.Go(func() {
				if _, err := (images{p}).Pull(ctx, "l0123456789", image, nil, limit, nil); err != nil && image != "bad" {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if cells.most > free {
			t.Errorf("%d GiB might have been fetched into %d", cells.most>>30, free>>30)
		}
		if cells.least != limit {
			t.Errorf("an image was limited to %d bytes because of others", cells.least)
		}
	})
}

func TestAnImageMayHaveWhatIsThere(t *testing.T) {
	for _, tc := range []struct {
		free, limit int64 // bytes; limit 0: none is fetched
	}{
		{2*(10<<30) + pullOver, 10 << 30}, {pullOver + 2<<30, 1 << 30}, {pullOver, 0}, {0, 0},
	} {
		pulling(t, tc.free, func(t *testing.T, _ *model, p *parts, _ *fullDisks, cells *greedyCells) {
			_, err := images{p}.Pull(t.Context(), "l0123456789", "web", nil, 10<<30, nil)
			switch full := (*tooFull)(nil); {
			case tc.limit == 0 && !errors.As(err, &full):
				t.Errorf("with %d bytes free: %v", tc.free, err)
			case tc.limit > 0 && (err != nil || cells.least != tc.limit):
				t.Errorf("with %d bytes free the limit is %d, %v, want %d", tc.free, cells.least, err, tc.limit)
			}
		})
	}
}

// A registry that sends one byte every now and then does not hold the room for
// ever.
func TestAPullThatHangsLosesItsTurn(t *testing.T) {
	pulling(t, 24<<30, func(t *testing.T, _ *model, p *parts, _ *fullDisks, cells *greedyCells) {
		cells.hang = true
		began := time.Now()
		if _, err := (images{p}).Pull(t.Context(), "l0123456789", "web", nil, 10<<30, nil); err == nil || time.Since(began) > pullTurn {
			t.Errorf("it ended after %s: %v", time.Since(began), err)
		}
	})
}

// What a lease was promised is not for images, though its tenant has sent no
// manifest and it has no disk yet.
func TestALeaseWithoutADiskKeepsItsRoom(t *testing.T) {
	pulling(t, 24<<30, func(t *testing.T, m *model, p *parts, disks *fullDisks, _ *greedyCells) {
		nap(t.Context(), 5*time.Minute) // until it is registered
		m.mu.Lock()
		m.deploy()
		d := m.deployed[akash.DeploymentID{Owner: modelTenant, DSeq: 1}]
		want := int64(lettingRest)
		for _, o := range d.orders {
			want += m.rooms[o].Storage
		}
		m.mu.Unlock()
		if want == lettingRest {
			t.Fatal("the order wants no disk")
		}
		nap(t.Context(), 45*time.Second)
		if got := p.promised(); got != want {
			t.Errorf("with a bid %d bytes are promised, want %d", got, want)
		}
		m.mu.Lock()
		for _, o := range d.orders {
			m.choose(o)
		}
		m.mu.Unlock()
		nap(t.Context(), 45*time.Second)
		if len(p.provider.Leases()) != len(d.orders) {
			t.Errorf("leases are %v", p.provider.Leases())
		}
		if _, err := (images{p}).Pull(t.Context(), "l0123456789", "web", nil, 1<<30, nil); err != nil || disks.said != want {
			t.Errorf("with a lease %d bytes are promised, %v, want %d", disks.said, err, want)
		}
		if len(m.disks) != 0 {
			t.Error("there is a disk: this test shows nothing")
		}
	})
}
