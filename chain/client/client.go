// Package client is the light door to an Akash-compatible chain, for agent,
// fleet and command line: it queries, signs, sends, confirms and watches, and
// links neither cosmos-sdk nor CometBFT.
//
//	c, err := client.Dial(ctx, client.Config{GRPC: "127.0.0.1:9090", RPC: "http://127.0.0.1:26657"})
//	defer c.Close()
//	for order, err := range c.Orders(ctx, &marketv1beta5.OrderFilters{State: "open"}) { … }
//	result, err := c.Send(ctx, key, client.Tx{Msgs: []proto.Message{bid}})
//	for block, err := range c.Watch(ctx, lastSeen+1) { … }
//
// Messages are those of chain/api. Where a price goes over the wire it is in
// the wire's form, an integer of 10^-18; package akash converts. Queries go over gRPC;
// gas estimates, blocks and events over the node's JSON-RPC, which alone tells
// error codes of a simulation and the events of a block's end.
//
// # What Send promises
//
// [Client.Send] returns nil only when the transaction stands in a block and was
// executed. One intent is executed at most once, whatever fails in between:
//
//   - A transaction is signed for one place: a sequence number of its account.
//     The chain executes at most one transaction per place.
//   - What was signed may be on its way even if the node's answer was lost, the
//     node refused it, or it restarted. So only the same bytes are sent again.
//     The intent gets a new signature, for a new place, only when the first is
//     dead for certain: its place is taken by another transaction and the blocks
//     since do not hold it, or the chain has passed its timeout height.
//   - When the caller's context ends first, the error is [*UnconfirmedError] if
//     anything was signed, and any other kind if nothing was. With
//     [Tx.OnSigned] a caller that must survive its own crash writes the signed
//     bytes down before they leave, and asks [Client.Resume] after.
//
// Goroutines may share a signer: their transactions get consecutive places and
// wait for blocks together. Nothing runs in the background: whoever waits for
// its transaction also looks after the others of its account, and when nobody
// waits nothing happens.
//
// # What Watch promises
//
// [Client.Watch] yields every height once, in order, through lost connections
// and node restarts, or ends with [*GapError] when the node no longer has the
// next one. It keeps no state: a caller that stores the last height it has dealt
// with misses nothing over its own restarts either.
//
// # What survives what
//
//	node restarts            calls wait for it until their context ends
//	mempool lost or full     the same bytes are sent again
//	node behind a balancer   an older answer never moves a sequence back
//	this process crashes     nothing, but for what OnSigned wrote down
//	chain wiped and begun    a new Client is needed (the old one waits for the
//	anew                     heights and sequences it has seen)
//
// A node is believed: this is no light client in the sense of proofs.
package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/comet"
)

// Config is copied by [New] and [Dial], checked once, and never changed
// afterwards.
type Config struct {
	// ChainID is signed into every transaction; required by New. Dial compares
	// it with the node's, and takes the node's when it is empty.
	ChainID string
	// GRPC is the node's gRPC address; required. grpc://host:port is plain,
	// grpcs://host:port is TLS; host:port alone is TLS on port 443, else plain.
	GRPC string
	// RPC is the node's CometBFT JSON-RPC address; required. http, https or, as
	// CometBFT spells http, tcp.
	RPC string
	// TLS is used for grpcs and https; default: the system's roots, TLS 1.2 or
	// newer.
	TLS *tls.Config
	// Timeout limits one call to the node, retries included; default 10 s.
	Timeout time.Duration
	// GasPrice is what one unit of gas is paid; default "0.025uakt". With
	// "0uakt" no fee is offered.
	GasPrice string
	// GasPercent is the gas limit in percent of the simulated use; default 150.
	GasPercent uint64
	// TimeoutBlocks is how many blocks a transaction may wait before it is dead;
	// default 100.
	TimeoutBlocks int64
	// MaxPending is how many unconfirmed transactions an account may have;
	// default 64.
	MaxPending int
	// Poll is how often a waiting call looks at the chain; default 500 ms.
	Poll time.Duration
	// Log gets outages and their end; default: nothing is logged.
	Log *slog.Logger
}

// Client talks to one node. It is safe for use by several goroutines.
type Client struct {
	cfg   Config
	price gasPrice
	conn  *grpc.ClientConn
	rpc   comet.Node
	node  node // c itself, or a fake
	log   *slog.Logger

	mu         sync.Mutex
	sequencers map[account.Address]*sequencer // guarded by mu
	lastExpiry time.Time                      // of unordered transactions; guarded by mu
}

// New makes a Client without reaching for the node: for programs that start
// before their network does. A wrong chain shows itself at the first [Send],
// because no other chain accepts its signatures; [Client.CheckChain] tells it
// sooner.
func New(cfg Config) (*Client, error) {
	if cfg.ChainID == "" {
		return nil, usage(errors.New("chain id is missing"), "set it, or use Dial")
	}
	return newClient(cfg)
}

