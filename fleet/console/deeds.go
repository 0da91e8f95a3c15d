package console

import (
	"net/http"
	"strings"
	"time"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

func (c *Console) rename(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	if err := c.cfg.Devices.SetName(r.Context(), ownerOf(p), box.ID, strings.TrimSpace(r.PostFormValue("name"))); err != nil {
		return err
	}
	return c.frame.Then(w, r, pathOf(box), frame.Good, c.views.Say("box.renamed"))
}

// order asks a box to do something, if p may.
func (c *Console) order(r *http.Request, p rights.Principal, box device.Box, kind fleetapi.JobKind, life time.Duration) error {
	if !rights.Allowed(p, rights.Start, rights.Object{Resource: rights.Job, Owner: box.Claim.Owner}) {
		return auth.ErrForbidden
	}
	_, err := c.cfg.Jobs.Queue(r.Context(), job.Actor{ID: p.Account}, job.Order{Device: box.ID, Kind: kind, Deadline: time.Now().Add(life)})
	return err
}

func (c *Console) locate(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	if err := c.order(r, p, box, fleetapi.KindLocate, 5*time.Minute); err != nil {
		return err
	}
	return c.frame.Then(w, r, pathOf(box), frame.Good, c.views.Say("box.locating"))
}

func (c *Console) restartPage(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	exams, err := c.examine(r.Context(), p, []device.Box{box})
	if err != nil {
		return err
	}
	return c.views.Show(w, r, frame.Page{Template: "restart", Title: c.views.Say("restart.title", nameOf(box)), Nav: frame.OwnerHome, Data: c.card(box, exams[box.ID])})
}

func (c *Console) restart(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	if err := c.order(r, p, box, fleetapi.KindReboot, time.Hour); err != nil {
		return err
	}
	return c.frame.Then(w, r, pathOf(box), frame.Good, c.views.Say("box.restarting"))
}

type handOverPage struct {
	Title, Path string
	Offered     bool
	Until       time.Time
	Code, URL   string // of the offer that was just made; else empty
}

func (c *Console) handOverPage(w http.ResponseWriter, r *http.Request, _ rights.Principal, box device.Box) error {
	return c.showHandOver(w, r, box, handOverPage{
		Offered: box.Claim.State == ownership.Transferring || box.Claim.State == ownership.Accepting, Until: box.Claim.OfferUntil,
	})
}

func (c *Console) showHandOver(w http.ResponseWriter, r *http.Request, box device.Box, data handOverPage) error {
	data.Title, data.Path = nameOf(box), pathOf(box)
	return c.views.Show(w, r, frame.Page{Template: "handover", Title: c.views.Say("handover.title", data.Title), Nav: frame.OwnerHome, Data: data})
}

// handOver makes a code for the new owner. It is shown once, so there is no address
// to come back to; to post again makes another one.
func (c *Console) handOver(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	code, until, err := c.cfg.Devices.OfferTransfer(r.Context(), p.Account, box.ID)
	if err != nil {
		return err
	}
	return c.showHandOver(w, r, box, handOverPage{Offered: true, Until: until, Code: code.Shown(), URL: code.URL(c.cfg.Origin + "/claim")})
}

func (c *Console) withdraw(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	if err := c.cfg.Devices.WithdrawTransfer(r.Context(), p.Account, box.ID); err != nil {
		return err
	}
	return c.frame.Then(w, r, pathOf(box), frame.Good, c.views.Say("handover.withdrawn"))
}

func (c *Console) giveUpPage(w http.ResponseWriter, r *http.Request, _ rights.Principal, box device.Box) error {
	return c.views.Show(w, r, frame.Page{
		Template: "giveup", Title: c.views.Say("giveup.title", nameOf(box)), Nav: frame.OwnerHome, Data: card{Box: box, Title: nameOf(box), Path: pathOf(box)},
	})
}

func (c *Console) giveUp(w http.ResponseWriter, r *http.Request, p rights.Principal, box device.Box) error {
	if err := c.cfg.Devices.Release(r.Context(), p.Account, box.ID); err != nil {
		return err
	}
	return c.frame.Then(w, r, frame.OwnerHome, frame.Good, c.views.Say("giveup.done", nameOf(box)))
}
