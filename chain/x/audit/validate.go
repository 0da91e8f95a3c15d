package audit

import (
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"

	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
)

// ValidateSignProviderAttributes judges a message by itself. Like the other
// Validate functions it accepts whatever a decoder can make and never panics.
func ValidateSignProviderAttributes(msg *auditv1.MsgSignProviderAttributes) error {
	if _, _, err := parties(msg.Owner, msg.Auditor); err != nil {
		return err
	}
	if len(msg.Attributes) == 0 {
		return errors.Wrap(sdkerrors.ErrInvalidRequest, "attributes are empty: name at least one to sign")
	}
	return validateAttributes(msg.Attributes)
}

// ValidateDeleteProviderAttributes judges a message by itself.
func ValidateDeleteProviderAttributes(msg *auditv1.MsgDeleteProviderAttributes) error {
	if _, _, err := parties(msg.Owner, msg.Auditor); err != nil {
		return err
	}
	if len(msg.Keys) > attributesv1.MaxAttributes {
		return errors.Wrapf(sdkerrors.ErrInvalidRequest, "there are %d keys: name at most %d, or none to delete all", len(msg.Keys), attributesv1.MaxAttributes)
	}
	seen := make(map[string]bool, len(msg.Keys))
	for _, key := range msg.Keys {
		if seen[key] {
			return errors.Wrapf(sdkerrors.ErrInvalidRequest, "key %.64q is there twice", key)
		}
		seen[key] = true
	}
	return nil
}

func validateAttributes(attributes []attributesv1.Attribute) error {
	if err := attributesv1.ValidateOffered(attributes); err != nil {
		return errors.Wrap(sdkerrors.ErrInvalidRequest, err.Error())
	}
	return nil
}

// parties reads the addresses of a provider and its auditor.
func parties(owner, auditor string) (sdk.AccAddress, sdk.AccAddress, error) {
	o, err := parseAddress(owner)
	if err != nil {
		return nil, nil, errors.Wrapf(ErrInvalidAddress, "owner: %v", err)
	}
	a, err := parseAddress(auditor)
	if err != nil {
		return nil, nil, errors.Wrapf(ErrInvalidAddress, "auditor: %v", err)
	}
	return o, a, nil
}

// parseAddress takes an address only in its usual form: bech32 allows upper
// case, and two spellings of one account would be two auditors to a client.
func parseAddress(text string) (sdk.AccAddress, error) {
	addr, err := sdk.AccAddressFromBech32(text)
	if err != nil {
		return nil, fmt.Errorf("read address %.100q: %w", text, err)
	}
	if usual := addr.String(); usual != text {
		return nil, fmt.Errorf("read address %.100q: write it as %q", text, usual)
	}
	return addr, nil
}
