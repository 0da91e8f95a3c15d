package blob_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/blob"
)

const (
	keyID  = "AKIDTEST"
	secret = "hush/hush+HUSH"
)

// server is an S3 in memory behind a door that knows one access key. It does not
// check signatures.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	answer func(http.ResponseWriter, *http.Request) bool // guarded by mu; nil, or answers instead if true
}

func newServer(t *testing.T) *server {
	t.Helper()
	memory := s3mem.New()
	check(t, memory.CreateBucket("croft"))
	s3 := gofakes3.New(memory, gofakes3.WithTimeSkewLimit(0)).Server()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		answer := s.answer
		s.mu.Unlock()
		switch {
		case answer != nil && answer(w, r):
		case !strings.Contains(r.Header.Get("Authorization"), "Credential="+keyID+"/"):
			fail(w, http.StatusForbidden, "InvalidAccessKeyId")
		case !strings.Contains(r.Header.Get("Authorization"), "/eu-test-1/s3/"):
			fail(w, http.StatusBadRequest, "AuthorizationHeaderMalformed")
		default:
			s3.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func fail(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>No.</Message></Error>") // the client went away
}

func (s *server) answers(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

func (s *server) url(user *url.Userinfo, bucket string) string {
	return (&url.URL{
		Scheme: "s3", User: user, Host: s.Listener.Addr().String(), Path: "/" + bucket, RawQuery: "region=eu-test-1&tls=no&path=yes",
	}).String()
}

func openBucket(t *testing.T, s *server) blob.Store {
	t.Helper()
	store, err := blob.Open(t.Context(), s.url(url.UserPassword(keyID, secret), "croft"))
	check(t, err)
	return store
}

func TestBucket(t *testing.T) {
	suite(t, func(t *testing.T) blob.Store { return openBucket(t, newServer(t)) })
}

func TestBucketOfManyBlobs(t *testing.T) {
	s := openBucket(t, newServer(t))
	for n := range 1100 { // more than a page
		put(t, s, "many/"+strings.Repeat("x", n%90+1)+"-"+string(rune('a'+n/90)), "")
	}
	if got := list(t, s, "many/"); len(got) != 1100 {
		t.Errorf("the list has %d blobs", len(got))
	}
}

func TestBucketTakesKeysFromTheEnvironment(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", keyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	s := newServer(t)
	store, err := blob.Open(t.Context(), s.url(nil, "croft"))
	check(t, err)
	put(t, store, "k", "v")
	if got := get(t, store, "k"); got != "v" {
		t.Errorf("blob is %q", got)
	}
}

func TestBucketErrors(t *testing.T) {
	hidden := func(t *testing.T, err error) {
		t.Helper()
		if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), url.QueryEscape(secret)) {
			t.Errorf("error is %v", err)
		}
	}
	t.Run("no such bucket", func(t *testing.T) {
		_, err := blob.Open(t.Context(), newServer(t).url(url.UserPassword(keyID, secret), "other"))
		wantKind(t, err, croft.KindMissing)
		hidden(t, err)
	})
	t.Run("wrong key", func(t *testing.T) {
		_, err := blob.Open(t.Context(), newServer(t).url(url.UserPassword("WRONG", secret), "croft"))
		wantKind(t, err, croft.KindRefused)
		hidden(t, err)
	})
	t.Run("nobody listens", func(t *testing.T) {
		closed, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		check(t, closed.Close())
		_, err = blob.Open(t.Context(), "s3://"+keyID+":"+url.QueryEscape(secret)+"@"+closed.Addr().String()+"/croft?tls=no")
		hidden(t, err)
	})
	t.Run("the bucket is full", func(t *testing.T) {
		s := newServer(t)
		store := openBucket(t, s)
		s.answers(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut {
				_, _ = io.Copy(io.Discard, r.Body) // the client went away
				fail(w, http.StatusInsufficientStorage, "XMinioStorageFull")
			}
			return r.Method == http.MethodPut
		})
		err := store.Put(t.Context(), "k", 1, strings.NewReader("x"))
		wantKind(t, err, croft.KindNoSpace)
		hidden(t, err)
	})
	t.Run("a blob is cut off on its way", func(t *testing.T) {
		s := newServer(t)
		store := openBucket(t, s)
		s.answers(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", "100")
			w.Header().Set("ETag", `"x"`)
			w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
			_, _ = io.WriteString(w, "half") // the client went away
			return true
		})
		body, size, err := store.Get(t.Context(), "k")
		check(t, err)
		defer body.Close()
		if raw, err := io.ReadAll(body); err == nil || size != 100 {
			t.Errorf("read %q of %d bytes without an error", raw, size)
		}
	})
	t.Run("too large for one request", func(t *testing.T) {
		wantKind(t, openBucket(t, newServer(t)).Put(t.Context(), "k", 5<<30+1, strings.NewReader("")), croft.KindUsage)
	})
}
