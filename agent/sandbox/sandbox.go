// Package sandbox runs replicas of leases: it is the one door to containerd,
// and through it to runsc, the gVisor enclosure that every stranger's program
// runs in.
//
//	s, err := sandbox.New(sandbox.Config{Socket: "/run/croft/containerd.sock", …})
//	go s.Run(ctx)                                       // watches for exits
//	image, err := s.Pull(ctx, key, "nginx:1.27", creds, limit, progress)
//	err = s.Start(ctx, lease.Container{Image: image, …})
//	id, exit, err := s.NextExit(ctx)
//	err = s.Stop(ctx, id, 10*time.Second)
//	err = s.Collect(ctx, keys)                          // frees what no lease uses
//
// It does not restart what ended, choose what to run, make networks or disks,
// or keep a journal: containerd's own store is the memory, every object in it
// carries the lease it belongs to, and a new Sandbox adopts what it finds. It
// runs no program itself: containerd starts the shim, the shim runsc.
//
// It promises: no tenant's words become options of the runtime (no annotations,
// no hooks, no devices, no host paths but the mounts of [lease.Container]); all
// that an OCI image says is bounded and checked before use; every call ends, at
// the latest when its context or the bound named with it does; each end of a
// replica is told once in the life of a Sandbox.
//
// Errors are [*Error] with a [Reason]. Packages that may not import this one
// look for the methods Temporary and Kind, see there.
//
// Images. A lease that pulls an image owns it through a label on containerd's
// image record; an image nobody owns goes with the next [Sandbox.Collect]. What
// a broken pull fetched stays, under a content lease of containerd's that is
// named after lease and reference, and the next Pull continues there, unless the
// failure was for good or the lease began another pull meanwhile. The registry is
// asked once for every lease, also when the image is already here: whether this
// tenant may have it is for the registry to say. Its bytes are not fetched twice,
// so who knows the digest of another lease's OCI image or layer can have it while
// it is here, through a registry of his own: digests of secret ones are secrets.
//
// What survives what:
//
//   - this process is killed: replicas run on, with their logs (croft-rotlog
//     writes them, not the agent). The next Sandbox lists them; ends that nobody
//     was told of are told again until Stop removes the replica.
//   - containerd is killed: the same; calls fail with [RuntimeAway] until it is
//     back, the watcher reconnects and reports what ended meanwhile.
//   - shim or sandbox is killed: an exit with code 137.
//   - power cut: the replicas are gone, containerd's records are not: each is an
//     exit with code 137, after which Stop cleans up and Start begins anew.
//   - full disk: a pull or start fails, what was begun is removed.
//   - wrong clock: times in exits and images are wrong, nothing else.
//   - dead network: pulls fail as [RegistryDown] and continue later.
package sandbox

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	content "github.com/containerd/containerd/api/services/content/v1"
	events "github.com/containerd/containerd/api/services/events/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	contentleases "github.com/containerd/containerd/api/services/leases/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	streaming "github.com/containerd/containerd/api/services/streaming/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	transfer "github.com/containerd/containerd/api/services/transfer/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/croft-cloud/croft/agent/replicalog"
)

const (
	// callBound ends one call of containerd's that touches its database only.
	// Its disk may be slow; a minute is a broken machine.
	callBound = time.Minute
	// startBound ends making and starting a sandbox: 0.3 s on a quiet machine,
	// and a home box under load may need a hundred times that.
	startBound = 2 * time.Minute
	// killBound is how long a killed sandbox may take to be gone, with all the
	// memory it has to give back.
	killBound = time.Minute
	// messageBytes bounds one answer of containerd's. A container's record holds
	// its whole specification, and lists hold many.
	messageBytes = 32 << 20
)

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Socket    string // of containerd; required
	Runsc     string // path of croft-runsc; required
	RunscRoot string // folder of runsc's state, on a file system that a boot empties; required
	Rotlog    string // path of croft-rotlog; required
	RunDir    string // folder for the pipes of running commands, made if missing; required

	Namespace  string // of containerd, ours alone; default "croft"
	HostDir    string // folder of hosts.toml files (mirrors); default none
	CgroupRoot string // where cgroups are mounted; default /sys/fs/cgroup
	LogBytes   int64  // of one log file before it is rotated, 256 KiB to 1 GiB; default 4 MiB
	LogFiles   int    // rotated log files kept beside the newest, 1 to 99; default 2

	// PrivateRegistries lets tenants name registries by loopback and private
	// addresses. On a box that would let strangers speak to the owner's network.
	PrivateRegistries bool

	// UserIDs is the first of the user and group ids of the machine that those inside
	// sandboxes are mapped to, the sandbox's own processes' included, 65,536 for each
	// lease; default 0: none are mapped. It must never change while volumes live, and
	// every folder above scratch folders, volumes and the programs must let all
	// users through (mode 0711).
	UserIDs uint32

	Log *slog.Logger // default: discard
}

