package provider

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	"cosmossdk.io/errors"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// MaxTextBytes bounds the URI, the e-mail address and the website. Akash has no
// such bound; what is in use is far below.
const MaxTextBytes = 1024

// ValidateCreateProvider judges a message by itself. Like the other Validate
// functions it accepts whatever a decoder can make and never panics.
func ValidateCreateProvider(msg *providerv1beta4.MsgCreateProvider) error {
	return ValidateProvider(providerv1beta4.Provider(*msg))
}

// ValidateUpdateProvider judges a message by itself.
func ValidateUpdateProvider(msg *providerv1beta4.MsgUpdateProvider) error {
	return ValidateProvider(providerv1beta4.Provider(*msg))
}

// ValidateDeleteProvider judges a message by itself.
func ValidateDeleteProvider(msg *providerv1beta4.MsgDeleteProvider) error {
	_, err := parseOwner(msg.Owner)
	return err
}

// ValidateProvider checks a record: its owner is an address, host_uri an
// absolute https URL of a host and nothing more, the attributes are keyed as the
// contract says, the website, if there is one, is a URL.
func ValidateProvider(p providerv1beta4.Provider) error {
	if _, err := parseOwner(p.Owner); err != nil {
		return err
	}
	if err := validateHostURI(p.HostURI); err != nil {
		return err
	}
	if err := attributesv1.ValidateOffered(p.Attributes); err != nil {
		return errors.Wrap(ErrInvalidAttributes, err.Error())
	}
	if len(p.Info.Email) > MaxTextBytes {
		return errors.Wrapf(ErrInvalidInfo, "email has %d bytes: give at most %d", len(p.Info.Email), MaxTextBytes)
	}
	if len(p.Info.Website) > MaxTextBytes {
		return errors.Wrapf(ErrInvalidInfo, "it has %d bytes: give at most %d", len(p.Info.Website), MaxTextBytes)
	}
	if _, err := url.Parse(p.Info.Website); err != nil {
		return errors.Wrapf(ErrInvalidInfo, "%.200v", err)
	}
	return nil
}

func validateHostURI(text string) error {
	if len(text) > MaxTextBytes {
		return errors.Wrapf(ErrInvalidURI, "it has %d bytes: give at most %d", len(text), MaxTextBytes)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.Wrapf(ErrInvalidURI, "%.200v", err)
	case !u.IsAbs():
		return errors.Wrapf(ErrNotAbsoluteURI, "%.100q", text)
	case u.Scheme != "https":
		return errors.Wrapf(ErrInvalidURI, "scheme is %.32q", u.Scheme)
	case u.Hostname() == "":
		return errors.Wrapf(ErrInvalidURI, "%.100q has no host", text)
	case u.Path != "":
		return errors.Wrapf(ErrInvalidURI, "path is %.100q", u.Path)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.Wrapf(ErrInvalidURI, "%.100q has more than a host", text)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.Wrapf(ErrInvalidURI, "port is %.32q", port)
		}
	}
	return nil
}

func parseOwner(text string) (sdk.AccAddress, error) {
	owner, err := parseAddress(text)
	if err != nil {
		return nil, errors.Wrapf(ErrInvalidAddress, "owner: %v", err)
	}
	return owner, nil
}

// parseAddress takes an address only in its usual form: bech32 allows upper
// case, and two spellings of one account would be two providers to a client.
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
