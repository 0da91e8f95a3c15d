package frame

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
)

const (
	livePace   = time.Second      // between two messages to one page
	liveBeat   = 25 * time.Second // proxies cut what is silent for longer
	liveLife   = 10 * time.Minute // then the page connects again, and is asked who it is
	livePerson = 10               // pages of one account
	maxWatches = 150              // more do not fit an address; such pages are asked for each minute
)

// hub tells pages of what changed in the database.
type hub struct {
	db     *db.DB
	most   int
	wanted chan string // topics

	mu       sync.Mutex
	pages    map[*livePage]bool // guarded by mu
	accounts map[string]int     // guarded by mu
	ended    chan struct{}      // guarded by mu; closed when run ends; nil: it does not run
}

type livePage struct {
	account string
	watches map[string][]string // ids by topic; empty: all
	changed chan struct{}       // holds one
}

func newHub(d *db.DB, most int) *hub {
	return &hub{db: d, most: most, wanted: make(chan string), pages: map[*livePage]bool{}, accounts: map[string]int{}}
}

func (h *hub) run(ctx context.Context) error {
	ended := make(chan struct{})
	h.mu.Lock()
	if h.ended != nil {
		h.mu.Unlock()
		return errors.New("run live updates: they run already")
	}
	h.ended = ended
	h.mu.Unlock()
	var work sync.WaitGroup
	defer func() {
		h.mu.Lock()
		h.ended = nil
		h.mu.Unlock()
		close(ended)
		work.Wait()
	}()
	heard := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case topic := <-h.wanted:
			if heard[topic] {
				continue
			}
			heard[topic] = true
			news := h.db.Listen(ctx, topic)
			work.Go(func() {
				for payload := range news {
					h.tell(topic, strings.Fields(payload))
				}
			})
		}
	}
}

// tell marks the pages that show one of ids; no ids are all.
func (h *hub) tell(topic string, ids []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for page := range h.pages {
		shown, ok := page.watches[topic]
		if ok && (len(ids) == 0 || len(shown) == 0 || slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(shown, id) })) {
			select {
			case page.changed <- struct{}{}:
			default: // it knows
			}
		}
	}
}

var errBusy = &croft.Error{Kind: croft.KindMissing, Err: errors.New("too many pages are open"), Remedy: "close some of them"}

// join adds a page; ended is closed when nothing more comes.
func (h *hub) join(ctx context.Context, page *livePage) (ended <-chan struct{}, err error) {
	h.mu.Lock()
	ended = h.ended
	if h.ended == nil || len(h.pages) >= h.most || h.accounts[page.account] >= livePerson {
		h.mu.Unlock()
		return nil, errBusy
	}
	h.pages[page] = true
	h.accounts[page.account]++
	h.mu.Unlock()
	for topic := range page.watches {
		select {
		case h.wanted <- topic:
		case <-ended:
		case <-ctx.Done():
		}
	}
	return ended, nil
}

func (h *hub) leave(page *livePage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.pages, page)
	if h.accounts[page.account]--; h.accounts[page.account] == 0 {
		delete(h.accounts, page.account)
	}
}

// liveURL is where a page of a principal hears of changes. It is signed, so that
// nobody asks about things no page of his shows.
func (f *Frame) liveURL(p rights.Principal, watches []string) string {
	if len(watches) > maxWatches {
		watches = watches[:maxWatches]
	}
	text := strings.Join(watches, " ")
	return "/live?" + url.Values{"watch": {text}, "tag": {f.liveTag(p, text)}}.Encode()
}

func (f *Frame) liveTag(p rights.Principal, text string) string {
	return base64.RawURLEncoding.EncodeToString(f.keys.Tag("live", p.Account, text))
}

// serveLive sends one event "changed" for all changes of a second.
func (f *Frame) serveLive(w http.ResponseWriter, r *http.Request, p rights.Principal) error {
	text := r.FormValue("watch")
	if p.Account == "" || p.Stage != rights.StageFull || !hmac.Equal([]byte(r.FormValue("tag")), []byte(f.liveTag(p, text))) {
		return f.plain(w, http.StatusForbidden)
	}
	page := &livePage{p.Account, map[string][]string{}, make(chan struct{}, 1)}
	all := map[string]bool{}
	for watch := range strings.FieldsSeq(text) {
		topic, id, one := strings.Cut(watch, ":")
		page.watches[topic] = append(page.watches[topic], id)
		all[topic] = all[topic] || !one
	}
	for topic := range all {
		if all[topic] {
			page.watches[topic] = nil
		}
	}
	ended, err := f.live.join(r.Context(), page)
	if err != nil {
		return f.plain(w, authhttp.StatusOf(err))
	}
	defer f.live.leave(page)
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(liveLife + time.Minute)) // the server's own would end it; without one it is not needed
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	_, _ = fmt.Fprint(w, "retry: 3000\n\n")
	beat, end := time.NewTicker(liveBeat), time.NewTimer(liveLife)
	defer beat.Stop()
	defer end.Stop()
	for {
		if control.Flush() != nil {
			return nil // the browser went away
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-ended:
			return nil
		case <-end.C:
			return nil
		case <-beat.C:
			_, _ = fmt.Fprint(w, ": \n\n")
		case <-page.changed:
			_, _ = fmt.Fprint(w, "event: changed\ndata: \n\n")
			if control.Flush() != nil {
				return nil
			}
			select {
			case <-time.After(livePace):
			case <-ended:
			case <-r.Context().Done():
			}
		}
	}
}

// plain answers what no person reads.
func (f *Frame) plain(w http.ResponseWriter, status int) error {
	http.Error(w, http.StatusText(status), status)
	return nil
}
