package blueprint

import (
	"maps"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/sdl"
)

// maxOld is how many old generations of a service may serve at once. More than
// one needs several updates in a row none of which ever answers in full.
const maxOld = 3

// Plan is what becomes of the manifests of one lease. It is stored as JSON, and
// never changed by the functions that make another of it, but for Prune and
// Retire.
type Plan struct {
	Revision uint64             `json:"revision"`          // of the newest manifest
	Applied  uint64             `json:"applied"`           // the manifest that Services follows; below Revision: not yet the newest
	Services map[string]Service `json:"services"`          // by name
	Images   map[string]string  `json:"images,omitempty"`  // OCI image as the tenant wrote it → with digest
	Sources  map[uint64]bool    `json:"sources,omitempty"` // manifests whose files are needed
}

// Service is how far one service has come from old replicas to new ones.
type Service struct {
	Target Generation   `json:"target"`
	Old    []Generation `json:"old,omitempty"` // oldest first; these still serve
}

// Generation is replicas that were made alike.
type Generation struct {
	Revision uint64 `json:"revision"`          // names its replicas
	Source   uint64 `json:"source"`            // manifest that describes it best
	Indexes  []int  `json:"indexes,omitempty"` // of an old generation: replicas that are kept
}

// Clone is a copy that shares nothing with p.
func (p Plan) Clone() Plan {
	p.Services, p.Images, p.Sources = maps.Clone(p.Services), maps.Clone(p.Images), maps.Clone(p.Sources)
	for name, s := range p.Services {
		s.Old = slices.Clone(s.Old)
		for i := range s.Old {
			s.Old[i].Indexes = slices.Clone(s.Old[i].Indexes)
		}
		p.Services[name] = s
	}
	return p
}

// Follow is the plan after the manifest of revision p.Revision was taken in:
// unchanged services go on, changed ones get a new target, and what answers now
// becomes old. groups has every manifest that p names.
func (p Plan) Follow(groups map[uint64]sdl.Group, answering func(lease.ReplicaID) bool, key lease.Key) (after Plan, changed []string) {
	after = p.Clone()
	after.Applied = p.Revision
	after.Services = map[string]Service{}
	for _, s := range groups[p.Revision].Services {
		before, had := p.Services[s.Name]
		fresh := Generation{Revision: p.Revision, Source: p.Revision}
		if !had {
			after.Services[s.Name] = Service{Target: fresh}
			continue
		}
		same := func(g Generation) bool {
			spec, ok := ServiceOf(groups[g.Source], s.Name)
			return ok && fingerprint(spec) == fingerprint(s)
		}
		if same(before.Target) {
			before.Target.Source = p.Revision
			before.Old = slices.Clone(before.Old)
			after.Services[s.Name] = before
			continue
		}
		changed = append(changed, s.Name)
		plan := Service{Target: fresh}
		retiring := before.Target
		if spec, ok := ServiceOf(groups[retiring.Source], s.Name); ok {
			retiring.Indexes = nil
			for i := range int(spec.Count) {
				if answering(lease.ReplicaID{Lease: key, Service: s.Name, Revision: retiring.Revision, Index: i}) {
					retiring.Indexes = append(retiring.Indexes, i)
				}
			}
		}
		for _, old := range append(slices.Clone(before.Old), retiring) {
			switch {
			case same(old):
				// Back to what still serves: no need to make it again.
				plan.Target = Generation{Revision: old.Revision, Source: p.Revision}
			case len(old.Indexes) > 0:
				plan.Old = append(plan.Old, old)
			}
		}
		plan.Old = plan.Old[max(0, len(plan.Old)-maxOld):]
		after.Services[s.Name] = plan
	}
	after.Prune(groups)
	return after, changed
}

// Prune drops from p the manifests and images that nothing needs.
func (p *Plan) Prune(groups map[uint64]sdl.Group) {
	sources := map[uint64]bool{p.Revision: true, p.Applied: p.Applied != 0}
	images := map[string]string{}
	for name, s := range p.Services {
		for _, g := range append(slices.Clone(s.Old), s.Target) {
			sources[g.Source] = true
			if spec, ok := ServiceOf(groups[g.Source], name); ok && p.Images[spec.Image] != "" {
				images[spec.Image] = p.Images[spec.Image]
			}
		}
	}
	maps.DeleteFunc(sources, func(_ uint64, needed bool) bool { return !needed })
	p.Sources, p.Images = sources, images
}

