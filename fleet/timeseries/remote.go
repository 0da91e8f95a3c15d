package timeseries

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
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"

	"github.com/croft-cloud/croft"
)

// Remote is a receiver of Prometheus remote write 1.0 (Prometheus, Mimir,
// VictoriaMetrics, Thanos …). Samples for it wait in a spool on disk, each at
// least once and in order; when the spool is full the oldest go.
type Remote struct {
	URL     *url.URL          // required; http or https
	Headers map[string]string // sent with each request, Authorization for example
	Budget  int64             // bytes of the spool; default 1 GiB, at least 1 MiB
	Client  *http.Client      // default: 30 s a request, no redirects
}

// requestBytes is about how much compressed payload makes one request.
const requestBytes = 128 << 10

type sender struct {
	to      Remote
	log     *slog.Logger
	spool   *spool
	wake    chan struct{}
	sent    atomic.Int64 // samples
	refused atomic.Int64 // samples the receiver will never take
	failed  atomic.Int64 // requests
}

func newSender(to Remote, dir string, log *slog.Logger) (*sender, error) {
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
	return &sender{to: to, log: log, spool: spool, wake: make(chan struct{}, 1)}, nil
}

// add puts stored samples into the spool.
func (s *sender) add(device croft.DeviceID, samples []Sample) {
	if len(samples) == 0 {
		return
	}
	request := prompb.WriteRequest{Timeseries: make([]prompb.TimeSeries, 0, len(samples))}
	builder := labels.NewScratchBuilder(maxLabels + 2)
	for _, sample := range samples {
		check(&builder, device, sample) // it passed before; this fills the builder
		request.Timeseries = append(request.Timeseries, prompb.TimeSeries{
			Labels:  prompb.FromLabels(builder.Labels(), nil),
			Samples: []prompb.Sample{{Timestamp: sample.At.UnixMilli(), Value: sample.Value}},
		})
	}
	payload, err := request.Marshal()
	if err == nil {
		err = s.spool.put(snappy.Encode(nil, payload), len(samples))
	}
	if err != nil {
		s.log.Error("spooling for remote write failed", "error", err)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends what is in the spool until ctx ends. A receiver that is down is tried
// again after 1 s to 1 min, with decorrelated jitter.
func (s *sender) run(ctx context.Context) {
	pause := time.Second
	for {
		more, err := s.sendSome(ctx)
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.failed.Add(1)
			s.log.Warn("remote write failed", "error", err)
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
			case <-s.wake:
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
func (s *sender) sendSome(ctx context.Context) (more bool, err error) {
	t, err := s.spool.take(requestBytes)
	if err != nil {
		return true, errors.Join(err, s.spool.skip())
	}
	if len(t.payloads) == 0 {
		return false, nil
	}
	// Messages of protobuf one after the other are the message of all.
	var body []byte
	for _, p := range t.payloads {
		part, err := snappy.Decode(nil, p)
		if err != nil {
			return true, errors.Join(err, s.spool.skip())
		}
		body = append(body, part...)
	}
	switch err := s.post(ctx, snappy.Encode(nil, body)); {
	case errors.Is(err, errRefused):
		s.refused.Add(t.total())
		s.log.Warn("remote write refused samples; they are dropped", "samples", t.total(), "error", err)
	case err != nil:
		return true, err
	default:
		s.sent.Add(t.total())
	}
	return true, s.spool.done(t)
}

// errRefused reports an answer that will not change when the same is sent again.
var errRefused = errors.New("receiver refused the samples")

// retryLater reports that the receiver named a pause.
type retryLater struct {
	error
	after time.Duration
}

func (s *sender) post(ctx context.Context, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.to.URL.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("send samples: %w", err)
	}
	r.Header.Set("Content-Encoding", "snappy")
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "croft-fleet")
	r.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	for name, value := range s.to.Headers {
		r.Header.Set(name, value)
	}
	reply, err := s.to.Client.Do(r)
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

func (s *sender) close() error { return s.spool.close() }
