package app_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
)

func TestNode(t *testing.T) {
	n := chaintest.StartNode(t, nil)

	t.Run("the accounts file is for its owner only", func(t *testing.T) {
		info, err := os.Stat(string(n.Config.Home) + "/accounts.json")
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode is %v", info.Mode())
		}
	})
	t.Run("a second node in the home is refused, and says why", func(t *testing.T) {
		cfg := n.Config
		cfg.RPC, cfg.GRPC, cfg.REST, cfg.P2P = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		_, err := app.StartNode(t.Context(), cfg)
		if croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "another croft-chaind uses the home") {
			t.Errorf("second start = %q, %v", croft.KindOf(err), err)
		}
	})
	t.Run("an address without port is a usage error, and makes no home", func(t *testing.T) {
		cfg := n.Config
		cfg.Home, cfg.RPC = app.Home(filepath.Join(t.TempDir(), "new")), "bogus"
		_, err := app.StartNode(t.Context(), cfg)
		if croft.KindOf(err) != croft.KindUsage || !strings.Contains(err.Error(), "write host:port") {
			t.Errorf("start = %q, %v", croft.KindOf(err), err)
		}
		if _, err := os.Stat(string(cfg.Home)); err == nil {
			t.Error("there is a home")
		}
	})
	t.Run("the node is healthy", func(t *testing.T) {
		if got := get(t, "http://"+n.Addrs().REST+"/healthz"); !strings.Contains(got, `"ready":true`) {
			t.Errorf("healthz: %s", got)
		}
	})
	t.Run("metrics name the height", func(t *testing.T) {
		if got := get(t, "http://"+n.Addrs().REST+"/metrics"); !strings.Contains(got, `croft_chain_height{chain_id="croft-local"}`) {
			t.Errorf("metrics: %.2000s", got)
		}
	})
	t.Run("the method akash answers as Akash's command line expects, by GET and by POST", func(t *testing.T) {
		want := `{"client_info":{"api_version":"v1beta3"},"supported_versions":[{"api_version":"v1beta4","modules":[` +
			`{"module":"audit","version":"v1"},{"module":"cert","version":"v1"},{"module":"deployment","version":"v1beta4"},` +
			`{"module":"escrow","version":"v1"},{"module":"market","version":"v1beta5"},{"module":"provider","version":"v1beta4"}],"features":null},`
		if got := get(t, "http://"+n.Addrs().RPC+"/akash"); !strings.Contains(got, want) || !strings.Contains(got, `"chain_id":"croft-local"`) {
			t.Errorf("GET /akash: %s", got)
		}
		got := post(t, "http://"+n.Addrs().RPC, `{"jsonrpc":"2.0","id":1,"method":"akash","params":{}}`)
		if !strings.Contains(got, want) {
			t.Errorf("POST akash: %s", got)
		}
	})
	t.Run("discovery answers over REST", func(t *testing.T) {
		if got := get(t, "http://"+n.Addrs().REST+"/akash/discovery/v1/info"); !strings.Contains(got, `"min_client_version":""`) {
			t.Errorf("info: %s", got)
		}
	})
	t.Run("the faucet gives once, and then asks to wait", func(t *testing.T) {
		poor := chaintest.NewAccount("poor").Address()
		var gift struct{ Coins string }
		if err := json.Unmarshal([]byte(post(t, "http://"+n.Addrs().REST+"/faucet", `{"address":"`+poor+`"}`)), &gift); err != nil {
			t.Fatal(err)
		}
		if gift.Coins != "100000000uact,100000000uakt" {
			t.Errorf("gift is %q", gift.Coins)
		}
		conn, err := grpc.NewClient(n.Addrs().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		balance, err := banktypes.NewQueryClient(conn).Balance(t.Context(), &banktypes.QueryBalanceRequest{Address: poor, Denom: app.CreditDenom})
		if err != nil {
			t.Fatal(err)
		}
		if balance.Balance.Amount.Int64() != 100_000_000 {
			t.Errorf("balance is %s", balance.Balance)
		}
		if got := post(t, "http://"+n.Addrs().REST+"/faucet", `{"address":"`+poor+`"}`); !strings.Contains(got, "ask again") {
			t.Errorf("second gift: %s", got)
		}
	})
	t.Run("block results of an empty block can be read", func(t *testing.T) {
		if got := get(t, "http://"+n.Addrs().RPC+"/block_results?height=1"); !strings.Contains(got, `"height":"1"`) {
			t.Errorf("block_results: %.500s", got)
		}
	})
}

func TestNodeGoesOnAfterRestart(t *testing.T) {
	n := chaintest.StartNode(t, nil)
	n.WaitHeight(t, 3)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	height := n.Height()
	again := chaintest.StartNode(t, func(c *app.NodeConfig) { c.Home = n.Config.Home })
	again.WaitHeight(t, height+1)
	if again.Accounts[app.TenantAccount] != n.Accounts[app.TenantAccount] {
		t.Error("the restarted chain has other accounts")
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	return do(t, http.MethodGet, url, "")
}

func post(t *testing.T, url, body string) string {
	t.Helper()
	return do(t, http.MethodPost, url, body)
}

func do(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
