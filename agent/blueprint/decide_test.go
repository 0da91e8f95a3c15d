package blueprint

import (
	"testing"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/sdl"
)

// updating is a lease of one replica of so much memory that an update replaces.
func updating(memory int64) Situation {
	old := lease.ReplicaID{Lease: "l0", Service: "web", Revision: 1}
	return Situation{
		Key: "l0", Memory: memory, Lender: true,
		Services: []Want{{Name: "web", Count: 1, Memory: memory, Plan: Service{
			Target: Generation{Revision: 2, Source: 2}, Old: []Generation{{Revision: 1, Source: 1, Indexes: []int{0}}},
		}, Old: map[uint64]Have{1: {Memory: memory}}}},
		Have: []Have{{ID: old, Memory: memory, Answering: true}},
	}
}

// A replica beyond those that were leased takes of the box what the ledger counts
// for each that was: its memory and that of its enclosure.
func TestAnExtraReplicaBorrowsItsEnclosureToo(t *testing.T) {
	const memory = 512 << 20
	s := updating(memory)
	deeds := Decide(s)
	if len(deeds) != 1 || deeds[0].Lend != memory+offer.ReplicaMemory {
		t.Fatalf("deeds are %+v, want a loan of %d", deeds, memory+offer.ReplicaMemory)
	}
	s.Lent = memory // as much as it used to borrow
	if deeds = Decide(s); len(deeds) != 1 || deeds[0].Lend != memory+offer.ReplicaMemory {
		t.Fatalf("with too little lent the deeds are %+v", deeds)
	}
	s.Lent = memory + offer.ReplicaMemory
	if deeds = Decide(s); len(deeds) != 1 || deeds[0].Start == nil || deeds[0].Start.Revision != 2 {
		t.Fatalf("with enough lent the deeds are %+v", deeds)
	}
	if s.Services[0].Memory != memory || s.Have[0].Memory != memory || s.Services[0].Old[1].Memory != memory {
		t.Errorf("Decide changed what it looked at: %+v", s)
	}
	// Both run. Until the old one is gone, a loan that is lost holds up others.
	s.Have[0].Leaving = true
	s.Have = append(s.Have, Have{ID: *deeds[0].Start, Memory: memory, Answering: true})
	if Crowded(s) {
		t.Error("crowded although enough is lent")
	}
	if s.Lent = memory; !Crowded(s) {
		t.Error("not crowded although the second enclosure has no memory")
	}
	s.Have, s.Services[0].Plan.Old = s.Have[1:], nil // what was leased is enough for one
	if deeds = Decide(s); len(deeds) != 1 || deeds[0].Lend != -1 {
		t.Errorf("afterwards the deeds are %+v", deeds)
	}
}

// What the box counts for an order is what the manifest of that order takes.
func TestTheLedgerCountsWhatAManifestTakes(t *testing.T) {
	file, err := sdl.Parse([]byte(appSDL))
	if err != nil {
		t.Fatal(err)
	}
	room, err := offer.RoomOf(file.Groups()[0], nil, offer.ReplicaMemory)
	if err != nil {
		t.Fatal(err)
	}
	const replicas = 3
	memory, disk, _ := Leased(file.Manifest()[0])
	if room.Storage != disk || room.Memory != memory+replicas*offer.ReplicaMemory {
		t.Errorf("%d bytes of disk and %d of memory are counted, the manifest takes %d and %d", room.Storage, room.Memory, disk, memory+replicas*offer.ReplicaMemory)
	}
}

// An order that the box bids on brings a manifest that it takes.
func TestBoundsOfOrdersAreThoseOfManifests(t *testing.T) {
	group := func(services int, count uint32) sdl.Group {
		g := sdl.Group{Name: "g"}
		for range services {
			g.Services = append(g.Services, sdl.Service{Name: "s", Count: count})
		}
		return g
	}
	for _, tc := range []struct {
		name     string
		services int
		count    uint32
		fits     bool
	}{
		{"as many services as an order may have", offer.MaxServices, 1, true},
		{"one more", offer.MaxServices + 1, 1, false},
		{"as many replicas as an order may have", 1, offer.MaxReplicas, true},
		{"as many in several services", 2, offer.MaxReplicas / 2, true},
		{"one more replica", 1, offer.MaxReplicas + 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := bounded(group(tc.services, tc.count)); (err == nil) != tc.fits {
				t.Errorf("bounded = %v", err)
			}
		})
	}
}
