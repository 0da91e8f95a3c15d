package deployment

import (
	"context"
	"errors"
	"fmt"

	"github.com/cosmos/gogoproto/proto"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"

	"cosmossdk.io/collections"
	corestore "cosmossdk.io/core/store"
	errorsmod "cosmossdk.io/errors"

	"github.com/cosmos/cosmos-sdk/codec"
	sdk "github.com/cosmos/cosmos-sdk/types"
)

// What lies where in the module's store. The index is by state, then by id; it
// is written only when a state changes.
var (
	paramsPrefix             = collections.NewPrefix(0)
	deploymentsPrefix        = collections.NewPrefix(1)
	deploymentsByStatePrefix = collections.NewPrefix(2)
	groupsPrefix             = collections.NewPrefix(3)
)

// The keys are the ids, part by part.
type (
	deploymentKey = collections.Pair[sdk.AccAddress, uint64]
	stateKey      = collections.Triple[int32, sdk.AccAddress, uint64]
	groupKey      = collections.Triple[sdk.AccAddress, uint64, uint32]
)

// Keeper is the one door to the module's state. Its methods run inside a
// transaction: when one returns an error, the caller drops what it wrote.
type Keeper struct {
	authority string
	escrow    EscrowKeeper
	market    MarketKeeper

	params      collections.Item[deploymentv1beta4.Params]
	deployments collections.Map[deploymentKey, deploymentv1.Deployment]
	byState     collections.KeySet[stateKey]
	groups      collections.Map[groupKey, deploymentv1beta4.Group]
}

// NewKeeper makes the keeper over its store. Only authority (governance) may
// change the parameters. The keeper is ready after [Keeper.SetMarket].
func NewKeeper(cdc codec.BinaryCodec, store corestore.KVStoreService, authority string, escrow EscrowKeeper) (*Keeper, error) {
	if authority == "" {
		return nil, errors.New("deployment authority is missing")
	}
	if escrow == nil {
		return nil, errors.New("deployment needs the keeper of escrow")
	}
	schema := collections.NewSchemaBuilder(store)
	k := &Keeper{
		authority: authority,
		escrow:    escrow,
		params:    collections.NewItem(schema, paramsPrefix, "params", codec.CollValue[deploymentv1beta4.Params](cdc)),
		deployments: collections.NewMap(schema, deploymentsPrefix, "deployments",
			collections.PairKeyCodec(sdk.AccAddressKey, collections.Uint64Key), codec.CollValue[deploymentv1.Deployment](cdc)),
		byState: collections.NewKeySet(schema, deploymentsByStatePrefix, "deployments_by_state",
			collections.TripleKeyCodec(collections.Int32Key, sdk.AccAddressKey, collections.Uint64Key)),
		groups: collections.NewMap(schema, groupsPrefix, "groups",
			collections.TripleKeyCodec(sdk.AccAddressKey, collections.Uint64Key, collections.Uint32Key), codec.CollValue[deploymentv1beta4.Group](cdc)),
	}
	if _, err := schema.Build(); err != nil {
		return nil, fmt.Errorf("build deployment schema: %w", err)
	}
	return k, nil
}

// SetMarket gives the keeper the market, which needs this keeper to be made. It
// is for wiring, before the first block.
func (k *Keeper) SetMarket(market MarketKeeper) {
	k.market = market
}

// GetParams returns the parameters in force.
func (k *Keeper) GetParams(ctx context.Context) (deploymentv1beta4.Params, error) {
	params, err := k.params.Get(ctx)
	if err != nil {
		return deploymentv1beta4.Params{}, errorsmod.Wrap(err, "read deployment parameters")
	}
	return params, nil
}

// SetParams replaces the parameters, if they are valid.
func (k *Keeper) SetParams(ctx context.Context, params deploymentv1beta4.Params) error {
	if err := ValidateParams(params); err != nil {
		return err
	}
	if err := k.params.Set(ctx, params); err != nil {
		return errorsmod.Wrap(err, "store deployment parameters")
	}
	return nil
}

// GetDeployment returns a deployment, and whether there is one.
func (k *Keeper) GetDeployment(ctx context.Context, id deploymentv1.DeploymentID) (deploymentv1.Deployment, bool, error) {
	key, err := deploymentKeyOf(id)
	if err != nil {
		return deploymentv1.Deployment{}, false, err
	}
	return find(k.deployments.Get(ctx, key))
}

// GetGroup returns a group, and whether there is one.
func (k *Keeper) GetGroup(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, bool, error) {
	key, err := groupKeyOf(id)
	if err != nil {
		return deploymentv1beta4.Group{}, false, err
	}
	return find(k.groups.Get(ctx, key))
}

