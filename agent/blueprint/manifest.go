package blueprint

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
)

// Bounds of a manifest that no caller sets.
const (
	// MaxManifest is four times the largest manifest that maxServices sensible
	// services make; a request of this size is parsed in a few milliseconds.
	MaxManifest = 1 << 20
	// maxServices keeps what the journal holds for one lease below its 64 KiB a
	// record.
	maxServices = offer.MaxServices
	// MaxReplicas of one lease.
	MaxReplicas = offer.MaxReplicas
	// MaxHosts of one lease, for the same record.
	MaxHosts = 48
	// maxName is the longest name of a service: one label of a DNS name.
	maxName = 63
	// maxImage is 255 characters of repository, 128 of tag, a digest and a host.
	maxImage = 600
	// maxEnvBytes is what Linux leaves a program for arguments and environment,
	// all taken together, by a wide margin.
	maxEnvBytes = 512 << 10
	// maxObjects and maxElements are looked at before anything is decoded: three
	// bytes of JSON become a service of 400. maxServices services, each with ten
	// ports, three volumes and a GPU, have some 1,500 objects and 20,000 elements.
	maxObjects  = 4096
	maxElements = 32 << 10
)

// Parse reads a manifest and its hash. What it takes is bounded by MaxManifest,
// whatever the bytes mean.
func Parse(raw []byte) (sdl.Manifest, [32]byte, error) {
	bad := func(reason, err error) (sdl.Manifest, [32]byte, error) {
		return nil, [32]byte{}, Refuse(reason, err, remake)
	}
	if len(raw) > MaxManifest {
		return bad(ErrTooMany, fmt.Errorf("%d bytes, want at most %d", len(raw), MaxManifest))
	}
	switch objects, elements := count(raw); {
	case objects > maxObjects:
		return bad(ErrTooMany, fmt.Errorf("%d JSON objects, want at most %d", objects, maxObjects))
	case elements > maxElements:
		return bad(ErrTooMany, fmt.Errorf("%d elements of JSON lists and objects, want at most %d", elements, maxElements))
	}
	hash, err := sdl.HashRaw(raw)
	if err != nil {
		return bad(ErrBadJSON, err)
	}
	manifest, err := sdl.ParseManifest(raw)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		err = fmt.Errorf("%s cannot be %s in JSON", cmp.Or(wrong.Field, "the whole"), article(wrong.Value))
	}
	if err != nil {
		return bad(ErrBadJSON, err)
	}
	return manifest, hash, nil
}

// count is how many objects there are in JSON, and how many elements of lists and
// objects, without reading it: those that stand first in theirs are left out. Of
// what is no JSON it is some number.
func count(raw []byte) (objects, elements int) {
	quoted := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case quoted:
		case c == '{':
			objects++
		case c == ',':
			elements++
		}
	}
	return objects, elements
}

// Sent is a manifest as a tenant sent it, of a form that this box can run.
type Sent struct {
	Manifest sdl.Manifest
	Hash     [32]byte // of the bytes that came

	typed func() [32]byte // of what was understood; costs more than all else
}

// Read is what a tenant sent, if Parse and Validate have nothing against it.
func Read(raw []byte) (*Sent, error) {
	manifest, hash, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	if err := Validate(manifest); err != nil {
		return nil, err
	}
	return &Sent{Manifest: manifest, Hash: hash, typed: sync.OnceValue(manifest.Hash)}, nil
}

// Fits says why a manifest is not that of a deployment on chain.
func (s *Sent) Fits(hash []byte, groups []*deploymentv1beta4.GroupSpec) error {
	if !bytes.Equal(s.Hash[:], hash) {
		if typed := s.typed(); !bytes.Equal(typed[:], hash) {
			return Refuse(ErrWrongHash, fmt.Errorf("its hash is %x, that on chain %x", s.Hash, hash), "send the manifest of the newest deployment update")
		}
	}
	if err := sdl.Check(s.Manifest, groups); err != nil {
		return Refuse(ErrMismatch, err, "send the manifest that belongs to the deployment's groups")
	}
	return nil
}

// article is a word with its article.
func article(word string) string {
	if word != "" && strings.ContainsRune("aeiou", rune(word[0])) {
		return "an " + word
	}
	return "a " + word
}

// remake is what to do about a manifest that no tool should have made.
const remake = "make the manifest anew from the SDL and send it again"

