package chaincmd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/authzv1beta1"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/escrowv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newTxCommand() *cobra.Command {
	cmd, o := session.TopCommand("tx", "Sign transactions and send them (the Akash command line's verbs)", `Sign transactions and send them: the verbs and flags of the Akash command line.

A command ends when the transaction stands in a block and was executed; then it
prints the chain's answer. Environment variables CROFT_FLAG or AKASH_FLAG give
flags that are not typed (AKASH_NODE, AKASH_CHAIN_ID, AKASH_FROM, …).`, "text")
	cmd.Example = `  croft tx deployment create deploy.yml --from tenant -y
  croft tx market lease create --dseq 7 --provider akash1… --from tenant -y
  croft tx deployment close --dseq 7 --from tenant -y`
	cmd.AddCommand(
		session.Group("deployment", "Create, change and close deployments",
			send(o, txDeploymentCreate()), send(o, txDeploymentUpdate()), send(o, txDeploymentClose()),
			session.Group("group", "Pause, start and close a deployment's groups",
				send(o, txGroup("pause", "Pause a group: its lease ends, it can be started again", func(id *deploymentv1.GroupID) proto.Message { return &deploymentv1beta4.MsgPauseGroup{Id: id} })),
				send(o, txGroup("start", "Start a paused group: providers may bid again", func(id *deploymentv1.GroupID) proto.Message { return &deploymentv1beta4.MsgStartGroup{Id: id} })),
				send(o, txGroup("close", "Close a group for good", func(id *deploymentv1.GroupID) proto.Message { return &deploymentv1beta4.MsgCloseGroup{Id: id} })),
			)),
		session.Group("market", "Bids and leases",
			session.Group("lease", "Accept bids, end leases", send(o, txLeaseCreate()), send(o, txLeaseClose()), send(o, txLeaseWithdraw())),
			session.Group("bid", "Bid on orders, as a provider", send(o, txBidCreate()), send(o, txBidClose()), send(o, txBidReclaim()))),
		session.Group("escrow", "Put money into escrow", session.Group("deposit", "Add to an escrow account", send(o, txDeposit()))),
		newTxCertCommand(o),
		session.Group("authz", "Let others spend for you", send(o, txGrant()), send(o, txRevokeGrant())),
		session.Group("bank", "Send coins", send(o, txSend())),
		session.Group("provider", "Register a provider", send(o, txProvider("create")), send(o, txProvider("update"))),
		session.Group("audit", "Sign providers' attributes, as an auditor", session.Group("attr", "Signed attributes", send(o, txAudit()), send(o, txAuditDelete()))),
	)
	return cmd
}

// verb is a command that sends one message.
type verb struct {
	use, short, example string
	min, max            int      // arguments
	signs               bool     // the first argument names the key, unless --from does
	ids                 []string // flags that name things: owner, dseq, gseq, oseq, provider
	more                func(*cobra.Command)
	msg                 func(*session.TxCall, ids) (proto.Message, error)
}

func send(o *session.Options, v verb) *cobra.Command {
	var named ids
	cmd := &cobra.Command{Use: v.use, Short: v.short, Args: session.Args(v.min, v.max)}
	if v.example != "" {
		cmd.Example = "  " + v.example
	}
	t := o.Signing(cmd)
	named.add(cmd.Flags(), v.ids...)
	if v.more != nil {
		v.more(cmd)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := named.check(cmd); err != nil {
			return err
		}
		if v.signs && t.From == "" {
			t.From = args[0]
		}
		return t.Run(cmd, args, func(call *session.TxCall) ([]proto.Message, error) {
			m, err := v.msg(call, named)
			return []proto.Message{m}, err
		})
	}
	return cmd
}

// ids are the flags that name a deployment and what is in it.
type ids struct {
	owner      string
	dseq       uint64
	gseq, oseq uint32
	provider   string
}

func (i *ids) add(f *pflag.FlagSet, which ...string) {
	for _, name := range which {
		switch name {
		case "owner":
			f.StringVar(&i.owner, name, "", "account that owns the deployment")
		case "dseq":
			f.Uint64Var(&i.dseq, name, 0, "number of the deployment")
		case "gseq":
			f.Uint32Var(&i.gseq, name, 1, "number of the group in it")
		case "oseq":
			f.Uint32Var(&i.oseq, name, 1, "number of the group's order")
		case "provider":
			f.StringVar(&i.provider, name, "", "account of the provider")
		}
	}
}

