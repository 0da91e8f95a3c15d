// Package lease holds the words that the agent's workers share about leases:
// names, what a container needs, what became of it. It does no I/O and keeps no
// state.
//
// The path of a lease through the agent: agent/bidding wins it, agent/gateway
// receives its manifest, agent/workload makes replicas of it, each a container
// of agent/sandbox on a disk of agent/leasedisk with an address of
// agent/network; agent/ingress brings users to it.
package lease

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

// Key names a lease on this box: in file names, interfaces and cgroups. It is
// "l" and ten characters of 0-9 and a-v.
type Key string

var keyEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// KeyOf is the key of a lease: the first 50 bits of the SHA-256 of the id's text
// in lower-case base32hex. A box that meets two leases with one key refuses the
// second; nobody can find one on purpose for less than 2^50 leases of their own.
func KeyOf(id akash.LeaseID) Key {
	sum := sha256.Sum256([]byte(id.String()))
	return Key("l" + strings.ToLower(keyEncoding.EncodeToString(sum[:])[:10]))
}

// ReplicaID names one running copy of a service. A new revision of the manifest
// makes new replicas.
type ReplicaID struct {
	Lease    Key    `json:"lease"`
	Service  string `json:"service"`
	Revision uint64 `json:"revision"` // of the manifest, counted by the box from 1
	Index    int    `json:"index"`    // from 0
}

// Pod is the replica's name as tenants see it, unique in its lease: "web-2-0".
func (id ReplicaID) Pod() string {
	return fmt.Sprintf("%s-%d-%d", id.Service, id.Revision, id.Index)
}

// Container is the replica's name for the runtime, unique on the box and at most
// 76 characters: the key, a dash and ten characters of a hash of the pod.
func (id ReplicaID) Container() string {
	sum := sha256.Sum256([]byte(id.Pod()))
	return string(id.Lease) + "-" + strings.ToLower(keyEncoding.EncodeToString(sum[:])[:10])
}

// Limits are what one replica may use.
type Limits struct {
	CPU    int64 // thousandths of a core
	Memory int64 // bytes, for the tenant's programs; the sandbox's own need comes on top
	Pids   int64 // processes and threads of the host; 0: the runtime's default
	Root   int64 // bytes of files in the replica's root; 0: as many as the lease's disk holds
}

// Mount is a folder of the host in a replica.
type Mount struct {
	Source      string // folder or file of the host
	Destination string // absolute path in the replica
	ReadOnly    bool
	Tmpfs       int64 // bytes of memory instead of a folder: class ram; Source is empty then
}

// Attachment is how a replica is on the network.
type Attachment struct {
	NetNS   string       // path of its network namespace
	Address netip.Prefix // its own
	Gateway netip.Addr   // the host's end of its link; also its name server
}

// Container is what agent/sandbox is asked to run.
type Container struct {
	ID         ReplicaID
	Image      string      // OCI image with its digest: name@sha256:…
	Command    []string    // nil: the image's entry point
	Args       []string    // nil: the image's command, if Command is nil as well
	Env        []string    // KEY=value, after the image's own
	Mounts     []Mount     // volumes and generated files
	Limits     Limits      // enforced by the kernel
	Scratch    string      // folder on the lease's disk for what the replica writes to its root
	Log        string      // file on the lease's disk for its output
	Hostname   string      // as the replica sees itself
	Attachment *Attachment // nil: no network
	GPUs       []int       // indexes of the machine's GPUs
}

// Exit is the end of a container.
type Exit struct {
	Code int       // 128 + n: ended by signal n
	OOM  bool      // it wanted more memory than its limit
	At   time.Time // device clock, UTC
}

// Usage is what a replica uses now.
type Usage struct {
	CPU       time.Duration // since it started
	Memory    int64         // bytes
	MemoryMax int64         // bytes it may use
	Pids      int64
}

// EventType says whether an event is bad news.
type EventType string

// The types, as tenants' tools know them.
const (
	Normal  EventType = "Normal"
	Warning EventType = "Warning"
)

// Event is something that happened to a lease, in words for its tenant.
type Event struct {
	Seq     uint64    `json:"seq"` // grows from event to event of one lease
	At      time.Time `json:"at"`  // device clock, UTC
	Type    EventType `json:"type"`
	Reason  string    `json:"reason"`            // one word: Pulling, Started, OOMKilled
	Note    string    `json:"note"`              // a sentence
	Service string    `json:"service,omitempty"` // empty: the lease as a whole
	Pod     string    `json:"pod,omitempty"`     // empty: the service as a whole
}

// ServiceStatus is how one service of a lease is doing.
type ServiceStatus struct {
	Name      string
	Revision  uint64   // of the manifest it was made from
	Total     int      // replicas wanted
	Started   int      // of the newest revision
	Available int      // that answer
	URIs      []string // host names without scheme
	Problem   string   // why it is not available, a sentence; empty if it is
}

// Taken is a manifest that was accepted for a lease.
type Taken struct {
	Lease    akash.LeaseID
	Revision uint64
	Group    sdl.Group // what runs under this lease
	Raw      []byte    // the whole manifest as it was received
}
