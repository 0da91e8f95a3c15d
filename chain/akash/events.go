package akash

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/marketv1"
)

// Event is something that happened in a block.
type Event struct {
	// Tx is the transaction's place in the block, from 0; -1 when the block
	// itself did it.
	Tx int
	// Type is the name on the wire: "akash.market.v1.EventOrderCreated".
	Type string
	// Attributes are as the node tells them.
	Attributes []Attribute
	// Value is the event decoded: one of the Event… structs below, by value. It
	// is nil for types that are not listed here.
	Value any
	// Err tells why an event of a listed type could not be decoded; Value is nil
	// then.
	Err error
}

// Attribute is one key of an event. Values of the chain's typed events are JSON.
type Attribute struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Get is the value of the first attribute with this key; empty when there is
// none.
func (e Event) Get(key string) string {
	for _, a := range e.Attributes {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

// The events of Akash's modules.
type (
	// EventDeploymentCreated comes before the orders of its groups.
	EventDeploymentCreated struct {
		ID   DeploymentID
		Hash []byte // of the manifest
	}
	// EventDeploymentUpdated tells that the tenant will send another manifest.
	EventDeploymentUpdated struct {
		ID   DeploymentID
		Hash []byte
	}
	EventDeploymentClosed struct{ ID DeploymentID }
	EventGroupStarted     struct{ ID GroupID }
	EventGroupPaused      struct{ ID GroupID }
	EventGroupClosed      struct{ ID GroupID }
	EventOrderCreated     struct{ ID OrderID }
	EventOrderClosed      struct{ ID OrderID }
	EventBidCreated       struct {
		ID    BidID
		Price Price
	}
	EventBidClosed    struct{ ID BidID }
	EventLeaseCreated struct {
		ID    LeaseID
		Price Price
	}
	EventLeaseClosed struct {
		ID     LeaseID
		Reason marketv1.LeaseClosedReason
	}
	// EventLeaseReclaimStarted tells from when on the provider may close.
	EventLeaseReclaimStarted struct {
		ID       LeaseID
		Reason   marketv1.LeaseClosedReason
		Deadline time.Time
	}
	EventProviderCreated       struct{ Owner account.Address }
	EventProviderUpdated       struct{ Owner account.Address }
	EventProviderDeleted       struct{ Owner account.Address }
	EventTrustedAuditorCreated struct{ Owner, Auditor account.Address }
	EventTrustedAuditorDeleted struct{ Owner, Auditor account.Address }
)

// NewEvent decodes what it knows. It never fails: an event is there even when
// this program is too old to read it.
func NewEvent(tx int, name string, attributes []Attribute) Event {
	e := Event{Tx: tx, Type: name, Attributes: attributes}
	if decode, ok := decoders[name]; ok {
		value, err := decode(fields(attributes))
		if err != nil {
			e.Err = fmt.Errorf("decode %s: %w", name, err)
		} else {
			e.Value = value
		}
	}
	return e
}

// decoders by type name.
var decoders = map[string]func(fields) (any, error){
	"akash.deployment.v1.EventDeploymentCreated": func(f fields) (any, error) {
		id, err := f.id("id")
		hash, err2 := f.bytes("hash")
		return EventDeploymentCreated{id.DeploymentID, hash}, errors.Join(err, err2)
	},
	"akash.deployment.v1.EventDeploymentUpdated": func(f fields) (any, error) {
		id, err := f.id("id")
		hash, err2 := f.bytes("hash")
		return EventDeploymentUpdated{id.DeploymentID, hash}, errors.Join(err, err2)
	},
	"akash.deployment.v1.EventDeploymentClosed": func(f fields) (any, error) {
		id, err := f.id("id")
		return EventDeploymentClosed{id.DeploymentID}, err
	},
	"akash.deployment.v1.EventGroupStarted": func(f fields) (any, error) {
		id, err := f.id("id", partGroup)
		return EventGroupStarted{id.GroupID}, err
	},
	"akash.deployment.v1.EventGroupPaused": func(f fields) (any, error) {
		id, err := f.id("id", partGroup)
		return EventGroupPaused{id.GroupID}, err
	},
	"akash.deployment.v1.EventGroupClosed": func(f fields) (any, error) {
		id, err := f.id("id", partGroup)
		return EventGroupClosed{id.GroupID}, err
	},
	"akash.market.v1.EventOrderCreated": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder)
		return EventOrderCreated{id.OrderID}, err
	},
	"akash.market.v1.EventOrderClosed": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder)
		return EventOrderClosed{id.OrderID}, err
	},
	"akash.market.v1.EventBidCreated": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder, partProvider)
		price, err2 := f.price("price")
		return EventBidCreated{id, price}, errors.Join(err, err2)
	},
	"akash.market.v1.EventBidClosed": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder, partProvider)
		return EventBidClosed{id}, err
	},
	"akash.market.v1.EventLeaseCreated": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder, partProvider)
		price, err2 := f.price("price")
		return EventLeaseCreated{id.Lease(), price}, errors.Join(err, err2)
	},
	"akash.market.v1.EventLeaseClosed": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder, partProvider)
		reason, err2 := f.reason("reason")
		return EventLeaseClosed{id.Lease(), reason}, errors.Join(err, err2)
	},
	"akash.market.v1.EventLeaseReclaimStarted": func(f fields) (any, error) {
		id, err := f.id("id", partGroup, partOrder, partProvider)
		reason, err2 := f.reason("reason")
		var deadline number
		err3 := f.decode("deadline", &deadline)
		return EventLeaseReclaimStarted{id.Lease(), reason, time.Unix(int64(deadline), 0).UTC()}, errors.Join(err, err2, err3)
	},
	"akash.provider.v1beta4.EventProviderCreated": func(f fields) (any, error) {
		owner, err := f.address("owner")
		return EventProviderCreated{owner}, err
	},
	"akash.provider.v1beta4.EventProviderUpdated": func(f fields) (any, error) {
		owner, err := f.address("owner")
		return EventProviderUpdated{owner}, err
	},
	"akash.provider.v1beta4.EventProviderDeleted": func(f fields) (any, error) {
		owner, err := f.address("owner")
		return EventProviderDeleted{owner}, err
	},
	"akash.audit.v1.EventTrustedAuditorCreated": func(f fields) (any, error) {
		owner, err := f.address("owner")
		auditor, err2 := f.address("auditor")
		return EventTrustedAuditorCreated{owner, auditor}, errors.Join(err, err2)
	},
	"akash.audit.v1.EventTrustedAuditorDeleted": func(f fields) (any, error) {
		owner, err := f.address("owner")
		auditor, err2 := f.address("auditor")
		return EventTrustedAuditorDeleted{owner, auditor}, errors.Join(err, err2)
	},
}

