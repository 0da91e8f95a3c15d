package chaincmd

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/queryv1beta1"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/tenant/quote"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newQueryCommand() *cobra.Command {
	cmd, o := session.TopCommand("query", "Ask the chain (the Akash command line's queries)", `Ask the chain: the queries and flags of the Akash command line.

Lists are complete, over all pages, unless --limit ends them. An --owner or
--provider may be the name of a key here.`, "text")
	cmd.Aliases = []string{"q"}
	cmd.Example = `  croft query market lease list --owner akash1… --state active
  croft query deployment get --owner tenant --dseq 7 -o json`
	cmd.AddCommand(
		session.Group("deployment", "Deployments and their groups", queryDeployments(o), queryDeployment(o), session.Group("group", "Groups", queryGroup(o))),
		session.Group("market", "Orders, bids and leases",
			session.Group("order", "Orders", queryOrders(o), queryOrder(o)),
			session.Group("bid", "Bids", queryBids(o), queryBid(o)),
			session.Group("lease", "Leases", queryLeases(o), queryLease(o))),
		session.Group("provider", "Registered providers", queryProviders(o), queryProvider(o)),
		session.Group("cert", "Published certificates", queryCertificates(o)),
		session.Group("escrow", "What deployments and bids are paid from", queryEscrow(o, "accounts"), queryEscrow(o, "payments"), queryBlocksRemaining(o)),
		session.Group("bank", "Coins", queryBalances(o)),
		session.Group("audit", "Attributes signed by auditors", queryAudit(o)),
		queryTx(o),
	)
	return cmd
}

// query asks the chain.
type query func(context.Context, *client.Client) (any, error)

// ask makes a query command: it reads its arguments, connects, asks and prints.
func ask(o *session.Options, cmd *cobra.Command, read func(args []string) (query, error)) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.CheckFormat(cmd); err != nil {
			return err
		}
		do, err := read(args)
		if err != nil {
			return err
		}
		c, err := o.Dial(cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		answer, err := do(cmd.Context(), c)
		if err != nil {
			return err
		}
		return o.Print(cmd, answer)
	}
	return cmd
}

// page is a list as the chain would answer it, were it one page.
type page struct {
	items []json.RawMessage
	name  string
}

// MarshalJSON implements [json.Marshaler].
func (p page) MarshalJSON() ([]byte, error) {
	rest, err := api.JSON(&queryv1beta1.PageResponse{})
	if err != nil {
		return nil, err
	}
	items, err := json.Marshal(p.items)
	return fmt.Appendf(nil, `{%q:%s,"pagination":%s}`, p.name, items, rest), err
}

// collect reads a list to its end, or up to limit entries.
func collect[M proto.Message](name string, limit int, items iter.Seq2[M, error]) (any, error) {
	p := page{name: name, items: []json.RawMessage{}}
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		raw, err := api.JSON(item)
		if err != nil {
			return nil, err
		}
		if p.items = append(p.items, raw); len(p.items) == limit {
			break
		}
	}
	return p, nil
}

// filters are the flags of lists.
type filters struct {
	owner, provider, state string
	dseq                   uint64
	gseq, oseq             uint32
	limit                  int
}

func (q *filters) add(cmd *cobra.Command, states []string, which ...string) {
	f := cmd.Flags()
	f.IntVar(&q.limit, "limit", 0, "at most so many entries (default: all)")
	for _, name := range which {
		switch name {
		case "owner":
			f.StringVar(&q.owner, name, "", "only of this tenant")
		case "provider":
			f.StringVar(&q.provider, name, "", "only of this provider")
		case "dseq":
			f.Uint64Var(&q.dseq, name, 0, "only of this deployment")
		case "gseq":
			f.Uint32Var(&q.gseq, name, 0, "only of this group")
		case "oseq":
			f.Uint32Var(&q.oseq, name, 0, "only of this order")
		}
	}
	if states != nil {
		f.StringVar(&q.state, "state", "", "only in this state: "+strings.Join(states, ", "))
		session.Complete(cmd, "state", states...)
	}
}

