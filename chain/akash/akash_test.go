package akash

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

func attributes(pairs ...string) []Attribute {
	var out []Attribute
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, Attribute{Key: pairs[i], Value: pairs[i+1]})
	}
	return append(out, Attribute{Key: "msg_index", Value: "0"})
}

func TestEventsAreDecoded(t *testing.T) {
	owner := someone
	id := func(more string) string { return fmt.Sprintf(`{"owner":"%s","dseq":"1001"%s}`, owner, more) }
	deployment := DeploymentID{owner, 1001}
	group := GroupID{deployment, 1}
	order := OrderID{group, 2}
	bid := BidID{OrderID: order, Provider: owner}
	bidJSON := id(fmt.Sprintf(`,"gseq":1,"oseq":2,"provider":"%s","bseq":0`, owner))
	price := `{"denom":"uact","amount":"50.000000000000000000"}`
	fifty := Price{"uact", NewDec(50)}
	hash := `"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="`
	for _, tc := range []struct {
		kind string
		in   []Attribute
		want any // an error text if a string
	}{
		{"akash.deployment.v1.EventDeploymentCreated", attributes("hash", hash, "id", id("")), EventDeploymentCreated{deployment, bytes.Repeat([]byte{7}, 32)}},
		{"akash.deployment.v1.EventDeploymentUpdated", attributes("hash", hash, "id", id("")), EventDeploymentUpdated{deployment, bytes.Repeat([]byte{7}, 32)}},
		{"akash.deployment.v1.EventDeploymentClosed", attributes("id", id("")), EventDeploymentClosed{deployment}},
		{"akash.deployment.v1.EventGroupPaused", attributes("id", id(`,"gseq":1`)), EventGroupPaused{group}},
		{"akash.deployment.v1.EventGroupStarted", attributes("id", id(`,"gseq":1`)), EventGroupStarted{group}},
		{"akash.deployment.v1.EventGroupClosed", attributes("id", id(`,"gseq":1`)), EventGroupClosed{group}},
		{"akash.market.v1.EventOrderCreated", attributes("id", id(`,"gseq":1,"oseq":2`)), EventOrderCreated{order}},
		{"akash.market.v1.EventOrderClosed", attributes("id", id(`,"gseq":1,"oseq":2`)), EventOrderClosed{order}},
		{"akash.market.v1.EventBidCreated", attributes("id", bidJSON, "price", price), EventBidCreated{bid, fifty}},
		{"akash.market.v1.EventBidClosed", attributes("id", bidJSON), EventBidClosed{bid}},
		{"akash.market.v1.EventLeaseCreated", attributes("id", bidJSON, "price", price), EventLeaseCreated{bid.Lease(), fifty}},
		{"akash.market.v1.EventLeaseClosed", attributes("id", bidJSON, "reason", `"lease_closed_owner"`), EventLeaseClosed{bid.Lease(), marketv1.LeaseClosedReason_lease_closed_owner}},
		{"akash.market.v1.EventLeaseClosed", attributes("id", bidJSON, "reason", `"lease_closed_of_2030"`), EventLeaseClosed{bid.Lease(), 0}},
		{"akash.market.v1.EventLeaseReclaimStarted", attributes("id", bidJSON, "reason", `"lease_closed_reason_decommission"`, "deadline", `"1800000000"`), EventLeaseReclaimStarted{bid.Lease(), 10001, time.Unix(1_800_000_000, 0).UTC()}},
		{"akash.provider.v1beta4.EventProviderCreated", attributes("owner", `"`+string(owner)+`"`), EventProviderCreated{owner}},
		{"akash.provider.v1beta4.EventProviderUpdated", attributes("owner", `"`+string(owner)+`"`), EventProviderUpdated{owner}},
		{"akash.provider.v1beta4.EventProviderDeleted", attributes("owner", `"`+string(owner)+`"`), EventProviderDeleted{owner}},
		{"akash.audit.v1.EventTrustedAuditorCreated", attributes("owner", `"`+string(owner)+`"`, "auditor", `"`+string(owner)+`"`), EventTrustedAuditorCreated{owner, owner}},
		{"akash.audit.v1.EventTrustedAuditorDeleted", attributes("owner", `"`+string(owner)+`"`, "auditor", `"`+string(owner)+`"`), EventTrustedAuditorDeleted{owner, owner}},
		{"akash.market.v1.EventOrderCreated", attributes("id", id(`,"gseq":1`)), "lacks a part"},
		{"akash.market.v1.EventOrderCreated", attributes(), "id is missing"},
		{"akash.market.v1.EventBidCreated", attributes("id", bidJSON, "price", `{"denom":"uact","amount":"a lot"}`), "price"},
		{"akash.market.v1.EventOrderCreated", attributes("id", `"text"`), "attribute id"},
		{"akash.provider.v1beta4.EventProviderCreated", attributes("owner", `"akash1x"`), "owner"},
		{"akash.market.v1.EventOfTomorrow", attributes("id", bidJSON), nil},
		{"coin_received", attributes("receiver", string(owner)), nil},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			e := NewEvent(3, tc.kind, tc.in)
			if e.Tx != 3 || e.Type != tc.kind || len(e.Attributes) != len(tc.in) {
				t.Errorf("event = %+v: the raw parts are changed", e)
			}
			if text, bad := tc.want.(string); bad {
				if e.Value != nil || e.Err == nil || !strings.Contains(e.Err.Error(), text) {
					t.Errorf("Value = %+v, Err = %v, want %q", e.Value, e.Err, text)
				}
				return
			}
			if e.Err != nil || !reflect.DeepEqual(e.Value, tc.want) {
				t.Errorf("Value = %+v, Err = %v, want %+v", e.Value, e.Err, tc.want)
			}
		})
	}
	if len(decoders) != 18 {
		t.Errorf("%d decoders: add the new one to this test", len(decoders))
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add("akash.market.v1.EventBidCreated", "id", `{"owner":"akash1x","dseq":"1","gseq":1,"oseq":1,"provider":"akash1y","bseq":0}`, "price", `{"denom":"uact","amount":"50.5"}`)
	f.Add("akash.market.v1.EventLeaseReclaimStarted", "id", `{"owner":"a","dseq":1,"gseq":1,"oseq":1,"provider":"b"}`, "deadline", `"-1"`)
	f.Add("akash.deployment.v1.EventDeploymentCreated", "hash", `"AA=="`, "id", `{"owner":"a","dseq":18446744073709551615}`)
	f.Fuzz(func(t *testing.T, kind, k1, v1, k2, v2 string) {
		e := NewEvent(-1, kind, attributes(k1, v1, k2, v2))
		if e.Value != nil && e.Err != nil {
			t.Error("an event is decoded and in error at once")
		}
		if created, ok := e.Value.(EventOrderCreated); ok {
			back := NewEvent(-1, kind, attributes("id", fmt.Sprintf(`{"owner":%q,"dseq":"%d","gseq":%d,"oseq":%d}`,
				jsonText(created.ID.Owner), created.ID.DSeq, created.ID.GSeq, created.ID.OSeq)))
			if back.Err == nil && back.Value != e.Value && jsonText(created.ID.Owner) == string(created.ID.Owner) {
				t.Errorf("%+v decodes as %+v", e.Value, back.Value)
			}
		}
	})
}

