package sdl

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

// teeAttribute is the placement attribute that params.tee adds.
const teeAttribute = "tee/type"

// group is one group while it is built.
type group struct {
	spec     *deploymentv1beta4.GroupSpec
	services []Service
	units    map[string]*deploymentv1beta4.ResourceUnit // by profile, those that can be shared
}

// build makes the groups and the manifest of a document without mistakes.
func (d *document) build() ([]*deploymentv1beta4.GroupSpec, Manifest) {
	numbers := d.sequenceNumbers()
	groups := map[string]*group{}
	for _, name := range sortedKeys(d.services) {
		s := d.services[name]
		endpoints := s.endpoints(numbers)
		for _, dep := range d.deployments[name] {
			g := groups[dep.placement]
			if g == nil {
				g = &group{spec: d.placements[dep.placement].spec(dep.placement), units: map[string]*deploymentv1beta4.ResourceUnit{}}
				groups[dep.placement] = g
			}
			resources := d.computes[dep.profile].resources()
			resources.Endpoints = slices.Clone(endpoints)
			unit := g.units[dep.profile]
			if unit == nil {
				resources.ID = uint32(len(g.spec.Resources)) + 1
				unit = &deploymentv1beta4.ResourceUnit{
					Resource: resources.message(),
					Price:    d.placements[dep.placement].pricing[dep.profile].message(),
				}
				g.spec.Resources = append(g.spec.Resources, unit)
				if d.version != "2.0" {
					g.units[dep.profile] = unit
				}
			} else {
				unit.Resource.Endpoints = append(unit.Resource.Endpoints, endpointMessages(endpoints)...)
			}
			unit.Count += dep.count
			resources.ID = unit.Resource.Id
			g.services = append(g.services, s.manifest(name, dep.count, resources, numbers))
			if s.params != nil && s.params.TEE != nil {
				g.require(Attribute{teeAttribute, s.params.TEE.Type})
			}
		}
	}
	var specs []*deploymentv1beta4.GroupSpec
	manifest := Manifest{}
	for _, name := range sortedKeys(groups) {
		g := groups[name]
		for _, unit := range g.spec.Resources {
			slices.SortFunc(unit.Resource.Endpoints, func(a, b *resourcesv1beta4.Endpoint) int {
				return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.SequenceNumber, b.SequenceNumber))
			})
		}
		specs = append(specs, g.spec)
		manifest = append(manifest, Group{Name: name, Services: g.services})
	}
	return specs, manifest
}

// sequenceNumbers counts the uses of leased addresses in the order of their
// names; an address has the number of its last use. So do the real clients.
func (d *document) sequenceNumbers() map[string]uint32 {
	var uses []string
	for _, s := range d.services {
		for _, e := range s.expose {
			for _, t := range e.to {
				if t.global && t.ip != "" {
					uses = append(uses, t.ip)
				}
			}
		}
	}
	slices.Sort(uses)
	numbers := map[string]uint32{}
	for i, name := range uses {
		numbers[name] = uint32(i) + 1
	}
	return numbers
}

// endpoints are the ways in to s, in the order of the file.
func (s *service) endpoints(numbers map[string]uint32) []Endpoint {
	all := []Endpoint{}
	for _, e := range s.expose {
		for _, t := range e.to {
			all = append(all, e.manifest(t, numbers).endpoints()...)
		}
	}
	return all
}

// endpoints are those that one expose uses.
func (e Expose) endpoints() []Endpoint {
	if !e.Global {
		return nil
	}
	kind := RandomPort
	if e.Proto == "TCP" && cmp.Or(e.ExternalPort, e.Port) == 80 {
		kind = SharedHTTP
	}
	all := []Endpoint{{Kind: kind}}
	if e.IP != "" {
		all = append(all, Endpoint{Kind: LeasedIP, SequenceNumber: e.EndpointSequenceNumber})
	}
	return all
}

func (e expose) manifest(t target, numbers map[string]uint32) Expose {
	x := Expose{
		Port: e.port, ExternalPort: e.as, Proto: e.proto, Service: t.service, Global: t.global,
		HTTPOptions: e.options, IP: t.ip, EndpointSequenceNumber: numbers[t.ip],
	}
	x.HTTPOptions.NextCases = slices.Clone(e.options.NextCases)
	for _, h := range e.hosts {
		x.Hosts = append(x.Hosts, h.node.Value)
	}
	return x
}

