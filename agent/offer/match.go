package offer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
)

// Where a provider's attributes say what hardware it has.
const (
	storageCapability = "capabilities/storage/"
	gpuCapability     = "capabilities/gpu/"
)

// CompareAttributes orders attributes by key and value.
func CompareAttributes(a, b *attributesv1.Attribute) int {
	return cmp.Or(cmp.Compare(a.GetKey(), b.GetKey()), cmp.Compare(a.GetValue(), b.GetValue()))
}

// mismatch is the chain's own matching of a bid, so that no bid leaves that the
// chain refuses. It answers a sentence, empty if the provider matches.
func mismatch(spec *deploymentv1beta4.GroupSpec, has []*attributesv1.Attribute, audits []*auditv1.AuditedProvider) string {
	wants := spec.GetRequirements().GetAttributes()
	for _, want := range wants {
		if !matches(has, "", want) {
			return instead(has, want)
		}
	}
	signed := map[string][]*attributesv1.Attribute{}
	for _, a := range audits {
		signed[a.GetAuditor()] = append(signed[a.GetAuditor()], a.GetAttributes()...)
	}
	by := spec.GetRequirements().GetSignedBy()
	for _, auditor := range by.GetAllOf() {
		if lack := unsigned(auditor, wants, signed); lack != "" {
			return lack
		}
	}
	if auditors := by.GetAnyOf(); len(auditors) > 0 && !slices.ContainsFunc(auditors, func(a string) bool { return unsigned(a, wants, signed) == "" }) {
		return fmt.Sprintf("none of the auditors the tenant trusts has signed for this box (%s)", unsigned(auditors[0], wants, signed))
	}
	for _, u := range spec.GetResources() {
		for _, v := range u.GetResource().GetStorage() {
			if !hasStorage(has, v.GetAttributes()) {
				return fmt.Sprintf("no storage with %s for volume %q", listed(v.GetAttributes()), v.GetName())
			}
		}
		gpus := u.GetResource().GetGpu().GetAttributes()
		if len(gpus) > 0 && !slices.ContainsFunc(gpus, func(want *attributesv1.Attribute) bool { return matches(has, gpuCapability, want) }) {
			return "no GPU of " + keysOf(gpus)
		}
	}
	return ""
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

// instead says what the box has in the place of a wanted attribute.
func instead(has []*attributesv1.Attribute, want *attributesv1.Attribute) string {
	for _, a := range has {
		if a.GetKey() == want.GetKey() {
			return fmt.Sprintf("attribute %s is %q here, the tenant wants %q", want.GetKey(), a.GetValue(), want.GetValue())
		}
	}
	return fmt.Sprintf("attribute %s=%s is missing here", want.GetKey(), want.GetValue())
}

// unsigned says what an auditor has not signed; empty if nothing is missing.
func unsigned(auditor string, wants []*attributesv1.Attribute, signed map[string][]*attributesv1.Attribute) string {
	has, ok := signed[auditor]
	if !ok {
		return fmt.Sprintf("auditor %s has signed nothing for this box", auditor)
	}
	for _, want := range wants {
		if !matches(has, "", want) {
			return fmt.Sprintf("auditor %s has not signed %s=%s", auditor, want.GetKey(), want.GetValue())
		}
	}
	return ""
}

// hasStorage reports whether one numbered group of the box's storage has all
// that a volume asks for. A volume without attributes needs none.
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

func keysOf(wants []*attributesv1.Attribute) string {
	var names []string
	for _, w := range wants {
		names = append(names, w.GetKey())
	}
	return strings.Join(names, " or ")
}

func listed(attributes []*attributesv1.Attribute) string {
	var parts []string
	for _, a := range attributes {
		parts = append(parts, a.GetKey()+"="+a.GetValue())
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
