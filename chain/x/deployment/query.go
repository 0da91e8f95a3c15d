package deployment

import (
	"cmp"
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"

	"cosmossdk.io/collections"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
)

// pageSize is how many records a list has when the client names no limit, and
// maxPage how many it has at most: who asks for more gets so many and the next key.
const (
	pageSize = 100
	maxPage  = 1000
)

type queryServer struct {
	k *Keeper
}

// NewQueryServer serves the module's queries.
func NewQueryServer(k *Keeper) deploymentv1beta4.QueryServer {
	return queryServer{k}
}

// Deployments lists deployments with their groups and accounts, page by page.
func (s queryServer) Deployments(ctx context.Context, req *deploymentv1beta4.QueryDeploymentsRequest) (*deploymentv1beta4.QueryDeploymentsResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	f := req.Filters
	state, err := parseState(f.State)
	if err != nil {
		return nil, err
	}
	var owner sdk.AccAddress
	if f.Owner != "" {
		if owner, err = parseAddress(f.Owner); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "filters.owner: %v", err)
		}
	}
	page, err := pageOf(req.Pagination, state != deploymentv1.DeploymentInvalid)
	if err != nil {
		return nil, err
	}
	var (
		deployments []deploymentv1beta4.QueryDeploymentResponse
		next        *query.PageResponse
	)
	if state == deploymentv1.DeploymentInvalid {
		deployments, next, err = query.CollectionFilteredPaginate(ctx, s.k.deployments, page,
			func(key deploymentKey, _ deploymentv1.Deployment) (bool, error) {
				return f.DSeq == 0 || f.DSeq == key.K2(), nil
			},
			func(_ deploymentKey, d deploymentv1.Deployment) (deploymentv1beta4.QueryDeploymentResponse, error) {
				return s.whole(ctx, d)
			},
			func(o *query.CollectionsPaginateOptions[deploymentKey]) { o.Prefix = deploymentPrefix(owner, f.DSeq) })
	} else {
		deployments, next, err = query.CollectionFilteredPaginate(ctx, s.k.byState, page,
			func(key stateKey, _ collections.NoValue) (bool, error) { return f.DSeq == 0 || f.DSeq == key.K3(), nil },
			func(key stateKey, _ collections.NoValue) (deploymentv1beta4.QueryDeploymentResponse, error) {
				d, err := s.k.deployments.Get(ctx, collections.Join(key.K2(), key.K3()))
				if err != nil {
					return deploymentv1beta4.QueryDeploymentResponse{}, fmt.Errorf("read deployment of index: %w", err)
				}
				return s.whole(ctx, d)
			},
			func(o *query.CollectionsPaginateOptions[stateKey]) { o.Prefix = statePrefix(state, owner, f.DSeq) })
	}
	if err != nil {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	return &deploymentv1beta4.QueryDeploymentsResponse{Deployments: deployments, Pagination: next}, nil
}

// Deployment answers one deployment with its groups and its account.
func (s queryServer) Deployment(ctx context.Context, req *deploymentv1beta4.QueryDeploymentRequest) (*deploymentv1beta4.QueryDeploymentResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	if err := validateDeploymentID(req.ID); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	d, found, err := s.k.GetDeployment(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, status.Errorf(codes.NotFound, "deployment %s is not found", deploymentText(req.ID))
	}
	res, err := s.whole(ctx, d)
	if err != nil {
		return nil, err
	}
	return &res, nil
}

// Group answers one group.
func (s queryServer) Group(ctx context.Context, req *deploymentv1beta4.QueryGroupRequest) (*deploymentv1beta4.QueryGroupResponse, error) {
	if req == nil {
		return nil, errEmptyRequest()
	}
	if err := validateGroupID(req.ID); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	group, found, err := s.k.GetGroup(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, status.Errorf(codes.NotFound, "group %s is not found", groupText(req.ID))
	}
	return &deploymentv1beta4.QueryGroupResponse{Group: group}, nil
}

// Params answers the parameters in force.
func (s queryServer) Params(ctx context.Context, _ *deploymentv1beta4.QueryParamsRequest) (*deploymentv1beta4.QueryParamsResponse, error) {
	params, err := s.k.GetParams(ctx)
	if err != nil {
		return nil, err
	}
	return &deploymentv1beta4.QueryParamsResponse{Params: params}, nil
}

// whole adds a deployment's groups and its account, as it was last settled.
func (s queryServer) whole(ctx context.Context, d deploymentv1.Deployment) (deploymentv1beta4.QueryDeploymentResponse, error) {
	res := deploymentv1beta4.QueryDeploymentResponse{Deployment: d}
	var err error
	if res.Groups, err = s.k.GetGroups(ctx, d.ID); err != nil {
		return res, err
	}
	if res.EscrowAccount, err = s.k.escrow.GetAccount(ctx, account(d.ID)); err != nil {
		return res, fmt.Errorf("read account of deployment %s: %w", deploymentText(d.ID), err)
	}
	return res, nil
}

func errEmptyRequest() error {
	return status.Error(codes.InvalidArgument, "request is empty")
}

// parseState reads the text of a state; none is invalid, which selects all.
func parseState(text string) (deploymentv1.Deployment_State, error) {
	switch text {
	case "":
		return deploymentv1.DeploymentInvalid, nil
	case deploymentv1.DeploymentActive.String():
		return deploymentv1.DeploymentActive, nil
	case deploymentv1.DeploymentClosed.String():
		return deploymentv1.DeploymentClosed, nil
	}
	return 0, status.Errorf(codes.InvalidArgument, "filters.state is %.32q: write active or closed", text)
}

// pageOf copies what the client asked for and adds the page size. A total is
// counted only if the client wants it.
func pageOf(req *query.PageRequest, state bool) (*query.PageRequest, error) {
	var page query.PageRequest
	if req != nil {
		page = *req
	}
	switch {
	case page.Offset > 0 && len(page.Key) > 0:
		return nil, status.Error(codes.InvalidArgument, "pagination has a key and an offset: give one of them")
	case page.Offset > 0 && !state:
		return nil, status.Error(codes.InvalidArgument, "pagination.offset needs filters.state: give it, or go on by pagination.key")
	}
	page.Limit = min(cmp.Or(page.Limit, pageSize), maxPage)
	return &page, nil
}

// deploymentPrefix is the part of the keys that an owner, or one id, selects.
func deploymentPrefix(owner sdk.AccAddress, dseq uint64) *deploymentKey {
	var prefix deploymentKey
	switch {
	case owner == nil:
		return nil
	case dseq == 0:
		prefix = collections.PairPrefix[sdk.AccAddress, uint64](owner)
	default:
		prefix = collections.Join(owner, dseq)
	}
	return &prefix
}

// statePrefix is deploymentPrefix for the index by state.
func statePrefix(state deploymentv1.Deployment_State, owner sdk.AccAddress, dseq uint64) *stateKey {
	var prefix stateKey
	switch {
	case owner == nil:
		prefix = collections.TriplePrefix[int32, sdk.AccAddress, uint64](int32(state))
	case dseq == 0:
		prefix = collections.TripleSuperPrefix[int32, sdk.AccAddress, uint64](int32(state), owner)
	default:
		prefix = collections.Join3(int32(state), owner, dseq)
	}
	return &prefix
}