// Validate says why the form of a manifest is wrong, or that of a workload that
// this box cannot run.
func Validate(manifest sdl.Manifest) error {
	if err := manifest.Validate(); err != nil {
		return Refuse(ErrInvalid, err, remake)
	}
	for _, g := range manifest {
		if err := bounded(g); err != nil {
			return Refuse(ErrTooMany, fmt.Errorf("group %q: %w", g.Name, err), "ask for less in one deployment")
		}
		for _, s := range g.Services {
			if err := runnable(s); err != nil {
				return Refuse(ErrInvalid, fmt.Errorf("group %q: service %q: %w", g.Name, s.Name, err), "correct the SDL and update the deployment")
			}
		}
	}
	return nil
}

func bounded(g sdl.Group) error {
	replicas, hosts := uint64(0), 0
	for _, s := range g.Services {
		replicas += uint64(s.Count)
		size := 0
		for _, text := range slices.Concat(s.Env, s.Command, s.Args) {
			size += len(text) + 1
		}
		for _, e := range s.Expose {
			hosts += len(e.Hosts)
		}
		switch {
		case len(s.Name) > maxName:
			return fmt.Errorf("service %q: name is longer than %d characters", s.Name[:maxName], maxName)
		case len(s.Image) > maxImage:
			return fmt.Errorf("service %q: image is longer than %d characters", s.Name, maxImage)
		case size > maxEnvBytes:
			return fmt.Errorf("service %q: command, args and env have %d bytes, want at most %d", s.Name, size, maxEnvBytes)
		}
	}
	switch {
	case len(g.Services) > maxServices:
		return fmt.Errorf("%d services, want at most %d", len(g.Services), maxServices)
	case replicas > MaxReplicas:
		return fmt.Errorf("%d replicas, want at most %d", replicas, MaxReplicas)
	case hosts > MaxHosts:
		return fmt.Errorf("%d host names, want at most %d", hosts, MaxHosts)
	}
	return nil
}

// runnable says why a service of right form cannot be run on a box all the
// same.
func runnable(s sdl.Service) error {
	for i, text := range slices.Concat(s.Env, s.Command, s.Args) {
		if strings.ContainsRune(text, 0) {
			return fmt.Errorf("command, args and env: number %d contains a zero byte", i)
		}
	}
	if err := distinct(s.Expose); err != nil {
		return err
	}
	volumes := map[string]sdl.Storage{}
	for _, v := range s.Resources.Storage {
		if _, twice := volumes[v.Name]; twice {
			return fmt.Errorf("resources.storage: volume %q is there twice", v.Name)
		}
		volumes[v.Name] = v
	}
	mounts := map[string]bool{}
	if s.Params != nil {
		for _, p := range s.Params.Storage {
			if _, ok := volumes[p.Name]; !ok {
				return fmt.Errorf("params.storage: there is no volume %q", p.Name)
			}
			if p.Mount == "" {
				continue
			}
			switch clean := path.Clean(p.Mount); {
			case !path.IsAbs(p.Mount) || strings.ContainsRune(p.Mount, 0) || clean == "/":
				return fmt.Errorf("params.storage: %q is no path to mount a volume at", p.Mount)
			case within(clean, "/proc"), within(clean, "/sys"), within(clean, "/dev") && !within(clean, "/dev/shm"):
				return fmt.Errorf("params.storage: nothing can be mounted at %q", p.Mount)
			case mounts[clean]:
				return fmt.Errorf("params.storage: two volumes are mounted at %q", clean)
			default:
				mounts[clean] = true
			}
		}
	}
	root := 0
	for _, v := range s.Resources.Storage {
		switch mount := MountOf(s, v); {
		case mount.Mount != "":
		case persistent(v):
			return fmt.Errorf("resources.storage: volume %q is persistent and not mounted", v.Name)
		default:
			root++
		}
	}
	if root > 1 {
		return errors.New("resources.storage: two volumes are not mounted; only one can be the root")
	}
	return nil
}

// distinct says which ports of a service would be one port of the world. HTTP is
// told apart by host names instead.
func distinct(exposes []sdl.Expose) error {
	type outside struct {
		port  uint32
		proto string
		ip    uint32
	}
	taken := map[outside]uint32{}
	for _, e := range exposes {
		if !e.Global || ByHost(e) && e.IP == "" {
			continue
		}
		at := outside{externalPort(e), e.Proto, e.EndpointSequenceNumber}
		if other, ok := taken[at]; ok && other != e.Port {
			return fmt.Errorf("expose: ports %d and %d would both be %s port %d of the world", other, e.Port, at.proto, at.port)
		}
		taken[at] = e.Port
	}
	return nil
}

