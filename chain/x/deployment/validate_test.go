package deployment

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/gogo/depositv1"
	"github.com/croft-cloud/croft/chain/gogo/resourcesv1beta4"

	"cosmossdk.io/math"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// vector is the contract's MsgCreateDeployment, made by the real clients. Its
// owner has the form of an address, with a wrong checksum.
const vector = "0a300a2c616b6173683171717171717171717171717171717171717171717171717171717171717171716763706a387110" +
	"07127e0a04686f6d6512150a0012110a06726567696f6e120765752d776573741a5f0a3c080112070a050a033530301a0d" +
	"0a0b0a0935333638373039313222170a0764656661756c74120c0a0a313037333734313832342a050a030a0130320010011a" +
	"1d0a047561637412153130303030303030303030303030303030303030301a207bfa8fd4bd34b51538a0fcf1d44bcd7948" +
	"d73325e2f4d755f3ed4a7ca3f48e0f22150a0f0a04756163741207353030303030302a020201"

func TestTheVectorDecodesPassesAndEncodesToTheSameBytes(t *testing.T) {
	akashPrefix()
	wire, err := hex.DecodeString(vector)
	if err != nil {
		t.Fatal(err)
	}
	var msg deploymentv1beta4.MsgCreateDeployment
	if err := msg.Unmarshal(wire); err != nil {
		t.Fatal(err)
	}
	if msg.ID.DSeq != 7 || msg.Groups[0].Name != "home" || !msg.Groups[0].Resources[0].Price.Amount.Equal(math.LegacyNewDec(100)) {
		t.Errorf("decoded %v", msg.String())
	}
	again, err := msg.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, wire) {
		t.Errorf("encoded\n got  %x\n want %x", again, wire)
	}
	refused(t, ValidateCreateDeployment(&msg), ErrInvalidDeploymentID)
	msg.ID.Owner = person("tenant")
	succeeds(t, ValidateCreateDeployment(&msg))
}

