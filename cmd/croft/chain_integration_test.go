//go:build integration

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/chain/tenant/gatewaystub"
)

// TestChainScripts runs the manual of the tenant's commands against a real
// chain, each script on its own, with a provider whose gateway is a stub. The
// scripts know, besides what runScripts has:
//
//	chain stop|start          end the node, begin it again on the same ports
//	bids on|off               whether the provider bids on new and waiting orders
//	provider register         put provider, gateway and certificate on the chain
//	gateway log NAME TEXT     let a service write a line
//	gateway event NAME TEXT   let something happen to a service
//	gateway drop              break the streams
//	gateway fail STATUS TEXT  answer the next manifest so
//	until REGEXP COMMAND...   repeat a command until its output matches
//	dseq                      set $DSEQ to the number of the first deployment
//	$TENANT, $PROVIDER, $FLEET, $GATEWAY
func TestChainScripts(t *testing.T) {
	var mu sync.Mutex
	worlds := map[string]*world{} // by working directory
	of := func(ts *testscript.TestScript) *world {
		mu.Lock()
		defer mu.Unlock()
		return worlds[ts.Getenv("WORK")]
	}
	runScripts(t, "testdata/chain", func(p *testscript.Params) {
		setup := p.Setup
		p.Setup = func(env *testscript.Env) error {
			w, err := newWorld(t, env)
			if err != nil {
				return err
			}
			mu.Lock()
			worlds[env.WorkDir] = w
			mu.Unlock()
			return setup(env)
		}
		p.Cmds["chain"] = func(ts *testscript.TestScript, _ bool, args []string) {
			switch strings.Join(args, " ") {
			case "stop":
				ts.Check(of(ts).stop())
			case "start":
				ts.Check(of(ts).start())
			default:
				ts.Fatalf("usage: chain stop|start")
			}
		}
		p.Cmds["bids"] = func(ts *testscript.TestScript, _ bool, args []string) { of(ts).setBidding(args[0] == "on") }
		p.Cmds["provider"] = func(ts *testscript.TestScript, _ bool, _ []string) { ts.Check(of(ts).register(ts)) }
		p.Cmds["gateway"] = func(ts *testscript.TestScript, _ bool, args []string) {
			switch g := of(ts).gateway; args[0] {
			case "log":
				g.Log(args[1], args[2])
			case "event":
				g.Event(gatewayclient.Event{Type: "Normal", Reason: "Started", Note: args[2], Object: gatewayclient.EventObject{Kind: "Pod", Name: args[1]}})
			case "drop":
				g.DropStreams()
			case "fail":
				var status int
				_, err := fmt.Sscan(args[1], &status)
				ts.Check(err)
				g.Fail(gatewaystub.Fault{Path: "/manifest", Status: status, Text: args[2]})
			default:
				ts.Fatalf("gateway %s is not known", args[0])
			}
		}
		p.Cmds["until"] = until
		p.Cmds["dseq"] = dseq
	})
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			ts.Fatalf("%q did not come: %v\n%s%s", args[0], err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
	}
}

