package device_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

var (
	home    = netip.MustParseAddr("203.0.113.7")
	abroad  = netip.MustParseAddr("198.51.100.9")
	staff   = device.Actor{ID: "usr_staff", Staff: true}
	open    = enroll.Policy{FirstUse: enroll.FirstUseOpen}
	errDown = errors.New("it is down")
)

// fleet is a store with everything around it in memory.
type fleet struct {
	*device.Store
	db      *db.DB
	bubble  bool
	key     *enroll.ClaimKey
	revoked *enroll.Revocations

	mu      sync.Mutex
	down    bool // the broker and the audit log
	desired map[croft.DeviceID]fleetapi.Desired
	audit   map[string]device.Entry
}

func (f *fleet) Publish(_ context.Context, id croft.DeviceID, p fleetapi.Payload) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errDown
	}
	if _, err := fleetapi.Encode(p); err != nil {
		return err
	}
	f.desired[id] = *p.(*fleetapi.Desired)
	return nil
}

func (f *fleet) Record(_ context.Context, e device.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errDown
	}
	f.audit[e.ID] = e
	return nil
}

func (f *fleet) FindOwners(_ context.Context, text string) ([]string, error) {
	if strings.HasPrefix("ada@example.org", text) {
		return []string{"own_ada"}, nil
	}
	return nil, nil
}

func (f *fleet) cut(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *fleet) published(id croft.DeviceID) fleetapi.Desired {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.desired[id]
}

func (f *fleet) actions(id croft.DeviceID) map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for _, e := range f.audit {
		if e.Device == id {
			out[e.Action]++
		}
	}
	return out
}

// each runs a test on every engine. With SQLite it is in a bubble of time, which
// a connection to PostgreSQL would keep from advancing: there [fleet.pass] makes
// what is stored older instead.
func each(t *testing.T, test func(t *testing.T, f *fleet)) {
	t.Helper()
	timed(t, test)
	for _, engine := range dbtest.Engines() {
		if engine == dbtest.SQLite {
			continue
		}
		t.Run(string(engine), func(t *testing.T) { test(t, newFleet(t, dbtest.Open(t, dbtest.URL(t, engine)))) })
	}
}

// timed runs a test that waits for the fleet's loops, on SQLite.
func timed(t *testing.T, test func(t *testing.T, f *fleet)) {
	t.Helper()
	t.Run(string(dbtest.SQLite), func(t *testing.T) {
		url := dbtest.URL(t, dbtest.SQLite)
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(t, dbtest.Open(t, url))
			f.bubble = true
			test(t, f)
		})
	})
}

// pass lets time pass.
func (f *fleet) pass(t testing.TB, d time.Duration) {
	t.Helper()
	if f.bubble {
		time.Sleep(d)
		return
	}
	check(t, f.db.Write(t.Context(), func(tx *db.Tx) error {
		for _, older := range []string{
			"UPDATE device_boxes SET claim_until = claim_until - ? WHERE claim_until <> 0",
			"UPDATE device_boxes SET offer_until = offer_until - ? WHERE offer_until <> 0",
			"UPDATE device_tries SET at = at - ?",
			"UPDATE device_seen SET at = at - ?",
		} {
			if _, err := tx.Exec(older, d.Microseconds()); err != nil {
				return err
			}
		}
		return nil
	}))
}

func newFleet(t testing.TB, d *db.DB) *fleet {
	t.Helper()
	f := &fleet{db: d, revoked: &enroll.Revocations{}, desired: map[croft.DeviceID]fleetapi.Desired{}, audit: map[string]device.Entry{}}
	f.key = must(enroll.NewClaimKey([]byte(strings.Repeat("k", 32))))(t)
	f.Store = must(device.New(t.Context(), device.Config{
		DB: d, ClaimKey: f.key, Revoked: f.revoked, Publisher: f, Audit: f, Owners: f, LogLines: 100, Events: 100,
	}))(t)
	return f
}

// run starts the fleet's loops until the test ends.
func (f *fleet) run(t testing.TB) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-ended)
	})
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func wantKind(t testing.TB, err error, want croft.Kind) {
	t.Helper()
	if err == nil || croft.KindOf(err) != want {
		t.Errorf("error = %v, of kind %q; want kind %q", err, croft.KindOf(err), want)
	}
}

func idOf(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest(sha256.Sum256([]byte(fmt.Sprint("box ", n))))
}

// codeOf is the claim code on the screen of box n.
func codeOf(n int) string {
	const symbols = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	code := []byte("BX000000")
	for i := len(code) - 1; n > 0; i, n = i-1, n/32 {
		code[i] = symbols[n%32]
	}
	return string(code)
}

var certificates int

