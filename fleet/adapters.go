package fleet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/job"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// The contexts do not know each other. What one needs of another stands here, as
// small types that implement what it asks for.

// itsActor is the fleet itself, asking about any box.
var itsActor = device.Actor{ID: "fleet", Staff: true}

// itself is the fleet, asking about people.
var itself = rights.Principal{Account: "fleet", Role: rights.RoleAdmin, Stage: rights.StageFull}

// deviceAudit writes what happened to boxes into the audit log, and removes what one
// owner's time with a box has left behind when that is over.
type deviceAudit struct{ f *Fleet }

func (a deviceAudit) Record(ctx context.Context, e device.Entry) error {
	owner, left := e.Before["owner"]
	if left = left && owner != ""; left {
		if err := a.f.bundles.DeleteDevice(ctx, e.Device); err != nil {
			return err
		}
	}
	return a.f.db.Write(ctx, func(tx *db.Tx) error {
		if left {
			if err := a.f.wiper.order(tx, e.Device, e.At); err != nil {
				return err
			}
		}
		return a.f.audit.Record(tx, auditlog.Entry{
			ID: e.ID, At: e.At, Actor: e.By, Action: e.Action,
			Kind: "device", Object: string(e.Device), Before: e.Before, After: e.After,
		})
	})
}

// jobAudit writes what boxes were asked to do into the audit log.
type jobAudit struct {
	db  *db.DB
	log *auditlog.Log
}

func (a jobAudit) Record(ctx context.Context, e job.Entry) error {
	return a.db.Write(ctx, func(tx *db.Tx) error {
		return a.log.Record(tx, auditlog.Entry{
			ID: e.ID, At: e.At, Actor: e.By, Action: e.Action,
			Kind: "device", Object: string(e.Device), Before: e.Before, After: e.After,
		})
	})
}

type alertAudit struct{ log *auditlog.Log }

func (a alertAudit) Record(tx *db.Tx, e alert.Entry) error {
	return a.log.Record(tx, auditlog.Entry{Actor: e.By, Action: e.Action, Kind: "alert", Object: e.Object, Before: e.Before, After: e.After})
}

type authAudit struct{ log *auditlog.Log }

func (a authAudit) Record(tx *db.Tx, e auth.Entry) error { return a.log.Record(tx, auditlog.Entry(e)) }

// jobBoxes is what jobs must know of boxes.
type jobBoxes struct{ devices *device.Store }

func (b jobBoxes) Allowed(ctx context.Context, actor job.Actor, id croft.DeviceID) error {
	_, err := b.devices.Box(ctx, device.Actor(actor), id)
	return err
}

func (b jobBoxes) Known(ctx context.Context, ids []croft.DeviceID) (map[croft.DeviceID]bool, error) {
	return b.devices.Known(ctx, ids)
}

func (b jobBoxes) Select(ctx context.Context, actor job.Actor, selector string) (ids []croft.DeviceID, err error) {
	err = eachBox(ctx, b.devices, device.Actor(actor), device.Query{Selector: selector}, func(box device.Box) bool {
		ids = append(ids, box.ID)
		return len(ids) <= job.MaxBulk
	})
	return ids, err
}

// eachBox hands over all boxes of a list that are in the fleet, until do says false.
func eachBox(ctx context.Context, devices *device.Store, actor device.Actor, q device.Query, do func(device.Box) bool) error {
	q.Limit = 500
	for {
		page, next, err := devices.List(ctx, actor, q)
		if err != nil {
			return err
		}
		for _, box := range page {
			if box.Claim.State != ownership.Retired && !do(box) {
				return nil
			}
		}
		if next == "" {
			return nil
		}
		q.Cursor = next
	}
}

// alertBoxes is what alert rules know of boxes.
type alertBoxes struct {
	db      *db.DB
	devices *device.Store
}

