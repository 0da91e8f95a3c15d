package ocispec

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"regexp"
	"runtime"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What an OCI image may be. Each bound is several times what the largest images
// in common use have.
const (
	LayersMax = 128 // layers; Docker's own bound is 127

	manifestBytes = 4 << 20 // of an index or manifest; what registries accept at most
	configBytes   = 1 << 20 // of a configuration; it holds the history too
	indexDepth    = 3       // indexes in indexes
	environMax    = 2048    // variables of the image and of the manifest together
	environBytes  = 256 << 10
	argumentsMax  = 1024
	argumentBytes = 128 << 10
)

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// IsDigest tells whether a text is a digest of kind sha256, in full.
func IsDigest(text string) bool { return digestForm.MatchString(text) }

// Platform is what images must be built for.
func Platform() (system, architecture string) { return "linux", runtime.GOARCH }

// Image is an OCI image that is here, unpacked.
type Image struct {
	Config imagespec.ImageConfig
	Chain  string // key of the snapshot that holds all layers
}

// Reader reads a document of at most limit bytes by its digest, which it has
// checked. It returns [ErrNotHere] for one that was never fetched.
type Reader func(digest string, limit int64) ([]byte, error)

// ReadImage follows the digest of an index or manifest to the configuration for
// this machine. Fails with [BadImage], [WrongArchitecture], [ErrNotHere] or as
// read does.
func ReadImage(digest string, read Reader) (Image, error) {
	manifest, err := readManifest(digest, read, 0)
	if err != nil {
		return Image{}, err
	}
	raw, err := readDocument(manifest.Config.Digest.String(), read, configBytes)
	if err != nil {
		return Image{}, err
	}
	return parseImageConfig(raw)
}

// readDocument asks for nothing but a digest.
func readDocument(digest string, read Reader, limit int64) ([]byte, error) {
	if !digestForm.MatchString(digest) {
		return nil, Errorf(BadImage, "the image names a part %.80q: want a digest of kind sha256", digest)
	}
	return read(digest, limit)
}

// parseImageConfig reads an image's configuration and checks that it is for
// this machine.
func parseImageConfig(raw []byte) (Image, error) {
	var config imagespec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return Image{}, Errorf(BadImage, "read the image's configuration: %w", err)
	}
	if system, architecture := Platform(); config.OS != system || config.Architecture != architecture {
		return Image{}, Errorf(WrongArchitecture, "the image is for %.40q on %.40q, this machine is %s on %s", config.OS, config.Architecture, system, architecture)
	}
	chain, err := chainID(config.RootFS.Type, config.RootFS.DiffIDs)
	if err != nil {
		return Image{}, err
	}
	return Image{Config: config.Config, Chain: chain}, nil
}

// chainID names the snapshot of all layers, as the OCI image specification
// counts it.
func chainID[D ~string](kind string, layers []D) (string, error) {
	if kind != "layers" || len(layers) == 0 || len(layers) > LayersMax {
		return "", Errorf(BadImage, "the image has %d layers of kind %.40q: want 1 to %d", len(layers), kind, LayersMax)
	}
	chain := ""
	for _, layer := range layers {
		if !digestForm.MatchString(string(layer)) {
			return "", Errorf(BadImage, "the image names a layer %.80q: want a digest of kind sha256", string(layer))
		}
		if chain == "" {
			chain = string(layer)
			continue
		}
		sum := sha256.Sum256([]byte(chain + " " + string(layer)))
		chain = "sha256:" + hex.EncodeToString(sum[:])
	}
	return chain, nil
}

// manifestOrIndex is what both kinds of document have.
type manifestOrIndex struct {
	Config    *imagespec.Descriptor  `json:"config"`
	Manifests []imagespec.Descriptor `json:"manifests"`
}

func readManifest(digest string, read Reader, depth int) (imagespec.Manifest, error) {
	raw, err := readDocument(digest, read, manifestBytes)
	if err != nil {
		return imagespec.Manifest{}, err
	}
	var document manifestOrIndex
	if err := json.Unmarshal(raw, &document); err != nil {
		return imagespec.Manifest{}, Errorf(BadImage, "read the image's manifest: %w", err)
	}
	if document.Config != nil {
		return imagespec.Manifest{Config: *document.Config}, nil
	}
	if depth == indexDepth {
		return imagespec.Manifest{}, Errorf(BadImage, "the image has more than %d indexes in each other", indexDepth)
	}
	for _, candidate := range forThisMachine(document.Manifests) {
		manifest, err := readManifest(candidate.Digest.String(), read, depth+1)
		if errors.Is(err, ErrNotHere) {
			continue // containerd fetched another one
		}
		return manifest, err
	}
	system, architecture := Platform()
	return imagespec.Manifest{}, Errorf(WrongArchitecture, "the image has nothing for %s on %s", system, architecture)
}

// forThisMachine are the parts of an index whose programs can run here.
func forThisMachine(all []imagespec.Descriptor) []imagespec.Descriptor {
	system, architecture := Platform()
	var fit []imagespec.Descriptor
	for _, d := range all {
		if d.Platform == nil || d.Platform.OS == system && d.Platform.Architecture == architecture {
			fit = append(fit, d)
		}
	}
	return fit
}

// ErrNotHere reports content of an image that was not fetched.
var ErrNotHere = errors.New("content is not here")
