package sdl

import (
	"cmp"
	"fmt"
	"maps"
	"math/big"
	"slices"
)

// check holds the parts of d against each other. What one value has wrong by
// itself is in r.errs already.
func (r *reader) check(d *document) {
	r.checkServices(d)
	r.checkAddresses(d)
	r.checkHosts(d)
	r.checkDeployments(d)
	r.checkDenom(d)
	r.checkTotals(d)
	r.checkGlobal(d)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// didYouMean is the fix for a name that does not exist.
func didYouMean(name string, known []string, otherwise string) string {
	if near := nearest(name, known); near != "" {
		return "write " + near + ", or " + otherwise
	}
	return otherwise
}

func (r *reader) checkServices(d *document) {
	names := sortedKeys(d.services)
	misspelt := slices.ContainsFunc(sortedKeys(d.deployedAt), func(name string) bool { return d.services[name] == nil })
	for _, name := range names {
		s := d.services[name]
		if _, ok := d.deployedAt[name]; !ok && len(d.deployedAt) > 0 && !misspelt {
			r.badKey(s.field, "this service is not deployed", "name it below deployment, or remove it")
		}
		for _, e := range s.expose {
			for _, t := range e.to {
				if t.service != "" && d.services[t.service] == nil {
					r.bad(t.serviceAt, fmt.Sprintf("there is no service %q", t.service), didYouMean(t.service, names, "declare it below services"))
				}
			}
		}
	}
}

// checkGlobal wants the world to reach something. It comes last: other
// mistakes may be why nothing is reached.
func (r *reader) checkGlobal(d *document) {
	if len(r.errs) > 0 {
		return
	}
	names := sortedKeys(d.services)
	for _, name := range names {
		for _, e := range d.services[name].expose {
			if slices.ContainsFunc(e.to, func(t target) bool { return t.global }) {
				return
			}
		}
	}
	r.badKey(d.services[names[0]].field, "no service can be reached from outside", "write expose: [{port: 80, to: [{global: true}]}] below one of them")
}

// checkAddresses holds exposes against the declared leased addresses.
func (r *reader) checkAddresses(d *document) {
	used := map[string]bool{}
	unknown := false
	ports := map[string]string{} // who has address, port and protocol
	for _, name := range sortedKeys(d.services) {
		for _, e := range d.services[name].expose {
			for _, t := range e.to {
				if t.ip == "" {
					continue
				}
				used[t.ip] = true
				if !t.global {
					r.bad(t.ipAt, "an address of its own is for the world only", "write global: true beside it")
				}
				if _, ok := d.endpoints[t.ip]; !ok {
					unknown = true
					r.bad(t.ipAt, fmt.Sprintf("there is no endpoint %q", t.ip),
						didYouMean(t.ip, sortedKeys(d.endpoints), fmt.Sprintf("write endpoints: {%s: {kind: ip}} at the top level", t.ip)))
				}
				port := fmt.Sprintf("port %d/%s of %s", cmp.Or(e.as, e.port), e.proto, t.ip)
				if other, taken := ports[port]; taken {
					r.bad(t.ipAt, port+" is taken by service "+other, "choose another port with as")
				}
				ports[port] = name
			}
		}
	}
	for _, name := range sortedKeys(d.endpoints) {
		if !used[name] && !unknown && endpointForm.MatchString(name) {
			r.badKey(d.endpoints[name], "this endpoint is not used", "write ip: "+name+" beside a global: true, or remove it")
		}
	}
}

// checkHosts wants each host name once in the manifest, where an expose
// appears once for each of its targets and placements.
func (r *reader) checkHosts(d *document) {
	lines := map[string]int{}
	for _, name := range sortedKeys(d.services) {
		for _, e := range d.services[name].expose {
			if len(e.to) == 0 {
				continue // it reaches no manifest
			}
			for _, h := range e.hosts {
				host := h.node.Value
				if line, twice := lines[host]; twice {
					r.bad(h, fmt.Sprintf("host %s is taken on line %d", host, line), "remove one of them: a host name leads to one place")
					continue
				}
				lines[host] = h.node.Line
				switch {
				case len(e.to) > 1:
					r.bad(h, fmt.Sprintf("host %s would lead to %d targets", host, len(e.to)), "move the other targets to an expose of their own, without accept")
				case len(d.deployments[name]) > 1:
					r.bad(h, fmt.Sprintf("host %s would lead to %d placements", host, len(d.deployments[name])), "deploy the service in one placement, or remove the host")
				}
			}
		}
	}
}

func (r *reader) checkDeployments(d *document) {
	if len(d.services) == 0 {
		return // that has been said
	}
	for _, name := range sortedKeys(d.deployments) {
		s := d.services[name]
		if s == nil {
			r.badKey(d.deployedAt[name], fmt.Sprintf("there is no service %q", name), didYouMean(name, sortedKeys(d.services), "declare it below services"))
			continue
		}
		for _, dep := range d.deployments[name] {
			p := d.placements[dep.placement]
			if p == nil {
				r.badKey(dep.field, fmt.Sprintf("there is no placement %q", dep.placement),
					didYouMean(dep.placement, sortedKeys(d.placements), "declare it below profiles.placement"))
			}
			c := d.computes[dep.profile]
			if dep.profile == "" {
				continue
			}
			if c == nil {
				r.bad(dep.profileAt, fmt.Sprintf("there is no compute profile %q", dep.profile),
					didYouMean(dep.profile, sortedKeys(d.computes), "declare it below profiles.compute"))
				continue
			}
			if p != nil {
				if _, ok := p.pricing[dep.profile]; !ok {
					r.bad(dep.profileAt, fmt.Sprintf("placement %s has no price for profile %s", dep.placement, dep.profile),
						fmt.Sprintf("write %s: {denom: uact, amount: 100} below %s", dep.profile, join(p.path, "pricing")))
				}
			}
			r.checkVolumes(s, c)
			r.checkTEE(d, s, c, dep)
		}
	}
}

// checkVolumes holds the volumes of a profile against the mounts of a service.
func (r *reader) checkVolumes(s *service, c *compute) {
	if !c.ok {
		return
	}
	mounts := map[string]string{}
	if s.params != nil {
		for _, m := range s.params.Storage {
			at := s.mounts[m.Name]
			if !slices.ContainsFunc(c.storage, func(v Storage) bool { return v.Name == m.Name }) {
				var names []string
				for _, v := range c.storage {
					names = append(names, v.Name)
				}
				r.bad(at, fmt.Sprintf("profile %s has no volume %q", c.key.Value, m.Name), "its volumes are "+list(names))
				continue
			}
			if other, taken := mounts[m.Mount]; taken && m.Mount != "" {
				r.bad(at, fmt.Sprintf("volume %s is mounted at %s already", other, m.Mount), "choose another path")
			}
			mounts[m.Mount] = m.Name
		}
	}
	root := ""
	for i, v := range c.storage {
		mount := fmt.Sprintf("write %s: {mount: /PATH} below services.%s.params.storage", v.Name, s.key.Value)
		_, mounted := s.mounts[v.Name]
		switch {
		case mounted:
		case slices.Contains(v.Attributes, Attribute{"persistent", "true"}):
			r.bad(c.storageAt[i], fmt.Sprintf("volume %s is persistent but service %s does not mount it", v.Name, s.key.Value), mount)
		case root != "":
			r.bad(c.storageAt[i], fmt.Sprintf("service %s mounts neither volume %s nor %s; only one can be its root", s.key.Value, root, v.Name), mount)
		default:
			root = v.Name
		}
	}
}

func (r *reader) checkTEE(d *document, s *service, c *compute, dep deployment) {
	if s.params == nil || s.params.TEE == nil {
		return
	}
	kind := s.params.TEE.Type
	if c.ok && kind == "cpu-gpu" && c.gpu.Units == 0 {
		r.bad(s.tee, fmt.Sprintf("profile %s has no GPU", c.key.Value), "write cpu, or give the profile a gpu")
	}
	for _, name := range sortedKeys(d.deployments) {
		other := d.services[name]
		if other == nil || other == s || other.params == nil || other.params.TEE == nil || other.params.TEE.Type == kind {
			continue
		}
		if name < s.key.Value && slices.ContainsFunc(d.deployments[name], func(o deployment) bool { return o.placement == dep.placement }) {
			r.bad(s.tee, fmt.Sprintf("service %s wants %s in the same placement %s", name, other.params.TEE.Type, dep.placement), "want the same, or use two placements")
		}
	}
	if p := d.placements[dep.placement]; p != nil && slices.ContainsFunc(p.attributes, func(a Attribute) bool { return a.Key == teeAttribute }) {
		r.bad(s.tee, fmt.Sprintf("placement %s has the attribute %s already", dep.placement, teeAttribute), "remove it there: tee adds it")
	}
}

// checkDenom wants one coin for the whole deployment.
func (r *reader) checkDenom(d *document) {
	var first *price
	for _, name := range sortedKeys(d.deployments) {
		for _, dep := range d.deployments[name] {
			p := d.placements[dep.placement]
			if p == nil {
				continue
			}
			switch price, ok := p.pricing[dep.profile]; {
			case !ok || !price.ok:
			case first == nil:
				first = &price
			case price.denom != first.denom:
				r.badKey(price.field, fmt.Sprintf("the price is in %s, that on line %d in %s", price.denom, first.key.Line, first.denom), "pay a whole deployment with one coin")
			}
		}
	}
}

// checkTotals holds what each group asks for in all against the chain's limits.
func (r *reader) checkTotals(d *document) {
	type total struct{ cpu, gpu, memory, storage big.Int }
	groups := map[string]*total{}
	for _, name := range sortedKeys(d.deployments) {
		for _, dep := range d.deployments[name] {
			c := d.computes[dep.profile]
			if c == nil || !c.ok {
				continue
			}
			t := groups[dep.placement]
			if t == nil {
				t = &total{}
				groups[dep.placement] = t
			}
			add := func(sum *big.Int, q Quantity) {
				sum.Add(sum, new(big.Int).Mul(new(big.Int).SetUint64(uint64(q)), big.NewInt(int64(dep.count))))
			}
			add(&t.cpu, c.cpu.Units)
			add(&t.gpu, c.gpu.Units)
			add(&t.memory, c.memory.Size)
			for _, v := range c.storage {
				add(&t.storage, v.Size)
			}
			for _, limit := range []struct {
				name string
				sum  *big.Int
				most int64
			}{{"cores", &t.cpu, maxMilliCores}, {"GPUs", &t.gpu, maxGPUs}, {"memory", &t.memory, maxMemory}, {"storage", &t.storage, maxVolume}} {
				if limit.sum.Cmp(new(big.Int).Mul(big.NewInt(limit.most), big.NewInt(maxUnits))) > 0 {
					r.badKey(dep.field, fmt.Sprintf("placement %s asks for more %s than a group may have", dep.placement, limit.name), "lower count, or use more placements")
				}
			}
		}
	}
}