// check wants the flags that have no default.
func (i *ids) check(cmd *cobra.Command) error {
	for _, name := range []string{"dseq", "provider"} {
		f := cmd.Flags().Lookup(name)
		if f != nil && f.Value.String() == f.DefValue && f.Annotations["optional"] == nil {
			return session.MissingFlag(cmd, name)
		}
	}
	return nil
}

// optional takes a flag out of check.
func optional(f *pflag.FlagSet, name string) {
	f.Lookup(name).Annotations = map[string][]string{"optional": {}}
}

func (i *ids) deployment(owner account.Address) akash.DeploymentID {
	return akash.DeploymentID{Owner: owner, DSeq: i.dseq}
}

func (i *ids) group(owner account.Address) akash.GroupID {
	return akash.GroupID{DeploymentID: i.deployment(owner), GSeq: i.gseq}
}

// bid reads --provider and --owner, each an address or the name of a key. Left
// out, me is meant.
func (i *ids) bid(o *session.Options, me account.Address) (akash.BidID, error) {
	owner, provider := me, me
	var err error
	if i.owner != "" {
		if owner, err = o.Resolve("--owner", i.owner); err != nil {
			return akash.BidID{}, err
		}
	}
	if i.provider != "" {
		if provider, err = o.Resolve("--provider", i.provider); err != nil {
			return akash.BidID{}, err
		}
	}
	return akash.BidID{OrderID: akash.OrderID{GroupID: i.group(owner), OSeq: i.oseq}, Provider: provider}, nil
}

func reclamation(file *sdl.SDL) *deploymentv1.DeploymentReclamation {
	if file.Reclamation() == 0 {
		return nil
	}
	return &deploymentv1.DeploymentReclamation{MinWindow: durationpb.New(file.Reclamation())}
}

func txDeploymentCreate() verb {
	var d session.DepositFlags
	return verb{
		use: "create FILE", short: "Ask for what an SDL file describes", min: 1, max: 1, ids: []string{"dseq"},
		example: "croft tx deployment create deploy.yml --from tenant --deposit 5000000uact -y",
		more: func(cmd *cobra.Command) {
			d.Add(cmd, "the least the chain takes, in the denom of the prices")
			optional(cmd.Flags(), "dseq")
			cmd.Flag("dseq").Usage = "number for the deployment (default: the chain's height)"
		},
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			file, err := session.ReadSDL(t.Cmd, t.Args[0])
			if err != nil {
				return nil, err
			}
			if i.dseq == 0 {
				status, err := t.Chain.Status(t.Context())
				if err != nil {
					return nil, err
				}
				i.dseq = uint64(status.Height)
			}
			var least *basev1beta1.Coin
			if d.Amount == "" {
				if least, err = session.MinDeposit(t.Context(), t.Chain, file); err != nil {
					return nil, err
				}
			}
			deposit, err := d.Deposit(least)
			if err != nil {
				return nil, err
			}
			hash := file.Hash()
			return &deploymentv1beta4.MsgCreateDeployment{
				Id: i.deployment(t.Me).Wire(), Groups: file.Groups(), Hash: hash[:], Deposit: deposit, Reclamation: reclamation(file),
			}, nil
		},
	}
}

func txDeploymentUpdate() verb {
	return verb{
		use: "update FILE", short: "Announce a new manifest for a deployment", min: 1, max: 1, ids: []string{"dseq"},
		example: "croft tx deployment update deploy.yml --dseq 7 --from tenant -y",
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			file, err := session.ReadSDL(t.Cmd, t.Args[0])
			if err != nil {
				return nil, err
			}
			hash := file.Hash()
			return &deploymentv1beta4.MsgUpdateDeployment{Id: i.deployment(t.Me).Wire(), Hash: hash[:]}, nil
		},
	}
}

func txDeploymentClose() verb {
	return verb{
		use: "close", short: "Close a deployment: all ends, the rest of the deposit returns", ids: []string{"dseq"},
		example: "croft tx deployment close --dseq 7 --from tenant -y",
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			return &deploymentv1beta4.MsgCloseDeployment{Id: i.deployment(t.Me).Wire()}, nil
		},
	}
}

func txGroup(use, short string, msg func(*deploymentv1.GroupID) proto.Message) verb {
	return verb{
		use: use, short: short, ids: []string{"dseq", "gseq"},
		msg: func(t *session.TxCall, i ids) (proto.Message, error) { return msg(i.group(t.Me).Wire()), nil },
	}
}

