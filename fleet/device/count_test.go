package device_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func TestOverviewCountsAndNeighboursTell(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		a, b, c := f.own(t, "own_ada", 1), f.box(t, 2), f.box(t, 3)
		far := f.box(t, 4)
		must(f.Receive(t.Context(), []device.Message{{Device: far, At: time.Now(), Address: netip.MustParseAddr("2001:db8::1"), Payload: hello(2, "1.0.0")}}))(t)
		f.say(t, b, &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: 1})
		live, silent, err := f.Neighbours(t.Context(), a)
		check(t, err)
		if live != 1 || silent != 1 { // c and b
			t.Errorf("%d neighbours are online, %d are not", live, silent)
		}
		counts := must(f.Overview(t.Context()))(t)
		want := []device.Count{
			{Board: "uefi-x86", Release: "1.0.0", State: ownership.Claimed, Online: 1, All: 1},
			{Board: "uefi-x86", Release: "1.0.0", State: ownership.Unclaimed, Online: 2, All: 3},
		}
		if len(counts) != 2 || counts[0] != want[0] || counts[1] != want[1] {
			t.Errorf("counts %+v, want %+v", counts, want)
		}
		check(t, f.Retire(t.Context(), staff, c))
		known := must(f.Known(t.Context(), []croft.DeviceID{a, c, idOf(9)}))(t)
		if !known[a] || known[c] || known[idOf(9)] {
			t.Errorf("known %v", known)
		}
	})
}

func TestWhatStaffDesires(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.box(t, 1)
		check(t, f.SetInterval(ctx, staff, id, time.Minute))
		check(t, f.SetRelease(ctx, staff, id, "2.0.0"))
		check(t, f.SetRelease(ctx, staff, id, "2.0.0"))
		d := must(f.Box(ctx, staff, id))(t).Desired
		if d.Interval != time.Minute || d.Release != "2.0.0" || d.Version != 3 {
			t.Errorf("desired %+v", d)
		}
		check(t, f.SetInterval(ctx, staff, id, 0))
		if d := must(f.Box(ctx, staff, id))(t).Desired; d.Interval != 10*time.Second {
			t.Errorf("the default interval is %v", d.Interval)
		}
		wantKind(t, f.SetInterval(ctx, staff, id, time.Millisecond), croft.KindUsage)
		wantKind(t, f.SetRelease(ctx, staff, id, "../../etc"), croft.KindUsage)
		wantKind(t, f.SetName(ctx, staff, id, "a\x00b"), croft.KindUsage)
		check(t, f.SetAlerts(ctx, id, "Fan stands\nstill"))
		if box := must(f.Box(ctx, staff, id))(t); box.Alerts != "Fan stands still" || box.Desired.Version != 4 {
			t.Errorf("alerts %q, version %d", box.Alerts, box.Desired.Version)
		}
	})
}

func TestOneRoundOfTheLoops(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.own(t, "own_ada", 1)
		f.box(t, 2)
		must(f.StartClaim(ctx, by("own_bob", abroad), codeOf(2)))(t)
		f.pass(t, ownership.FailSafe)
		for n := range 250 { // heartbeats of boxes that are not there do no harm
			f.Seen(idOf(n), time.Now())
		}
		check(t, f.Round(ctx))
		if d := f.published(id); !d.Claimed || f.actions(id)["claim.confirm"] != 1 || f.actions(idOf(2))["claim.expire"] != 1 {
			t.Errorf("published %+v, audited %v and %v", d, f.actions(id), f.actions(idOf(2)))
		}
		if box := must(f.Box(ctx, staff, id))(t); !box.Online {
			t.Errorf("box that spoke: %+v", box)
		}
		delete(f.desired, id)
		check(t, f.Round(ctx))
		if len(f.desired) != 1 { // of box 2, and nothing twice
			t.Errorf("published again: %+v", f.desired)
		}
	})
}