// resolve turns names of keys into addresses.
func (q *filters) resolve(o *session.Options) error {
	for flag, s := range map[string]*string{"--owner": &q.owner, "--provider": &q.provider} {
		if *s == "" {
			continue
		}
		address, err := o.Resolve(flag, *s)
		if err != nil {
			return err
		}
		*s = string(address)
	}
	return nil
}

// queryList is a list command with filters.
func queryList[M proto.Message](o *session.Options, use, short, name string, states, flags []string, items func(context.Context, *client.Client, *filters) iter.Seq2[M, error]) *cobra.Command {
	var q filters
	cmd := &cobra.Command{Use: use, Short: short, Args: session.Args(0, 0)}
	q.add(cmd, states, flags...)
	return ask(o, cmd, func([]string) (query, error) {
		return func(ctx context.Context, c *client.Client) (any, error) {
			return collect(name, q.limit, items(ctx, c, &q))
		}, q.resolve(o)
	})
}

// queryOne is a command that shows the one thing its flags name.
func queryOne(o *session.Options, short string, flags []string, get func(context.Context, *client.Client, akash.BidID) (proto.Message, error)) *cobra.Command {
	var named ids
	cmd := &cobra.Command{Use: "get", Short: short, Args: session.Args(0, 0)}
	named.add(cmd.Flags(), flags...)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if named.owner == "" {
			return session.MissingFlag(cmd, "owner")
		}
		return named.check(cmd)
	}
	return ask(o, cmd, func([]string) (query, error) {
		id, err := named.bid(o, "")
		return func(ctx context.Context, c *client.Client) (any, error) { return get(ctx, c, id) }, err
	})
}

func queryDeployments(o *session.Options) *cobra.Command {
	return queryList(o, "list", "List deployments", "deployments", []string{"active", "closed"}, []string{"owner", "dseq"},
		func(ctx context.Context, c *client.Client, q *filters) iter.Seq2[*deploymentv1beta4.QueryDeploymentResponse, error] {
			return c.Deployments(ctx, &deploymentv1beta4.DeploymentFilters{Owner: q.owner, Dseq: q.dseq, State: q.state})
		})
}

func queryDeployment(o *session.Options) *cobra.Command {
	return queryOne(o, "Show a deployment with its groups and escrow account", []string{"owner", "dseq"},
		func(ctx context.Context, c *client.Client, id akash.BidID) (proto.Message, error) {
			return c.Deployment(ctx, id.DeploymentID)
		})
}

func queryGroup(o *session.Options) *cobra.Command {
	return queryOne(o, "Show a group", []string{"owner", "dseq", "gseq"}, func(ctx context.Context, c *client.Client, id akash.BidID) (proto.Message, error) {
		g, err := c.Group(ctx, id.GroupID)
		return &deploymentv1beta4.QueryGroupResponse{Group: g}, err
	})
}

func queryOrders(o *session.Options) *cobra.Command {
	return queryList(o, "list", "List orders", "orders", []string{"open", "active", "closed"}, []string{"owner", "dseq", "gseq", "oseq"},
		func(ctx context.Context, c *client.Client, q *filters) iter.Seq2[*marketv1beta5.Order, error] {
			return c.Orders(ctx, &marketv1beta5.OrderFilters{Owner: q.owner, Dseq: q.dseq, Gseq: q.gseq, Oseq: q.oseq, State: q.state})
		})
}

func queryOrder(o *session.Options) *cobra.Command {
	return queryOne(o, "Show an order", []string{"owner", "dseq", "gseq", "oseq"}, func(ctx context.Context, c *client.Client, id akash.BidID) (proto.Message, error) {
		order, err := c.Order(ctx, id.OrderID)
		return &marketv1beta5.QueryOrderResponse{Order: order}, err
	})
}

