// Package forward sends samples to a receiver of Prometheus remote write 1.0
// (Prometheus, Mimir, VictoriaMetrics, Thanos …). What waits for it is in files.
//
//	f, err := forward.New(forward.Config{URL: receiver}, dir, log)
//	go f.Run(ctx)
//	err = f.Put(request) // a prompb.WriteRequest
//	f.Close()
//
// It promises that what was put is sent at least once and in order, also after the
// end of the process (kill -9); a power cut can take what was put last. A receiver
// that is down, or refuses the key, is tried again after 1 s to 1 min; samples that
// it refuses for good are dropped and counted. When the files reach their bound the
// oldest samples are dropped and counted. A damaged file is given up from the damage
// on. It does not look into samples and keeps no copy of what was sent.
package forward

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/snappy"
	"github.com/prometheus/prometheus/prompb"
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	URL     *url.URL          // required; http or https
	Headers map[string]string // sent with each request, Authorization for example
	Budget  int64             // bytes of the files; default 1 GiB, at least 1 MiB
	Client  *http.Client      // default: 30 s a request, no redirects
}

// Stats is a forwarder in numbers; counts are since New.
type Stats struct {
	Sent           int64 // samples
	Waiting        int64 // samples in the files
	Dropped        int64 // samples, because the files were full or damaged
	Refused        int64 // samples, by the receiver for good
	FailedRequests int64
}

// requestBytes is about how much compressed payload makes one request.
const requestBytes = 128 << 10

// Forwarder sends to one receiver. Its methods may be called from any goroutine,
// Run from one at a time.
type Forwarder struct {
	to      Config
	log     *slog.Logger
	spool   *spool
	wake    chan struct{}
	sent    atomic.Int64 // samples
	refused atomic.Int64 // samples the receiver will never take
	failed  atomic.Int64 // requests
}

// New opens the files in dir, which are one forwarder's alone.
func New(to Config, dir string, log *slog.Logger) (*Forwarder, error) {
	if to.URL == nil || to.URL.Host == "" || to.URL.Scheme != "http" && to.URL.Scheme != "https" {
		return nil, errors.New("URL of remote write is not a whole http or https URL")
	}
	to.Budget = cmp.Or(to.Budget, 1<<30)
	if to.Budget < 1<<20 {
		return nil, fmt.Errorf("spool of remote write is %d bytes: want at least 1 MiB", to.Budget)
	}
	if to.Client == nil {
		to.Client = &http.Client{
			Timeout:       30 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	spool, err := openSpool(dir, to.Budget)
	if err != nil {
		return nil, err
	}
	return &Forwarder{to: to, log: log, spool: spool, wake: make(chan struct{}, 1)}, nil
}

// Put queues one request. After an error its samples are lost, and counted.
func (f *Forwarder) Put(request *prompb.WriteRequest) error {
	samples := 0
	for _, series := range request.Timeseries {
		samples += len(series.Samples)
	}
	payload, err := request.Marshal()
	if err != nil {
		return fmt.Errorf("encode samples for remote write: %w", err)
	}
	if err := f.spool.put(snappy.Encode(nil, payload), samples); err != nil {
		return err
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
	return nil
}

// Stats tells how the forwarder is.
func (f *Forwarder) Stats() Stats {
	st := Stats{Sent: f.sent.Load(), Refused: f.refused.Load(), FailedRequests: f.failed.Load()}
	st.Waiting, st.Dropped = f.spool.numbers()
	return st
}

// Run sends what is in the spool until ctx ends. A receiver that is down is tried
// again after 1 s to 1 min, with decorrelated jitter.
func (f *Forwarder) Run(ctx context.Context) {
	pause := time.Second
	for {
		more, err := f.sendSome(ctx)
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			f.failed.Add(1)
			f.log.Warn("remote write failed", "error", err)
			pause = min(time.Minute, time.Second+rand.N(3*pause))
			wait = pause
			if later, ok := errors.AsType[retryLater](err); ok {
				wait = max(wait, min(later.after, 10*time.Minute))
			}
		case more:
			pause = time.Second
		default:
			pause = time.Second
			select {
			case <-ctx.Done():
				return
			case <-f.wake:
				wait = time.Second // so that more than one batch goes with a request
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// sendSome sends one request; more: there may be another.
func (f *Forwarder) sendSome(ctx context.Context) (more bool, err error) {
	t, err := f.spool.take(requestBytes)
	if err != nil {
		return true, errors.Join(err, f.spool.skip())
	}
	if len(t.payloads) == 0 {
		return false, nil
	}
	// Messages of protobuf one after the other are the message of all.
	var body []byte
	for _, p := range t.payloads {
		part, err := snappy.Decode(nil, p)
		if err != nil {
			return true, errors.Join(err, f.spool.skip())
		}
		body = append(body, part...)
	}
	switch err := f.post(ctx, snappy.Encode(nil, body)); {
	case errors.Is(err, errRefused):
		f.refused.Add(t.total())
		f.log.Warn("remote write refused samples; they are dropped", "samples", t.total(), "error", err)
	case err != nil:
		return true, err
	default:
		f.sent.Add(t.total())
	}
	return true, f.spool.done(t)
}

// errRefused reports an answer that will not change when the same is sent again.
var errRefused = errors.New("receiver refused the samples")

// retryLater reports that the receiver named a pause.
type retryLater struct {
	error
	after time.Duration
}

func (f *Forwarder) post(ctx context.Context, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.to.URL.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("send samples: %w", err)
	}
	r.Header.Set("Content-Encoding", "snappy")
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "croft-fleet")
	r.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	for name, value := range f.to.Headers {
		r.Header.Set(name, value)
	}
	reply, err := f.to.Client.Do(r)
	if err != nil {
		return fmt.Errorf("send samples: %w", err)
	}
	defer func() { _ = reply.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(reply.Body, 256))
	switch code := reply.StatusCode; {
	case code/100 == 2:
		return nil
	case code == http.StatusTooManyRequests || code/100 == 5:
		err := fmt.Errorf("send samples: receiver answered %s: %q", reply.Status, text)
		if seconds, bad := strconv.Atoi(reply.Header.Get("Retry-After")); bad == nil && seconds > 0 {
			return retryLater{err, time.Duration(min(seconds, 3600)) * time.Second}
		}
		return err
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusNotFound || code/100 == 3:
		// The address or the key is wrong, not the samples: they wait for the repair.
		return fmt.Errorf("send samples: receiver answered %s: %q", reply.Status, text)
	}
	return fmt.Errorf("send samples: receiver answered %s: %q: %w", reply.Status, text, errRefused)
}

// Close closes the files, after Run has ended.
func (f *Forwarder) Close() error { return f.spool.close() }
