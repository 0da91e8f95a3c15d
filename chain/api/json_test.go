package api_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/croft-cloud/croft/chain/api"
	"github.com/croft-cloud/croft/chain/api/abciv1beta1"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/auditv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/api/discoveryv1"
	"github.com/croft-cloud/croft/chain/api/escrowidv1"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/escrowv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/api/queryv1beta1"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

const zeros = "000000000000000000"

func dec(denom, amount string) *basev1beta1.DecCoin {
	return &basev1beta1.DecCoin{Denom: denom, Amount: amount}
}

// TestJSON holds the writer against what the real chain was seen to answer.
func TestJSON(t *testing.T) {
	hash := bytes.Repeat([]byte{0xfb}, 32)
	for _, tc := range []struct {
		name string
		m    proto.Message
		want string
	}{
		{"a bid and its escrow account read as the real chain writes them", &marketv1beta5.QueryBidResponse{
			Bid: &marketv1beta5.Bid{
				Id:    &marketv1.BidID{Owner: "akash1T", Dseq: 1001, Gseq: 1, Oseq: 1, Provider: "akash1P"},
				State: marketv1beta5.Bid_active, Price: dec("uact", "50"+zeros), CreatedAt: 43,
			},
			EscrowAccount: &escrowtypesv1.Account{
				Id: &escrowidv1.Account{Scope: escrowidv1.Scope_bid, Xid: "akash1T/1001/1/1/akash1P"},
				State: &escrowtypesv1.AccountState{
					Owner: "akash1P", State: escrowtypesv1.State_open, Transferred: []*basev1beta1.DecCoin{dec("uakt", "0")}, SettledAt: 43,
					Funds:    []*escrowtypesv1.Balance{{Denom: "uakt", Amount: "500000" + zeros}},
					Deposits: []*escrowtypesv1.Depositor{{Owner: "akash1P", Height: 43, Source: depositv1.Source_balance, Balance: dec("uakt", "500000"+zeros)}},
				},
			},
		}, `{"bid":{"id":{"owner":"akash1T","dseq":"1001","gseq":1,"oseq":1,"provider":"akash1P","bseq":0},
        "state":"active","price":{"denom":"uact","amount":"50.000000000000000000"},"created_at":"43",
        "resources_offer":[],"reclamation_window":null},
 "escrow_account":{"id":{"scope":"bid","xid":"akash1T/1001/1/1/akash1P"},
        "state":{"owner":"akash1P","state":"open","transferred":[{"denom":"uakt","amount":"0.000000000000000000"}],
                 "settled_at":"43","funds":[{"denom":"uakt","amount":"500000.000000000000000000"}],
                 "deposits":[{"owner":"akash1P","height":"43","source":"balance","balance":{"denom":"uakt","amount":"500000.000000000000000000"}}]}}}`},
		{"a lease and its payment read as the real chain writes them", &marketv1beta5.QueryLeaseResponse{
			Lease: &marketv1.Lease{
				Id:    &marketv1.LeaseID{Owner: "akash1T", Dseq: 1001, Gseq: 1, Oseq: 1, Provider: "akash1P"},
				State: marketv1.Lease_active, Price: dec("uact", "50"+zeros), CreatedAt: 44,
			},
			EscrowPayment: &escrowtypesv1.Payment{
				Id: &escrowidv1.Payment{Aid: &escrowidv1.Account{Scope: escrowidv1.Scope_deployment, Xid: "akash1T/1001"}, Xid: "1/1/akash1P"},
				State: &escrowtypesv1.PaymentState{
					Owner: "akash1P", State: escrowtypesv1.State_open, Rate: dec("uact", "50"+zeros), Balance: dec("uact", "0"),
					Unsettled: dec("uact", "0"), Withdrawn: &basev1beta1.Coin{Denom: "uact", Amount: "8550"},
				},
			},
		}, `{"lease":{"id":{"owner":"akash1T","dseq":"1001","gseq":1,"oseq":1,"provider":"akash1P","bseq":0},"state":"active",
          "price":{"denom":"uact","amount":"50.000000000000000000"},"created_at":"44","closed_on":"0",
          "reason":"lease_closed_invalid","reclamation":null},
 "escrow_payment":{"id":{"aid":{"scope":"deployment","xid":"akash1T/1001"},"xid":"1/1/akash1P"},
          "state":{"owner":"akash1P","state":"open","rate":{"denom":"uact","amount":"50.000000000000000000"},
                   "balance":{"denom":"uact","amount":"0.000000000000000000"},
                   "unsettled":{"denom":"uact","amount":"0.000000000000000000"},"withdrawn":{"denom":"uact","amount":"8550"}}}}`},
		{"a deployment, its groups and account read as the real chain writes them", &deploymentv1beta4.QueryDeploymentResponse{
			Deployment: &deploymentv1.Deployment{
				Id: &deploymentv1.DeploymentID{Owner: "akash1T", Dseq: 1001}, State: deploymentv1.Deployment_active, Hash: hash, CreatedAt: 18,
			},
			Groups: []*deploymentv1beta4.Group{{
				Id: &deploymentv1.GroupID{Owner: "akash1T", Dseq: 1001, Gseq: 1}, State: deploymentv1beta4.Group_open,
				GroupSpec: &deploymentv1beta4.GroupSpec{
					Name:         "home",
					Requirements: &attributesv1.PlacementRequirements{Attributes: []*attributesv1.Attribute{{Key: "region", Value: "eu-west"}}},
					Resources: []*deploymentv1beta4.ResourceUnit{{
						Resource: &resourcesv1beta4.Resources{
							Id:        1,
							Cpu:       &resourcesv1beta4.CPU{Units: &resourcesv1beta4.ResourceValue{Val: []byte("500")}},
							Memory:    &resourcesv1beta4.Memory{Quantity: &resourcesv1beta4.ResourceValue{Val: []byte("536870912")}},
							Storage:   []*resourcesv1beta4.Storage{{Name: "default", Quantity: &resourcesv1beta4.ResourceValue{Val: []byte("1073741824")}}},
							Gpu:       &resourcesv1beta4.GPU{Units: &resourcesv1beta4.ResourceValue{Val: []byte("0")}},
							Endpoints: []*resourcesv1beta4.Endpoint{{}},
						},
						Count: 1, Price: dec("uact", "100"+zeros),
					}},
				},
				CreatedAt: 18,
			}},
			EscrowAccount: &escrowtypesv1.Account{
				Id: &escrowidv1.Account{Scope: escrowidv1.Scope_deployment, Xid: "akash1T/1001"},
				State: &escrowtypesv1.AccountState{
					Owner: "akash1T", State: escrowtypesv1.State_open, Transferred: []*basev1beta1.DecCoin{dec("uact", "8550"+zeros)}, SettledAt: 215,
					Funds:    []*escrowtypesv1.Balance{{Denom: "uact", Amount: "4991450" + zeros}},
					Deposits: []*escrowtypesv1.Depositor{{Owner: "akash1T", Height: 18, Source: depositv1.Source_balance, Balance: dec("uact", "4991450"+zeros)}},
				},
			},
		}, `{"deployment":{"id":{"owner":"akash1T","dseq":"1001"},"state":"active","hash":"+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=","created_at":"18","reclamation":null},
 "groups":[{"id":{"owner":"akash1T","dseq":"1001","gseq":1},"state":"open",
   "group_spec":{"name":"home","requirements":{"signed_by":{"all_of":[],"any_of":[]},"attributes":[{"key":"region","value":"eu-west"}]},
     "resources":[{"resource":{"id":1,"cpu":{"units":{"val":"500"},"attributes":[]},"memory":{"quantity":{"val":"536870912"},"attributes":[]},
        "storage":[{"name":"default","quantity":{"val":"1073741824"},"attributes":[]}],"gpu":{"units":{"val":"0"},"attributes":[]},
        "endpoints":[{"kind":"SHARED_HTTP","sequence_number":0}]},"count":1,"price":{"denom":"uact","amount":"100.000000000000000000"}}]},
   "created_at":"18"}],
 "escrow_account":{"id":{"scope":"deployment","xid":"akash1T/1001"},"state":{"owner":"akash1T","state":"open",
   "transferred":[{"denom":"uact","amount":"8550.000000000000000000"}],"settled_at":"215",
   "funds":[{"denom":"uact","amount":"4991450.000000000000000000"}],"deposits":[{"owner":"akash1T","height":"18","source":"balance",
   "balance":{"denom":"uact","amount":"4991450.000000000000000000"}}]}}}`},
		{
			"funds below zero keep their sign and their fraction", &escrowtypesv1.Balance{Denom: "uact", Amount: "-500000000000000000"},
			`{"denom":"uact","amount":"-0.500000000000000000"}`,
		},
		{
			"a page has its key in base64 and its total as text", &queryv1beta1.PageResponse{NextKey: []byte("<>"), Total: 7},
			`{"next_key":"PD4=","total":"7"}`,
		},
		{"a last page has no key", &queryv1beta1.PageResponse{}, `{"next_key":null,"total":"0"}`},
		{
			"a window is a number of seconds", &deploymentv1.DeploymentReclamation{MinWindow: durationpb.New(90*time.Minute + time.Millisecond)},
			`{"min_window":"5400.001s"}`,
		},
		{
			"the groups of an SDL, never on a wire, have no null inside", &deploymentv1beta4.GroupSpec{},
			`{"name":"","requirements":{"signed_by":{"all_of":[],"any_of":[]},"attributes":[]},"resources":[]}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := api.JSON(tc.m)
			if err != nil {
				t.Fatal(err)
			}
			var want bytes.Buffer
			if err := json.Compact(&want, []byte(tc.want)); err != nil {
				t.Fatal(err)
			}
			if string(got) != want.String() {
				t.Errorf("got  %s\nwant %s", got, want.Bytes())
			}
		})
	}
}

func TestJSONOfAny(t *testing.T) {
	close := &deploymentv1beta4.MsgCloseDeployment{Id: &deploymentv1.DeploymentID{Owner: "akash1T", Dseq: 7}}
	value, err := proto.Marshal(close)
	if err != nil {
		t.Fatal(err)
	}
	known := &anypb.Any{TypeUrl: "/akash.deployment.v1beta4.MsgCloseDeployment", Value: value}
	for _, tc := range []struct {
		name string
		m    proto.Message
		want string
	}{
		{
			"a known type shows its fields", known,
			`{"@type":"/akash.deployment.v1beta4.MsgCloseDeployment","id":{"owner":"akash1T","dseq":"7"}}`,
		},
		{
			"an unknown type keeps its bytes", &anypb.Any{TypeUrl: "/cosmos.gov.v1.MsgVote", Value: []byte{8, 1}},
			`{"@type":"/cosmos.gov.v1.MsgVote","value":"CAE="}`,
		},
		{
			"a time is in UTC", timestamppb.New(time.Date(2026, 11, 21, 10, 0, 0, 500_000_000, time.FixedZone("", 3600))),
			`"2026-11-21T09:00:00.5Z"`,
		},
		{
			"an answer of the chain shows the transaction in it", &abciv1beta1.TxResponse{Height: 5, Codespace: "market", Code: 4, RawLog: "a <b>", Tx: known},
			`{"height":"5","txhash":"","codespace":"market","code":4,"data":"","raw_log":"a \u003cb\u003e","logs":[],"info":"","gas_wanted":"0","gas_used":"0",` +
				`"tx":{"@type":"/akash.deployment.v1beta4.MsgCloseDeployment","id":{"owner":"akash1T","dseq":"7"}},"timestamp":"","events":[]}`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := api.JSON(tc.m)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
	if _, err := api.JSON(&anypb.Any{TypeUrl: known.TypeUrl, Value: []byte{0xff}}); err == nil {
		t.Error("an Any with broken content was written")
	}
	if _, err := api.JSON(dec("uact", "1.5")); err == nil {
		t.Error("a Dec that is no integer was written")
	}
}

// TestNullFollowsContract reads from the .proto files which message fields are
// pointers there, and looks whether exactly those become null.
func TestNullFollowsContract(t *testing.T) {
	_ = []proto.Message{&auditv1.AuditedProvider{}, &certv1.Certificate{}, &discoveryv1.Akash{}, &escrowv1.MsgAccountDeposit{}, &providerv1beta4.Provider{}}
	packageLine := regexp.MustCompile(`(?m)^package ([\w.]+);`)
	messageLine := regexp.MustCompile(`^message (\w+) \{`)
	fieldLine := regexp.MustCompile(`^  (repeated )?([\w.]+) (\w+) = \d+(.*);`)
	checked := 0
	err := filepath.WalkDir("proto/akash", func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pkg := packageLine.FindSubmatch(raw)
		if pkg == nil {
			t.Errorf("%s names no package", path)
			return nil
		}
		message := ""
		for line := range strings.Lines(string(raw)) {
			if m := messageLine.FindStringSubmatch(line); m != nil {
				message = "croft.wire." + string(pkg[1]) + "." + m[1]
			}
			f := fieldLine.FindStringSubmatch(line)
			if f == nil || f[1] != "" {
				continue
			}
			typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(message))
			if err != nil {
				continue // genesis: clients have no use for it
			}
			fd := typ.Descriptor().Fields().ByName(protoreflect.Name(f[3]))
			if fd == nil || fd.Message() == nil {
				continue
			}
			checked++
			got, err := api.JSON(typ.New().Interface())
			if err != nil {
				return err
			}
			null := strings.Contains(string(got), `"`+f[3]+`":null`)
			if pointer := !strings.Contains(f[4], "nullable) = false"); null != pointer {
				t.Errorf("%s.%s: null is %v, in the contract it is %v", message, f[3], null, pointer)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 100 {
		t.Errorf("only %d fields were found", checked)
	}
}
