package sdl

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/api"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

// Validate says what is wrong with the form of a manifest that was received,
// as a sentence that names the service and the key; nil if nothing is.
func (m Manifest) Validate() error {
	if len(m) == 0 {
		return errors.New("the manifest has no group")
	}
	groups, hosts, global := map[string]bool{}, map[string]string{}, false
	for _, g := range m {
		switch {
		case g.Name == "":
			return errors.New("a group has no name")
		case groups[g.Name]:
			return fmt.Errorf("group %q is there twice", g.Name)
		case len(g.Services) == 0:
			return fmt.Errorf("group %q: services is empty", g.Name)
		case !slices.IsSortedFunc(g.Services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) }):
			return fmt.Errorf("group %q: services are not sorted by name", g.Name)
		}
		groups[g.Name] = true
		for i, s := range g.Services {
			if i > 0 && g.Services[i-1].Name == s.Name {
				return fmt.Errorf("group %q: service %q is there twice", g.Name, s.Name)
			}
			if err := s.validate(hosts); err != nil {
				return fmt.Errorf("group %q: service %q: %w", g.Name, s.Name, err)
			}
			global = global || slices.ContainsFunc(s.Expose, func(e Expose) bool { return e.Global })
		}
	}
	if !global {
		return errors.New("no service has an expose that is global")
	}
	return nil
}

// validate checks one service; hosts are the host names seen so far and who
// has them.
func (s Service) validate(hosts map[string]string) error {
	switch r := s.Resources; {
	case !serviceForm.MatchString(s.Name):
		return errors.New("name must be of a-z, 0-9 and -, begin with a letter and not end in -")
	case s.Image == "":
		return errors.New("image is empty")
	case s.Count == 0:
		return errors.New("count is 0")
	case r.ID == 0:
		return errors.New("resources.id is 0")
	case r.CPU == nil:
		return errors.New("resources.cpu is missing")
	case r.Memory == nil:
		return errors.New("resources.memory is missing")
	case len(r.Storage) == 0:
		return errors.New("resources.storage is missing")
	case r.GPU == nil:
		return errors.New("resources.gpu is missing")
	case r.Endpoints == nil:
		return errors.New("resources.endpoints is missing")
	}
	for i, v := range s.Env {
		if name, _, _ := strings.Cut(v, "="); !envName(name) {
			return fmt.Errorf("env[%d]: %q cannot name an environment variable", i, name)
		}
	}
	if !slices.IsSortedFunc(s.Expose, compareExposes) {
		return errors.New("expose is not sorted by service, port, proto and global")
	}
	for i, e := range s.Expose {
		switch {
		case e.Port == 0 || e.Port > math.MaxUint16:
			return fmt.Errorf("expose[%d].port: %d is not from 1 to 65535", i, e.Port)
		case e.ExternalPort > math.MaxUint16:
			return fmt.Errorf("expose[%d].externalPort: %d is not from 0 to 65535", i, e.ExternalPort)
		case e.Proto != "TCP" && e.Proto != "UDP":
			return fmt.Errorf("expose[%d].proto: %q is neither TCP nor UDP", i, e.Proto)
		}
		for _, host := range e.Hosts {
			if !validHost(host) {
				return fmt.Errorf("expose[%d].hosts: %q is not a host name in lower case", i, host)
			}
			if other, taken := hosts[host]; taken {
				return fmt.Errorf("expose[%d].hosts: %s is taken by service %q", i, host, other)
			}
			hosts[host] = s.Name
		}
	}
	return nil
}

// Check says why a manifest does not fit the groups that its deployment asked
// for on chain, as a sentence that names the service and the key; nil if it
// fits: same groups, every replica and every endpoint paid for and used. A
// manifest of wrong form (see [Manifest.Validate]) fits nothing.
func Check(m Manifest, groups []*deploymentv1beta4.GroupSpec) error {
	if err := m.Validate(); err != nil {
		return err
	}
	if len(m) != len(groups) {
		return fmt.Errorf("the manifest has %s, the deployment %d", count(len(m), "group"), len(groups))
	}
	for _, g := range m {
		at := slices.IndexFunc(groups, func(spec *deploymentv1beta4.GroupSpec) bool { return spec.GetName() == g.Name })
		if at < 0 {
			return fmt.Errorf("group %q is not in the deployment", g.Name)
		}
		if err := g.fits(groups[at]); err != nil {
			return fmt.Errorf("group %q: %w", g.Name, err)
		}
	}
	return nil
}