func queryBids(o *session.Options) *cobra.Command {
	return queryList(o, "list", "List bids with their escrow accounts", "bids", []string{"open", "active", "lost", "closed"}, []string{"owner", "dseq", "gseq", "oseq", "provider"},
		func(ctx context.Context, c *client.Client, q *filters) iter.Seq2[*marketv1beta5.QueryBidResponse, error] {
			return c.Bids(ctx, &marketv1beta5.BidFilters{Owner: q.owner, Dseq: q.dseq, Gseq: q.gseq, Oseq: q.oseq, Provider: q.provider, State: q.state})
		})
}

func queryBid(o *session.Options) *cobra.Command {
	return queryOne(o, "Show a bid with its escrow account", []string{"owner", "dseq", "gseq", "oseq", "provider"},
		func(ctx context.Context, c *client.Client, id akash.BidID) (proto.Message, error) {
			return c.Bid(ctx, id)
		})
}

func queryLeases(o *session.Options) *cobra.Command {
	return queryList(o, "list", "List leases with what was paid for them", "leases", []string{"active", "insufficient_funds", "closed", "reclaiming"}, []string{"owner", "dseq", "gseq", "oseq", "provider"},
		func(ctx context.Context, c *client.Client, q *filters) iter.Seq2[*marketv1beta5.QueryLeaseResponse, error] {
			return c.Leases(ctx, &marketv1.LeaseFilters{Owner: q.owner, Dseq: q.dseq, Gseq: q.gseq, Oseq: q.oseq, Provider: q.provider, State: q.state})
		})
}

func queryLease(o *session.Options) *cobra.Command {
	return queryOne(o, "Show a lease with what was paid for it", []string{"owner", "dseq", "gseq", "oseq", "provider"},
		func(ctx context.Context, c *client.Client, id akash.BidID) (proto.Message, error) {
			return c.Lease(ctx, id.Lease())
		})
}

func queryProviders(o *session.Options) *cobra.Command {
	var limit int
	cmd := &cobra.Command{Use: "list", Short: "List providers", Args: session.Args(0, 0)}
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many entries (default: all)")
	return ask(o, cmd, func([]string) (query, error) {
		return func(ctx context.Context, c *client.Client) (any, error) {
			return collect("providers", limit, c.Providers(ctx))
		}, nil
	})
}

func queryProvider(o *session.Options) *cobra.Command {
	return ask(o, &cobra.Command{Use: "get PROVIDER", Short: "Show a provider", Args: session.Args(1, 1)}, func(args []string) (query, error) {
		address, err := o.Resolve("provider", args[0])
		return func(ctx context.Context, c *client.Client) (any, error) { return c.Provider(ctx, address) }, err
	})
}

func queryCertificates(o *session.Options) *cobra.Command {
	var serial string
	cmd := queryList(o, "list", "List certificates", "certificates", []string{"valid", "revoked"}, []string{"owner"},
		func(ctx context.Context, c *client.Client, q *filters) iter.Seq2[*certv1.CertificateResponse, error] {
			return c.Certificates(ctx, &certv1.CertificateFilter{Owner: q.owner, Serial: serial, State: q.state})
		})
	cmd.Flags().StringVar(&serial, "serial", "", "only with this serial number; needs --owner")
	return cmd
}

func queryEscrow(o *session.Options, what string) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use: what + " [STATE] [XID]", Short: "List escrow " + what, Args: session.Args(0, 2),
		Example: "  croft query escrow " + what + " open deployment/akash1…/7",
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many entries (default: all)")
	return ask(o, cmd, func(args []string) (query, error) {
		args = append(args, "", "")
		return func(ctx context.Context, c *client.Client) (any, error) {
			if what == "accounts" {
				return collect(what, limit, c.EscrowAccounts(ctx, args[0], args[1]))
			}
			return collect(what, limit, c.EscrowPayments(ctx, args[0], args[1]))
		}, nil
	})
}

func queryBalances(o *session.Options) *cobra.Command {
	return ask(o, &cobra.Command{Use: "balances ADDRESS", Short: "Show what an account can spend", Args: session.Args(1, 1)},
		func(args []string) (query, error) {
			address, err := o.Resolve("account", args[0])
			return func(ctx context.Context, c *client.Client) (any, error) {
				resp := &bankv1beta1.QueryAllBalancesResponse{Pagination: &queryv1beta1.PageResponse{}}
				for coin, err := range c.Balances(ctx, address) {
					if err != nil {
						return nil, err
					}
					resp.Balances = append(resp.Balances, coin)
				}
				return resp, nil
			}, err
		})
}

