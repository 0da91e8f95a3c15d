// Package sdl reads the Stack Definition Language, the YAML files in which
// tenants say what to run, on which terms and where. It makes from a file
// what the real clients make of it: the groups that a deployment asks for on
// chain, the manifest that goes to the providers, and the hash that binds one
// to the other.
//
//	file, err := sdl.Parse(data)  // err is an [Errors]: all mistakes, with line, column and remedy
//	file.Groups()                 // for MsgCreateDeployment
//	file.Manifest().JSON()        // for the provider
//	file.Manifest().Hash()        // for MsgCreateDeployment, too
//
// A provider goes the other way: [HashRaw] says whether a manifest it received
// is the one on chain, [Check] whether it fits the groups on chain.
//
// # Which client is followed
//
// There are two real readers of SDL, in Go (the akash command line) and in
// TypeScript (@akashnetwork/chain-sdk, the hosted console). For most files
// they make the same manifest; every file in testdata/valid is one for which
// this package and the TypeScript reader agree on all of manifest, hash and
// groups. Where the two readers differ:
//
//   - Order. Endpoints, volumes and GPU models of a manifest stand in the order
//     of the file, as in TypeScript. Go sorts them.
//   - A single volume written as a map keeps its name, and an HTTP option of 0
//     is 0, as in TypeScript. Go calls the volume default and the 0 absent.
//   - An expose without "to" reaches nobody and leaves no trace, as in
//     TypeScript. Go writes one that is not global. No choice suits both
//     hashes; this one lets both readers agree as soon as the file says "to".
//   - A fraction of a byte counts as a byte (0.3Gi), as in TypeScript. Go drops
//     it. Nothing is ever computed in floating point, though: where TypeScript
//     would err in the last digit, this package does not.
//   - In version 2.0 each service has a unit of its own on chain, as in Go; in
//     2.1 services with the same profile in one placement share one.
//     TypeScript shares in both.
//   - What only the Go reader knows is read as it does: params.tee,
//     reclamation, proxy_buffer_size, the permission events, sizes without a
//     suffix, persistent volumes without a class, yes and no for true and
//     false, nvidia: [].
//
// Where both are lax and the result would be refused or surprising later, this
// package refuses at once: unknown and repeated keys, what the chain's limits
// forbid, names that nothing declares, services that are not deployed.
//
// The package does no I/O and keeps no state: equal input gives equal output.
// It never panics on input, and its work is bounded by the size of it.
package sdl

import (
	"time"

	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
)

// SDL is a file that was read and found right.
type SDL struct {
	doc *document
}

// Parse reads an SDL of version 2.0 or 2.1. Its error is an [Errors].
func Parse(data []byte) (*SDL, error) {
	r := &reader{}
	root, ok := r.load(data)
	if !ok {
		return nil, r.errs.err()
	}
	doc := r.document(root)
	r.check(doc)
	if err := r.errs.err(); err != nil {
		return nil, err
	}
	return &SDL{doc}, nil
}

// Version is "2.0" or "2.1".
func (s *SDL) Version() string { return s.doc.version }

// Reclamation is how long before a provider takes its resources back it must
// say so, at least; 0 if the SDL does not ask for it.
func (s *SDL) Reclamation() time.Duration { return s.doc.window }

// Groups are what the SDL asks for on chain, one group for each placement in
// use, ordered by name. The caller owns them.
func (s *SDL) Groups() []*deploymentv1beta4.GroupSpec {
	groups, _ := s.doc.build()
	return groups
}

// Manifest is what the SDL sends to the providers. The caller owns it.
func (s *SDL) Manifest() Manifest {
	_, manifest := s.doc.build()
	return manifest
}

// Hash is that of the manifest.
func (s *SDL) Hash() [32]byte { return s.Manifest().Hash() }
