package sdl_test

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
)

// checked is what the provider's tests are made from: a manifest of two
// services that share a unit, with a leased address.
const checked = "testdata/valid/ip-two-services.yaml"

func TestValidateNamesServiceAndKey(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(m *sdl.Manifest)
		want string
	}{
		{"no group", func(m *sdl.Manifest) { *m = nil }, "the manifest has no group"},
		{"a group without a name", func(m *sdl.Manifest) { (*m)[0].Name = "" }, "a group has no name"},
		{"a group twice", func(m *sdl.Manifest) { *m = append(*m, (*m)[0]) }, `group "dc" is there twice`},
		{"a group without services", func(m *sdl.Manifest) { (*m)[0].Services = nil }, `group "dc": services is empty`},
		{"services out of order", func(m *sdl.Manifest) { s := (*m)[0].Services; s[0], s[1] = s[1], s[0] }, `group "dc": services are not sorted by name`},
		{"a service twice", func(m *sdl.Manifest) { s := (*m)[0].Services; s[1] = s[0] }, `group "dc": service "one" is there twice`},
		{"a name in upper case", first(func(s *sdl.Service) { s.Name = "One" }), `group "dc": service "One": name must be of a-z, 0-9 and -, begin with a letter and not end in -`},
		{"no image", first(func(s *sdl.Service) { s.Image = "" }), `group "dc": service "one": image is empty`},
		{"no replica", first(func(s *sdl.Service) { s.Count = 0 }), `group "dc": service "one": count is 0`},
		{"no unit", first(func(s *sdl.Service) { s.Resources.ID = 0 }), `group "dc": service "one": resources.id is 0`},
		{"no processor", first(func(s *sdl.Service) { s.Resources.CPU = nil }), `group "dc": service "one": resources.cpu is missing`},
		{"no memory", first(func(s *sdl.Service) { s.Resources.Memory = nil }), `group "dc": service "one": resources.memory is missing`},
		{"no storage", first(func(s *sdl.Service) { s.Resources.Storage = nil }), `group "dc": service "one": resources.storage is missing`},
		{"no GPU entry", first(func(s *sdl.Service) { s.Resources.GPU = nil }), `group "dc": service "one": resources.gpu is missing`},
		{"no list of endpoints", first(func(s *sdl.Service) { s.Resources.Endpoints = nil }), `group "dc": service "one": resources.endpoints is missing`},
		{"a name no environment has", first(func(s *sdl.Service) { s.Env = []string{"A", "=b"} }), `group "dc": service "one": env[1]: "" cannot name an environment variable`},
		{"exposes out of order", first(func(s *sdl.Service) { s.Expose[0], s.Expose[1] = s.Expose[1], s.Expose[0] }), `group "dc": service "one": expose is not sorted by service, port, proto and global`},
		{"port 0", first(func(s *sdl.Service) { s.Expose[0].Port = 0 }), `group "dc": service "one": expose[0].port: 0 is not from 1 to 65535`},
		{"an external port too high", first(func(s *sdl.Service) { s.Expose[0].ExternalPort = 1 << 16 }), `group "dc": service "one": expose[0].externalPort: 65536 is not from 0 to 65535`},
		{"a protocol in lower case", first(func(s *sdl.Service) { s.Expose[1].Proto = "tcp" }), `group "dc": service "one": expose[1].proto: "tcp" is neither TCP nor UDP`},
		{"a host in upper case", first(func(s *sdl.Service) { s.Expose[0].Hosts = []string{"A.example"} }), `group "dc": service "one": expose[0].hosts: "A.example" is not a host name in lower case`},
		{"a host too long", first(func(s *sdl.Service) { s.Expose[0].Hosts = []string{strings.Repeat("a.", 127) + "a"} }), `group "dc": service "one": expose[0].hosts: "` + strings.Repeat("a.", 127) + `a" is not a host name in lower case`},
		{"a host twice", first(func(s *sdl.Service) { s.Expose[0].Hosts = []string{"a.example", "a.example"} }), `group "dc": service "one": expose[0].hosts: a.example is taken by service "one"`},
		{"nothing for the world", func(m *sdl.Manifest) {
			for i := range (*m)[0].Services {
				(*m)[0].Services[i].Expose = nil
			}
		}, "no service has an expose that is global"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := parseFile(t, checked).Manifest()
			tc.edit(&m)
			if err := m.Validate(); err == nil || err.Error() != tc.want {
				t.Errorf("Validate: %v\nwant: %s", err, tc.want)
			}
		})
	}
}