// Retire forgets that an old replica is kept.
func (p *Plan) Retire(id lease.ReplicaID) {
	s := p.Services[id.Service]
	for i := range s.Old {
		if s.Old[i].Revision == id.Revision {
			s.Old[i].Indexes = slices.DeleteFunc(s.Old[i].Indexes, func(n int) bool { return n == id.Index })
		}
	}
	s.Old = slices.DeleteFunc(s.Old, func(g Generation) bool { return len(g.Indexes) == 0 })
	if len(s.Old) == 0 {
		s.Old = nil
	}
	p.Services[id.Service] = s
}

// Spec is the service that a replica's generation is made of, empty if its
// manifest is lost. For replicas that an update left alone, the newest manifest
// says.
func (p Plan) Spec(groups map[uint64]sdl.Group, id lease.ReplicaID) sdl.Service {
	for _, g := range p.Services[id.Service].Revisions() {
		if g.Revision == id.Revision {
			spec, _ := ServiceOf(groups[g.Source], id.Service)
			return spec
		}
	}
	return sdl.Service{}
}

// Needs says whether any generation is made of an image.
func (p Plan) Needs(groups map[uint64]sdl.Group, image string) bool {
	for name, s := range p.Services {
		for _, g := range s.Revisions() {
			if spec, ok := ServiceOf(groups[g.Source], name); ok && spec.Image == image {
				return true
			}
		}
	}
	return false
}

// Unresolved says whether any generation is made of an image whose digest is not
// on record: the journal failed, or it is on its way.
func (p Plan) Unresolved(groups map[uint64]sdl.Group) bool {
	for name, s := range p.Services {
		for _, g := range s.Revisions() {
			if spec, ok := ServiceOf(groups[g.Source], name); ok && p.Images[spec.Image] == "" {
				return true
			}
		}
	}
	return false
}

// Credentials are those to fetch an image with, the newest manifest's first; nil:
// none.
func (p Plan) Credentials(groups map[uint64]sdl.Group, image string) *sdl.Credentials {
	older := slices.Sorted(maps.Keys(groups))
	slices.Reverse(older)
	for _, revision := range append([]uint64{p.Applied}, older...) {
		for _, s := range groups[revision].Services {
			if s.Image == image && s.Credentials != nil {
				return s.Credentials
			}
		}
	}
	return nil
}

// Updated are the services that the newest manifest changed, by name.
func (p Plan) Updated() []string {
	var names []string
	for name, s := range p.Services {
		if p.Applied > 1 && s.Target.Revision == p.Applied {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Hide takes the passwords that manifests bring out of a text that others wrote.
func Hide(groups map[uint64]sdl.Group, text string) string {
	for _, g := range groups {
		for _, s := range g.Services {
			if s.Credentials != nil && s.Credentials.Password != "" {
				text = strings.ReplaceAll(text, s.Credentials.Password, "***")
			}
		}
	}
	return text
}

// Revisions are the generations of a service, oldest first.
func (s Service) Revisions() []Generation { return append(slices.Clone(s.Old), s.Target) }

// Wants is what the plan asks for, by name of the service. One whose manifest is
// lost is left out.
func (p Plan) Wants(groups map[uint64]sdl.Group) []Want {
	var wants []Want
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		plan := p.Services[name]
		spec, ok := ServiceOf(groups[plan.Target.Source], name)
		if !ok {
			continue
		}
		w := Want{
			Name: name, Plan: plan, Count: int(spec.Count), Memory: MemoryOf(spec), GPUs: GPUsOf(spec),
			Exclusive: Exclusive(spec), Old: map[uint64]Have{},
		}
		w.Plan.Old = nil
		for _, g := range plan.Old {
			if spec, ok := ServiceOf(groups[g.Source], name); ok { // else its manifest is lost
				w.Plan.Old = append(w.Plan.Old, g)
				w.Old[g.Revision] = Have{Memory: MemoryOf(spec), GPUs: GPUsOf(spec), Exclusive: Exclusive(spec)}
			}
		}
		wants = append(wants, w)
	}
	return wants
}