func txLeaseCreate() verb {
	return verb{
		use: "create", short: "Accept a provider's bid", ids: []string{"dseq", "gseq", "oseq", "provider"},
		example: "croft tx market lease create --dseq 7 --gseq 1 --oseq 1 --provider akash1… --from tenant -y",
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			id, err := i.bid(t.Options, t.Me)
			return &marketv1beta5.MsgCreateLease{BidId: id.Wire()}, err
		},
	}
}

func txLeaseClose() verb {
	return verb{
		use: "close", short: "End a lease, as its tenant; the group takes bids again", ids: []string{"dseq", "gseq", "oseq", "provider"},
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			id, err := i.bid(t.Options, t.Me)
			return &marketv1beta5.MsgCloseLease{Id: id.Lease().Wire(), Reason: marketv1.LeaseClosedReason_lease_closed_owner}, err
		},
	}
}

func txLeaseWithdraw() verb {
	return verb{
		use: "withdraw", short: "Collect what a lease has earned, as its provider", ids: []string{"owner", "dseq", "gseq", "oseq"},
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			id, err := i.asProvider(t)
			return &marketv1beta5.MsgWithdrawLease{Id: id.Lease().Wire()}, err
		},
	}
}

// asProvider is the bid of the signer on another's order.
func (i *ids) asProvider(t *session.TxCall) (akash.BidID, error) {
	if i.owner == "" {
		return akash.BidID{}, session.MissingFlag(t.Cmd, "owner")
	}
	return i.bid(t.Options, t.Me)
}

func txBidCreate() verb {
	var d session.DepositFlags
	var price string
	var window time.Duration
	return verb{
		use: "create", short: "Bid on an order", ids: []string{"owner", "dseq", "gseq", "oseq"},
		example: "croft tx market bid create --owner akash1… --dseq 7 --price 50uact --from provider -y",
		more: func(cmd *cobra.Command) {
			d.Add(cmd, "the least the chain takes")
			cmd.Flags().StringVar(&price, "price", "", "price for each block, like 50uact")
			cmd.Flags().DurationVar(&window, "reclamation-window", 0, "promise to give notice this long before taking the resources back")
		},
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			id, err := i.asProvider(t)
			if err != nil {
				return nil, err
			}
			if price == "" {
				return nil, session.MissingFlag(t.Cmd, "price")
			}
			asked, err := session.ParsePrice("--price", price)
			if err != nil {
				return nil, err
			}
			var least *basev1beta1.Coin
			if d.Amount == "" {
				params, err := t.Chain.MarketParams(t.Context())
				if err != nil {
					return nil, err
				}
				if least = params.GetBidMinDeposit(); len(params.GetBidMinDeposits()) > 0 {
					least = params.GetBidMinDeposits()[0]
				}
			}
			deposit, err := d.Deposit(least)
			if err != nil {
				return nil, err
			}
			order, err := t.Chain.Order(t.Context(), id.OrderID)
			if err != nil {
				return nil, err
			}
			msg := &marketv1beta5.MsgCreateBid{Id: id.Wire(), Price: asked.Wire(), Deposit: deposit}
			for _, unit := range order.GetSpec().GetResources() {
				msg.ResourcesOffer = append(msg.ResourcesOffer, &marketv1beta5.ResourceOffer{Resources: unit.GetResource(), Count: unit.GetCount()})
			}
			if window > 0 {
				msg.ReclamationWindow = durationpb.New(window)
			}
			return msg, nil
		},
	}
}

// reasons are why a provider ends a lease.
var reasons = map[string]marketv1.LeaseClosedReason{
	"unstable":         marketv1.LeaseClosedReason_lease_closed_reason_unstable,
	"decommission":     marketv1.LeaseClosedReason_lease_closed_reason_decommission,
	"unspecified":      marketv1.LeaseClosedReason_lease_closed_reason_unspecified,
	"manifest_timeout": marketv1.LeaseClosedReason_lease_closed_reason_manifest_timeout,
}

func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "unspecified", "why: unstable, decommission, unspecified, manifest_timeout")
	session.Complete(cmd, "reason", "unstable", "decommission", "unspecified", "manifest_timeout")
}

func parseReason(s string) (marketv1.LeaseClosedReason, error) {
	reason, ok := reasons[strings.TrimPrefix(strings.TrimPrefix(s, "lease_closed_reason_"), "lease_closed_")]
	if !ok {
		return 0, session.Usage(fmt.Errorf("--reason %q is not known", s), "choose unstable, decommission, unspecified or manifest_timeout")
	}
	return reason, nil
}