func dseq(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Exec("croft", "tenant", "ls", "-o", "json"))
	var all []struct {
		DSeq string `json:"dseq"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &all))
	if len(all) == 0 {
		ts.Fatalf("there is no deployment")
	}
	ts.Setenv("DSEQ", all[0].DSeq)
}

// world is a chain and a provider on it.
type world struct {
	ctx     context.Context
	cfg     app.NodeConfig
	key     *account.Key // of the provider
	c       *client.Client
	gateway *gatewaystub.Server
	bidder  sync.WaitGroup

	mu      sync.Mutex
	node    *app.Node // guarded by mu; nil while stopped
	bidding bool      // guarded by mu
}

// newWorld starts a chain for one script and tells the script where it is.
func newWorld(t *testing.T, env *testscript.Env) (*world, error) {
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{ctx: ctx, bidding: true, cfg: app.NodeConfig{
		Home: app.Home(filepath.Join(env.WorkDir, "node")), Log: slog.New(slog.DiscardHandler),
		RPC: "127.0.0.1:0", GRPC: "127.0.0.1:0", REST: "127.0.0.1:0", BlockTime: 100 * time.Millisecond,
	}}
	env.Defer(func() {
		cancel()
		w.bidder.Wait()
		if err := w.stop(); err != nil {
			t.Errorf("stop node: %v", err)
		}
	})
	if err := w.start(); err != nil {
		return nil, err
	}
	accounts, err := w.cfg.Home.Accounts()
	if err != nil {
		return nil, err
	}
	words, err := account.ParseMnemonic(accounts[app.ProviderAccount].Mnemonic)
	if err != nil {
		return nil, err
	}
	if w.key, err = words.Key(0, 0); err != nil {
		return nil, err
	}
	dial := client.Config{GRPC: w.cfg.GRPC, RPC: "http://" + w.cfg.RPC, Poll: 50 * time.Millisecond}
	if w.c, err = client.Dial(ctx, dial); err != nil {
		return nil, err
	}
	env.Defer(func() { w.c.Close() })
	if w.gateway, err = gatewaystub.Start(gatewaystub.Config{Provider: w.key.Address(), Chain: w.c}); err != nil {
		return nil, err
	}
	env.Defer(w.gateway.Close)

	env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
	env.Setenv("ACCOUNTS", filepath.Join(env.WorkDir, "node", "accounts.json"))
	env.Setenv("GATEWAY", w.gateway.URI())
	env.Setenv("TENANT", accounts[app.TenantAccount].Address)
	env.Setenv("PROVIDER", accounts[app.ProviderAccount].Address)
	env.Setenv("FLEET", accounts["fleet"].Address)
	settings, err := json.Marshal(map[string]any{"network": "test", "networks": map[string]any{"test": map[string]string{
		"chain_id": w.c.ChainID(), "node": "http://" + w.cfg.RPC, "grpc": w.cfg.GRPC, "rest": "http://" + w.cfg.REST,
	}}})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(env.WorkDir, "config", "croft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return w, os.WriteFile(filepath.Join(dir, "settings.json"), settings, 0o600)
}

func (w *world) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	node, err := app.StartNode(w.ctx, w.cfg)
	if err != nil {
		return err
	}
	at := node.Addrs()
	w.node, w.cfg.RPC, w.cfg.GRPC, w.cfg.REST = node, at.RPC, at.GRPC, at.REST // the same after a restart
	return nil
}

func (w *world) stop() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.node == nil {
		return nil
	}
	err := w.node.Stop()
	w.node = nil
	return err
}

func (w *world) setBidding(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bidding = on
}

// register publishes the gateway's certificate, registers the provider by the
// command line, and begins to bid.
func (w *world) register(ts *testscript.TestScript) error {
	pair := w.gateway.Pair()
	if _, err := w.c.Send(w.ctx, w.key, client.Tx{Msgs: []proto.Message{
		&certv1.MsgCreateCertificate{Owner: string(w.key.Address()), Cert: pair.CertPEM, Pubkey: pair.PublicPEM},
	}}); err != nil {
		return err
	}
	file := ts.MkAbs("provider.yml")
	text := "host: " + w.gateway.URI() + "\nattributes:\n  - {key: region, value: eu-west}\n  - {key: organization, value: ovrclk.com}\ninfo: {email: a@example.com, website: \"https://example.com\"}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	if err := ts.Exec("croft", "tx", "provider", "create", file, "--from", "provider", "-y"); err != nil {
		return err
	}
	w.bidder.Go(w.bid)
	return nil
}

// bid offers half of what each open order would pay, as long as the world lasts.
func (w *world) bid() {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	done := map[akash.OrderID]bool{}
	for {
		select {
		case <-ticker.C:
		case <-w.ctx.Done():
			return
		}
		w.mu.Lock()
		on := w.bidding && w.node != nil
		w.mu.Unlock()
		if !on {
			continue
		}
		for order, err := range w.c.Orders(w.ctx, &marketv1beta5.OrderFilters{State: "open"}) {
			if err != nil {
				break // the node is away; the next look sees the order
			}
			id := akash.OrderIDOf(order.GetId())
			if done[id] {
				continue
			}
			if w.offer(id, order) == nil {
				done[id] = true
			}
		}
	}
}

func (w *world) offer(id akash.OrderID, order *marketv1beta5.Order) error {
	price, err := akash.PriceOf(order.GetSpec().GetResources()[0].GetPrice())
	if err != nil {
		return err
	}
	half, err := akash.ParseDec(fmt.Sprintf("%d", max(price.Amount.Int().Int64()/2, 1)))
	if err != nil {
		return err
	}
	price.Amount = half
	msg := &marketv1beta5.MsgCreateBid{
		Id: akash.BidID{OrderID: id, Provider: w.key.Address()}.Wire(), Price: price.Wire(),
		Deposit: &depositv1.Deposit{
			Amount: &basev1beta1.Coin{Denom: "uakt", Amount: "500000"}, Sources: []depositv1.Source{depositv1.Source_balance},
		},
	}
	for _, unit := range order.GetSpec().GetResources() {
		msg.ResourcesOffer = append(msg.ResourcesOffer, &marketv1beta5.ResourceOffer{Resources: unit.GetResource(), Count: unit.GetCount()})
	}
	_, err = w.c.Send(w.ctx, w.key, client.Tx{Msgs: []proto.Message{msg}})
	return err
}
