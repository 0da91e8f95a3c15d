package tenantcmd

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/quote"
)

func TestShort(t *testing.T) {
	for _, tc := range []struct {
		name, dec string
		places    int
		want      string
	}{
		{"zeros at the end say nothing", "50.000000000000000000", 0, "50"},
		{"fractions stay", "50.250000000000000000", 0, "50.25"},
		{"a million is one", "1000000", 6, "1"},
		{"less than one begins with zero", "5", 6, "0.000005"},
		{"debts keep their sign", "-1500000", 6, "-1.5"},
		{"nothing is zero", "0", 6, "0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := short(tc.dec, tc.places); got != tc.want {
				t.Errorf("short(%q, %d) = %q, want %q", tc.dec, tc.places, got, tc.want)
			}
		})
	}
}

func offer(host string, provider account.Address, uact int64) tenant.Offer {
	o := tenant.Offer{
		Group: "home", Price: akash.Price{Denom: "uact", Amount: akash.NewDec(uact)},
		Provider: &providerv1beta4.Provider{HostUri: "https://" + host + ":8443"},
	}
	o.ID.Provider = provider
	return o
}

// TestScreen plays a deploy on a terminal and on a pipe.
func TestScreen(t *testing.T) {
	play := func(live bool) string {
		var b bytes.Buffer
		s := &screen{w: &b, live: live}
		s.show(tenant.Progress{Step: "waiting for bids"})
		s.show(tenant.Progress{Step: "1 open bid", Offers: []tenant.Offer{offer("a.example", "akash1a", 50)}})
		s.show(tenant.Progress{Step: "2 open bids", Offers: []tenant.Offer{offer("b.example", "akash1b", 40), offer("a.example", "akash1a", 50)}})
		s.show(tenant.Progress{Step: "sending the manifest", Retry: errors.New("not now")})
		s.show(tenant.Progress{Step: "sending the manifest", Retry: errors.New("not now")}) // said already
		return regexp.MustCompile(`(?m)^(\x1b\[\d+A\x1b\[J)?\d\d:\d\d:\d\d`).ReplaceAllString(b.String(), "${1}TIME")
	}
	table1 := "  #  PROVIDER   PRICE PER BLOCK  PLACEMENT  ADDRESS\n  1  a.example  50 uact          home       akash1a\n"
	table2 := "  #  PROVIDER   PRICE PER BLOCK  PLACEMENT  ADDRESS\n  1  b.example  40 uact          home       akash1b\n  2  a.example  50 uact          home       akash1a\n"
	pipe := "TIME  waiting for bids\nTIME  1 open bid\n" + table1 + "TIME  2 open bids\n" + table2 + "TIME  sending the manifest: not now\n"
	if got := play(false); got != pipe {
		t.Errorf("on a pipe:\n%swant\n%s", got, pipe)
	}
	terminal := "TIME  waiting for bids\nTIME  1 open bid\n" + table1 + "\x1b[2A\x1b[JTIME  2 open bids\n" + table2 + "\x1b[3A\x1b[JTIME  sending the manifest: not now\n"
	if got := play(true); got != terminal {
		t.Errorf("on a terminal:\n%q\nwant\n%q", got, terminal)
	}
}

func TestResumable(t *testing.T) {
	r := &tenant.Record{DSeq: 7, Stage: tenant.Created}
	if got := resumable(errors.New("the node is away"), r).Error(); got != "the node is away; `croft tenant deploy --resume --dseq 7` goes on with it" {
		t.Errorf("got %q", got)
	}
	told := &croft.Error{Kind: croft.KindRefused, Err: tenant.ErrNoBids, Remedy: "offer more"}
	if got := resumable(told, r); !errors.Is(got, tenant.ErrNoBids) || !strings.HasSuffix(got.Error(), "; offer more") {
		t.Errorf("a remedy was lost: %v", got)
	}
	if got := resumable(tenant.ErrClosed, &tenant.Record{Stage: tenant.Closed}); !errors.Is(got, tenant.ErrClosed) || strings.Contains(got.Error(), "resume") {
		t.Errorf("what is over cannot be gone on with: %v", got)
	}
}