// use is what the services of a group leave of one of its units.
type use struct {
	unit      *deploymentv1beta4.ResourceUnit
	count     uint64
	endpoints map[Endpoint]int
}

func (g Group) fits(spec *deploymentv1beta4.GroupSpec) error {
	left := map[uint32]*use{}
	for _, unit := range spec.GetResources() {
		u := &use{unit: unit, count: uint64(unit.GetCount()), endpoints: map[Endpoint]int{}}
		for _, e := range unit.GetResource().GetEndpoints() {
			u.endpoints[Endpoint{EndpointKind(e.GetKind()), e.GetSequenceNumber()}]++
		}
		left[unit.GetResource().GetId()] = u
	}
	for _, s := range g.Services {
		u := left[s.Resources.ID]
		if u == nil {
			return fmt.Errorf("service %q: resources.id: the deployment has no unit %d", s.Name, s.Resources.ID)
		}
		if err := s.Resources.equal(u.unit.GetResource()); err != nil {
			return fmt.Errorf("service %q: %w", s.Name, err)
		}
		if uint64(s.Count) > u.count {
			return fmt.Errorf("service %q: count: %s too many for unit %d", s.Name, count(int(uint64(s.Count)-u.count), "replica"), s.Resources.ID)
		}
		u.count -= uint64(s.Count)
		for i, x := range s.Expose {
			for _, e := range x.endpoints() {
				if u.endpoints[e]--; u.endpoints[e] < 0 {
					return fmt.Errorf("service %q: expose[%d]: unit %d has no %s endpoint left", s.Name, i, s.Resources.ID, e)
				}
			}
		}
	}
	for _, unit := range spec.GetResources() {
		id := unit.GetResource().GetId()
		u := left[id]
		if u.count > 0 {
			return fmt.Errorf("%s of unit %d of the deployment are used by no service", count(int(u.count), "replica"), id)
		}
		byKind := func(a, b Endpoint) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.SequenceNumber, b.SequenceNumber))
		}
		for _, e := range slices.SortedFunc(maps.Keys(u.endpoints), byKind) {
			if u.endpoints[e] > 0 {
				return fmt.Errorf("a %s endpoint of unit %d of the deployment is used by no service", e, id)
			}
		}
	}
	return nil
}

// String is the endpoint's kind in words.
func (e Endpoint) String() string {
	switch e.Kind {
	case SharedHTTP:
		return "shared HTTP"
	case RandomPort:
		return "random port"
	case LeasedIP:
		return fmt.Sprintf("leased address (%d)", e.SequenceNumber)
	}
	return fmt.Sprintf("kind %d", e.Kind)
}

// equal says which part of r differs from that of the chain, but for the
// endpoints: those of a unit are of all its services.
func (r Resources) equal(unit *resourcesv1beta4.Resources) error {
	ours := r.message()
	parts := map[string][2]proto.Message{
		"cpu": {ours.Cpu, unit.GetCpu()}, "memory": {ours.Memory, unit.GetMemory()}, "gpu": {ours.Gpu, unit.GetGpu()},
	}
	for i := range max(len(ours.Storage), len(unit.GetStorage())) {
		if i >= len(ours.Storage) || i >= len(unit.GetStorage()) {
			return fmt.Errorf("resources.storage: %s, on chain %d", count(len(ours.Storage), "volume"), len(unit.GetStorage()))
		}
		parts[fmt.Sprintf("storage[%d]", i)] = [2]proto.Message{ours.Storage[i], unit.GetStorage()[i]}
	}
	for _, name := range sortedKeys(parts) {
		if part := parts[name]; !proto.Equal(part[0], part[1]) {
			have, err := api.JSON(part[0])
			on, err2 := api.JSON(part[1])
			return errors.Join(fmt.Errorf("resources.%s: %s, on chain %s", name, have, on), err, err2)
		}
	}
	return nil
}

func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	return fmt.Sprintf("%d %ss", n, of)
}