func (b alertBoxes) Boxes(ctx context.Context) (out []alert.Box, err error) {
	broken := map[string]time.Time{}
	err = b.db.Read(ctx, func(tx *db.Tx) error {
		rows, err := db.All(tx, func(scan db.Scan) (one struct {
			device string
			at     int64
		}, err error,
		) {
			err = scan(&one.device, &one.at)
			return one, err
		}, "SELECT device, at FROM fleet_broken_leases WHERE at > ?", db.Micros(time.Now().Add(-time.Hour)))
		for _, row := range rows {
			broken[row.device] = db.Instant(row.at)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read broken leases: %w", err)
	}
	err = eachBox(ctx, b.devices, itsActor, device.Query{}, func(box device.Box) bool {
		out = append(out, alert.Box{
			ID: box.ID, Name: box.Name, Owner: box.Claim.Owner, Labels: box.Labels,
			Heard: !box.Seen.IsZero(), Online: box.Online, Seen: box.Seen,
			CertificateUntil: box.CertificateUntil, LeaseBroken: broken[string(box.ID)],
		})
		return true
	})
	return out, err
}

// alertReadings answers rules from the time series of all boxes.
type alertReadings struct{ series *timeseries.Store }

func (r alertReadings) Ask(ctx context.Context, expr string) ([]alert.Sample, error) {
	series, err := r.series.Instant(ctx, timeseries.Scope{All: true}, expr, time.Now())
	if err != nil {
		return nil, err
	}
	out := make([]alert.Sample, 0, len(series))
	for _, one := range series {
		if n := len(one.Points); n > 0 {
			out = append(out, alert.Sample{Labels: one.Labels, Value: one.Points[n-1].Value})
		}
	}
	return out, nil
}

// alertOwners knows how to reach owners.
type alertOwners struct{ auth *auth.Service }

func (o alertOwners) Email(ctx context.Context, owner string) (string, error) {
	account, err := o.auth.Account(ctx, itself, owner)
	if croft.KindOf(err) == croft.KindNotFound {
		return "", nil
	}
	return account.Email, err
}

// alertMailer sends mails of alerts the way those of sign-ins are sent.
type alertMailer struct{ mailer auth.Mailer }

func (m alertMailer) Send(ctx context.Context, mail alert.Mail) error {
	if m.mailer == nil {
		return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("this fleet sends no mails"), Remedy: "start it with a mail server"}
	}
	return m.mailer.Send(ctx, mail.To, mail.Subject, mail.Text)
}

// tellAlerts keeps at each box, in words, what is wrong with it now. One replica does.
func tellAlerts(ctx context.Context, d *db.DB, alerts *alert.Store, devices *device.Store) error {
	return d.Lead(ctx, "fleet_alerts", func(ctx context.Context) error {
		changed := d.Listen(ctx, alert.Topic)
		again := time.NewTicker(time.Minute)
		defer again.Stop()
		told := map[croft.DeviceID]string{}
		err := eachBox(ctx, devices, itsActor, device.Query{}, func(box device.Box) bool {
			if box.Alerts != "" {
				told[box.ID] = box.Alerts
			}
			return true
		})
		for err == nil {
			if err = tellOnce(ctx, alerts, devices, told); err != nil {
				break
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-again.C:
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// tellOnce compares what fires with what boxes say, and keeps told up to date.
func tellOnce(ctx context.Context, alerts *alert.Store, devices *device.Store, told map[croft.DeviceID]string) error {
	words := map[croft.DeviceID][]string{}
	q := alert.Query{Firing: true, Limit: 500}
	for {
		page, next, err := alerts.List(ctx, alert.Actor(itsActor), q)
		if err != nil {
			return err
		}
		for _, a := range page {
			if a.Device != "" {
				words[a.Device] = append(words[a.Device], a.Sentence)
			}
		}
		if next == "" {
			break
		}
		q.Cursor = next
	}
	set := func(id croft.DeviceID, text string) error {
		if err := devices.SetAlerts(ctx, id, text); err != nil && croft.KindOf(err) != croft.KindNotFound {
			return err
		}
		return nil
	}
	for id := range told {
		if len(words[id]) == 0 {
			if err := set(id, ""); err != nil {
				return err
			}
			delete(told, id)
		}
	}
	for id, sentences := range words {
		text := strings.Join(sentences, " ")
		if told[id] == text {
			continue
		}
		if err := set(id, text); err != nil {
			return err
		}
		told[id] = text
	}
	return nil
}
