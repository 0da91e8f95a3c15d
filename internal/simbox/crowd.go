package simbox

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// CrowdConfig is copied by [NewCrowd] and never changed afterwards.
type CrowdConfig struct {
	Fleet Fleet  // required
	Boxes int    // how many; required
	First uint64 // number of the first
	Dir   string // where keys, certificates and claim codes are kept; empty: the next crowd is another

	Interval  time.Duration // between two messages of a box; default 1 min
	ReadEvery time.Duration // between the instants that a message tells of; default 10 s
	Confirm   bool          // readings are acknowledged: their delay tells how far the fleet is behind
	Spread    time.Duration // over which boxes start; default Interval

	EnrolRate float64 // boxes a second; default 20

	// Issue gets a box its certificate (PEM, with its issuer's) otherwise than
	// from the fleet's device port, say from an [enroll.Authority]; for a fleet
	// that takes no stranger's word it also enters the box into its books.
	Issue   func(ctx context.Context, device croft.DeviceID, req *enroll.Request) (chain string, err error)
	Brokers []string // tls://host:port; default: those that the fleet names; required with Issue

	Dial     func(number uint64) Dial // connections of a box; default TCP
	Enrolled func(Member)             // told of each box that has a certificate, in any order; default nobody
}

// Member is one box of a crowd.
type Member struct {
	Number uint64
	Device croft.DeviceID
	Code   claim.Code
}

// Crowd is many light boxes. All methods may be called from any goroutine.
type Crowd struct {
	cfg    CrowdConfig
	enrols *rate.Limiter
	trusts sync.Map // of brokers' hosts: *enroll.Trust

	connected, enrolled       atomic.Int64
	sent, acked, bytes, heard atomic.Int64
	problem                   atomic.Pointer[error]    // the newest
	delays                    [delaySteps]atomic.Int64 // see Delays

	mu      sync.Mutex
	begin   time.Time       // guarded by mu; of Run
	seconds []Second        // guarded by mu; since begin
	known   map[uint64]kept // guarded by mu; of earlier crowds, and not yet taken up
	issuer  []byte          // guarded by mu; DER, of the newest pass
	file    *os.File        // guarded by mu; nil: nothing is kept
}

// Second counts what a crowd did in one second.
type Second struct {
	Tries    int // connections to the broker that were begun
	Sessions int // of them, that became sessions
	Ends     int // sessions that ended
}

// kept is a box of a crowd as it is kept: one line of JSON.
type kept struct {
	Number  uint64   `json:"number"`
	Key     []byte   `json:"key"` // SEC 1
	Code    string   `json:"code"`
	Chain   string   `json:"chain"` // PEM
	Brokers []string `json:"brokers"`
}

const crowdFile = "crowd.jsonl"

// NewCrowd makes a crowd. Nothing is sent before [Crowd.Run].
func NewCrowd(cfg CrowdConfig) (*Crowd, error) {
	if cfg.Boxes < 1 || len(cfg.Fleet.Roots) == 0 {
		return nil, errors.New("make crowd: number of boxes or the fleet's roots are missing")
	}
	if cfg.Issue != nil && len(cfg.Brokers) == 0 {
		return nil, errors.New("make crowd: brokers are missing")
	}
	cfg.Interval = cmp.Or(cfg.Interval, time.Minute)
	cfg.ReadEvery = min(cmp.Or(cfg.ReadEvery, 10*time.Second), cfg.Interval)
	cfg.Spread = cmp.Or(cfg.Spread, cfg.Interval)
	cfg.EnrolRate = cmp.Or(cfg.EnrolRate, 20)
	if cfg.ReadEvery < time.Second {
		return nil, fmt.Errorf("make crowd: a message each %v: want a second or more", cfg.Interval)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(uint64) Dial { return nil }
	}
	if cfg.Enrolled == nil {
		cfg.Enrolled = func(Member) {}
	}
	return &Crowd{cfg: cfg, enrols: rate.NewLimiter(rate.Limit(cfg.EnrolRate), 1), known: make(map[uint64]kept)}, nil
}

