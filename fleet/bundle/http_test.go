package bundle_test

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func judge(r *http.Request) (croft.DeviceID, error) {
	if r.Header.Get("Box") == "" {
		return "", errors.New("secret reason")
	}
	return croft.ParseDeviceID(r.Header.Get("Box"))
}

func TestStatuses(t *testing.T) {
	good := zipped(t, "x")
	large := built(t, make([]byte, 500), &zip.FileHeader{Name: "x", Method: zip.Store})
	timed(t, bundle.Config{MaxBytes: 1000, MaxTotal: 3 * int64(len(good))}, func(t *testing.T, f *fleet) {
		handler := f.DeviceHandler(judge)
		put := func(method, path string, n int, body io.Reader) *httptest.ResponseRecorder {
			r := httptest.NewRequestWithContext(t.Context(), method, path, body)
			if n > 0 {
				r.Header.Set("Box", string(idOf(n)))
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w
		}
		first, ended := f.job(1), f.job(1)
		f.end(ended)
		for _, tc := range []struct {
			name   string
			job    string
			box    int
			body   io.Reader
			status int
			says   string
		}{
			{"a new bundle", first, 1, bytes.NewReader(good), 201, ""},
			{"the same again", first, 1, bytes.NewReader(good), 200, ""},
			{"another of the job", first, 1, bytes.NewReader(zipped(t, "y")), 409, "another bundle"},
			{"a job that has ended", ended, 1, bytes.NewReader(good), 409, "has ended"},
			{"no such job", fleetapi.NewID(fleetapi.PrefixJob), 1, bytes.NewReader(good), 404, "no such job"},
			{"no id of a job", "job_x", 1, bytes.NewReader(good), 404, ""},
			{"another box's job", first, 2, bytes.NewReader(good), 404, "no such job"},
			{"nobody we know", first, 0, bytes.NewReader(good), 403, "no box"},
			{"said too large", f.job(2), 2, bytes.NewReader(make([]byte, 1001)), 413, "too large"},
			{"is too large", f.job(2), 2, io.LimitReader(zeros{}, 2000), 413, "too large"},
			{"no zip", f.job(2), 2, strings.NewReader("hello"), 422, "no good bundle"},
			{"broken off", f.job(2), 2, iotest.ErrReader(errDown), 400, "broke off"},
			{"no room", f.job(2), 2, bytes.NewReader(large), 507, "no room"},
		} {
			w := put(http.MethodPut, "/v1/bundles/"+tc.job, tc.box, tc.body)
			if w.Code != tc.status || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("%s: status %d, want %d: %s", tc.name, w.Code, tc.status, w.Body)
				continue
			}
			if tc.status < 300 {
				var r bundle.Receipt
				check(t, json.Unmarshal(w.Body.Bytes(), &r))
				if r.Job != first || len(r.Digest) != 64 || r.Size != int64(len(good)) || r.ID == "" || !r.Expires.After(r.Created.Time) {
					t.Errorf("%s: receipt is %s", tc.name, w.Body)
				}
				continue
			}
			var r bundle.Refusal
			check(t, json.Unmarshal(w.Body.Bytes(), &r))
			must(fleetapi.ParseErrorDocument(w.Body.Bytes()))(t)
			if r.Error != r.Message || !strings.Contains(r.Error, tc.says) || strings.Contains(w.Body.String(), "secret") {
				t.Errorf("%s: refusal is %s", tc.name, w.Body)
			}
			if (w.Header().Get("Retry-After") != "") != (tc.status == 507) {
				t.Errorf("%s: retry after %q", tc.name, w.Header().Get("Retry-After"))
			}
		}
		for range 10 {
			put(http.MethodPut, "/v1/bundles/"+first, 3, nil)
		}
		if w := put(http.MethodPut, "/v1/bundles/"+first, 3, nil); w.Code != 429 || w.Header().Get("Retry-After") == "" {
			t.Errorf("too fast: status %d", w.Code)
		}
		if w := put(http.MethodGet, "/v1/bundles/"+first, 1, nil); w.Code != 405 {
			t.Errorf("a GET: status %d", w.Code)
		}
		f.blobs.put = func() error { return errDown }
		if w := put(http.MethodPut, "/v1/bundles/"+f.job(4), 4, bytes.NewReader(good)); w.Code != 503 || strings.Contains(w.Body.String(), "down") {
			t.Errorf("blobs are down: status %d: %s", w.Code, w.Body)
		}
	})
}

func TestUploadOverTheNetwork(t *testing.T) {
	f := newFleet(t, dbtest.URL(t, dbtest.SQLite), bundle.Config{})
	server := httptest.NewServer(f.DeviceHandler(judge))
	defer server.Close()
	for _, tc := range []struct {
		job    string
		size   int64
		status int
	}{
		{f.job(1), 0, 201},
		{f.job(1), 9 << 20, 413},
		{fleetapi.NewID(fleetapi.PrefixJob), 8 << 20, 404},
	} {
		body := io.Reader(bytes.NewReader(zipped(t, "x")))
		if tc.size > 0 { // a refusal comes before the body is sent
			body = iotest.ErrReader(errors.New("the body was sent"))
		}
		r := must(http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL+"/v1/bundles/"+tc.job, body))(t)
		if tc.size > 0 {
			r.ContentLength = tc.size
		}
		r.Header.Set("Box", string(idOf(1)))
		r.Header.Set("Expect", "100-continue")
		client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
		w, err := client.Do(r)
		check(t, err)
		check(t, w.Body.Close())
		if w.StatusCode != tc.status {
			t.Errorf("status %d, want %d", w.StatusCode, tc.status)
		}
		client.CloseIdleConnections()
	}
}
