package outside

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// RegistryConfig is copied by NewRegistry.
type RegistryConfig struct {
	Port uint16 // on 127.0.0.1; default: a free one

	// User and Password are asked for, by HTTP's basic authentication, before
	// an image that is private is given out.
	User, Password string
}

// Image is an OCI image with one static program in it.
type Image struct {
	Name       string   // required; ovrclk/lunie-light, as an SDL file writes it
	Program    string   // required; the program's file on this machine, see [Build]. In the image it is /bin/app
	Entrypoint []string // default: /bin/app
	Args       []string
	Env        []string // KEY=value; PATH=/bin comes first
	User       string   // as in a Dockerfile; default: root
	Ports      []string // 3000/tcp
	Arch       string   // default: amd64
	Private    bool     // for those only who have the password
}

// Registry is an OCI registry on 127.0.0.1. What it holds is in memory, and is
// kept while it is stopped. Its methods may be called from any goroutine.
type Registry struct {
	cfg   RegistryConfig
	inner http.Handler

	mu       sync.Mutex
	server   *http.Server             // guarded by mu; nil while stopped
	done     chan struct{}            // guarded by mu; closed when the server has ended
	private  map[string]bool          // guarded by mu; repositories
	held     map[string]chan struct{} // guarded by mu; repositories whose downloads wait until it is closed
	requests map[string]int           // guarded by mu; by repository
}

// NewRegistry chooses a port and starts nothing.
func NewRegistry(cfg RegistryConfig) (*Registry, error) {
	if err := choosePorts(&cfg.Port); err != nil {
		return nil, fmt.Errorf("prepare registry: %w", err)
	}
	silent := registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))
	return &Registry{cfg: cfg, inner: registry.New(silent), private: map[string]bool{}, held: map[string]chan struct{}{}, requests: map[string]int{}}, nil
}

// Address is where it listens, host:port.
func (r *Registry) Address() string { return loopback(r.cfg.Port) }

// Put makes an image and puts it into the registry, whether or not that runs. It
// returns the digest of its manifest.
func (r *Registry) Put(image Image) (string, error) {
	digest, err := r.put(image)
	if err != nil {
		return "", fmt.Errorf("put image %s: %w", image.Name, err)
	}
	return digest, nil
}

func (r *Registry) put(image Image) (string, error) {
	ref, err := name.NewTag(image.Name)
	if err != nil {
		return "", err
	}
	repository := ref.Context().RepositoryStr()
	built, err := image.build()
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	r.private[repository] = image.Private
	r.mu.Unlock()
	layers, err := built.Layers()
	if err != nil {
		return "", err
	}
	for _, l := range layers {
		if err := r.putLayer(repository, l); err != nil {
			return "", err
		}
	}
	config, err := built.RawConfigFile()
	if err != nil {
		return "", err
	}
	if err := r.putBlob(repository, built.ConfigName, config); err != nil {
		return "", err
	}
	manifest, err := built.RawManifest()
	if err != nil {
		return "", err
	}
	kind, err := built.MediaType()
	if err != nil {
		return "", err
	}
	if err := r.send(http.MethodPut, "/v2/"+repository+"/manifests/"+ref.TagStr(), string(kind), manifest); err != nil {
		return "", err
	}
	digest, err := built.Digest()
	return digest.String(), err
}

// build makes the image. The same program and words give the same bytes.
func (i Image) build() (v1.Image, error) {
	program, err := os.ReadFile(i.Program)
	if err != nil {
		return nil, err
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "bin/app", Mode: 0o755, Size: int64(len(program))},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(program); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", cmp.Or(i.Arch, "amd64")
	file.Config = v1.Config{
		Entrypoint: i.Entrypoint, Cmd: i.Args, Env: append([]string{"PATH=/bin"}, i.Env...), User: i.User,
		ExposedPorts: map[string]struct{}{},
	}
	if len(i.Entrypoint) == 0 {
		file.Config.Entrypoint = []string{"/bin/app"}
	}
	for _, port := range i.Ports {
		file.Config.ExposedPorts[port] = struct{}{}
	}
	return mutate.ConfigFile(image, file)
}