func TestFitsOfAppliesTheFlags(t *testing.T) {
	west, east := &providerv1beta4.Provider{Owner: "akash1west", HostUri: "https://west.example:8443"}, &providerv1beta4.Provider{Owner: "akash1east", HostUri: "https://east.example:8443"}
	east.Attributes = []*attributesv1.Attribute{{Key: "region", Value: "east"}}
	groups := []*deploymentv1beta4.GroupSpec{{Name: "home", Resources: []*deploymentv1beta4.ResourceUnit{{Price: &basev1beta1.DecCoin{Denom: "uact"}}}}}
	reports := []quote.Report{{Provider: west, Groups: []string{"home"}}, {Provider: east, Groups: []string{"home"}}}
	for _, tc := range []struct {
		name string
		want tenant.Want
		fit  string
		lack string // of the last
	}{
		{"without flags all fit", tenant.Want{}, "akash1west akash1east", ""},
		{"a provider is wanted by its host name", tenant.Want{Provider: "east.example"}, "akash1east", "provider is not east.example"},
		{"a provider is wanted by its address", tenant.Want{Provider: "akash1west"}, "akash1west", "provider is not akash1west"},
		{"an attribute is wanted", tenant.Want{Attributes: map[string]string{"region": "east"}}, "akash1east", "provider lacks region=east"},
		{"a price in another denom fits nobody", tenant.Want{MaxPrice: akash.Price{Denom: "uakt"}}, "", `placement "home": price is in uact, not in uakt`},
		{"a price in the denom of the file fits", tenant.Want{MaxPrice: akash.Price{Denom: "uact"}}, "akash1west akash1east", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			views := fitsOf(tc.want, groups, reports)
			var fit []string
			for _, v := range views {
				if v.Fits {
					fit = append(fit, v.Provider)
				} else if len(v.Groups) > 0 {
					t.Errorf("%s does not fit but could bid on %v", v.Provider, v.Groups)
				}
			}
			last := views[len(views)-1]
			if strings.Join(fit, " ") != tc.fit || strings.Join(last.Lacks, "; ") != tc.lack {
				t.Errorf("fit = %v, the last lacks %v", fit, last.Lacks)
			}
		})
	}
}

func TestTheEndOfADeploymentIsExplained(t *testing.T) {
	pace := &quote.Pace{Block: time.Second}
	rates := []akash.Price{{Denom: "uact", Amount: akash.NewDec(100)}}
	for _, tc := range []struct {
		name string
		v    overview
		want string
	}{
		{"money that lasts", overview{State: "active", Money: money{pace: pace, rates: rates, lasts: quote.Runway{Blocks: 7200, Left: 2 * time.Hour}}}, "; it costs 0.360000 ACT an hour, its money lasts 2 hours"},
		{"money that is used up", overview{State: "active", Money: money{pace: pace, rates: rates}}, "; it costs 0.360000 ACT an hour, its money is used up: add some with `croft tenant deposit`"},
		{"no lease yet", overview{State: "active", Money: money{pace: pace}}, "; it costs nothing yet"},
		{"closed by its owner", overview{State: "closed", Money: money{over: true}}, ""},
		{"ran dry", overview{State: "closed", Ended: "insufficient_funds"}, ": its money was used up"},
		{"ran dry in debt", overview{State: "closed", Ended: "insufficient_funds", owed: rates}, ": its money was used up, and it still owes its providers 0.000100 ACT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.v.tail(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if got := (money{over: true}).left(); got != "-" {
		t.Errorf("closed money lasts %q", got)
	}
	if got := brief(strings.Repeat("ä", 400)); len([]rune(got)) > 150 {
		t.Errorf("brief has %d runes", len([]rune(got)))
	}
}

func TestFaucetError(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		body   string
		kind   croft.Kind
		want   string
	}{
		{"a limit is told in the faucet's words", 429, `{"message":"ask again in a minute"}`, croft.KindRefused, "the faucet gave nothing: ask again in a minute"},
		{"a chain without faucet is named", 404, "not found", croft.KindMissing, "this chain has no faucet; "},
		{"plain text is passed on", 500, "broken\n", croft.KindRefused, "the faucet gave nothing: broken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := faucetError(tc.status, []byte(tc.body))
			if croft.KindOf(err) != tc.kind || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got %q, %v", croft.KindOf(err), err)
			}
		})
	}
}