// GetGroups returns the groups of a deployment by gseq, at most [MaxGroups].
func (k *Keeper) GetGroups(ctx context.Context, id deploymentv1.DeploymentID) ([]deploymentv1beta4.Group, error) {
	key, err := deploymentKeyOf(id)
	if err != nil {
		return nil, err
	}
	it, err := k.groups.Iterate(ctx, collections.NewSuperPrefixedTripleRange[sdk.AccAddress, uint64, uint32](key.K1(), key.K2()))
	if err != nil {
		return nil, errorsmod.Wrapf(err, "list groups of deployment %s", deploymentText(id))
	}
	groups, err := it.Values()
	if err != nil {
		return nil, errorsmod.Wrapf(err, "read groups of deployment %s", deploymentText(id))
	}
	return groups, nil
}

// OnBidClosed pauses an open group, because the provider that it was leased
// from has left, and tells so. The market closes lease, bid and order itself.
func (k *Keeper) OnBidClosed(ctx context.Context, id deploymentv1.GroupID) error {
	group, err := k.needGroup(ctx, id)
	if err != nil {
		return err
	}
	_, err = k.moveGroup(ctx, group, pause)
	return err
}

// OnLeaseClosed returns the group whose lease its tenant has closed. It stays
// open, and the market opens its next order.
func (k *Keeper) OnLeaseClosed(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, error) {
	group, err := k.needGroup(ctx, id)
	if err != nil {
		return group, err
	}
	if group.State != deploymentv1beta4.GroupOpen {
		return group, errorsmod.Wrapf(ErrGroupNotOpen, "group %s is %s", groupText(id), group.State)
	}
	return group, nil
}

// OnAccountOverdrawn closes a deployment that cannot pay, its groups that are
// not closed, and what the market has of them. It is called by escrow's hook
// from within a settlement. A closed deployment is left alone.
func (k *Keeper) OnAccountOverdrawn(ctx context.Context, id deploymentv1.DeploymentID) error {
	d, err := k.needDeployment(ctx, id)
	if err != nil || !deploymentLaw.live(d.State) {
		return err
	}
	return k.closeDeployment(ctx, d, dry)
}

// closeDeployment closes an active deployment and its groups, in the order of
// events that clients know: the deployment, then group by group.
func (k *Keeper) closeDeployment(ctx context.Context, d deploymentv1.Deployment, e event) error {
	to, err := nextDeployment(d, e)
	if err != nil {
		return err
	}
	before := d.State
	d.State = to
	if err := k.setDeployment(ctx, before, d); err != nil {
		return err
	}
	if err := emit(ctx, &deploymentv1.EventDeploymentClosed{ID: d.ID}); err != nil {
		return err
	}
	groups, err := k.GetGroups(ctx, d.ID)
	if err != nil {
		return err
	}
	for _, group := range groups {
		if !groupLaw.live(group.State) {
			continue
		}
		if err := k.shutGroup(ctx, group, e); err != nil {
			return err
		}
	}
	return nil
}

// shutGroup moves a group to a state that is not open, and has the market close
// what it has of it.
func (k *Keeper) shutGroup(ctx context.Context, group deploymentv1beta4.Group, e event) error {
	group, err := k.moveGroup(ctx, group, e)
	if err != nil {
		return err
	}
	if err := k.market.OnGroupClosed(ctx, group.ID, group.State); err != nil {
		return errorsmod.Wrapf(err, "close order of group %s", groupText(group.ID))
	}
	return nil
}

// moveGroup stores a group's next state and tells of it.
func (k *Keeper) moveGroup(ctx context.Context, group deploymentv1beta4.Group, e event) (_ deploymentv1beta4.Group, err error) {
	if group.State, err = nextGroup(group, e); err != nil {
		return group, err
	}
	if err := k.setGroup(ctx, group); err != nil {
		return group, err
	}
	switch e {
	case pause:
		return group, emit(ctx, &deploymentv1.EventGroupPaused{ID: group.ID})
	case start:
		return group, emit(ctx, &deploymentv1.EventGroupStarted{ID: group.ID})
	default:
		return group, emit(ctx, &deploymentv1.EventGroupClosed{ID: group.ID})
	}
}

// settle draws what is due from an active deployment's account, so that closing
// anything afterwards cannot find it dry. It answers whether the account had run
// dry: then the deployment is closed already, and what the caller knows of it
// is old.
func (k *Keeper) settle(ctx context.Context, id deploymentv1.DeploymentID) (gone bool, err error) {
	gone, err = k.escrow.AccountSettle(ctx, account(id))
	if err != nil {
		return false, errorsmod.Wrapf(err, "settle account of deployment %s", deploymentText(id))
	}
	if !gone {
		return false, nil
	}
	d, err := k.needDeployment(ctx, id)
	if err == nil && deploymentLaw.live(d.State) {
		err = errorsmod.Wrapf(ErrInternal, "account of deployment %s is overdrawn and the deployment is not closed", deploymentText(id))
	}
	return true, err
}

