package fleetclient_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

// server answers in process, so that tests run in synctest's time.
type server func(n int, r *http.Request) *http.Response

// serve is a client of a server, and what it was asked.
func serve(s server) (*fleetclient.Client, *[]*http.Request) {
	var asked []*http.Request
	return &fleetclient.Client{URL: "https://fleet.example.org/", Token: "secret", HTTP: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r)
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		return s(len(asked), r), nil
	})}}, &asked
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(status int, kind, body string, headers ...string) *http.Response {
	a := &http.Response{StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
	a.Header.Set("Content-Type", kind)
	for i := 0; i < len(headers); i += 2 {
		a.Header.Set(headers[i], headers[i+1])
	}
	return a
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestABusyFleetIsAskedAgainWithTheSameKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, asked := serve(func(n int, _ *http.Request) *http.Response {
			if n < 3 {
				return answer([]int{0, 429, 503}[n], fleetclient.ProblemType, `{"detail":"busy"}`, "Retry-After", "7")
			}
			return answer(200, "application/json", `{"id":"job_1"}`)
		})
		begin := time.Now()
		job, err := c.StartJob(t.Context(), fleetclient.NewJob{Kind: fleetapi.KindReboot}, "")
		check(t, err)
		if job.ID != "job_1" || time.Since(begin) != 14*time.Second {
			t.Errorf("job %+v after %v", job, time.Since(begin))
		}
		first := (*asked)[0].Header.Get(fleetclient.IdempotencyHeader)
		for _, r := range *asked {
			raw, err := io.ReadAll(r.Body)
			check(t, err)
			if r.Header.Get(fleetclient.IdempotencyHeader) != first || len(first) < 20 || r.Header.Get("Authorization") != "Bearer secret" || !json.Valid(raw) {
				t.Errorf("asked with key %q, body %q", r.Header.Get(fleetclient.IdempotencyHeader), raw)
			}
		}
		if (*asked)[0].URL.String() != "https://fleet.example.org/api/v1/jobs" {
			t.Errorf("asked %s", (*asked)[0].URL)
		}
		if _, err := c.StartJob(t.Context(), fleetclient.NewJob{}, "mine"); err != nil || (*asked)[3].Header.Get(fleetclient.IdempotencyHeader) != "mine" {
			t.Errorf("with a key of the caller's: %v", err)
		}
	})
}

func TestItGivesUp(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		after  string
		tries  int
		took   time.Duration
	}{
		"after four tries":            {503, "", 4, 7 * time.Second},
		"when it would take too long": {429, "3600", 1, 0},
		"when the fleet is at fault":  {500, "1", 1, 0},
		"when it is refused":          {409, "1", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, asked := serve(func(int, *http.Request) *http.Response {
					return answer(tc.status, fleetclient.ProblemType, `{"detail":"no","kind":"refused","remedy":"wait"}`, "Retry-After", tc.after)
				})
				begin := time.Now()
				_, err := c.Overview(t.Context())
				if len(*asked) != tc.tries || time.Since(begin) != tc.took {
					t.Errorf("%d tries in %v, want %d in %v", len(*asked), time.Since(begin), tc.tries, tc.took)
				}
				if croft.KindOf(err) != croft.KindRefused || err.Error() != "no; wait" {
					t.Errorf("error %q of kind %s", err, croft.KindOf(err))
				}
			})
		})
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := serve(func(int, *http.Request) *http.Response {
			return answer(503, "text/html", "<h1>busy</h1>", "Retry-After", "50")
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Overview(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
	})
}

func TestErrorsOfOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		status     int
		kind, body string
		want       croft.Kind
		text       string
	}{
		"a proxy":            {502, "text/html", "<h1>bad</h1>", croft.KindOther, "the fleet answered 502 Bad Gateway"},
		"the door":           {403, "application/json", `{"kind":"refused","message":"the form is too old","remedy":"load it"}`, croft.KindRefused, "the form is too old; load it"},
		"a token that ended": {401, "application/json", `{"kind":"refused","message":"the API token is wrong"}`, croft.KindRefused, "the API token is wrong; make an API token in the console and give it to `croft login`"},
		"no kind":            {404, fleetclient.ProblemType, `{"detail":"there is no such box"}`, croft.KindNotFound, "there is no such box"},
		"not a fleet":        {200, "text/html", "<h1>hello</h1>", croft.KindInvalid, "read the fleet's answer: invalid character '<' looking for beginning of value; check that the address is that of a fleet"},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := serve(func(int, *http.Request) *http.Response { return answer(tc.status, tc.kind, tc.body) })
			_, err := c.WhoAmI(t.Context())
			if croft.KindOf(err) != tc.want || err == nil || err.Error() != tc.text {
				t.Errorf("error %q of kind %q", err, croft.KindOf(err))
			}
			if status, ok := errors.AsType[*fleetclient.StatusError](err); tc.status >= 400 && (!ok || status.Status != tc.status) {
				t.Errorf("status %+v", status)
			}
		})
	}
}

func TestPagesAreFetchedAsTheyAreRead(t *testing.T) {
	c, asked := serve(func(_ int, r *http.Request) *http.Response {
		switch r.URL.Query().Get("cursor") {
		case "":
			return answer(200, "application/json", `{"items":[{"id":"a"},{"id":"b"}],"next":"x y"}`)
		case "x y":
			return answer(200, "application/json", `{"items":[{"id":"c"}],"next":"z"}`)
		}
		return answer(400, fleetclient.ProblemType, `{"detail":"cursor is none of ours","kind":"usage"}`)
	})
	list := c.Devices(t.Context(), fleetclient.DeviceQuery{Selector: "site=lab"})
	for range 2 { // a sequence can be read again
		*asked = nil
		var got []string
		var last error
		for d, err := range list {
			if last = err; err == nil {
				got = append(got, string(d.ID))
			}
		}
		if fmt.Sprint(got) != "[a b c]" || croft.KindOf(last) != croft.KindUsage || len(*asked) != 3 {
			t.Errorf("boxes %v, %d requests, then %v", got, len(*asked), last)
		}
		if q := (*asked)[2].URL.Query(); q.Get("selector") != "site=lab" {
			t.Errorf("the last page was asked for with %v", q)
		}
	}
	*asked = nil
	for _, err := range list {
		check(t, err)
		break
	}
	if len(*asked) != 1 {
		t.Errorf("%d requests for one box", len(*asked))
	}
}

func TestAWatchGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, asked := serve(func(n int, _ *http.Request) *http.Response {
			switch n {
			case 1:
				return answer(200, "text/event-stream", ":\n\nevent: device\ndata: {\"device\":{\"id\":\"a\"}}\n\n")
			case 2:
				return answer(503, "text/html", "", "Retry-After", "1")
			case 3:
				return answer(200, "text/event-stream", "event: gone\ndata: {\"gone\":\"a\"}\n\n")
			}
			return answer(404, fleetclient.ProblemType, `{"detail":"there is no such box","kind":"not_found"}`)
		})
		var got []string
		for change, err := range c.WatchDevice(t.Context(), "a") {
			got = append(got, fmt.Sprintf("%v %q %v", change.Device != nil, change.Gone, err))
		}
		if strings.Join(got, ", ") != `true "" <nil>, false "a" <nil>, false "" there is no such box` {
			t.Errorf("watched %q", got)
		}
		if len(*asked) != 4 || (*asked)[0].URL.Path != "/api/v1/devices/a/watch" {
			t.Errorf("%d requests", len(*asked))
		}
	})
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]string{`"10s"`: "10s", `"1h30m"`: "1h30m0s", `"0s"`: "0s", `"-1s"`: "", `"10"`: "", `10`: "", `"x"`: ""} {
		var d fleetclient.Duration
		err := json.Unmarshal([]byte(text), &d)
		if (err == nil) != (want != "") || err == nil && d.String() != want {
			t.Errorf("%s is %v, %v", text, d, err)
		}
	}
}
