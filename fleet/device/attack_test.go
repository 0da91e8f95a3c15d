package device_test

import (
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// TestASerialNumberOnlySaidYieldsToAVoucher has an impostor name the number of
// another's case, before and after the box comes that the factory gave it to: the
// sticker on the case opens that box alone.
func TestASerialNumberOnlySaidYieldsToAVoucher(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		factory := ed25519.NewKeyFromSeed(make([]byte, 32))
		policy := enroll.Policy{FirstUse: enroll.FirstUseListed, Factory: []ed25519.PublicKey{factory.Public().(ed25519.PublicKey)}}
		for i, first := range []string{"impostor", "box"} {
			serial, sticker := fmt.Sprintf("CR-%04d", i), fmt.Sprintf("0123456789ABCD%02d", i)
			hash := must(enroll.HashClaim(sticker).MarshalText())(t)
			must(f.ImportSerials(t.Context(), staff, strings.NewReader("serial_number,voucher,claim\n"+serial+",,"+string(hash)+"\n")))(t)
			voucher := must(enroll.Voucher{
				ID: enroll.NewVoucherID(), SerialNumber: serial, Claim: enroll.HashClaim(sticker), Until: time.Now().Add(time.Hour),
			}.Sign(factory))(t)
			impostor, box := 10*i+1, 10*i+2
			if first == "impostor" {
				must(f.enrol(t, policy, impostor, enroll.Request{SerialNumber: serial}))(t)
			}
			must(f.enrol(t, policy, box, enroll.Request{SerialNumber: serial, Voucher: voucher}))(t)
			if _, err := f.enrol(t, policy, impostor, enroll.Request{SerialNumber: serial}); enroll.ReasonOf(err) != enroll.ReasonSerialTaken {
				t.Errorf("%s first: the impostor comes again: %v", first, err)
			}
			if found, err := f.StartClaim(t.Context(), by("own_ada", abroad), sticker); err != nil || found.Device != idOf(box) {
				t.Errorf("%s first: the sticker is of %.6s (%v), want %.6s", first, found.Device, err, idOf(box))
			}
		}
	})
}

// TestASerialNumberOfTheListIsNobodyElsesToSay has a box call itself by another's
// number in its hello, and the other give its own away.
func TestASerialNumberOfTheListIsNobodyElsesToSay(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		must(f.ImportSerials(t.Context(), staff, strings.NewReader("serial_number,voucher,claim\nCR-1,,\nCR-2,,\n")))(t)
		listed := enroll.Policy{FirstUse: enroll.FirstUseListed}
		box := must(f.enrol(t, listed, 1, enroll.Request{SerialNumber: "CR-1"}))(t)
		thief := must(f.enrol(t, listed, 2, enroll.Request{SerialNumber: "CR-2"}))(t)
		stranger := f.box(t, 3)
		for i, tc := range []struct {
			id         croft.DeviceID
			says, want string
		}{{thief, "CR-1", "CR-2"}, {stranger, "CR-1", ""}, {stranger, "CR-77", "CR-77"}, {box, "CR-9", "CR-1"}} {
			h := hello(uint64(i+2), "1.0.0")
			h.Serial = tc.says
			f.say(t, tc.id, h)
			if got := must(f.Box(t.Context(), staff, tc.id))(t).Serial; got != tc.want {
				t.Errorf("box %d says that it is %s, and is believed to be %q, want %q", i, tc.says, got, tc.want)
			}
		}
	})
}

// TestALogSentTwiceIsStoredOnce has lines come again as a box sends them whose line
// broke before the acknowledgement.
func TestALogSentTwiceIsStoredOnce(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id, other := f.box(t, 1), f.box(t, 2)
		var payloads []fleetapi.Payload
		for n := range 3 {
			at := time.Now().Add(time.Duration(n) * time.Minute)
			payloads = append(payloads, &fleetapi.LogLines{Dropped: uint64(n), Lines: []fleetapi.LogLine{
				{At: at, Level: "info", Text: "lease started"}, {At: at, Level: "info", Text: "lease started"}, {At: at.Add(time.Second), Level: "warn", Text: "it is hot"},
			}})
		}
		f.say(t, id, payloads[0], payloads[1])
		f.say(t, id, payloads[1], payloads[2], payloads[0])
		f.say(t, other, payloads[0])
		if lines := must(f.LogAfter(t.Context(), staff, id, 0, 100))(t); len(lines) != 11 { // and twice that lines were left out
			t.Errorf("stored %d lines, want 11", len(lines))
		}
		if lines := must(f.LogAfter(t.Context(), staff, other, 0, 100))(t); len(lines) != 3 {
			t.Errorf("stored %d lines of the other box, want 3", len(lines))
		}
	})
}

