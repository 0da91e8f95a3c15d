package comet

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCallTellsAnAnswerFromAnOutage(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		status     int
		answered   bool
		want       string
	}{
		{"a result is decoded", `{"jsonrpc":"2.0","id":1,"result":{"height":"7"}}`, 200, true, ""},
		{"an error of the node is an answer", `{"error":{"code":-32603,"message":"Internal error","data":"height 9 is pruned"}}`, 500, true, "height 9 is pruned"},
		{"a proxy's page is none", `<html>bad gateway</html>`, 502, false, "HTTP 502"},
		{"a number where none belongs is no answer", `{"result":{"height":"high"}}`, 200, false, "decode answer"},
		{"an empty body is none", ``, 200, false, "no JSON-RPC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var call struct{ Method string }
				if err := json.NewDecoder(r.Body).Decode(&call); err != nil || call.Method != "status" {
					t.Errorf("call = %+v, %v", call, err)
				}
				w.WriteHeader(tc.status)
				if _, err := w.Write([]byte(tc.body)); err != nil {
					t.Error(err)
				}
			}))
			defer s.Close()
			u, err := ParseURL("tcp" + strings.TrimPrefix(s.URL, "http"))
			if err != nil {
				t.Fatal(err)
			}
			var out struct {
				Height Number `json:"height"`
			}
			err = Node{URL: u, HTTP: s.Client()}.Call(t.Context(), "status", struct{}{}, &out)
			if tc.want == "" {
				if err != nil || out.Height != 7 {
					t.Errorf("Call = %d, %v, want 7", out.Height, err)
				}
				return
			}
			_, answered := errors.AsType[*Error](err)
			if err == nil || answered != tc.answered || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Call = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	for _, bad := range []string{"", "host:26657", "ftp://host", "http://", "://"} {
		if _, err := ParseURL(bad); err == nil {
			t.Errorf("ParseURL(%q) worked", bad)
		}
	}
}

func FuzzNewHeight(f *testing.F) {
	f.Add([]byte(`{"result":{"data":{"value":{"header":{"height":"12"}}}}}`))
	f.Add([]byte(`{"result":{}}`))
	f.Add([]byte(`{"result":{"data":{"value":{"header":{"height":"-1"}}}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if height, ok := newHeight(raw); ok && height <= 0 {
			t.Errorf("height %d", height)
		}
	})
}
