package webapi

import (
	"bytes"
	"fmt"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

// actor is for whom boxes are looked at: of the staff where the permission covers
// everybody's.
func (k *call) actor(p rights.Permission) device.Actor {
	return device.Actor{ID: k.p.Account, Staff: k.reach(p.Resource, p.Action) == rights.All}
}

// box is the box that the address names, if the caller may do this to it. One he
// may not even see does not exist.
func (k *call) box(p rights.Permission) (device.Box, device.Actor, error) {
	id, err := croft.ParseDeviceID(k.r.PathValue("device"))
	if err != nil {
		return device.Box{}, device.Actor{}, device.ErrNoBox
	}
	return k.boxOf(p, id)
}

func (k *call) boxOf(p rights.Permission, id croft.DeviceID) (device.Box, device.Actor, error) {
	actor := k.actor(p)
	if k.reach(p.Resource, p.Action) == rights.None {
		return device.Box{}, actor, auth.ErrForbidden
	}
	see := actor
	if reads := k.actor(readDevice); reads.Staff {
		see = reads
	}
	box, err := k.cfg.Devices.Box(k.r.Context(), see, id)
	if err != nil {
		return box, actor, err
	}
	if !rights.Allowed(k.p, p.Action, rights.Object{Resource: p.Resource, Owner: box.Claim.Owner}) {
		return box, actor, auth.ErrForbidden
	}
	return box, actor, nil
}

func items[From, To any](from []From, to func(From) To) []To {
	out := make([]To, 0, len(from))
	for _, one := range from {
		out = append(out, to(one))
	}
	return out
}

func listOf[From, To any](from []From, next string, err error, to func(From) To) (fleetclient.Page[To], error) {
	return fleetclient.Page[To]{Items: items(from, to), Next: next}, err
}

// deviceOf is a box as the caller may see it. What alert rules say of it in the words of
// the staff is for the staff: owners have their own words in the list of alerts.
func (k *call) deviceOf(b device.Box) fleetclient.Device {
	if !k.actor(readDevice).Staff {
		b.Alerts = ""
	}
	return fleetclient.Device{
		ID: b.ID, Name: b.Name, Serial: b.Serial, SerialProven: b.Proven, Board: b.Board, Release: b.Release, WantedRelease: b.Desired.Release,
		Slot: b.Slot, BootID: b.BootID, ClockSynced: b.Synced, Online: b.Online, PresenceSince: fleetapi.StampOf(b.PresenceAt), Seen: fleetapi.StampOf(b.Seen),
		Enrolled: fleetapi.StampOf(b.Enrolled), Address: b.Address, CertificateUntil: fleetapi.StampOf(b.CertificateUntil),
		Claim: fleetclient.Claim{
			State: string(b.Claim.State), Owner: b.Claim.Owner, Since: fleetapi.StampOf(b.Claim.Since), Until: fleetapi.StampOf(b.Claim.Until), OfferUntil: fleetapi.StampOf(b.Claim.OfferUntil),
		},
		Labels: b.Labels, Interval: fleetclient.Duration(b.Desired.Interval), Alerts: b.Alerts, Facts: b.Facts,
	}
}

func (k *call) listDevices() (fleetclient.Page[fleetclient.Device], error) {
	q := device.Query{
		Owner: k.q.Get("owner"), State: ownership.State(k.q.Get("state")), Release: croft.Version(k.q.Get("release")), Board: k.q.Get("board"),
		Selector: k.q.Get("selector"), Sort: device.Sort(k.q.Get("sort")), Cursor: k.q.Get("cursor"), Limit: k.integer("limit"),
	}
	actor := k.actor(readDevice)
	if q.Owner != "" && !actor.Staff && q.Owner != actor.ID {
		return fleetclient.Page[fleetclient.Device]{Items: []fleetclient.Device{}}, nil
	}
	if k.q.Get("online") != "" {
		online := k.boolean("online")
		q.Online = &online
	}
	boxes, next, err := k.cfg.Devices.List(k.r.Context(), actor, q)
	return listOf(boxes, next, err, k.deviceOf)
}

func (k *call) search() (fleetclient.Page[fleetclient.Device], error) {
	boxes, err := k.cfg.Devices.Search(k.r.Context(), k.actor(readDevice), k.q.Get("q"))
	return listOf(boxes, "", err, k.deviceOf)
}

func (k *call) getDevice() (fleetclient.Device, error) {
	box, _, err := k.box(readDevice)
	return k.deviceOf(box), err
}

func (k *call) changeDevice(p fleetclient.DevicePatch) (fleetclient.Device, error) {
	ctx := k.r.Context()
	rename, label := may(rights.Device, rights.Rename), may(rights.Device, rights.Label)
	needed := rename
	if p.Labels != nil || p.Interval != nil {
		needed = label
	}
	box, actor, err := k.box(needed)
	if err == nil && p.Name != nil && needed != rename {
		_, actor, err = k.box(rename)
	}
	if err != nil {
		return fleetclient.Device{}, err
	}
	if p.Labels != nil {
		set := box.Labels
		for name, value := range p.Labels {
			if value == nil {
				delete(set, name)
			} else {
				set[name] = *value
			}
		}
		if err := k.cfg.Devices.SetLabels(ctx, k.actor(label), box.ID, set); err != nil {
			return fleetclient.Device{}, err
		}
	}
	if p.Interval != nil {
		if err := k.cfg.Devices.SetInterval(ctx, k.actor(label), box.ID, time.Duration(*p.Interval)); err != nil {
			return fleetclient.Device{}, err
		}
	}
	if p.Name != nil {
		if err := k.cfg.Devices.SetName(ctx, actor, box.ID, *p.Name); err != nil {
			return fleetclient.Device{}, err
		}
	}
	box, err = k.cfg.Devices.Box(ctx, actor, box.ID)
	return k.deviceOf(box), err
}

func (k *call) events() (fleetclient.Page[fleetclient.Event], error) {
	var page fleetclient.Page[fleetclient.Event]
	box, actor, err := k.box(readDevice)
	if err != nil {
		return page, err
	}
	found, next, err := k.cfg.Devices.Timeline(k.r.Context(), actor, box.ID, k.q.Get("cursor"), k.integer("limit"))
	return listOf(found, next, err, func(e device.Event) fleetclient.Event {
		return fleetclient.Event{
			ID: fmt.Sprintf("%d-%d", e.Journal, e.Seq), At: fleetapi.StampOf(e.At), BoxTime: fleetapi.StampOf(e.BoxTime), ClockSynced: e.Synced,
			Received: fleetapi.StampOf(e.Received), Kind: e.Kind, Severity: e.Severity, Fields: e.Fields,
		}
	})
}

func (k *call) logLines() (fleetclient.Page[fleetclient.LogLine], error) {
	var page fleetclient.Page[fleetclient.LogLine]
	box, actor, err := k.box(readDevice)
	if err != nil {
		return page, err
	}
	found, err := k.cfg.Devices.LogAfter(k.r.Context(), actor, box.ID, int64(k.integer("after")), k.integer("limit"))
	return listOf(found, "", err, func(l device.LogLine) fleetclient.LogLine {
		return fleetclient.LogLine{N: l.N, At: fleetapi.StampOf(l.At), Received: fleetapi.StampOf(l.Received), Level: l.Level, Text: l.Text}
	})
}

func (k *call) startClaim(in fleetclient.ClaimCode) (fleetclient.FoundBox, error) {
	found, err := k.cfg.Devices.StartClaim(k.r.Context(), device.Claimant{Account: k.p.Account, Address: k.cfg.Door.Client(k.r).Address}, in.Code)
	return fleetclient.FoundBox{Device: found.Device, Board: found.Board, Online: found.Online, Transfer: found.Transfer, Until: fleetapi.StampOf(found.Until)}, err
}

// claimed is a box that the caller has begun to claim, or has claimed. Of others he
// learns nothing.
func (k *call) claimed() (croft.DeviceID, error) {
	id, err := croft.ParseDeviceID(k.r.PathValue("device"))
	if err != nil {
		return "", device.ErrNoBox
	}
	box, err := k.cfg.Devices.Box(k.r.Context(), device.Actor{ID: k.p.Account, Staff: true}, id)
	if err == nil && box.Claim.Claimant != k.p.Account && box.Claim.Owner != k.p.Account {
		err = device.ErrNoBox
	}
	return id, err
}

func (k *call) confirmClaim() (fleetclient.Device, error) {
	id, err := k.claimed()
	if err != nil {
		return fleetclient.Device{}, err
	}
	box, err := k.cfg.Devices.ConfirmClaim(k.r.Context(), k.p.Account, id)
	return k.deviceOf(box), err
}

func (k *call) undoClaim() error {
	id, err := k.claimed()
	if err != nil {
		return err
	}
	return k.cfg.Devices.UndoClaim(k.r.Context(), k.p.Account, id)
}

func (k *call) offerTransfer() (fleetclient.TransferCode, error) {
	box, actor, err := k.box(transfer)
	if err != nil {
		return fleetclient.TransferCode{}, err
	}
	code, until, err := k.cfg.Devices.OfferTransfer(k.r.Context(), actor.ID, box.ID)
	return fleetclient.TransferCode{Code: string(code), Until: fleetapi.StampOf(until)}, err
}

func (k *call) withdrawTransfer() error {
	box, actor, err := k.box(transfer)
	if err != nil {
		return err
	}
	return k.cfg.Devices.WithdrawTransfer(k.r.Context(), actor.ID, box.ID)
}

func (k *call) release() error {
	box, actor, err := k.box(may(rights.Device, rights.Release))
	if err != nil {
		return err
	}
	return k.cfg.Devices.Release(k.r.Context(), actor.ID, box.ID)
}

func (k *call) retire() error {
	box, actor, err := k.box(retire)
	if err != nil {
		return err
	}
	return k.cfg.Devices.Retire(k.r.Context(), actor, box.ID)
}

func (k *call) revoke() error {
	box, actor, err := k.box(retire)
	if err != nil {
		return err
	}
	return k.cfg.Devices.RevokeCertificates(k.r.Context(), actor, box.ID)
}

func (k *call) freeVoucher() error {
	box, actor, err := k.box(may(rights.Serial, rights.Write))
	if err != nil {
		return err
	}
	return k.cfg.Devices.FreeVoucher(k.r.Context(), actor, box.ID)
}

func (k *call) importSerials() (fleetclient.SerialImport, error) {
	found, err := k.cfg.Devices.ImportSerials(k.r.Context(), k.actor(may(rights.Serial, rights.Write)), bytes.NewReader(k.raw))
	return fleetclient.SerialImport{Added: found.Added, Known: found.Known}, err
}

func groupOf(g device.Group) fleetclient.Group {
	return fleetclient.Group{ID: g.ID, Name: g.Name, Selector: g.Selector}
}

func (k *call) groups() (fleetclient.Page[fleetclient.Group], error) {
	found, err := k.cfg.Devices.Groups(k.r.Context(), k.actor(readGroup))
	return listOf(found, "", err, groupOf)
}

func (k *call) addGroup(g fleetclient.Group) (fleetclient.Group, error) {
	if g.ID != "" {
		return g, usage("the id of a new group is the fleet's to make")
	}
	saved, err := k.cfg.Devices.SaveGroup(k.r.Context(), k.actor(writeGroup), device.Group{Name: g.Name, Selector: g.Selector})
	return groupOf(saved), err
}

func (k *call) changeGroup(g fleetclient.Group) (fleetclient.Group, error) {
	if id := k.r.PathValue("id"); g.ID != "" && g.ID != id {
		return g, usage("the id is not that of the address")
	}
	saved, err := k.cfg.Devices.SaveGroup(k.r.Context(), k.actor(writeGroup), device.Group{ID: k.r.PathValue("id"), Name: g.Name, Selector: g.Selector})
	return groupOf(saved), err
}

func (k *call) deleteGroup() error {
	return k.cfg.Devices.DeleteGroup(k.r.Context(), k.actor(writeGroup), k.r.PathValue("id"))
}
