package deployment

import (
	"fmt"
	"slices"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	"cosmossdk.io/errors"
	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// The functions below judge a message by itself, without the chain's state.
// They accept whatever a decoder can make and never panic.

// HashBytes is the length of a manifest's hash.
const HashBytes = 32

// Bounds of one deployment. Akash has MaxGroups and MaxUnits as constants but
// does not hold clients to them; here they bound the work of one message, which
// may open or close an order per group. A unit's count makes no work, so it is
// bounded by the group's totals only, as on Akash. The others are ours, and far
// above what clients send.
const (
	MaxGroups     = 20
	MaxUnits      = 20       // in one group
	MaxVolumes    = 32       // in one unit
	MaxEndpoints  = 1024     // in one unit
	MaxAuditors   = 64       // in all_of, and in any_of
	MaxNameBytes  = 256      // of a group, a volume or an auditor
	maxGroupScale = 50       // a group's totals are this many times one unit's limits
	MaxGroupBytes = 64 << 10 // of all groups: group and order are rewritten with each change of state
)

// MaxUnitPrice is the highest price of one unit per block.
const MaxUnitPrice = 10_000_000

// limit is what one unit may ask for of one resource.
type limit struct {
	name     string
	min, max uint64
}

const (
	mebi = 1 << 20
	tebi = 1 << 40
)

// The limits per unit. They are never changed.
var (
	cpuLimit     = limit{"cpu.units", 10, 384_000} // thousandths of a core
	gpuLimit     = limit{"gpu.units", 0, 24}
	memoryLimit  = limit{"memory.quantity", 1 * mebi, 2 * tebi}   // bytes
	storageLimit = limit{"storage.quantity", 5 * mebi, 32 * tebi} // bytes, of one volume
)

// ValidateCreateDeployment checks all of a message but its owner's past and
// means, the denominations and parameters of the chain.
func ValidateCreateDeployment(msg *deploymentv1beta4.MsgCreateDeployment) error {
	if err := validateDeploymentID(msg.ID); err != nil {
		return err
	}
	if err := validateHash(msg.Hash); err != nil {
		return err
	}
	if err := validateDeposit(msg.Deposit); err != nil {
		return err
	}
	denom, err := validateGroups(msg.Groups)
	if err != nil {
		return err
	}
	if msg.Deposit.Amount.Denom != denom {
		return errors.Wrapf(ErrInvalidDeposit, "amount is in %s, the groups' prices in %s: use one denomination", msg.Deposit.Amount.Denom, denom)
	}
	return validateReclamation(msg.Reclamation)
}

// ValidateUpdateDeployment checks the id and the hash.
func ValidateUpdateDeployment(msg *deploymentv1beta4.MsgUpdateDeployment) error {
	if err := validateDeploymentID(msg.ID); err != nil {
		return err
	}
	return validateHash(msg.Hash)
}

// ValidateCloseDeployment checks the id.
func ValidateCloseDeployment(msg *deploymentv1beta4.MsgCloseDeployment) error {
	return validateDeploymentID(msg.ID)
}

// ValidateCloseGroup checks the id.
func ValidateCloseGroup(msg *deploymentv1beta4.MsgCloseGroup) error {
	return validateGroupID(msg.ID)
}

// ValidatePauseGroup checks the id.
func ValidatePauseGroup(msg *deploymentv1beta4.MsgPauseGroup) error {
	return validateGroupID(msg.ID)
}

// ValidateStartGroup checks the id.
func ValidateStartGroup(msg *deploymentv1beta4.MsgStartGroup) error {
	return validateGroupID(msg.ID)
}

// ValidateUpdateParams checks the authority's address and the parameters.
func ValidateUpdateParams(msg *deploymentv1beta4.MsgUpdateParams) error {
	if _, err := parseAddress(msg.Authority); err != nil {
		return errors.Wrapf(ErrInvalidParam, "authority: %v", err)
	}
	return ValidateParams(msg.Params)
}

func validateDeploymentID(id deploymentv1.DeploymentID) error {
	_, err := deploymentKeyOf(id)
	return err
}

func validateGroupID(id deploymentv1.GroupID) error {
	_, err := groupKeyOf(id)
	return err
}

// parseAddress takes an address only in its usual form: bech32 allows upper
// case, and two spellings of one account would be two ids.
func parseAddress(text string) (sdk.AccAddress, error) {
	addr, err := sdk.AccAddressFromBech32(text)
	if err != nil {
		return nil, fmt.Errorf("read address %.100q: %w", text, err)
	}
	if usual := addr.String(); usual != text {
		return nil, fmt.Errorf("read address %.100q: write it as %q", text, usual)
	}
	return addr, nil
}

func validateHash(hash []byte) error {
	switch len(hash) {
	case HashBytes:
		return nil
	case 0:
		return ErrEmptyHash
	}
	return errors.Wrapf(ErrInvalidHash, "it has %d bytes: give the %d of the manifest's SHA-256", len(hash), HashBytes)
}

func validateDeposit(dep depositv1.Deposit) error {
	if err := sdk.ValidateDenom(dep.Amount.Denom); err != nil {
		return errors.Wrapf(ErrInvalidDeposit, "amount: %.200v", err)
	}
	if dep.Amount.IsNil() || !dep.Amount.IsPositive() {
		return errors.Wrap(ErrInvalidDeposit, "amount is not above zero")
	}
	if len(dep.Sources) == 0 {
		return errors.Wrap(ErrInvalidDeposit, "sources is empty: name balance, grant, or both in the order to draw from")
	}
	for i, source := range dep.Sources {
		if source != depositv1.SourceBalance && source != depositv1.SourceGrant {
			return errors.Wrapf(ErrInvalidDeposit, "sources[%d] is %s: name balance or grant", i, source)
		}
		if slices.Contains(dep.Sources[:i], source) {
			return errors.Wrapf(ErrInvalidDeposit, "sources names %s twice", source)
		}
	}
	return nil
}

func validateReclamation(r *deploymentv1.DeploymentReclamation) error {
	if r != nil && r.MinWindow <= 0 {
		return errors.Wrapf(ErrInvalidReclamation, "min_window is %s: give a positive one, or no reclamation", r.MinWindow)
	}
	return nil
}

// validateGroups checks the groups of one deployment and answers the
// denomination of their prices.
func validateGroups(groups []deploymentv1beta4.GroupSpec) (denom string, err error) {
	if len(groups) == 0 {
		return "", errors.Wrap(ErrInvalidGroups, "there is none: name at least one")
	}
	if len(groups) > MaxGroups {
		return "", errors.Wrapf(ErrInvalidGroups, "there are %d: name at most %d", len(groups), MaxGroups)
	}
	names := make(map[string]bool, len(groups))
	size := 0
	for i, group := range groups {
		if size += group.Size(); size > MaxGroupBytes {
			return "", errors.Wrapf(ErrInvalidGroups, "they are larger than %d bytes: ask for less, or make several deployments", MaxGroupBytes)
		}
		if names[group.Name] {
			return "", errors.Wrapf(ErrDuplicateGroupName, "%q", group.Name)
		}
		names[group.Name] = true
		own, err := validateGroupSpec(group)
		if err != nil {
			return "", errors.Wrapf(err, "groups[%d]", i)
		}
		if denom == "" {
			denom = own
		}
		if own != denom {
			return "", errors.Wrapf(ErrInvalidPrice, "groups[%d] is in %s, others in %s: use one denomination", i, own, denom)
		}
	}
	return denom, nil
}

// validateGroupSpec checks one group and answers the denomination of its prices.
func validateGroupSpec(spec deploymentv1beta4.GroupSpec) (denom string, err error) {
	switch {
	case spec.Name == "":
		return "", errors.Wrap(ErrInvalidGroupSpec, "name is empty")
	case len(spec.Name) > MaxNameBytes:
		return "", errors.Wrapf(ErrInvalidGroupSpec, "name has %d bytes: give at most %d", len(spec.Name), MaxNameBytes)
	case len(spec.Resources) == 0:
		return "", errors.Wrap(ErrInvalidGroupSpec, "there are no resources: name at least one unit")
	case len(spec.Resources) > MaxUnits:
		return "", errors.Wrapf(ErrInvalidGroupSpec, "there are %d units of resources: name at most %d", len(spec.Resources), MaxUnits)
	}
	if err := validateRequirements(spec.Requirements); err != nil {
		return "", errors.Wrapf(ErrInvalidGroupSpec, "requirements: %v", err)
	}
	var (
		ids = make(map[uint32]bool, len(spec.Resources))
		sum totals
	)
	for i, unit := range spec.Resources {
		if ids[unit.Resource.ID] {
			return "", errors.Wrapf(ErrInvalidGroupSpec, "resources[%d]: id %d is there twice", i, unit.Resource.ID)
		}
		ids[unit.Resource.ID] = true
		need, err := validateUnit(unit)
		if err != nil {
			return "", errors.Wrapf(err, "resources[%d]", i)
		}
		if err := sum.add(need, uint64(unit.Count)); err != nil {
			return "", errors.Wrapf(ErrInvalidGroupSpec, "resources[%d]: %v", i, err)
		}
		if denom == "" {
			denom = unit.Price.Denom
		}
		if unit.Price.Denom != denom {
			return "", errors.Wrapf(ErrInvalidPrice, "resources[%d] is in %s, others in %s: use one denomination", i, unit.Price.Denom, denom)
		}
	}
	return denom, nil
}

func validateRequirements(r attributesv1.PlacementRequirements) error {
	for _, auditors := range [][]string{r.SignedBy.AllOf, r.SignedBy.AnyOf} {
		if len(auditors) > MaxAuditors {
			return fmt.Errorf("signed_by has %d auditors in one list: name at most %d", len(auditors), MaxAuditors)
		}
		for _, auditor := range auditors {
			if len(auditor) > MaxNameBytes {
				return fmt.Errorf("signed_by has an auditor of %d bytes: name addresses", len(auditor))
			}
		}
	}
	return attributesv1.ValidateRequired(r.Attributes)
}

// need is what one unit asks for of each resource.
type need struct {
	cpu, gpu, memory, storage uint64
}

// totals is the needs of a group.
type totals need

// add counts a unit that passed its own limits, so that no sum can overflow.
func (t *totals) add(n need, count uint64) error {
	for _, r := range []struct {
		limit limit
		each  uint64
		sum   *uint64
	}{
		{cpuLimit, n.cpu, &t.cpu},
		{gpuLimit, n.gpu, &t.gpu},
		{memoryLimit, n.memory, &t.memory},
		{storageLimit, n.storage, &t.storage},
	} {
		most := maxGroupScale * r.limit.max
		if r.each != 0 && count > (most-*r.sum)/r.each {
			return fmt.Errorf("with %d of it the group asks for more than %d %s in all", count, most, r.limit.name)
		}
		*r.sum += r.each * count
	}
	return nil
}

// validateUnit checks one unit of a group.
func validateUnit(unit deploymentv1beta4.ResourceUnit) (need, error) {
	n, err := validateResources(unit.Resource)
	if err != nil {
		return n, errors.Wrap(ErrInvalidGroupSpec, err.Error())
	}
	if unit.Count == 0 {
		return n, errors.Wrap(ErrInvalidGroupSpec, "count is 0: ask for at least one")
	}
	return n, validatePrice(unit.Price)
}

func validatePrice(price sdk.DecCoin) error {
	if err := sdk.ValidateDenom(price.Denom); err != nil {
		return errors.Wrapf(ErrInvalidPrice, "%.200v", err)
	}
	switch amount := price.Amount; {
	case amount.IsNil() || !amount.IsPositive():
		return errors.Wrap(ErrInvalidPrice, "amount is not above zero: say what one unit may cost per block")
	case amount.GT(math.LegacyNewDec(MaxUnitPrice)):
		return errors.Wrapf(ErrInvalidPrice, "amount is above %d per block", MaxUnitPrice)
	}
	return nil
}

func validateResources(r resourcesv1beta4.Resources) (need, error) {
	var (
		n   need
		err error
	)
	switch {
	case r.ID == 0:
		return n, fmt.Errorf("id is 0: number the units from 1")
	case r.CPU == nil:
		return n, fmt.Errorf("cpu is missing")
	case r.GPU == nil:
		return n, fmt.Errorf("gpu is missing: ask for 0 units if it needs none")
	case r.Memory == nil:
		return n, fmt.Errorf("memory is missing")
	case len(r.Storage) == 0:
		return n, fmt.Errorf("storage is missing: ask for at least one volume")
	case len(r.Storage) > MaxVolumes:
		return n, fmt.Errorf("there are %d volumes: ask for at most %d", len(r.Storage), MaxVolumes)
	case len(r.Endpoints) > MaxEndpoints:
		return n, fmt.Errorf("there are %d endpoints: ask for at most %d", len(r.Endpoints), MaxEndpoints)
	}
	if n.cpu, err = validateQuantity(cpuLimit, r.CPU.Units, r.CPU.Attributes); err != nil {
		return n, err
	}
	if n.gpu, err = validateQuantity(gpuLimit, r.GPU.Units, r.GPU.Attributes); err != nil {
		return n, err
	}
	if (n.gpu > 0) != (len(r.GPU.Attributes) > 0) {
		return n, fmt.Errorf("gpu has %d units and %d attributes: name the vendor and model if and only if you ask for a GPU", n.gpu, len(r.GPU.Attributes))
	}
	if n.memory, err = validateQuantity(memoryLimit, r.Memory.Quantity, r.Memory.Attributes); err != nil {
		return n, err
	}
	for i, volume := range r.Storage {
		if len(volume.Name) > MaxNameBytes {
			return n, fmt.Errorf("storage[%d]: name has %d bytes: give at most %d", i, len(volume.Name), MaxNameBytes)
		}
		size, err := validateQuantity(storageLimit, volume.Quantity, volume.Attributes)
		if err != nil {
			return n, fmt.Errorf("storage[%d]: %w", i, err)
		}
		n.storage += size
	}
	for i, endpoint := range r.Endpoints {
		if _, ok := resourcesv1beta4.Endpoint_Kind_name[int32(endpoint.Kind)]; !ok {
			return n, fmt.Errorf("endpoints[%d]: kind %d is unknown", i, endpoint.Kind)
		}
	}
	return n, nil
}

func validateQuantity(l limit, v resourcesv1beta4.ResourceValue, attributes []attributesv1.Attribute) (uint64, error) {
	if v.Val.IsNil() {
		return 0, fmt.Errorf("%s is missing", l.name)
	}
	if !v.Val.IsUint64() || v.Val.Uint64() < l.min || v.Val.Uint64() > l.max {
		return 0, fmt.Errorf("%s is %s: ask for %d to %d", l.name, v.Val, l.min, l.max)
	}
	if err := attributesv1.ValidateRequired(attributes); err != nil {
		return 0, fmt.Errorf("%s: %w", l.name, err)
	}
	return v.Val.Uint64(), nil
}
