package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/authv1beta1"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/discoveryv1"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/escrowv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/api/queryv1beta1"
	"github.com/croft-cloud/croft/chain/api/secp256k1v1"
)

// pageSize is how many entries of a list are asked for at once.
const pageSize = 100

// pages walks a list of the chain. All pages are asked for at the height of the
// first, so that nothing is missed or seen twice while entries move; only when
// the node cannot answer for that height any more does it go on with the latest.
// Breaking off is fine at any point. An error is the last thing it yields.
func pages[Item any, Resp interface {
	proto.Message
	GetPagination() *queryv1beta1.PageResponse
}](ctx context.Context, fetch func(context.Context, *queryv1beta1.PageRequest, ...grpc.CallOption) (Resp, error), items func(Resp) []Item) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		var none Item
		var key []byte
		var height int64
		for {
			var header metadata.MD
			page := &queryv1beta1.PageRequest{Key: key, Limit: pageSize}
			at := ctx
			if height > 0 {
				at = metadata.AppendToOutgoingContext(ctx, heightHeader, strconv.FormatInt(height, 10))
			}
			resp, err := fetch(at, page, grpc.Header(&header))
			if err != nil && height > 0 && ctx.Err() == nil && status.Code(err) != codes.Unavailable {
				height = 0
				resp, err = fetch(ctx, page, grpc.Header(&header))
			}
			if err != nil {
				yield(none, err)
				return
			}
			for _, item := range items(resp) {
				if !yield(item, nil) {
					return
				}
			}
			next := resp.GetPagination().GetNextKey()
			if len(next) == 0 {
				return
			}
			if bytes.Equal(next, key) {
				yield(none, errors.New("node answers the same page again and again"))
				return
			}
			if key == nil {
				height = answerHeight(header)
			}
			key = next
		}
	}
}

// AccountInfo is an account as the chain keeps it.
type AccountInfo struct {
	Address   account.Address
	Number    uint64            // never changes
	Sequence  uint64            // of the next transaction, as of Height
	PublicKey account.PublicKey // nil until the account has sent a transaction
	Height    int64             // that the answer is about; 0 if the node did not say
}

// Account asks for an account. One that never received anything does not exist:
// [croft.KindNotFound].
func (c *Client) Account(ctx context.Context, address account.Address) (AccountInfo, error) {
	var header metadata.MD
	resp, err := query[authv1beta1.QueryAccountInfoResponse](ctx, c, "/cosmos.auth.v1beta1.Query/AccountInfo",
		&authv1beta1.QueryAccountInfoRequest{Address: string(address)}, grpc.Header(&header))
	if err != nil {
		if croft.KindOf(err) == croft.KindNotFound {
			return AccountInfo{}, &croft.Error{
				Kind: croft.KindNotFound, Err: fmt.Errorf("account %s does not exist on chain %s", address, c.cfg.ChainID),
				Remedy: "send it some coins first",
			}
		}
		return AccountInfo{}, err
	}
	info := AccountInfo{
		Address: address, Number: resp.GetInfo().GetAccountNumber(), Sequence: resp.GetInfo().GetSequence(),
		Height: answerHeight(header),
	}
	if packed := resp.GetInfo().GetPubKey(); packed.GetTypeUrl() == TypeURL(&secp256k1v1.PubKey{}) {
		var key secp256k1v1.PubKey
		if err := proto.Unmarshal(packed.GetValue(), &key); err != nil {
			return AccountInfo{}, fmt.Errorf("public key of account %s: %w", address, err)
		}
		info.PublicKey = key.GetKey()
	}
	return info, nil
}

// PublicKey asks for the key of an account, as the verifier of package
// credential wants it. An account that never sent a transaction has none:
// [croft.KindNotFound].
func (c *Client) PublicKey(ctx context.Context, address account.Address) (account.PublicKey, error) {
	info, err := c.Account(ctx, address)
	if err != nil {
		return nil, err
	}
	if len(info.PublicKey) == 0 {
		return nil, &croft.Error{
			Kind: croft.KindNotFound, Err: fmt.Errorf("account %s has no public key on the chain", address),
			Remedy: "send any transaction from it first",
		}
	}
	return info.PublicKey, nil
}

// Balances lists what an account can spend.
func (c *Client) Balances(ctx context.Context, address account.Address) iter.Seq2[*basev1beta1.Coin, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*bankv1beta1.QueryAllBalancesResponse, error) {
		return query[bankv1beta1.QueryAllBalancesResponse](ctx, c, "/cosmos.bank.v1beta1.Query/AllBalances",
			&bankv1beta1.QueryAllBalancesRequest{Address: string(address), Pagination: p}, o...)
	}, (*bankv1beta1.QueryAllBalancesResponse).GetBalances)
}

