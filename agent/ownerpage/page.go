package ownerpage

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/ownerpage/figures"
	"github.com/croft-cloud/croft/agent/ownerpage/letting"
)

//go:embed assets
var assets embed.FS

// Limits on what the home network may ask of the box. A page is a few kB and
// has three small files beside it: real owners never come near these.
const (
	maxConns        = 64
	maxConnsPerPeer = 16
	maxHeaderBytes  = 8 << 10
	readTimeout     = 5 * time.Second
	writeTimeout    = 10 * time.Second
	idleTimeout     = 30 * time.Second
	stopTimeout     = 3 * time.Second
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Source Source       // required
	Listen string       // TCP address; default ":80"
	Log    *slog.Logger // default: no log
}

// Server is the page in the home network. It serves
//
//	/             the page
//	/status.json  the same for support and programs, see [StatusJSON]
//	/healthz      "ok" as long as the server answers
//
// to GET and HEAD. A request from outside the home network is refused with 403,
// and one for a name that is not the box's own with 421, so that no web page on
// the internet can make the owner's browser read this one (DNS rebinding).
type Server struct {
	source Source
	listen string
	log    *slog.Logger
	page   *template.Template
	mux    *http.ServeMux
	onLink func(netip.Addr) bool // is the IPv6 address in a network the box is directly in?

	mu   sync.Mutex
	addr net.Addr // guarded by mu; nil unless listening
}

// New checks cfg and prepares a server; it does not listen yet.
func New(cfg Config) (*Server, error) {
	if cfg.Source == nil {
		return nil, errors.New("source of the owner page is missing")
	}
	s := &Server{
		source: cfg.Source,
		listen: cmp.Or(cfg.Listen, ":80"),
		log:    logger(cfg.Log),
		mux:    http.NewServeMux(),
		onLink: onLink,
	}
	files := make(map[string]string) // URLs with a version in them, so that browsers may keep the files
	for _, f := range []struct{ name, kind string }{
		{"page.css", "text/css; charset=utf-8"},
		{"page.js", "text/javascript; charset=utf-8"},
		{"icon.svg", "image/svg+xml"},
	} {
		content, err := assets.ReadFile("assets/" + f.name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", f.name, err)
		}
		files[f.name] = fmt.Sprintf("/%s?v=%x", f.name, sha256.Sum256(content))[:len(f.name)+12]
		s.mux.HandleFunc("GET /"+f.name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "max-age=86400")
			reply(w, f.kind, content)
		})
	}
	var err error
	s.page, err = template.New("page.html").Funcs(template.FuncMap{
		"file": func(name string) string { return files[name] },
		"say":  func(key string) (string, error) { return pageWord(key) },
	}).ParseFS(assets, "assets/page.html")
	if err != nil {
		return nil, fmt.Errorf("parse owner page: %w", err)
	}
	s.mux.HandleFunc("GET /{$}", s.servePage)
	s.mux.HandleFunc("GET /status.json", s.serveJSON)
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, "text/plain; charset=utf-8", []byte("ok\n"))
	})
	return s, nil
}

func logger(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

// Run listens and serves until ctx ends, and returns nil then. If it cannot
// listen, it returns why at once.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.listen)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("listen for the owner page: %w", err)
	}
	return s.serve(ctx, l)
}

// serve answers on l until ctx ends, and closes it.
func (s *Server) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:                      s.guard(s.mux),
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	s.setAddr(l.Addr())
	defer s.setAddr(nil)
	go func() { served <- server.Serve(&fewConns{Listener: l, open: make(map[netip.Addr]int)}) }()
	s.log.Info("owner page is up", "address", l.Addr().String())

	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("serve the owner page: %w", err), server.Close())
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if server.Shutdown(stop) != nil { // someone reads very slowly
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the owner page: %w", err)
	}
	return nil
}

func (s *Server) setAddr(addr net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr = addr
}

// Addr is where the server listens; nil while it does not.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Ready reports whether the server is listening.
func (s *Server) Ready() bool { return s.Addr() != nil }

