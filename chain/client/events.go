package client

import (
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/tendermintabci"
)

// eventsOfWire decodes the events of a transaction that gRPC tells of.
func eventsOfWire(tx int, raw []*tendermintabci.Event) []akash.Event {
	events := make([]akash.Event, 0, len(raw))
	for _, r := range raw {
		attributes := make([]akash.Attribute, 0, len(r.GetAttributes()))
		for _, a := range r.GetAttributes() {
			attributes = append(attributes, akash.Attribute{Key: a.GetKey(), Value: a.GetValue()})
		}
		events = append(events, akash.NewEvent(tx, r.GetType(), attributes))
	}
	return events
}

func eventsOfRPC(tx int, raw []rpcEvent) []akash.Event {
	events := make([]akash.Event, 0, len(raw))
	for _, r := range raw {
		events = append(events, akash.NewEvent(tx, r.Type, r.Attributes))
	}
	return events
}