// Balance asks for one denom; an account without it has 0.
func (c *Client) Balance(ctx context.Context, address account.Address, denom string) (*basev1beta1.Coin, error) {
	resp, err := query[bankv1beta1.QueryBalanceResponse](ctx, c, "/cosmos.bank.v1beta1.Query/Balance",
		&bankv1beta1.QueryBalanceRequest{Address: string(address), Denom: denom})
	return resp.GetBalance(), err
}

// Deployment asks for a deployment with its groups and escrow account.
func (c *Client) Deployment(ctx context.Context, id akash.DeploymentID) (*deploymentv1beta4.QueryDeploymentResponse, error) {
	return query[deploymentv1beta4.QueryDeploymentResponse](ctx, c, "/akash.deployment.v1beta4.Query/Deployment",
		&deploymentv1beta4.QueryDeploymentRequest{Id: id.Wire()})
}

// Deployments lists deployments; empty fields of the filters match all.
func (c *Client) Deployments(ctx context.Context, filters *deploymentv1beta4.DeploymentFilters) iter.Seq2[*deploymentv1beta4.QueryDeploymentResponse, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*deploymentv1beta4.QueryDeploymentsResponse, error) {
		return query[deploymentv1beta4.QueryDeploymentsResponse](ctx, c, "/akash.deployment.v1beta4.Query/Deployments",
			&deploymentv1beta4.QueryDeploymentsRequest{Filters: filters, Pagination: p}, o...)
	}, (*deploymentv1beta4.QueryDeploymentsResponse).GetDeployments)
}

// Group asks for one group.
func (c *Client) Group(ctx context.Context, id akash.GroupID) (*deploymentv1beta4.Group, error) {
	resp, err := query[deploymentv1beta4.QueryGroupResponse](ctx, c, "/akash.deployment.v1beta4.Query/Group",
		&deploymentv1beta4.QueryGroupRequest{Id: id.Wire()})
	return resp.GetGroup(), err
}

// DeploymentParams asks for the parameters of the deployment module.
func (c *Client) DeploymentParams(ctx context.Context) (*deploymentv1beta4.Params, error) {
	resp, err := query[deploymentv1beta4.QueryParamsResponse](ctx, c, "/akash.deployment.v1beta4.Query/Params", &deploymentv1beta4.QueryParamsRequest{})
	return resp.GetParams(), err
}

// MarketParams asks for the parameters of the market module.
func (c *Client) MarketParams(ctx context.Context) (*marketv1beta5.Params, error) {
	resp, err := query[marketv1beta5.QueryParamsResponse](ctx, c, "/akash.market.v1beta5.Query/Params", &marketv1beta5.QueryParamsRequest{})
	return resp.GetParams(), err
}

// Order asks for one order.
func (c *Client) Order(ctx context.Context, id akash.OrderID) (*marketv1beta5.Order, error) {
	resp, err := query[marketv1beta5.QueryOrderResponse](ctx, c, "/akash.market.v1beta5.Query/Order",
		&marketv1beta5.QueryOrderRequest{Id: id.Wire()})
	return resp.GetOrder(), err
}

// Orders lists orders; empty fields of the filters match all.
func (c *Client) Orders(ctx context.Context, filters *marketv1beta5.OrderFilters) iter.Seq2[*marketv1beta5.Order, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*marketv1beta5.QueryOrdersResponse, error) {
		return query[marketv1beta5.QueryOrdersResponse](ctx, c, "/akash.market.v1beta5.Query/Orders",
			&marketv1beta5.QueryOrdersRequest{Filters: filters, Pagination: p}, o...)
	}, (*marketv1beta5.QueryOrdersResponse).GetOrders)
}

// Bid asks for one bid with its escrow account.
func (c *Client) Bid(ctx context.Context, id akash.BidID) (*marketv1beta5.QueryBidResponse, error) {
	return query[marketv1beta5.QueryBidResponse](ctx, c, "/akash.market.v1beta5.Query/Bid", &marketv1beta5.QueryBidRequest{Id: id.Wire()})
}

// Bids lists bids with their escrow accounts; empty fields of the filters match
// all.
func (c *Client) Bids(ctx context.Context, filters *marketv1beta5.BidFilters) iter.Seq2[*marketv1beta5.QueryBidResponse, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*marketv1beta5.QueryBidsResponse, error) {
		return query[marketv1beta5.QueryBidsResponse](ctx, c, "/akash.market.v1beta5.Query/Bids",
			&marketv1beta5.QueryBidsRequest{Filters: filters, Pagination: p}, o...)
	}, (*marketv1beta5.QueryBidsResponse).GetBids)
}

// Lease asks for one lease with its payment.
func (c *Client) Lease(ctx context.Context, id akash.LeaseID) (*marketv1beta5.QueryLeaseResponse, error) {
	return query[marketv1beta5.QueryLeaseResponse](ctx, c, "/akash.market.v1beta5.Query/Lease", &marketv1beta5.QueryLeaseRequest{Id: id.Wire()})
}