func (r *Registry) putLayer(repository string, l v1.Layer) error {
	content, err := l.Compressed()
	if err != nil {
		return err
	}
	defer content.Close()
	raw, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	return r.putBlob(repository, l.Digest, raw)
}

func (r *Registry) putBlob(repository string, digest func() (v1.Hash, error), raw []byte) error {
	d, err := digest()
	if err != nil {
		return err
	}
	return r.send(http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", raw)
}

// send gives a request to the registry past its doors.
func (r *Registry) send(method, path, kind string, body []byte) error {
	req, err := http.NewRequestWithContext(context.Background(), method, path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	a := answer{status: http.StatusOK, header: http.Header{}}
	r.inner.ServeHTTP(&a, req)
	if a.status >= http.StatusMultipleChoices {
		return fmt.Errorf("%s %s: %s: %s", method, path, http.StatusText(a.status), a.body.String())
	}
	return nil
}

// answer is an http.ResponseWriter that keeps what it is told.
type answer struct {
	status int
	header http.Header
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// Start opens the registry. Starting what runs is no error.
func (r *Registry) Start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		return nil
	}
	listener, err := net.Listen("tcp", r.Address())
	if err != nil {
		return fmt.Errorf("start registry: %w", err)
	}
	server, done := &http.Server{Handler: http.HandlerFunc(r.serve), ReadHeaderTimeout: 10 * time.Second}, make(chan struct{})
	r.server, r.done = server, done
	go func() {
		defer close(done)
		_ = server.Serve(listener) // it ends by Stop alone
	}()
	return nil
}

// Stop closes the registry: downloads are cut.
func (r *Registry) Stop() {
	r.mu.Lock()
	server, done := r.server, r.done
	r.server = nil
	r.mu.Unlock()
	if server != nil {
		server.Close()
		<-done
	}
}

// Hold lets downloads from a repository, ovrclk/lunie-light, stop in the middle
// until letGo is called. Its manifests are given out.
func (r *Registry) Hold(repository string) (letGo func()) {
	held := make(chan struct{})
	r.mu.Lock()
	r.held[repository] = held
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		delete(r.held, repository)
		r.mu.Unlock()
		close(held)
	})
}

// halting writes half of the first piece, and the rest when there is no more
// reason to wait.
type halting struct {
	http.ResponseWriter
	wait func()
}

func (h *halting) Write(p []byte) (int, error) {
	half := len(p) / 2
	n, err := h.ResponseWriter.Write(p[:half])
	if err == nil {
		err = http.NewResponseController(h.ResponseWriter).Flush()
	}
	if err != nil {
		return n, err
	}
	h.wait()
	n, err = h.ResponseWriter.Write(p[half:])
	return half + n, err
}

// Requests is how many requests came for a repository, ovrclk/lunie-light; with
// an empty name, how many came at all.
func (r *Registry) Requests(repository string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if repository != "" {
		return r.requests[repository]
	}
	all := 0
	for _, n := range r.requests {
		all += n
	}
	return all
}

// serve counts, asks for the password where there is one, and lets nobody write.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	repository := repositoryOf(req.URL.Path)
	r.mu.Lock()
	r.requests[repository]++
	private, held := r.private[repository], r.held[repository]
	r.mu.Unlock()
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		http.Error(w, "this registry is read only", http.StatusMethodNotAllowed)
		return
	}
	if private && !r.authorized(req) {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`) // the asker has gone
		return
	}
	if held != nil && req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
		w = &halting{w, func() {
			select {
			case <-held:
			case <-req.Context().Done():
			}
		}}
	}
	r.inner.ServeHTTP(w, req)
}

func (r *Registry) authorized(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	same := func(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	return ok && same(user, r.cfg.User) && same(password, r.cfg.Password)
}

// repositoryOf is the repository that a path of the registry's protocol is
// about: what stands between /v2/ and manifests, blobs or tags.
func repositoryOf(path string) string {
	words := strings.Split(strings.TrimPrefix(path, "/v2/"), "/")
	for i, word := range slices.Backward(words) {
		if i > 0 && (word == "manifests" || word == "blobs" || word == "tags") {
			return strings.Join(words[:i], "/")
		}
	}
	return ""
}