// Run keeps the crowd running until ctx ends; then each box leaves in order. It
// is called once.
func (c *Crowd) Run(ctx context.Context) error {
	if err := c.open(); err != nil {
		return fmt.Errorf("run crowd: %w", err)
	}
	c.mu.Lock()
	c.begin = time.Now()
	c.mu.Unlock()
	var all sync.WaitGroup
	for i := range uint64(c.cfg.Boxes) {
		all.Go(func() { c.run(ctx, c.cfg.First+i) })
	}
	all.Wait()
	if c.file == nil {
		return nil
	}
	if err := c.file.Close(); err != nil {
		return fmt.Errorf("run crowd: %w", err)
	}
	return nil
}

// open reads the boxes of an earlier crowd.
func (c *Crowd) open() error {
	if c.cfg.Dir == "" {
		return nil
	}
	if err := atomicfile.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(c.cfg.Dir, crowdFile)
	old, err := os.Open(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		lines := bufio.NewScanner(old)
		for lines.Scan() {
			var k kept
			if json.Unmarshal(lines.Bytes(), &k) == nil { // the last may be cut off
				c.known[k.Number] = k
			}
		}
		if err := errors.Join(lines.Err(), old.Close()); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	c.file, err = os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	return err
}

// keep writes a box down.
func (c *Crowd) keep(k kept) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		return nil
	}
	raw, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("keep box: %w", err)
	}
	if _, err := c.file.Write(append(raw, '\n')); err != nil {
		return fmt.Errorf("keep box: %w", err)
	}
	return nil
}

// share is a number in 0..1 for each box, so that those of any crowd lie evenly
// spread.
func share(number uint64) float64 { return newModel(number, time.Time{}).seed }

// run is the life of one box.
func (c *Crowd) run(ctx context.Context, number uint64) {
	if !sleep(ctx, time.Duration(share(number)*float64(c.cfg.Spread))) {
		return
	}
	b := newLight(c, number)
	for b.pass == nil {
		if err := c.enrol(ctx, b); err != nil {
			if ctx.Err() != nil {
				return
			}
			c.problem.Store(&err)
			if !sleep(ctx, b.pauses.Next(isRefusal(err))) {
				return
			}
		}
	}
	c.enrolled.Add(1)
	c.cfg.Enrolled(Member{Number: number, Device: b.pass.Device, Code: b.code})
	b.pauses.Reset()
	b.connect(ctx)
}

// enrol gives a box its pass: that of an earlier crowd, or a new one.
func (c *Crowd) enrol(ctx context.Context, b *light) error {
	k, key, err := c.recall(b.number)
	if err != nil {
		return err
	}
	if key != nil && k.Chain != "" {
		b.code = claim.Code(k.Code)
		b.pass, err = c.pass(key, k.Chain, k.Brokers)
		return err
	}
	if err := c.enrols.Wait(ctx); err != nil {
		return err
	}
	if key == nil {
		if key, err = NewKey(); err != nil {
			return err
		}
		code, err := claim.New(rand.Reader)
		if err != nil {
			return err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return err
		}
		k = kept{Number: b.number, Key: der, Code: string(code)}
	}
	csr, err := enroll.NewCSR(key)
	if err != nil {
		return err
	}
	b.code = claim.Code(k.Code)
	req := &enroll.Request{
		Version: enroll.Version, CSR: csr, Board: defaultBoard, Release: defaultRelease, Claim: enroll.HashClaim(k.Code),
	}
	if c.cfg.Issue != nil {
		device, err := enroll.DeviceOf(key.Public())
		if err != nil {
			return err
		}
		if k.Chain, err = c.cfg.Issue(ctx, device, req); err != nil {
			return err
		}
	} else {
		reply, err := enrol(ctx, c.cfg.Fleet, c.cfg.Dial(b.number), key, req)
		if err != nil {
			return err
		}
		k.Chain, k.Brokers = reply.Certificate, reply.Brokers
	}
	if b.pass, err = c.pass(key, k.Chain, k.Brokers); err != nil {
		return err
	}
	return c.keep(k)
}