// jsonText is the address if JSON and Go quote it alike.
func jsonText(a account.Address) string {
	if raw, err := json.Marshal(string(a)); err == nil && string(raw) == fmt.Sprintf("%q", string(a)) {
		return string(a)
	}
	return "x"
}

func TestIDs(t *testing.T) {
	a := string(someone)
	for _, tc := range []struct {
		name  string
		parse func(string) (fmt.Stringer, error)
		good  string
	}{
		{"deployment", func(s string) (fmt.Stringer, error) { return ParseDeploymentID(s) }, a + "/7"},
		{"group", func(s string) (fmt.Stringer, error) { return ParseGroupID(s) }, a + "/7/1"},
		{"order", func(s string) (fmt.Stringer, error) { return ParseOrderID(s) }, a + "/7/1/2"},
		{"bid", func(s string) (fmt.Stringer, error) { return ParseBidID(s) }, a + "/7/1/2/" + a},
		{"lease", func(s string) (fmt.Stringer, error) { return ParseLeaseID(s) }, a + "/7/1/2/" + a},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id, err := tc.parse(tc.good)
			if err != nil || id.String() != tc.good {
				t.Errorf("parse(%q) = %v, %v", tc.good, id, err)
			}
			for _, bad := range []string{"", a, a + "/0", a + "/x", tc.good + "/1", "akash1x/7", strings.Replace(tc.good, "/7", "/07", 1), strings.Replace(tc.good, "/7", "/-7", 1), strings.Replace(tc.good, "/1", "/4294967296", 1)} {
				if bad == tc.good {
					continue
				}
				if _, err := tc.parse(bad); err == nil {
					t.Errorf("parse(%q) worked", bad)
				}
			}
		})
	}
	lease, _ := ParseLeaseID(a + "/7/1/2/" + a)
	if got := lease.PaymentXID(); got != "1/2/"+a {
		t.Errorf("PaymentXID = %s", got)
	}
	if LeaseIDOf(lease.Wire()) != lease || BidIDOf(lease.Bid().Wire()) != lease.Bid() || OrderIDOf(lease.OrderID.Wire()) != lease.OrderID {
		t.Error("ids change on their way through messages")
	}
}

