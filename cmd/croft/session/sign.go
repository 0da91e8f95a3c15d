package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/abciv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/tendermintabci"
	"github.com/croft-cloud/croft/chain/client"
)

// confirmationLimit is how long a single transaction is waited for.
const confirmationLimit = 5 * time.Minute

// TxOptions are the flags of every command that signs.
type TxOptions struct {
	*Options
	From       string // --from
	gas        string
	adjustment float64
	gasPrices  string
	fees       string
	feeGranter string
	note       string
	broadcast  string
	keyring    string
	Yes        bool // --yes
}

// Signing adds the flags of the Akash command line's transactions.
func (o *Options) Signing(cmd *cobra.Command) *TxOptions {
	t := o.BriefSigning(cmd)
	f := cmd.Flags()
	f.StringVar(&t.gas, "gas", "auto", "gas limit, or auto")
	f.StringVar(&t.fees, "fees", "", "fee in all, like 5000uakt, instead of --gas-prices")
	f.StringVar(&t.note, "note", "", "public text in the transaction")
	f.StringVarP(&t.broadcast, "broadcast-mode", "b", "block", "block; sync and async are understood, croft waits for the block all the same")
	f.StringVar(&t.keyring, "keyring-backend", "", "understood and not needed: keys lie in croft's own store")
	Complete(cmd, "broadcast-mode", "block", "sync", "async")
	for _, name := range []string{"gas-prices", "gas-adjustment", "fee-granter"} {
		f.Lookup(name).Hidden = false
	}
	return t
}

// BriefSigning adds the flags that every command that signs has, the rare ones
// hidden.
func (o *Options) BriefSigning(cmd *cobra.Command) *TxOptions {
	t := &TxOptions{Options: o, gas: "auto", broadcast: "block"}
	f := cmd.Flags()
	f.StringVar(&t.From, "from", "", "key to sign with, by name or address (default: the only one)")
	f.Float64Var(&t.adjustment, "gas-adjustment", 1.5, "with --gas auto: the limit over what a trial run used")
	f.StringVar(&t.gasPrices, "gas-prices", "0.025uakt", "what a unit of gas is paid; 0uakt offers no fee")
	f.StringVar(&t.feeGranter, "fee-granter", "", "account that pays the fee, if it granted that")
	f.BoolVarP(&t.Yes, "yes", "y", false, "do not ask")
	for _, name := range []string{"gas-prices", "gas-adjustment", "fee-granter"} {
		f.Lookup(name).Hidden = true
	}
	return t
}

// Granter is the account that pays the fees; empty for the signer.
func (t *TxOptions) Granter() (account.Address, error) {
	if t.feeGranter == "" {
		return "", nil
	}
	return t.Resolve("--fee-granter", t.feeGranter)
}

// TxCall is one run of a command that signs.
type TxCall struct {
	*TxOptions
	Cmd   *cobra.Command
	Args  []string
	Key   *Key
	Me    account.Address // the account of Key
	Chain *client.Client
}

// Context is that of the command.
func (t *TxCall) Context() context.Context { return t.Cmd.Context() }

// Open checks the flags, takes the key out and connects. The caller closes t.Chain.
func (t *TxOptions) Open(cmd *cobra.Command, args []string) (*TxCall, error) {
	if err := t.CheckFormat(cmd); err != nil {
		return nil, err
	}
	if !slices.Contains([]string{"block", "sync", "async"}, t.broadcast) {
		return nil, Usage(fmt.Errorf("--broadcast-mode %s is not known", t.broadcast), "choose block, sync or async")
	}
	if t.adjustment < 1 || t.adjustment > 100 {
		return nil, Usage(fmt.Errorf("--gas-adjustment %g is out of range", t.adjustment), "choose a number from 1 to 100")
	}
	key, err := t.Signer(cmd, t.From)
	if err != nil {
		return nil, err
	}
	c, err := t.Dial(cmd, func(cfg *client.Config) {
		cfg.GasPrice, cfg.GasPercent = t.gasPrices, uint64(t.adjustment*100)
	})
	if err != nil {
		return nil, err
	}
	return &TxCall{TxOptions: t, Cmd: cmd, Args: args, Key: key, Me: key.Address(), Chain: c}, nil
}