// recall is what an earlier crowd kept of a box. A certificate that is over is
// left out: then the box enrols again.
func (c *Crowd) recall(number uint64) (kept, *ecdsa.PrivateKey, error) {
	c.mu.Lock()
	k, ok := c.known[number]
	delete(c.known, number)
	c.mu.Unlock()
	if !ok {
		return kept{}, nil, nil
	}
	key, err := x509.ParseECPrivateKey(k.Key)
	if err != nil {
		return kept{}, nil, fmt.Errorf("read key of box %d: %w", number, err)
	}
	trust, err := c.trust("localhost")
	if err != nil {
		return kept{}, nil, err
	}
	cert, err := trust.Accept(k.Chain, key)
	if err != nil || time.Now().After(cert.Leaf.NotAfter) {
		k.Chain = ""
	}
	return k, key, nil
}

func (c *Crowd) pass(key *ecdsa.PrivateKey, chain string, brokers []string) (*Pass, error) {
	if len(c.cfg.Brokers) > 0 {
		brokers = c.cfg.Brokers
	}
	if len(brokers) == 0 {
		return nil, errors.New("fleet named no broker")
	}
	trust, err := c.trust("localhost") // no server is asked
	if err != nil {
		return nil, err
	}
	p, err := newPass(trust, key, chain, brokers)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !bytes.Equal(p.chain[len(p.chain)-1], c.issuer) {
		c.issuer = p.chain[len(p.chain)-1]
	}
	p.chain[len(p.chain)-1] = c.issuer // one for all boxes
	return p, nil
}

// trust believes in the fleet's server of this name, for all boxes.
func (c *Crowd) trust(host string) (*enroll.Trust, error) {
	if t, ok := c.trusts.Load(host); ok {
		return t.(*enroll.Trust), nil
	}
	t, err := c.cfg.Fleet.trust(host, rightClock)
	if err != nil {
		return nil, err
	}
	c.trusts.Store(host, t)
	return t, nil
}

func (c *Crowd) brokerTrust(broker string) (*enroll.Trust, error) {
	at, err := url.Parse(broker)
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	return c.trust(at.Hostname())
}

// count notes something in the present second.
func (c *Crowd) count(note func(*Second)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int(time.Since(c.begin) / time.Second)
	for len(c.seconds) <= n {
		c.seconds = append(c.seconds, Second{})
	}
	note(&c.seconds[n])
}

// Seconds is what the crowd did in each second, and when the first of them was.
// After a broker's restart Tries show whether there was a storm.
func (c *Crowd) Seconds() (begin time.Time, seconds []Second) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begin, append([]Second(nil), c.seconds...)
}

// Stats is how a crowd is doing.
type Stats struct {
	Enrolled     int   // boxes with a certificate
	Connected    int   // boxes in a session, now
	Sent         int64 // messages, each time they were sent
	Acknowledged int64 // of them, by the fleet; those of QoS 0 never are
	Bytes        int64 // of payloads and topics sent, TLS and MQTT not counted
	Heard        int64 // messages of the fleet
	Tries        int   // connections that were begun
	Ends         int   // sessions that ended
	Problem      error // of the box that was enrolled or connected in vain last; nil if there was none

	Delays               Delays        // of acknowledgements, since the beginning
	HalfDelay, MostDelay time.Duration // half of them, and 99 of 100, took at most so long
}

// Stats returns how the crowd is doing now.
func (c *Crowd) Stats() Stats {
	s := Stats{
		Enrolled: int(c.enrolled.Load()), Connected: int(c.connected.Load()), Sent: c.sent.Load(), Acknowledged: c.acked.Load(),
		Bytes: c.bytes.Load(), Heard: c.heard.Load(),
	}
	for i := range c.delays {
		s.Delays[i] = c.delays[i].Load()
	}
	s.HalfDelay, s.MostDelay = s.Delays.Of(0.5), s.Delays.Of(0.99)
	if err := c.problem.Load(); err != nil {
		s.Problem = *err
	}
	_, seconds := c.Seconds()
	for _, second := range seconds {
		s.Tries += second.Tries
		s.Ends += second.Ends
	}
	return s
}

// sleep waits for d and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
