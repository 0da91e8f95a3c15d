package sdl

import (
	"fmt"
	"math"
	"math/big"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// document is an SDL as it was read: each value checked by itself, none
// against another.
type document struct {
	version     string
	services    map[string]*service
	computes    map[string]*compute
	placements  map[string]*placement
	deployments map[string][]deployment // by service, in the order of the file
	deployedAt  map[string]field        // the services' names there
	endpoints   map[string]field
	window      time.Duration // least notice of a reclamation; 0: not asked for
}

type service struct {
	field
	image              string
	command, args, env []string
	credentials        *Credentials
	params             *Params
	mounts             map[string]field // by volume
	tee                field
	expose             []expose
}

type expose struct {
	field
	port, as uint32
	proto    string
	hosts    []field
	options  HTTPOptions
	to       []target
}

type target struct {
	field
	service, ip     string
	serviceAt, ipAt field
	global          bool
}

type compute struct {
	field
	ok        bool // all of it could be read
	cpu       CPU
	memory    Memory
	storage   []Storage
	storageAt []field
	gpu       GPU
}

type placement struct {
	field
	attributes   []Attribute
	allOf, anyOf []string
	pricing      map[string]price // by compute profile
}

type price struct {
	field
	ok     bool
	denom  string
	amount *big.Int // of 10^-18
}

type deployment struct {
	field
	placement string
	profile   string
	profileAt field
	count     uint32
}

// Limits of one unit of a group, as the chain checks them.
const (
	minMilliCores, maxMilliCores = 10, 384_000
	maxGPUs                      = 24
	minMemory, maxMemory         = 1 << 20, 2 << 40
	minVolume, maxVolume         = 5 << 20, 32 << 40
	maxUnitPrice                 = 10_000_000
	// maxUnits: a group may have this many times the limits in all.
	maxUnits = 50
)

// Limits and defaults of the HTTP options, as the clients have them.
const (
	defaultBodySize, maxBodySize = 1 << 20, 100 << 20
	defaultTimeout, maxTimeout   = 60_000, 60_000
	defaultTries                 = 3
	maxProxyBufferSize           = 1 << 20
)

var (
	serviceForm   = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)
	endpointForm  = regexp.MustCompile(`^[a-z]+[-_0-9a-z]+$`)
	envForm       = regexp.MustCompile(`^[-._a-zA-Z][-._a-zA-Z0-9]*$`)
	hostForm      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	attributeForm = regexp.MustCompile(`^[a-zA-Z][\w/.\-]{1,126}[\w*]?$`)
	denomForm     = regexp.MustCompile(`^(uakt|uact|ibc/[0-9A-F]{64})$`)
	literalForm   = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,8})(\.[0-9]{0,5}[1-9])?$`)
)

const maxHost = 253

// envName says whether name can name an environment variable.
func envName(name string) bool {
	return envForm.MatchString(name) && name != "." && !strings.HasPrefix(name, "..")
}

func (r *reader) document(root field) *document {
	d := &document{
		services: map[string]*service{}, computes: map[string]*compute{}, placements: map[string]*placement{},
		deployments: map[string][]deployment{}, deployedAt: map[string]field{}, endpoints: map[string]field{},
	}
	o := r.object(root)
	if f, ok := r.need(o, "version", `version: "2.0"`); ok {
		if d.version, ok = r.text(f); ok && d.version != "2.0" && d.version != "2.1" {
			r.bad(f, fmt.Sprintf("%q is not a version of SDL that croft reads", d.version), `write "2.0" or "2.1"`)
		}
	}
	r.texts(o, "include")
	if f, ok := r.need(o, "services", "services: and below it what to run"); ok {
		for _, e := range r.entries(f) {
			d.services[e.key.Value] = r.service(e)
		}
		r.notEmpty(f, len(d.services), "services", "web: {image: nginx:1.27}")
	}
	if f, ok := r.need(o, "profiles", "profiles: with compute and placement below it"); ok {
		profiles := r.object(f)
		if f, ok := r.need(profiles, "compute", "compute: and below it the resources of each profile"); ok {
			for _, e := range r.entries(f) {
				d.computes[e.key.Value] = r.compute(e)
			}
		}
		if f, ok := r.need(profiles, "placement", "placement: and below it where to run, and at which price"); ok {
			for _, e := range r.entries(f) {
				d.placements[e.key.Value] = r.placement(e)
			}
		}
	}
	if f, ok := r.need(o, "deployment", "deployment: and below it which service runs where"); ok {
		for _, e := range r.entries(f) {
			name := e.key.Value
			d.deployedAt[name] = e
			for _, p := range r.entries(e) {
				d.deployments[name] = append(d.deployments[name], r.deployment(p))
			}
			r.notEmpty(e, len(d.deployments[name]), "placements", "PLACEMENT: {profile: PROFILE, count: 1}")
		}
		r.notEmpty(f, len(d.deployedAt), "services", "SERVICE: {PLACEMENT: {profile: PROFILE, count: 1}}")
	}
	if f, ok := o.get("endpoints"); ok {
		for _, e := range r.entries(f) {
			d.endpoints[e.key.Value] = e
			if !endpointForm.MatchString(e.key.Value) {
				r.badKey(e, fmt.Sprintf("%q cannot name an endpoint", e.key.Value), "write at least two of a-z, 0-9, - and _, beginning with a letter")
			}
			if f, ok := r.need(r.object(e), "kind", "kind: ip"); ok {
				r.oneOf(f, "ip")
			}
		}
	}
	if f, ok := o.get("reclamation"); ok {
		d.window = r.window(r.object(f))
	}
	return d
}

func (r *reader) notEmpty(f field, n int, what, example string) {
	if n == 0 && (f.node.Kind == yaml.MappingNode || f.node.Kind == yaml.SequenceNode && len(f.node.Content) == 0) {
		r.bad(f, "has no "+what, "write "+example)
	}
}

func (r *reader) window(o object) time.Duration {
	f, ok := r.need(o, "min_window", "min_window: 24h")
	if !ok {
		return 0
	}
	text, _ := r.text(f)
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		r.bad(f, fmt.Sprintf("%q is not a duration above zero", text), "write a number with h, m or s behind it, such as 24h or 90m")
	}
	return d
}

func (r *reader) service(f field) *service {
	s := &service{field: f, mounts: map[string]field{}}
	if !serviceForm.MatchString(f.key.Value) {
		r.badKey(f, fmt.Sprintf("%q cannot name a service", f.key.Value), "write a-z, 0-9 and -, beginning with a letter and not ending in -")
	}
	o := r.object(f)
	if f, ok := r.need(o, "image", "image: NAME:TAG"); ok {
		s.image, _ = r.word(f)
	}
	s.command, s.args = r.texts(o, "command"), r.texts(o, "args")
	if f, ok := o.get("env"); ok {
		s.env = r.env(f)
	}
	if f, ok := o.get("dependencies"); ok {
		for _, item := range r.items(f) {
			if f, ok := r.object(item).get("service"); ok {
				r.text(f)
			}
		}
	}
	if f, ok := o.get("credentials"); ok {
		s.credentials = r.credentials(r.object(f))
	}
	if f, ok := o.get("params"); ok {
		r.params(s, r.object(f))
	}
	if f, ok := o.get("expose"); ok {
		for _, item := range r.items(f) {
			s.expose = append(s.expose, r.expose(r.object(item)))
		}
	}
	return s
}

func (r *reader) env(f field) []string {
	var all []string
	for _, item := range r.items(f) {
		if item.node.Kind == yaml.MappingNode {
			r.bad(item, "must be KEY=value, is a map", "write = between key and value, not a colon")
			continue
		}
		v, ok := r.text(item)
		if name, _, _ := strings.Cut(v, "="); ok && !envName(name) {
			r.bad(item, fmt.Sprintf("%q cannot name an environment variable", name), "write KEY=value; KEY of letters, digits, _, - and ., not beginning with a digit")
		}
		all = append(all, v)
	}
	return all
}

func (r *reader) credentials(o object) *Credentials {
	c := &Credentials{}
	for _, part := range []struct {
		name string
		to   *string
	}{{"host", &c.Host}, {"username", &c.Username}, {"password", &c.Password}} {
		if f, ok := r.need(o, part.name, part.name+": and your "+part.name+" at the registry"); ok {
			*part.to, _ = r.word(f)
		}
	}
	if f, ok := o.get("email"); ok {
		c.Email, _ = r.text(f)
	}
	return c
}

func (r *reader) params(s *service, o object) {
	s.params = &Params{Storage: []StorageParams{}}
	if f, ok := o.get("storage"); ok {
		for _, e := range r.entries(f) {
			v := r.object(e)
			s.mounts[e.key.Value] = e
			p := StorageParams{Name: e.key.Value}
			if f, ok := r.need(v, "mount", "mount: /an/absolute/path"); ok {
				if p.Mount, ok = r.text(f); ok && !path.IsAbs(p.Mount) {
					r.bad(f, fmt.Sprintf("%q is not an absolute path", p.Mount), "begin it with /")
				}
				s.mounts[e.key.Value] = f
			}
			if f, ok := v.get("readOnly"); ok {
				p.ReadOnly, _ = r.truth(f)
			}
			s.params.Storage = append(s.params.Storage, p)
		}
		slices.SortFunc(s.params.Storage, func(a, b StorageParams) int { return strings.Compare(a.Name, b.Name) })
	}
	if f, ok := o.get("permissions"); ok {
		read := r.textsOf(r.object(f), "read", "deployment", "logs", "events")
		s.params.Permissions = &Permissions{Read: append([]string{}, read...)} // never null
	}
	if f, ok := o.get("tee"); ok {
		if kind, ok := r.oneOf(f, "cpu", "cpu-gpu"); ok {
			s.params.TEE, s.tee = &TEE{Type: kind, Attestation: true}, f
		}
	}
}

func (r *reader) expose(o object) expose {
	e := expose{field: o.field, proto: "TCP"}
	if f, ok := r.need(o, "port", "port: 80"); ok {
		e.port, _ = r.number(f, 1, math.MaxUint16)
	}
	if f, ok := o.get("as"); ok {
		e.as, _ = r.number(f, 0, math.MaxUint16)
	}
	if f, ok := o.get("proto"); ok {
		if text, ok := r.text(f); ok {
			if e.proto = strings.ToUpper(text); e.proto != "TCP" && e.proto != "UDP" {
				r.bad(f, fmt.Sprintf("%q is not a protocol", text), "write tcp or udp; HTTP is tcp")
			}
		}
	}
	if f, ok := o.get("accept"); ok {
		for _, item := range r.items(f) {
			host, ok := r.text(item)
			switch {
			case !ok:
			case !validHost(host):
				r.bad(item, fmt.Sprintf("%q is not a host name", host), hostFix(host))
			default:
				e.hosts = append(e.hosts, item)
			}
		}
	}
	e.options = HTTPOptions{
		MaxBodySize: defaultBodySize, ReadTimeout: defaultTimeout, SendTimeout: defaultTimeout,
		NextTries: defaultTries, NextCases: []string{"error", "timeout"},
	}
	if f, ok := o.get("http_options"); ok {
		r.httpOptions(&e.options, r.object(f))
	}
	if f, ok := o.get("to"); ok {
		for _, item := range r.items(f) {
			e.to = append(e.to, r.target(r.object(item)))
		}
	}
	return e
}

func validHost(host string) bool { return len(host) <= maxHost && hostForm.MatchString(host) }

// hostFix is what was probably meant by a wrong host name.
func hostFix(host string) string {
	better := strings.ToLower(host)
	if _, rest, ok := strings.Cut(better, "://"); ok {
		better = rest
	}
	better, _, _ = strings.Cut(better, "/")
	better, _, _ = strings.Cut(better, ":")
	if validHost(better) {
		return "write " + better
	}
	return "write a DNS name in lower case, such as www.example.com"
}

func (r *reader) target(o object) target {
	t := target{field: o.field}
	var ok bool
	if t.serviceAt, ok = o.get("service"); ok {
		t.service, _ = r.text(t.serviceAt)
	}
	if f, ok := o.get("global"); ok {
		t.global, _ = r.truth(f)
	}
	if t.ipAt, ok = o.get("ip"); ok {
		t.ip, _ = r.text(t.ipAt)
	}
	return t
}

func (r *reader) httpOptions(to *HTTPOptions, o object) {
	for _, option := range []struct {
		name string
		high uint32
		to   *uint32
	}{
		{"max_body_size", maxBodySize, &to.MaxBodySize},
		{"read_timeout", maxTimeout, &to.ReadTimeout},
		{"send_timeout", maxTimeout, &to.SendTimeout},
		{"next_tries", math.MaxUint32, &to.NextTries},
		{"next_timeout", math.MaxUint32, &to.NextTimeout},
		{"proxy_buffer_size", maxProxyBufferSize, &to.ProxyBufferSize},
	} {
		if f, ok := o.get(option.name); ok {
			if n, ok := r.number(f, 0, option.high); ok {
				*option.to = n
			}
		}
	}
	cases := r.textsOf(o, "next_cases", "error", "timeout", "500", "502", "503", "504", "403", "404", "429", "off")
	if len(cases) > 1 && slices.Contains(cases, "off") {
		r.bad(o.fields["next_cases"], "off stands with other cases", "write off alone, or leave it out")
	}
	if len(cases) > 0 {
		to.NextCases = cases
	}
}

func (r *reader) compute(f field) *compute {
	c := &compute{field: f}
	before := len(r.errs)
	resources, ok := r.need(r.object(f), "resources", "resources: with cpu, memory and storage below it")
	if !ok {
		return c
	}
	o := r.object(resources)
	if f, ok := r.need(o, "cpu", "cpu: {units: 0.5}"); ok {
		r.cpu(&c.cpu, r.object(f))
	}
	if f, ok := r.need(o, "memory", "memory: {size: 512Mi}"); ok {
		if f, ok := r.need(r.object(f), "size", "size: 512Mi"); ok {
			c.memory.Size = r.size(f, minMemory, maxMemory, "1Mi", "2Ti")
		}
	}
	if f, ok := r.need(o, "storage", "storage: {size: 1Gi}"); ok {
		r.volumes(c, f)
	}
	if f, ok := o.get("gpu"); ok {
		r.gpu(&c.gpu, r.object(f))
	}
	c.ok = len(r.errs) == before
	return c
}

func (r *reader) cpu(to *CPU, o object) {
	if f, ok := r.need(o, "units", "units: 0.5"); ok {
		text, ok := r.text(f)
		switch milli := parseCores(text); {
		case !ok:
		case milli == nil:
			r.bad(f, fmt.Sprintf("%q is not a number of cores in thousandths", text), "write cores (0.5) or thousandths of a core (500m)")
		case milli.Cmp(big.NewInt(minMilliCores)) < 0 || milli.Cmp(big.NewInt(maxMilliCores)) > 0:
			r.bad(f, text+" is out of range", "write from 0.01 to 384 cores")
		default:
			to.Units = Quantity(milli.Uint64())
		}
	}
	if f, ok := o.get("attributes"); ok {
		if f, ok := r.object(f).get("arch"); ok {
			if arch, ok := r.word(f); ok {
				to.Attributes = []Attribute{{"arch", arch}}
			}
		}
	}
}

func (r *reader) size(f field, low, high int64, lowText, highText string) Quantity {
	text, ok := r.text(f)
	n, better := parseSize(text)
	switch {
	case !ok:
	case better != "":
		r.bad(f, fmt.Sprintf("%q is not a size", text), "write "+better)
	case n == nil:
		r.bad(f, fmt.Sprintf("%q is not a size", text), "write a number with k, Ki, M, Mi, G, Gi, T, Ti, P, Pi, E or Ei right behind it, such as 512Mi")
	case n.Cmp(big.NewInt(low)) < 0 || n.Cmp(big.NewInt(high)) > 0:
		r.bad(f, text+" is out of range", fmt.Sprintf("write from %s to %s", lowText, highText))
	default:
		return Quantity(n.Uint64())
	}
	return 0
}

const defaultVolume = "default"

func (r *reader) volumes(c *compute, f field) {
	all := []field{{path: f.path, shape: f.shape + "[]", key: f.key, node: f.node}}
	if f.node.Kind != yaml.MappingNode {
		all = r.items(f)
	}
	r.notEmpty(f, len(all), "volumes", "{size: 1Gi}")
	names := map[string]field{}
	for _, item := range all {
		o := r.object(item)
		v := Storage{Name: defaultVolume}
		at := item
		if f, ok := o.get("name"); ok {
			if name, ok := r.text(f); ok && name != "" {
				v.Name, at = name, f
			}
		}
		if first, twice := names[v.Name]; twice {
			r.bad(at, fmt.Sprintf("volume %q is here twice; line %d has it too", v.Name, first.node.Line), "give each volume a name of its own")
		}
		names[v.Name] = at
		if f, ok := r.need(o, "size", "size: 1Gi"); ok {
			v.Size = r.size(f, minVolume, maxVolume, "5Mi", "32Ti")
		}
		if f, ok := o.get("attributes"); ok {
			v.Attributes = r.volumeAttributes(r.object(f))
		}
		c.storage, c.storageAt = append(c.storage, v), append(c.storageAt, at)
	}
}

func (r *reader) volumeAttributes(o object) []Attribute {
	var class string
	var classAt field
	persistent, said := false, false
	if f, ok := o.get("class"); ok {
		class, _ = r.oneOf(f, "default", "beta1", "beta2", "beta3", "ram")
		classAt = f
	}
	if f, ok := o.get("persistent"); ok {
		text, _ := r.text(f) // in quotes or not
		value, known := truths[strings.ToLower(text)]
		if !known {
			r.bad(f, fmt.Sprintf("%q is neither true nor false", text), "write true or false")
		}
		persistent, said = value, true
	}
	switch {
	case !said && class == "":
		return nil
	case class == "ram" && persistent:
		r.bad(classAt, "class ram cannot be persistent", "write persistent: false, or another class")
	case class != "" && class != "ram" && !persistent:
		r.bad(classAt, fmt.Sprintf("class %s is for persistent volumes only", class), "write persistent: true, or leave class out")
	case class == "" && persistent:
		class = "default"
	}
	var all []Attribute
	if class != "" {
		all = append(all, Attribute{"class", class})
	}
	return append(all, Attribute{"persistent", fmt.Sprint(persistent)})
}

func (r *reader) gpu(to *GPU, o object) {
	f, has := o.get("attributes")
	if has {
		to.Attributes = r.gpuAttributes(r.object(f))
	}
	unitsAt, ok := r.need(o, "units", "units: 1")
	if !ok {
		return
	}
	text, _ := r.text(unitsAt) // in quotes or not
	n, ok := parseDecimal(text)
	if !ok || !n.IsInt() || n.Cmp(big.NewRat(maxGPUs, 1)) > 0 {
		r.bad(unitsAt, fmt.Sprintf("%q is not a number of GPUs", text), numberFix(0, maxGPUs))
		return
	}
	to.Units = Quantity(n.Num().Uint64())
	switch {
	case has && to.Units == 0:
		r.bad(f, "there are attributes but no units", "write units: 1 or more, or leave attributes out")
	case !has && to.Units > 0:
		r.fail(o.key, join(o.path, "attributes"), "is missing", "write attributes: {vendor: {nvidia: null}}, or name models below nvidia")
	}
}

func (r *reader) gpuAttributes(o object) []Attribute {
	f, ok := r.need(o, "vendor", "vendor: {nvidia: null}")
	if !ok {
		return nil
	}
	vendor := r.object(f)
	nvidia, ok := vendor.fields["nvidia"] // its value may be empty
	if !ok {
		if vendor.node.Kind == yaml.MappingNode {
			r.bad(f, "names no vendor", "write nvidia: and nothing behind it for any model")
		}
		return nil
	}
	const prefix = "vendor/nvidia/model/"
	if isNull(nvidia.node) || nvidia.node.Kind == yaml.SequenceNode && len(nvidia.node.Content) == 0 {
		return []Attribute{{prefix + "*", "true"}}
	}
	var all []Attribute
	for _, item := range r.items(nvidia) {
		m := r.object(item)
		f, ok := r.need(m, "model", "model: a100")
		if !ok {
			continue
		}
		model, _ := r.word(f)
		key := prefix + model
		if f, ok := m.get("ram"); ok {
			key += "/ram/" + r.gpuRAM(f)
		}
		if f, ok := m.get("interface"); ok {
			bus, _ := r.oneOf(f, "pcie", "sxm")
			key += "/interface/" + bus
		}
		a := Attribute{key, "true"}
		switch {
		case model != "" && !attributeForm.MatchString(key):
			r.bad(f, fmt.Sprintf("%q cannot name a model", model), "write letters, digits, _, - and . only, such as rtx4090")
		case slices.Contains(all, a):
			r.bad(item, "is here twice", "remove one of them")
		default:
			all = append(all, a)
		}
	}
	return all
}

// gpuRAM is a size in Gi, as attributes of providers have it.
func (r *reader) gpuRAM(f field) string {
	text, ok := r.text(f)
	if !ok {
		return ""
	}
	if n, _ := parseSize(text); n != nil && strings.HasSuffix(text, "i") {
		if gib, rest := new(big.Int).QuoRem(n, big.NewInt(1<<30), new(big.Int)); rest.Sign() == 0 && gib.Sign() > 0 {
			return gib.String() + "Gi"
		}
	}
	r.bad(f, fmt.Sprintf("%q is not a size in whole Gi", text), "write such as 80Gi")
	return ""
}

func (r *reader) placement(f field) *placement {
	p := &placement{field: f, pricing: map[string]price{}}
	o := r.object(f)
	if f, ok := o.get("attributes"); ok {
		for _, e := range r.entries(f) {
			r.attribute(p, e)
		}
		slices.SortFunc(p.attributes, func(a, b Attribute) int { return strings.Compare(a.Key, b.Key) })
	}
	if f, ok := o.get("signedBy"); ok {
		by := r.object(f)
		p.allOf, p.anyOf = r.texts(by, "allOf"), r.texts(by, "anyOf")
	}
	if f, ok := r.need(o, "pricing", "pricing: and below it PROFILE: {denom: uact, amount: 100}"); ok {
		for _, e := range r.entries(f) {
			p.pricing[e.key.Value] = r.price(e)
		}
	}
	return p
}

// attribute is one requirement. A value that two YAML readers could print in
// two ways must stand in quotes.
func (r *reader) attribute(p *placement, e field) {
	if !attributeForm.MatchString(e.key.Value) {
		r.badKey(e, fmt.Sprintf("%q cannot be an attribute", e.key.Value), "write 2 to 128 letters, digits, _, -, . and /, beginning with a letter")
		return
	}
	value, ok := r.text(e)
	switch tag := e.node.ShortTag(); {
	case !ok:
	case tag == "!!str", tag == "!!bool" && (value == "true" || value == "false"),
		(tag == "!!int" || tag == "!!float") && literalForm.MatchString(value):
		p.attributes = append(p.attributes, Attribute{e.key.Value, value})
	default:
		r.bad(e, fmt.Sprintf("readers of YAML do not agree on what %s means", value), fmt.Sprintf("write it in quotes: %q", value))
	}
}

func (r *reader) price(f field) price {
	p := price{field: f}
	before := len(r.errs)
	o := r.object(f)
	if f, ok := r.need(o, "denom", "denom: uact"); ok {
		if p.denom, ok = r.text(f); ok && !denomForm.MatchString(p.denom) {
			r.bad(f, fmt.Sprintf("%q is not a coin to pay with", p.denom), "write uact or uakt")
		}
	}
	if f, ok := r.need(o, "amount", "amount: 100"); ok {
		text, ok := r.text(f)
		p.amount = parsePrice(text)
		switch {
		case !ok:
		case p.amount == nil:
			r.bad(f, fmt.Sprintf("%q is not a price", text), "write a decimal number above zero with at most 18 digits behind the point, such as 100 or 0.25")
		case p.amount.Sign() == 0:
			r.bad(f, "the price is zero", "write what you pay at most for one block")
		case p.amount.Cmp(new(big.Int).Mul(big.NewInt(maxUnitPrice), parsePrice("1"))) > 0:
			r.bad(f, text+" is out of range", fmt.Sprintf("write at most %d", maxUnitPrice))
		}
	}
	p.ok = len(r.errs) == before
	return p
}

func (r *reader) deployment(f field) deployment {
	d := deployment{field: f, placement: f.key.Value}
	o := r.object(f)
	if f, ok := r.need(o, "profile", "profile: and the name of a compute profile"); ok {
		d.profile, _ = r.text(f)
		d.profileAt = f
	}
	if f, ok := r.need(o, "count", "count: 1"); ok {
		d.count, _ = r.number(f, 1, math.MaxUint32)
	}
	return d
}