// Leases lists leases with their payments; empty fields of the filters match
// all.
func (c *Client) Leases(ctx context.Context, filters *marketv1.LeaseFilters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*marketv1beta5.QueryLeasesResponse, error) {
		return query[marketv1beta5.QueryLeasesResponse](ctx, c, "/akash.market.v1beta5.Query/Leases",
			&marketv1beta5.QueryLeasesRequest{Filters: filters, Pagination: p}, o...)
	}, (*marketv1beta5.QueryLeasesResponse).GetLeases)
}

// Provider asks for one provider.
func (c *Client) Provider(ctx context.Context, owner account.Address) (*providerv1beta4.Provider, error) {
	resp, err := query[providerv1beta4.QueryProviderResponse](ctx, c, "/akash.provider.v1beta4.Query/Provider",
		&providerv1beta4.QueryProviderRequest{Owner: string(owner)})
	return resp.GetProvider(), err
}

// Providers lists all providers.
func (c *Client) Providers(ctx context.Context) iter.Seq2[*providerv1beta4.Provider, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*providerv1beta4.QueryProvidersResponse, error) {
		return query[providerv1beta4.QueryProvidersResponse](ctx, c, "/akash.provider.v1beta4.Query/Providers",
			&providerv1beta4.QueryProvidersRequest{Pagination: p}, o...)
	}, (*providerv1beta4.QueryProvidersResponse).GetProviders)
}

// Certificates lists certificates; empty fields of the filter match all. State
// is "valid" or "revoked".
func (c *Client) Certificates(ctx context.Context, filter *certv1.CertificateFilter) iter.Seq2[*certv1.CertificateResponse, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*certv1.QueryCertificatesResponse, error) {
		return query[certv1.QueryCertificatesResponse](ctx, c, "/akash.cert.v1.Query/Certificates",
			&certv1.QueryCertificatesRequest{Filter: filter, Pagination: p}, o...)
	}, (*certv1.QueryCertificatesResponse).GetCertificates)
}

// AuditedAttributes lists what auditors have signed: all, or of one provider,
// or by one auditor, or of one by the other, as the addresses given say.
func (c *Client) AuditedAttributes(ctx context.Context, provider, auditor account.Address) iter.Seq2[*auditv1.AuditedProvider, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*auditv1.QueryProvidersResponse, error) {
		method, req := "AllProvidersAttributes", proto.Message(&auditv1.QueryAllProvidersAttributesRequest{Pagination: p})
		switch {
		case provider != "" && auditor != "":
			method, req = "ProviderAuditorAttributes", &auditv1.QueryProviderAuditorRequest{Auditor: string(auditor), Owner: string(provider)}
		case provider != "":
			method, req = "ProviderAttributes", &auditv1.QueryProviderAttributesRequest{Owner: string(provider), Pagination: p}
		case auditor != "":
			method, req = "AuditorAttributes", &auditv1.QueryAuditorAttributesRequest{Auditor: string(auditor), Pagination: p}
		}
		return query[auditv1.QueryProvidersResponse](ctx, c, "/akash.audit.v1.Query/"+method, req, o...)
	}, (*auditv1.QueryProvidersResponse).GetProviders)
}

// EscrowAccounts lists escrow accounts in a state ("open", "closed",
// "overdrawn"; empty for all). An xid, such as "deployment/" and a deployment's
// id, needs a state and matches as a prefix.
func (c *Client) EscrowAccounts(ctx context.Context, state, xid string) iter.Seq2[*escrowtypesv1.Account, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*escrowv1.QueryAccountsResponse, error) {
		return query[escrowv1.QueryAccountsResponse](ctx, c, "/akash.escrow.v1.Query/Accounts",
			&escrowv1.QueryAccountsRequest{State: state, Xid: xid, Pagination: p}, o...)
	}, (*escrowv1.QueryAccountsResponse).GetAccounts)
}

// EscrowPayments lists payments; see [Client.EscrowAccounts].
func (c *Client) EscrowPayments(ctx context.Context, state, xid string) iter.Seq2[*escrowtypesv1.Payment, error] {
	return pages(ctx, func(ctx context.Context, p *queryv1beta1.PageRequest, o ...grpc.CallOption) (*escrowv1.QueryPaymentsResponse, error) {
		return query[escrowv1.QueryPaymentsResponse](ctx, c, "/akash.escrow.v1.Query/Payments",
			&escrowv1.QueryPaymentsRequest{State: state, Xid: xid, Pagination: p}, o...)
	}, (*escrowv1.QueryPaymentsResponse).GetPayments)
}

// Info asks which versions of the protocol the node speaks.
func (c *Client) Info(ctx context.Context) (*discoveryv1.Akash, error) {
	resp, err := query[discoveryv1.GetInfoResponse](ctx, c, "/akash.discovery.v1.Discovery/GetInfo", &discoveryv1.GetInfoRequest{})
	return resp.GetInfo(), err
}
