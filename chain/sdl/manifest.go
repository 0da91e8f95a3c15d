package sdl

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// Manifest is what a tenant sends to the providers of its leases: what to run
// in each group of the deployment. Its JSON form is a protocol; encoding/json
// makes it from these types, and [Manifest.JSON] sorts the keys.
type Manifest []Group

// Group is what runs in one group of the deployment: under one lease.
type Group struct {
	Name     string    `json:"name"`     // the placement
	Services []Service `json:"services"` // sorted by name
}

// Service is one container and its replicas.
type Service struct {
	Name        string       `json:"name"`
	Image       string       `json:"image"`   // OCI image
	Command     []string     `json:"command"` // nil: the image's entry point
	Args        []string     `json:"args"`    // nil: none
	Env         []string     `json:"env"`     // KEY=value, or KEY for an empty value; nil: none
	Resources   Resources    `json:"resources"`
	Count       uint32       `json:"count"`            // replicas, at least 1
	Expose      []Expose     `json:"expose"`           // sorted by service, port, protocol, global first
	Params      *Params      `json:"params,omitempty"` // nil: none
	Credentials *Credentials `json:"credentials"`      // of the image's registry; nil: none
}

// Resources is what one replica of a service gets. ID names the unit of the
// group on chain that pays for it.
type Resources struct {
	ID        uint32     `json:"id"` // from 1
	CPU       *CPU       `json:"cpu,omitempty"`
	Memory    *Memory    `json:"memory,omitempty"`
	Storage   []Storage  `json:"storage,omitempty"` // in the order of the SDL
	GPU       *GPU       `json:"gpu,omitempty"`
	Endpoints []Endpoint `json:"endpoints"` // of this service only; in the order of the SDL
}

// CPU is processor time.
type CPU struct {
	Units      Quantity    `json:"units"` // thousandths of a core
	Attributes []Attribute `json:"attributes,omitempty"`
}

// Memory is main memory.
type Memory struct {
	Size       Quantity    `json:"size"` // bytes
	Attributes []Attribute `json:"attributes,omitempty"`
}

// Storage is one volume.
type Storage struct {
	Name       string      `json:"name"`
	Size       Quantity    `json:"size"` // bytes
	Attributes []Attribute `json:"attributes,omitempty"`
}

// GPU is graphics processors of the kinds in Attributes.
type GPU struct {
	Units      Quantity    `json:"units"` // whole processors
	Attributes []Attribute `json:"attributes,omitempty"`
}

// Attribute is one key and its value. Lists of them are sorted by key, but for
// those of a [GPU], which stand in the order of the SDL.
type Attribute struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Quantity is an amount of a resource. Its JSON is {"val":"500"}.
type Quantity uint64

// MarshalJSON makes {"val":"500"}.
func (q Quantity) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"val":"%d"}`, uint64(q)), nil
}

// UnmarshalJSON reads {"val":"500"}.
func (q *Quantity) UnmarshalJSON(data []byte) error {
	var v struct{ Val string }
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	n, err := strconv.ParseUint(v.Val, 10, 64)
	if err != nil {
		return fmt.Errorf("read quantity %q: want a whole number", v.Val)
	}
	*q = Quantity(n)
	return nil
}

// EndpointKind is how a port is reached from outside. The numbers are those of
// the chain.
type EndpointKind uint32

// The kinds of endpoint.
const (
	SharedHTTP EndpointKind = 0 // behind the provider's HTTP ingress
	RandomPort EndpointKind = 1 // a port of the provider's choice
	LeasedIP   EndpointKind = 2 // an address of its own
)

// Endpoint is one way in from outside.
type Endpoint struct {
	Kind           EndpointKind `json:"kind,omitempty"`
	SequenceNumber uint32       `json:"sequence_number"` // which leased address, from 1; 0 for the other kinds
}

// Expose opens one port of a service, to one other service or to the world.
type Expose struct {
	Port                   uint32      `json:"port"`
	ExternalPort           uint32      `json:"externalPort"` // 0: as Port
	Proto                  string      `json:"proto"`        // TCP or UDP
	Service                string      `json:"service"`      // only this one may connect; empty: any of the group
	Global                 bool        `json:"global"`       // the world may connect
	Hosts                  []string    `json:"hosts"`        // host names of HTTP requests; nil: none
	HTTPOptions            HTTPOptions `json:"httpOptions"`
	IP                     string      `json:"ip"`                     // name of the leased address; empty: none
	EndpointSequenceNumber uint32      `json:"endpointSequenceNumber"` // of the leased address; 0: none
}

// HTTPOptions tune the provider's HTTP ingress.
type HTTPOptions struct {
	MaxBodySize     uint32   `json:"maxBodySize"`               // bytes
	ReadTimeout     uint32   `json:"readTimeout"`               // milliseconds
	SendTimeout     uint32   `json:"sendTimeout"`               // milliseconds
	NextTries       uint32   `json:"nextTries"`                 // how often another replica is tried
	NextTimeout     uint32   `json:"nextTimeout"`               // milliseconds; 0: no limit
	NextCases       []string `json:"nextCases,omitempty"`       // when another replica is tried
	ProxyBufferSize uint32   `json:"proxyBufferSize,omitempty"` // bytes; 0: the provider's choice
}

// Params are what a service needs besides resources.
type Params struct {
	Storage     []StorageParams `json:"storage"` // sorted by name; never null
	Permissions *Permissions    `json:"permissions,omitempty"`
	TEE         *TEE            `json:"tee,omitempty"`
}

// StorageParams say where a volume is mounted.
type StorageParams struct {
	Name     string `json:"name"`
	Mount    string `json:"mount"` // absolute path
	ReadOnly bool   `json:"readOnly"`
}

// Permissions is what a service may ask the provider about its own lease.
type Permissions struct {
	Read []string `json:"read,omitzero"` // of deployment, logs, events
}

// TEE asks for a trusted execution environment.
type TEE struct {
	Type        string `json:"type"` // cpu or cpu-gpu
	Attestation bool   `json:"attestation"`
}

// Credentials log in to a registry of OCI images.
type Credentials struct {
	Host     string `json:"host"`
	Email    string `json:"email"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// JSON is the canonical form of m (see [CanonicalJSON]): the body of the
