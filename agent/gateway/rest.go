package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/crowd"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/credential"
)

// refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
	json   bool  // as problems with who asks are told
	cause  error // for the log; nil: the client's own doing
}

func (e *refusal) Error() string { return e.text }

func (e *refusal) Unwrap() error { return e.cause }

func unauthenticated(status int, text string) error {
	return &refusal{status: status, text: oneLine(text), json: true}
}

func refuse(status int, text string) error { return &refusal{status: status, text: text} }

// internalError is all that a stranger learns about an error nobody foresaw.
const internalError = "internal error"

// refusalOf gives a backend's error its status; the table stands in backend.go.
func refusalOf(err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	told := oneLine(err.Error())
	switch croft.KindOf(err) {
	case croft.KindNotFound:
		return &refusal{status: http.StatusNotFound, text: told}
	case croft.KindUsage, croft.KindInvalid, croft.KindRefused:
		return &refusal{status: http.StatusUnprocessableEntity, text: told}
	case croft.KindMissing:
		return &refusal{status: http.StatusServiceUnavailable, text: told, cause: err}
	default:
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &refusal{status: http.StatusServiceUnavailable, text: "no answer in time; repeat in a while", cause: err}
	}
	return &refusal{status: http.StatusInternalServerError, text: internalError, cause: err}
}

// oneLine makes a text fit for a header or a terminal.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, " "))), " ")
	if runes := []rune(s); len(runes) > maxErrorRunes {
		s = string(runes[:maxErrorRunes]) + "…"
	}
	return s
}

func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, errAnswered) {
		return
	}
	e := refusalOf(err)
	if e.cause != nil {
		g.log.Warn("request failed", "route", r.Pattern, "status", e.status, "error", e.cause)
	}
	if e.status == http.StatusServiceUnavailable || e.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "5")
	}
	if !e.json {
		http.Error(w, e.text, e.status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": e.text}) // the peer may be gone
}

func answer(w http.ResponseWriter, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(raw, '\n')) // the peer may be gone
	return nil
}

// request is one that is allowed.
type request struct {
	w       http.ResponseWriter
	r       *http.Request
	who     identity
	id      akash.LeaseID // without numbers where the path has none
	service string        // of the path
	read    bool          // the body was read
}

// may reports whether the token covers a scope, for each of the services; none
// are all of them.
func (g *Gateway) may(q *request, scope credential.Scope, services ...string) bool {
	if len(services) == 0 {
		services = []string{""}
	}
	return !slices.ContainsFunc(services, func(service string) bool {
		return !q.who.allows(credential.Request{
			Provider: g.cfg.Provider, Scope: scope, Owner: q.id.Owner,
			DSeq: q.id.DSeq, GSeq: q.id.GSeq, OSeq: q.id.OSeq, Service: service,
		})
	})
}

var errNotCovered = unauthenticated(http.StatusUnauthorized, "the token does not allow this")

