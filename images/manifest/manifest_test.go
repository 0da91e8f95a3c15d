package manifest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.json")

const (
	digest1 = "1111111111111111111111111111111111111111111111111111111111111111"
	digest2 = "2222222222222222222222222222222222222222222222222222222222222222"
	digest3 = "3333333333333333333333333333333333333333333333333333333333333333"
)

// sample is a release, its lists out of order.
func sample() Manifest {
	return Manifest{
		Board: "uefi-x86", Version: "1.2.0", Kernel: "6.12.95+deb12-amd64",
		Built: time.Date(2026, 11, 20, 21, 0, 0, 500, time.FixedZone("CET", 3600)),
		Root:  Root{Hash: digest1, Size: 4096 * 1000},
		Artifacts: []Artifact{
			{Name: "croft-uefi-x86.root", Size: 4_200_000, SHA256: digest2},
			{Name: "croft-uefi-x86.efi", Size: 15_000_000, SHA256: digest3},
		},
		Inputs: []Input{
			{Kind: "program", Name: "github.com/croft-cloud/croft/cmd/croft-agent", Version: "go1.26.1", SHA256: digest1},
			{Kind: "go-module", Name: "golang.org/x/sys", Version: "v0.49.0", SHA256: "h1:abc+/="},
			{Kind: "deb", Name: "systemd-boot-efi:linuxx64.efi.stub", Version: "252.39-1~deb12u1", SHA256: digest2},
			{Kind: "deb", Name: "gnu-efi:crt0-efi-x86_64.o", Version: "3.0.15-1", SHA256: digest3},
			{Kind: "file", Name: "ca-bundle.pem", SHA256: digest3},
			{Kind: "tool", Name: "kmod:kmod", Version: "30+20221128-1", SHA256: digest2},
			{Kind: "tool", Name: "github.com/gokrazy/tools", Version: "v0.0.0-20260109180632-8ed49b4fafc7", SHA256: "h1:abc+/="},
			{Kind: "source", Name: "github.com/croft-cloud/croft", Version: "0123456789abcdef0123456789abcdef01234567-dirty", SHA256: digest1},
		},
	}
}

func encode(t *testing.T, m Manifest) []byte {
	t.Helper()
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEncodeGivesTheSameBytesForever(t *testing.T) {
	got := encode(t, sample())
	golden := filepath.Join("testdata", "golden.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("format %d has changed; boxes in the field know it as it was (-want +got):\n%s", Format, diff)
	}
}

func TestEncodeLeavesTheManifestAsItWas(t *testing.T) {
	m := sample()
	encode(t, m)
	if diff := cmp.Diff(sample(), m); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}

func TestParseReadsWhatEncodeWrites(t *testing.T) {
	empty := sample()
	empty.Artifacts, empty.Inputs = nil, nil
	unknown := sample()
	unknown.Inputs[7].Version, unknown.Inputs[7].SHA256 = "unknown", "unknown"
	for _, tc := range []struct {
		name string
		m    Manifest
	}{
		{"a release", sample()},
		{"a release without lists", empty},
		{"a release of a source without history", unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw := encode(t, tc.m)
			m, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if again := encode(t, m); !bytes.Equal(again, raw) {
				t.Errorf("encode, parse, encode gives\n%s\nafter\n%s", again, raw)
			}
			if !m.Built.Equal(tc.m.Built.Truncate(time.Second)) || m.Built.Location() != time.UTC {
				t.Errorf("built %v, want %v in UTC", m.Built, tc.m.Built)
			}
		})
	}
}

