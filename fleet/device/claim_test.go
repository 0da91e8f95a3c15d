package device_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

func (f *fleet) claim(t testing.TB, id croft.DeviceID) ownership.Claim {
	t.Helper()
	return must(f.Box(t.Context(), staff, id))(t).Claim
}

func TestHalfDoneClaimIsUndone(t *testing.T) {
	timed(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		ctx := t.Context()
		must(f.StartClaim(ctx, by("own_ada", abroad), codeOf(1)))(t)
		_, err := f.StartClaim(ctx, by("own_bob", abroad), codeOf(1))
		wantKind(t, err, croft.KindRefused)
		time.Sleep(ownership.FailSafe - time.Second)
		must(f.StartClaim(ctx, by("own_ada", abroad), codeOf(1)))(t) // does not prolong it
		time.Sleep(time.Second)
		_, err = f.ConfirmClaim(ctx, "own_ada", id) // no loop runs: the clock decides
		wantKind(t, err, croft.KindRefused)
		must(f.StartClaim(ctx, by("own_bob", abroad), codeOf(1)))(t)
		check(t, f.UndoClaim(ctx, "own_bob", id))
		f.run(t)
		must(f.StartClaim(ctx, by("own_ada", abroad), codeOf(1)))(t)
		time.Sleep(ownership.FailSafe + 2*time.Second)
		if f.actions(id)["claim.expire"] != 2 {
			t.Errorf("audit log has %v, want two claims that ran out", f.actions(id))
		}
		if c := f.claim(t, id); c.State != ownership.Unclaimed || c.Claimant != "" {
			t.Errorf("claim = %+v", c)
		}
	})
}

func TestTransferByTheSellersTap(t *testing.T) {
	timed(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.own(t, "own_ada", 1)
		check(t, f.SetName(ctx, device.Actor{ID: "own_ada"}, id, "Bedroom"))
		old, _, err := f.OfferTransfer(ctx, "own_ada", id)
		check(t, err)
		code, until, err := f.OfferTransfer(ctx, "own_ada", id)
		check(t, err)
		if got := time.Until(until); got != ownership.OfferLife {
			t.Errorf("the code is good for %v", got)
		}
		_, err = f.StartClaim(ctx, by("own_bob", abroad), old.Shown())
		wantKind(t, err, croft.KindNotFound)
		_, err = f.StartClaim(ctx, by("own_ada", abroad), code.Shown())
		wantKind(t, err, croft.KindRefused)
		time.Sleep(time.Minute)
		found := must(f.StartClaim(ctx, by("own_bob", abroad), code.Shown()))(t)
		if !found.Transfer || found.Device != id {
			t.Errorf("found %+v", found)
		}
		if c := f.claim(t, id); c.Owner != "own_ada" {
			t.Errorf("before the buyer confirms the owner is %q", c.Owner)
		}
		wantKind(t, f.WithdrawTransfer(ctx, "own_ada", id), croft.KindRefused)
		box := must(f.ConfirmClaim(ctx, "own_bob", id))(t)
		if box.Claim.Owner != "own_bob" || box.Name != "" {
			t.Errorf("box = %+v", box)
		}
		if _, err := f.Box(ctx, device.Actor{ID: "own_ada"}, id); !errors.Is(err, device.ErrNoBox) {
			t.Errorf("the seller still sees the box: %v", err)
		}
		events, _, err := f.Timeline(ctx, device.Actor{ID: "own_bob"}, id, "", 0)
		check(t, err)
		if len(events) != 1 || events[0].Kind != "claim_confirm" {
			t.Errorf("the buyer sees %+v, want nothing from before his time", events)
		}
		_, err = f.StartClaim(ctx, by("own_ada", abroad), code.Shown())
		wantKind(t, err, croft.KindNotFound)

		_, _, err = f.OfferTransfer(ctx, "own_bob", id)
		check(t, err)
		time.Sleep(ownership.OfferLife)
		if c := f.claim(t, id); c.State != ownership.Claimed || c.Owner != "own_bob" {
			t.Errorf("after the offer lapsed: %+v", c)
		}
	})
}

