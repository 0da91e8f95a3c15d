package webapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

const maxBody = 1 << 20

// Route is one line of the table.
type Route struct {
	Method, Pattern string // as of [http.ServeMux]
	Summary         string
	Tag             string              // what it is about
	Public          bool                // for everybody
	Need            []rights.Permission // one of these; none: whoever is signed in
	Everything      bool                // and for everybody's things, not only one's own
	Params          []Param
	In, Out         reflect.Type // of the JSON; nil: none, or see Accepts and Produces
	Accepts         string       // media type of a body that is no JSON
	Produces        string       // media type of an answer that is no JSON

	secret bool // the answer is shown once
	keyed  bool // it deals with the idempotency key itself
	do     func(*call) (any, error)
	stream func(*call) error // writes the answer itself
}

// Param is a parameter of a query.
type Param struct {
	Name, About string
	Type        string // string, integer, boolean or date-time
	Required    bool
}

// call is a request to a route.
type call struct {
	*API
	w   http.ResponseWriter
	r   *http.Request
	p   rights.Principal
	q   url.Values
	key string // idempotency key; empty: none
	raw []byte // body
}

// action is what a route does, with its types.
type action struct {
	in, out reflect.Type
	do      func(*call) (any, error)
}

// none is the answer of what has nothing to tell.
type none struct{}

func outOf[Out any]() reflect.Type {
	if t := reflect.TypeFor[Out](); t != reflect.TypeFor[none]() {
		return t
	}
	return nil
}

func answers[Out any](do func(*call) (Out, error)) action {
	return action{out: outOf[Out](), do: func(k *call) (any, error) { return do(k) }}
}

func takes[In, Out any](do func(*call, In) (Out, error)) action {
	return action{in: reflect.TypeFor[In](), out: outOf[Out](), do: func(k *call) (any, error) {
		var in In
		if err := k.read(&in); err != nil {
			return nil, err
		}
		return do(k, in)
	}}
}

// done is the answer of what only works or not.
func done(do func(*call) error) action {
	return answers(func(k *call) (none, error) { return none{}, do(k) })
}

func need(all ...rights.Permission) []rights.Permission { return all }

func may(resource rights.Resource, action rights.Action) rights.Permission {
	return rights.Permission{Resource: resource, Action: action}
}

func (a *API) serve(route Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k := &call{API: a, w: w, r: r, p: rights.FromContext(r.Context()), key: r.Header.Get(fleetclient.IdempotencyHeader)}
		if err := k.answer(route); err != nil {
			a.fail(w, r, err)
		}
	})
}

