package akash

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

// DeploymentID names a deployment. Its text, "owner/dseq", is also the xid of
// its escrow account.
type DeploymentID struct {
	Owner account.Address
	DSeq  uint64
}

// GroupID names a group: "owner/dseq/gseq".
type GroupID struct {
	DeploymentID
	GSeq uint32
}

// OrderID names an order: "owner/dseq/gseq/oseq".
type OrderID struct {
	GroupID
	OSeq uint32
}

// BidID names a bid: "owner/dseq/gseq/oseq/provider", which is also the xid of
// its escrow account. BSeq is 0 in this version of the protocol.
type BidID struct {
	OrderID
	Provider account.Address
	BSeq     uint32
}

// LeaseID names a lease. It has the parts of the bid it was.
type LeaseID struct {
	OrderID
	Provider account.Address
	BSeq     uint32
}

func (id DeploymentID) String() string { return fmt.Sprintf("%s/%d", id.Owner, id.DSeq) }

func (id GroupID) String() string { return fmt.Sprintf("%s/%d", id.DeploymentID, id.GSeq) }

func (id OrderID) String() string { return fmt.Sprintf("%s/%d", id.GroupID, id.OSeq) }

func (id BidID) String() string { return fmt.Sprintf("%s/%s", id.OrderID, id.Provider) }

func (id LeaseID) String() string { return fmt.Sprintf("%s/%s", id.OrderID, id.Provider) }

// Lease is the lease that accepting the bid makes.
func (id BidID) Lease() LeaseID { return LeaseID(id) }

// Bid is the bid that became the lease.
func (id LeaseID) Bid() BidID { return BidID(id) }

// PaymentXID is the xid of the lease's payment: "gseq/oseq/provider".
func (id LeaseID) PaymentXID() string {
	return fmt.Sprintf("%d/%d/%s", id.GSeq, id.OSeq, id.Provider)
}

// ParseDeploymentID reads "owner/dseq".
func ParseDeploymentID(s string) (DeploymentID, error) {
	id, err := parseID(s, 2)
	return id.DeploymentID, err
}

// ParseGroupID reads "owner/dseq/gseq".
func ParseGroupID(s string) (GroupID, error) {
	id, err := parseID(s, 3)
	return id.GroupID, err
}

// ParseOrderID reads "owner/dseq/gseq/oseq".
func ParseOrderID(s string) (OrderID, error) {
	id, err := parseID(s, 4)
	return id.OrderID, err
}

// ParseBidID reads "owner/dseq/gseq/oseq/provider".
func ParseBidID(s string) (BidID, error) { return parseID(s, 5) }

// ParseLeaseID reads "owner/dseq/gseq/oseq/provider".
func ParseLeaseID(s string) (LeaseID, error) {
	id, err := parseID(s, 5)
	return id.Lease(), err
}

func parseID(s string, want int) (BidID, error) {
	bad := func(err error) (BidID, error) { return BidID{}, fmt.Errorf("id %q: %w", s, err) }
	parts := strings.Split(s, "/")
	if len(parts) != want {
		return bad(fmt.Errorf("has %d parts, want %d of owner/dseq/gseq/oseq/provider", len(parts), want))
	}
	owner, err := account.ParseAddress(parts[0])
	if err != nil {
		return bad(err)
	}
	var id BidID
	id.Owner = owner
	if id.DSeq, err = parseNumber(parts[1], 64); err != nil {
		return bad(fmt.Errorf("dseq: %w", err))
	}
	for i, into := range []*uint32{&id.GSeq, &id.OSeq} {
		if want <= i+2 {
			return id, nil
		}
		n, err := parseNumber(parts[i+2], 32)
		if err != nil {
			return bad(fmt.Errorf("%s: %w", [...]string{"gseq", "oseq"}[i], err))
		}
		*into = uint32(n) // parseNumber keeps it below 2^32
	}
	if want < 5 {
		return id, nil
	}
	if id.Provider, err = account.ParseAddress(parts[4]); err != nil {
		return bad(err)
	}
	return id, nil
}

func parseNumber(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is not a number from 1 on", s)
	}
	return n, nil
}

// Wire is the id as messages carry it.
func (id DeploymentID) Wire() *deploymentv1.DeploymentID {
	return &deploymentv1.DeploymentID{Owner: string(id.Owner), Dseq: id.DSeq}
}

// Wire is the id as messages carry it.
func (id GroupID) Wire() *deploymentv1.GroupID {
	return &deploymentv1.GroupID{Owner: string(id.Owner), Dseq: id.DSeq, Gseq: id.GSeq}
}

// Wire is the id as messages carry it.
func (id OrderID) Wire() *marketv1.OrderID {
	return &marketv1.OrderID{Owner: string(id.Owner), Dseq: id.DSeq, Gseq: id.GSeq, Oseq: id.OSeq}
}

// Wire is the id as messages carry it.
func (id BidID) Wire() *marketv1.BidID {
	return &marketv1.BidID{
		Owner: string(id.Owner), Dseq: id.DSeq, Gseq: id.GSeq, Oseq: id.OSeq,
		Provider: string(id.Provider), Bseq: id.BSeq,
	}
}

// Wire is the id as messages carry it.
func (id LeaseID) Wire() *marketv1.LeaseID {
	return &marketv1.LeaseID{
		Owner: string(id.Owner), Dseq: id.DSeq, Gseq: id.GSeq, Oseq: id.OSeq,
		Provider: string(id.Provider), Bseq: id.BSeq,
	}
}

// wireID is what ids of messages have in common.
type wireID interface {
	GetOwner() string
	GetDseq() uint64
}

// DeploymentIDOf is the deployment that any id of a message lies in.
func DeploymentIDOf(id wireID) DeploymentID {
	return DeploymentID{Owner: account.Address(id.GetOwner()), DSeq: id.GetDseq()}
}

// GroupIDOf is the group that an id of a message lies in.
func GroupIDOf(id interface {
	wireID
	GetGseq() uint32
},
) GroupID {
	return GroupID{DeploymentID: DeploymentIDOf(id), GSeq: id.GetGseq()}
}

// wireOrderID is what ids of orders, bids and leases have in common.
type wireOrderID interface {
	wireID
	GetGseq() uint32
	GetOseq() uint32
}

// OrderIDOf is the order that an id of a message lies in.
func OrderIDOf(id wireOrderID) OrderID {
	return OrderID{GroupID: GroupIDOf(id), OSeq: id.GetOseq()}
}

// BidIDOf reads the id of a bid.
func BidIDOf(id *marketv1.BidID) BidID {
	return BidID{OrderID: OrderIDOf(id), Provider: account.Address(id.GetProvider()), BSeq: id.GetBseq()}
}

// LeaseIDOf reads the id of a lease.
func LeaseIDOf(id *marketv1.LeaseID) LeaseID {
	return LeaseID{OrderID: OrderIDOf(id), Provider: account.Address(id.GetProvider()), BSeq: id.GetBseq()}
}