// routes is the whole of REST.
func (g *Gateway) routes() http.Handler {
	mux := http.NewServeMux()
	public := func(pattern string, serve func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := serve(r)
			if err == nil {
				err = answer(w, v)
			}
			if err != nil {
				g.refuse(w, r, err)
			}
		})
	}
	public("/version", func(*http.Request) (any, error) { return g.version(), nil })
	public("/address", func(*http.Request) (any, error) {
		return map[string]account.Address{"address": g.cfg.Provider}, nil
	})
	public("/status", func(r *http.Request) (any, error) {
		p, err := g.provided(r.Context())
		if err != nil {
			return nil, err
		}
		return g.statusJSON(p), nil
	})
	const path = "/lease/{dseq}/{gseq}/{oseq}"
	for pattern, serve := range map[string]func(*request) error{
		"PUT /deployment/{dseq}/manifest":           g.putManifest,
		"GET " + path + "/manifest":                 g.getManifest,
		"GET " + path + "/status":                   g.leaseStatus,
		"GET " + path + "/service/{service}/status": g.serviceStatus,
		"GET " + path + "/logs":                     g.logs,
		"GET " + path + "/kubeevents":               g.events,
		"GET " + path + "/shell":                    g.shell,
		"POST /hostname/migrate":                    g.migrate("hostnames_to_migrate", credential.ScopeHostnameMigration, g.cfg.Hosts.MigrateHosts),
		"POST /endpoint/migrate":                    g.migrate("endpoints_to_migrate", credential.ScopeIPMigration, g.cfg.Hosts.MigrateEndpoints),
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, _ := r.Context().Value(identityKey{}).(identity)
			q, err := g.request(w, r, who)
			if err == nil {
				err = serve(q)
			}
			if err != nil {
				g.refuse(w, r, err)
			}
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !g.clients.Allow(crowd.ClientOf(r.RemoteAddr)) {
			g.refuse(w, r, refuse(http.StatusTooManyRequests, "too many requests from this address"))
			return
		}
		who, err := g.auth.identify(r)
		if err == nil && who.owner != "" && !g.tenants.Allow(string(who.owner)) {
			err = refuse(http.StatusTooManyRequests, "too many requests of this account")
		}
		if err != nil {
			g.refuse(w, r, err)
			return
		}
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, who)))
	})
}

// identityKey finds who asks in a request's context.
type identityKey struct{}

// request checks who asks, and the numbers of the path.
func (g *Gateway) request(w http.ResponseWriter, r *http.Request, who identity) (*request, error) {
	if who.owner == "" {
		return nil, unauthenticated(http.StatusUnauthorized, "a token or a certificate is missing")
	}
	q := &request{w: w, r: r, who: who, service: r.PathValue("service")}
	q.id.Owner, q.id.Provider = who.owner, g.cfg.Provider
	for _, part := range []struct {
		name string
		bits int
		put  func(uint64)
	}{
		{"dseq", 64, func(n uint64) { q.id.DSeq = n }},
		{"gseq", 32, func(n uint64) { q.id.GSeq = uint32(n) }},
		{"oseq", 32, func(n uint64) { q.id.OSeq = uint32(n) }},
	} {
		text := r.PathValue(part.name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, part.bits)
		if err != nil || n == 0 {
			return nil, refuse(http.StatusBadRequest, part.name+" is not a number from 1 on")
		}
		part.put(n)
	}
	return q, nil
}

// within bounds a request that is answered once.
func (q *request) within(d time.Duration) (context.Context, context.CancelFunc) {
	// The answer may take as long as the work. Once the body is here, a read
	// deadline that passed meanwhile would count as a client that left; of a body
	// that nobody wants, the server reads what is left before it answers, and only
	// that deadline ends it. Errors mean a connection that is gone, which the
	// answer will find out.
	control := http.NewResponseController(q.w)
	if q.r.ContentLength == 0 || q.read {
		_ = control.SetReadDeadline(time.Time{})
	}
	_ = control.SetWriteDeadline(time.Now().Add(d + answerTimeout))
	return context.WithTimeout(q.r.Context(), d)
}

// body reads a request's body.
func (q *request) body(most int64) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(q.w, q.r.Body, most))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, refuse(http.StatusUnprocessableEntity, "the body is longer than "+strconv.FormatInt(most, 10)+" bytes")
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the body ended too early")
	}
	q.read = true
	return raw, nil
}

func (g *Gateway) putManifest(q *request) error {
	if !g.may(q, credential.ScopeSendManifest) {
		return errNotCovered
	}
	if err := g.expect(q); err != nil {
		return manifestRefusal(err)
	}
	done, err := g.takeIn(q)
	if err != nil {
		return err
	}
	defer done()
	raw, err := q.body(maxManifestBytes)
	if err != nil {
		return err
	}
	if !json.Valid(raw) {
		return refuse(http.StatusUnprocessableEntity, "the manifest is not JSON")
	}
	ctx, cancel := q.within(manifestTimeout)
	defer cancel()
	if err := g.cfg.Manifests.Accept(ctx, q.id.DeploymentID, raw); err != nil {
		return manifestRefusal(err)
	}
	return nil
}

