package build

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/croft-cloud/croft/images/manifest"
)

// describe writes the manifest and the SBOM.
func (b *build) describe(ctx context.Context) error {
	if err := b.addPrograms(); err != nil {
		return err
	}
	if err := b.addTools(ctx); err != nil {
		return err
	}
	b.inputs = append(b.inputs, b.source.input())
	b.inputs = slices.CompactFunc(slices.SortedFunc(slices.Values(b.inputs), func(a, c manifest.Input) int {
		return strings.Compare(a.Kind+a.Name+a.Version, c.Kind+c.Name+c.Version)
	}), func(a, c manifest.Input) bool { return a == c })

	if err := b.writeSBOM(); err != nil {
		return err
	}
	m := manifest.Manifest{
		Board: b.Board.Name, Version: b.Version, Built: b.epoch, Kernel: b.kernel.release,
		Root:   manifest.Root{Hash: b.root.Hash, Size: b.root.Size},
		Inputs: b.inputs,
	}
	for _, suffix := range []string{".img", ".root", ".efi", ".sbom.json"} {
		sum, size, err := fileDigest(b.file(suffix))
		if err != nil {
			return err
		}
		m.Artifacts = append(m.Artifacts, manifest.Artifact{Name: filepath.Base(b.file(suffix)), Size: size, SHA256: sum})
	}
	raw, err := m.Encode()
	if err != nil {
		return err
	}
	return os.WriteFile(b.file(".manifest.json"), raw, 0o644)
}

// addPrograms records every Go program in root and initramfs with the modules
// linked into it, as the Go linker recorded them.
func (b *build) addPrograms() error {
	tree := filepath.Join(b.work, "root")
	paths := []string{filepath.Join(b.work, "initramfs.d", "init")}
	for _, pattern := range []string{"gokrazy/*", "user/*"} {
		found, _ := filepath.Glob(filepath.Join(tree, pattern))
		paths = append(paths, found...)
	}
	for _, path := range paths {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the build record of %s: %w", filepath.Base(path), err)
		}
		if err := b.addInput("program", info.Path, info.GoVersion, path); err != nil {
			return err
		}
		for _, dep := range info.Deps {
			if dep.Replace != nil || dep.Sum == "" {
				continue // croft itself
			}
			b.inputs = append(b.inputs, manifest.Input{Kind: "go-module", Name: dep.Path, Version: dep.Version, SHA256: dep.Sum})
		}
	}
	// The builder's certificate authorities are copied into the root by gok.
	return b.addInput("file", "ca-bundle.pem", "", filepath.Join(tree, "etc/ssl/ca-bundle.pem"))
}

func (b *build) writeSBOM() error {
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{
		Timestamp: b.epoch.Format("2006-01-02T15:04:05Z"),
		Component: &cdx.Component{
			Type: cdx.ComponentTypeFirmware, Name: "croft-" + b.Board.Name, Version: string(b.Version),
			BOMRef: "croft", Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: b.root.Hash}},
		},
	}
	var components []cdx.Component
	for _, in := range b.inputs {
		if in.Kind == "tool" || in.Kind == "source" {
			continue // not in the release: the manifest has them
		}
		c := cdx.Component{Type: cdx.ComponentTypeLibrary, Name: in.Name, Version: in.Version, BOMRef: in.Kind + ":" + in.Name + "@" + in.Version}
		switch in.Kind {
		case "deb":
			c.Type = cdx.ComponentTypeOS
			name, _, _ := strings.Cut(in.Name, ":")
			c.PackageURL = "pkg:deb/debian/" + name + "@" + in.Version + "?arch=amd64"
		case "go-module":
			c.PackageURL = "pkg:golang/" + in.Name + "@" + in.Version
		case "program":
			c.Type = cdx.ComponentTypeApplication
		case "file":
			c.Type = cdx.ComponentTypeFile
		}
		if !strings.HasPrefix(in.SHA256, "h1:") {
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: in.SHA256}}
		}
		components = append(components, c)
	}
	bom.Components = &components
	f, err := os.Create(b.file(".sbom.json"))
	if err != nil {
		return err
	}
	if err := cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		f.Close()
		return fmt.Errorf("write the SBOM: %w", err)
	}
	return f.Close()
}
