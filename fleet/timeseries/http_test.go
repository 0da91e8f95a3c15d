package timeseries

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

// get asks the API and returns status and body.
func get(t *testing.T, s *Store, scope Scope, path string, args url.Values, method string) (int, map[string]any) {
	t.Helper()
	target, body := path+"?"+args.Encode(), io.Reader(nil)
	if method == http.MethodPost {
		target, body = path, strings.NewReader(args.Encode())
	}
	r := httptest.NewRequestWithContext(t.Context(), method, target, body)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	s.Handler(func(*http.Request) (Scope, error) { return scope, nil }).ServeHTTP(w, r)
	var reply map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &reply); err != nil {
		t.Fatalf("%s %s answered %d %q: %v", method, target, w.Code, w.Body, err)
	}
	return w.Code, reply
}

func TestTheAPIAnswersAsPrometheusDoes(t *testing.T) {
	s := open(t, Config{})
	now := time.Now().Truncate(time.Second)
	unix := fmt.Sprint(now.Unix())
	before := fmt.Sprint(now.Add(-time.Minute).Unix())
	d := string(device(1))
	add(t, s, device(1), gauge("a", now.Add(-time.Minute), 1.5, "k", "v"), gauge("c_total", now, 3))
	add(t, s, device(1), gauge("a", now, 2.5, "k", "v"))
	add(t, s, device(2), gauge("hidden", now, 1, "h", "x"))
	mine := Scope{Devices: []croft.DeviceID{device(1)}}
	for _, tc := range []struct {
		path string
		args url.Values
		want string
	}{
		{"query", url.Values{"query": {"a"}, "time": {unix}}, `{"resultType":"vector","result":[{"metric":{"__name__":"a","device":"` + d + `","k":"v"},"value":[` + unix + `,"2.5"]}]}`},
		{"query", url.Values{"query": {"a[5m]"}, "time": {now.UTC().Format(time.RFC3339)}}, `{"resultType":"matrix","result":[{"metric":{"__name__":"a","device":"` + d + `","k":"v"},"values":[[` + before + `,"1.5"],[` + unix + `,"2.5"]]}]}`},
		{"query", url.Values{"query": {"1+1"}, "time": {unix}}, `{"resultType":"scalar","result":[` + unix + `,"2"]}`},
		{"query", url.Values{"query": {"0/0"}, "time": {unix}}, `{"resultType":"scalar","result":[` + unix + `,"NaN"]}`},
		{"query", url.Values{"query": {`"x"`}, "time": {unix}}, `{"resultType":"string","result":[` + unix + `,"x"]}`},
		{"query", url.Values{"query": {"hidden"}, "time": {unix}}, `{"resultType":"vector","result":[]}`},
		{"query_range", url.Values{"query": {"sum(a)"}, "start": {before}, "end": {unix}, "step": {"1m"}}, `{"resultType":"matrix","result":[{"metric":{},"values":[[` + before + `,"1.5"],[` + unix + `,"2.5"]]}]}`},
		{"series", url.Values{"match[]": {"a", "hidden"}}, `[{"__name__":"a","device":"` + d + `","k":"v"}]`},
		{"labels", nil, `["__name__","device","k"]`},
		{"labels", url.Values{"match[]": {"c_total"}}, `["__name__","device"]`},
		{"label/__name__/values", nil, `["a","c_total"]`},
		{"label/device/values", url.Values{"match[]": {"a"}}, `["` + d + `"]`},
		{"label/h/values", nil, `[]`},
		{"metadata", nil, `{"a":[{"type":"gauge","help":"","unit":""}],"c_total":[{"type":"counter","help":"","unit":""}]}`},
		{"metadata", url.Values{"metric": {"a"}}, `{"a":[{"type":"gauge","help":"","unit":""}]}`},
		{"query_exemplars", url.Values{"query": {"a"}}, `[]`},
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			code, reply := get(t, s, mine, "/api/v1/"+tc.path, tc.args, method)
			var want any
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]any{"status": "success", "data": want}, reply); code != 200 || diff != "" {
				t.Errorf("%s %s %v: %d %s", method, tc.path, tc.args, code, diff)
			}
		}
	}
	if _, reply := get(t, s, mine, "/api/v1/status/buildinfo", nil, http.MethodGet); reply["data"].(map[string]any)["version"] != promVersion {
		t.Errorf("buildinfo is %v", reply)
	}
	code, reply := get(t, s, everything, "/api/v1/query", url.Values{"query": {`{device!=""}`}, "limit": {"1"}, "time": {unix}}, http.MethodGet)
	if result := reply["data"].(map[string]any)["result"].([]any); code != 200 || len(result) != 1 || reply["warnings"] == nil {
		t.Errorf("a limit of 1 gave %v", reply)
	}
}

