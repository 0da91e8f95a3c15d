package relaycmd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// watched is what files say, as of the last good version of them.
type watched[T any] struct {
	log   *slog.Logger
	paths []string
	parse func(raw [][]byte) (T, error)
	seen  [][]byte // contents at the last look; read and written by look alone
	value atomic.Pointer[T]
}

// watch reads the files, which must be good the first time.
func watch[T any](log *slog.Logger, parse func([][]byte) (T, error), paths ...string) (*watched[T], error) {
	w := &watched[T]{log: log, paths: paths, parse: parse}
	_, err := w.read()
	return w, err
}

func (w *watched[T]) get() T { return *w.value.Load() }

// look reads the files again and says whether they say something new. Two calls
// must not overlap.
func (w *watched[T]) look() bool {
	changed, err := w.read()
	if err != nil {
		w.log.Error("file not taken over; what it said before stays", "files", strings.Join(w.paths, ", "), "error", err)
		return false
	}
	if changed {
		w.log.Info("file taken over", "files", strings.Join(w.paths, ", "))
	}
	return changed
}

// read is false, nil for files as they were, also for bad ones that were reported
// before.
func (w *watched[T]) read() (changed bool, err error) {
	var now [][]byte
	for _, path := range w.paths {
		raw, unread := os.ReadFile(path)
		if unread != nil {
			raw = []byte(unread.Error()) // so that it is reported once
		}
		now, err = append(now, raw), errors.Join(err, unread)
	}
	if slices.EqualFunc(now, w.seen, bytes.Equal) {
		return false, nil
	}
	w.seen = now
	if err != nil {
		return false, err
	}
	value, err := w.parse(now)
	if err != nil {
		return false, fmt.Errorf("read %s: %w", strings.Join(w.paths, ", "), err)
	}
	w.value.Store(&value)
	return true, nil
}

// grant is a host that a device may have.
type grant struct {
	device croft.DeviceID
	host   string
}

// rules are the files of a relay.
type rules struct {
	cert    *watched[*tls.Certificate]
	devices *watched[map[croft.DeviceID]bool] // nil: all are admitted
	hosts   *watched[map[grant]bool]          // nil: see anyHost and naming
	anyHost bool
	naming  *naming // nil: DNS does not decide
}

// readFiles reads what the flags name, and makes a key if there is none.
func (s settings) readFiles() (*rules, error) {
	r := &rules{anyHost: s.allow == "any"}
	bad := func(err error, what, remedy string) (*rules, error) {
		kind := croft.KindInvalid
		if errors.Is(err, fs.ErrNotExist) {
			kind = croft.KindNotFound
		}
		return nil, &croft.Error{Kind: kind, Err: fmt.Errorf("%s: %w", what, err), Remedy: remedy}
	}
	cert, key := s.cert, s.key
	if cert == "" {
		cert = filepath.Join(s.data, "relay.pem")
		key = cert
		if err := ensureKey(cert); err != nil {
			return nil, fmt.Errorf("make the relay's key: %w", err)
		}
	}
	var err error
	if r.cert, err = watch(s.log, parsePair, cert, key); err != nil {
		return bad(err, "certificate of the relay", "give a PEM certificate and its key; what lies in --data is made anew, with another pin, when it is deleted")
	}
	if s.admit != "all" {
		if r.devices, err = watch(s.log, parseDevices, s.admit); err != nil {
			return bad(err, "admitted devices", "one device id a line; the box's page shows it")
		}
	}
	switch s.allow {
	case "any", "none", "":
	case "dns":
		r.naming = newNaming(s.domain, s.dns)
	default:
		if r.hosts, err = watch(s.log, parseGrants, s.allow); err != nil {
			return bad(err, "hosts of devices", "lines like: DEVICE shop.example")
		}
	}
	return r, nil
}

// ensureKey makes a key and a certificate for it, in one file, so that a power
// cut leaves both or none.
func ensureKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := wire.SelfSigned(key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	raw := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	return atomicfile.WriteFile(path, raw, 0o600)
}

func parsePair(raw [][]byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(raw[0], raw[1])
	return &pair, err
}

// eachLine calls do with the words of each line that has any.
func eachLine(raw []byte, do func(words []string) error) error {
	for i, line := range strings.Split(string(raw), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if w := strings.Fields(line); len(w) > 0 {
			if err := do(w); err != nil {
				return fmt.Errorf("line %d: %w", i+1, err)
			}
		}
	}
	return nil
}

func parseDevices(raw [][]byte) (map[croft.DeviceID]bool, error) {
	devices := map[croft.DeviceID]bool{}
	return devices, eachLine(raw[0], func(w []string) error {
		id, err := croft.ParseDeviceID(w[0])
		if err == nil && len(w) > 1 {
			err = fmt.Errorf("%q follows the device id", w[1])
		}
		devices[id] = true
		return err
	})
}

func parseGrants(raw [][]byte) (map[grant]bool, error) {
	grants := map[grant]bool{}
	return grants, eachLine(raw[0], func(w []string) error {
		if len(w) != 2 {
			return fmt.Errorf("it has %d words, want a device id and a host", len(w))
		}
		id, err := croft.ParseDeviceID(w[0])
		grants[grant{id, w[1]}] = true
		return errors.Join(err, wire.CheckHost(w[1]))
	})
}

func (r *rules) admits(id croft.DeviceID) error {
	if r.devices == nil || r.devices.get()[id] {
		return nil
	}
	return errors.New("this relay does not know the device; ask its operator")
}

// allows says whether a device may have a host from now on.
func (r *rules) allows(ctx context.Context, id croft.DeviceID, host string) error {
	if r.naming != nil {
		return r.naming.allows(ctx, id, host)
	}
	return r.mayStay(id, host)
}

// mayStay says whether a device may keep a host that it has. One that DNS led to
// it stays until the box lets go of it: a DNS that is away takes nothing.
func (r *rules) mayStay(id croft.DeviceID, host string) error {
	if r.naming != nil || r.anyHost || r.hosts != nil && r.hosts.get()[grant{id, host}] {
		return nil
	}
	return errors.New("this relay does not give the host to the device; ask its operator")
}

// keep looks at the files until ctx ends, and drops the tunnels that the new ones
// speak against. A box that may come back comes back, without the host it lost.
func (r *rules) keep(ctx context.Context, every time.Duration, server *relay.Server) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		r.cert.look()
		changed := r.devices != nil && r.devices.look()
		changed = r.hosts != nil && r.hosts.look() || changed
		if changed {
			r.enforce(server)
		}
	}
}

func (r *rules) enforce(server *relay.Server) {
	for _, d := range server.Devices() {
		err := r.admits(d.Device)
		for _, host := range d.Hosts {
			err = errors.Join(err, r.mayStay(d.Device, host))
		}
		if d.Up && err != nil {
			server.Drop(d.Device, err.Error())
		}
	}
}