// enrol lets box n in; the certificate is a fake, deviceport's tests have real
// ones.
func (f *fleet) enrol(t testing.TB, policy enroll.Policy, n int, req enroll.Request) (croft.DeviceID, error) {
	t.Helper()
	id := idOf(n)
	req.Version, req.Board, req.Release = 1, "uefi-x86", "1.0.0"
	_, err := f.Enrol(t.Context(), policy, &req, id, home, func(_ []byte, now time.Time) (*enroll.Issued, error) {
		certificates++
		return &enroll.Issued{Device: id, ID: enroll.CertID(fmt.Sprintf("c%06d", certificates)), NotBefore: now, NotAfter: now.Add(enroll.LeafLife)}, nil
	})
	return id, err
}

// box lets box n in with its code, and has it say hello.
func (f *fleet) box(t testing.TB, n int) croft.DeviceID {
	t.Helper()
	id := must(f.enrol(t, open, n, enroll.Request{Claim: enroll.HashClaim(codeOf(n))}))(t)
	f.online(t, id, 1)
	return id
}

func (f *fleet) say(t testing.TB, id croft.DeviceID, payloads ...fleetapi.Payload) (strangers int) {
	t.Helper()
	var messages []device.Message
	for _, p := range payloads {
		messages = append(messages, device.Message{Device: id, At: time.Now(), Address: home, Payload: p})
	}
	return must(f.Receive(t.Context(), messages))(t)
}

func hello(epoch uint64, release croft.Version) *fleetapi.Hello {
	return &fleetapi.Hello{
		Journal: 7, Epoch: epoch, Version: 1, At: time.Now(), Synced: true, BootID: "b", Release: release, Slot: croft.SlotA, Board: "uefi-x86",
		Facts: fleetapi.Labels(map[string]string{"cpu_model": "Intel N100", "claim_words": fmt.Sprintf("river-candle-seven%c", 'a'+epoch%26)}),
	}
}

func (f *fleet) online(t testing.TB, id croft.DeviceID, epoch uint64) {
	t.Helper()
	f.say(t, id, hello(epoch, "1.0.0"), &fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: epoch})
}

func by(account string, at netip.Addr) device.Claimant {
	return device.Claimant{Account: account, Address: at}
}

// own makes a box somebody's.
func (f *fleet) own(t testing.TB, account string, n int) croft.DeviceID {
	t.Helper()
	id := f.box(t, n)
	must(f.StartClaim(t.Context(), by(account, abroad), codeOf(n)))(t)
	must(f.ConfirmClaim(t.Context(), account, id))(t)
	return id
}

func TestFromPowerToOwner(t *testing.T) {
	timed(t, func(t *testing.T, f *fleet) {
		f.run(t)
		id := f.box(t, 1)
		ada := device.Actor{ID: "own_ada"}
		if _, err := f.Box(t.Context(), ada, id); !errors.Is(err, device.ErrNoBox) {
			t.Errorf("before the claim: %v, want that there is no box", err)
		}
		found := must(f.StartClaim(t.Context(), by("own_ada", abroad), "bx00-0001"))(t)
		if found.Device != id || !found.Online || found.Transfer || found.Board != "uefi-x86" {
			t.Errorf("found %+v", found)
		}
		box := must(f.ConfirmClaim(t.Context(), "own_ada", id))(t)
		if box.Claim.Owner != "own_ada" || !box.Desired.Claimed || box.Facts["cpu_model"] != "Intel N100" || box.Facts["claim_words"] != "" {
			t.Errorf("box = %+v", box)
		}
		check(t, f.SetName(t.Context(), ada, id, "Kitchen <b>"))
		time.Sleep(3 * time.Second)
		if d := f.published(id); !d.Claimed || d.Name != "Kitchen <b>" || d.Version != 3 {
			t.Errorf("published %+v", d)
		}
		for _, action := range []string{"device.enroll", "claim.start", "claim.confirm", "device.name"} {
			if f.actions(id)[action] != 1 {
				t.Errorf("audit log has %s %d times, want once: %v", action, f.actions(id)[action], f.actions(id))
			}
		}
	})
}

func TestWhatIsStoredIsDeliveredWhenTheBrokerIsBack(t *testing.T) {
	timed(t, func(t *testing.T, f *fleet) {
		f.run(t)
		f.cut(true)
		id := f.own(t, "own_ada", 1)
		time.Sleep(time.Minute)
		if d := f.published(id); d.Version != 0 {
			t.Fatalf("a broker that is down has %+v", d)
		}
		f.cut(false)
		time.Sleep(3 * time.Second)
		if d := f.published(id); !d.Claimed {
			t.Errorf("published %+v", d)
		}
		if f.actions(id)["claim.confirm"] != 1 {
			t.Errorf("audit log has %v", f.actions(id))
		}
		delete(f.desired, id) // a broker without a disk was restarted
		f.online(t, id, 2)
		time.Sleep(3 * time.Second)
		if d := f.published(id); !d.Claimed {
			t.Errorf("after its hello: published %+v", d)
		}
	})
}

