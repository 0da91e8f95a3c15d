package chaintest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	gogodeployment "github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"
	gogomarket "github.com/croft-cloud/croft/chain/gogo/marketv1beta5"
	gogoprovider "github.com/croft-cloud/croft/chain/gogo/providerv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
)

// BenchmarkThroughput compares whole lives of a lease (create, bid, lease,
// withdraw, close: five transactions of two accounts) with plain sends, through
// real blocks of one node, with the light client and 500 at a time.
func BenchmarkThroughput(b *testing.B) {
	node := chaintest.StartNode(b, func(c *app.NodeConfig) { c.BlockTime = 500 * time.Millisecond })
	c, err := client.Dial(b.Context(), client.Config{GRPC: node.Addrs().GRPC, RPC: "http://" + node.Addrs().RPC, Poll: 100 * time.Millisecond, MaxPending: 1000})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	key := func(name string) *account.Key {
		words, err := account.ParseMnemonic(node.Accounts[name].Mnemonic)
		if err != nil {
			b.Fatal(err)
		}
		k, err := words.Key(0, 0)
		if err != nil {
			b.Fatal(err)
		}
		return k
	}
	tenant, provider := key(chaintest.Tenant), key(chaintest.Provider)
	send := func(ctx context.Context, by *account.Key, msg proto.Message) error {
		_, err := c.Send(ctx, by, client.Tx{Msgs: []proto.Message{msg}, Gas: 400_000})
		return err
	}
	text, err := os.ReadFile("../sdl/testdata/valid/smallest.yaml")
	if err != nil {
		b.Fatal(err)
	}
	file, err := sdl.Parse(text)
	if err != nil {
		b.Fatal(err)
	}
	hash := file.Hash()
	groups := file.Groups()
	price := groups[0].Resources[0].Price
	if err := send(b.Context(), provider, &providerv1beta4.MsgCreateProvider{
		Owner: string(provider.Address()), HostUri: "https://box.example:8443", Info: &providerv1beta4.Info{}, Attributes: groups[0].Requirements.Attributes,
	}); err != nil {
		b.Fatal(err)
	}
	deposit := func(amount string) *depositv1.Deposit {
		return &depositv1.Deposit{Amount: &basev1beta1.Coin{Denom: price.Denom, Amount: amount}, Sources: []depositv1.Source{depositv1.Source_balance}}
	}
	var dseq atomic.Uint64
	life := func(ctx context.Context) error {
		n := dseq.Add(1)
		id := akash.DeploymentID{Owner: tenant.Address(), DSeq: n}
		bid := akash.BidID{OrderID: akash.OrderID{GroupID: akash.GroupID{DeploymentID: id, GSeq: 1}, OSeq: 1}, Provider: provider.Address()}
		for _, step := range []struct {
			by  *account.Key
			msg proto.Message
		}{
			{tenant, &deploymentv1beta4.MsgCreateDeployment{Id: id.Wire(), Groups: groups, Hash: hash[:], Deposit: deposit("500000")}},
			{provider, &marketv1beta5.MsgCreateBid{Id: bid.Wire(), Price: price, Deposit: deposit("500000")}},
			{tenant, &marketv1beta5.MsgCreateLease{BidId: bid.Wire()}},
			{provider, &marketv1beta5.MsgWithdrawLease{Id: bid.Lease().Wire()}},
			{tenant, &deploymentv1beta4.MsgCloseDeployment{Id: id.Wire()}},
		} {
			if err := send(ctx, step.by, step.msg); err != nil {
				return fmt.Errorf("%T: %w", step.msg, err)
			}
		}
		return nil
	}
	me := string(tenant.Address())
	pay := func(ctx context.Context) error {
		return send(ctx, tenant, &bankv1beta1.MsgSend{FromAddress: me, ToAddress: me, Amount: []*basev1beta1.Coin{{Denom: "uakt", Amount: "1"}}})
	}
	for _, bench := range []struct {
		name string
		do   func(context.Context) error
	}{{"sends", pay}, {"lives", life}} {
		b.Run(bench.name, func(b *testing.B) {
			group, ctx := errgroup.WithContext(b.Context())
			group.SetLimit(500)
			for range b.N {
				group.Go(func() error { return bench.do(ctx) })
			}
			if err := group.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), bench.name+"/s")
		})
	}
}

