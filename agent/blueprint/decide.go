package blueprint

import (
	"cmp"
	"maps"
	"slices"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
)

// Have is one replica that takes room: every one that is not removed yet.
type Have struct {
	ID        lease.ReplicaID
	Memory    int64
	GPUs      int
	Exclusive bool // has persistent volumes
	Answering bool
	Leaving   bool // told to stop
}

// Want is one service as it should be.
type Want struct {
	Name      string
	Plan      Service
	Count     int
	Memory    int64 // of one replica of the target
	GPUs      int
	Exclusive bool
	Old       map[uint64]Have // what one replica of an old generation takes, by revision
}

// Situation is all that [Decide] looks at. Memory of replicas and of the lease is
// without that of enclosures, which the lease has for as many as it has replicas.
type Situation struct {
	Key      lease.Key
	Services []Want // by name
	Have     []Have
	Memory   int64 // leased
	GPUs     int   // leased
	Lent     int64 // memory, on top of what was leased, for enclosures as well
	Lender   bool  // more may be asked for
}

// Deed is one thing to do. Exactly one of its parts is set.
type Deed struct {
	Start  *lease.ReplicaID
	Stop   *lease.ReplicaID
	Retire *lease.ReplicaID // forget that it is kept, then stop it
	Lend   int64            // more memory is needed, all in all, enclosures included; bytes, -1: none
	Alone  bool             // with retire: nothing of the service answers until a new replica does
	Lack   string           // with retire and alone: why there is no room for both
}

// Decide says what to do next. It is called again when that is done, and when
// anything changed; nothing to do is the aim.
func Decide(s Situation) []Deed {
	s = s.enclosed()
	d := decision{Situation: s, room: s.Memory + s.Lent, gpuRoom: s.GPUs}
	used := int64(0)
	for _, h := range s.Have {
		used += h.Memory
		d.gpuRoom -= h.GPUs
	}
	d.room -= used
	d.strays()
	for i := range s.Services {
		d.service(&s.Services[i])
	}
	if s.Lent > 0 && d.room >= s.Lent && len(d.deeds) == 0 {
		d.deeds = append(d.deeds, Deed{Lend: -1})
	}
	return d.deeds
}

// Crowded says whether what is there takes more memory than the lease has, and
// that will change: something is leaving, or it is not known yet what is lent
// (Lent is -1). No replica may start meanwhile, planned as it may be.
func Crowded(s Situation) bool {
	s = s.enclosed()
	room, leaving := s.Memory+max(0, s.Lent), s.Lent < 0
	for _, h := range s.Have {
		room -= h.Memory
		leaving = leaving || h.Leaving
	}
	return room < 0 && leaving
}

// enclosed counts the memory of each replica's enclosure with its own, as the
// ledger of the box does.
func (s Situation) enclosed() Situation {
	s.Have, s.Services = slices.Clone(s.Have), slices.Clone(s.Services)
	for i := range s.Have {
		s.Have[i].Memory += offer.ReplicaMemory
	}
	for i := range s.Services {
		w := &s.Services[i]
		s.Memory += int64(w.Count) * offer.ReplicaMemory
		w.Memory += offer.ReplicaMemory
		w.Old = maps.Clone(w.Old)
		for revision, h := range w.Old {
			h.Memory += offer.ReplicaMemory
			w.Old[revision] = h
		}
	}
	return s
}

type decision struct {
	Situation
	room    int64 // memory that is free
	gpuRoom int
	deeds   []Deed
}

// strays stops what no plan names.
func (d *decision) strays() {
	for _, h := range d.Have {
		i := slices.IndexFunc(d.Services, func(w Want) bool { return w.Name == h.ID.Service })
		if !h.Leaving && (i < 0 || !d.Services[i].Names(h.ID)) {
			d.stop(h, Deed{Stop: &h.ID})
		}
	}
}

// Names says whether a replica is part of the plan.
func (w *Want) Names(id lease.ReplicaID) bool {
	if id.Revision == w.Plan.Target.Revision {
		return id.Index < w.Count
	}
	return slices.ContainsFunc(w.Plan.Old, func(g Generation) bool {
		return g.Revision == id.Revision && slices.Contains(g.Indexes, id.Index)
	})
}

// Replicas are all that are part of the plan.
func (w *Want) Replicas(key lease.Key) []lease.ReplicaID {
	var all []lease.ReplicaID
	for _, g := range w.Plan.Old {
		for _, i := range g.Indexes {
			all = append(all, lease.ReplicaID{Lease: key, Service: w.Name, Revision: g.Revision, Index: i})
		}
	}
	for i := range w.Count {
		all = append(all, lease.ReplicaID{Lease: key, Service: w.Name, Revision: w.Plan.Target.Revision, Index: i})
	}
	return all
}

func (d *decision) stop(h Have, how Deed) {
	h.Leaving = true
	for i := range d.Have {
		if d.Have[i].ID == h.ID {
			d.Have = slices.Clone(d.Have)
			d.Have[i] = h
		}
	}
	d.deeds = append(d.deeds, how)
}

