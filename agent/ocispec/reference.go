// Package ocispec turns what others write about an OCI image into what a sandbox
// can be made from: a tenant's image name into a checked [Reference], an image's
// documents into an [Image], its accounts into an [Identity], and all of them
// with the replica's own wishes into a specification for the runtime.
//
//	ref, err := ocispec.ParseReference("nginx:1.27", false)
//	image, err := ocispec.ReadImage(digest, read)
//	passwd, group, err := layers.ReadAccounts()
//	who, err := ocispec.LookUpUser(image.Config.User, passwd, group)
//	spec, err := ocispec.Build(ocispec.Input{Container: c, Config: image.Config, Who: who, …})
//
// It does not talk to containerd, runsc or a registry: agent/sandbox does. All
// but [Layers], which looks into files of an unpacked image, only computes.
//
// It promises: all that a name, an image or a manifest says is bounded and
// checked before it is used; no word of a tenant becomes an option of the
// runtime; a file of an image is read as the image's own programs would find it.
//
// Errors are [*Error] with a [Reason], the same words that agent/sandbox uses.
package ocispec

import (
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// referenceLength bounds an image's name as tenants write it: 255 characters of
// repository, 128 of tag and a digest, with room for a host.
const referenceLength = 600

// Reference is an image's name, complete and checked.
type Reference struct {
	Name   string // registry/repository
	Tag    string // may be empty if Digest is not
	Digest string // sha256:…, may be empty if Tag is not
}

// ParseReference reads an image's name as people write it: docker.io, library/
// and the tag latest may be left out. A registry in this machine or its network
// is refused unless private ones are allowed. Fails with [BadReference].
func ParseReference(typed string, private bool) (Reference, error) {
	if len(typed) > referenceLength {
		return Reference{}, Errorf(BadReference, "image name of %d bytes: want at most %d", len(typed), referenceLength)
	}
	named, err := reference.ParseNormalizedNamed(typed)
	if err != nil {
		return Reference{}, Errorf(BadReference, "image name %q: %w", typed, err)
	}
	named = reference.TagNameOnly(named)
	r := Reference{Name: named.Name()}
	if tagged, ok := named.(reference.Tagged); ok {
		r.Tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		r.Digest = digested.Digest().String()
		if !strings.HasPrefix(r.Digest, "sha256:") {
			return Reference{}, Errorf(BadReference, "image name %q: want a digest of kind sha256", typed)
		}
	}
	if host := r.host(); !private && isPrivate(host) {
		return Reference{}, Errorf(BadReference, "image name %q: %s is not on the internet", typed, host)
	}
	return r, nil
}

// host is the registry, with its port if it has one.
func (r Reference) host() string {
	host, _, _ := strings.Cut(r.Name, "/")
	return host
}

// String is what containerd resolves. A digest decides alone: a tag beside it
// is a note for people.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Name + "@" + r.Digest
	}
	return r.Name + ":" + r.Tag
}

// WithDigest is the name under which the image is kept.
func (r Reference) WithDigest(digest string) string { return r.Name + "@" + digest }

// isPrivate says whether a registry is named as part of this machine or of the
// network it stands in. Names that only resolve to such addresses are the
// firewall's business.
func isPrivate(registry string) bool {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap().WithZone("")
		return !addr.IsGlobalUnicast() || addr.IsPrivate() || carrierGrade.Contains(addr)
	}
	// A number alone is an address to some resolvers: 2130706433 is 127.0.0.1.
	if labels := strings.Split(host, "."); numberLike.MatchString(labels[len(labels)-1]) {
		return true
	}
	for _, suffix := range []string{"localhost", "local", "internal", "lan", "home.arpa"} {
		if host == suffix || strings.HasSuffix(host, "."+suffix) {
			return true
		}
	}
	return false
}

// numberLike is the last part of a host that a resolver may take for an address.
var numberLike = regexp.MustCompile(`^([0-9]*|0x[0-9a-f]*)$`)

// carrierGrade are the addresses behind a provider's NAT (RFC 6598).
var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")

// CredentialHost says whether credentials given for a host may be sent to one
// that asks. Docker's registry is known by several names.
func CredentialHost(given, asks string) bool {
	canonical := func(host string) string {
		host = strings.ToLower(strings.TrimSpace(host))
		host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
		host, _, _ = strings.Cut(host, "/")
		switch host {
		case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
			return "docker.io"
		}
		return strings.TrimSuffix(host, ":443")
	}
	return given != "" && canonical(given) == canonical(asks)
}