func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

// fingerprint is the same for two services whose replicas would be the same.
// Count, expose and credentials are not part of a replica.
func fingerprint(s sdl.Service) [32]byte {
	s.Count, s.Expose, s.Credentials = 0, nil, nil
	s.Resources.ID, s.Resources.Endpoints = 0, nil
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return sha256.Sum256(text)
}

// ServiceOf is the service of this name in a group.
func ServiceOf(g sdl.Group, name string) (sdl.Service, bool) {
	i := slices.IndexFunc(g.Services, func(s sdl.Service) bool { return s.Name == name })
	if i < 0 {
		return sdl.Service{}, false
	}
	return g.Services[i], true
}

func attribute(v sdl.Storage, key string) string {
	for _, a := range v.Attributes {
		if a.Key == key {
			return a.Value
		}
	}
	return ""
}

func persistent(v sdl.Storage) bool { return attribute(v, "persistent") == "true" }

// InMemory says whether a volume is of class ram.
func InMemory(v sdl.Storage) bool { return attribute(v, "class") == "ram" }

// Exclusive says whether a replica has persistent volumes, which have one user at
// a time.
func Exclusive(s sdl.Service) bool { return slices.ContainsFunc(s.Resources.Storage, persistent) }

// MountOf is where a service has a volume, empty for what is its root.
func MountOf(s sdl.Service, v sdl.Storage) sdl.StorageParams {
	if s.Params != nil {
		for _, p := range s.Params.Storage {
			if p.Name == v.Name {
				return p
			}
		}
	}
	return sdl.StorageParams{}
}

// bounded64 is a quantity as a signed number; the chain allows no larger ones.
func bounded64(q sdl.Quantity) int64 { return int64(min(uint64(q), math.MaxInt64/MaxReplicas/4)) }

// MemoryOf is what one replica takes of the box's memory: a ram volume counts.
func MemoryOf(s sdl.Service) int64 {
	if s.Resources.Memory == nil {
		return 0 // not a service of a manifest that was checked
	}
	sum := bounded64(s.Resources.Memory.Size)
	for _, v := range s.Resources.Storage {
		if InMemory(v) {
			sum = bounded64(sdl.Quantity(sum) + sdl.Quantity(bounded64(v.Size)))
		}
	}
	return sum
}

// GPUsOf is how many GPUs one replica takes.
func GPUsOf(s sdl.Service) int {
	if s.Resources.GPU == nil {
		return 0
	}
	return int(min(uint64(s.Resources.GPU.Units), 1024))
}

// Leased is what a group has in all. An update of the manifest never changes
// it: the chain's group stays, and every manifest uses all of it.
func Leased(g sdl.Group) (memory, disk int64, gpus int) {
	for _, s := range g.Services {
		n := int64(s.Count)
		memory += n * MemoryOf(s)
		gpus += int(n) * GPUsOf(s)
		for _, v := range s.Resources.Storage {
			if !InMemory(v) {
				disk = min(math.MaxInt64/2, disk) + n*bounded64(v.Size)
			}
		}
		disk += n * logAllowance
	}
	return memory, disk, gpus
}

// logAllowance is what a replica's log files may take on top of its storage:
// three files of 4 MiB, as the log rotator keeps them.
const logAllowance = offer.ReplicaLog

// ByHost says whether an expose is reached by host name through the provider's
// HTTP ingress.
func ByHost(e sdl.Expose) bool { return e.Global && e.Proto == "TCP" && externalPort(e) == 80 }

func externalPort(e sdl.Expose) uint32 {
	if e.ExternalPort != 0 {
		return e.ExternalPort
	}
	return e.Port
}

// BytesText is a size as SDLs write it.
func BytesText(n int64) string {
	for _, unit := range []struct {
		size int64
		name string
	}{{1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}} {
		if n >= unit.size && n%unit.size == 0 {
			return fmt.Sprintf("%d%s", n/unit.size, unit.name)
		}
	}
	if n >= 10<<20 {
		return fmt.Sprintf("%dMi", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}