// Run does what a `croft tx` verb does: build the messages, ask, send, wait for
// the block and print the chain's answer.
func (t *TxOptions) Run(cmd *cobra.Command, args []string, build func(*TxCall) ([]proto.Message, error)) error {
	call, err := t.Open(cmd, args)
	if err != nil {
		return err
	}
	defer func() { call.Chain.Close() }()
	msgs, err := build(call)
	if err != nil {
		return err
	}
	if !t.Yes {
		text, err := List(msgs)
		if err != nil {
			return err
		}
		readable, err := yamlOf(text)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s\n", readable)
		if err := Confirm(cmd, false, "Sign this and send it?"); err != nil {
			return err
		}
	}
	result, err := call.Send(cmd.Context(), msgs...)
	if err != nil {
		return err
	}
	return t.Print(cmd, Response(result))
}

// Send signs, sends and waits for the block.
func (t *TxCall) Send(ctx context.Context, msgs ...proto.Message) (client.Result, error) {
	tx, err := t.tx(msgs)
	if err != nil {
		return client.Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, confirmationLimit)
	defer cancel()
	result, err := t.Chain.Send(ctx, t.Key, tx)
	if open, ok := errors.AsType[*client.UnconfirmedError](err); ok {
		return result, &croft.Error{Err: err, Remedy: "`croft query tx " + open.Signed.Hash.String() + "` says what became of it"}
	}
	return result, err
}

func (t *TxCall) tx(msgs []proto.Message) (client.Tx, error) {
	tx := client.Tx{Msgs: msgs, Memo: t.note}
	var err error
	if tx.FeeGranter, err = t.Granter(); err != nil {
		return tx, err
	}
	if t.gas != "auto" && t.gas != "" {
		if tx.Gas, err = strconv.ParseUint(t.gas, 10, 63); err != nil || tx.Gas == 0 {
			return tx, Usage(fmt.Errorf("--gas %q is no gas limit", t.gas), "write a number, or auto")
		}
	}
	if t.fees != "" {
		fee, err := ParseCoin("--fees", t.fees)
		if err != nil {
			return tx, err
		}
		tx.Fee = []*basev1beta1.Coin{}
		if fee.Amount != "0" {
			tx.Fee = append(tx.Fee, fee)
		}
	}
	return tx, nil
}

// Response is the result in the form that the Akash command line prints.
func Response(r client.Result) *abciv1beta1.TxResponse {
	resp := &abciv1beta1.TxResponse{
		Height: r.Height, Txhash: r.Hash.String(), Codespace: r.Codespace, Code: r.Code, RawLog: r.Log,
		GasWanted: r.GasWanted, GasUsed: r.GasUsed,
	}
	for _, e := range r.Events {
		event := &tendermintabci.Event{Type: e.Type}
		for _, a := range e.Attributes {
			event.Attributes = append(event.Attributes, &tendermintabci.EventAttribute{Key: a.Key, Value: a.Value, Index: true})
		}
		resp.Events = append(resp.Events, event)
	}
	return resp
}

// Unreachable says why a node cannot be talked to.
func Unreachable(name string, n Network, err error) error {
	if croft.KindOf(err) != croft.KindOther {
		return err
	}
	remedy := "see that the node runs, or name another with --node or --network"
	if name == localNetwork {
		remedy = "start it with `croft-chaind start --home DIR`, or name another with --node or --network"
	}
	return &croft.Error{Err: fmt.Errorf("the chain at %s cannot be reached: %w", n.Node, cause(err)), Remedy: remedy}
}

// cause leaves out what an error says about its own call.
func cause(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	if e, ok := errors.AsType[*croft.Error](err); ok {
		return e.Err
	}
	return err
}

// refused finds out at once that nothing listens at a node's address. All other
// troubles are left to the client, which is patient.
func refused(ctx context.Context, node string) error {
	u, err := url.Parse(node)
	if err != nil {
		return nil
	}
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err != nil || proxy != nil {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443"}[u.Scheme]
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err == nil {
		conn.Close()
		return nil
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}