func TestValidateCreateDeployment(t *testing.T) {
	type change = func(msg *deploymentv1beta4.MsgCreateDeployment)
	// res changes the resources of the only unit.
	res := func(do func(r *resourcesv1beta4.Resources)) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) { do(&msg.Groups[0].Resources[0].Resource) }
	}
	gpus := func(n int64) change {
		return res(func(r *resourcesv1beta4.Resources) {
			r.GPU = &resourcesv1beta4.GPU{Units: value(n), Attributes: []attributesv1.Attribute{{Key: "vendor/nvidia/model/*", Value: "true"}}}
		})
	}
	price := func(amount string) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) {
			msg.Groups[0].Resources[0].Price.Amount = math.LegacyMustNewDecFromStr(amount)
		}
	}
	counted := func(n uint32, also ...change) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) {
			msg.Groups[0].Resources[0].Count = n
			for _, c := range also {
				c(msg)
			}
		}
	}
	sources := func(s ...depositv1.Source) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) { msg.Deposit.Sources = s }
	}
	groups := func(g ...deploymentv1beta4.GroupSpec) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) { msg.Groups = g }
	}
	require := func(a ...attributesv1.Attribute) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) { msg.Groups[0].Requirements.Attributes = a }
	}
	many := func(n int) (g []deploymentv1beta4.GroupSpec) {
		for i := range n {
			g = append(g, groupSpec(string(rune('a'+i))))
		}
		return g
	}
	units := func(n int) change {
		return func(msg *deploymentv1beta4.MsgCreateDeployment) {
			msg.Groups[0].Resources = nil
			for i := range n {
				msg.Groups[0].Resources = append(msg.Groups[0].Resources, unit(uint32(i)+1))
			}
		}
	}
	for _, tc := range []struct {
		name   string
		change change
		want   error // nil is accepted
	}{
		{"the example is accepted", func(*deploymentv1beta4.MsgCreateDeployment) {}, nil},

		{"the owner is an address", func(m *deploymentv1beta4.MsgCreateDeployment) { m.ID.Owner = "akash1x" }, ErrInvalidDeploymentID},
		{"the owner is not empty", func(m *deploymentv1beta4.MsgCreateDeployment) { m.ID.Owner = "" }, ErrInvalidDeploymentID},
		{"the owner is not in upper case", func(m *deploymentv1beta4.MsgCreateDeployment) { m.ID.Owner = strings.ToUpper(m.ID.Owner) }, ErrInvalidDeploymentID},
		{"the owner has the chain's prefix", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.ID.Owner = sdk.MustBech32ifyAddressBytes("cosmos", make([]byte, 20))
		}, ErrInvalidDeploymentID},
		{"the dseq is not 0", func(m *deploymentv1beta4.MsgCreateDeployment) { m.ID.DSeq = 0 }, ErrInvalidDeploymentID},

		{"the hash is there", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Hash = nil }, ErrEmptyHash},
		{"the hash has not 31 bytes", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Hash = m.Hash[:31] }, ErrInvalidHash},
		{"the hash has not 33 bytes", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Hash = append(m.Hash, 1) }, ErrInvalidHash},

		{"a deposit names a source", sources(), ErrInvalidDeposit},
		{"a deposit from the balance is accepted", sources(depositv1.SourceBalance), nil},
		{"a deposit names no source twice", sources(depositv1.SourceGrant, depositv1.SourceGrant), ErrInvalidDeposit},
		{"a deposit's source is not invalid", sources(depositv1.SourceInvalid), ErrInvalidDeposit},
		{"a deposit's source is known", sources(3), ErrInvalidDeposit},
		{"a deposit is in the prices' denomination", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Deposit.Amount.Denom = "uakt" }, ErrInvalidDeposit},
		{"a deposit has a denomination", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Deposit.Amount.Denom = "" }, ErrInvalidDeposit},
		{"a deposit has an amount", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Deposit.Amount.Amount = math.Int{} }, ErrInvalidDeposit},
		{"a deposit is above zero", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Deposit.Amount.Amount = math.NewInt(-5) }, ErrInvalidDeposit},

		{"there is a group", groups(), ErrInvalidGroups},
		{"20 groups are accepted", groups(many(MaxGroups)...), nil},
		{"21 groups are refused", groups(many(MaxGroups + 1)...), ErrInvalidGroups},
		{"a group has a name", groups(groupSpec("")), ErrInvalidGroupSpec},
		{"a group's name is bounded", groups(groupSpec(strings.Repeat("x", MaxNameBytes+1))), ErrInvalidGroupSpec},
		{"groups are named uniquely", groups(groupSpec("a"), groupSpec("a")), ErrDuplicateGroupName},
		{"one denomination holds over all groups", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups = many(2)
			m.Groups[1].Resources[0].Price.Denom = "uakt"
		}, ErrInvalidPrice},
		{"one denomination holds over all units", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups[0].Resources = append(m.Groups[0].Resources, unit(2))
			m.Groups[0].Resources[1].Price.Denom = "uakt"
		}, ErrInvalidPrice},
		{"a group has resources", units(0), ErrInvalidGroupSpec},
		{"20 units are accepted", units(MaxUnits), nil},
		{"21 units are refused", units(MaxUnits + 1), ErrInvalidGroupSpec},

		{"a requirement's key may end in a star", require(attributesv1.Attribute{Key: "capabilities/gpu/*", Value: "true"}), nil},
		{"a requirement's key has no star within", require(attributesv1.Attribute{Key: "a*b", Value: "true"}), ErrInvalidGroupSpec},
		{"a requirement's key is there once", require(attributesv1.Attribute{Key: "region"}, attributesv1.Attribute{Key: "region"}), ErrInvalidGroupSpec},
		{"64 auditors are accepted", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups[0].Requirements.SignedBy.AnyOf = make([]string, MaxAuditors)
		}, nil},
		{"65 auditors are refused", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups[0].Requirements.SignedBy.AllOf = make([]string, MaxAuditors+1)
		}, ErrInvalidGroupSpec},

		{"a unit has an id above 0", res(func(r *resourcesv1beta4.Resources) { r.ID = 0 }), ErrInvalidGroupSpec},
		{"a unit's id is unique in the group", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups[0].Resources = append(m.Groups[0].Resources, unit(1))
		}, ErrInvalidGroupSpec},
		{"a unit's id may be used in another group", groups(groupSpec("a"), groupSpec("b")), nil},
		{"a unit has a count", counted(0), ErrInvalidGroupSpec},
		{"a count above 50 is accepted within the totals", counted(51), nil},
		{"cpu is there", res(func(r *resourcesv1beta4.Resources) { r.CPU = nil }), ErrInvalidGroupSpec},
		{"gpu is there", res(func(r *resourcesv1beta4.Resources) { r.GPU = nil }), ErrInvalidGroupSpec},
		{"memory is there", res(func(r *resourcesv1beta4.Resources) { r.Memory = nil }), ErrInvalidGroupSpec},
		{"storage is there", res(func(r *resourcesv1beta4.Resources) { r.Storage = nil }), ErrInvalidGroupSpec},
		{"storage is bounded in volumes", res(func(r *resourcesv1beta4.Resources) {
			r.Storage = slices.Repeat(r.Storage, MaxVolumes+1)
		}), ErrInvalidGroupSpec},
		{"endpoints are bounded", res(func(r *resourcesv1beta4.Resources) {
			r.Endpoints = slices.Repeat(r.Endpoints, MaxEndpoints+1)
		}), ErrInvalidGroupSpec},
		{"an endpoint's kind is known", res(func(r *resourcesv1beta4.Resources) { r.Endpoints[0].Kind = 3 }), ErrInvalidGroupSpec},

		{"10 thousandths of a core are accepted", res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(10) }), nil},
		{"9 thousandths of a core are refused", res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(9) }), ErrInvalidGroupSpec},
		{"384 cores are accepted", res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(384_000) }), nil},
		{"384.001 cores are refused", res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(384_001) }), ErrInvalidGroupSpec},
		{"a negative cpu is refused", res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(-500) }), ErrInvalidGroupSpec},
		{"cpu without a value is refused", res(func(r *resourcesv1beta4.Resources) { r.CPU.Units.Val = math.Int{} }), ErrInvalidGroupSpec},
		{"cpu of 255 bits is refused", res(func(r *resourcesv1beta4.Resources) {
			r.CPU.Units.Val = math.NewIntFromUint64(1).MulRaw(1 << 62).MulRaw(1 << 62).MulRaw(1 << 62).MulRaw(1 << 62)
		}), ErrInvalidGroupSpec},
		{"24 GPUs are accepted", gpus(24), nil},
		{"25 GPUs are refused", gpus(25), ErrInvalidGroupSpec},
		{"a GPU has attributes", res(func(r *resourcesv1beta4.Resources) { r.GPU.Units = value(1) }), ErrInvalidGroupSpec},
		{"no GPU has no attributes", gpus(0), ErrInvalidGroupSpec},
		{"1 MiB of memory is accepted", res(func(r *resourcesv1beta4.Resources) { r.Memory.Quantity = value(mebi) }), nil},
		{"less than 1 MiB of memory is refused", res(func(r *resourcesv1beta4.Resources) { r.Memory.Quantity = value(mebi - 1) }), ErrInvalidGroupSpec},
		{"2 TiB of memory are accepted", res(func(r *resourcesv1beta4.Resources) { r.Memory.Quantity = value(2 * tebi) }), nil},
		{"more than 2 TiB of memory are refused", res(func(r *resourcesv1beta4.Resources) { r.Memory.Quantity = value(2*tebi + 1) }), ErrInvalidGroupSpec},
		{"5 MiB of storage are accepted", res(func(r *resourcesv1beta4.Resources) { r.Storage[0].Quantity = value(5 * mebi) }), nil},
		{"less than 5 MiB of storage are refused", res(func(r *resourcesv1beta4.Resources) { r.Storage[0].Quantity = value(5*mebi - 1) }), ErrInvalidGroupSpec},
		{"32 TiB of storage are accepted", res(func(r *resourcesv1beta4.Resources) { r.Storage[0].Quantity = value(32 * tebi) }), nil},
		{"more than 32 TiB of storage are refused", res(func(r *resourcesv1beta4.Resources) { r.Storage[0].Quantity = value(32*tebi + 1) }), ErrInvalidGroupSpec},
		{"a volume's attributes are keyed once", res(func(r *resourcesv1beta4.Resources) {
			r.Storage[0].Attributes = []attributesv1.Attribute{{Key: "class"}, {Key: "class"}}
		}), ErrInvalidGroupSpec},

		{"50 times the most cpu is accepted", counted(50, res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(384_000) })), nil},
		{"51 times the most cpu is refused", counted(51, res(func(r *resourcesv1beta4.Resources) { r.CPU.Units = value(384_000) })), ErrInvalidGroupSpec},
		{"50 times the most GPUs are accepted", counted(50, gpus(24)), nil},
		{"51 times the most GPUs are refused", counted(51, gpus(24)), ErrInvalidGroupSpec},
		{"51 times the most memory is refused", counted(51, res(func(r *resourcesv1beta4.Resources) { r.Memory.Quantity = value(2 * tebi) })), ErrInvalidGroupSpec},
		{"51 times the most storage is refused", counted(51, res(func(r *resourcesv1beta4.Resources) { r.Storage[0].Quantity = value(32 * tebi) })), ErrInvalidGroupSpec},
		{"the totals count all units", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups[0].Resources = []deploymentv1beta4.ResourceUnit{unit(1), unit(2)}
			m.Groups[0].Resources[0].Count = 50
			m.Groups[0].Resources[0].Resource.CPU.Units = value(384_000)
		}, ErrInvalidGroupSpec},
		{"a count that would overflow is refused", counted(1<<32-1, res(func(r *resourcesv1beta4.Resources) {
			r.Storage = slices.Repeat([]resourcesv1beta4.Storage{{Quantity: value(32 * tebi)}}, MaxVolumes)
		})), ErrInvalidGroupSpec},

		{"a price above zero is accepted", price("0.000000000000000001"), nil},
		{"a price of zero is refused", price("0"), ErrInvalidPrice},
		{"a negative price is refused", price("-1"), ErrInvalidPrice},
		{"a price of 10000000 is accepted", price("10000000"), nil},
		{"a price above 10000000 is refused", price("10000000.000000000000000001"), ErrInvalidPrice},
		{"a price has an amount", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Groups[0].Resources[0].Price.Amount = math.LegacyDec{}
		}, ErrInvalidPrice},
		{"a price has a denomination", func(m *deploymentv1beta4.MsgCreateDeployment) { m.Groups[0].Resources[0].Price.Denom = "" }, ErrInvalidPrice},

		{"a reclamation window is above zero", func(m *deploymentv1beta4.MsgCreateDeployment) {
			m.Reclamation = &deploymentv1.DeploymentReclamation{}
		}, ErrInvalidReclamation},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := world{tenant: person("tenant")}
			msg := w.createMsg(1001)
			tc.change(msg)
			err := ValidateCreateDeployment(msg)
			if tc.want == nil {
				succeeds(t, err)
				return
			}
			refused(t, err, tc.want)
		})
	}
}