func TestOwnersDoNotSeeOrTouchBoxesOfOthers(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id := f.own(t, "own_ada", 1)
		ctx := t.Context()
		for _, actor := range []device.Actor{{ID: "own_bob"}, {}} {
			_, offer, offerErr := f.OfferTransfer(ctx, actor.ID, id)
			_ = offer
			_, boxErr := f.Box(ctx, actor, id)
			_, _, timelineErr := f.Timeline(ctx, actor, id, "", 0)
			_, logErr := f.LogAfter(ctx, actor, id, 0, 0)
			for what, err := range map[string]error{
				"Box": boxErr, "Timeline": timelineErr, "LogAfter": logErr, "OfferTransfer": offerErr,
				"SetName":            f.SetName(ctx, actor, id, "mine"),
				"Release":            f.Release(ctx, actor.ID, id),
				"WithdrawTransfer":   f.WithdrawTransfer(ctx, actor.ID, id),
				"SetLabels":          f.SetLabels(ctx, actor, id, map[string]string{"a": "b"}),
				"SetInterval":        f.SetInterval(ctx, actor, id, time.Minute),
				"SetRelease":         f.SetRelease(ctx, actor, id, "2.0.0"),
				"Retire":             f.Retire(ctx, actor, id),
				"RevokeCertificates": f.RevokeCertificates(ctx, actor, id),
				"FreeVoucher":        f.FreeVoucher(ctx, actor, id),
			} {
				if !errors.Is(err, device.ErrNoBox) {
					t.Errorf("%s by %q: %v, want that there is no box", what, actor.ID, err)
				}
			}
			if _, err := f.ConfirmClaim(ctx, actor.ID, id); err == nil {
				t.Errorf("%q confirmed the claim of another's box", actor.ID)
			}
			if err := f.UndoClaim(ctx, actor.ID, id); err == nil {
				t.Errorf("%q undid the claim of another's box", actor.ID)
			}
			for _, line := range []string{string(id), "uefi", id.ShortName(), "203.0.113.7", codeOf(1)} {
				if found := must(f.Search(ctx, actor, line))(t); len(found) > 0 {
					t.Errorf("%q found %d boxes by %q", actor.ID, len(found), line)
				}
			}
		}
		if boxes, _, err := f.List(ctx, device.Actor{ID: "own_bob"}, device.Query{Owner: "own_ada"}); err != nil || len(boxes) > 0 {
			t.Errorf("bob lists %d boxes (%v), want none", len(boxes), err)
		}
		if box := must(f.Box(ctx, staff, id))(t); box.Claim.Owner != "own_ada" || box.Name != "" || box.Desired.Version != 2 {
			t.Errorf("box changed: %+v", box)
		}
	})
}

func TestVoucherBringsInOneBox(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		factory := ed25519.NewKeyFromSeed(make([]byte, 32))
		policy := enroll.Policy{FirstUse: enroll.FirstUseVoucher, Factory: []ed25519.PublicKey{factory.Public().(ed25519.PublicKey)}}
		sticker := "0123456789ABCDEF"
		voucher := must(enroll.Voucher{
			ID: enroll.NewVoucherID(), SerialNumber: "CR-0001", Claim: enroll.HashClaim(sticker), Until: time.Now().Add(time.Hour),
		}.Sign(factory))(t)
		req := enroll.Request{Voucher: voucher, SerialNumber: "CR-0001"}
		id := must(f.enrol(t, policy, 1, req))(t)
		must(f.enrol(t, policy, 1, req))(t) // its answer was lost
		if _, err := f.enrol(t, policy, 2, req); enroll.ReasonOf(err) != enroll.ReasonVoucherUsed {
			t.Errorf("a second box with the voucher: %v", err)
		}
		if _, err := f.Box(t.Context(), staff, idOf(2)); !errors.Is(err, device.ErrNoBox) {
			t.Errorf("the refused box is stored: %v", err)
		}
		found := must(f.StartClaim(t.Context(), by("own_ada", abroad), "0123-4567-89ab-cdef"))(t)
		if found.Device != id {
			t.Errorf("the sticker is of %s, want %s", found.Device, id)
		}
		// A box cannot talk itself out of a number that was proven.
		f.say(t, id, &fleetapi.Hello{Journal: 7, Epoch: 1, Version: 1, Release: "1.0.0", Board: "x", Serial: "CR-9999"})
		if box := must(f.Box(t.Context(), staff, id))(t); box.Serial != "CR-0001" || !box.Proven {
			t.Errorf("serial number %q, proven %v", box.Serial, box.Proven)
		}
		check(t, f.Retire(t.Context(), staff, id))
		if _, err := f.enrol(t, policy, 1, req); enroll.ReasonOf(err) != enroll.ReasonRevoked {
			t.Errorf("a retired box enrolled: %v", err)
		}
		check(t, f.FreeVoucher(t.Context(), staff, id))
		must(f.enrol(t, policy, 2, req))(t) // the same case with another board
	})
}

