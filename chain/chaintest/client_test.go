//go:build integration

package chaintest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/cosmos/cosmos-sdk/crypto/hd"
	"github.com/cosmos/cosmos-sdk/crypto/keys/secp256k1"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/tx/signing"
	authsigning "github.com/cosmos/cosmos-sdk/x/auth/signing"

	dbm "github.com/cosmos/cosmos-db"

	"cosmossdk.io/log/v2"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/feegrantv1beta1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/credential"
)

// dialNode makes a client of the node.
func dialNode(t *testing.T, n *chaintest.Node) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{
		ChainID: n.ChainID(), GRPC: "grpc://" + n.Addrs().GRPC, RPC: "http://" + n.Addrs().RPC, Poll: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// clientKey is the key of one of the node's accounts.
func clientKey(t *testing.T, n *chaintest.Node, name string) *account.Key {
	t.Helper()
	words, err := account.ParseMnemonic(n.Accounts[name].Mnemonic)
	if err != nil {
		t.Fatal(err)
	}
	key, err := words.Key(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func payMsg(from, to account.Address, amount int) []proto.Message {
	return []proto.Message{&bankv1beta1.MsgSend{
		FromAddress: string(from), ToAddress: string(to),
		Amount: []*basev1beta1.Coin{{Denom: "uakt", Amount: strconv.Itoa(amount)}},
	}}
}

func clientBalance(t *testing.T, c *client.Client, who account.Address) int64 {
	t.Helper()
	coin, err := c.Balance(t.Context(), who, "uakt")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(coin.GetAmount(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// newcomer is an account that begins with nothing.
func newcomer(t *testing.T) *account.Key {
	t.Helper()
	words, err := account.NewMnemonic()
	if err != nil {
		t.Fatal(err)
	}
	key, err := words.Key(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestClientDerivesTheKeysOfTheSDK(t *testing.T) {
	app.SetAddressPrefix()
	for range 20 {
		words, err := account.NewMnemonic()
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range [][2]uint32{{0, 0}, {0, 7}, {3, 1}} {
			secret, err := hd.Secp256k1.Derive()(words.Reveal(), "", hd.CreateHDPath(118, path[0], path[1]).String())
			if err != nil {
				t.Fatal(err)
			}
			theirs := &secp256k1.PrivKey{Key: secret}
			ours, err := words.Key(path[0], path[1])
			if err != nil {
				t.Fatal(err)
			}
			if want := sdk.AccAddress(theirs.PubKey().Address()).String(); string(ours.Address()) != want {
				t.Errorf("path %v: address %s, the SDK's is %s", path, ours.Address(), want)
			}
			message := []byte(words.Reveal() + "signed")
			mine, err := ours.Sign(t.Context(), message)
			if err != nil {
				t.Fatal(err)
			}
			its, err := theirs.Sign(message)
			if err != nil || !bytes.Equal(mine, its) {
				t.Errorf("path %v: signature %x, the SDK's is %x (%v)", path, mine, its, err)
			}
		}
	}
}

func TestClientOnOneNode(t *testing.T) {
	n := chaintest.StartNode(t, nil)
	c := dialNode(t, n)
	faucet, tenant := clientKey(t, n, "faucet"), clientKey(t, n, "tenant")

	t.Run("another chain id is refused", func(t *testing.T) {
		_, err := client.Dial(t.Context(), client.Config{ChainID: "akashnet-2", GRPC: n.Addrs().GRPC, RPC: "tcp://" + n.Addrs().RPC})
		if croft.KindOf(err) != croft.KindRefused {
			t.Errorf("Dial = %v", err)
		}
	})

	t.Run("50 goroutines send 4 each with one signer", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		before, err := c.Account(ctx, faucet.Address())
		if err != nil {
			t.Fatal(err)
		}
		to := newcomer(t).Address()
		var wg sync.WaitGroup
		begin := time.Now()
		for range 50 {
			wg.Go(func() {
				for range 4 {
					r, err := c.Send(ctx, faucet, client.Tx{Msgs: payMsg(faucet.Address(), to, 3)})
					if err != nil {
						t.Errorf("Send: %v", err)
					} else if r.Height <= 0 || r.GasUsed <= 0 || len(r.Events) == 0 {
						t.Errorf("result %+v lacks its parts", r)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("200 confirmed in %s", time.Since(begin))
		after, err := c.Account(ctx, faucet.Address())
		if err != nil {
			t.Fatal(err)
		}
		if after.Sequence-before.Sequence != 200 || clientBalance(t, c, to) != 600 {
			t.Errorf("%d sequences used, %d received; want 200 and 600", after.Sequence-before.Sequence, clientBalance(t, c, to))
		}
		if key, err := c.PublicKey(ctx, faucet.Address()); err != nil || !bytes.Equal(key, faucet.PublicKey()) {
			t.Errorf("PublicKey = %x, %v", key, err)
		}
	})

	t.Run("two programs share an account", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		other := dialNode(t, n)
		to := newcomer(t).Address()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				who := []*client.Client{c, other}[i%2]
				if _, err := who.Send(ctx, faucet, client.Tx{Msgs: payMsg(faucet.Address(), to, 1), Memo: strconv.Itoa(i)}); err != nil {
					t.Errorf("Send: %v", err)
				}
			})
		}
		wg.Wait()
		if got := clientBalance(t, c, to); got != 20 {
			t.Errorf("received %d, want 20", got)
		}
	})

	t.Run("unordered transactions overtake each other", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		before, err := c.Account(ctx, faucet.Address())
		if err != nil {
			t.Fatal(err)
		}
		to := newcomer(t).Address()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := c.Send(ctx, faucet, client.Tx{Msgs: payMsg(faucet.Address(), to, 1), Unordered: true}); err != nil {
					t.Errorf("Send: %v", err)
				}
			})
		}
		wg.Wait()
		after, err := c.Account(ctx, faucet.Address())
		if err != nil {
			t.Fatal(err)
		}
		if after.Sequence != before.Sequence || clientBalance(t, c, to) != 20 {
			t.Errorf("%d sequences used, %d received; want 0 and 20", after.Sequence-before.Sequence, clientBalance(t, c, to))
		}
	})

	t.Run("a granter pays the fee", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		poor := newcomer(t)
		allowance := &anypb.Any{TypeUrl: "/cosmos.feegrant.v1beta1.BasicAllowance"} // without limits
		_, err := c.Send(ctx, faucet, client.Tx{Msgs: append(
			payMsg(faucet.Address(), poor.Address(), 100),
			&feegrantv1beta1.MsgGrantAllowance{Granter: string(faucet.Address()), Grantee: string(poor.Address()), Allowance: allowance},
		)})
		if err != nil {
			t.Fatal(err)
		}
		spend := client.Tx{Msgs: payMsg(poor.Address(), faucet.Address(), 100)}
		if _, err := c.Send(ctx, poor, spend); !errors.Is(err, akash.ErrInsufficientFunds) {
			t.Errorf("without the granter: %v, want too little money", err)
		}
		spend.FeeGranter = faucet.Address()
		if _, err := c.Send(ctx, poor, spend); err != nil {
			t.Errorf("with the granter: %v", err)
		}
		spend.FeeGranter = tenant.Address()
		_, err = c.Send(ctx, poor, spend) // the SDK gives this one no code of its own
		if _, ok := errors.AsType[*akash.TxError](err); !ok {
			t.Errorf("with one that granted nothing: %v", err)
		}
	})

	t.Run("verdicts have their codes, from a simulation and from a block", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		closeNone := client.Tx{Msgs: []proto.Message{&deploymentv1beta4.MsgCloseDeployment{
			Id: akash.DeploymentID{Owner: tenant.Address(), DSeq: 99}.Wire(),
		}}}
		if _, err := c.Simulate(ctx, tenant.PublicKey(), closeNone); !errors.Is(err, akash.ErrDeploymentNotFound) {
			t.Errorf("Simulate = %v", err)
		}
		closeNone.Gas = 200_000
		r, err := c.Send(ctx, tenant, closeNone)
		if !errors.Is(err, akash.ErrDeploymentNotFound) || r.Height == 0 || croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("Send = %+v, %v", r, err)
		}
		if _, err := c.Send(ctx, newcomer(t), client.Tx{Msgs: payMsg(tenant.Address(), tenant.Address(), 1)}); croft.KindOf(err) != croft.KindNotFound {
			t.Errorf("an account that does not exist: %v", err)
		}
	})

	t.Run("its bytes are the SDK's", func(t *testing.T) { clientGolden(t, n, c, tenant) })
	t.Run("the whole of a lease is queried and watched", func(t *testing.T) { clientLease(t, n, c) })
}

// clientDeployment is a message with every non-nullable part set, as the SDK's
// encoders write them.
func clientDeployment(id akash.DeploymentID) *deploymentv1beta4.MsgCreateDeployment {
	value := func(n int) *resourcesv1beta4.ResourceValue {
		return &resourcesv1beta4.ResourceValue{Val: []byte(strconv.Itoa(n))}
	}
	return &deploymentv1beta4.MsgCreateDeployment{
		Id: id.Wire(), Hash: bytes.Repeat([]byte{7}, 32),
		Groups: []*deploymentv1beta4.GroupSpec{{
			Name: "home",
			Requirements: &attributesv1.PlacementRequirements{
				SignedBy:   &attributesv1.SignedBy{},
				Attributes: []*attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
			},
			Resources: []*deploymentv1beta4.ResourceUnit{{
				Resource: &resourcesv1beta4.Resources{
					Id: 1, Cpu: &resourcesv1beta4.CPU{Units: value(500)}, Memory: &resourcesv1beta4.Memory{Quantity: value(512 << 20)},
					Storage: []*resourcesv1beta4.Storage{{Name: "default", Quantity: value(1 << 30)}}, Gpu: &resourcesv1beta4.GPU{Units: value(0)},
					Endpoints: []*resourcesv1beta4.Endpoint{{}},
				},
				Count: 1, Price: akash.Price{Denom: "uact", Amount: akash.NewDec(100)}.Wire(),
			}},
		}},
		Deposit: clientDeposit("uact", 5_000_000),
	}
}

func clientDeposit(denom string, amount int) *depositv1.Deposit {
	return &depositv1.Deposit{
		Amount:  &basev1beta1.Coin{Denom: denom, Amount: strconv.Itoa(amount)},
		Sources: []depositv1.Source{depositv1.Source_balance},
	}
}

// clientGolden takes apart what the client signs, builds the same with the SDK
// and compares: the transaction, what is signed, and the signature.
func clientGolden(t *testing.T, n *chaintest.Node, c *client.Client, signer *account.Key) {
	chain, err := app.New(log.NewNopLogger(), dbm.NewMemDB(), app.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer chain.Close()
	me := signer.Address()
	order := akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: me, DSeq: 4}, GSeq: 1}, OSeq: 2}
	bid := akash.BidID{OrderID: order, Provider: me}
	pair, err := credential.NewCertificate(credential.CertificateConfig{Owner: me, NotBefore: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("only the bytes are wanted")
	for _, tc := range []struct {
		name string
		tx   client.Tx
	}{
		{"bank send", client.Tx{Msgs: payMsg(me, me, 5), Memo: "hello"}},
		{"bank multi send", client.Tx{Msgs: []proto.Message{&bankv1beta1.MsgMultiSend{
			Inputs:  []*bankv1beta1.Input{{Address: string(me), Coins: []*basev1beta1.Coin{{Denom: "uakt", Amount: "5"}}}},
			Outputs: []*bankv1beta1.Output{{Address: string(me), Coins: []*basev1beta1.Coin{{Denom: "uakt", Amount: "5"}}}},
		}}}},
		{"create deployment", client.Tx{Msgs: []proto.Message{clientDeployment(order.DeploymentID)}}},
		{"create bid", client.Tx{Msgs: []proto.Message{&marketv1beta5.MsgCreateBid{
			Id: bid.Wire(), Price: akash.Price{Denom: "uact", Amount: akash.NewDec(50)}.Wire(), Deposit: clientDeposit("uakt", 500_000),
		}}}},
		{"create and close lease", client.Tx{Msgs: []proto.Message{
			&marketv1beta5.MsgCreateLease{BidId: bid.Wire()}, &marketv1beta5.MsgCloseLease{Id: bid.Lease().Wire()},
		}}},
		{"create provider", client.Tx{Msgs: []proto.Message{&providerv1beta4.MsgCreateProvider{
			Owner: string(me), HostUri: "https://p.example.com:8443", Info: &providerv1beta4.Info{Email: "a@example.com"},
			Attributes: []*attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
		}}}},
		{"create certificate", client.Tx{Msgs: []proto.Message{&certv1.MsgCreateCertificate{Owner: string(me), Cert: pair.CertPEM, Pubkey: pair.PublicPEM}}}},
		{"fee granter", client.Tx{Msgs: payMsg(me, me, 5), FeeGranter: newcomer(t).Address()}},
		{"unordered", client.Tx{Msgs: payMsg(me, me, 5), Unordered: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var signed client.Signed
			tc.tx.Gas = 123_456
			tc.tx.OnSigned = func(_ context.Context, s client.Signed) error { signed = s; return stop }
			if _, err := c.Send(t.Context(), signer, tc.tx); !errors.Is(err, stop) {
				t.Fatal(err)
			}
			info, err := c.Account(t.Context(), me)
			if err != nil {
				t.Fatal(err)
			}
			decoded, err := chain.TxConfig().TxDecoder()(signed.Raw)
			if err != nil {
				t.Fatalf("the SDK does not read it: %v", err)
			}
			ours := decoded.(authsigning.Tx)
			b := chain.TxConfig().NewTxBuilder()
			if err := b.SetMsgs(ours.GetMsgs()...); err != nil {
				t.Fatal(err)
			}
			b.SetGasLimit(123_456)
			b.SetFeeAmount(sdk.NewCoins(sdk.NewInt64Coin("uakt", 3087))) // 3086.4 rounded up
			b.SetMemo(tc.tx.Memo)
			b.SetTimeoutHeight(uint64(signed.TimeoutHeight))
			if tc.tx.FeeGranter != "" {
				b.SetFeeGranter(sdk.MustAccAddressFromBech32(string(tc.tx.FeeGranter)))
			}
			if tc.tx.Unordered {
				b.SetUnordered(true)
				b.SetTimeoutTimestamp(signed.Expires)
			}
			key := &secp256k1.PubKey{Key: signer.PublicKey()}
			signature := func(raw []byte) signing.SignatureV2 {
				return signing.SignatureV2{
					PubKey: key, Sequence: signed.Sequence,
					Data: &signing.SingleSignatureData{SignMode: signing.SignMode_SIGN_MODE_DIRECT, Signature: raw},
				}
			}
			if err := b.SetSignatures(signature(nil)); err != nil {
				t.Fatal(err)
			}
			doc, err := authsigning.GetSignBytesAdapter(t.Context(), chain.TxConfig().SignModeHandler(), signing.SignMode_SIGN_MODE_DIRECT, authsigning.SignerData{
				Address: string(me), ChainID: n.ChainID(), AccountNumber: info.Number, Sequence: signed.Sequence, PubKey: key,
			}, b.GetTx())
			if err != nil {
				t.Fatal(err)
			}
			raw, err := signer.Sign(t.Context(), doc)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.SetSignatures(signature(raw)); err != nil {
				t.Fatal(err)
			}
			theirs, err := chain.TxConfig().TxEncoder()(b.GetTx())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(signed.Raw, theirs) {
				t.Errorf("our transaction\n%x\nthe SDK's\n%x", signed.Raw, theirs)
			}
		})
	}
}

// clientLease goes through a lease as tenant and provider, and compares what the
// queries and the events say.
func clientLease(t *testing.T, n *chaintest.Node, c *client.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tenant, provider := clientKey(t, n, "tenant"), clientKey(t, n, "provider")
	must := func(who *account.Key, msgs ...proto.Message) client.Result {
		t.Helper()
		r, err := c.Send(ctx, who, client.Tx{Msgs: msgs})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	deployment := akash.DeploymentID{Owner: tenant.Address(), DSeq: 1001}
	order := akash.OrderID{GroupID: akash.GroupID{DeploymentID: deployment, GSeq: 1}, OSeq: 1}
	bid := akash.BidID{OrderID: order, Provider: provider.Address()}
	price := akash.Price{Denom: "uact", Amount: akash.NewDec(50)}

	must(provider, &providerv1beta4.MsgCreateProvider{
		Owner: string(provider.Address()), HostUri: "https://p.example.com:8443", Info: &providerv1beta4.Info{},
		Attributes: []*attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
	})
	first := must(tenant, clientDeployment(deployment))
	must(provider, &marketv1beta5.MsgCreateBid{Id: bid.Wire(), Price: price.Wire(), Deposit: clientDeposit("uakt", 500_000)})
	must(tenant, &marketv1beta5.MsgCreateLease{BidId: bid.Wire()})
	lease, err := c.Lease(ctx, bid.Lease())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := akash.PriceOf(lease.GetLease().GetPrice()); err != nil || got.String() != price.String() {
		t.Errorf("price of the lease = %s, %v", got, err)
	}
	last := must(tenant, &deploymentv1beta4.MsgCloseDeployment{Id: deployment.Wire()})

	var seen []any
	for block, err := range c.Watch(ctx, first.Height) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range block.Events {
			if e.Err != nil {
				t.Errorf("event %s: %v", e.Type, e.Err)
			}
			if e.Value != nil {
				seen = append(seen, e.Value)
			}
		}
		if block.Height >= last.Height {
			break
		}
	}
	want := []any{
		akash.EventDeploymentCreated{ID: deployment, Hash: bytes.Repeat([]byte{7}, 32)},
		akash.EventOrderCreated{ID: order},
		akash.EventBidCreated{ID: bid, Price: price},
		akash.EventLeaseCreated{ID: bid.Lease(), Price: price},
		akash.EventDeploymentClosed{ID: deployment},
		akash.EventGroupClosed{ID: order.GroupID},
		akash.EventOrderClosed{ID: order},
		akash.EventBidClosed{ID: bid},
		akash.EventLeaseClosed{ID: bid.Lease(), Reason: 1},
	}
	if got, want := fmt.Sprintf("%+v", seen), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("events\n%s\nwant\n%s", got, want)
	}
	count := 0
	for l, err := range c.Leases(ctx, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if akash.LeaseIDOf(l.GetLease().GetId()) == bid.Lease() {
			count++
		}
	}
	if count != 1 {
		t.Errorf("the lease is listed %d times", count)
	}
	if _, err := c.Order(ctx, akash.OrderID{GroupID: order.GroupID, OSeq: 9}); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("an order that does not exist: %v", err)
	}
	for _, err := range c.Certificates(ctx, &certv1.CertificateFilter{Owner: string(tenant.Address())}) {
		if err != nil {
			t.Error(err)
		}
	}
	if info, err := c.Info(ctx); err != nil || len(info.GetSupportedVersions()) == 0 {
		t.Errorf("Info = %v, %v", info, err)
	}
}