func TestValidateParams(t *testing.T) {
	coin := func(denom string, n int64) sdk.Coin { return sdk.Coin{Denom: denom, Amount: math.NewInt(n)} }
	for _, tc := range []struct {
		name string
		min  []sdk.Coin
		ok   bool
	}{
		{"the defaults are accepted", DefaultParams().MinDeposits, true},
		{"a least deposit of zero is accepted", []sdk.Coin{coin("uact", 0)}, true},
		{"a denomination is listed", nil, false},
		{"a denomination is listed once", []sdk.Coin{coin("uact", 1), coin("uact", 2)}, false},
		{"a least deposit is not negative", []sdk.Coin{coin("uact", -1)}, false},
		{"a least deposit has an amount", []sdk.Coin{{Denom: "uact"}}, false},
		{"a denomination is valid", []sdk.Coin{coin("", 1)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := ValidateParams(deploymentv1beta4.Params{MinDeposits: tc.min}); (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// fuzzed decodes a message and checks that judging it does not panic, and that
// one that passes is stored and read as it was.
func fuzzed[M any, P interface {
	*M
	Unmarshal([]byte) error
	Marshal() ([]byte, error)
}](f *testing.F, validate func(P) error) {
	akashPrefix()
	wire, err := hex.DecodeString(vector)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	// The same with an owner whose checksum is right, so that the rest is judged.
	f.Add(bytes.Replace(wire, wire[4:48], []byte(person("tenant")), 1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var msg, again M
		if P(&msg).Unmarshal(wire) != nil || validate(&msg) != nil {
			return
		}
		bz, err := P(&msg).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := P(&again).Unmarshal(bz); err != nil {
			t.Fatal(err)
		}
		if err := validate(&again); err != nil {
			t.Fatalf("passes, but not when encoded again: %v", err)
		}
	})
}

func FuzzValidateCreateDeployment(f *testing.F) { fuzzed(f, ValidateCreateDeployment) }

func FuzzValidateUpdateDeployment(f *testing.F) { fuzzed(f, ValidateUpdateDeployment) }

func FuzzValidateCloseDeployment(f *testing.F) { fuzzed(f, ValidateCloseDeployment) }

func FuzzValidateCloseGroup(f *testing.F) { fuzzed(f, ValidateCloseGroup) }

func FuzzValidatePauseGroup(f *testing.F) { fuzzed(f, ValidatePauseGroup) }

func FuzzValidateStartGroup(f *testing.F) { fuzzed(f, ValidateStartGroup) }

func FuzzValidateUpdateParams(f *testing.F) { fuzzed(f, ValidateUpdateParams) }

func FuzzValidateGenesis(f *testing.F) { fuzzed(f, ValidateGenesis) }
