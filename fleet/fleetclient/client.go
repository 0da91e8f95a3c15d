// Package fleetclient is the fleet's HTTP API as programs speak it: the types of
// its JSON, and a client.
//
//	c := &fleetclient.Client{URL: "https://fleet.example.org", Token: token}
//	for box, err := range c.Devices(ctx, fleetclient.DeviceQuery{Selector: "site=lab"}) { … }
//	job, err := c.StartJob(ctx, fleetclient.NewJob{Device: id, Kind: fleetapi.KindReboot}, "")
//
// Lists are sequences that fetch page after page; one that failed yields its error
// as the last. Errors are *[croft.Error] with the kind and the remedy that the
// fleet told.
//
// Every request that makes something carries an idempotency key, so it can be sent
// again: answers 429 and 503 are, after the time that Retry-After says, three times
// at most and within a minute. A caller that gives its own key may also repeat the
// call itself, after a crash too, for 24 hours.
//
// Everything here is described by the OpenAPI document at /api/v1/openapi.json.
package fleetclient

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
)

// Prefix is where the API is below a fleet's address.
const Prefix = "/api/v1"

// IdempotencyHeader names a request that makes something: sent again within 24
// hours with the same key it makes nothing twice.
const IdempotencyHeader = "Idempotency-Key"

const (
	maxAnswer = 32 << 20
	maxTries  = 4
	maxWait   = time.Minute // longest wait between two tries
)

// Client speaks to one fleet. It may be used by any number of goroutines.
type Client struct {
	URL   string       // of the fleet: https://fleet.example.org
	Token string       // API token
	HTTP  *http.Client // nil: one that waits 30 s for an answer to begin
}

var standard = func() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 30 * time.Second
	return &http.Client{Transport: transport}
}()

// ask is one request.
type ask struct {
	method, path string
	query        url.Values
	body         []byte
	kind         string // of the body
	accept       string
	key          string
}

// send sends a request until it is answered, and returns answers of status 2xx.
func (c *Client) send(ctx context.Context, a ask) (*http.Response, error) {
	if a.method == http.MethodPost && a.key == "" {
		a.key = rand.Text()
	}
	for try := 1; ; try++ {
		answer, err := c.once(ctx, a)
		if err != nil {
			return nil, err
		}
		if answer.StatusCode/100 == 2 {
			return answer, nil
		}
		problem := readProblem(answer)
		wait := time.Second << (try - 1)
		if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && seconds >= 0 {
			wait = time.Duration(seconds) * time.Second
		}
		busy := answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusServiceUnavailable
		if !busy || try == maxTries || wait > maxWait {
			return nil, problem
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(problem, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (c *Client) once(ctx context.Context, a ask) (*http.Response, error) {
	target := strings.TrimRight(c.URL, "/") + Prefix + a.path
	if len(a.query) > 0 {
		target += "?" + a.query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, a.method, target, bytes.NewReader(a.body))
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("ask the fleet: %w", err), Remedy: "check the address of the fleet"}
	}
	r.Header.Set("Accept", a.accept)
	r.Header.Set("User-Agent", "croft")
	for name, value := range map[string]string{"Content-Type": a.kind, IdempotencyHeader: a.key} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	if c.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = standard
	}
	answer, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask the fleet: %w", err)
	}
	return answer, nil
}

// readProblem is the error of an answer. What stands before the API (a proxy, the
// check of tokens) may answer in another form.
func readProblem(answer *http.Response) error {
	defer answer.Body.Close()
	raw, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	var doc struct {
		Problem
		Message string `json:"message"`
	}
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind == ProblemType || kind == "application/json" {
		_ = json.Unmarshal(raw, &doc) // then the status has to do
	}
	text := doc.Detail
	if text == "" {
		text = doc.Message
	}
	if text == "" {
		text = "the fleet answered " + answer.Status
	}
	if doc.Kind == "" {
		doc.Kind = map[int]croft.Kind{
			http.StatusBadRequest: croft.KindUsage, http.StatusUnauthorized: croft.KindRefused,
			http.StatusForbidden: croft.KindRefused, http.StatusNotFound: croft.KindNotFound,
		}[answer.StatusCode]
	}
	if answer.StatusCode == http.StatusUnauthorized {
		doc.Remedy = "make an API token in the console and give it to `croft login`"
	}
	return &croft.Error{Kind: doc.Kind, Err: &StatusError{Status: answer.StatusCode, Text: text}, Remedy: doc.Remedy}
}

// StatusError is what the fleet said, and the status of that answer.
type StatusError struct {
	Status int
	Text   string
}

func (e *StatusError) Error() string { return e.Text }

// call sends in as JSON, if it is not nil, and reads the answer into out, if that
// is not nil.
func (c *Client) call(ctx context.Context, a ask, in, out any) error {
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("write request: %w", err)}
		}
		a.body, a.kind = raw, "application/json"
	}
	a.accept = "application/json"
	answer, err := c.send(ctx, a)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(out); err != nil {
		return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read the fleet's answer: %w", err), Remedy: "check that the address is that of a fleet"}
	}
	return nil
}

// fetch is a request for one thing.
func fetch[T any](ctx context.Context, c *Client, a ask, in any) (T, error) {
	var out T
	err := c.call(ctx, a, in, &out)
	return out, err
}

// pages is a list, fetched as it is read.
func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query := maps.Clone(query)
		for {
			page, err := fetch[Page[T]](ctx, c, ask{method: http.MethodGet, path: path, query: query}, nil)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, one := range page.Items {
				if !yield(one, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			if query == nil {
				query = url.Values{}
			}
			query.Set("cursor", page.Next)
		}
	}
}

// all is a short list.
func all[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	page, err := fetch[Page[T]](ctx, c, ask{method: http.MethodGet, path: path, query: query}, nil)
	return page.Items, err
}

// watch yields changes as the fleet sends them, and connects again when the
// connection ends, as it does every few minutes; then what is there comes again.
// The sequence ends with an error, or when ctx does.
func (c *Client) watch(ctx context.Context, path string, query url.Values) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		for ctx.Err() == nil {
			answer, err := c.send(ctx, ask{method: http.MethodGet, path: path, query: query, accept: "text/event-stream"}) //nolint:bodyclose // readChanges does
			if err == nil {
				var more bool
				if more, err = readChanges(answer.Body, yield); !more {
					return
				}
			}
			if err != nil && ctx.Err() == nil {
				yield(Change{}, err)
				return
			}
			select { // whoever cuts streams at once is not asked without pause
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// readChanges reads Server-Sent Events to their end. A stream that is cut ends too.
func readChanges(body io.ReadCloser, yield func(Change, error) bool) (more bool, err error) {
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var change Change
		if err := json.Unmarshal([]byte(data), &change); err != nil {
			return true, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read the fleet's changes: %w", err)}
		}
		if !yield(change, nil) {
			return false, nil
		}
	}
	return true, nil
}