func TestEncodeRefusesWhatIsNoRelease(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Manifest)
		says   string
	}{
		{"no board", func(m *Manifest) { m.Board = "" }, "board"},
		{"a board that leaves its folder", func(m *Manifest) { m.Board = "../etc" }, "board"},
		{"no version", func(m *Manifest) { m.Version = "" }, "version"},
		{"a version no file can be named after", func(m *Manifest) { m.Version = "1 0" }, "version"},
		{"no time", func(m *Manifest) { m.Built = time.Time{} }, "year 1"},
		{"a time beyond all clocks", func(m *Manifest) { m.Built = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "year 10000"},
		{"no kernel", func(m *Manifest) { m.Kernel = "" }, "kernel"},
		{"a kernel with a line break", func(m *Manifest) { m.Kernel = "6.12\n" }, "kernel"},
		{"a short root hash", func(m *Manifest) { m.Root.Hash = digest1[:62] }, "root hash"},
		{"a root hash in capitals", func(m *Manifest) { m.Root.Hash = strings.Repeat("AB", 32) }, "root hash"},
		{"an empty root", func(m *Manifest) { m.Root.Size = 0 }, "root of 0 bytes"},
		{"a root of broken blocks", func(m *Manifest) { m.Root.Size = 4097 }, "root of 4097 bytes"},
		{"an artifact without a name", func(m *Manifest) { m.Artifacts[0].Name = "" }, "not the name of a file"},
		{"an artifact elsewhere", func(m *Manifest) { m.Artifacts[0].Name = "../../etc/passwd" }, "not the name of a file"},
		{"an artifact that is a folder", func(m *Manifest) { m.Artifacts[0].Name = ".." }, "not the name of a file"},
		{"an artifact with no byte to spare", func(m *Manifest) { m.Artifacts[0].Size = -1 }, "-1 bytes"},
		{"an artifact without digest", func(m *Manifest) { m.Artifacts[0].SHA256 = "" }, "digest"},
		{"an artifact that appears twice", func(m *Manifest) { m.Artifacts[0].Name = m.Artifacts[1].Name }, "appears twice"},
		{"an input of no kind", func(m *Manifest) { m.Inputs[0].Kind = "rpm" }, "kind is not"},
		{"an input without a name", func(m *Manifest) { m.Inputs[0].Name = "" }, "not a name"},
		{"a module with another sum than Go's", func(m *Manifest) { m.Inputs[1].SHA256 = digest1 }, "go.sum"},
		{"a package with Go's sum", func(m *Manifest) { m.Inputs[2].SHA256 = "h1:abc" }, "digest"},
		{"a tool without digest", func(m *Manifest) { m.Inputs[5].SHA256 = "" }, "digest"},
		{"a source of a known commit without digest", func(m *Manifest) { m.Inputs[7].SHA256 = "unknown" }, "digest"},
		{"an input that appears twice", func(m *Manifest) { m.Inputs[2] = m.Inputs[3] }, "appears twice"},
		{"a name that is not text", func(m *Manifest) { m.Inputs[0].Name = "\xff" }, "not a name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := sample()
			tc.change(&m)
			if raw, err := m.Encode(); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Encode = %s, %v; want an error with %q", raw, err, tc.says)
			}
		})
	}
}

func TestParseRefusesOtherSpellings(t *testing.T) {
	good := string(encode(t, sample()))
	for _, tc := range []struct{ name, old, new, says string }{
		{"nothing", good, "", "unexpected end"},
		{"cut short", good[100:], "", "unexpected end"},
		{"another format, with keys unknown today", `"format": 1,`, `"format": 2, "signed": true,`, "format 2, this program knows 1"},
		{"no format", `"format": 1,`, ``, "format 0"},
		{"an unknown key", `"board":`, `"colour": "red", "board":`, `unknown field "colour"`},
		{"a key in capitals", `"board"`, `"BOARD"`, "spelled"},
		{"a key twice", `"board": "uefi-x86",`, `"board": "pi5", "board": "uefi-x86",`, "spelled"},
		{"other spaces", `  "board"`, ` "board"`, "spelled"},
		{"no newline at its end", "}\n", "}", "spelled"},
		{"something after its end", "\n}\n", "\n}\n}", "after top-level value"},
		{"a list out of order", "croft-uefi-x86.efi", "croft-uefi-x86.zip", "spelled"},
		{"an unknown kind of input", `"deb"`, `"rpm"`, "kind is not"},
		{"a time in another zone", "2026-11-20T20:00:00Z", "2026-11-20T21:00:00+01:00", "spelled"},
		{"a size as text", "15000000", `"15000000"`, "cannot unmarshal string"},
		{"a damaged digest", digest3, digest3[:63] + "g", "digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw := strings.Replace(good, tc.old, tc.new, 1)
			if raw == good {
				t.Fatal("the case changes nothing")
			}
			if m, err := Parse([]byte(raw)); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Parse = %+v, %v; want an error with %q", m, err, tc.says)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	raw, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"format": 1}`))
	f.Add([]byte(`{"format": 1, "artifacts": null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Parse(raw)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, raw) {
			t.Errorf("parsed from %q, encoded to %q, %v", raw, again, err)
		}
		if m2, err := Parse(again); err != nil || !cmp.Equal(m, m2) {
			t.Errorf("parsed again: %+v, %v; want %+v", m2, err, m)
		}
	})
}
