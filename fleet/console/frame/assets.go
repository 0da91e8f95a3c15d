package frame

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
)

//go:embed assets/*.js assets/*.css assets/*.svg assets/*.LICENSE
var assetFiles embed.FS

// assets are files under names with their hash, which never change.
type assets struct {
	mu     sync.RWMutex
	byName map[string]string // guarded by mu; URL by name of the file
	byPath map[string]asset  // guarded by mu; by last part of the URL
}

type asset struct {
	kind       string
	raw, small []byte // small: by gzip
}

var assetKinds = map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml", ".LICENSE": "text/plain; charset=utf-8"}

func loadAssets() (*assets, error) {
	a := &assets{byName: map[string]string{}, byPath: map[string]asset{}}
	entries, err := assetFiles.ReadDir("assets")
	if err != nil {
		return nil, fmt.Errorf("read assets: %w", err)
	}
	for _, e := range entries {
		raw, err := assetFiles.ReadFile("assets/" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("read assets: %w", err)
		}
		a.add(e.Name(), raw)
	}
	return a, nil
}

// add adds a file and returns its URL.
func (a *assets) add(file string, raw []byte) string {
	sum := sha256.Sum256(raw)
	name := hex.EncodeToString(sum[:6]) + "-" + file
	var small bytes.Buffer
	zip := gzip.NewWriter(&small)
	_, _ = zip.Write(raw) // to memory
	_ = zip.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.byName[file] = "/assets/" + name
	a.byPath[name] = asset{assetKinds[path.Ext(file)], raw, small.Bytes()}
	return a.byName[file]
}

func (a *assets) url(name string) (string, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	url, ok := a.byName[name]
	if !ok {
		return "", fmt.Errorf("there is no asset %q", name)
	}
	return url, nil
}

// ServeHTTP implements http.Handler.
func (a *assets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.RLock()
	one, ok := a.byPath[r.PathValue("name")]
	a.mu.RUnlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	h, body := w.Header(), one.raw
	h.Set("Content-Type", one.kind)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = one.small
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the browser went away
}