// Dial makes a Client of a node that answers, and checks the chain id.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.CheckChain(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func newClient(cfg Config) (*Client, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.GasPrice = cmp.Or(cfg.GasPrice, "0.025uakt")
	cfg.GasPercent = cmp.Or(cfg.GasPercent, 150)
	cfg.TimeoutBlocks = cmp.Or(cfg.TimeoutBlocks, 100)
	cfg.MaxPending = cmp.Or(cfg.MaxPending, 64)
	cfg.Poll = cmp.Or(cfg.Poll, 500*time.Millisecond)
	if cfg.Timeout < 0 || cfg.Poll < 0 || cfg.TimeoutBlocks < 0 || cfg.MaxPending < 0 || cfg.GasPercent < 100 {
		return nil, usage(errors.New("a number in the client's configuration is out of range"), "look at timeout, poll, timeout blocks, pending and gas percent (at least 100)")
	}
	price, err := parseGasPrice(cfg.GasPrice)
	if err != nil {
		return nil, usage(err, `write it like "0.025uakt"`)
	}
	if cfg.TLS == nil {
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	rpcURL, err := comet.ParseURL(cfg.RPC)
	if err != nil {
		return nil, usage(err, "write it like http://127.0.0.1:26657")
	}
	target, plain, err := parseGRPC(cfg.GRPC)
	if err != nil {
		return nil, usage(err, "write it like grpc://127.0.0.1:9090 or grpcs://grpc.example.com:443")
	}
	transport := insecure.NewCredentials()
	if !plain {
		transport = credentials.NewTLS(cfg.TLS.Clone())
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(transport),
		grpc.WithNoProxy(), // the environment is read in cmd only
		grpc.WithConnectParams(grpc.ConnectParams{
			// A node that restarts is back in a second or two: grpc's own limit
			// of two minutes would miss it for long.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes), grpc.WaitForReady(true)),
	)
	if err != nil {
		return nil, usage(fmt.Errorf("gRPC address %q: %w", cfg.GRPC, err), "write it like grpc://127.0.0.1:9090")
	}
	c := &Client{
		cfg: cfg, price: price, conn: conn, log: cfg.Log.With("chain", cfg.ChainID),
		rpc: comet.Node{URL: rpcURL, HTTP: &http.Client{Transport: &http.Transport{
			TLSClientConfig:     cfg.TLS.Clone(), // HTTP/1.1: a websocket needs it
			MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second,
		}}},
		sequencers: map[account.Address]*sequencer{},
	}
	c.node = c
	return c, nil
}

// maxAnswerBytes bounds one answer of the node. A full block with its events
// stays far below.
const maxAnswerBytes = 64 << 20

// Close lets go of the connections. Calls under way fail.
func (c *Client) Close() error {
	c.rpc.HTTP.CloseIdleConnections()
	return c.conn.Close()
}

// ChainID is the chain that transactions are signed for.
func (c *Client) ChainID() string { return c.cfg.ChainID }

// CheckChain compares the configured chain id with the node's.
func (c *Client) CheckChain(ctx context.Context) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if c.cfg.ChainID == "" {
		c.cfg.ChainID = s.ChainID // only Dial gets here, before anybody else has c
		c.log = c.cfg.Log.With("chain", s.ChainID)
	}
	if s.ChainID != c.cfg.ChainID {
		return &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("node %s serves chain %q, not %q", c.cfg.RPC, s.ChainID, c.cfg.ChainID),
			Remedy: "give the address of a node of that chain",
		}
	}
	return nil
}

func parseGRPC(s string) (target string, plain bool, err error) {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "", s
	}
	rest = strings.TrimSuffix(rest, "/")
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return "", false, fmt.Errorf("gRPC address %q: %w", s, err)
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 || host == "" {
		return "", false, fmt.Errorf("gRPC address %q: want a host and a port", s)
	}
	switch scheme {
	case "grpc":
		return rest, true, nil
	case "grpcs":
		return rest, false, nil
	case "":
		return rest, port != "443", nil
	default:
		return "", false, fmt.Errorf("gRPC address %q: want grpc:// or grpcs://", s)
	}
}

// heightHeader is where a node says, or is told, which block a query is about.
const heightHeader = "x-cosmos-block-height"

// invoke makes one gRPC call. It waits for a node that is not there or that has
// just begun, and repeats what broke with the connection, until the configured
// timeout; so it is for calls that may be made twice.
func (c *Client) invoke(ctx context.Context, method string, req, resp proto.Message, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		err := c.conn.Invoke(ctx, method, req, resp, opts...)
		if status.Code(err) != codes.Unavailable && !starting(ctx, err) {
			return err
		}
		if pause(ctx, attempt) != nil {
			return err
		}
	}
}

// starting reports that a node answers calls but no questions yet: from its
// start until its next block, cosmos-sdk refuses every height, its own latest
// too. Where a height was asked for, the refusal may be meant.
func starting(ctx context.Context, err error) bool {
	if e, ok := status.FromError(err); !ok || e.Code() != codes.Unknown || !strings.Contains(e.Message(), "invalid height") {
		return false
	}
	asked, _ := metadata.FromOutgoingContext(ctx)
	return len(asked.Get(heightHeader)) == 0
}

// query is invoke with an answer of type Resp and errors for people.
func query[Resp any, P interface {
	*Resp
	proto.Message
}](ctx context.Context, c *Client, method string, req proto.Message, opts ...grpc.CallOption) (P, error) {
	resp := P(new(Resp))
	if err := c.invoke(ctx, method, req, resp, opts...); err != nil {
		return nil, c.queryError(ctx, method, err)
	}
	return resp, nil
}

// answerHeight is the height a gRPC answer is about, 0 if the node did not say.
func answerHeight(header metadata.MD) int64 {
	for _, v := range header.Get(heightHeader) {
		if h, err := strconv.ParseInt(v, 10, 64); err == nil && h > 0 {
			return h
		}
	}
	return 0
}