func TestTheAPIRefusesAsPrometheusDoes(t *testing.T) {
	s := open(t, Config{})
	for _, tc := range []struct {
		path string
		args url.Values
		code int
		kind string
	}{
		{"query", url.Values{"query": {"a{"}}, 400, "bad_data"},
		{"query", url.Values{"query": {"a"}, "time": {"yesterday"}}, 400, "bad_data"},
		{"query", url.Values{"query": {"a"}, "time": {"NaN"}}, 400, "bad_data"},
		{"query", url.Values{"query": {"a"}, "time": {"1e300"}}, 400, "bad_data"},
		{"query", url.Values{"query": {"a"}, "timeout": {"soon"}}, 400, "bad_data"},
		{"query", url.Values{"query": {"a"}, "limit": {"-1"}}, 400, "bad_data"},
		{"query", url.Values{"query": {"vector(1) + on() (vector(1) or label_replace(vector(2), \"a\", \"b\", \"\", \"\"))"}}, 422, "execution"},
		{"query_range", url.Values{"query": {"a"}, "start": {"1"}, "end": {"2"}}, 400, "bad_data"},
		{"query_range", url.Values{"query": {"a"}, "start": {"1"}, "end": {"2"}, "step": {"0"}}, 400, "bad_data"},
		{"query_range", url.Values{"query": {"a"}, "start": {"1"}, "end": {"2"}, "step": {"1e-300"}}, 400, "bad_data"},
		{"query_range", url.Values{"query": {"a"}, "start": {"2"}, "end": {"1"}, "step": {"1"}}, 400, "bad_data"},
		{"query_range", url.Values{"query": {"a"}, "start": {"1"}, "end": {"11111111"}, "step": {"1"}}, 400, "bad_data"},
		{"query_range", url.Values{"query": {"a"}, "end": {"1"}, "step": {"1"}}, 400, "bad_data"},
		{"series", nil, 400, "bad_data"},
		{"series", url.Values{"match[]": {`{a=~".*"}`}}, 400, "bad_data"},
		{"series", url.Values{"match[]": slices.Repeat([]string{"a"}, 65)}, 400, "bad_data"},
		{"labels", url.Values{"match[]": slices.Repeat([]string{"a"}, 65)}, 400, "bad_data"},
		{"labels", url.Values{"match[]": {"{"}}, 400, "bad_data"},
		{"label/%ff/values", nil, 400, "bad_data"},
		{"nothing", nil, 404, "not_found"},
	} {
		code, reply := get(t, s, everything, "/api/v1/"+tc.path, tc.args, http.MethodGet)
		if code != tc.code || reply["errorType"] != tc.kind || reply["status"] != "error" || reply["error"] == "" {
			t.Errorf("%s %v: %d %v, want %d %s", tc.path, tc.args, code, reply, tc.code, tc.kind)
		}
	}
	if code, _ := get(t, s, everything, "/api/v1/query", url.Values{"query": {strings.Repeat("a", maxForm)}}, http.MethodPost); code != 400 {
		t.Errorf("a long body got %d", code)
	}
	if code, _ := get(t, s, everything, "/api/v1/query", url.Values{"query": {"1"}}, http.MethodDelete); code != 405 {
		t.Errorf("DELETE got %d", code)
	}
	w := httptest.NewRecorder()
	s.Handler(func(*http.Request) (Scope, error) { return Scope{}, errors.New("sign in first") }).
		ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/query?query=1", nil))
	if w.Code != 403 || !strings.Contains(w.Body.String(), "sign in first") {
		t.Errorf("a stranger got %d %s", w.Code, w.Body)
	}
}

func TestLongAnswersAreCompressed(t *testing.T) {
	s := open(t, Config{})
	now := time.Now()
	for i := range 50 {
		add(t, s, device(1), gauge("a", now, 1, "i", fmt.Sprint(i)))
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/query?query=a", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	w := httptest.NewRecorder()
	s.Handler(func(*http.Request) (Scope, error) { return everything, nil }).ServeHTTP(w, r)
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil || !strings.Contains(string(text), `"success"`) {
		t.Errorf("got %.80q, %v", text, err)
	}
}