func txBidClose() verb {
	var reason string
	return verb{
		use: "close", short: "Take a bid back, or end the lease it became", ids: []string{"owner", "dseq", "gseq", "oseq"},
		more: func(cmd *cobra.Command) { reasonFlag(cmd, &reason) },
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			why, err := parseReason(reason)
			if err != nil {
				return nil, err
			}
			id, err := i.asProvider(t)
			return &marketv1beta5.MsgCloseBid{Id: id.Wire(), Reason: why}, err
		},
	}
}

func txBidReclaim() verb {
	var reason string
	return verb{
		use: "start-reclaim", short: "Give notice that a lease ends when its reclamation window is over", ids: []string{"owner", "dseq", "gseq", "oseq"},
		more: func(cmd *cobra.Command) { reasonFlag(cmd, &reason) },
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			why, err := parseReason(reason)
			if err != nil {
				return nil, err
			}
			id, err := i.asProvider(t)
			return &marketv1beta5.MsgLeaseStartReclaim{Id: id.Lease().Wire(), Reason: why}, err
		},
	}
}

func txDeposit() verb {
	var d session.DepositFlags
	return verb{
		use: "deployment AMOUNT", short: "Add to what a deployment is paid from", min: 1, max: 1, ids: []string{"owner", "dseq"},
		example: "croft tx escrow deposit deployment 5000000uact --dseq 7 --from tenant -y",
		more:    func(cmd *cobra.Command) { d.AddSources(cmd) },
		msg: func(t *session.TxCall, i ids) (proto.Message, error) {
			id, err := i.bid(t.Options, t.Me)
			if err != nil {
				return nil, err
			}
			return session.DepositMsg(t.Me, id.DeploymentID, t.Args[0], d)
		},
	}
}

// depositType is the one kind of grant that this protocol knows.
const depositType = "/akash.escrow.v1.MsgAccountDeposit"

func txGrant() verb {
	var scopes []string
	var limit string
	var expires string
	return verb{
		use: "grant GRANTEE deposit", short: "Let another account deposit from yours", min: 2, max: 2,
		example: "croft tx authz grant akash1… deposit --scope deployment --spend-limit 10000000uact --from me -y",
		more: func(cmd *cobra.Command) {
			cmd.Flags().StringSliceVar(&scopes, "scope", []string{"deployment"}, "what for: deployment, bid")
			cmd.Flags().StringVar(&limit, "spend-limit", "", "how much in all, like 10000000uact; several with commas")
			cmd.Flags().StringVar(&expires, "expiration", "", "until when: RFC 3339, seconds since 1970, or a duration like 720h (default: for ever)")
		},
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			if t.Args[1] != "deposit" {
				return nil, session.Usage(fmt.Errorf("%q cannot be granted", t.Args[1]), "write deposit")
			}
			if limit == "" {
				return nil, session.MissingFlag(t.Cmd, "spend-limit")
			}
			grantee, err := t.Resolve("grantee", t.Args[0])
			if err != nil {
				return nil, err
			}
			auth := &escrowv1.DepositAuthorization{SpendLimit: &basev1beta1.Coin{Amount: "0"}}
			if auth.SpendLimits, err = session.ParseCoins("--spend-limit", limit); err != nil {
				return nil, err
			}
			for _, s := range scopes {
				scope, ok := escrowv1.DepositAuthorization_Scope_value[s]
				if !ok || scope == 0 {
					return nil, session.Usage(fmt.Errorf("--scope %q is not known", s), "choose of deployment and bid")
				}
				auth.Scopes = append(auth.Scopes, escrowv1.DepositAuthorization_Scope(scope))
			}
			packed, err := client.Pack(auth)
			if err != nil {
				return nil, err
			}
			msg := &authzv1beta1.MsgGrant{Granter: string(t.Me), Grantee: string(grantee), Grant: &authzv1beta1.Grant{Authorization: packed}}
			if expires != "" {
				at, err := parseTime(expires, time.Now())
				if err != nil {
					return nil, session.Usage(fmt.Errorf("--expiration: %w", err), "write 2027-01-31T00:00:00Z, seconds since 1970, or a duration like 720h")
				}
				msg.Grant.Expiration = timestamppb.New(at)
			}
			return msg, nil
		},
	}
}

