package sdl

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestCorpusHasEveryKey keeps the corpus complete: each key of the schema is in
// some valid file.
func TestCorpusHasEveryKey(t *testing.T) {
	var all []string
	for _, pattern := range []string{"testdata/valid/*.yaml", "testdata/goonly/*.yaml"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, names...)
	}
	seen := map[string]bool{}
	for _, name := range all {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		note(seen, "", doc.Content[0])
	}
	for _, shape := range slices.Sorted(maps.Keys(schema)) {
		for _, key := range schema[shape] {
			if path := join(shape, key); !seen[path] {
				t.Errorf("no file in testdata has %s", path)
			}
		}
	}
}

// note marks the paths below n, with * for names, as in the schema.
func note(seen map[string]bool, shape string, n *yaml.Node) {
	n = follow(n)
	switch n.Kind {
	case yaml.MappingNode:
		if _, isObject := schema[shape]; !isObject {
			if _, isList := schema[shape+"[]"]; isList {
				shape += "[]" // one volume, not a list of them
			}
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, isObject := schema[shape]; !isObject {
				key = "*"
			}
			seen[join(shape, key)] = true
			note(seen, join(shape, key), n.Content[i+1])
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			note(seen, shape+"[]", item)
		}
	default: // a scalar
	}
}

func TestDecimalsAreExact(t *testing.T) {
	for _, tc := range []struct{ name, text, size, cores, price string }{
		{"a whole number", "2", "2", "2000", "2000000000000000000"},
		{"a fraction no float can hold", "0.1", "1", "100", "100000000000000000"},
		{"a fraction floats round down", "1.001", "2", "1001", "1001000000000000000"},
		{"leading zeros", "007", "7", "7000", "7000000000000000000"},
		{"no digit before the point", ".5", "1", "500", "500000000000000000"},
		{"no digit behind the point", "5.", "5", "5000", "5000000000000000000"},
		{"finer than the chain's prices", "0.0000000000000000001", "1", "", ""},
		{"a sign", "-1", "", "", ""},
		{"an exponent", "1e3", "", "", ""},
		{"nothing", "", "", "", ""},
		{"a point", ".", "", "", ""},
		{"two points", "1.2.3", "", "", ""},
		{"kibibytes", "1.5Ki", "1536", "", ""},
		{"a part of a byte counts as a byte", "0.3Gi", "322122548", "", ""},
		{"a product floats err in", "16.1M", "16100000", "", ""},
		{"thousandths of a core", "250m", "", "250", ""},
		{"parts of a thousandth of a core", "0.5m", "", "", ""},
		{"no suffix of sizes", "1b", "", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			size, _ := parseSize(tc.text)
			for what, pair := range map[string][2]string{
				"size":  {text(size), tc.size},
				"cores": {text(parseCores(tc.text)), tc.cores},
				"price": {text(parsePrice(tc.text)), tc.price},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s of %q is %q, want %q", what, tc.text, pair[0], pair[1])
				}
			}
		})
	}
}

func text(n interface{ String() string }) string {
	if s := n.String(); s != "<nil>" {
		return s
	}
	return ""
}

func TestNearest(t *testing.T) {
	known := []string{"max_body_size", "read_timeout", "http_options", "proto", "port"}
	for _, tc := range []struct{ name, word, want string }{
		{"a letter is missing", "prot", "proto"},
		{"camel case", "maxBodySize", "max_body_size"},
		{"dashes", "http-options", "http_options"},
		{"nothing like it", "zebra", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := nearest(tc.word, known); got != tc.want {
				t.Errorf("nearest(%q) = %q, want %q", tc.word, got, tc.want)
			}
		})
	}
}
