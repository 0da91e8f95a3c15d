package joinfile

import (
	"reflect"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
)

func sound() *Network {
	return &Network{
		Chain: Chain{ID: "croft-local", RPC: "http://10.0.2.2:26657", GRPC: "grpc://10.0.2.2:9090", Faucet: "http://10.0.2.2:1317/faucet", FeeGranter: "akash1" + strings.Repeat("q", 38)},
		Relays: []Relay{
			{Name: "relay.example"},
			{Name: "two.example", Address: "10.0.2.2:8443", Pins: []string{strings.Repeat("0f", 32)}},
		},
		Attributes: map[string]string{"organization": "ovrclk.com"},
		Mirrors:    map[string][]string{"docker.io": {"http://10.0.2.2:5000"}},
		ACME:       &ACME{Directory: "https://acme.example/directory", Email: "certs@example.com", TermsAgreed: true},
		Prices: Prices{
			CPU: new(int64(1_000_000)), Memory: new(int64(0)), Storage: map[string]int64{"beta2": 30_000}, GPU: map[string]int64{"nvidia/a100": 1},
			Power: Power{KWh: new(int64(320_000)), Watts: new(int64(35)), GPU: map[string]int64{"nvidia/a100": 300}},
		},
	}
}

func TestAFileIsReadAsItWasWritten(t *testing.T) {
	raw, err := sound().Format()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(raw)
	if err != nil || !reflect.DeepEqual(got, sound()) {
		t.Errorf("read %+v, %v", got, err)
	}
}

func TestDomainAndPortHaveDefaults(t *testing.T) {
	n := sound()
	if n.RelayDomain() != "relay.example" || n.RelayPort() != 443 {
		t.Errorf("defaults are %s, %d", n.RelayDomain(), n.RelayPort())
	}
	n.Domain, n.Port = "boxes.example", 8443
	if n.RelayDomain() != "boxes.example" || n.RelayPort() != 8443 {
		t.Errorf("got %s, %d", n.RelayDomain(), n.RelayPort())
	}
}

func TestWhatMakesNoSenseIsRefusedWithItsPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*Network)
		want  string
	}{
		"no chain id":           {func(n *Network) { n.Chain.ID = "" }, "chain.id is missing"},
		"rpc without host":      {func(n *Network) { n.Chain.RPC = "http:26657" }, "chain.rpc"},
		"grpc with other words": {func(n *Network) { n.Chain.GRPC = "http://a:1" }, "chain.grpc"},
		"faucet":                {func(n *Network) { n.Chain.Faucet = "faucet" }, "chain.faucet"},
		"worthless denom":       {func(n *Network) { n.Chain.Worth = map[string]int64{"uakt": 0} }, "chain.worth: uakt is worth 0"},
		"fee granter":           {func(n *Network) { n.Chain.FeeGranter = "the operator" }, "chain.fee_granter"},
		"terms not agreed to":   {func(n *Network) { n.ACME.TermsAgreed = false }, "acme.terms_agreed"},
		"authority in clear":    {func(n *Network) { n.ACME.Directory = "http://acme.example" }, "acme.directory"},
		"e-mail":                {func(n *Network) { n.ACME.Email = "certs" }, "acme.email"},
		"price below zero":      {func(n *Network) { *n.Prices.Memory = -1 }, "prices.memory is -1"},
		"power beyond bounds":   {func(n *Network) { *n.Prices.Power.Watts = most + 1 }, "prices.power.watts"},
		"storage below zero":    {func(n *Network) { n.Prices.Storage["ram"] = -5 }, `prices.storage: "ram" is -5`},
		"GPU without name":      {func(n *Network) { n.Prices.GPU[""] = 5 }, "prices.gpu"},
		"no relay":              {func(n *Network) { n.Relays = nil }, "relays is empty"},
		"port":                  {func(n *Network) { n.Port = 65536 }, "port is 65536"},
		"nameless relay":        {func(n *Network) { n.Relays[1].Name = "" }, "relays[1]: name is missing"},
		"relay without port":    {func(n *Network) { n.Relays[1].Address = "10.0.2.2" }, "relays[1]: address"},
		"short pin":             {func(n *Network) { n.Relays[1].Pins[0] = "0f" }, "64 hexadecimal digits"},
		"path as registry":      {func(n *Network) { n.Mirrors["../etc"] = nil }, "no registry's host name"},
		"mirror":                {func(n *Network) { n.Mirrors["docker.io"][0] = "10.0.2.2:5000" }, "mirrors: docker.io"},
	} {
		t.Run(name, func(t *testing.T) {
			n := sound()
			tc.spoil(n)
			_, err := n.Format()
			if err == nil || !strings.Contains(err.Error(), tc.want) || croft.KindOf(err) != croft.KindInvalid {
				t.Errorf("error is %v, want one about %q", err, tc.want)
			}
		})
	}
}

func TestOtherBytesAreRefused(t *testing.T) {
	raw, err := sound().Format()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string]string{
		"nothing":          "",
		"unknown member":   strings.Replace(string(raw), `"relays"`, `"relais"`, 1),
		"two files in one": string(raw) + "{}",
		"far too much":     string(raw) + strings.Repeat(" ", MaxSize),
	} {
		if _, err := Parse([]byte(raw)); croft.KindOf(err) != croft.KindInvalid {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}