// first edits the first service.
func first(edit func(*sdl.Service)) func(*sdl.Manifest) {
	return func(m *sdl.Manifest) { edit(&(*m)[0].Services[0]) }
}

func TestCheckNamesServiceAndKey(t *testing.T) {
	type unit = deploymentv1beta4.ResourceUnit
	chain := func(edit func(u *unit)) func(*sdl.Manifest, *[]*deploymentv1beta4.GroupSpec) {
		return func(_ *sdl.Manifest, g *[]*deploymentv1beta4.GroupSpec) { edit((*g)[0].Resources[0]) }
	}
	for _, tc := range []struct {
		name string
		edit func(m *sdl.Manifest, g *[]*deploymentv1beta4.GroupSpec)
		want string
	}{
		{"a wrong form", func(m *sdl.Manifest, _ *[]*deploymentv1beta4.GroupSpec) { (*m)[0].Services[0].Image = "" }, `group "dc": service "one": image is empty`},
		{"no group on chain", func(_ *sdl.Manifest, g *[]*deploymentv1beta4.GroupSpec) { *g = nil }, "the manifest has 1 group, the deployment 0"},
		{"another group on chain", func(_ *sdl.Manifest, g *[]*deploymentv1beta4.GroupSpec) { (*g)[0].Name = "x" }, `group "dc" is not in the deployment`},
		{"another unit on chain", chain(func(u *unit) { u.Resource.Id = 9 }), `group "dc": service "one": resources.id: the deployment has no unit 1`},
		{"less processor on chain", chain(func(u *unit) { u.Resource.Cpu.Units.Val = []byte("99") }), `group "dc": service "one": resources.cpu: {"units":{"val":"100"},"attributes":[]}, on chain {"units":{"val":"99"},"attributes":[]}`},
		{"no processor on chain", chain(func(u *unit) { u.Resource.Cpu = nil }), `group "dc": service "one": resources.cpu: {"units":{"val":"100"},"attributes":[]}, on chain {"units":{"val":"0"},"attributes":[]}`},
		{"less memory on chain", chain(func(u *unit) { u.Resource.Memory.Quantity.Val = []byte("1") }), `group "dc": service "one": resources.memory: {"quantity":{"val":"134217728"},"attributes":[]}, on chain {"quantity":{"val":"1"},"attributes":[]}`},
		{"a GPU on chain", chain(func(u *unit) { u.Resource.Gpu.Units.Val = []byte("1") }), `group "dc": service "one": resources.gpu: {"units":{"val":"0"},"attributes":[]}, on chain {"units":{"val":"1"},"attributes":[]}`},
		{"another kind of GPU on chain", chain(func(u *unit) {
			u.Resource.Gpu.Attributes = []*attributesv1.Attribute{{Key: "vendor/nvidia/model/*", Value: "true"}}
		}), `group "dc": service "one": resources.gpu: {"units":{"val":"0"},"attributes":[]}, on chain {"units":{"val":"0"},"attributes":[{"key":"vendor/nvidia/model/*","value":"true"}]}`},
		{"another volume on chain", chain(func(u *unit) { u.Resource.Storage[0].Name = "data" }), `group "dc": service "one": resources.storage[0]: {"name":"default","quantity":{"val":"134217728"},"attributes":[]}, on chain {"name":"data","quantity":{"val":"134217728"},"attributes":[]}`},
		{"a smaller volume on chain", chain(func(u *unit) { u.Resource.Storage[0].Quantity.Val = []byte("5") }), `group "dc": service "one": resources.storage[0]: {"name":"default","quantity":{"val":"134217728"},"attributes":[]}, on chain {"name":"default","quantity":{"val":"5"},"attributes":[]}`},
		{"a volume more on chain", chain(func(u *unit) { u.Resource.Storage = append(u.Resource.Storage, u.Resource.Storage[0]) }), `group "dc": service "one": resources.storage: 1 volume, on chain 2`},
		{"more replicas than paid for", chain(func(u *unit) { u.Count-- }), `group "dc": service "two": count: 1 replica too many for unit 1`},
		{"fewer replicas than paid for", chain(func(u *unit) { u.Count += 2 }), `group "dc": 2 replicas of unit 1 of the deployment are used by no service`},
		{"an endpoint less", chain(func(u *unit) { u.Resource.Endpoints = u.Resource.Endpoints[1:] }), `group "dc": service "two": expose[0]: unit 1 has no shared HTTP endpoint left`},
		{"an endpoint more", chain(func(u *unit) {
			u.Resource.Endpoints = append(u.Resource.Endpoints, &resourcesv1beta4.Endpoint{Kind: resourcesv1beta4.Endpoint_RANDOM_PORT})
		}), `group "dc": a random port endpoint of unit 1 of the deployment is used by no service`},
		{"another leased address", chain(func(u *unit) { u.Resource.Endpoints[len(u.Resource.Endpoints)-1].SequenceNumber = 9 }), `group "dc": service "two": expose[1]: unit 1 has no leased address (4) endpoint left`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := parseFile(t, checked)
			m, g := file.Manifest(), file.Groups()
			tc.edit(&m, &g)
			if err := sdl.Check(m, g); err == nil || err.Error() != tc.want {
				t.Errorf("Check: %v\nwant: %s", err, tc.want)
			}
		})
	}
}