func TestSerialNumbersAreImported(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		hash := string(must(enroll.HashClaim("0123456789ABCDEF").MarshalText())(t))
		good := "serial_number,voucher,claim\nCR-0001,," + hash + "\nCR-0002,,\n"
		if got := must(f.ImportSerials(t.Context(), staff, strings.NewReader(good)))(t); got != (device.Import{Added: 2}) {
			t.Errorf("import %+v", got)
		}
		if got := must(f.ImportSerials(t.Context(), staff, strings.NewReader(good+"CR-0003,,\n")))(t); got != (device.Import{Added: 1, Known: 2}) {
			t.Errorf("second import %+v", got)
		}
		for _, bad := range []string{
			"", "CR-0001,,\n", "serial_number,voucher,claim\n'; DROP TABLE device_boxes,,\n", "serial_number,voucher,claim\nCR-9,,xyz\n",
			"serial_number,voucher,claim\nCR-9,low,\n", "serial_number,voucher,claim\nCR-9\n", "serial_number,voucher,claim\nCR-8,,\n\"",
		} {
			if got, err := f.ImportSerials(t.Context(), staff, strings.NewReader(bad)); err == nil && got.Added > 0 {
				t.Errorf("import of %q: %+v", bad, got)
			}
		}
		listed := enroll.Policy{FirstUse: enroll.FirstUseListed}
		id := must(f.enrol(t, listed, 1, enroll.Request{SerialNumber: "CR-0001"}))(t)
		if _, err := f.enrol(t, listed, 2, enroll.Request{SerialNumber: "CR-0001"}); enroll.ReasonOf(err) != enroll.ReasonSerialTaken {
			t.Errorf("a second box with the number: %v", err)
		}
		if _, err := f.enrol(t, listed, 2, enroll.Request{SerialNumber: "CR-7777"}); enroll.ReasonOf(err) != enroll.ReasonSerialUnlisted {
			t.Errorf("a box with a number of nobody: %v", err)
		}
		if found := must(f.StartClaim(t.Context(), by("own_ada", abroad), "0123456789ABCDEF"))(t); found.Device != id {
			t.Errorf("sticker is of %s", found.Device)
		}
		// Under an open policy a number that is only said gets nobody's sticker.
		must(f.ImportSerials(t.Context(), staff, strings.NewReader("serial_number,voucher,claim\nCR-0009,,"+string(must(enroll.HashClaim("FEDCBA9876543210").MarshalText())(t))+"\n")))(t)
		must(f.enrol(t, open, 9, enroll.Request{SerialNumber: "CR-0009"}))(t)
		_, err := f.StartClaim(t.Context(), by("own_ada", abroad), "FEDCBA9876543210")
		wantKind(t, err, croft.KindNotFound)
	})
}

func TestRetiredBoxIsShutOutOnEveryReplica(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id := f.own(t, "own_ada", 1)
		other := f.box(t, 2)
		check(t, f.RevokeCertificates(t.Context(), staff, other))
		check(t, f.Retire(t.Context(), staff, id))
		if !f.revoked.Device(id) || f.revoked.Device(other) {
			t.Error("revocations of this replica are not those stored")
		}
		again := newFleet(t, f.db) // as another replica, or this one after a restart
		if !again.revoked.Device(id) {
			t.Error("a restart forgot who is shut out")
		}
		if n := f.say(t, id, hello(2, "2.0.0")); n != 1 {
			t.Errorf("%d strangers, want the retired box", n)
		}
		err := f.Retire(t.Context(), staff, id)
		wantKind(t, err, croft.KindRefused)
		_, err = f.Renew(t.Context(), nil, enroll.Peer{Device: id}, home, nil)
		if enroll.ReasonOf(err) != enroll.ReasonRevoked {
			t.Errorf("renewal of a retired box: %v", err)
		}
		_, err = f.Renew(t.Context(), nil, enroll.Peer{Device: idOf(99)}, home, nil)
		if enroll.ReasonOf(err) != enroll.ReasonUnenrolled {
			t.Errorf("renewal of an unknown box: %v", err)
		}
	})
}