func TestResetNeverFreesAClaim(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.own(t, "own_ada", 1)
		// A factory reset: the box enrols again, with its old code and a new one.
		for _, n := range []int{1, 2} {
			must(f.enrol(t, open, 1, enroll.Request{Claim: enroll.HashClaim(codeOf(n))}))(t)
			f.say(t, id, &fleetapi.Hello{Journal: 99, Epoch: 1, Version: 1, Release: "1.0.0", Board: "x"})
			f.say(t, id, &fleetapi.State{Presence: fleetapi.Online, Journal: 99, Epoch: 1})
			_, err := f.StartClaim(ctx, by("own_thief", home), codeOf(n))
			wantKind(t, err, croft.KindNotFound)
			if c := f.claim(t, id); c.State != ownership.Claimed || c.Owner != "own_ada" {
				t.Fatalf("claim = %+v", c)
			}
		}
		// Given up, its spent code opens nothing; the one it drew since does.
		check(t, f.Release(ctx, "own_ada", id))
		_, err := f.StartClaim(ctx, by("own_bob", abroad), codeOf(1))
		wantKind(t, err, croft.KindNotFound)
		must(f.StartClaim(ctx, by("own_bob", abroad), codeOf(2)))(t)
	})
}

func TestWordsOnThePageWorkAtHomeOnly(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.own(t, "own_ada", 1)
		check(t, f.Release(ctx, "own_ada", id))
		words := "River candle SEVENB"
		_, err := f.StartClaim(ctx, by("own_bob", abroad), words)
		wantKind(t, err, croft.KindNotFound)
		if found := must(f.StartClaim(ctx, by("own_bob", home), words))(t); found.Device != id {
			t.Errorf("found %+v", found)
		}
		check(t, f.UndoClaim(ctx, "own_bob", id))
		f.pass(t, device.Silence) // a box that is not there proves nothing
		_, err = f.StartClaim(ctx, by("own_bob", home), words)
		wantKind(t, err, croft.KindNotFound)
	})
}

func TestGuessesEnd(t *testing.T) {
	address := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}) }
	wrong := func(n int) string { return fmt.Sprintf("%04d%04d", n%10000, 7) } // each of another first half
	for _, tc := range []struct {
		name  string
		who   func(n int) device.Claimant
		code  func(n int) string
		limit int
	}{
		{"of one account", func(n int) device.Claimant { return by("own_a", address(n)) }, wrong, 5},
		{"of one address", func(n int) device.Claimant { return by(fmt.Sprint("own_", n), abroad) }, wrong, 10},
		{"of one IPv6 network", func(n int) device.Claimant {
			return by(fmt.Sprint("own_", n), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(n)}))
		}, wrong, 10},
		{
			"of one half", func(n int) device.Claimant { return by(fmt.Sprint("own_", n), address(n)) },
			func(n int) string { return fmt.Sprintf("BX00%04d", 9000+n) }, 5,
		},
		{"of the whole fleet", func(n int) device.Claimant { return by(fmt.Sprint("own_", n), address(n)) }, wrong, 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			each(t, func(t *testing.T, f *fleet) {
				id := f.box(t, 1)
				ctx := t.Context()
				looked := 0
				for n := range tc.limit + 3 {
					_, err := f.StartClaim(ctx, tc.who(n), tc.code(n))
					if err == nil || croft.KindOf(err) == croft.KindOther {
						t.Fatalf("try %d: %v", n, err)
					}
					if strings.Contains(err.Error(), "compare it with the code on the box") { // not looked up at home only
						looked++
					}
					_, again := f.StartClaim(ctx, tc.who(n), tc.code(n)) // the same code is the same try
					if again == nil {
						t.Fatal("a wrong code became right")
					}
				}
				if looked != tc.limit {
					t.Errorf("%d guesses were looked up, want %d", looked, tc.limit)
				}
				// The right code no longer helps who guesses from elsewhere ...
				if _, err := f.StartClaim(ctx, tc.who(tc.limit+9), codeOf(1)); err == nil {
					t.Error("the right code was accepted after the limit")
				}
				// ... but the owner at home is not shut out, and an hour later nobody is.
				must(f.StartClaim(ctx, by("own_home", home), codeOf(1)))(t)
				check(t, f.UndoClaim(ctx, "own_home", id))
				f.pass(t, time.Hour)
				must(f.StartClaim(ctx, tc.who(tc.limit+9), codeOf(1)))(t)
			})
		})
	}
}