func (k *call) answer(route Route) error {
	if err := k.enter(route); err != nil {
		return err
	}
	if err := k.parse(route); err != nil {
		return err
	}
	if route.stream != nil {
		return route.stream(k)
	}
	var err error
	k.raw, err = io.ReadAll(http.MaxBytesReader(k.w, k.r.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if len(k.raw) > 0 && route.In == nil && route.Accepts == "" {
		return usage("this takes no body")
	}
	if route.Accepts != "" && k.mediaType() != route.Accepts {
		return usage("want a body of Content-Type %s", route.Accepts)
	}
	do := func() ([]byte, error) {
		out, err := route.do(k)
		if err != nil || route.Out == nil {
			return nil, err
		}
		return json.Marshal(out)
	}
	var body []byte
	if route.Method == http.MethodPost && k.key != "" && !route.keyed {
		body, err = k.once(route.secret, do)
	} else {
		body, err = do()
	}
	if err != nil {
		return err
	}
	k.w.Header().Set("Cache-Control", "no-store")
	if len(body) == 0 {
		k.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	k.w.Header().Set("Content-Type", "application/json")
	k.w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = k.w.Write(append(body, '\n')) // the client went away
	return nil
}

// enter lets those in who may do this to something, be it only their own.
func (k *call) enter(route Route) error {
	if route.Public {
		return nil
	}
	if k.p.Account == "" || k.p.Stage != rights.StageFull {
		return auth.ErrSignIn
	}
	if len(route.Need) == 0 {
		return nil
	}
	for _, n := range route.Need {
		if reach := k.reach(n.Resource, n.Action); reach == rights.All || reach == rights.Own && !route.Everything {
			return nil
		}
	}
	return auth.ErrForbidden
}

func (k *call) reach(resource rights.Resource, action rights.Action) rights.Whose {
	return rights.Reach(k.p, resource, action)
}

// parse reads the query, and refuses what the route does not know.
func (k *call) parse(route Route) error {
	if len(k.key) > 128 || !plain(k.key) {
		return usage("idempotency key: want 1 to 128 characters without control characters")
	}
	if route.Tag == telemetryTag {
		return nil // Prometheus reads its own
	}
	var err error
	if k.q, err = url.ParseQuery(k.r.URL.RawQuery); err != nil {
		return usage("the query of the address cannot be read")
	}
	for _, name := range slices.Sorted(maps.Keys(k.q)) {
		i := slices.IndexFunc(route.Params, func(p Param) bool { return p.Name == name })
		switch {
		case i < 0:
			return usage("there is no parameter %.40q", name)
		case len(k.q[name]) > 1:
			return usage("parameter %s is there more than once", name)
		case !plain(k.q.Get(name)) || len(k.q.Get(name)) > 2000:
			return usage("parameter %s: want at most 2,000 bytes without control characters", name)
		}
		if err := route.Params[i].check(k.q.Get(name)); err != nil {
			return err
		}
	}
	for _, p := range route.Params {
		if p.Required && k.q.Get(p.Name) == "" {
			return usage("parameter %s is missing", p.Name)
		}
	}
	for _, name := range []string{"device", "id"} {
		if !plain(k.r.PathValue(name)) || len(k.r.PathValue(name)) > 200 {
			return errNothing
		}
	}
	return nil
}

func (p Param) check(text string) error {
	var err error
	switch p.Type {
	case "integer":
		var n int64
		if n, err = strconv.ParseInt(text, 10, 64); err == nil && n < 0 {
			err = errors.New("it is negative")
		}
	case "boolean":
		_, err = strconv.ParseBool(text)
	case "date-time":
		_, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return usage("parameter %s: %.40q is no %s", p.Name, text, p.Type)
	}
	return nil
}

// integer, boolean and at read a parameter that was checked.
func (k *call) integer(name string) int {
	n, _ := strconv.ParseInt(k.q.Get(name), 10, 64)
	return int(n)
}

func (k *call) boolean(name string) bool {
	b, _ := strconv.ParseBool(k.q.Get(name))
	return b
}

func (k *call) at(name string) time.Time {
	at, _ := time.Parse(time.RFC3339, k.q.Get(name))
	return at
}

func plain(text string) bool {
	return utf8.ValidString(text) && strings.IndexFunc(text, unicode.IsControl) < 0
}

func (k *call) mediaType() string {
	kind, _, _ := mime.ParseMediaType(k.r.Header.Get("Content-Type"))
	return kind
}

// read reads a JSON body.
func (k *call) read(to any) error {
	if k.mediaType() != "application/json" {
		return usage("want a body of Content-Type application/json")
	}
	if bytes.Contains(k.raw, []byte(`\u0000`)) || !utf8.Valid(k.raw) {
		return usage("the body is not UTF-8, or has the character U+0000")
	}
	d := json.NewDecoder(bytes.NewReader(k.raw))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return usage("the body is not as it should be: %s", fleetapi.CleanText(strings.TrimPrefix(err.Error(), "json: "), 200))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return usage("something stands behind the body's JSON")
	}
	return nil
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

var (
	errMethod  = &croft.Error{Kind: croft.KindUsage, Err: errors.New("this cannot be done with this method")}
	errNothing = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such thing")}
	errCrowded = &croft.Error{Kind: croft.KindRefused, Err: errors.New("too much is being watched at once"), Remedy: "end another watch, or try again in a minute"}
)

func statusOf(err error) int {
	switch {
	case errors.Is(err, errMethod):
		return http.StatusMethodNotAllowed
	case errors.Is(err, errCrowded):
		return http.StatusTooManyRequests
	case errors.Is(err, db.ErrInDoubt):
		return http.StatusInternalServerError
	}
	status := authhttp.StatusOf(err)
	if status == http.StatusForbidden && !errors.Is(err, auth.ErrForbidden) {
		return http.StatusConflict // it is allowed, but not as things are
	}
	return status
}

// fail answers a request that was refused.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := statusOf(err)
	if status >= 500 && r.Context().Err() == nil {
		a.log.Error("request cannot be answered", "path", r.URL.Path, "error", err)
	}
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "10")
	}
	doc := fleetapi.ErrorDocumentOf(err)
	if status == http.StatusRequestEntityTooLarge {
		doc = fleetapi.ErrorDocument{Kind: croft.KindUsage, Message: "the body has more than 1 MiB", Remedy: "send less at once"}
	}
	problem := fleetclient.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: doc.Message, Remedy: doc.Remedy, Kind: doc.Kind}
	if doc.Kind != croft.KindOther {
		problem.Type = "urn:croft:problem:" + string(doc.Kind)
	}
	w.Header().Set("Content-Type", fleetclient.ProblemType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(problem) // the client went away
}
