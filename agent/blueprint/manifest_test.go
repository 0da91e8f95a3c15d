package blueprint

import (
	"errors"
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