// Sandbox is a connection to containerd. Its methods may be called at any time
// from any goroutine, Run once.
type Sandbox struct {
	cfg  Config
	log  *slog.Logger
	conn *grpc.ClientConn

	containers containers.ContainersClient
	content    content.ContentClient
	events     events.EventsClient
	images     images.ImagesClient
	leases     contentleases.LeasesClient
	snapshots  snapshots.SnapshotsClient
	streaming  streaming.StreamingClient
	tasks      tasks.TasksClient
	transfer   transfer.TransferClient

	changing keyLock    // one change at a time per container
	starting keyLock    // one command at a time per container
	pulling  keyLock    // one pull at a time per content lease
	owning   sync.Mutex // held while the owners of images change and while they are collected

	mu    sync.Mutex
	busy  map[string]int // guarded by mu; content leases of pulls and ids of starts under way
	execs map[string]int // guarded by mu; running commands per container
	ends  ends           // guarded by mu
	ended chan struct{}  // holds a token while ends may have something to tell
}

// New checks cfg. It does not speak to containerd: that may come up later.
func New(cfg Config) (*Sandbox, error) {
	for _, path := range []struct{ name, value string }{
		{"containerd's socket", cfg.Socket},
		{"runsc", cfg.Runsc},
		{"runsc's state", cfg.RunscRoot},
		{"rotlog", cfg.Rotlog},
		{"the pipes", cfg.RunDir},
	} {
		if !filepath.IsAbs(path.value) {
			return nil, errors.New("path of " + path.name + " is missing or relative")
		}
	}
	cfg.Namespace = cmp.Or(cfg.Namespace, "croft")
	cfg.CgroupRoot = cmp.Or(cfg.CgroupRoot, "/sys/fs/cgroup")
	cfg.LogBytes = cmp.Or(cfg.LogBytes, 4<<20)
	cfg.LogFiles = cmp.Or(cfg.LogFiles, 2)
	if cfg.LogBytes < 256<<10 || cfg.LogBytes > 1<<30 || cfg.LogFiles < 0 || cfg.LogFiles >= replicalog.FilesMax {
		return nil, errors.New("size or number of log files is not one that croft-rotlog takes")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	conn, err := grpc.NewClient("unix://"+cfg.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// containerd may be back at any moment; asking a local socket is cheap.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytes), grpc.MaxCallSendMsgSize(messageBytes)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, err
	}
	return &Sandbox{
		cfg: cfg, log: cfg.Log, conn: conn,
		containers: containers.NewContainersClient(conn),
		content:    content.NewContentClient(conn),
		events:     events.NewEventsClient(conn),
		images:     images.NewImagesClient(conn),
		leases:     contentleases.NewLeasesClient(conn),
		snapshots:  snapshots.NewSnapshotsClient(conn),
		streaming:  streaming.NewStreamingClient(conn),
		tasks:      tasks.NewTasksClient(conn),
		transfer:   transfer.NewTransferClient(conn),
		busy:       map[string]int{},
		execs:      map[string]int{},
		ended:      make(chan struct{}, 1),
	}, nil
}

// Close gives the connection back. Replicas run on.
func (s *Sandbox) Close() error { return s.conn.Close() }

// inNamespace says in which of containerd's namespaces a call works.
func (s *Sandbox) inNamespace(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", s.cfg.Namespace)
}

// underLease keeps what a call creates until the content lease is deleted.
func underLease(ctx context.Context, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-lease", id)
}

// call is the context of one short call of containerd's.
func (s *Sandbox) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.inNamespace(ctx), callBound)
}

// enter marks a name as in use, so that Collect leaves alone what belongs to it.
func (s *Sandbox) enter(name string) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy[name]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.busy[name]--; s.busy[name] == 0 {
			delete(s.busy, name)
		}
	}
}

// keyLock is one lock per key. The zero value is ready for use.
type keyLock struct {
	mu   sync.Mutex
	held map[string]chan struct{} // guarded by mu; closed when the holder is done
}

// lock waits until nobody else holds key, or ctx ends.
func (l *keyLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		done, taken := l.held[key]
		if !taken {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			done = make(chan struct{})
			l.held[key] = done
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, key)
				close(done)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// containerLabels are how a container's record says whose it is.
const (
	replicaLabel = "croft.cloud/replica" // JSON of lease.ReplicaID
	leaseLabel   = "croft.cloud/lease"   // lease.Key
	lifeLabel    = "croft.cloud/life"    // differs from start to start of one replica
	signalLabel  = "croft.cloud/signal"  // the image's wish how to be ended, if it has one
)