func TestDec(t *testing.T) {
	for _, tc := range []struct{ name, text, wire, shown string }{
		{"a price of the facts", "250.5", "250500000000000000000", "250.500000000000000000"},
		{"a whole number", "100", "100000000000000000000", "100.000000000000000000"},
		{"the smallest", "0.000000000000000001", "1", "0.000000000000000001"},
		{"zero", "0", "0", "0.000000000000000000"},
		{"a negative one, as overdrawn funds are", "-0.5", "-500000000000000000", "-0.500000000000000000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := ParseDec(tc.text)
			if err != nil || d.Wire() != tc.wire || d.String() != tc.shown {
				t.Errorf("ParseDec(%q) = %s on the wire, shown as %s, %v", tc.text, d.Wire(), d, err)
			}
			w, err := ParseWireDec(tc.wire)
			if err != nil || w.Cmp(d) != 0 {
				t.Errorf("ParseWireDec(%q) = %s, %v", tc.wire, w, err)
			}
		})
	}
	for _, bad := range []string{"", "1.", ".5", "1e3", "0.0000000000000000001", "1,5", "--1", strings.Repeat("9", 200)} {
		if _, err := ParseDec(bad); err == nil {
			t.Errorf("ParseDec(%q) worked", bad)
		}
	}
	if _, err := ParseWireDec("50.0"); err == nil {
		t.Error("a number with a point passed as the wire's form")
	}
	d, _ := ParseDec("-2.9")
	if d.Int().Int64() != -2 || NewDec(2).Add(d).Mul(2).String() != "-1.800000000000000000" || (Dec{}).Sign() != 0 {
		t.Error("arithmetic is wrong")
	}
}

const someone = account.Address("akash19rl4cm2hmr8afy4kldpxz3fka4jguq0a3mq6x0")

func TestEveryVerdictHasASentence(t *testing.T) {
	// The modules of Akash have the codes from 1 to these without a gap.
	for space, last := range map[string]uint32{"deployment": 26, "market": 41, "provider": 9, "cert": 9, "escrow": 18, "audit": 3} {
		for code := uint32(1); code <= last; code++ {
			err := (&TxError{Codespace: space, Code: code, Log: "log"}).Explain()
			e, ok := errors.AsType[*croft.Error](err)
			if !ok || advice[codeOf{space, code}].what == "" || advice[codeOf{space, code}].do == "" || strings.HasSuffix(e.Remedy, ".") {
				t.Errorf("%s %d has no sentence: %v", space, code, err)
			}
			if !errors.Is(err, &TxError{Codespace: space, Code: code}) || errors.Is(err, &TxError{Codespace: space, Code: code + 1}) {
				t.Errorf("%s %d does not compare with itself alone", space, code)
			}
		}
	}
	unknown := (&TxError{Codespace: "wasm", Code: 9, Log: "odd"}).Explain()
	if croft.KindOf(unknown) != croft.KindRefused || !strings.Contains(unknown.Error(), "wasm") {
		t.Errorf("an unknown verdict: %v", unknown)
	}
}

func TestPlainLog(t *testing.T) {
	for _, tc := range []struct{ name, log, want string }{
		{"what the SDK says of a simulation is cut", "failed to simulate tx: failed to execute message; message index: 0: deployment not found", "deployment not found"},
		{"what it says of a block is cut", "failed to execute message; message index: 0: bid not open", "bid not open"},
		{"a later message keeps its number", "failed to execute message; message index: 2: bid not open", "message 2, counted from 0: bid not open"},
		{"a module's own words stay", "order not open: failed to simulate tx: no", "order not open: failed to simulate tx: no"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := plainLog(tc.log); got != tc.want {
				t.Errorf("plainLog(%q) = %q, want %q", tc.log, got, tc.want)
			}
		})
	}
}
