package market

import (
	"slices"
	"strings"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/errors"

	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
)

// Where a provider's attributes say what hardware it has.
const (
	storageCapability = "capabilities/storage/"
	gpuCapability     = "capabilities/gpu/"
)

// matcher compares attributes. Tenant and provider choose how many there are, so
// the message pays for each comparison in gas, before it is made.
type matcher struct {
	gas gasMeter
}

type gasMeter interface {
	ConsumeGas(amount storetypes.Gas, descriptor string)
}

// has says that one of the attributes is the wanted one: the values are equal
// and so are the keys, where a * at the end of the wanted key stands for the
// rest of that part of the path (a/b* is a/bc, not a/b/c).
func (m matcher) has(have []attributesv1.Attribute, prefix string, want attributesv1.Attribute) bool {
	stem, glob := strings.CutSuffix(want.Key, "*")
	m.gas.ConsumeGas(uint64(len(have)), "compare attributes")
	for _, a := range have {
		if a.Value != want.Value {
			continue
		}
		key, ok := strings.CutPrefix(a.Key, prefix)
		if !ok {
			continue
		}
		if !glob && key == want.Key {
			return true
		}
		if rest, ok := strings.CutPrefix(key, stem); glob && ok && !strings.Contains(rest, "/") {
			return true
		}
	}
	return false
}

// covers says that every wanted attribute is there.
func (m matcher) covers(have []attributesv1.Attribute, prefix string, wanted []attributesv1.Attribute) bool {
	return !slices.ContainsFunc(wanted, func(want attributesv1.Attribute) bool { return !m.has(have, prefix, want) })
}

// capable says that a provider's attributes claim the storage and the GPUs of a
// group; the error names what is missing.
func (m matcher) capable(have []attributesv1.Attribute, spec deploymentv1beta4.GroupSpec) error {
	groups := storageGroups(have)
	for i, unit := range spec.Resources {
		for _, volume := range unit.Resource.Storage {
			if !m.anyGroup(have, groups, volume.Attributes) {
				return errors.Wrapf(ErrCapabilitiesMismatch, "unit %d: no %sN/ of the provider has all attributes of volume %q",
					i+1, storageCapability, volume.Name)
			}
		}
		if gpu := unit.Resource.GPU; gpu != nil && !m.anyGPU(have, gpu.Attributes) {
			return errors.Wrapf(ErrCapabilitiesMismatch, "unit %d: no %s attribute of the provider is one of the GPUs asked for",
				i+1, gpuCapability)
		}
	}
	return nil
}

// anyGroup says that one group of a provider's storage attributes holds all
// that a volume asks for. A volume without attributes needs none.
func (m matcher) anyGroup(have []attributesv1.Attribute, groups []string, wanted []attributesv1.Attribute) bool {
	return len(wanted) == 0 || slices.ContainsFunc(groups, func(group string) bool { return m.covers(have, group, wanted) })
}

// anyGPU says that a provider has one of the models asked for.
func (m matcher) anyGPU(have []attributesv1.Attribute, wanted []attributesv1.Attribute) bool {
	return len(wanted) == 0 || slices.ContainsFunc(wanted, func(want attributesv1.Attribute) bool { return m.has(have, gpuCapability, want) })
}

// storageGroups lists the prefixes capabilities/storage/N/ that occur, each once.
func storageGroups(have []attributesv1.Attribute) []string {
	var groups []string
	seen := make(map[string]bool)
	for _, a := range have {
		rest, ok := strings.CutPrefix(a.Key, storageCapability)
		if !ok {
			continue
		}
		if name, _, ok := strings.Cut(rest, "/"); ok && !seen[name] {
			seen[name] = true
			groups = append(groups, storageCapability+name+"/")
		}
	}
	return groups
}