// request that sends a manifest to a provider.
func (m Manifest) JSON() []byte {
	if m == nil {
		m = Manifest{}
	}
	raw, err := json.Marshal(m)
	if err == nil {
		raw, err = CanonicalJSON(raw)
	}
	if err != nil {
		panic(err) // plain structs, strings and integers: a mistake in this package
	}
	return raw
}

// Hash is the SHA-256 of [Manifest.JSON]: what a deployment carries on chain.
func (m Manifest) Hash() [32]byte { return sha256.Sum256(m.JSON()) }

// ParseManifest reads a manifest as a provider receives it. Keys that this
// package does not know are ignored: newer clients may send some. Whoever asks
// whether a deployment's hash is that of raw tries [HashRaw] first, then
// [Manifest.Hash].
func ParseManifest(raw []byte) (Manifest, error) {
	raw, err := CanonicalJSON(raw) // refuses what encoding/json forgives
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return m, nil
}

// HashRaw is the SHA-256 of the canonical form of a manifest as it was
// received. A provider hashes this, never a manifest of its own making: two
// right clients may list endpoints in different order.
func HashRaw(raw []byte) ([32]byte, error) {
	canonical, err := CanonicalJSON(raw)
	if err != nil {
		return [32]byte{}, fmt.Errorf("hash manifest: %w", err)
	}
	return sha256.Sum256(canonical), nil
}

// maxJSONDepth is how many arrays and objects of a manifest may lie in each
// other. A real one has nine.
const maxJSONDepth = 64

// CanonicalJSON is raw with the keys of every object sorted by their bytes, no
// white space, arrays as they are, and strings escaped as encoding/json does:
// <, > and & as \u003c, \u003e and \u0026. Doing it twice changes nothing.
//
// Numbers must be plain integers, no object may have a key twice and nothing
// may follow the value: all else would leave open what was hashed.
func CanonicalJSON(raw []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	out, err := appendCanonical(nil, d, 0)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("sort JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("sort JSON: something follows the value")
	}
	return out, nil
}

func appendCanonical(out []byte, d *json.Decoder, depth int) ([]byte, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("more than %d arrays and objects lie in each other", maxJSONDepth)
	}
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		if t == '[' {
			out = append(out, '[')
			for i := 0; d.More(); i++ {
				if i > 0 {
					out = append(out, ',')
				}
				if out, err = appendCanonical(out, d, depth+1); err != nil {
					return nil, err
				}
			}
			_, err = d.Token()
			return append(out, ']'), err
		}
		values := map[string][]byte{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			name, ok := key.(string)
			if !ok {
				return nil, fmt.Errorf("key %v is not a string", key)
			}
			if _, twice := values[name]; twice {
				return nil, fmt.Errorf("key %q stands twice in one object", name)
			}
			if values[name], err = appendCanonical(nil, d, depth+1); err != nil {
				return nil, err
			}
		}
		out = append(out, '{')
		for i, name := range slices.Sorted(maps.Keys(values)) {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(append(appendString(out, name), ':'), values[name]...)
		}
		_, err = d.Token()
		return append(out, '}'), err
	case string:
		return appendString(out, t), nil
	case json.Number:
		if !integerForm.MatchString(t.String()) {
			return nil, fmt.Errorf("number %s is not a plain integer", t)
		}
		return append(out, t...), nil
	case bool:
		return strconv.AppendBool(out, t), nil
	default:
		return append(out, "null"...), nil
	}
}

func appendString(out []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always has a JSON form
	}
	return append(out, quoted...)
}