// policy lets the page load its own three files and ask for itself again;
// nothing else, from nowhere else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// guard refuses who is not in the home network, refuses foreign names, and puts
// the security headers on every answer.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !s.near(r.RemoteAddr) {
			http.Error(w, refuseFar, http.StatusForbidden)
			return
		}
		if name := s.source.Status().Name; !ownHost(r.Host, name) {
			http.Error(w, fmt.Sprintf(refuseHost, name), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// near reports whether remote ("address:port") is in the home network: a
// private, link-local or loopback address, or an IPv6 address in a network the
// box is directly in. The last is for the many homes where phones talk to each
// other with public IPv6 addresses.
func (s *Server) near(remote string) bool {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	a := ap.Addr().Unmap()
	return a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.Is6() && s.onLink(a)
}

// onLink asks the system in which networks the box directly is.
func onLink(a netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, own := range addrs {
		// Routers announce /64; anything wider is not a home network.
		if p, err := netip.ParsePrefix(own.String()); err == nil && p.Addr().Is6() && p.Bits() >= 64 && p.Contains(a.WithZone("")) {
			return true
		}
	}
	return false
}

// ownHost reports whether the Host header of a request names this box: by IP
// address, as localhost, or by its name with or without ".local". No name that
// somebody on the internet could own is among them.
func ownHost(host, name string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	name = strings.ToLower(name)
	return host == "localhost" || name != "" && (host == name || host == name+".local")
}

// pageView is what the page's template sees.
type pageView struct {
	view
	Memory, Disk               string // in words; empty if not known
	MemoryPercent, DiskPercent int
	Work                       *letting.Page // nil: the box is no provider yet
}

func (s *Server) servePage(w http.ResponseWriter, _ *http.Request) {
	v := newView(s.source.Status())
	p := pageView{
		view:          v,
		Memory:        useWords(v.MemoryUsed, v.MemoryTotal, 1024),
		Disk:          useWords(v.DiskUsed, v.DiskTotal, 1000),
		MemoryPercent: figures.Percent(v.MemoryUsed, v.MemoryTotal),
		DiskPercent:   figures.Percent(v.DiskUsed, v.DiskTotal),
	}
	if v.Work != nil {
		p.Work = v.Work.Page()
	}
	var out bytes.Buffer
	if err := s.page.Execute(&out, p); err != nil {
		s.log.Error("owner page not rendered", "error", err)
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	reply(w, "text/html; charset=utf-8", out.Bytes())
}

// pageWord gives the template its words by key.
func pageWord(key string) (string, error) {
	word, ok := map[string]string{
		"claim title": sayClaimTitle, "claim": sayClaimOnPage, "claim open": sayClaimOpen,
		"facts": sayFacts, "network": sayNetwork, "address": sayAddress,
		"software": saySoftware, "uptime": sayUptime, "memory": sayMemory, "disk": sayDisk,
		"update": sayUpdate, "id": sayID, "json": sayJSON, "wrong": sayWrong,
		"no answer": sayNoAnswer, "network only": sayNetworkOnly,
		"work": sayWork, "fleet": sayFleet, "owner": sayOwner, "called": sayCalled,
		"words title": sayWordsTitle, "words": sayWords,
	}[key]
	if !ok {
		return "", fmt.Errorf("no words for %q", key)
	}
	return word, nil
}

// StatusJSON is the answer to /status.json. Fields are only ever added. It
// carries no secret: the claim code is not in it.
type StatusJSON struct {
	Name             string         `json:"name"`
	DeviceID         croft.DeviceID `json:"device_id"` // empty until the key is made
	Version          croft.Version  `json:"version"`
	Slot             croft.Slot     `json:"slot"`
	State            State          `json:"state"`                        // as the page shows it
	Problems         []string       `json:"problems"`                     // sentences as on the page; never null
	Claimable        bool           `json:"claimable"`                    // the screen of the box shows a claim code
	Fleet            *FleetJSON     `json:"fleet,omitempty"`              // absent if nobody looks after the box
	Network          Network        `json:"network"`                      //
	Addresses        []string       `json:"addresses"`                    // URLs of the page; never null
	UptimeSeconds    int64          `json:"uptime_seconds"`               // since power-on
	Storage          string         `json:"storage,omitempty"`            // a sentence
	LastUpdate       string         `json:"last_update,omitempty"`        // a sentence
	MemoryUsedBytes  int64          `json:"memory_used_bytes,omitempty"`  // page cache excluded
	MemoryTotalBytes int64          `json:"memory_total_bytes,omitempty"` // absent if not known
	DiskUsedBytes    int64          `json:"disk_used_bytes,omitempty"`    // of /perm
	DiskTotalBytes   int64          `json:"disk_total_bytes,omitempty"`   // absent if not known
	AgentMemoryBytes int64          `json:"agent_memory_bytes,omitempty"` // resident set of the agent, for support; absent if not known
	Hosting          *letting.Words `json:"hosting,omitempty"`            // absent while the box is no provider
}

// FleetJSON is how the box stands with its fleet. The words to claim it with are
// not in it.
type FleetJSON struct {
	Connected bool   `json:"connected"`
	Owned     bool   `json:"owned"`          // the box has an owner
	Name      string `json:"name,omitempty"` // that the owner gave it
	Sentence  string `json:"sentence"`       // as on the page
}

func (v *view) fleetJSON() *FleetJSON {
	if v.Fleet == nil {
		return nil
	}
	return &FleetJSON{Connected: v.Fleet.Connected, Owned: v.Fleet.Owned, Name: v.Called, Sentence: v.FleetLine}
}

func (s *Server) serveJSON(w http.ResponseWriter, _ *http.Request) {
	v := newView(s.source.Status())
	out, err := json.MarshalIndent(StatusJSON{
		Name: v.Name, DeviceID: v.DeviceID, Version: v.Version, Slot: v.Slot,
		State: v.Look, Problems: append([]string{}, v.Wrong...), Claimable: v.Claim != "",
		Network: cmp.Or(v.Network, NoAddress), Addresses: append([]string{}, v.Addresses...),
		UptimeSeconds: int64(v.Uptime / time.Second), Storage: v.Storage, LastUpdate: v.LastUpdate,
		MemoryUsedBytes: v.MemoryUsed, MemoryTotalBytes: v.MemoryTotal,
		DiskUsedBytes: v.DiskUsed, DiskTotalBytes: v.DiskTotal, AgentMemoryBytes: v.AgentMemory,
		Hosting: v.Work, Fleet: v.fleetJSON(),
	}, "", "  ")
	if err != nil { // strings and integers always encode
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		return
	}
	reply(w, "application/json", append(out, '\n'))
}

// reply sends a whole body. A reader who left early is no news.
func reply(w http.ResponseWriter, kind string, body []byte) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	_, _ = w.Write(body)
}

// fewConns is a listener that closes connections beyond maxConns, and beyond
// maxConnsPerPeer from one address, as soon as they come: one sick television
// must not lock the owner out.
type fewConns struct {
	net.Listener

	mu   sync.Mutex
	open map[netip.Addr]int // guarded by mu; connections by peer
	all  int                // guarded by mu; their sum
}

// Accept implements [net.Listener].
func (l *fewConns) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var peer netip.Addr
		if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
			peer = tcp.AddrPort().Addr()
		}
		if l.enter(peer) {
			return &countedConn{Conn: c, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
		}
		_ = c.Close()
	}
}

func (l *fewConns) enter(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= maxConns || l.open[peer] >= maxConnsPerPeer {
		return false
	}
	l.all++
	l.open[peer]++
	return true
}

func (l *fewConns) leave(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.open[peer]--; l.open[peer] == 0 {
		delete(l.open, peer)
	}
}

type countedConn struct {
	net.Conn
	leave func()
}

// Close implements [net.Conn].
func (c *countedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
