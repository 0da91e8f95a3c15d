package tenant

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

// groupChanges tells how groups differ, one sentence for each difference. The
// order of endpoints, attributes, volumes and GPU models means nothing: right
// clients write them differently.
func groupChanges(was, now []*deploymentv1beta4.GroupSpec) []string {
	var changes []string
	note := func(format string, args ...any) { changes = append(changes, fmt.Sprintf(format, args...)) }
	old := map[string]*deploymentv1beta4.GroupSpec{}
	for _, g := range was {
		old[g.GetName()] = g
	}
	for _, g := range now {
		before, ok := old[g.GetName()]
		if !ok {
			note("placement %q is new", g.GetName())
			continue
		}
		delete(old, g.GetName())
		for _, difference := range differences(flatten(before), flatten(g)) {
			note("placement %q: %s", g.GetName(), difference)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		note("placement %q is gone", name)
	}
	return changes
}

// differences compares facts by name.
func differences(was, now map[string]string) []string {
	var out []string
	names := maps.Clone(was)
	maps.Copy(names, now)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, had := was[name]
		b, has := now[name]
		switch {
		case a == b && had == has:
		case !had:
			out = append(out, fmt.Sprintf("%s %s is new", name, b))
		case !has:
			out = append(out, fmt.Sprintf("%s %s is gone", name, a))
		default:
			out = append(out, fmt.Sprintf("%s was %s, is %s", name, a, b))
		}
	}
	return out
}

// flatten writes a group as facts with names.
func flatten(g *deploymentv1beta4.GroupSpec) map[string]string {
	facts := map[string]string{}
	r := g.GetRequirements()
	put := func(name, value string) {
		if value != "" {
			facts[name] = value
		}
	}
	put("attributes", attributeText(r.GetAttributes()))
	put("signedBy.allOf", sortedText(r.GetSignedBy().GetAllOf()))
	put("signedBy.anyOf", sortedText(r.GetSignedBy().GetAnyOf()))
	for _, u := range g.GetResources() {
		unit := fmt.Sprintf("resources %d ", u.GetResource().GetId())
		price := u.GetPrice().GetAmount() + u.GetPrice().GetDenom()
		if p, err := akash.PriceOf(u.GetPrice()); err == nil {
			price = strings.TrimRight(strings.TrimRight(p.Amount.String(), "0"), ".") + p.Denom
		}
		put(unit+"price", price)
		put(unit+"count", fmt.Sprint(u.GetCount()))
		res := u.GetResource()
		put(unit+"cpu", quantityText(res.GetCpu().GetUnits(), res.GetCpu().GetAttributes()))
		put(unit+"memory", quantityText(res.GetMemory().GetQuantity(), res.GetMemory().GetAttributes()))
		if gpu := res.GetGpu(); string(gpu.GetUnits().GetVal()) != "0" {
			put(unit+"gpu", quantityText(gpu.GetUnits(), gpu.GetAttributes()))
		}
		for _, v := range res.GetStorage() {
			put(unit+"volume "+v.GetName(), quantityText(v.GetQuantity(), v.GetAttributes()))
		}
		var endpoints []string
		for _, e := range res.GetEndpoints() {
			text := e.GetKind().String()
			if e.GetSequenceNumber() > 0 {
				text += fmt.Sprintf(" %d", e.GetSequenceNumber())
			}
			endpoints = append(endpoints, text)
		}
		put(unit+"ports to the world", sortedText(endpoints))
	}
	return facts
}

func quantityText(v *resourcesv1beta4.ResourceValue, attributes []*attributesv1.Attribute) string {
	text := string(v.GetVal())
	if of := attributeText(attributes); of != "" {
		text += " (" + of + ")"
	}
	return text
}

func attributeText(attributes []*attributesv1.Attribute) string {
	var parts []string
	for _, a := range attributes {
		parts = append(parts, a.GetKey()+"="+a.GetValue())
	}
	return sortedText(parts)
}

func sortedText(parts []string) string {
	return strings.Join(slices.Sorted(slices.Values(parts)), ", ")
}
