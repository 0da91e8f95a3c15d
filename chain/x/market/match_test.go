package market

import (
	"testing"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
)

func TestAttributes(t *testing.T) {
	have := []attributesv1.Attribute{attr("region", "eu-west"), attr("hw/cpu/amd", "true"), attr("hw/cpu/arm/v8", "true")}
	for _, tc := range []struct {
		name   string
		wanted []attributesv1.Attribute
		want   bool
	}{
		{"no requirement fits every provider", nil, true},
		{"an equal attribute fits", []attributesv1.Attribute{attr("region", "eu-west")}, true},
		{"every requirement must be met", []attributesv1.Attribute{attr("region", "eu-west"), attr("tier", "1")}, false},
		{"another value does not fit", []attributesv1.Attribute{attr("region", "eu-east")}, false},
		{"the beginning of a key does not fit", []attributesv1.Attribute{attr("reg", "eu-west")}, false},
		{"a star stands for the rest of a key's part", []attributesv1.Attribute{attr("hw/cpu/a*", "true")}, true},
		{"a star stands for nothing, too", []attributesv1.Attribute{attr("hw/cpu/amd*", "true")}, true},
		{"a star does not reach over a slash", []attributesv1.Attribute{attr("hw/*", "true")}, false},
		{"a star is of keys, not of values", []attributesv1.Attribute{attr("region", "eu-*")}, false},
		{"with a star the value must be equal as well", []attributesv1.Attribute{attr("hw/cpu/a*", "false")}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := (matcher{storetypes.NewInfiniteGasMeter()}).covers(have, "", tc.wanted); got != tc.want {
				t.Errorf("covers(%v) = %v, want %v", tc.wanted, got, tc.want)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	have := []attributesv1.Attribute{
		attr("capabilities/storage/1/class", "beta2"), attr("capabilities/storage/1/persistent", "true"),
		attr("capabilities/storage/2/class", "ram"), attr("capabilities/storage/2/persistent", "false"),
		attr("capabilities/gpu/vendor/nvidia/model/a100", "true"),
		attr("capabilities/gpu/vendor/nvidia/model/a100/ram/80Gi", "true"),
	}
	volume := func(attributes ...attributesv1.Attribute) resourcesv1beta4.Resources {
		return resourcesv1beta4.Resources{Storage: []resourcesv1beta4.Storage{{Name: "data", Attributes: attributes}}}
	}
	gpu := func(keys ...string) resourcesv1beta4.Resources {
		g := &resourcesv1beta4.GPU{Units: units(1)}
		for _, key := range keys {
			g.Attributes = append(g.Attributes, attr(key, "true"))
		}
		return resourcesv1beta4.Resources{GPU: g}
	}
	for _, tc := range []struct {
		name      string
		resources resourcesv1beta4.Resources
		want      bool
	}{
		{"a volume without attributes needs nothing", volume(), true},
		{"one group holds all attributes of the volume", volume(attr("class", "beta2"), attr("persistent", "true")), true},
		{"class ram is a group like others", volume(attr("class", "ram"), attr("persistent", "false")), true},
		{"two groups do not add up", volume(attr("class", "beta2"), attr("persistent", "false")), false},
		{"a class nobody has does not fit", volume(attr("class", "beta3")), false},
		{"a model that is there fits", gpu("vendor/nvidia/model/a100"), true},
		{"a model with its memory fits", gpu("vendor/nvidia/model/a100/ram/80Gi"), true},
		{"one of several models is enough", gpu("vendor/amd/model/mi300", "vendor/nvidia/model/a100"), true},
		{"any model of a vendor", gpu("vendor/nvidia/model/*"), true},
		{"a model that is not there does not fit", gpu("vendor/nvidia/model/h100"), false},
		{"no GPU asked for needs none", gpu(), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := deploymentv1beta4.GroupSpec{Resources: []deploymentv1beta4.ResourceUnit{{Resource: tc.resources}}}
			if err := (matcher{storetypes.NewInfiniteGasMeter()}).capable(have, spec); (err == nil) != tc.want {
				t.Errorf("capable = %v, want fit %v", err, tc.want)
			}
		})
	}
}

func TestComparisonsArePaidForInGas(t *testing.T) {
	gas := storetypes.NewInfiniteGasMeter()
	wanted := make([]attributesv1.Attribute, 100)
	have := make([]attributesv1.Attribute, 1000)
	for i := range have {
		have[i].Value = "other"
	}
	have[999].Value = ""
	(matcher{gas}).covers(have, "", wanted)
	if got := gas.GasConsumed(); got != 100_000 {
		t.Errorf("100 × 1000 comparisons cost %d gas, want 100000", got)
	}
}