// expect says whether who asks has a lease that a manifest could be for.
func (g *Gateway) expect(q *request) error {
	ctx, cancel := context.WithTimeout(q.r.Context(), queryTimeout)
	defer cancel()
	return g.cfg.Manifests.Expect(ctx, q.id.DeploymentID)
}

// takeIn waits for a place among the manifests that are read.
func (g *Gateway) takeIn(q *request) (done func(), err error) {
	name := string(q.id.Owner)
	patience := time.After(manifestPatience)
	for !g.sent.Take(name) {
		select {
		case <-time.After(manifestPause):
		case <-patience:
			return nil, refuse(http.StatusTooManyRequests, "too many manifests are on their way; repeat in a while")
		case <-q.r.Context().Done():
			return nil, q.r.Context().Err()
		}
	}
	// The client has been waiting, so its time begins now. An error means a
	// connection that is gone, which reading will find out.
	_ = http.NewResponseController(q.w).SetReadDeadline(time.Now().Add(bodyTimeout))
	return func() { g.sent.Give(name) }, nil
}

func manifestRefusal(err error) error {
	r := refusalOf(err)
	if r.status == http.StatusServiceUnavailable {
		r.status = http.StatusInternalServerError // the protocol knows no 503 here
	}
	return r
}

func (g *Gateway) getManifest(q *request) error {
	if !g.may(q, credential.ScopeGetManifest) {
		return errNotCovered
	}
	ctx, cancel := q.within(queryTimeout)
	defer cancel()
	raw, err := g.cfg.Manifests.Manifest(ctx, q.id)
	if err != nil {
		return err
	}
	return answer(q.w, json.RawMessage(raw))
}

func (g *Gateway) leaseStatus(q *request) error {
	if !g.may(q, credential.ScopeStatus) {
		return errNotCovered
	}
	ctx, cancel := q.within(queryTimeout)
	defer cancel()
	s, err := g.cfg.Statuses.Status(ctx, q.id)
	if err != nil {
		return err
	}
	if len(s.Services) == 0 {
		return refuse(http.StatusNotFound, "the lease has no manifest yet; send it first")
	}
	return answer(q.w, leaseJSON(s))
}

func (g *Gateway) serviceStatus(q *request) error {
	if !g.may(q, credential.ScopeStatus, q.service) {
		return errNotCovered
	}
	ctx, cancel := q.within(queryTimeout)
	defer cancel()
	s, err := g.cfg.Statuses.Status(ctx, q.id)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.Services, func(one lease.ServiceStatus) bool { return one.Name == q.service })
	if i < 0 {
		return refuse(http.StatusNotFound, errNoService)
	}
	return answer(q.w, serviceJSON(s.Services[i]))
}

// errNoService is in Akash's words, which tools compare.
const errNoService = "no such service exists with that name"

func (g *Gateway) migrate(key string, scope credential.Scope, move func(context.Context, []string, akash.GroupID) ([]string, error)) func(*request) error {
	return func(q *request) error {
		raw, err := q.body(maxMigrateBytes)
		if err != nil {
			return err
		}
		var in map[string]json.RawMessage
		var names []string
		for _, err := range []error{
			json.Unmarshal(raw, &in), json.Unmarshal(in[key], &names),
			json.Unmarshal(in["destination_dseq"], &q.id.DSeq), json.Unmarshal(in["destination_gseq"], &q.id.GSeq),
		} {
			if err != nil {
				return refuse(http.StatusUnprocessableEntity, "want JSON with "+key+", destination_dseq and destination_gseq")
			}
		}
		switch {
		case q.id.DSeq == 0 || q.id.GSeq == 0:
			return refuse(http.StatusUnprocessableEntity, "destination_dseq and destination_gseq are numbers from 1 on")
		case len(names) == 0 || len(names) > maxMigrateNames:
			return refuse(http.StatusUnprocessableEntity, key+" has no names, or more than "+strconv.Itoa(maxMigrateNames))
		case !g.may(q, scope):
			return errNotCovered
		}
		ctx, cancel := q.within(queryTimeout)
		defer cancel()
		moved, err := move(ctx, names, q.id.GroupID)
		if err != nil {
			return err
		}
		return answer(q.w, map[string][]string{"transferred": append([]string{}, moved...)})
	}
}