// part is what an id must have beyond owner and dseq.
type part int

const (
	partGroup part = iota
	partOrder
	partProvider
)

// fields are the attributes of a typed event.
type fields []Attribute

// decode reads the JSON of one attribute.
func (f fields) decode(key string, into any) error {
	for _, a := range f {
		if a.Key == key {
			if err := json.Unmarshal([]byte(a.Value), into); err != nil {
				return fmt.Errorf("attribute %s: %w", key, err)
			}
			return nil
		}
	}
	return fmt.Errorf("attribute %s is missing", key)
}

// unsigned is like number, for ids: dseq is text in JSON, gseq and oseq are
// numbers.
type unsigned uint64

func (n *unsigned) UnmarshalJSON(raw []byte) error {
	v, err := strconv.ParseUint(string(bytes.Trim(raw, `"`)), 10, 64)
	if err != nil {
		return fmt.Errorf("number %.40s: want an unsigned integer", raw)
	}
	*n = unsigned(v)
	return nil
}

func (f fields) id(key string, parts ...part) (BidID, error) {
	var raw struct {
		Owner    account.Address `json:"owner"`
		DSeq     unsigned        `json:"dseq"`
		GSeq     uint32          `json:"gseq"`
		OSeq     uint32          `json:"oseq"`
		Provider account.Address `json:"provider"`
		BSeq     uint32          `json:"bseq"`
	}
	if err := f.decode(key, &raw); err != nil {
		return BidID{}, err
	}
	bad := raw.Owner == "" || raw.DSeq == 0
	for _, p := range parts {
		switch p {
		case partGroup:
			bad = bad || raw.GSeq == 0
		case partOrder:
			bad = bad || raw.OSeq == 0
		case partProvider:
			bad = bad || raw.Provider == ""
		}
	}
	if bad {
		return BidID{}, fmt.Errorf("attribute %s lacks a part of the id", key)
	}
	group := GroupID{DeploymentID{raw.Owner, uint64(raw.DSeq)}, raw.GSeq}
	return BidID{OrderID: OrderID{group, raw.OSeq}, Provider: raw.Provider, BSeq: raw.BSeq}, nil
}

func (f fields) bytes(key string) (out []byte, err error) { return out, f.decode(key, &out) }

func (f fields) address(key string) (account.Address, error) {
	var text string
	if err := f.decode(key, &text); err != nil {
		return "", err
	}
	address, err := account.ParseAddress(text)
	if err != nil {
		return "", fmt.Errorf("attribute %s: %w", key, err)
	}
	return address, nil
}

func (f fields) price(key string) (Price, error) {
	var raw struct {
		Denom  string `json:"denom"`
		Amount string `json:"amount"`
	}
	if err := f.decode(key, &raw); err != nil {
		return Price{}, err
	}
	amount, err := ParseDec(raw.Amount)
	if err != nil {
		return Price{}, fmt.Errorf("attribute %s: %w", key, err)
	}
	return Price{Denom: raw.Denom, Amount: amount}, nil
}

// reason reads the name of a reason. A name that this program is too old to know
// is lease_closed_invalid: that a lease has closed matters more than why.
func (f fields) reason(key string) (marketv1.LeaseClosedReason, error) {
	var name string
	if err := f.decode(key, &name); err != nil {
		return 0, err
	}
	return marketv1.LeaseClosedReason(marketv1.LeaseClosedReason_value[name]), nil
}

// number is an integer of 64 bits that JSON carries as a string or as a number.
type number int64

func (n *number) UnmarshalJSON(raw []byte) error {
	v, err := strconv.ParseInt(string(bytes.Trim(raw, `"`)), 10, 64)
	if err != nil {
		return fmt.Errorf("number %.40s: want an integer of 64 bits", raw)
	}
	*n = number(v)
	return nil
}
