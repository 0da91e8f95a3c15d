package timeseries

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/prompb"

	"github.com/croft-cloud/croft/fleet/timeseries/forward"
)

// receiver is a remote write endpoint without a network.
type receiver struct {
	mu    sync.Mutex
	down  error
	code  int            // 0: 204
	later string         // Retry-After
	got   map[string]int // "device value" → times
	order []float64
	tries int
}

func (r *receiver) RoundTrip(q *http.Request) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
	reply := func(code int) (*http.Response, error) {
		return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Header: http.Header{"Retry-After": {r.later}}, Body: io.NopCloser(strings.NewReader("because"))}, nil
	}
	if r.down != nil {
		return nil, r.down
	}
	if r.code != 0 {
		return reply(r.code)
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return nil, err
	}
	plain, err := snappy.Decode(nil, body)
	var w prompb.WriteRequest
	if err != nil || w.Unmarshal(plain) != nil || q.Header.Get("Content-Encoding") != "snappy" || q.Header.Get("Authorization") != "Bearer x" {
		return reply(400)
	}
	for _, series := range w.Timeseries {
		for _, sample := range series.Samples {
			r.got[fmt.Sprint(series.Labels[1].Value, " ", sample.Value)]++
			r.order = append(r.order, sample.Value)
		}
	}
	return reply(204)
}

func (r *receiver) set(down error, code int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down, r.code = down, code
}

func (r *receiver) distinct() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func remoteTo(r *receiver, budget int64) *forward.Config {
	return &forward.Config{
		URL:     &url.URL{Scheme: "http", Host: "receiver", Path: "/api/v1/write"},
		Headers: map[string]string{"Authorization": "Bearer x"}, Budget: budget, Client: &http.Client{Transport: r},
	}
}

// running runs the store in the background until stop is called.
func running(t *testing.T, cfg Config) (s *Store, stop func()) {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	return s, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestRemoteWriteLosesNothingWhileTheReceiverIsDown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{got: map[string]int{}, down: errors.New("connection refused")}
		cfg := Config{Dir: dir, Remote: remoteTo(r, 0)}
		s, stop := running(t, cfg)
		n := 0
		feed := func(minutes int) {
			for range minutes {
				time.Sleep(time.Minute)
				add(t, s, device(1), gauge("a", time.Now(), float64(n)))
				n++
			}
		}
		feed(60)
		if r.distinct() != 0 || s.Stats().Remote.Waiting != 60 || s.Stats().Remote.FailedRequests < 30 {
			t.Fatalf("stats say %+v", s.Stats().Remote)
		}
		r.set(nil, 503)
		feed(30)
		stop() // and a restart in the middle
		s, stop = running(t, cfg)
		defer func() { stop() }()
		if got := s.Stats().Remote.Waiting; got != 90 {
			t.Errorf("after a restart %d samples wait, want 90", got)
		}
		r.set(nil, 401)
		feed(30)
		r.set(nil, 0)
		feed(30)
		time.Sleep(5 * time.Minute)
		if st := s.Stats().Remote; r.distinct() != n || st.Waiting != 0 || st.Dropped != 0 || st.Refused != 0 || st.Sent != int64(n) {
			t.Errorf("the receiver has %d of %d; stats say %+v", r.distinct(), n, st)
		}
		for i := 1; i < len(r.order); i++ {
			if r.order[i] < r.order[i-1] {
				t.Errorf("%v came after %v", r.order[i], r.order[i-1])
			}
		}
		// What the receiver will never take does not hold up the rest.
		r.set(nil, 400)
		feed(1)
		time.Sleep(time.Minute)
		r.set(nil, 0)
		feed(1)
		time.Sleep(time.Minute)
		if st := s.Stats().Remote; st.Refused != 1 || st.Waiting != 0 || r.distinct() != n-1 {
			t.Errorf("the receiver has %d of %d; stats say %+v", r.distinct(), n, st)
		}
	})
}

func TestRemoteWriteHeedsRetryAfter(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{got: map[string]int{}, code: 429, later: "300"}
		s, stop := running(t, Config{Dir: dir, Remote: remoteTo(r, 0)})
		defer stop()
		add(t, s, device(1), gauge("a", time.Now(), 1))
		time.Sleep(299 * time.Second)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.tries != 1 {
			t.Errorf("%d requests within the pause", r.tries)
		}
	})
}

func TestAFullSpoolDropsTheOldestAndCountsThem(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &receiver{got: map[string]int{}, down: errors.New("connection refused")}
		s, stop := running(t, Config{Dir: dir, Remote: remoteTo(r, 1<<20)})
		defer func() { stop() }()
		n := 0
		for range 120 {
			time.Sleep(time.Minute)
			var batch []Sample
			for i := range 400 {
				// A label that does not compress.
				batch = append(batch, gauge("a", time.Now(), float64(n), "k", string(device(n)), "i", fmt.Sprint(i)))
				n++
				if n%480 == 0 {
					break
				}
			}
			if _, err := s.Append(t.Context(), device(n), batch); err != nil {
				t.Fatal(err)
			}
		}
		st := s.Stats().Remote
		stored := s.Stats().Stored
		if st.Dropped == 0 || st.Waiting == 0 || st.Dropped+st.Waiting != stored {
			t.Fatalf("stored %d; stats say %+v", stored, st)
		}
		size := sizeOf(filepath.Join(dir, "remote"))
		if size > 1<<20 {
			t.Errorf("the spool has %d bytes", size)
		}
		r.set(nil, 0)
		time.Sleep(10 * time.Minute)
		if got := int64(r.distinct()); got != stored-st.Dropped {
			t.Errorf("the receiver has %d, want %d", got, stored-st.Dropped)
		}
	})
}
