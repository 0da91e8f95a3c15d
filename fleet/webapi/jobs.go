package webapi

import (
	"io"
	"mime"
	"net/http"
	"strconv"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/job"
)

// toStart is the permission that starting a kind of job needs: what a bundle holds
// is not for everybody who may ask for a reboot.
func toStart(kind fleetapi.JobKind) rights.Permission {
	if kind == fleetapi.KindBundle {
		return bundle
	}
	return startJob
}

func (k *call) jobOf(j job.Job) fleetclient.Job {
	out := fleetclient.Job{
		ID: j.ID, Device: j.Device, Kind: j.Kind, Args: j.Args, State: j.State, Canceling: j.Canceling, Delivered: j.Delivered, Detail: j.Detail,
		Results: j.Results, By: j.By, Bulk: j.Bulk, Created: fleetapi.StampOf(j.Created), Deadline: fleetapi.StampOf(j.Deadline), Finished: fleetapi.StampOf(j.Finished),
	}
	if !k.p.Role.Staff() {
		out.By, out.Bulk = "", ""
	}
	return out
}

func (k *call) queue(j fleetclient.NewJob) (fleetclient.Job, error) {
	p := toStart(j.Kind)
	box, actor, err := k.boxOf(p, j.Device)
	if err != nil {
		return fleetclient.Job{}, err
	}
	queued, err := k.cfg.Jobs.Queue(k.r.Context(), job.Actor(actor), job.Order{Device: box.ID, Kind: j.Kind, Args: j.Args, Deadline: j.Deadline.Time, Key: k.key})
	return k.jobOf(queued), err
}

func (k *call) startJob(j fleetclient.NewJob) (fleetclient.Job, error) {
	if _, err := croft.ParseDeviceID(string(j.Device)); err != nil {
		return fleetclient.Job{}, usage("%w", err)
	}
	return k.queue(j)
}

func (k *call) startJobs(j fleetclient.BulkJob) (fleetclient.BulkResult, error) {
	p := toStart(j.Kind)
	if k.reach(p.Resource, p.Action) != rights.All {
		return fleetclient.BulkResult{}, auth.ErrForbidden
	}
	if j.All && j.Selector != "" {
		return fleetclient.BulkResult{}, usage("say either all or a selector")
	}
	if !plain(j.Selector) {
		return fleetclient.BulkResult{}, usage("the selector has control characters")
	}
	found, err := k.cfg.Jobs.QueueBulk(k.r.Context(), job.Actor(k.actor(p)), job.Bulk{Selector: j.Selector, All: j.All, Kind: j.Kind, Args: j.Args, Deadline: j.Deadline.Time, Key: k.key})
	return fleetclient.BulkResult{Bulk: found.ID, Queued: found.Queued, Skipped: append([]croft.DeviceID{}, found.Skipped...)}, err
}

func (k *call) listJobs() (fleetclient.Page[fleetclient.Job], error) {
	q := job.Query{Device: croft.DeviceID(k.q.Get("device")), Bulk: k.q.Get("bulk"), Pending: k.boolean("pending"), Cursor: k.q.Get("cursor"), Limit: k.integer("limit")}
	if q.Device == "" && k.reach(rights.Job, rights.Read) != rights.All {
		return fleetclient.Page[fleetclient.Job]{}, usage("say with device whose jobs to list")
	}
	found, next, err := k.cfg.Jobs.List(k.r.Context(), job.Actor(k.actor(readJob)), q)
	return listOf(found, next, err, k.jobOf)
}

func (k *call) getJob() (fleetclient.Job, error) {
	found, err := k.cfg.Jobs.Job(k.r.Context(), job.Actor(k.actor(readJob)), k.r.PathValue("id"))
	return k.jobOf(found), err
}

func (k *call) history() (fleetclient.Page[fleetclient.JobStatus], error) {
	found, err := k.cfg.Jobs.History(k.r.Context(), job.Actor(k.actor(readJob)), k.r.PathValue("id"))
	return listOf(found, "", err, func(s job.Said) fleetclient.JobStatus {
		return fleetclient.JobStatus{State: s.State, At: fleetapi.StampOf(s.At), Received: fleetapi.StampOf(s.Received), Detail: s.Detail, Taken: s.Taken}
	})
}

func (k *call) cancelJob() (fleetclient.Job, error) {
	found, err := k.cfg.Jobs.Cancel(k.r.Context(), job.Actor(k.actor(startJob)), k.r.PathValue("id"))
	return k.jobOf(found), err
}

func (k *call) startBundle() (fleetclient.Job, error) {
	id, err := croft.ParseDeviceID(k.r.PathValue("device"))
	if err != nil {
		return fleetclient.Job{}, device.ErrNoBox
	}
	return k.queue(fleetclient.NewJob{Device: id, Kind: fleetapi.KindBundle})
}

func (k *call) listBundles() (fleetclient.Page[fleetclient.Bundle], error) {
	box, _, err := k.box(bundle)
	if err != nil {
		return fleetclient.Page[fleetclient.Bundle]{}, err
	}
	found, err := k.cfg.Bundles.List(k.r.Context(), box.ID)
	return listOf(found, "", err, func(b Bundle) fleetclient.Bundle {
		return fleetclient.Bundle{ID: b.ID, Device: b.Device, Job: b.Job, Made: fleetapi.StampOf(b.Made), Bytes: b.Bytes, Name: b.Name}
	})
}

func (k *call) openBundle() error {
	content, b, err := k.cfg.Bundles.Open(k.r.Context(), k.r.PathValue("id"))
	if err != nil {
		return err
	}
	defer content.Close()
	// A bundle outlives the time its box is in the fleet; staff may still read it.
	if k.reach(rights.Device, rights.Bundle) != rights.All {
		if _, err := k.cfg.Devices.Box(k.r.Context(), device.Actor{ID: k.p.Account}, b.Device); err != nil {
			return errNothing
		}
	}
	h := k.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if b.Type != "" {
		h.Set("Content-Type", b.Type)
	}
	if b.Bytes > 0 {
		h.Set("Content-Length", strconv.FormatInt(b.Bytes, 10))
	}
	name := b.Name
	if name == "" {
		name = b.ID
	}
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if _, err := io.Copy(k.w, content); err != nil {
		k.log.Warn("bundle was not sent to its end", "bundle", b.ID, "error", err)
		panic(http.ErrAbortHandler) // so that nobody takes a part for the whole
	}
	return nil
}
