package tenantcmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newBalanceCommand(o *session.Options) *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use: "balance [ACCOUNT]", Short: "Show what an account can spend", Args: session.Args(0, 1),
		Example: "  croft tenant balance\n  croft tenant balance akash1…",
		RunE: func(cmd *cobra.Command, args []string) error {
			who := ""
			if len(args) > 0 {
				who = args[0]
			}
			address, err := o.Self(who, from)
			if err != nil {
				return err
			}
			c, err := o.Dial(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			t := session.Table{Head: []string{"amount", "denom", ""}, None: string(address) + " has nothing on this chain yet"}
			resp := &bankv1beta1.QueryAllBalancesResponse{}
			for coin, err := range c.Balances(cmd.Context(), address) {
				if err != nil {
					return err
				}
				resp.Balances = append(resp.Balances, coin)
				t.Row(coin.GetAmount(), coin.GetDenom(), inLargeUnit(coin.GetAmount(), coin.GetDenom()))
			}
			coins, err := session.List(resp.GetBalances())
			if err != nil {
				return err
			}
			return o.Show(cmd, t, map[string]any{"address": address, "balances": coins})
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "key whose account it is, by name or address (default: the only one)")
	return cmd
}

// inLargeUnit says 5000000 uakt as "5 AKT"; other denoms have no other name.
func inLargeUnit(amount, denom string) string {
	name, ok := map[string]string{"uakt": "AKT", "uact": "ACT"}[denom]
	if !ok {
		return ""
	}
	d, err := akash.ParseDec(amount)
	if err != nil {
		return ""
	}
	return short(d.String(), 6) + " " + name
}

// short moves the point of a decimal number places to the left and drops the
// zeros at its end.
func short(dec string, places int) string {
	whole, rest, _ := strings.Cut(dec, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	if len(whole) <= places {
		whole = strings.Repeat("0", places+1-len(whole)) + whole
	}
	at := len(whole) - places
	rest = strings.TrimRight(whole[at:]+rest, "0")
	if rest != "" {
		rest = "." + rest
	}
	return sign + whole[:at] + rest
}

func newFaucetCommand(o *session.Options) *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use: "faucet [ACCOUNT]", Short: "Get play money on a local chain", Args: session.Args(0, 1),
		Long: `Get play money on a local chain. Only a chain that was begun with
` + "`croft-chaind start`" + ` has a faucet, and only its own accounts are worth nothing.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			who := ""
			if len(args) > 0 {
				who = args[0]
			}
			address, err := o.Self(who, from)
			if err != nil {
				return err
			}
			name, n, err := o.Target()
			if err != nil {
				return err
			}
			if n.REST == "" {
				return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("network %s has no faucet that is known", name), Remedy: "use a local chain, or write its REST address down with `croft tenant network use NAME --node URL --rest URL`"}
			}
			body, err := json.Marshal(map[string]string{"address": string(address)})
			if err != nil {
				return err
			}
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPost, strings.TrimRight(n.REST, "/")+"/faucet", bytes.NewReader(body))
			if err != nil {
				return session.Usage(fmt.Errorf("REST address %q is no URL", n.REST), "write it like http://127.0.0.1:1317")
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
			if err != nil {
				return session.Unreachable(name, n, err)
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
			if err != nil {
				return fmt.Errorf("read the faucet's answer: %w", err)
			}
			if resp.StatusCode != http.StatusOK {
				return faucetError(resp.StatusCode, answer)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s was given 100 AKT and 100 ACT; `croft tenant balance %s` shows them\n", address, address)
			return nil
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "key whose account it is for, by name or address (default: the only one)")
	return cmd
}

func faucetError(status int, body []byte) error {
	var said struct {
		Message string `json:"message"`
		Error   string `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil || said.Message+said.Error == "" {
		said.Message = strings.TrimSpace(string(body[:min(len(body), 200)]))
	}
	err := errors.New("the faucet gave nothing: " + said.Message + said.Error)
	switch status {
	case http.StatusTooManyRequests:
		return &croft.Error{Kind: croft.KindRefused, Err: err}
	case http.StatusNotFound, http.StatusNotImplemented:
		return &croft.Error{Kind: croft.KindMissing, Err: errors.New("this chain has no faucet"), Remedy: "only a chain begun with `croft-chaind start` has one"}
	}
	return &croft.Error{Kind: croft.KindRefused, Err: err}
}
