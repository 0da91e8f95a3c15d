package market

import (
	"encoding/binary"
	"fmt"

	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/escrowidv1"
	"github.com/croft-cloud/croft/chain/gogo/marketv1"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

// A record's key is its id, part by part, so that the first parts of an id are
// a prefix of the keys of all records under it, and keys sort as ids do:
//
//	len(owner) owner dseq(8) gseq(4) oseq(4) [len(provider) provider]
//
// Numbers are big-endian. The bseq of a bid is always 0 and not in the key.

// keyOf joins the leading parts of an id, up to the first that is zero.
func keyOf(owner string, dseq uint64, gseq, oseq uint32, provider string) ([]byte, error) {
	if owner == "" {
		return nil, nil
	}
	key, err := appendAddress(nil, owner)
	if err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	if dseq == 0 {
		return key, nil
	}
	key = binary.BigEndian.AppendUint64(key, dseq)
	if gseq == 0 {
		return key, nil
	}
	key = binary.BigEndian.AppendUint32(key, gseq)
	if oseq == 0 {
		return key, nil
	}
	key = binary.BigEndian.AppendUint32(key, oseq)
	if provider == "" {
		return key, nil
	}
	if key, err = appendAddress(key, provider); err != nil {
		return nil, fmt.Errorf("provider: %w", err)
	}
	return key, nil
}

func groupKey(id deploymentv1.GroupID) ([]byte, error) {
	return keyOf(id.Owner, id.DSeq, id.GSeq, 0, "")
}

func orderKey(id marketv1.OrderID) ([]byte, error) {
	return keyOf(id.Owner, id.DSeq, id.GSeq, id.OSeq, "")
}

func bidKey(id marketv1.BidID) ([]byte, error) {
	return keyOf(id.Owner, id.DSeq, id.GSeq, id.OSeq, id.Provider)
}

// appendAddress adds an address after its length, which fits one byte in all
// addresses the SDK accepts.
func appendAddress(key []byte, text string) ([]byte, error) {
	addr, err := parseAddress(text)
	if err != nil {
		return nil, err
	}
	key = append(key, byte(len(addr)))
	return append(key, addr...), nil
}

// parseAddress takes an address only in its usual form: bech32 allows upper
// case, and two spellings of one account would be two ids.
func parseAddress(text string) (sdk.AccAddress, error) {
	addr, err := sdk.AccAddressFromBech32(text)
	if err != nil {
		return nil, fmt.Errorf("read address %q: %w", text, err)
	}
	if usual := addr.String(); usual != text {
		return nil, fmt.Errorf("read address %q: write it as %q", text, usual)
	}
	return addr, nil
}

func orderOf(id marketv1.BidID) marketv1.OrderID {
	return marketv1.OrderID{Owner: id.Owner, DSeq: id.DSeq, GSeq: id.GSeq, OSeq: id.OSeq}
}

func groupOf(id marketv1.OrderID) deploymentv1.GroupID {
	return deploymentv1.GroupID{Owner: id.Owner, DSeq: id.DSeq, GSeq: id.GSeq}
}

func orderText(id marketv1.OrderID) string {
	return fmt.Sprintf("%s/%d/%d/%d", id.Owner, id.DSeq, id.GSeq, id.OSeq)
}

func bidText(id marketv1.BidID) string {
	return orderText(orderOf(id)) + "/" + id.Provider
}

func leaseText(id marketv1.LeaseID) string {
	return bidText(marketv1.BidID(id))
}

// bidAccount names the escrow account that holds a bid's deposit.
func bidAccount(id marketv1.BidID) escrowidv1.Account {
	return escrowidv1.Account{Scope: escrowidv1.ScopeBid, XID: bidText(id)}
}

// deploymentAccount names the escrow account that pays a lease.
func deploymentAccount(id marketv1.LeaseID) escrowidv1.Account {
	return escrowidv1.Account{Scope: escrowidv1.ScopeDeployment, XID: fmt.Sprintf("%s/%d", id.Owner, id.DSeq)}
}

// leasePayment names the payment of a lease.
func leasePayment(id marketv1.LeaseID) escrowidv1.Payment {
	return escrowidv1.Payment{AID: deploymentAccount(id), XID: fmt.Sprintf("%d/%d/%s", id.GSeq, id.OSeq, id.Provider)}
}
