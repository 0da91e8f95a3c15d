package frame

import (
	"net/http"

	"github.com/croft-cloud/croft/fleet/auth/rights"
)

// LiveURL is where pages of p hear of changes.
func (f *Frame) LiveURL(p rights.Principal, watches ...string) string { return f.liveURL(p, watches) }

// ServeLive answers there.
func (f *Frame) ServeLive(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	return f.serveLive(w, r, p)
}