func parseTime(s string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(d), nil
	}
	seconds, err := strconv.ParseInt(s, 10, 64)
	if err != nil || seconds <= 0 {
		return time.Time{}, fmt.Errorf("%q is no time", s)
	}
	return time.Unix(seconds, 0), nil
}

func txRevokeGrant() verb {
	return verb{
		use: "revoke GRANTEE [deposit]", short: "Take a grant back", min: 1, max: 2,
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			grantee, err := t.Resolve("grantee", t.Args[0])
			if err != nil {
				return nil, err
			}
			kind := depositType
			if len(t.Args) == 2 && t.Args[1] != "deposit" {
				kind = t.Args[1]
			}
			return &authzv1beta1.MsgRevoke{Granter: string(t.Me), Grantee: string(grantee), MsgTypeUrl: kind}, nil
		},
	}
}

func txSend() verb {
	return verb{
		use: "send FROM TO AMOUNT", short: "Send coins to another account", min: 3, max: 3, signs: true,
		example: "croft tx bank send tenant akash1… 1000000uakt -y",
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			from, err := t.Resolve("sender", t.Args[0])
			if err != nil {
				return nil, err
			}
			if from != t.Me {
				return nil, session.Usage(fmt.Errorf("%s is not the account that signs, %s", from, t.Me), "leave --from out, or name the sender's key with it")
			}
			to, err := t.Resolve("receiver", t.Args[1])
			if err != nil {
				return nil, err
			}
			coins, err := session.ParseCoins("amount", t.Args[2])
			return &bankv1beta1.MsgSend{FromAddress: string(from), ToAddress: string(to), Amount: coins}, err
		},
	}
}

// providerFile is what `tx provider create` reads.
type providerFile struct {
	Host       string `yaml:"host"`
	Attributes []struct {
		Key   string `yaml:"key"`
		Value string `yaml:"value"`
	} `yaml:"attributes"`
	Info struct {
		Email   string `yaml:"email"`
		Website string `yaml:"website"`
	} `yaml:"info"`
}

func txProvider(use string) verb {
	return verb{
		use: use + " FILE", short: map[string]string{"create": "Register a provider", "update": "Change a provider's record"}[use] + ", from a YAML file with host, attributes and info", min: 1, max: 1,
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			raw, err := os.ReadFile(t.Args[0])
			if err != nil {
				return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("read provider file: %w", err), Remedy: "name a YAML file with host, attributes and info"}
			}
			var file providerFile
			if err := yaml.Unmarshal(raw, &file); err != nil {
				return nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read provider file %s: %w", t.Args[0], err), Remedy: "write host, attributes (a list of key and value) and info (email, website)"}
			}
			var attributes []*attributesv1.Attribute
			for _, a := range file.Attributes {
				attributes = append(attributes, &attributesv1.Attribute{Key: a.Key, Value: a.Value})
			}
			info := &providerv1beta4.Info{Email: file.Info.Email, Website: file.Info.Website}
			if use == "create" {
				return &providerv1beta4.MsgCreateProvider{Owner: string(t.Me), HostUri: file.Host, Attributes: attributes, Info: info}, nil
			}
			return &providerv1beta4.MsgUpdateProvider{Owner: string(t.Me), HostUri: file.Host, Attributes: attributes, Info: info}, nil
		},
	}
}

func txAudit() verb {
	return verb{
		use: "create PROVIDER KEY VALUE [KEY VALUE]...", short: "Sign attributes of a provider", min: 3, max: -1,
		example: "croft tx audit attr create akash1… organization example.com --from auditor -y",
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			if len(t.Args)%2 == 0 {
				return nil, session.Usage(errors.New("the last key has no value"), "usage: "+t.Cmd.UseLine())
			}
			provider, err := t.Resolve("provider", t.Args[0])
			if err != nil {
				return nil, err
			}
			msg := &auditv1.MsgSignProviderAttributes{Owner: string(provider), Auditor: string(t.Me)}
			for i := 1; i < len(t.Args); i += 2 {
				msg.Attributes = append(msg.Attributes, &attributesv1.Attribute{Key: t.Args[i], Value: t.Args[i+1]})
			}
			return msg, nil
		},
	}
}

func txAuditDelete() verb {
	return verb{
		use: "delete PROVIDER [KEY]...", short: "Take signed attributes back; without keys, all", min: 1, max: -1,
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			provider, err := t.Resolve("provider", t.Args[0])
			return &auditv1.MsgDeleteProviderAttributes{Owner: string(provider), Auditor: string(t.Me), Keys: t.Args[1:]}, err
		},
	}
}
