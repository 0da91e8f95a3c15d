package gatewayclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The examples of the protocol, as gateways answer them.
const (
	leaseStatusJSON = `{"services":{"web":{"name":"web","available":1,"total":1,"uris":["abc.ingress.example"],
		"observed_generation":1,"replicas":1,"updated_replicas":1,"ready_replicas":1,"available_replicas":1}},
		"forwarded_ports":{"web":[{"host":"host.example","port":5432,"externalPort":31234,"proto":"TCP","name":"web"}]},
		"ips":{"web":[{"Port":80,"ExternalPort":80,"Protocol":"TCP","IP":"203.0.113.9"}]}}`
	providerStatusJSON = `{"cluster":{"leases":1,"inventory":{"active":[{"cpu":500,"gpu":0,"memory":536870912,"storage_ephemeral":1073741824,"storage":{}}],
		"pending":[],"available":{"nodes":[{"name":"n1","allocatable":{"cpu":8000,"gpu":0,"memory":1,"storage_ephemeral":1},
		"available":{"cpu":7500,"gpu":0,"memory":1,"storage_ephemeral":1}}],"storage":[{"class":"beta3","size":1}]}}},
		"bidengine":{"orders":2},"manifest":{"deployments":3},"cluster_public_hostname":"p.example","address":"akash1P"}`
)

func TestStatusesAreRead(t *testing.T) {
	var s LeaseStatus
	if err := json.Unmarshal([]byte(leaseStatusJSON), &s); err != nil {
		t.Fatal(err)
	}
	if !s.Ready() || s.Ports["web"][0].ExternalPort != 31234 || s.IPs["web"][0].IP != "203.0.113.9" || !slices.Equal(s.URIs(), []string{"abc.ingress.example"}) {
		t.Errorf("lease status = %+v", s)
	}
	var p ProviderStatus
	if err := json.Unmarshal([]byte(providerStatusJSON), &p); err != nil {
		t.Fatal(err)
	}
	if p.Cluster.Leases != 1 || p.Cluster.Active[0].CPU != 500 || p.Cluster.Available[0].Available.CPU != 7500 || p.Orders != 2 || p.Deployments != 3 {
		t.Errorf("provider status = %+v", p)
	}
	if raw, err := json.Marshal(p); err != nil || !json.Valid(raw) || !bytes.Contains(raw, []byte("beta3")) {
		t.Errorf("provider status is passed on as %s, %v", raw, err)
	}
}

func TestReady(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   string
		want bool
	}{
		{"no services yet", `{}`, false},
		{"no replicas wanted", `{"services":{"web":{}}}`, false},
		{"too few replicas", `{"services":{"a":{"available":1,"total":1},"b":{"available":1,"total":2}}}`, false},
		{"all replicas", `{"services":{"a":{"available":1,"total":1},"b":{"available":2,"total":2}}}`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s LeaseStatus
			if err := json.Unmarshal([]byte(tc.in), &s); err != nil || s.Ready() != tc.want {
				t.Errorf("Ready = %v, %v", s.Ready(), err)
			}
		})
	}
}

func FuzzLeaseStatus(f *testing.F) {
	f.Add([]byte(leaseStatusJSON))
	f.Add([]byte(`{"services":null,"ips":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var s LeaseStatus
		if json.Unmarshal(raw, &s) != nil {
			return
		}
		if strings.ContainsAny(s.Summary(), "\x1b\n\r") {
			t.Errorf("summary %q has control characters", s.Summary())
		}
		s.Ready()
		s.URIs()
		again, err := json.Marshal(s)
		var back LeaseStatus
		if err != nil || json.Unmarshal(again, &back) != nil || back.Ready() != s.Ready() {
			t.Errorf("status is not the same again: %s, %v", again, err)
		}
	})
}

func FuzzProviderStatus(f *testing.F) {
	f.Add([]byte(providerStatusJSON))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var s, again ProviderStatus
		if json.Unmarshal(raw, &s) != nil {
			return
		}
		out, err := json.Marshal(s)
		if err != nil || json.Unmarshal(out, &again) != nil {
			t.Fatalf("status is not read again: %s, %v", out, err)
		}
		s.Raw, again.Raw = nil, nil
		if !reflect.DeepEqual(s, again) {
			t.Errorf("%+v became %+v", s, again)
		}
	})
}

func FuzzShellFrame(f *testing.F) {
	for _, seed := range []string{"", "dout", "eerr", `f{"exit_code":3,"message":"x"}`, `g{"message":"no"}`, "hin", "i\x00\x50\x00\x18", "\xff", "f", "fnull"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parseFrame(data)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("error %v is not one of the protocol", err)
			}
			return
		}
		out, err := got.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseFrame(out)
		if err != nil || again.code != got.code || again.result != got.result || !bytes.Equal(again.payload, got.payload) {
			t.Errorf("%+v became %+v, %v", got, again, err)
		}
		if _, err := (ShellConfig{}).output(data); errors.Is(err, ErrProtocol) {
			t.Errorf("a frame that parses is not taken: %v", err)
		}
	})
}

func TestResizeFrame(t *testing.T) {
	if got := resizeFrame(WindowSize{Width: 258, Height: 3}); !bytes.Equal(got, []byte{105, 1, 2, 0, 3}) {
		t.Errorf("frame = %v", got)
	}
}

func TestOverlap(t *testing.T) {
	for _, tc := range []struct {
		name, past, again string
		want              int
	}{
		{"nothing is new", "a b c", "a b c", 3},
		{"one line is new", "a b c", "b c d", 2},
		{"the past is shorter than what comes again", "b c", "a b c d", 3},
		{"of equal lines, those count as known that were seen", "x x", "x x x", 2},
		{"nothing is known", "", "a b", 0},
		{"nothing fits: lines are missing", "a b", "d e", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := overlap(strings.Fields(tc.past), strings.Fields(tc.again)); got != tc.want {
				t.Errorf("overlap = %d, want %d", got, tc.want)
			}
		})
	}
}
