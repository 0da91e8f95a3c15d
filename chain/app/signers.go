package app

import (
	"fmt"
	"strings"

	protov2 "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cosmos/cosmos-sdk/codec/address"
	txsigning "github.com/cosmos/cosmos-sdk/x/tx/signing"
)

// signerPaths names, for each message whose signer is not one of its own
// fields, where the signer's address lies.
var signerPaths = map[protoreflect.FullName]string{
	"akash.deployment.v1beta4.MsgCreateDeployment": "id.owner",
	"akash.deployment.v1beta4.MsgUpdateDeployment": "id.owner",
	"akash.deployment.v1beta4.MsgCloseDeployment":  "id.owner",
	"akash.deployment.v1beta4.MsgCloseGroup":       "id.owner",
	"akash.deployment.v1beta4.MsgPauseGroup":       "id.owner",
	"akash.deployment.v1beta4.MsgStartGroup":       "id.owner",
	"akash.market.v1beta5.MsgCreateLease":          "bid_id.owner",
	"akash.market.v1beta5.MsgCloseLease":           "id.owner",
	"akash.market.v1beta5.MsgCreateBid":            "id.provider",
	"akash.market.v1beta5.MsgCloseBid":             "id.provider",
	"akash.market.v1beta5.MsgWithdrawLease":        "id.provider",
	"akash.market.v1beta5.MsgLeaseStartReclaim":    "id.provider",
	"akash.cert.v1.MsgRevokeCertificate":           "id.owner",
}

func customSigners() map[protoreflect.FullName]txsigning.GetSignersFunc {
	codec := address.NewBech32Codec(AddressPrefix)
	signers := make(map[protoreflect.FullName]txsigning.GetSignersFunc, len(signerPaths))
	for name, path := range signerPaths {
		signers[name] = func(msg protov2.Message) ([][]byte, error) {
			text, err := stringAt(msg.ProtoReflect(), path)
			if err != nil {
				return nil, fmt.Errorf("find signer of %s: %w", name, err)
			}
			addr, err := codec.StringToBytes(text)
			if err != nil {
				return nil, fmt.Errorf("signer of %s at %s: %w", name, path, err)
			}
			return [][]byte{addr}, nil
		}
	}
	return signers
}

// stringAt follows a dotted path of field names to a string. A message that is
// absent on the way is read as empty.
func stringAt(m protoreflect.Message, path string) (string, error) {
	for {
		name, rest, more := strings.Cut(path, ".")
		field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		switch {
		case field == nil:
			return "", fmt.Errorf("%s has no field %q", m.Descriptor().FullName(), name)
		case !more && field.Kind() == protoreflect.StringKind && !field.IsList():
			return m.Get(field).String(), nil
		case more && field.Kind() == protoreflect.MessageKind && !field.IsList() && !field.IsMap():
			m, path = m.Get(field).Message(), rest
		default:
			return "", fmt.Errorf("field %s is not on a path to a string", field.FullName())
		}
	}
}