func (s *service) manifest(name string, count uint32, resources Resources, numbers map[string]uint32) Service {
	m := Service{
		Name: name, Image: s.image, Command: slices.Clone(s.command), Args: slices.Clone(s.args), Env: slices.Clone(s.env),
		Resources: resources, Count: count, Expose: []Expose{},
	}
	for _, e := range s.expose {
		for _, t := range e.to {
			m.Expose = append(m.Expose, e.manifest(t, numbers))
		}
	}
	slices.SortStableFunc(m.Expose, compareExposes)
	if s.params != nil {
		p := *s.params
		p.Storage = slices.Clone(p.Storage)
		if s.params.Permissions != nil {
			p.Permissions = &Permissions{slices.Clone(s.params.Permissions.Read)}
		}
		if s.params.TEE != nil {
			tee := *s.params.TEE
			p.TEE = &tee
		}
		m.Params = &p
	}
	if s.credentials != nil {
		c := *s.credentials
		m.Credentials = &c
	}
	return m
}

// compareExposes is the order in which a manifest lists them.
func compareExposes(a, b Expose) int {
	global := 0
	if a.Global != b.Global {
		global = map[bool]int{true: -1, false: 1}[a.Global]
	}
	return cmp.Or(strings.Compare(a.Service, b.Service), cmp.Compare(a.Port, b.Port), strings.Compare(a.Proto, b.Proto), global)
}

func (c *compute) resources() Resources {
	cpu, memory, gpu := c.cpu, c.memory, c.gpu
	cpu.Attributes, gpu.Attributes = slices.Clone(cpu.Attributes), slices.Clone(gpu.Attributes)
	storage := slices.Clone(c.storage)
	for i := range storage {
		storage[i].Attributes = slices.Clone(storage[i].Attributes)
	}
	return Resources{CPU: &cpu, Memory: &memory, Storage: storage, GPU: &gpu}
}

// The messages below have every part that the real clients write, those
// without content, too: an absent message and an empty one differ on the wire.

func (p *placement) spec(name string) *deploymentv1beta4.GroupSpec {
	return &deploymentv1beta4.GroupSpec{Name: name, Requirements: &attributesv1.PlacementRequirements{
		SignedBy:   &attributesv1.SignedBy{AllOf: slices.Clone(p.allOf), AnyOf: slices.Clone(p.anyOf)},
		Attributes: attributeMessages(p.attributes),
	}}
}

// require adds a requirement, once.
func (g *group) require(a Attribute) {
	all := g.spec.Requirements.Attributes
	at, found := slices.BinarySearchFunc(all, a.Key, func(m *attributesv1.Attribute, key string) int { return strings.Compare(m.Key, key) })
	if !found {
		g.spec.Requirements.Attributes = slices.Insert(all, at, &attributesv1.Attribute{Key: a.Key, Value: a.Value})
	}
}

func (p price) message() *basev1beta1.DecCoin {
	return &basev1beta1.DecCoin{Denom: p.denom, Amount: p.amount.String()}
}

func (r Resources) message() *resourcesv1beta4.Resources {
	m := &resourcesv1beta4.Resources{
		Id:        r.ID,
		Cpu:       &resourcesv1beta4.CPU{Units: r.CPU.Units.message(), Attributes: attributeMessages(r.CPU.Attributes)},
		Memory:    &resourcesv1beta4.Memory{Quantity: r.Memory.Size.message(), Attributes: attributeMessages(r.Memory.Attributes)},
		Gpu:       &resourcesv1beta4.GPU{Units: r.GPU.Units.message(), Attributes: attributeMessages(r.GPU.Attributes)},
		Endpoints: endpointMessages(r.Endpoints),
	}
	for _, v := range r.Storage {
		m.Storage = append(m.Storage, &resourcesv1beta4.Storage{Name: v.Name, Quantity: v.Size.message(), Attributes: attributeMessages(v.Attributes)})
	}
	return m
}

func (q Quantity) message() *resourcesv1beta4.ResourceValue {
	return &resourcesv1beta4.ResourceValue{Val: strconv.AppendUint(nil, uint64(q), 10)}
}

func attributeMessages(all []Attribute) []*attributesv1.Attribute {
	var out []*attributesv1.Attribute
	for _, a := range all {
		out = append(out, &attributesv1.Attribute{Key: a.Key, Value: a.Value})
	}
	return out
}

func endpointMessages(all []Endpoint) []*resourcesv1beta4.Endpoint {
	var out []*resourcesv1beta4.Endpoint
	for _, e := range all {
		out = append(out, &resourcesv1beta4.Endpoint{Kind: resourcesv1beta4.Endpoint_Kind(e.Kind), SequenceNumber: e.SequenceNumber})
	}
	return out
}