func TestWhatTheCallerGetsIsItsOwn(t *testing.T) {
	file := parseFile(t, "testdata/valid/article-with-everything.yaml")
	groups, manifest, hash := file.Groups(), file.Manifest(), file.Hash()
	for _, g := range groups {
		proto.Reset(g)
	}
	for i := range manifest[0].Services {
		s := &manifest[0].Services[i]
		clear(s.Args)
		clear(s.Expose)
		clear(s.Resources.Storage)
		clear(s.Resources.Endpoints)
		*s.Resources.CPU = sdl.CPU{}
		if s.Params != nil {
			clear(s.Params.Storage)
		}
	}
	if again := file.Hash(); again != hash {
		t.Error("the hash changed with a manifest that was handed out")
	}
	if err := sdl.Check(file.Manifest(), file.Groups()); err != nil {
		t.Error(err)
	}
}

func TestCanonicalJSON(t *testing.T) {
	for _, tc := range []struct{ name, raw, want string }{
		{"keys are sorted at every level", ` { "b" : [ { "z" : 1 , "y" : null } ] , "a" : true } `, `{"a":true,"b":[{"y":null,"z":1}]}`},
		{"keys are sorted by their bytes", `{"é":1,"z":2,"Z":3,"a":4}`, `{"Z":3,"a":4,"z":2,"é":1}`},
		{"arrays stay as they are", `[3,1,2,[],{}]`, `[3,1,2,[],{}]`},
		{"strings are escaped as Go does", `"\u003ca&b>\u2028 é \/"`, `"\u003ca\u0026b\u003e\u2028 é /"`},
		{"the largest integers stay exact", `[9007199254740993,18446744073709551]`, `[9007199254740993,18446744073709551]`},
		{"a fraction is refused", `[1.0]`, ""},
		{"an exponent is refused", `[1e3]`, ""},
		{"a negative zero is refused", `[-0]`, ""},
		{"a key twice is refused", `{"a":1,"a":2}`, ""},
		{"something behind the value is refused", `[] []`, ""},
		{"half a value is refused", `[{"a":`, ""},
		{"nothing is refused", ``, ""},
		{"a comma too many is refused", `[1,]`, ""},
		{"depth without end is refused", strings.Repeat("[", 10_000), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := sdl.CanonicalJSON([]byte(tc.raw))
			if string(got) != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("CanonicalJSON(%.40q) = %s, %v; want %s", tc.raw, got, err, tc.want)
			}
		})
	}
}

