package uplink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// CompareClock asks the fleet for its time: by how much it is ahead of the box's
// clock, and by how much that may be wrong because of the way. It works however
// wrong the clock is; what the fleet says is bounded by the validity of its
// certificate (provisioning/enroll says why).
func (u *Uplink) CompareClock(ctx context.Context) (ahead, within time.Duration, err error) {
	said, asked, answered, err := u.enrolment.learnTime(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("compare clock: %w", err)
	}
	within = answered.Sub(asked) / 2 // by the monotonic clock
	return said.Sub(asked.Round(0).Add(within)), within, nil
}

// SetClaim tells the fleet of another claim code that the box shows from now on:
// the box enrols once more, as soon as it can. A code of which the fleet was not
// told when the agent ended is told by the next, from [Config.Claim].
func (u *Uplink) SetClaim(hash enroll.ClaimHash) {
	u.enrolment.mu.Lock()
	u.enrolment.claim = hash
	u.enrolment.mu.Unlock()
	u.enrolment.signal()
}

// SayHello tells the fleet the facts of [Config.Facts] once more. Without a
// session it does nothing: the next begins with them.
func (u *Uplink) SayHello(ctx context.Context) error {
	s := u.live.Load()
	if s == nil {
		return nil
	}
	hello := u.hello(fleetapi.State{Journal: s.state.Journal, Epoch: s.state.Epoch})
	if err := s.say(ctx, hello, ackTimeout); err != nil {
		return fmt.Errorf("say hello again: %w", err)
	}
	return nil
}

// UploadError is an answer of the fleet other than that it has what was sent.
type UploadError struct {
	Status int    // of HTTP
	Text   string // what the fleet says about it; may be empty
}

func (e *UploadError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("fleet answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return "fleet answered: " + e.Text
}

// Final reports that the same bytes will be refused again.
func (e *UploadError) Final() bool {
	switch e.Status {
	case http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// errUncertified reports that there is nothing to show to the fleet yet.
var errUncertified = errors.New("box has no certificate yet")

// Upload puts a document of size bytes to a path on the fleet's device port, by
// the box's certificate. It tries once; an answer that is a no is an
// [UploadError].
func (u *Uplink) Upload(ctx context.Context, path, contentType string, body io.Reader, size int64) error {
	cert, _ := u.enrolment.current()
	if cert == nil {
		return fmt.Errorf("upload %s: %w", path, errUncertified)
	}
	trust, err := u.enrolment.trust(u.enrolment.api.Hostname())
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.enrolment.api.JoinPath(path).String(), io.NopCloser(body))
	if err != nil {
		return fmt.Errorf("upload %s: %w", path, err)
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Expect", "100-continue") // a fleet that does not want it says so before it is sent
	resp, err := u.enrolment.client(trust, cert).Do(req)
	if err != nil {
		return fmt.Errorf("upload %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusCreated || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	var answer struct {
		Error string `json:"error"`
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, enroll.MaxMessage))
	if err == nil && json.Unmarshal(raw, &answer) != nil {
		answer.Error = "" // no answer of ours, as of a proxy on the way
	}
	return fmt.Errorf("upload %s: %w", path, &UploadError{Status: resp.StatusCode, Text: fleetapi.CleanText(answer.Error, 200)})
}
