package session

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/keystore"
)

func TestParseCoin(t *testing.T) {
	for _, tc := range []struct{ name, typed, want string }{
		{"the base unit is taken as it is", "5000000uakt", "5000000uakt"},
		{"AKT are a million uakt", "5akt", "5000000uakt"},
		{"a fraction of AKT is whole uakt", "0.5akt", "500000uakt"},
		{"thousandths have a name", "3mact", "3000uact"},
		{"ACT are a million uact", "1.000001act", "1000001uact"},
		{"other denoms are taken as they are", "7ibc/ABCD", "7ibc/ABCD"},
		{"half of the smallest unit is no coin", "0.5uakt", ""},
		{"a denom alone is no amount", "uakt", ""},
		{"an amount alone has no denom", "5", ""},
		{"debts are no deposits", "-5uakt", ""},
		{"spaces have no place", "5 uakt", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			coin, err := ParseCoin("--deposit", tc.typed)
			if tc.want == "" {
				if croft.KindOf(err) != croft.KindUsage {
					t.Errorf("ParseCoin(%q) = %v, %v; want a usage error", tc.typed, coin, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := coin.GetAmount() + coin.GetDenom(); got != tc.want {
				t.Errorf("ParseCoin(%q) = %s, want %s", tc.typed, got, tc.want)
			}
		})
	}
}

func TestParsePriceKeepsFractions(t *testing.T) {
	p, err := ParsePrice("--price", "0.25act")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.String(), "250000.000000000000000000uact"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, err := ParsePrice("--price", "0.5uact"); err != nil {
		t.Errorf("half a uact for a block was refused: %v", err)
	}
}

func TestParseCoinsSortsByDenom(t *testing.T) {
	coins, err := ParseCoins("--spend-limit", "5uakt,3uact")
	if err != nil {
		t.Fatal(err)
	}
	if len(coins) != 2 || coins[0].GetDenom() != "uact" || coins[1].GetDenom() != "uakt" {
		t.Errorf("got %v", coins)
	}
}

func TestDepositSources(t *testing.T) {
	d := DepositFlags{Amount: "5act", sources: "grant, balance"}
	deposit, err := d.Deposit(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := deposit.GetSources(); len(got) != 2 || got[0] != depositv1.Source_grant || got[1] != depositv1.Source_balance {
		t.Errorf("sources are %v", got)
	}
	for _, bad := range []string{"", "invalid", "grant,wallet"} {
		if _, err := (&DepositFlags{Amount: "5act", sources: bad}).Deposit(nil); croft.KindOf(err) != croft.KindUsage {
			t.Errorf("sources %q were taken: %v", bad, err)
		}
	}
}

// top is a command with one below it, as the real ones are made.
func top(format string) (*cobra.Command, *Options, *bytes.Buffer) {
	cmd, o := TopCommand("top", "", "", format)
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	return cmd, o, &out
}

func TestEnvironmentGivesFlags(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		args []string
		want string
	}{
		{"a flag that was typed wins", map[string]string{"CROFT_CHAIN_ID": "a", "AKASH_CHAIN_ID": "b"}, []string{"--chain-id", "c"}, "c"},
		{"our variable wins over Akash's", map[string]string{"CROFT_CHAIN_ID": "a", "AKASH_CHAIN_ID": "b"}, nil, "a"},
		{"Akash's variable does", map[string]string{"AKASH_CHAIN_ID": "b"}, nil, "b"},
		{"an empty variable says nothing", map[string]string{"CROFT_CHAIN_ID": "", "AKASH_CHAIN_ID": "b"}, nil, "b"},
		{"the home of the Akash command line is not ours", map[string]string{"AKASH_HOME": "/akash"}, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			cmd, o, _ := top("table")
			cmd.AddCommand(&cobra.Command{Use: "do", RunE: func(*cobra.Command, []string) error { return nil }})
			cmd.SetArgs(append([]string{"do"}, tc.args...))
			if err := cmd.Execute(); err != nil {
				t.Fatal(err)
			}
			if o.over.ChainID != tc.want || o.home != "" {
				t.Errorf("chain id is %q, want %q; home is %q", o.over.ChainID, tc.want, o.home)
			}
		})
	}
}

func TestTargetOfNode(t *testing.T) {
	o := &Options{home: t.TempDir(), over: Network{Node: "http://192.0.2.1:26657"}}
	_, n, err := o.Target()
	if err != nil {
		t.Fatal(err)
	}
	if n.GRPC != "192.0.2.1:9090" || n.ChainID != "" || n.REST != "" {
		t.Errorf("another node kept what belongs to the local chain: %+v", n)
	}
	o.over.Node = "somewhere"
	if _, _, err := o.Target(); croft.KindOf(err) != croft.KindUsage {
		t.Errorf("a node without a host was taken: %v", err)
	}
}

func TestFormsOfAnAnswer(t *testing.T) {
	table := Table{Head: []string{"name", "amount", "key"}, Wide: 1}
	table.Row("a", "5", "xyz")
	table.Row("long name", "", "")
	value := map[string]any{"list": []any{}, "number": "5", "text": "a: <b>", "none": nil, "yes": true}
	for form, want := range map[string]string{
		"table": "NAME       AMOUNT\na          5\nlong name\n",
		"wide":  "NAME       AMOUNT  KEY\na          5       xyz\nlong name\n",
		"json":  `{"list":[],"none":null,"number":"5","text":"a: <b>","yes":true}` + "\n",
		"yaml":  "list: []\nnone: null\nnumber: \"5\"\ntext: 'a: <b>'\nyes: true\n",
	} {
		cmd, o, out := top("table")
		o.format = form
		if err := o.Show(cmd, table, value); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s is\n%swant\n%s", form, out, want)
		}
	}
	cmd, o, out := top("table")
	o.format = "xml"
	if err := o.Show(cmd, table, value); croft.KindOf(err) != croft.KindUsage || out.Len() > 0 {
		t.Errorf("an unknown form gave %v and %q", err, out)
	}
}