func TestGuessesOfWordsEnd(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		f.box(t, 1)
		for n := range 5 {
			_, err := f.StartClaim(t.Context(), by("own_a", home), "wrong-guess-number"+string(rune('a'+n)))
			wantKind(t, err, croft.KindNotFound)
		}
		_, err := f.StartClaim(t.Context(), by("own_a", home), "river-candle-sevenb")
		wantKind(t, err, croft.KindRefused)
	})
}

func TestTwoBoxesWithOneCodeAreToldApartAtHome(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		f.box(t, 1)
		must(f.enrol(t, open, 2, enroll.Request{Claim: enroll.HashClaim(codeOf(1))}))(t)
		_, err := f.StartClaim(t.Context(), by("own_a", abroad), codeOf(1))
		wantKind(t, err, croft.KindRefused)
		must(f.StartClaim(t.Context(), by("own_a", home), "river-candle-sevenb"))(t)
	})
}

func TestCodesAreReadAsPeopleTypeThem(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id := f.box(t, 1)
		for _, typed := range []string{"BX00-0001", " bxoo ooo1 ", "BX00—0001", "bx00_0001"} {
			if found := must(f.StartClaim(t.Context(), by("own_a", abroad), typed))(t); found.Device != id {
				t.Errorf("%q found %s", typed, found.Device)
			}
		}
		for _, typed := range []string{"", "BX0", "BX00-00011", "' OR 1=1 --", "<script>alert(1)</script>", "BX00-000U", string(make([]byte, 500))} {
			_, err := f.StartClaim(t.Context(), by("own_a", abroad), typed)
			wantKind(t, err, croft.KindUsage)
		}
		_, err := f.StartClaim(t.Context(), by("", abroad), "BX00-0001")
		wantKind(t, err, croft.KindUsage)
	})
}

// TestClaimsUnderRandomInterleavings has two owners and a seller's codes play
// with one box in any order, with answers that are lost, resets, time that
// passes, and a fleet that is killed and begins again between what it stored
// and what it delivers.
func TestClaimsUnderRandomInterleavings(t *testing.T) {
	for seed := range uint64(4) {
		each(t, func(t *testing.T, f *fleet) { interleave(t, f, seed) })
	}
}

