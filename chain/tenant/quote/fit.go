// Package quote tells a tenant beforehand and meanwhile what a deployment comes
// to: [Fit] which providers could bid at all and what the others lack, [Cost]
// what a price for each block makes in an hour or a month, [RunwayOf] how long
// the money in escrow lasts.
//
// Money is computed in integers of 10^-18 of a unit, and rounded only when it is
// printed ([Money]). But for [MeasurePace], which asks a chain for the time its
// blocks took, everything here is a pure function.
package quote

import (
	"fmt"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
)

// Report says whether a provider could bid on what an SDL asks for.
type Report struct {
	Provider *providerv1beta4.Provider
	// Groups are the names of those it could bid on.
	Groups []string
	// Lacks says what keeps it from the others, one sentence each.
	Lacks []string
}

// Fits reports whether the provider could bid on every group.
func (r Report) Fits() bool { return len(r.Lacks) == 0 }

// Fit says which providers the chain would let bid on these groups, and what the
// others lack: attributes, auditors' signatures, storage, GPUs. Providers that
// fit come first, both halves in the order of their addresses. It tells nothing
// of price and room: those a provider decides for itself.
func Fit(groups []*deploymentv1beta4.GroupSpec, providers []*providerv1beta4.Provider, audits []*auditv1.AuditedProvider) []Report {
	signed := map[account.Address]map[string][]*attributesv1.Attribute{} // by provider and auditor
	for _, a := range audits {
		owner := account.Address(a.GetOwner())
		if signed[owner] == nil {
			signed[owner] = map[string][]*attributesv1.Attribute{}
		}
		signed[owner][a.GetAuditor()] = append(signed[owner][a.GetAuditor()], a.GetAttributes()...)
	}
	reports := make([]Report, 0, len(providers))
	for _, p := range providers {
		r := Report{Provider: p}
		for _, g := range groups {
			lacks := lacksOf(g, p.GetAttributes(), signed[account.Address(p.GetOwner())])
			if len(lacks) == 0 {
				r.Groups = append(r.Groups, g.GetName())
			}
			for _, lack := range lacks {
				r.Lacks = append(r.Lacks, fmt.Sprintf("placement %q: %s", g.GetName(), lack))
			}
		}
		reports = append(reports, r)
	}
	slices.SortFunc(reports, func(a, b Report) int {
		if a.Fits() != b.Fits() {
			if a.Fits() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Provider.GetOwner(), b.Provider.GetOwner())
	})
	return reports
}

// Where a provider's attributes say what hardware it has.
const (
	storageCapability = "capabilities/storage/"
	gpuCapability     = "capabilities/gpu/"
)

// lacksOf is the chain's matching of a bid, with reasons.
func lacksOf(g *deploymentv1beta4.GroupSpec, has []*attributesv1.Attribute, signed map[string][]*attributesv1.Attribute) []string {
	var lacks []string
	wants := g.GetRequirements().GetAttributes()
	for _, want := range wants {
		if !matches(has, "", want) {
			lacks = append(lacks, instead(has, want))
		}
	}
	by := g.GetRequirements().GetSignedBy()
	for _, auditor := range by.GetAllOf() {
		if lack := unsigned(auditor, wants, signed); lack != "" {
			lacks = append(lacks, lack)
		}
	}
	if auditors := by.GetAnyOf(); len(auditors) > 0 && !slices.ContainsFunc(auditors, func(auditor string) bool { return unsigned(auditor, wants, signed) == "" }) {
		lacks = append(lacks, fmt.Sprintf("none of the auditors of anyOf has signed all that is wanted (%s)", unsigned(auditors[0], wants, signed)))
	}
	for _, u := range g.GetResources() {
		for _, v := range u.GetResource().GetStorage() {
			if !hasStorage(has, v.GetAttributes()) {
				lacks = append(lacks, fmt.Sprintf("no storage with %s for volume %q (%sN/…)", listed(v.GetAttributes()), v.GetName(), storageCapability))
			}
		}
		gpus := u.GetResource().GetGpu().GetAttributes()
		if len(gpus) > 0 && !slices.ContainsFunc(gpus, func(want *attributesv1.Attribute) bool { return matches(has, gpuCapability, want) }) {
			lacks = append(lacks, fmt.Sprintf("no GPU of %s (%s…)", gpuText(gpus), gpuCapability))
		}
	}
	return lacks
}

// matches reports whether one attribute is the wanted one: equal values, and
// equal keys after the prefix, where a * at the end of the wanted key stands for
// the rest of that part of the path.
func matches(has []*attributesv1.Attribute, prefix string, want *attributesv1.Attribute) bool {
	stem, glob := strings.CutSuffix(want.GetKey(), "*")
	return slices.ContainsFunc(has, func(a *attributesv1.Attribute) bool {
		key, ok := strings.CutPrefix(a.GetKey(), prefix)
		if !ok || a.GetValue() != want.GetValue() {
			return false
		}
		if !glob {
			return key == want.GetKey()
		}
		rest, ok := strings.CutPrefix(key, stem)
		return ok && !strings.Contains(rest, "/")
	})
}

// instead says what a provider has in the place of a wanted attribute.
func instead(has []*attributesv1.Attribute, want *attributesv1.Attribute) string {
	for _, a := range has {
		if a.GetKey() == want.GetKey() {
			return fmt.Sprintf("attribute %s is %s, not %s", want.GetKey(), a.GetValue(), want.GetValue())
		}
	}
	return fmt.Sprintf("attribute %s=%s is missing", want.GetKey(), want.GetValue())
}

// unsigned says what an auditor has not signed; empty if nothing is missing.
func unsigned(auditor string, wants []*attributesv1.Attribute, signed map[string][]*attributesv1.Attribute) string {
	has, ok := signed[auditor]
	if !ok {
		return fmt.Sprintf("auditor %s has signed nothing of it", auditor)
	}
	for _, want := range wants {
		if !matches(has, "", want) {
			return fmt.Sprintf("auditor %s has not signed %s=%s", auditor, want.GetKey(), want.GetValue())
		}
	}
	return ""
}

// hasStorage reports whether one numbered group of the provider's storage has
// all that a volume asks for.
func hasStorage(has, wants []*attributesv1.Attribute) bool {
	if len(wants) == 0 {
		return true
	}
	for _, a := range has {
		rest, ok := strings.CutPrefix(a.GetKey(), storageCapability)
		number, _, deeper := strings.Cut(rest, "/")
		if !ok || !deeper {
			continue
		}
		group := storageCapability + number + "/"
		if !slices.ContainsFunc(wants, func(want *attributesv1.Attribute) bool { return !matches(has, group, want) }) {
			return true
		}
	}
	return false
}

// gpuText names the models asked for.
func gpuText(wants []*attributesv1.Attribute) string {
	var names []string
	for _, w := range wants {
		names = append(names, w.GetKey())
	}
	return strings.Join(names, " or ")
}

// listed is attributes for people, sorted.
func listed(attributes []*attributesv1.Attribute) string {
	var parts []string
	for _, a := range attributes {
		parts = append(parts, a.GetKey()+"="+a.GetValue())
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
