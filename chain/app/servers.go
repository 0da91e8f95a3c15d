package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	cmtpubsub "github.com/cometbft/cometbft/libs/pubsub"
	"github.com/cometbft/cometbft/rpc/core"
	coretypes "github.com/cometbft/cometbft/rpc/core/types"
	rpcserver "github.com/cometbft/cometbft/rpc/jsonrpc/server"
	rpctypes "github.com/cometbft/cometbft/rpc/jsonrpc/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cosmos/cosmos-sdk/client"
	"github.com/cosmos/cosmos-sdk/codec"
	"github.com/cosmos/cosmos-sdk/server/api"
	"github.com/cosmos/cosmos-sdk/server/config"
	servergrpc "github.com/cosmos/cosmos-sdk/server/grpc"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/cometnode"
)

// listeners are the node's ports, taken before anything else is begun, so that
// a port in use is a clear refusal and not half a node.
type listeners struct{ rpc, grpc, rest net.Listener }

// checkAddrs finds addresses that cannot be any, before anything is written.
func (c NodeConfig) checkAddrs() error {
	for _, p := range []struct{ flag, addr string }{{"--rpc", c.RPC}, {"--grpc", c.GRPC}, {"--rest", c.REST}, {"--p2p", c.P2P}} {
		_, port, err := net.SplitHostPort(p.addr)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return noAddress(p.flag, p.addr, err)
		}
	}
	return nil
}

func noAddress(flag, addr string, err error) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("%s %q is no address: %w", flag, addr, err), Remedy: "write host:port, like 127.0.0.1:26657"}
}

func (n *Node) listen() (*listeners, error) {
	l := &listeners{}
	for _, p := range []struct {
		name, flag, addr string
		to               *net.Listener
		is               *string
	}{
		{"RPC", "--rpc", n.cfg.RPC, &l.rpc, &n.addrs.RPC},
		{"gRPC", "--grpc", n.cfg.GRPC, &l.grpc, &n.addrs.GRPC},
		{"REST", "--rest", n.cfg.REST, &l.rest, &n.addrs.REST},
	} {
		listener, err := net.Listen("tcp", p.addr)
		if err != nil {
			l.close()
			if _, ok := errors.AsType[*net.DNSError](err); ok {
				return nil, noAddress(p.flag, p.addr, err)
			}
			return nil, &croft.Error{
				Kind:   croft.KindRefused,
				Err:    fmt.Errorf("listen for %s on %s: %w", p.name, p.addr, err),
				Remedy: "stop what has the port, or name another with " + p.flag,
			}
		}
		*p.to, *p.is = listener, listener.Addr().String()
	}
	return l, nil
}

func (l *listeners) close() {
	for _, listener := range []net.Listener{l.rpc, l.grpc, l.rest} {
		if listener != nil {
			_ = listener.Close()
		}
	}
}

// handlers are the servers on the node's ports.
type handlers struct {
	listeners *listeners
	rpc       *http.Server
	rest      *http.Server
	grpc      *grpc.Server
	gateway   *grpc.ClientConn // from REST to gRPC
	sockets   hijacked
}

