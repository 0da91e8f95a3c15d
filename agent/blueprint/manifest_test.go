package blueprint

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/chain/sdl"
)

func TestAManifestOfWrongShapeIsNamedInWords(t *testing.T) {
	for _, tc := range []struct{ name, raw, want string }{
		{"an object for the list", `{}`, "the whole cannot be an object in JSON"},
		{"a text for a number", `[{"name":"a","services":[{"count":"one"}]}]`, "services.count cannot be a string in JSON"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := Parse([]byte(tc.raw))
			if !errors.Is(err, ErrBadJSON) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error is %v, want %s", err, tc.want)
			}
		})
	}
}

func TestPortsOfTheWorldHaveOneMeaning(t *testing.T) {
	base := strings.NewReplacer("{port: 9000, to: [{global: true}]}", "EXPOSE").Replace(appSDL)
	for _, tc := range []struct{ name, expose, want string }{
		{"two ports as one", "{port: 9000, as: 70, to: [{global: true}]}, {port: 9001, as: 70, to: [{global: true}]}", "expose: ports 9000 and 9001 would both be TCP port 70 of the world"},
		{"TCP and UDP", "{port: 9000, as: 70, to: [{global: true}]}, {port: 9001, as: 70, proto: udp, to: [{global: true}]}", ""},
		{"within the deployment only", "{port: 9000, as: 70, to: [{global: true}]}, {port: 9001, as: 70, to: [{service: db}]}", ""},
		{"HTTP by host names", `{port: 9000, as: 80, accept: ["other.example.com"], to: [{global: true}]}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file, err := sdl.Parse([]byte(strings.Replace(base, "- EXPOSE", "- "+strings.Replace(tc.expose, "}, {", "}\n      - {", 1), 1)))
			if err != nil {
				t.Fatal(err)
			}
			err = Validate(file.Manifest())
			if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error is %v, want %q", err, tc.want)
			}
		})
	}
}

// hostile is a list of the same, as long as a manifest may be.
func hostile(before, each, after string) []byte {
	n := (MaxManifest - len(before) - len(after)) / (len(each) + 1)
	return []byte(before + strings.TrimSuffix(strings.Repeat(each+",", n), ",") + after)
}

// What a few bytes stand for is counted before it is decoded: each of these would
// be a hundred thousand allocations and more.
func TestManifestsOfManyElementsAreNotDecoded(t *testing.T) {
	for _, tc := range []struct {
		name string
		raw  []byte
	}{
		{"groups", hostile(`[`, `{}`, `]`)},
		{"some thousand services", []byte(`[{"services":[{}` + strings.Repeat(",{}", maxObjects) + `]}]`)},
		{"services", hostile(`[{"services":[`, `{}`, `]}]`)},
		{"ports", hostile(`[{"services":[{"expose":[`, `{}`, `]}]}]`)},
		{"volumes", hostile(`[{"services":[{"resources":{"storage":[`, `{}`, `]}}]}]`)},
		{"lines of environment", hostile(`[{"services":[{"env":[`, `""`, `]}]}]`)},
		{"host names", hostile(`[{"services":[{"expose":[{"hosts":[`, `"a"`, `]}]}]}]`)},
		{"lists", hostile(`[`, `[]`, `]`)},
		{"keys that nobody knows", hostile(`[{"services":[{`, `"\\\"":0`, `}]}]`)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var err error
			allocations := testing.AllocsPerRun(1, func() { _, err = Read(tc.raw) })
			if !errors.Is(err, ErrTooMany) || allocations > 100 {
				t.Errorf("%v after %v allocations", err, allocations)
			}
		})
	}
}

func TestTheLargestSensibleManifestIsRead(t *testing.T) {
	file, err := sdl.Parse([]byte(appSDL))
	if err != nil {
		t.Fatal(err)
	}
	manifest := file.Manifest()
	model := manifest[0].Services[1]
	model.Count = 1
	for range 100 {
		model.Env = append(model.Env, `QUOTED="{,},{,},{,}\\"`)
	}
	for port := range uint32(10) {
		model.Expose = append(model.Expose, sdl.Expose{Port: 9100 + port, Proto: "TCP", Global: true, Hosts: []string{}})
	}
	var services []sdl.Service
	for i := range maxServices {
		s := model
		s.Name = "web-" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		s.Expose = slices.Clone(s.Expose)
		for e := range s.Expose {
			s.Expose[e].Hosts = nil
		}
		services = append(services, s)
	}
	manifest[0].Services = services
	raw := manifest.JSON()
	if _, _, err := Parse(raw); err != nil {
		t.Errorf("%d bytes: %v", len(raw), err)
	}
}

// The costly hash is that of last resort, and is made once however often the chain
// is asked.
func TestTheHashOfWhatWasUnderstoodIsMadeOnce(t *testing.T) {
	file, err := sdl.Parse([]byte(appSDL))
	if err != nil {
		t.Fatal(err)
	}
	hash := file.Hash()
	sent, err := Read(file.Manifest().JSON())
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	understood := sent.typed
	sent.typed = func() [32]byte { made++; return understood() }
	if err := sent.Fits(hash[:], file.Groups()); err != nil || made != 0 {
		t.Errorf("the manifest on chain: %v after %d hashes", err, made)
	}
	if err := sent.Fits(make([]byte, 32), file.Groups()); !errors.Is(err, ErrWrongHash) {
		t.Errorf("another: %v", err)
	}
	once := testing.AllocsPerRun(1, func() { sent.Manifest.Hash() })
	if again := testing.AllocsPerRun(10, func() { err = sent.Fits(make([]byte, 32), nil) }); again > once/2 {
		t.Errorf("the next look costs %v allocations, a hash %v", again, once)
	}
	// A client that leaves out what is empty means the same manifest.
	loose, err := Read([]byte(strings.ReplaceAll(string(file.Manifest().JSON()), `"command":null,`, "")))
	if err != nil {
		t.Fatal(err)
	}
	if err := loose.Fits(hash[:], file.Groups()); err != nil {
		t.Errorf("the same in other words: %v", err)
	}
}
