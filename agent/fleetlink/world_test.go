package fleetlink

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/claim"
	"github.com/croft-cloud/croft/provisioning/enroll"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fleet is a fleet in memory: the real checks of enrolment, and a broker that
// knows as much of MQTT as a box speaks.
type fleet struct {
	t         testing.TB
	authority *enroll.Authority
	gate      *enroll.Gate
	url       string
	broker    net.Listener

	mu      sync.Mutex
	changed chan struct{}       // guarded by mu; closed and replaced when something came
	claims  []enroll.ClaimHash  // guarded by mu; of boxes that enrolled
	said    []fleetapi.Payload  // guarded by mu; by boxes
	down    []fleetapi.Payload  // guarded by mu; said to whoever subscribes
	boxes   map[net.Conn]string // guarded by mu; who has subscribed
	bundles map[string][]byte   // guarded by mu; by path
	answers []int               // guarded by mu; to bundles, before they are taken
}

func newFleet(t testing.TB) *fleet {
	f := &fleet{t: t, changed: make(chan struct{}), boxes: map[net.Conn]string{}, bundles: map[string][]byte{}}
	var err error
	f.authority, err = enroll.NewAuthority("test", time.Now().AddDate(0, -1, 0))
	check(t, err)
	f.gate, err = enroll.NewGate(enroll.GateConfig{Roots: []*x509.Certificate{f.authority.Root()}, Revoked: new(enroll.Revocations)})
	check(t, err)
	f.broker, err = tls.Listen("tcp", "127.0.0.1:0", f.gate.TLS(f.authority.Server("127.0.0.1"), enroll.Device))
	check(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", f.gate.TLS(f.authority.Server("127.0.0.1"), enroll.Candidate, enroll.Device))
	check(t, err)
	f.url = "https://" + l.Addr().String()
	server := &http.Server{Handler: f, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	var all sync.WaitGroup
	all.Go(func() { _ = server.Serve(l) })
	all.Go(func() {
		for {
			conn, err := f.broker.Accept()
			if err != nil {
				return
			}
			all.Go(func() { f.serveMQTT(conn) })
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		_ = f.broker.Close()
		f.mu.Lock()
		for conn := range f.boxes {
			_ = conn.Close()
		}
		f.mu.Unlock()
		all.Wait()
	})
	return f
}

// ServeHTTP is the device port.
func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	peer := f.gate.Judge(*r.TLS)
	switch {
	case r.URL.Path == enroll.PathTime:
		_ = json.NewEncoder(w).Encode(enroll.NewTimeReply(time.Now()))
	case r.URL.Path == enroll.PathEnroll && peer.MayEnroll() == nil:
		req, err := enroll.ParseRequest(raw)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		issued, err := f.authority.IssueDevice(req.CSR, peer, time.Now())
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		f.tell(func() { f.claims = append(f.claims, req.Claim) })
		_ = json.NewEncoder(w).Encode(enroll.NewReply(issued, []string{"tls://" + f.broker.Addr().String()}, time.Now()))
	case r.Method == http.MethodPut && peer.MayConnect() == nil:
		status := http.StatusCreated
		f.tell(func() {
			if len(f.answers) > 0 {
				status, f.answers = f.answers[0], f.answers[1:]
				return
			}
			f.bundles[r.URL.Path] = raw
		})
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"error":"the fleet does not want it"}`)
	default:
		w.WriteHeader(http.StatusForbidden)
	}
}

// tell changes what the fleet knows, and wakes those who wait for it.
func (f *fleet) tell(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	close(f.changed)
	f.changed = make(chan struct{})
}

// until waits until the fleet knows something.
func (f *fleet) until(done func() bool) {
	f.t.Helper()
	for {
		f.mu.Lock()
		ready, changed := done(), f.changed
		f.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-changed:
		case <-f.t.Context().Done():
			f.t.Fatal("the fleet was not told")
		}
	}
}

func (f *fleet) claimed(n int) enroll.ClaimHash {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.claims[n]
}

// find waits for something that a box said.
func find[T any, P interface {
	*T
	fleetapi.Payload
}](f *fleet, match func(P) bool) P {
	f.t.Helper()
	var found P
	f.until(func() bool {
		for _, p := range f.said {
			if p, ok := p.(P); ok && match(p) {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// want says something to all boxes, now and when they come.
func (f *fleet) want(p fleetapi.Payload) {
	f.mu.Lock()
	f.down = append(f.down, p)
	boxes := make(map[net.Conn]string, len(f.boxes))
	maps.Copy(boxes, f.boxes)
	f.mu.Unlock()
	for conn, device := range boxes {
		f.publish(conn, device, p)
	}
}

func (f *fleet) publish(conn net.Conn, device string, p fleetapi.Payload) {
	raw, err := fleetapi.Encode(p)
	if err != nil {
		f.t.Error(err)
		return
	}
	topic := p.Subject().Topic(croft.DeviceID(device))
	body := append(binary.BigEndian.AppendUint16(nil, uint16(len(topic))), topic...)
	_, _ = conn.Write(packet(0x30, append(body, raw...))) // a box that is gone hears it when it comes back
}

func packet(kind byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{kind}, uint64(len(body))), body...)
}

// serveMQTT is a broker for one box.
func (f *fleet) serveMQTT(conn net.Conn) {
	defer conn.Close()
	r, device := bufio.NewReader(conn), ""
	for {
		kind, err := r.ReadByte()
		if err != nil {
			break
		}
		size, err := binary.ReadUvarint(r) // MQTT counts alike
		if err != nil {
			break
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			break
		}
		switch kind & 0xf0 {
		case 0x10: // CONNECT: the client's id follows ten bytes
			device = string(body[12:][:binary.BigEndian.Uint16(body[10:])])
			_, _ = conn.Write(packet(0x20, []byte{0, 0}))
		case 0x30: // PUBLISH
			n := int(binary.BigEndian.Uint16(body))
			topic, payload := string(body[2:][:n]), body[2+n:]
			if kind&0x06 != 0 {
				_, _ = conn.Write(packet(0x40, payload[:2]))
				payload = payload[2:]
			}
			_, subject, err := fleetapi.ParseTopic(topic)
			if err != nil {
				f.t.Error(err)
				continue
			}
			p, err := fleetapi.Decode(subject, payload)
			if err != nil {
				f.t.Error(err)
				continue
			}
			f.tell(func() { f.said = append(f.said, p) })
		case 0x80: // SUBSCRIBE
			_, _ = conn.Write(packet(0x90, append(slices.Clone(body[:2]), 1)))
			f.mu.Lock()
			f.boxes[conn] = device
			down := slices.Clone(f.down)
			f.mu.Unlock()
			for _, p := range down {
				f.publish(conn, device, p)
			}
		case 0xc0: // PINGREQ
			_, _ = conn.Write(packet(0xd0, nil))
		case 0xe0: // DISCONNECT
			return
		}
	}
}

// box is a link and what it stands on.
type box struct {
	*Link
	t       testing.TB
	cfg     Config
	stop    context.CancelFunc
	ended   chan error
	reboots int
	codes   []claim.Code
}

const firstCode = claim.Code("K7QM2XWP")

// newBox is a box on a disk, not running yet.
func newBox(t testing.TB, f *fleet, dir string, key *ecdsa.PrivateKey, change func(*Config)) *box {
	j, err := journal.Open(journal.Config{Path: filepath.Join(dir, "journal")})
	check(t, err)
	b := &box{t: t, ended: make(chan error, 1)}
	root := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.authority.Root().Raw}))
	lines := new(Lines)
	b.cfg = Config{
		Fleet: &joinfile.Fleet{URL: f.url, Roots: joinfile.Roots{root}}, Journal: j, Key: key,
		Dir: filepath.Join(dir, "fleet"), RunDir: t.TempDir(), Root: t.TempDir(),
		BootID: "0fb3e4e5-8a5b-4c5e-9d2e-3f1f6a7b8c9d", Board: "uefi-x86", Release: "1.0.0", Slot: croft.SlotA, Built: time.Now().AddDate(0, -1, 0),
		Facts: func() map[string]string {
			return map[string]string{"cpu_model": "Test\x00CPU", "Not a name": "x", "empty": ""}
		},
		Code: firstCode,
		NewCode: func() (claim.Code, error) {
			code, err := claim.New(rand.Reader)
			b.codes = append(b.codes, code)
			return code, err
		},
		Reboot: func(context.Context) error { b.reboots++; return nil },
		Lines:  lines, Log: slog.New(lines.Handler(slog.DiscardHandler)),
	}
	if change != nil {
		change(&b.cfg)
	}
	b.Link, err = New(b.cfg)
	check(t, err)
	b.pauses = func() func() time.Duration { return func() time.Duration { return time.Millisecond } }
	return b
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func (b *box) start() *box {
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	go func() { b.ended <- b.Run(ctx) }()
	b.t.Cleanup(b.shutdown)
	return b
}

// shutdown ends the box's life, once.
func (b *box) shutdown() {
	if b.stop == nil {
		return
	}
	b.stop()
	b.stop = nil
	check(b.t, errors.Join(<-b.ended, b.cfg.Journal.Close()))
}

func newJob(kind fleetapi.JobKind, args map[string]string) *fleetapi.Job {
	return &fleetapi.Job{ID: fleetapi.NewID(fleetapi.PrefixJob), Kind: kind, Args: fleetapi.Labels(args)}
}

// ends waits for a job's last word.
func ends(f *fleet, job *fleetapi.Job) *fleetapi.JobStatus {
	return find(f, func(s *fleetapi.JobStatus) bool { return s.Job == job.ID && s.State.Final() })
}