func (n *Node) handlers(l *listeners) (*handlers, error) {
	h := &handlers{listeners: l}
	rpc, err := n.rpcHandler()
	if err != nil {
		return nil, err
	}
	// A connection may be quiet for as long as broadcast_tx_commit waits.
	h.rpc = &http.Server{Handler: n.allowOrigins(rpc), ReadHeaderTimeout: 10 * time.Second, ConnState: h.sockets.watch}

	ctx := client.Context{}.
		WithCodec(n.app.cdc).
		WithInterfaceRegistry(n.app.registry).
		WithLegacyAmino(n.app.amino).
		WithTxConfig(n.app.txConfig).
		WithAccountRetriever(authtypes.AccountRetriever{}).
		WithChainID(n.app.ChainID()).
		WithHomeDir(string(n.cfg.Home)).
		WithClient(n.rpc)
	cfg := *config.DefaultConfig()
	cfg.MinGasPrices = n.cfg.MinGasPrices
	n.app.RegisterTxService(ctx)
	n.app.RegisterTendermintService(ctx)
	n.app.RegisterNodeService(ctx, cfg)
	log := n.libraryLog()
	h.grpc, ctx, err = servergrpc.NewGRPCServerAndContext(ctx, n.app, cfg.GRPC, log)
	if err != nil {
		return nil, fmt.Errorf("make gRPC server: %w", err)
	}
	h.gateway, err = grpc.NewClient(n.addrs.GRPC,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec.NewProtoCodec(n.app.registry).GRPCCodec()), grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect REST to gRPC: %w", err)
	}
	gateway := api.New(ctx.WithGRPCClient(h.gateway), log, h.grpc)
	n.app.RegisterAPIRoutes(gateway, cfg.API)

	mux := http.NewServeMux()
	mux.Handle("/", gateway.GRPCGatewayRouter)
	mux.HandleFunc("GET /healthz", n.health)
	mux.Handle("GET /metrics", n.metrics())
	if n.Local() {
		accounts, err := n.cfg.Home.Accounts()
		if err != nil {
			return nil, err
		}
		mux.Handle("/faucet", &faucet{app: n.app, rpc: n.rpc, sender: accounts[FaucetAccount]})
	}
	h.rest = &http.Server{Handler: n.allowOrigins(mux), ReadHeaderTimeout: 10 * time.Second}
	return h, nil
}

// rpcHandler is CometBFT's JSON-RPC, by POST, GET and websocket, with the
// method "akash" and without "block_search".
func (n *Node) rpcHandler() (http.Handler, error) {
	env, err := n.comet.ConfigureRPC()
	if err != nil {
		return nil, fmt.Errorf("make RPC: %w", err)
	}
	routes := env.GetRoutes()
	delete(routes, "block_search") // see chain/cometnode
	info := discovery{chainID: n.app.ChainID()}.rpcInfo()
	routes["status"] = rpcserver.NewRPCFunc(func(ctx *rpctypes.Context) (*coretypes.ResultStatus, error) { return rpcStatus(env, ctx) }, "")
	routes["akash"] = rpcserver.NewRPCFunc(func(*rpctypes.Context) (*rpcInfo, error) { return info, nil }, "")

	log := cometnode.CometLog{Log: n.libraryLog()}
	limits := n.comet.Config().RPC
	cfg := rpcserver.DefaultConfig()
	cfg.MaxRequestBatchSize = limits.MaxRequestBatchSize
	cfg.MaxBodyBytes = limits.MaxBodyBytes
	sockets := rpcserver.NewWebsocketManager(routes,
		rpcserver.OnDisconnect(func(addr string) {
			err := n.comet.EventBus().UnsubscribeAll(context.Background(), addr)
			if err != nil && !errors.Is(err, cmtpubsub.ErrSubscriptionNotFound) {
				log.Error("unsubscribe disconnected client", "addr", addr, "err", err)
			}
		}),
		rpcserver.ReadLimit(cfg.MaxBodyBytes),
		rpcserver.WriteChanCapacity(limits.WebSocketWriteBufferSize),
	)
	sockets.SetLogger(log)
	mux := http.NewServeMux()
	mux.HandleFunc("/websocket", sockets.WebsocketHandler)
	rpcserver.RegisterRPCFuncs(mux, routes, log)
	return rpcserver.PreChecksHandler(rpcserver.RecoverAndLogHandler(mux, log), cfg), nil
}

// rpcDialect is the CometBFT release whose JSON this node's answers read like.
// Clients on cosmjs choose their decoder by the version in status, know none
// after 0.38 and take a newer one for Tendermint 0.34, which spelled events in
// base64. Nothing they read has changed from 0.38 to the release in use.
const rpcDialect = "0.38.21"

func rpcStatus(env *core.Environment, ctx *rpctypes.Context) (*coretypes.ResultStatus, error) {
	status, err := env.Status(ctx)
	if err != nil {
		return nil, err
	}
	status.NodeInfo.Version = rpcDialect
	return status, nil
}

