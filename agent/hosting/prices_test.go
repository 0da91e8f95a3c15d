package hosting

import (
	"reflect"
	"testing"

	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

func TestAnAuthorityIsAskedIfTheNetworkHasOne(t *testing.T) {
	if got := authorityOf(&joinfile.Network{}); got != nil {
		t.Errorf("without one %+v is asked", got)
	}
	got := authorityOf(&joinfile.Network{ACME: &joinfile.ACME{Directory: "https://acme.example", Email: "certs@example.com", TermsAgreed: true}})
	if got == nil || got.Directory != "https://acme.example" || got.Email != "certs@example.com" {
		t.Errorf("%+v is asked", got)
	}
}

func TestABoxAsksForItsPowerUnlessItsNetworkSaysOtherwise(t *testing.T) {
	machine := inventory.Machine{CPU: inventory.CPU{Threads: 8}}
	usual := offer.DefaultPolicy()
	usual.Power = offer.Power{Watts: 50, KWh: 250_000}
	if got := policyOf(&joinfile.Network{}, machine); !reflect.DeepEqual(got, usual) {
		t.Errorf("without prices the policy is\n%+v, want\n%+v", got, usual)
	}
	want := offer.DefaultPolicy()
	want.CPU, want.Memory, want.Endpoint = 1, 0, 3
	want.Storage["beta2"], want.Storage["tape"] = 4, 5
	want.GPU = map[string]offer.Money{"nvidia/a100": 6}
	want.Power = offer.Power{KWh: 7, Watts: 8, GPU: map[string]int64{"nvidia/a100": 9}}
	want.Worth = map[string]offer.Money{"uakt": 10}
	got := policyOf(&joinfile.Network{
		Chain: joinfile.Chain{Worth: map[string]int64{"uakt": 10}},
		Prices: joinfile.Prices{
			CPU: new(int64(1)), Memory: new(int64(0)), Endpoint: new(int64(3)), Storage: map[string]int64{"beta2": 4, "tape": 5}, GPU: map[string]int64{"nvidia/a100": 6},
			Power: joinfile.Power{KWh: new(int64(7)), Watts: new(int64(8)), GPU: map[string]int64{"nvidia/a100": 9}},
		},
	}, machine)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the policy is\n%+v, want\n%+v", got, want)
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
}
