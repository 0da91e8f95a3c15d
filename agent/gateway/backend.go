package gateway

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
)

// Errors of backends. Their kind decides what a tenant gets, and the text of a
// kind other than the last reaches them:
//
//	kind                        REST  websocket
//	not_found                   404   4001
//	usage, invalid, refused     422   4000
//	missing                     503   4002  (of a manifest: 500)
//	other, no_space             500   4000, "internal error"
//
// A context that ended in time counts as missing.

// Manifests takes what tenants want to run.
type Manifests interface {
	// Expect says whether a manifest of this tenant has a place to go, before a byte
	// of it is read; it may wait a little for the chain. Without a lease of theirs
	// here: not_found.
	Expect(ctx context.Context, id akash.DeploymentID) error
	// Accept checks a manifest against the chain and keeps it. No lease of this
	// tenant here: not_found. A manifest that is not the chain's, or cannot run
	// here: invalid or refused. The same again changes nothing.
	Accept(ctx context.Context, id akash.DeploymentID, raw []byte) error
	// Manifest is the array with the one group of a lease, as JSON.
	Manifest(ctx context.Context, id akash.LeaseID) ([]byte, error)
}

// Statuses tells how leases are.
type Statuses interface {
	// Status is how a lease is; without services before its manifest.
	Status(ctx context.Context, id akash.LeaseID) (LeaseStatus, error)
}

// LeaseStatus is how a lease is.
type LeaseStatus struct {
	Services []lease.ServiceStatus
	Ports    []ForwardedPort
	IPs      []LeasedIP
}

// ForwardedPort is a port of a service as the world reaches it.
type ForwardedPort struct {
	Service  string
	Host     string // name or address
	Port     uint16 // of the service
	External uint16 // on Host
	Proto    string // TCP or UDP
}

// LeasedIP is an address of a lease's own.
type LeasedIP struct {
	Service  string
	IP       string
	Port     uint16
	External uint16
	Proto    string // TCP or UDP
}

// Logs tells what containers wrote.
type Logs interface {
	// Logs yields lines until the last, or with Follow until the lease or ctx
	// ends; at the end of ctx it stops at once. An error is the last thing it
	// yields.
	Logs(ctx context.Context, id akash.LeaseID, q LogQuery) iter.Seq2[LogLine, error]
}

// LogQuery says which lines.
type LogQuery struct {
	Services []string // nil: all
	Tail     int      // the last lines of each replica; below 0: all that there are
	Follow   bool     // go on with new ones
}

// LogLine is one line of one replica.
type LogLine struct {
	Pod  string
	Text string // without its end of line; of a long line a part, as agent/replicalog cuts it
}

// Events tells what happened.
type Events interface {
	// Events yields as Logs does.
	Events(ctx context.Context, id akash.LeaseID, services []string, follow bool) iter.Seq2[lease.Event, error]
}

// Shell runs programs in replicas.
type Shell interface {
	// Exec runs a program to its end and returns its exit code. It ends the
	// program when ctx ends, and returns when the program's output has been
	// written. A program that cannot be run: not_found, refused, usage.
	Exec(ctx context.Context, id akash.LeaseID, e Exec) (code int, err error)
}

// Exec is a program to run.
type Exec struct {
	Service        string
	Index          int // of the replica, from 0
	Command        []string
	TTY            bool
	Stdin          io.Reader     // nil: none; its end is the program's end of input
	Stdout, Stderr io.Writer     // safe for use at the same time; an error ends the program
	Resize         <-chan Window // never closed
}

// Window is the size of a terminal in characters.
type Window struct{ Width, Height uint16 }

// Provided tells what the box has.
type Provided interface {
	Provided(ctx context.Context) (Provider, error)
}

// Provider is what a box tells of itself in public.
type Provider struct {
	Leases      int       // active
	Orders      int       // thought about
	Deployments int       // whose manifest is here
	Active      []Amounts // of each lease
	Pending     []Amounts // of each bid
	Machine     Machine
	Classes     []Class  // of storage that outlives a container
	PublicHosts []string // under which workloads are reached
	Errors      []string // sentences for tenants
	Reclamation time.Duration
}

// Amounts of resources.
type Amounts struct {
	CPU              int64            // thousandths of a core
	GPU              int64            // pieces
	Memory           int64            // bytes
	StorageEphemeral int64            // bytes
	Storage          map[string]int64 // bytes by class
}

// Machine is the box as tenants see it.
type Machine struct {
	Name        string
	Allocatable Amounts // what may be let
	Available   Amounts // what of it is not
	Processor   Processor
	GPUs        []GPU
}

// Processor is the kind of CPU.
type Processor struct {
	Vendor, Model string
	Threads       int
}

// GPU is one GPU in the words of Akash's attributes.
type GPU struct{ Vendor, VendorID, Name, ModelID, Interface, MemorySize string }

// Class is one class of storage.
type Class struct {
	Name      string // beta1, beta2, beta3
	Size      int64  // bytes in all
	Available int64  // bytes not let
}

// Hosts moves names and addresses from one lease of a tenant to another.
type Hosts interface {
	MigrateHosts(ctx context.Context, names []string, to akash.GroupID) (moved []string, err error)
	MigrateEndpoints(ctx context.Context, names []string, to akash.GroupID) (moved []string, err error)
}