// BenchmarkEmptyBlock measures a block without transactions beside few and many
// open leases. Settlement is lazy, so it must not grow.
func BenchmarkEmptyBlock(b *testing.B) {
	chaintest.NewApp(b, chaintest.Config{}) // the first one in a process pays for its descriptors
	for _, leases := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("leases=%d", leases), func(b *testing.B) {
			a := chaintest.NewApp(b, chaintest.Config{})
			a.Check = false
			tenant, provider := chaintest.NewAccount(chaintest.Tenant), chaintest.NewAccount(chaintest.Provider)
			a.MustDeliver(provider, &gogoprovider.MsgCreateProvider{
				Owner: provider.Address(), HostURI: "https://box.example:8443", Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}},
			})
			deliver := func(by chaintest.Account, msgs []sdk.Msg) {
				raw := a.Sign(by, chaintest.TxConfig{Gas: 90_000_000}, msgs...)
				if err := a.NextBlock(raw)[0].Err(); err != nil {
					b.Fatal(err)
				}
			}
			for begin := 1; begin <= leases; begin += 100 {
				var create, bid, accept []sdk.Msg
				for dseq := uint64(begin); dseq < uint64(min(begin+100, leases+1)); dseq++ {
					m := &market{tenant: tenant, near: provider}
					id := marketv1.BidID{Owner: tenant.Address(), DSeq: dseq, GSeq: 1, OSeq: 1, Provider: provider.Address()}
					create = append(create, &gogodeployment.MsgCreateDeployment{
						ID: m.deployment(dseq), Groups: []gogodeployment.GroupSpec{group("home", 100)}, Hash: hash("one"), Deposit: deposit(bond),
					})
					bid = append(bid, &gogomarket.MsgCreateBid{ID: id, Price: sdk.NewDecCoin(denom, math.NewInt(1)), Deposit: deposit(bond)})
					accept = append(accept, &gogomarket.MsgCreateLease{BidID: id})
				}
				deliver(tenant, create)
				deliver(provider, bid)
				deliver(tenant, accept)
			}
			for b.Loop() {
				a.NextBlock()
			}
		})
	}
}

// BenchmarkClient compares the smallest program on the light client with the
// same on cosmos-sdk: both send one coin and ask for the balance. Bytes are of
// the binary without symbols, MB of the process at its largest.
func BenchmarkClient(b *testing.B) {
	node := chaintest.StartNode(b, nil)
	for _, name := range []string{"light", "sdk"} {
		b.Run(name, func(b *testing.B) {
			program := filepath.Join(b.TempDir(), name)
			build := exec.CommandContext(b.Context(), "go", "build", "-ldflags=-s -w", "-o", program, "./clients/"+name)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			info, err := os.Stat(program)
			if err != nil {
				b.Fatal(err)
			}
			var most float64
			for b.Loop() {
				run := exec.CommandContext(b.Context(), program, node.Addrs().GRPC, "http://"+node.Addrs().RPC, node.ChainID())
				run.Env = append(os.Environ(), "MNEMONIC="+node.Accounts[chaintest.Tenant].Mnemonic)
				run.Stderr = os.Stderr
				in, err := run.StdinPipe()
				if err != nil {
					b.Fatal(err)
				}
				out, err := run.StdoutPipe()
				if err != nil {
					b.Fatal(err)
				}
				if err := run.Start(); err != nil {
					b.Fatal(err)
				}
				if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
					b.Fatalf("%s answers no balance: %v", name, err)
				}
				most = max(most, peakMB(b, run.Process.Pid))
				in.Close()
				if err := run.Wait(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(info.Size())/1e6, "binary-MB")
			b.ReportMetric(most, "RSS-MB")
		})
	}
}

// peakMB is how much memory a process has had resident at most.
func peakMB(b *testing.B, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kB float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kB); n == 1 {
			return kB / 1024
		}
	}
	b.Fatal("the process has no VmHWM")
	return 0
}