// TestTheFleetsClockWasWrong has what was stored while the fleet's server believed
// in 2099 do no harm when it knows better.
func TestTheFleetsClockWasWrong(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.box(t, 1)
		must(f.StartClaim(ctx, by("own_mallory", abroad), codeOf(1)))(t)
		f.own(t, "own_bob", 2)
		_, _, err := f.OfferTransfer(ctx, "own_bob", idOf(2))
		check(t, err)
		for n := range 5 { // enough that an account may type no more
			_, err := f.StartClaim(ctx, by("own_ada", abroad), codeOf(1000+n))
			wantKind(t, err, croft.KindNotFound)
		}
		years := (70 * 365 * 24 * time.Hour).Microseconds()
		check(t, f.db.Write(ctx, func(tx *db.Tx) error {
			for _, wrong := range []string{
				"UPDATE device_seen SET at = at + ?",
				"UPDATE device_boxes SET claim_until = claim_until + ? WHERE claim_until <> 0",
				"UPDATE device_boxes SET offer_until = offer_until + ? WHERE offer_until <> 0",
				"UPDATE device_tries SET at = at + ?",
			} {
				if _, err := tx.Exec(wrong, years); err != nil {
					return err
				}
			}
			return nil
		}))
		check(t, f.Round(ctx))
		f.pass(t, device.Silence)
		if box := must(f.Box(ctx, staff, id))(t); box.Online {
			t.Errorf("a box that was heard of in 2099 is online, seen %v", box.Seen)
		}
		f.Seen(id, time.Now())
		check(t, f.Round(ctx))
		if box := must(f.Box(ctx, staff, id))(t); !box.Online {
			t.Errorf("it speaks and is offline, seen %v", box.Seen)
		}
		if c := f.claim(t, id); c.State != ownership.Unclaimed {
			t.Errorf("a claim that was begun in 2099: %+v", c)
		}
		if c := f.claim(t, idOf(2)); c.State != ownership.Claimed {
			t.Errorf("an offer of 2099: %+v", c)
		}
		must(f.StartClaim(ctx, by("own_ada", abroad), codeOf(1)))(t)
	})
}

// TestABoxFillsNoTable has a box say as much as it can.
func TestABoxFillsNoTable(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.box(t, 1)
		var events []fleetapi.Payload
		for seq := range uint64(500) {
			events = append(events, boxEvent(seq+1, "noise"))
		}
		f.say(t, id, events...)
		f.say(t, id, events[400:]...) // again
		page, _, err := f.Timeline(ctx, staff, id, "", 500)
		check(t, err)
		if len(page) < 100 || len(page) > 110 || page[0].Kind != "noise" || page[0].Seq != 500 {
			t.Errorf("kept %d events, the newest %+v; want about the newest 100", len(page), page[0])
		}
		issued := 1
		for range 300 {
			if _, err = f.enrol(t, open, 1, enroll.Request{}); err != nil {
				break
			}
			issued++
		}
		if enroll.ReasonOf(err) != enroll.ReasonTooMany || issued < 50 {
			t.Errorf("after %d certificates in a minute: %v", issued, err)
		}
		must(f.enrol(t, open, 2, enroll.Request{}))(t)
	})
}

// TestTextThatNoDatabaseTakes is typed, or sent, by somebody who tries: it is refused or
// finds nothing, and is not the fleet's fault.
func TestTextThatNoDatabaseTakes(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.box(t, 1)
		for _, bad := range []string{"a\x00b", "a\xffb", "\xed\xa0\x80"} {
			errs := map[string]error{
				"SetName":   f.SetName(ctx, staff, id, bad),
				"SetLabels": f.SetLabels(ctx, staff, id, map[string]string{"a": bad}),
				"SetAlerts": f.SetAlerts(ctx, id, bad),
			}
			_, errs["Search"] = f.Search(ctx, staff, bad)
			_, errs["Box"] = f.Box(ctx, staff, croft.DeviceID(bad))
			_, errs["StartClaim"] = f.StartClaim(ctx, by("own_ada", abroad), bad)
			_, errs["SaveGroup"] = f.SaveGroup(ctx, staff, device.Group{Name: bad, Selector: "a"})
			_, _, errs["selector"] = f.List(ctx, staff, device.Query{Selector: "a=" + bad})
			_, _, errs["owner"] = f.List(ctx, staff, device.Query{Owner: bad})
			_, _, errs["board"] = f.List(ctx, staff, device.Query{Board: bad})
			_, _, errs["cursor"] = f.List(ctx, staff, device.Query{Sort: device.SortName, Cursor: device.CursorAt(bad, 1, bad)})
			_, errs["ConfirmClaim"] = f.ConfirmClaim(ctx, "own_ada", croft.DeviceID(bad))
			errs["DeleteGroup"] = f.DeleteGroup(ctx, staff, bad)
			for what, err := range errs {
				if err != nil && croft.KindOf(err) == croft.KindOther {
					t.Errorf("%s of %q: %v", what, bad, err)
				}
			}
		}
	})
}
