package quote

import (
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

// attributes reads "key=value key=value".
func attributes(s string) []*attributesv1.Attribute {
	var out []*attributesv1.Attribute
	for f := range strings.FieldsSeq(s) {
		k, v, _ := strings.Cut(f, "=")
		out = append(out, &attributesv1.Attribute{Key: k, Value: v})
	}
	return out
}

func TestFit(t *testing.T) {
	const a, b = "akash1auditora", "akash1auditorb"
	for _, tc := range []struct {
		name                string
		wants, allOf, anyOf string
		volume, gpu         string
		has                 string
		signed              map[string]string
		lacks               []string
	}{
		{name: "whoever wants nothing gets everybody"},
		{name: "equal attributes fit", wants: "region=eu-west", has: "x=y region=eu-west"},
		{name: "another value is named", wants: "region=eu-west", has: "region=us", lacks: []string{"attribute region is us, not eu-west"}},
		{name: "a missing attribute is named", wants: "region=eu-west", lacks: []string{"attribute region=eu-west is missing"}},
		{name: "a glob stands for the rest of a key", wants: "feat-*=true", has: "feat-endpoint-ip=true"},
		{name: "a glob stays in its part of the path", wants: "a/*=true", has: "a/b/c=true", lacks: []string{"attribute a/*=true is missing"}},
		{name: "all auditors must have signed", wants: "k=v", has: "k=v", allOf: a + " " + b, signed: map[string]string{a: "k=v"}, lacks: []string{"auditor " + b + " has signed nothing of it"}},
		{name: "an auditor who signed something else does not count", wants: "k=v", has: "k=v", allOf: a, signed: map[string]string{a: "k=w"}, lacks: []string{"auditor " + a + " has not signed k=v"}},
		{name: "one of several auditors is enough", wants: "k=v", has: "k=v", anyOf: a + " " + b, signed: map[string]string{b: "k=v"}},
		{
			name: "none of several auditors is not", wants: "k=v", has: "k=v", anyOf: a + " " + b,
			lacks: []string{"none of the auditors of anyOf has signed all that is wanted (auditor " + a + " has signed nothing of it)"},
		},
		{name: "a signature does not replace the attribute", wants: "k=v", allOf: a, signed: map[string]string{a: "k=v"}, lacks: []string{"attribute k=v is missing"}},
		{name: "a volume finds its class", volume: "persistent=true class=beta3", has: "capabilities/storage/1/class=beta3 capabilities/storage/1/persistent=true"},
		{
			name: "a volume needs all of one group", volume: "persistent=true class=beta3",
			has:   "capabilities/storage/1/class=beta3 capabilities/storage/1/persistent=false capabilities/storage/2/class=beta2 capabilities/storage/2/persistent=true",
			lacks: []string{`no storage with class=beta3, persistent=true for volume "data" (capabilities/storage/N/…)`},
		},
		{name: "any model of a vendor", gpu: "vendor/nvidia/model/*=true", has: "capabilities/gpu/vendor/nvidia/model/rtx4090=true"},
		{name: "one of the models asked for", gpu: "vendor/nvidia/model/a100=true vendor/nvidia/model/h100=true", has: "capabilities/gpu/vendor/nvidia/model/h100=true"},
		{name: "no such model", gpu: "vendor/nvidia/model/a100=true", has: "capabilities/gpu/vendor/nvidia/model/h100=true", lacks: []string{"no GPU of vendor/nvidia/model/a100 (capabilities/gpu/…)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			group := &deploymentv1beta4.GroupSpec{
				Name: "home", Requirements: &attributesv1.PlacementRequirements{
					Attributes: attributes(tc.wants), SignedBy: &attributesv1.SignedBy{AllOf: strings.Fields(tc.allOf), AnyOf: strings.Fields(tc.anyOf)},
				},
				Resources: []*deploymentv1beta4.ResourceUnit{{Resource: &resourcesv1beta4.Resources{
					Storage: []*resourcesv1beta4.Storage{{Name: "default"}, {Name: "data", Attributes: attributes(tc.volume)}},
					Gpu:     &resourcesv1beta4.GPU{Attributes: attributes(tc.gpu)},
				}}},
			}
			provider := &providerv1beta4.Provider{Owner: "akash1provider", Attributes: attributes(tc.has)}
			audits := []*auditv1.AuditedProvider{{Owner: "akash1other", Auditor: b, Attributes: attributes(tc.wants)}}
			for auditor, signed := range tc.signed {
				audits = append(audits, &auditv1.AuditedProvider{Owner: provider.Owner, Auditor: auditor, Attributes: attributes(signed)})
			}
			want := slices.Clone(tc.lacks)
			for i := range want {
				want[i] = `placement "home": ` + want[i]
			}
			reports := Fit([]*deploymentv1beta4.GroupSpec{group}, []*providerv1beta4.Provider{provider}, audits)
			if got := reports[0]; !slices.Equal(got.Lacks, want) || got.Fits() != (len(want) == 0) || len(got.Groups) == 1 != got.Fits() {
				t.Errorf("report = %q %v, want %q", got.Lacks, got.Groups, want)
			}
		})
	}
}

func TestProvidersThatFitComeFirst(t *testing.T) {
	group := &deploymentv1beta4.GroupSpec{Name: "home", Requirements: &attributesv1.PlacementRequirements{Attributes: attributes("k=v")}}
	reports := Fit([]*deploymentv1beta4.GroupSpec{group}, []*providerv1beta4.Provider{
		{Owner: "c"}, {Owner: "b", Attributes: attributes("k=v")}, {Owner: "a"},
	}, nil)
	var order []string
	for _, r := range reports {
		order = append(order, r.Provider.Owner)
	}
	if !slices.Equal(order, []string{"b", "a", "c"}) {
		t.Errorf("order = %v", order)
	}
}
