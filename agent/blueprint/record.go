package blueprint

import (
	"fmt"
	"maps"
	"slices"

	"github.com/croft-cloud/croft/chain/sdl"
)

// Record is what a box must not forget of a lease: its manifest and how far it is
// followed. As JSON it lies in the journal.
type Record struct {
	Lease string            `json:"lease"`
	Group string            `json:"group"`           // name of the group that runs under it
	State State             `json:"state"`           // Deploying or Closing; finer ones are found out
	Hash  []byte            `json:"hash"`            // of the newest manifest, in canonical form
	Hosts map[string]uint64 `json:"hosts,omitempty"` // host name → claim; the highest claim on the box has the host
	Lent  int64             `json:"lent,omitempty"`  // bytes of memory that an update has borrowed
	GPUs  map[string][]int  `json:"gpus,omitempty"`  // pod → indexes of the machine's GPUs that it has
	Plan
}

// Clone shares nothing that a change of the record changes.
func (r Record) Clone() Record {
	r.Hosts, r.GPUs, r.Plan = maps.Clone(r.Hosts), maps.Clone(r.GPUs), r.Plan.Clone()
	return r
}

// Take makes a manifest the newest, under a revision of its own.
func (r *Record) Take(group sdl.Group, hash [32]byte, claims map[string]uint64, revision uint64, state State) {
	r.Group, r.State, r.Hash, r.Hosts, r.Revision = group.Name, state, hash[:], claims, revision
	if r.Sources == nil {
		r.Sources = map[uint64]bool{}
	}
	r.Sources[revision] = true
}

// Equip gives a pod n of the lease's GPUs: such as no other pod of those there
// are has.
func (r *Record) Equip(pod string, n int, leased []int, pods map[string]bool) error {
	free := slices.Clone(leased)
	gpus := map[string][]int{}
	for other, taken := range r.GPUs {
		if pods[other] {
			gpus[other] = taken
			free = slices.DeleteFunc(free, func(i int) bool { return slices.Contains(taken, i) })
		}
	}
	if len(free) < n {
		return fmt.Errorf("%s needs %d GPUs, %d are free", pod, n, len(free))
	}
	gpus[pod] = free[:n]
	r.GPUs = gpus
	return nil
}