// remaining is how long a deployment's money lasts.
type remaining struct {
	Balance json.Number `json:"balance_remaining"` // when it was settled last
	Blocks  int64       `json:"blocks_remaining"`  // from the latest block
	Time    string      `json:"estimated_time_remaining"`
}

func queryBlocksRemaining(o *session.Options) *cobra.Command {
	var named ids
	cmd := &cobra.Command{Use: "blocks-remaining", Short: "Tell how long a deployment's money lasts", Args: session.Args(0, 0)}
	named.add(cmd.Flags(), "owner", "dseq")
	cmd.Flag("owner").Usage = "account that owns the deployment (default: that of the only key)"
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return named.check(cmd) }
	return ask(o, cmd, func([]string) (query, error) {
		owner, err := o.Self(named.owner, "")
		return func(ctx context.Context, c *client.Client) (any, error) {
			return blocksRemaining(ctx, c, named.deployment(owner))
		}, err
	})
}

func blocksRemaining(ctx context.Context, c *client.Client, id akash.DeploymentID) (any, error) {
	d, err := c.Deployment(ctx, id)
	if err != nil {
		return nil, err
	}
	var rates []akash.Price
	for _, state := range []string{"active", "reclaiming"} {
		for l, err := range c.Leases(ctx, &marketv1.LeaseFilters{Owner: string(id.Owner), Dseq: id.DSeq, State: state}) {
			if err != nil {
				return nil, err
			}
			rate, err := akash.PriceOf(l.GetLease().GetPrice())
			if err != nil {
				return nil, err
			}
			rates = append(rates, rate)
		}
	}
	if len(rates) == 0 {
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("deployment %s has no active lease: nothing is drawn from it", id), Remedy: "accept a bid first"}
	}
	pace, err := quote.MeasurePace(ctx, c)
	if err != nil {
		return nil, err
	}
	runway, err := quote.RunwayOf(d.GetEscrowAccount(), rates, pace)
	if err != nil {
		return nil, err
	}
	var funds akash.Dec
	for _, f := range d.GetEscrowAccount().GetState().GetFunds() {
		if f.GetDenom() != rates[0].Denom {
			continue
		}
		if funds, err = akash.ParseWireDec(f.GetAmount()); err != nil {
			return nil, err
		}
	}
	return remaining{json.Number(funds.String()), runway.Blocks, runway.Left.String()}, nil
}

func queryAudit(o *session.Options) *cobra.Command {
	var provider, auditor string
	cmd := &cobra.Command{Use: "list", Short: "List signed attributes", Args: session.Args(0, 0)}
	cmd.Flags().StringVar(&provider, "provider", "", "only of this provider")
	cmd.Flags().StringVar(&auditor, "auditor", "", "only by this auditor")
	return ask(o, cmd, func([]string) (query, error) {
		var of [2]account.Address
		for i, s := range []string{provider, auditor} {
			if s == "" {
				continue
			}
			var err error
			if of[i], err = o.Resolve([]string{"--provider", "--auditor"}[i], s); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, c *client.Client) (any, error) {
			return collect("providers", 0, c.AuditedAttributes(ctx, of[0], of[1]))
		}, nil
	})
}

func queryTx(o *session.Options) *cobra.Command {
	return ask(o, &cobra.Command{Use: "tx HASH", Short: "Show what became of a transaction", Args: session.Args(1, 1)},
		func(args []string) (query, error) {
			hash, err := client.ParseHash(args[0])
			if err != nil {
				return nil, session.Usage(err, "copy it from the answer of the command that sent it")
			}
			return func(ctx context.Context, c *client.Client) (any, error) {
				result, err := c.Find(ctx, hash)
				return session.Response(result), err
			}, nil
		})
}