// service moves one service on. Old replicas make way one by one as new ones
// answer; where there is no room for both, one makes way first.
func (d *decision) service(w *Want) {
	var olds []Have // kept, weakest and oldest first
	answering, waiting, leaving := 0, 0, 0
	used := int64(0)
	for _, h := range d.Have {
		if h.ID.Service != w.Name {
			continue
		}
		used += h.Memory
		switch {
		case h.Leaving:
			leaving++
		case h.ID.Revision != w.Plan.Target.Revision:
			olds = append(olds, h)
		case h.Answering:
			answering++
		default:
			waiting++
		}
	}
	absent := map[lease.ReplicaID]bool{} // kept, but gone since a reboot
	for _, g := range w.Plan.Old {
		for _, i := range g.Indexes {
			id := lease.ReplicaID{Lease: d.Key, Service: w.Name, Revision: g.Revision, Index: i}
			if !d.there(id) {
				h := w.Old[g.Revision]
				h.ID = id
				absent[id] = true
				olds = append(olds, h)
			}
		}
	}
	slices.SortFunc(olds, func(a, b Have) int {
		if a.Answering != b.Answering {
			return cmp.Compare(boolInt(a.Answering), boolInt(b.Answering))
		}
		return cmp.Or(cmp.Compare(boolInt(absent[b.ID]), boolInt(absent[a.ID])), cmp.Compare(a.ID.Revision, b.ID.Revision), cmp.Compare(b.ID.Index, a.ID.Index))
	})
	for len(olds) > max(0, w.Count-answering) {
		if !absent[olds[0].ID] {
			leaving++
		}
		d.stop(olds[0], Deed{Retire: &olds[0].ID})
		olds = olds[1:]
	}
	for i := 0; i < len(olds); i++ {
		h := olds[i]
		switch {
		case !absent[h.ID]:
		case d.blocker(h.ID, h.Exclusive || w.Exclusive) < 0 && h.Memory <= d.room && h.GPUs <= d.gpuRoom:
			d.deeds = append(d.deeds, Deed{Start: &h.ID})
			d.Have = append(slices.Clone(d.Have), h)
			d.room -= h.Memory
			d.gpuRoom -= h.GPUs
			used += h.Memory
		default:
			d.deeds = append(d.deeds, Deed{Retire: &h.ID})
			olds = slices.Delete(olds, i, i+1)
			i--
		}
	}
	if d.room < 0 && len(olds) > 0 {
		// Memory that was lent is gone, for instance with a restart.
		for _, h := range d.Have {
			if h.ID.Service == w.Name && h.ID.Revision == w.Plan.Target.Revision && !h.Answering && !h.Leaving {
				d.stop(h, Deed{Stop: &h.ID})
			}
		}
		return
	}
	var missing []lease.ReplicaID
	for i := range w.Count {
		id := lease.ReplicaID{Lease: d.Key, Service: w.Name, Revision: w.Plan.Target.Revision, Index: i}
		if !d.there(id) {
			missing = append(missing, id)
		}
	}
	for _, id := range missing {
		blocker := d.blocker(id, w.Exclusive)
		fits := blocker < 0 && w.Memory <= d.room && w.GPUs <= d.gpuRoom
		mine := used+w.Memory <= int64(w.Count)*w.Memory // its share was meant for it
		if fits && (mine || d.room-w.Memory >= d.promised(w.Name)) {
			d.deeds = append(d.deeds, Deed{Start: &id})
			d.room -= w.Memory
			d.gpuRoom -= w.GPUs
			used += w.Memory
			waiting++
			continue
		}
		if leaving > 0 || len(olds) == 0 || waiting > 0 {
			return // room is being made, others have to make it, or a new one has to answer first
		}
		lack := "a persistent volume has one user at a time"
		if blocker < 0 {
			lack = "the lease has no memory for both"
			if w.GPUs > d.gpuRoom {
				lack = "the lease has no GPUs for both"
			} else if d.Lender {
				need := d.Lent + w.Memory + d.promised(w.Name) - d.room
				d.deeds = append(d.deeds, Deed{Lend: need})
				return
			}
		}
		victim := olds[0]
		if blocker >= 0 {
			victim = d.Have[blocker]
		}
		left := answering
		for _, o := range olds {
			if o.Answering && o.ID != victim.ID {
				left++
			}
		}
		d.stop(victim, Deed{Retire: &victim.ID, Alone: left == 0, Lack: lack})
		return
	}
}

func (d *decision) there(id lease.ReplicaID) bool {
	return slices.ContainsFunc(d.Have, func(h Have) bool { return h.ID == id })
}

// blocker is the place of the replica that has the persistent volumes that id
// would have; -1: none.
func (d *decision) blocker(id lease.ReplicaID, exclusive bool) int {
	return slices.IndexFunc(d.Have, func(h Have) bool {
		return h.ID != id && h.ID.Service == id.Service && h.ID.Index == id.Index && (exclusive || h.Exclusive)
	})
}

// promised is memory that other services have a right to and do not use yet.
func (d *decision) promised(name string) int64 {
	sum := int64(0)
	for _, w := range d.Services {
		if w.Name == name {
			continue
		}
		share := int64(w.Count) * w.Memory
		for _, h := range d.Have {
			if h.ID.Service == w.Name {
				share -= h.Memory
			}
		}
		for _, e := range d.deeds {
			if e.Start != nil && e.Start.Service == w.Name {
				share -= w.Memory
			}
		}
		sum += max(0, share)
	}
	return sum
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