func (k *Keeper) needDeployment(ctx context.Context, id deploymentv1.DeploymentID) (deploymentv1.Deployment, error) {
	d, found, err := k.GetDeployment(ctx, id)
	if err == nil && !found {
		err = errorsmod.Wrap(ErrDeploymentNotFound, deploymentText(id))
	}
	return d, err
}

func (k *Keeper) needGroup(ctx context.Context, id deploymentv1.GroupID) (deploymentv1beta4.Group, error) {
	group, found, err := k.GetGroup(ctx, id)
	if err == nil && !found {
		err = errorsmod.Wrap(ErrGroupNotFound, groupText(id))
	}
	return group, err
}

// setDeployment stores a deployment whose stored state is before; invalid is
// not stored yet.
func (k *Keeper) setDeployment(ctx context.Context, before deploymentv1.Deployment_State, d deploymentv1.Deployment) error {
	key, err := deploymentKeyOf(d.ID)
	if err != nil {
		return err
	}
	err = k.deployments.Set(ctx, key, d)
	if err == nil && before != d.State {
		if before != deploymentv1.DeploymentInvalid {
			err = k.byState.Remove(ctx, collections.Join3(int32(before), key.K1(), key.K2()))
		}
		if err == nil {
			err = k.byState.Set(ctx, collections.Join3(int32(d.State), key.K1(), key.K2()))
		}
	}
	if err != nil {
		return errorsmod.Wrapf(err, "store deployment %s", deploymentText(d.ID))
	}
	return nil
}

func (k *Keeper) setGroup(ctx context.Context, group deploymentv1beta4.Group) error {
	key, err := groupKeyOf(group.ID)
	if err != nil {
		return err
	}
	if err := k.groups.Set(ctx, key, group); err != nil {
		return errorsmod.Wrapf(err, "store group %s", groupText(group.ID))
	}
	return nil
}

// find is a collection's Get with absence told apart from errors.
func find[V any](v V, err error) (V, bool, error) {
	switch {
	case errors.Is(err, collections.ErrNotFound):
		return v, false, nil
	case err != nil:
		return v, false, errorsmod.Wrap(err, "read deployment record")
	}
	return v, true, nil
}

// emit adds a typed event to the transaction's.
func emit(ctx context.Context, e proto.Message) error {
	if err := sdk.UnwrapSDKContext(ctx).EventManager().EmitTypedEvent(e); err != nil {
		return fmt.Errorf("emit %s: %w", proto.MessageName(e), err)
	}
	return nil
}

// deploymentKeyOf checks an id. It is where addresses are parsed, which the SDK
// makes dear: once per access is enough.
func deploymentKeyOf(id deploymentv1.DeploymentID) (deploymentKey, error) {
	owner, err := parseAddress(id.Owner)
	if err != nil {
		return deploymentKey{}, errorsmod.Wrapf(ErrInvalidDeploymentID, "owner: %v", err)
	}
	if id.DSeq == 0 {
		return deploymentKey{}, errorsmod.Wrap(ErrInvalidDeploymentID, "dseq is 0: choose a number, for instance the latest height")
	}
	return collections.Join(owner, id.DSeq), nil
}

func groupKeyOf(id deploymentv1.GroupID) (groupKey, error) {
	key, err := deploymentKeyOf(deploymentOf(id))
	if err != nil {
		return groupKey{}, errorsmod.Wrap(ErrInvalidGroupID, err.Error())
	}
	if id.GSeq == 0 {
		return groupKey{}, errorsmod.Wrap(ErrInvalidGroupID, "gseq is 0: groups are numbered from 1")
	}
	return collections.Join3(key.K1(), key.K2(), id.GSeq), nil
}

func deploymentOf(id deploymentv1.GroupID) deploymentv1.DeploymentID {
	return deploymentv1.DeploymentID{Owner: id.Owner, DSeq: id.DSeq}
}

func deploymentText(id deploymentv1.DeploymentID) string {
	return fmt.Sprintf("%s/%d", id.Owner, id.DSeq)
}

func groupText(id deploymentv1.GroupID) string {
	return fmt.Sprintf("%s/%d/%d", id.Owner, id.DSeq, id.GSeq)
}

// account names the escrow account that pays a deployment's leases.
func account(id deploymentv1.DeploymentID) escrowidv1.Account {
	return escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: deploymentText(id)}
}
