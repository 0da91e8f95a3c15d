//go:build integration

package outside

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/chain/tenant/gatewaystub"
)

const repository = "../../.."

// TestTheArticleIsDeployedUnchanged plays a box that has joined by what Network
// says, all but what runs on it: a stub listens where its gateway would.
func TestTheArticleIsDeployedUnchanged(t *testing.T) {
	chaind := filepath.Join(t.TempDir(), "croft-chaind")
	if err := Build(t.Context(), repository, "./cmd/croft-chaind", chaind); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{Chaind: chaind, Chain: ChainConfig{BlockTime: 200 * time.Millisecond}})

	// The box has an account before there is a chain.
	words, err := account.NewMnemonic()
	if err != nil {
		t.Fatal(err)
	}
	key, err := words.Key(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Chain.Make(t.Context(), DeployAudit(key.Address())); err != nil {
		t.Fatal(err)
	}
	if err := w.Chain.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	network := w.Network(FromHost)
	c, err := client.Dial(t.Context(), client.Config{ChainID: network.Chain.ID, GRPC: network.Chain.GRPC, RPC: network.Chain.RPC, Poll: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	askFaucet(t, network.Chain.Faucet, key.Address())
	signed := 0
	for record, err := range c.AuditedAttributes(t.Context(), key.Address(), Auditor) {
		if err != nil {
			t.Fatal(err)
		}
		if a := record.GetAttributes(); len(a) != 1 || a[0].GetKey() != "organization" || a[0].GetValue() != "ovrclk.com" {
			t.Errorf("record is %v", a)
		}
		signed++
	}
	if signed != 1 {
		t.Errorf("%d records by the auditor, want 1", signed)
	}

	site := greeter(t)
	gateway, err := gatewaystub.Start(gatewaystub.Config{Provider: key.Address(), Chain: c}) // its certificate is believed for its key, not its name
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	inner, err := url.Parse(gateway.URI())
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, w, inner.Host, site)
	b.await(t, up)
	host := string(b.id) + "." + w.Relay.Domain()
	_, port, err := net.SplitHostPort(network.Relays[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	register(t, c, key, gateway.Pair(), "https://gateway."+host+":"+port, network.Attributes)
	bidding, end := context.WithCancel(t.Context())
	var bidder sync.WaitGroup
	bidder.Go(func() { bid(bidding, t, c, key) })
	defer bidder.Wait()
	defer end()

	file, err := os.ReadFile(filepath.Join(repository, DeployFile))
	if err != nil {
		t.Fatal(err)
	}
	me, err := w.Tenant(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer me.Leave()
	record, err := me.Run(t.Context(), file, func(p tenant.Progress) { t.Log(p.Step) })
	if err != nil {
		t.Fatal(err)
	}
	lease := record.LeaseIDs()[0]
	if record.Stage != tenant.Answering || lease.Provider != key.Address() {
		t.Errorf("record is %+v", record)
	}
	if status, err := me.Status(t.Context(), lease); err != nil || !status.Ready() {
		t.Errorf("status is %+v, %v", status, err)
	}
	if got, err := me.Shell(t.Context(), lease, "web", "echo", "hello"); err != nil || got != "hello\n" {
		t.Errorf("shell: %q, %v", got, err)
	}
	gateway.Log("web-1", "a line")
	if lines, err := me.Logs(t.Context(), lease); err != nil || len(lines) != 1 || lines[0].Message != "a line" {
		t.Errorf("logs: %v, %v", lines, err)
	}
	gateway.Event(gatewayclient.Event{Type: "Normal", Reason: "Started", Object: gatewayclient.EventObject{Kind: "Pod", Name: "web-1"}})
	if events, err := me.Events(t.Context(), lease); err != nil || len(events) != 1 || events[0].Reason != "Started" {
		t.Errorf("events: %v, %v", events, err)
	}
	if got, err := me.Get(t.Context(), "http://web."+host+"/"); err != nil || got != "hello at web."+host {
		t.Errorf("page: %q, %v", got, err)
	}

	// A chain that was away goes on where it was.
	before, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, stop := range map[string]func() error{"stopped": w.Chain.Stop, "killed": func() error { w.Chain.Kill(); return nil }} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if conn, err := net.Dial("tcp", strings.TrimPrefix(w.Chain.RPC(), "http://")); err == nil {
			conn.Close()
			t.Errorf("a %s chain still answers", name)
		}
		if err := w.Chain.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		after, err := c.Status(t.Context())
		if err != nil || after.Height < before.Height {
			t.Errorf("%s: height %d, before %d; %v", name, after.Height, before.Height, err)
		}
	}
	if _, err := me.Close(t.Context(), record.ID(), nil); err != nil {
		t.Errorf("close: %v", err)
	}
	end()
	bidder.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(w.Chain.REST(), "http://")); err == nil {
		conn.Close()
		t.Error("after Close the chain still runs")
	}
}

func TestTheTenantsProgramIsInTheRegistry(t *testing.T) {
	w := newWorld(t, Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err := w.PutWeb(t.Context(), repository); err != nil {
		t.Fatal(err)
	}
	if status, raw := fetch(t, w.Registry, "/v2/"+DeployImage+"/manifests/latest", nil); status != http.StatusOK || !strings.Contains(string(raw), `"layers"`) {
		t.Errorf("answer is %d %s", status, raw)
	}
}

func askFaucet(t *testing.T, address string, who account.Address) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, strings.NewReader(fmt.Sprintf(`{"address":%q}`, who)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the faucet answers %s: %s %v", resp.Status, body, err)
	}
}

func register(t *testing.T, c *client.Client, key *account.Key, pair credential.Pair, uri string, attributes map[string]string) {
	t.Helper()
	create := &providerv1beta4.MsgCreateProvider{Owner: string(key.Address()), HostUri: uri}
	for k, v := range attributes {
		create.Attributes = append(create.Attributes, &attributesv1.Attribute{Key: k, Value: v})
	}
	cert := &certv1.MsgCreateCertificate{Owner: string(key.Address()), Cert: pair.CertPEM, Pubkey: pair.PublicPEM}
	if _, err := c.Send(t.Context(), key, client.Tx{Msgs: []proto.Message{create, cert}}); err != nil {
		t.Fatal(err)
	}
}

// bid takes the first order there is, at half its price. A node may show an order
// a moment before it takes bids on it: then the next try does.
func bid(ctx context.Context, t *testing.T, c *client.Client, key *account.Key) {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		for order, err := range c.Orders(ctx, &marketv1beta5.OrderFilters{State: "open"}) {
			if err != nil {
				break // the node is away
			}
			price, err := akash.PriceOf(order.GetSpec().GetResources()[0].GetPrice())
			if err != nil {
				t.Error(err)
				return
			}
			if price.Amount, err = akash.ParseDec("500"); err != nil {
				t.Error(err)
				return
			}
			msg := &marketv1beta5.MsgCreateBid{
				Id: akash.BidID{OrderID: akash.OrderIDOf(order.GetId()), Provider: key.Address()}.Wire(), Price: price.Wire(),
				Deposit: &depositv1.Deposit{
					Amount: &basev1beta1.Coin{Denom: "uakt", Amount: "500000"}, Sources: []depositv1.Source{depositv1.Source_balance},
				},
			}
			for _, unit := range order.GetSpec().GetResources() {
				msg.ResourcesOffer = append(msg.ResourcesOffer, &marketv1beta5.ResourceOffer{Resources: unit.GetResource(), Count: unit.GetCount()})
			}
			if _, err := c.Send(ctx, key, client.Tx{Msgs: []proto.Message{msg}}); err == nil {
				return
			}
			break
		}
	}
}