func interleave(t *testing.T, f *fleet, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	ctx := t.Context()
	id := f.box(t, 1)
	code, codes := 1, 1
	accounts := []string{"own_ada", "own_bob"}
	offer := ""
	var published uint64
	for step := range 150 {
		before := f.claim(t, id)
		account := accounts[r.IntN(2)]
		what, confirmed := "", false
		switch n := r.IntN(14); n {
		case 0, 1:
			what = "start"
			_, _ = f.StartClaim(ctx, by(account, abroad), codeOf(code))
		case 2:
			what = "words"
			_, _ = f.StartClaim(ctx, by(account, home), "river-candle-sevenb")
		case 3:
			if offer != "" {
				what = "accept"
				_, _ = f.StartClaim(ctx, by(account, abroad), offer)
			}
		case 4, 5, 6:
			what = "confirm"
			_, err := f.ConfirmClaim(ctx, account, id)
			confirmed = err == nil
			if r.IntN(2) == 0 {
				_, again := f.ConfirmClaim(ctx, account, id) // the answer was lost
				if (again == nil) != confirmed {
					t.Fatalf("step %d: confirm gave %v, then %v", step, err, again)
				}
			}
			if want := (before.Claimant == account || before.Owner == account && before.State == ownership.Claimed); confirmed != want {
				t.Fatalf("step %d: confirm by %s of %+v: %v", step, account, before, err)
			}
		case 7:
			what = "undo"
			_ = f.UndoClaim(ctx, account, id)
		case 8:
			what = "offer"
			if code, _, err := f.OfferTransfer(ctx, account, id); err == nil {
				offer = string(code)
			}
		case 9:
			what = "withdraw"
			_ = f.WithdrawTransfer(ctx, account, id)
		case 10:
			what = "release"
			_ = f.Release(ctx, account, id)
		case 11:
			what = "reset"
			if r.IntN(2) == 0 {
				codes++
				code = codes
			}
			must(f.enrol(t, open, 1, enroll.Request{Claim: enroll.HashClaim(codeOf(code))}))(t)
			f.online(t, id, uint64(step+2)*26+1) // always the same words
		case 12:
			what = "time"
			f.pass(t, []time.Duration{time.Second, ownership.FailSafe / 2, ownership.FailSafe, ownership.OfferLife}[r.IntN(4)])
			f.say(t, id, &fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: uint64(step+2)*26 + 1})
		case 13:
			what = "killed"
			f.cut(r.IntN(2) == 0)
			f.Store = newFleet(t, f.db).Store // with a publisher of its own: whatever it delivers is lost to f
		}
		after := f.claim(t, id)
		switch {
		case after.State.Owned() != (after.Owner != ""):
			t.Fatalf("step %d %s: %+v", step, what, after)
		case (after.State == ownership.Claiming || after.State == ownership.Accepting) != (after.Claimant != ""):
			t.Fatalf("step %d %s: %+v", step, what, after)
		case after.Owner != before.Owner && after.Owner != "" && (!confirmed || after.Owner != account):
			t.Fatalf("step %d %s by %s: owner became %q from %q", step, what, account, after.Owner, before.Owner)
		case before.Owner != "" && after.Owner == "" && (what != "release" || before.Owner != account):
			t.Fatalf("step %d %s by %s: %q lost the box", step, what, account, before.Owner)
		}
		for _, a := range accounts { // never two owners
			_, err := f.Box(ctx, device.Actor{ID: a}, id)
			if (err == nil) != (after.Owner == a) {
				t.Fatalf("step %d %s: %s sees the box: %v; its owner is %q", step, what, a, err, after.Owner)
			}
		}
		box := must(f.Box(ctx, staff, id))(t)
		if box.Desired.Version < published || box.Desired.Claimed != (after.Owner != "") {
			t.Fatalf("step %d %s: desired %+v of %+v after version %d", step, what, box.Desired, after, published)
		}
		published = box.Desired.Version
	}
	again := newFleet(t, f.db)
	check(t, again.Round(ctx))
	if d := again.published(id); d.Version != published || d.Claimed != (f.claim(t, id).Owner != "") {
		t.Errorf("after all, published is %+v, want version %d", d, published)
	}
}

// TestManyAtOnce has many claim one box, and many boxes come with one voucher's
// worth of serial number, at the same instant.
func TestManyAtOnce(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.box(t, 1)
		must(f.ImportSerials(ctx, staff, strings.NewReader("serial_number,voucher,claim\nCR-1,,\n")))(t)
		var group sync.WaitGroup
		var owners, boxes atomic.Int32
		for n := range 8 {
			group.Go(func() {
				account := fmt.Sprint("own_", n)
				if _, err := f.StartClaim(ctx, by(account, abroad), codeOf(1)); err != nil {
					return
				}
				if _, err := f.ConfirmClaim(ctx, account, id); err == nil {
					owners.Add(1)
				}
			})
			group.Go(func() {
				req := enroll.Request{Version: 1, Board: "b", Release: "1", SerialNumber: "CR-1"}
				if _, err := f.Enrol(ctx, enroll.Policy{FirstUse: enroll.FirstUseListed}, &req, idOf(100+n), home, func(_ []byte, now time.Time) (*enroll.Issued, error) {
					return &enroll.Issued{Device: idOf(100 + n), ID: enroll.CertID(fmt.Sprint("m", n)), NotBefore: now, NotAfter: now.Add(time.Hour)}, nil
				}); err == nil {
					boxes.Add(1)
				}
			})
		}
		group.Wait()
		if owners.Load() != 1 || boxes.Load() != 1 {
			t.Errorf("%d became the owner, %d boxes came in, want one each", owners.Load(), boxes.Load())
		}
		if c := f.claim(t, id); c.State != ownership.Claimed || c.Owner == "" {
			t.Errorf("claim %+v", c)
		}
	})
}