// A node is stopped and started again, several times, under a client that sends
// and one that watches: every send is confirmed once, every block seen once.
func TestClientThroughRestarts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	n := chaintest.StartNode(t, nil)
	c := dialNode(t, n)
	faucet, to := clientKey(t, n, "faucet"), newcomer(t).Address()

	cfg := n.Config
	cfg.RPC, cfg.GRPC, cfg.REST = n.Addrs().RPC, n.Addrs().GRPC, n.Addrs().REST
	var running sync.WaitGroup
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	var heights []int64
	received := 0
	running.Go(func() {
		for block, err := range c.Watch(watching, 1) {
			if err != nil {
				t.Errorf("Watch: %v", err)
				return
			}
			heights = append(heights, block.Height)
			for _, e := range block.Events {
				if e.Type == "coin_received" && e.Get("receiver") == string(to) {
					received++
				}
			}
		}
	})
	var sending sync.WaitGroup
	for g := range 4 {
		sending.Go(func() {
			for i := range 15 {
				if _, err := c.Send(ctx, faucet, client.Tx{Msgs: payMsg(faucet.Address(), to, 1), Memo: fmt.Sprintf("%d.%d", g, i)}); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
		})
	}
	for range 3 {
		at := n.Height() + 5
		n.WaitHeight(t, at)
		if err := n.Stop(); err != nil {
			t.Fatalf("stop node: %v", err)
		}
		again, err := app.StartNode(t.Context(), cfg)
		if err != nil {
			t.Fatalf("start node again: %v", err)
		}
		n.Node = again
		t.Cleanup(func() { _ = again.Stop() })
	}
	sending.Wait()
	if got := clientBalance(t, c, to); got != 60 {
		t.Errorf("received %d, want 60", got)
	}
	n.WaitHeight(t, n.Height()+2)
	status, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for ; time.Now().Before(deadline); n.WaitHeight(t, n.Height()+1) {
		if s, err := c.Status(ctx); err == nil && s.Height > status.Height+10 {
			break
		}
	}
	stopWatching()
	running.Wait()
	for i, h := range heights {
		if h != int64(i)+1 {
			t.Fatalf("block %d is the %dth that Watch yielded", h, i+1)
		}
	}
	if int64(len(heights)) < status.Height {
		t.Errorf("Watch yielded %d blocks of %d", len(heights), status.Height)
	}
	if received != 60 {
		t.Errorf("Watch told of %d receipts, want 60", received)
	}
}