// TestAManifestOfGoIsHashedAsItCame is about a provider: a manifest in the order
// of keys and endpoints of the Go client has the hash of that client, not ours.
func TestAManifestOfGoIsHashedAsItCame(t *testing.T) {
	ours := parseFile(t, "testdata/valid/mixed-exposes.yaml").Manifest()
	theirs := parseFile(t, "testdata/valid/mixed-exposes.yaml").Manifest()
	e := theirs[0].Services[0].Resources.Endpoints
	e[0], e[1] = e[1], e[0]
	raw, err := json.Marshal(theirs) // keys in the order of the structs
	if err != nil {
		t.Fatal(err)
	}
	hash, err := sdl.HashRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	if hash == ours.Hash() || hash != theirs.Hash() {
		t.Errorf("hash %x, want that of what came, %x", hash, theirs.Hash())
	}
	if err := sdl.Check(theirs, parseFile(t, "testdata/valid/mixed-exposes.yaml").Groups()); err != nil {
		t.Errorf("the order of endpoints matters: %v", err)
	}
}

// FuzzParse: no input makes Parse panic, and what it accepts holds together.
func FuzzParse(f *testing.F) {
	for _, folder := range []string{"valid", "goonly", "malformed"} {
		for _, name := range files(f, folder) {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := sdl.Parse(data)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a word")
			}
			return
		}
		groups, manifest := file.Groups(), file.Manifest()
		if err := sdl.Check(manifest, groups); err != nil {
			t.Errorf("the manifest does not fit the groups: %v", err)
		}
		raw := manifest.JSON()
		if hash, err := sdl.HashRaw(raw); err != nil || hash != file.Hash() || hash != manifest.Hash() {
			t.Errorf("hash %x, %v; want %x", hash, err, file.Hash())
		}
		again, err := sdl.ParseManifest(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := again.JSON(); !bytes.Equal(got, raw) {
			t.Errorf("read again:\n%s\nwant:\n%s", got, raw)
		}
		if _, err := sdl.GroupsJSON(groups); err != nil {
			t.Error(err)
		}
	})
}

// FuzzManifest: sorting twice changes nothing, and what was read and written is
// read as the same.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(smallestManifest))
	f.Add([]byte(`{"b":[1,-2],"a":"<&>\u2028\ud800"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		once, err := sdl.CanonicalJSON(raw)
		if err != nil {
			return
		}
		if !json.Valid(raw) || !json.Valid(once) {
			t.Fatalf("%q was sorted to %q, not both are JSON", raw, once)
		}
		twice, err := sdl.CanonicalJSON(once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("sorted twice: %q, %v; once: %q", twice, err, once)
		}
		m, err := sdl.ParseManifest(raw)
		if err != nil {
			return
		}
		_ = m.Validate() // must not panic on anything that could be read
		_ = sdl.Check(m, nil)
		again, err := sdl.ParseManifest(m.JSON())
		if err != nil {
			t.Fatalf("read %s again: %v", m.JSON(), err)
		}
		if !bytes.Equal(again.JSON(), m.JSON()) {
			t.Fatalf("read again:\n%s\nwant:\n%s", again.JSON(), m.JSON())
		}
	})
}
