package auditlog

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Page is what [Handler] answers.
type Page struct {
	Entries []Line `json:"entries"`
	Next    string `json:"next,omitempty"` // cursor of the next page
}

// Line is an entry as JSON.
type Line struct {
	Seq     int64             `json:"seq"`
	ID      string            `json:"id"`
	At      string            `json:"at"` // RFC 3339 with milliseconds
	Actor   string            `json:"actor"`
	Role    string            `json:"role,omitempty"`
	Address string            `json:"address,omitempty"`
	Action  string            `json:"action"`
	Kind    string            `json:"kind,omitempty"`
	Object  string            `json:"object,omitempty"`
	Before  map[string]string `json:"before,omitempty"`
	After   map[string]string `json:"after,omitempty"`
}

// JSON is the entry as JSON.
func (n Numbered) JSON() Line {
	return Line{n.Seq, n.ID, n.At.UTC().Format("2006-01-02T15:04:05.000Z07:00"), n.Actor, n.Role, n.Address, n.Action, n.Kind, n.Object, n.Before, n.After}
}

// Handler answers GET with actor, object, action, address, from, until (RFC
// 3339), cursor and limit. Whether the client may read the log is decided before.
func Handler(l *Log, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, err := serve(l, r)
		status, body := http.StatusOK, any(page)
		if err != nil {
			status, body = http.StatusInternalServerError, fleetapi.ErrorDocumentOf(err)
			if croft.KindOf(err) == croft.KindUsage {
				status = http.StatusBadRequest
			} else {
				log.Error("audit log cannot be searched", "error", err)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body) // the client went away
	})
}

func serve(l *Log, r *http.Request) (Page, error) {
	v := r.URL.Query()
	q := Query{Actor: v.Get("actor"), Object: v.Get("object"), Action: v.Get("action"), Address: v.Get("address"), Cursor: v.Get("cursor")}
	if text := v.Get("limit"); text != "" {
		limit, err := strconv.Atoi(text)
		if err != nil {
			return Page{}, usage("limit is no number")
		}
		q.Limit = limit
	}
	for name, to := range map[string]*time.Time{"from": &q.From, "until": &q.Until} {
		if text := v.Get(name); text != "" {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				return Page{}, usage("%s is no time such as 2026-11-21T08:30:00Z", name)
			}
			*to = at
		}
	}
	found, next, err := l.Search(r.Context(), q)
	page := Page{Entries: []Line{}, Next: next}
	for _, n := range found {
		page.Entries = append(page.Entries, n.JSON())
	}
	return page, err
}