// serviceStatusJSON is a service as the protocol has it.
type serviceStatusJSON struct {
	Name               string   `json:"name"`
	Available          int      `json:"available"`
	Total              int      `json:"total"`
	URIs               []string `json:"uris"`
	ObservedGeneration uint64   `json:"observed_generation"`
	Replicas           int      `json:"replicas"`
	UpdatedReplicas    int      `json:"updated_replicas"`
	ReadyReplicas      int      `json:"ready_replicas"`
	AvailableReplicas  int      `json:"available_replicas"`
}

func serviceJSON(s lease.ServiceStatus) serviceStatusJSON {
	return serviceStatusJSON{
		Name: s.Name, Available: s.Available, Total: s.Total, URIs: s.URIs, ObservedGeneration: s.Revision,
		Replicas: s.Total, UpdatedReplicas: s.Started, ReadyReplicas: s.Available, AvailableReplicas: s.Available,
	}
}

type forwardedPortJSON struct {
	Host         string `json:"host"`
	Port         uint16 `json:"port"`
	ExternalPort uint16 `json:"externalPort"`
	Proto        string `json:"proto"`
	Name         string `json:"name"`
}

type leasedIPJSON struct {
	Port         uint16
	ExternalPort uint16
	Protocol     string
	IP           string
}

type leaseStatusJSON struct {
	Services map[string]serviceStatusJSON   `json:"services"`
	Ports    map[string][]forwardedPortJSON `json:"forwarded_ports"`
	IPs      map[string][]leasedIPJSON      `json:"ips"`
	Errors   []string                       `json:"errors,omitempty"`
}

func leaseJSON(s LeaseStatus) leaseStatusJSON {
	out := leaseStatusJSON{Services: map[string]serviceStatusJSON{}, Ports: map[string][]forwardedPortJSON{}}
	for _, one := range s.Services {
		out.Services[one.Name] = serviceJSON(one)
		if one.Problem != "" {
			out.Errors = append(out.Errors, one.Name+": "+one.Problem)
		}
	}
	for _, p := range s.Ports {
		out.Ports[p.Service] = append(out.Ports[p.Service], forwardedPortJSON{p.Host, p.Port, p.External, p.Proto, p.Service})
	}
	for _, p := range s.IPs {
		if out.IPs == nil {
			out.IPs = map[string][]leasedIPJSON{}
		}
		out.IPs[p.Service] = append(out.IPs[p.Service], leasedIPJSON{p.Port, p.External, p.Proto, p.IP})
	}
	return out
}

// version is in the words of Akash's provider. There is no Kubernetes: tools
// that want its version find empty words.
func (g *Gateway) version() any {
	return map[string]any{
		"akash": map[string]string{
			"name": "croft", "server_name": "croft-agent", "version": g.cfg.Software.Version, "commit": g.cfg.Software.Commit,
			"build_tags": "", "go": goVersion(), "cosmos_sdk_version": "",
		},
		"kube": map[string]string{
			"major": "", "minor": "", "gitVersion": "", "gitCommit": "", "gitTreeState": "", "buildDate": "",
			"goVersion": "", "compiler": "", "platform": "",
		},
	}
}