func TestYAMLNeedsNoQuotesButForNumbers(t *testing.T) {
	raw := json.RawMessage(`{"lease":{"id":{"dseq":"7","gseq":1},"state":"active","closed_on":"0"},"next_key":null,"list":["a","true","1.0"]}`)
	got, err := yamlOf(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := "lease:\n  id:\n    dseq: \"7\"\n    gseq: 1\n  state: active\n  closed_on: \"0\"\nnext_key: null\nlist:\n  - a\n  - \"true\"\n  - \"1.0\"\n"
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestFindKey(t *testing.T) {
	store, err := keystore.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := find(store, ""); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("a key was found in an empty store: %v", err)
	}
	alice, _, err := store.Add("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"", "alice", string(alice.Address)} {
		if got, err := find(store, from); err != nil || got.Name != "alice" {
			t.Errorf("find(%q) = %v, %v; want alice", from, got.Name, err)
		}
	}
	if _, _, err := store.Add("bob", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := find(store, ""); croft.KindOf(err) != croft.KindUsage || !strings.Contains(err.Error(), "alice, bob") {
		t.Errorf("of two keys one was taken, or they were not named: %v", err)
	}
	if _, err := find(store, "akash1unknown"); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("an unknown address was found: %v", err)
	}
}

func TestKeyAsksOnlyToSign(t *testing.T) {
	o := &Options{home: t.TempDir()}
	store, err := o.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.Add("alice", "correct horse"); err != nil {
		t.Fatal(err)
	}
	cmd := &cobra.Command{}
	cmd.SetIn(strings.NewReader(""))
	key, err := o.Signer(cmd, "alice")
	if err != nil {
		t.Fatalf("a key could not be named without its passphrase: %v", err)
	}
	if _, err := key.Sign(context.Background(), []byte("x")); croft.KindOf(err) != croft.KindUsage {
		t.Errorf("an encrypted key signed without passphrase: %v", err)
	}
	t.Setenv(PassphraseVariable, "correct horse")
	sig, err := key.Sign(context.Background(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := key.PublicKey().Verify([]byte("x"), sig); err != nil {
		t.Error(err)
	}
}

func TestAnswerOfTheChain(t *testing.T) {
	got, err := encode(Response(client.Result{Height: 7, GasUsed: 5, Events: []akash.Event{{Type: "tx", Attributes: []akash.Attribute{{Key: "fee", Value: "1uakt"}}}}}))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"height":"7","txhash":"` + strings.Repeat("0", 64) + `","codespace":"","code":0,"data":"","raw_log":"","logs":[],"info":"","gas_wanted":"0","gas_used":"5",` +
		`"tx":null,"timestamp":"","events":[{"type":"tx","attributes":[{"key":"fee","value":"1uakt","index":true}]}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestFeesAreFixedByTheFlag(t *testing.T) {
	for _, tc := range []struct{ name, fees, want string }{
		{"none typed: the price of gas decides", "", "default"},
		{"an amount is the fee", "0.005akt", "5000uakt"},
		{"nothing is no fee", "0uakt", ""},
		{"a fraction of the smallest unit is refused", "0.5uakt", "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			call := &TxCall{TxOptions: &TxOptions{gas: "auto", fees: tc.fees}}
			tx, err := call.tx(nil)
			got := "default"
			if tx.Fee != nil {
				got = ""
			}
			for _, coin := range tx.Fee {
				got += coin.GetAmount() + coin.GetDenom()
			}
			if err != nil && croft.KindOf(err) == croft.KindUsage {
				got = "refused"
			}
			if got != tc.want {
				t.Errorf("fee = %s, %v, want %s", got, err, tc.want)
			}
		})
	}
}
