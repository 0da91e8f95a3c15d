package console

import (
	"net/http"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
)

type claimPage struct {
	SignedIn bool
	Staff    bool // staff has no boxes
	Mail     bool
}

// claimPage is where a QR code leads; its script does the rest.
func (c *Console) claimPage(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	full := p.Account != "" && p.Stage == rights.StageFull
	return c.views.Show(w, r, frame.Page{
		Template: "claim", Title: c.views.Say("claim.title"), Nav: frame.OwnerHome, Bare: !full, Data: claimPage{full, p.Role.Staff(), c.cfg.Mail},
	})
}

type foundPage struct {
	device.Found
	Left time.Duration
}

// startClaim shows the box of a code. It is no redirect: an address of this page
// would be one of a box that is nobody's yet, and to post the same code again is
// harmless.
func (c *Console) startClaim(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	who := device.Claimant{Account: p.Account, Address: c.frame.Door().Client(r).Address}
	found, err := c.cfg.Devices.StartClaim(r.Context(), who, r.PostFormValue("code"))
	if err != nil {
		return err
	}
	return c.views.Show(w, r, frame.Page{
		Template: "found", Title: c.views.Say("found.title"), Nav: frame.OwnerHome, Data: foundPage{found, time.Until(found.Until).Round(time.Minute)},
	})
}

func (c *Console) confirmClaim(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	id, err := croft.ParseDeviceID(r.PostFormValue("box"))
	if err != nil {
		return device.ErrNoBox
	}
	box, err := c.cfg.Devices.ConfirmClaim(r.Context(), p.Account, id)
	if err != nil {
		return err
	}
	return c.frame.Then(w, r, pathOf(box), frame.Good, c.views.Say("found.yours"))
}

func (c *Console) undoClaim(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	id, err := croft.ParseDeviceID(r.PostFormValue("box"))
	if err != nil {
		return device.ErrNoBox
	}
	if err := c.cfg.Devices.UndoClaim(r.Context(), p.Account, id); err != nil {
		return err
	}
	return c.frame.Then(w, r, frame.OwnerHome, frame.Note, c.views.Say("found.undone"))
}
