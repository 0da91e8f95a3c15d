package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Receipt is what a box is answered when its bundle is kept.
type Receipt struct {
	ID      string         `json:"id"`
	Job     string         `json:"job"`
	Digest  string         `json:"digest"` // SHA-256 in hex
	Size    int64          `json:"size"`   // bytes
	Created fleetapi.Stamp `json:"created"`
	Expires fleetapi.Stamp `json:"expires"`
}

// Refusal is what a box is answered when it is not.
type Refusal struct {
	fleetapi.ErrorDocument

	Error string `json:"error"` // the message once more
}

const (
	uploadWithin = 5 * time.Minute
	retrySeconds = 60
)

// DeviceHandler answers boxes: PUT /v1/bundles/{job} with the bundle as body.
// judge says which box it is that asks; its error is answered with 403.
//
// 201 is for a new bundle and 200 for one that was there, both with a [Receipt].
// Otherwise the answer is a [Refusal]: 400 the upload broke off, 404 there is no
// such job of this box, 409 it has ended or has another bundle, 413 too large,
// 422 no good bundle, 429 too many uploads, 507 no room, 503 the fleet cannot do
// it now. After 429, 503 and 507 the same upload may succeed later.
//
// A box sends "Expect: 100-continue", so that it hears a refusal before it has
// sent all.
func (s *Store) DeviceHandler(judge func(*http.Request) (croft.DeviceID, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /v1/bundles/{job}", func(w http.ResponseWriter, r *http.Request) {
		device, err := judge(r)
		if err != nil {
			s.refuse(w, r, http.StatusForbidden, err)
			return
		}
		// Not every writer has deadlines; then the server's own are all.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(uploadWithin))
		job, err := fleetapi.ParseID(fleetapi.PrefixJob, r.PathValue("job"))
		if err != nil {
			s.refuse(w, r, http.StatusNotFound, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such job")})
			return
		}
		info, fresh, err := s.Upload(r.Context(), device, job, r.Body, r.ContentLength)
		if err != nil {
			s.refuse(w, r, statusOf(err), err)
			return
		}
		status := http.StatusOK
		if fresh {
			status = http.StatusCreated
		}
		answer(w, status, Receipt{
			ID: info.ID, Job: info.Job, Digest: info.Digest, Size: info.Size,
			Created: fleetapi.StampOf(info.Created), Expires: fleetapi.StampOf(info.Expires),
		})
	})
	return mux
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, ErrTooFast):
		return http.StatusTooManyRequests
	case errors.Is(err, errBody):
		return http.StatusBadRequest
	case errors.Is(err, db.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	}
	switch croft.KindOf(err) {
	case croft.KindNotFound:
		return http.StatusNotFound
	case croft.KindRefused:
		return http.StatusConflict
	case croft.KindInvalid:
		return http.StatusUnprocessableEntity
	case croft.KindUsage:
		return http.StatusBadRequest
	case croft.KindNoSpace:
		return http.StatusInsufficientStorage
	case croft.KindOther, croft.KindMissing:
	}
	return http.StatusServiceUnavailable
}

func (s *Store) refuse(w http.ResponseWriter, r *http.Request, status int, err error) {
	if status >= http.StatusInternalServerError && r.Context().Err() == nil {
		s.cfg.Log.Error("bundle of a box was not kept", "error", err)
	}
	if status == http.StatusTooManyRequests || status >= http.StatusInternalServerError {
		w.Header().Set("Retry-After", strconv.Itoa(retrySeconds))
	}
	document := fleetapi.ErrorDocumentOf(err)
	switch {
	case status == http.StatusBadRequest:
		document = fleetapi.ErrorDocument{Kind: croft.KindUsage, Message: errBody.Error(), Remedy: "upload it again"}
	case status == http.StatusForbidden && document.Kind == croft.KindOther:
		document = fleetapi.ErrorDocument{Kind: croft.KindRefused, Message: "this is no box of the fleet", Remedy: "enrol the box"}
	}
	answer(w, status, Refusal{document, document.Message})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the box went away
}
