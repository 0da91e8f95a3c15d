package hosting

import (
	"context"
	"io"
	"net/netip"

	"github.com/croft-cloud/croft/agent/bidding"
	"github.com/croft-cloud/croft/agent/gateway"
	"github.com/croft-cloud/croft/agent/ingress"
	"github.com/croft-cloud/croft/agent/journal"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/agent/workload"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

// What the ways between the parts need of those that reach outside the process.
// Tests put others in their place.
type (
	// Journal is the part of agent/journal that is needed.
	Journal interface {
		bidding.Journal
		Event(kind journal.Kind, fields any) (uint64, error)
	}

	// node is the door to the chain: chain/client.
	node interface {
		bidding.Chain
		gateway.Chain
		Close() error
	}

	// cells are containers and what they are made of: agent/sandbox.
	cells interface {
		workload.Runtime
		Run(context.Context) error
		Pull(ctx context.Context, key lease.Key, image string, credentials *sdl.Credentials, limit int64, progress func(done, total int64)) (string, error)
		Release(ctx context.Context, key lease.Key, keep ...string) error
		Collect(ctx context.Context, keep []lease.Key) error
		Usage(ctx context.Context, replica lease.ReplicaID) (lease.Usage, error)
		Exec(ctx context.Context, replica lease.ReplicaID, argv []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error)
		Close() error
	}

	// wires are the links of replicas: agent/network.
	wires interface {
		Run(context.Context) error
		Attach(ctx context.Context, id lease.ReplicaID, o network.Options) (lease.Attachment, error)
		Renew(ctx context.Context, id lease.ReplicaID) error
		Detach(ctx context.Context, id lease.ReplicaID) error
		SetLease(ctx context.Context, key lease.Key, l network.Lease) error
		Forget(ctx context.Context, key lease.Key) error
		Replicas() []lease.ReplicaID
		Counters(key lease.Key) (in, out uint64)
		Denied(key lease.Key) network.Denied
		SetAllowed(ctx context.Context, list []netip.AddrPort) error
		GuardFetchers(ctx context.Context) error
	}

	// entrance is where users come in: agent/ingress.
	entrance interface {
		Run(context.Context) error
		Set(ingress.Routes) error
		Handle(ingress.Stream) error
		Tidy()
		Counters() map[lease.Key]ingress.Counters
	}

	// tunnels lead to the relays: relay.Client.
	tunnels interface {
		Run(context.Context) error
		Set(hosts []string, ports []wire.Port) error
		States() ([]relay.RelayState, <-chan struct{})
	}
)