func (h *handlers) serve(group *errgroup.Group) {
	web := func(name string, s *http.Server, l net.Listener) {
		group.Go(func() error {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", name, err)
			}
			return nil
		})
	}
	web("RPC", h.rpc, h.listeners.rpc)
	web("REST", h.rest, h.listeners.rest)
	group.Go(func() error {
		if err := h.grpc.Serve(h.listeners.grpc); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve gRPC: %w", err)
		}
		return nil
	})
}

// shutdown lets requests under way end, but not for long: a client may be
// waiting for a block that will not come.
func (h *handlers) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, s := range []*http.Server{h.rest, h.rpc} {
		if s.Shutdown(ctx) != nil {
			_ = s.Close()
		}
	}
	h.sockets.close()
	_ = h.gateway.Close()
	h.grpc.Stop()
}

// hijacked remembers the connections that became websockets, which an
// http.Server forgets.
type hijacked struct {
	mu    sync.Mutex
	conns map[net.Conn]bool // guarded by mu
}

func (s *hijacked) watch(c net.Conn, state http.ConnState) {
	if state != http.StateHijacked {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = make(map[net.Conn]bool)
	}
	s.conns[c] = true
}

func (s *hijacked) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// Health is what /healthz says: 200 when Ready, else 503.
type Health struct {
	Ready      bool          `json:"ready"`       // in consensus, and the last block is recent
	Height     int64         `json:"height"`      // of the last block
	CatchingUp bool          `json:"catching_up"` // fetching blocks or a snapshot
	BlockAge   time.Duration `json:"block_age_ns"`
}

// Health is the node's state now. It is ready when it takes part in consensus
// and its last block is younger than ten block times or ten seconds.
func (n *Node) Health() Health {
	h := Health{CatchingUp: n.syncing(), Height: n.Height()}
	if meta := n.comet.BlockStore().LoadBlockMeta(h.Height); meta != nil {
		h.BlockAge = time.Since(meta.Header.Time)
		h.Ready = !h.CatchingUp && h.BlockAge < max(10*n.cfg.BlockTime, 10*time.Second)
	}
	return h
}

func (n *Node) health(w http.ResponseWriter, _ *http.Request) {
	h := n.Health()
	w.Header().Set("Content-Type", "application/json")
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(h) //nolint:errcheck // the asker has gone
}

// metrics are the node's own figures, the process's and, if asked for,
// CometBFT's.
func (n *Node) metrics() http.Handler {
	own := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "croft", Subsystem: "chain", Name: name, Help: help,
			ConstLabels: prometheus.Labels{"chain_id": n.app.ChainID()},
		}, value))
	}
	gauge("height", "Height of the last block.", func() float64 { return float64(n.Height()) })
	gauge("earliest_height", "Height of the oldest block kept.", func() float64 { return float64(n.comet.BlockStore().Base()) })
	gauge("block_age_seconds", "Time since the last block's own time.", func() float64 { return n.Health().BlockAge.Seconds() })
	gauge("ready", "1 if the node is in consensus and its last block is recent.", func() float64 {
		if n.Health().Ready {
			return 1
		}
		return 0
	})
	gauge("peers", "Nodes connected.", func() float64 { return float64(n.comet.Switch().Peers().Size()) })
	gauge("mempool_transactions", "Transactions waiting for a block.", func() float64 { return float64(n.comet.Mempool().Size()) })
	gatherers := prometheus.Gatherers{own}
	if n.cfg.CometMetrics {
		gatherers = append(gatherers, prometheus.DefaultGatherer) // has the process's figures too
	} else {
		own.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	return promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// allowOrigins answers browsers' questions whether a page of another origin may
// call.
func (n *Node) allowOrigins(next http.Handler) http.Handler {
	if len(n.cfg.Origins) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		if origin == "" || !slices.Contains(n.cfg.Origins, "*") && !slices.Contains(n.cfg.Origins, origin) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Add("Vary", "Origin")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			w.Header().Set("Access-Control-Allow-Methods", "GET, POST")
			w.Header().Set("Access-Control-Allow-Headers", "Content-Type, x-cosmos-block-height")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}
