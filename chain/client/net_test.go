package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/api/authv1beta1"
	"github.com/croft-cloud/croft/chain/api/marketv1beta5"
	"github.com/croft-cloud/croft/chain/api/queryv1beta1"
)

// fakeNode answers JSON-RPC over HTTP as CometBFT does, with the faults of
// nodes and networks.
type fakeNode struct {
	*httptest.Server

	mu      sync.Mutex
	chainID string
	first   int64
	latest  int64
	syncing bool
	broken  int           // so many calls are cut off
	noWrite map[int64]int // so many refusals of a block's results
	sockets int           // websockets accepted
	asked   map[int64]int
	born    chan int64 // heights told by websocket

	afterStatus func() // called with the lock held; may be nil
}

func newFakeNode(t *testing.T) *fakeNode {
	n := &fakeNode{chainID: "croft-test", first: 1, latest: 1, noWrite: map[int64]int{}, asked: map[int64]int{}, born: make(chan int64)}
	n.Server = httptest.NewServer(http.HandlerFunc(n.serve))
	t.Cleanup(n.Close)
	return n
}

func (n *fakeNode) grow(to int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latest = to
}

func (n *fakeNode) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/websocket" {
		n.socket(w, r)
		return
	}
	var call struct {
		Method string
		Params map[string]any
	}
	if err := json.NewDecoder(r.Body).Decode(&call); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.broken > 0 {
		n.broken--
		panic(http.ErrAbortHandler)
	}
	answer := func(format string, args ...any) {
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":1,"result":`+format+`}`, args...)
	}
	refuse := func(data string) {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Internal error","data":%q}}`, data)
	}
	var height int64
	if text, ok := call.Params["height"].(string); ok && call.Method != "abci_query" {
		height, _ = strconv.ParseInt(text, 10, 64)
		if height < n.first || height > n.latest {
			refuse(fmt.Sprintf("height %d is not available, lowest height is %d", height, n.first))
			return
		}
	}
	switch call.Method {
	case "status":
		answer(`{"node_info":{"network":%q,"version":"0.40.0"},"sync_info":{"latest_block_height":"%d","latest_block_time":"2026-11-21T10:00:00Z","earliest_block_height":"%d","catching_up":%v}}`, n.chainID, n.latest, n.first, n.syncing)
		if n.afterStatus != nil {
			n.afterStatus()
		}
	case "header":
		answer(`{"header":{"chain_id":%q,"height":"%d","time":"2026-11-21T10:00:00.5Z"}}`, n.chainID, height)
	case "block_results":
		if n.noWrite[height] != 0 {
			n.noWrite[height]--
			refuse(fmt.Sprintf("could not find results for height #%d", height))
			return
		}
		n.asked[height]++
		answer(`{"height":"%d","txs_results":[{"code":0,"gas_wanted":"10","gas_used":"9","events":[{"type":"tx","attributes":[{"key":"n","value":"%d","index":true}]}]}],
			"finalize_block_events":[{"type":"end","attributes":[{"key":"mode","value":"EndBlock"}]},{"type":"begin","attributes":[{"key":"mode","value":"BeginBlock"}]}]}`, height, height)
	default:
		refuse("no such method")
	}
}

func (n *fakeNode) socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow() //nolint:errcheck // it is over either way
	n.mu.Lock()
	n.sockets++
	n.mu.Unlock()
	if _, _, err := c.Read(r.Context()); err != nil { // the subscription
		return
	}
	ctx := c.CloseRead(r.Context())
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-n.born:
			message := fmt.Sprintf(`{"result":{"query":"tm.event='NewBlockHeader'","data":{"type":"tendermint/event/NewBlockHeader","value":{"header":{"height":"%d"}}}}}`, h)
			if h < 0 || c.Write(ctx, websocket.MessageText, []byte(message)) != nil {
				return // a negative height breaks the connection
			}
		}
	}
}

func (n *fakeNode) client(t *testing.T, change func(*Config)) *Client {
	t.Helper()
	cfg := Config{ChainID: "croft-test", GRPC: "grpc://127.0.0.1:1", RPC: n.URL, Poll: 10 * time.Millisecond, Timeout: 5 * time.Second}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestWatchMissesAndRepeatsNothing(t *testing.T) {
	n := newFakeNode(t)
	n.grow(3)
	c := n.client(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	next := int64(2)
	for block, err := range c.Watch(ctx, 2) {
		if err != nil {
			t.Fatal(err)
		}
		if block.Height != next {
			t.Fatalf("block %d, want %d", block.Height, next)
		}
		if got := fmt.Sprint(block.Events[0].Type, block.Events[1].Get("n"), block.Events[2].Type); got != fmt.Sprintf("begin%dend", next) {
			t.Errorf("events of block %d: %s", next, got)
		}
		if block.Time.IsZero() || block.Events[0].Tx != -1 || block.Events[1].Tx != 0 {
			t.Errorf("block %+v lacks its parts", block)
		}
		next++
		switch next {
		case 4: // the chain grows, with every fault in the way
			n.mu.Lock()
			n.latest, n.broken, n.noWrite[5] = 8, 3, 2
			n.mu.Unlock()
		case 7: // told by websocket alone
			select {
			case n.born <- 8:
			case <-ctx.Done():
				t.Fatal("no websocket")
			}
		case 9: // the websocket breaks; polling goes on and it comes back
			n.born <- -1
			n.grow(9)
		case 10:
			n.grow(10)
			n.born <- 10
		case 11:
			cancel()
		}
	}
	if next != 11 {
		t.Errorf("Watch ended before block %d", next)
	}
	if n.sockets < 2 {
		t.Errorf("%d websockets were opened, want a second after the first broke", n.sockets)
	}
	for h := int64(2); h < 11; h++ {
		if n.asked[h] != 1 {
			t.Errorf("block %d was read %d times", h, n.asked[h])
		}
	}
}

func TestWatchFromNowBeginsAfterTheLatest(t *testing.T) {
	n := newFakeNode(t)
	n.grow(41)
	n.afterStatus = func() { n.latest = 42 } // once it has been seen to be 41
	c := n.client(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []int64
	for block, err := range c.Watch(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, block.Height)
		break
	}
	if len(got) != 1 || got[0] != 42 {
		t.Errorf("blocks = %d, want 42 first", got)
	}
}

func TestWatchEndsWithAGap(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(*fakeNode)
		want  GapError
	}{
		{"when the node has removed the next block", func(n *fakeNode) { n.first, n.latest = 100, 200 }, GapError{50, 100, 200}},
		{"when the block is removed while it is read", func(n *fakeNode) { n.latest, n.noWrite[50] = 60, 1 }, GapError{50, 55, 60}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newFakeNode(t)
			tc.setup(n)
			c := n.client(t, nil)
			go func() {
				for {
					n.mu.Lock()
					if n.noWrite[50] == 0 && n.latest == 60 {
						n.first = 55
						n.mu.Unlock()
						return
					}
					n.mu.Unlock()
					if sleep(t.Context(), time.Millisecond) != nil {
						return
					}
				}
			}()
			count := 0
			for _, err := range c.Watch(t.Context(), 50) {
				count++
				gap, ok := errors.AsType[*GapError](err)
				if !ok || *gap != tc.want {
					t.Errorf("Watch = %v, want %v", err, &tc.want)
				}
			}
			if count != 1 {
				t.Errorf("Watch yielded %d times, want the error alone", count)
			}
		})
	}
}

func TestWatchRefusesAnotherChain(t *testing.T) {
	n := newFakeNode(t)
	n.chainID = "other"
	c := n.client(t, nil)
	for _, err := range c.Watch(t.Context(), 1) {
		if !errors.Is(err, errOtherChain) {
			t.Errorf("Watch = %v", err)
		}
	}
	if _, err := Dial(t.Context(), Config{ChainID: "croft-test", GRPC: "127.0.0.1:1", RPC: n.URL}); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("Dial = %v", err)
	}
	d, err := Dial(t.Context(), Config{GRPC: "127.0.0.1:1", RPC: n.URL})
	if err != nil || d.ChainID() != "other" {
		t.Fatalf("Dial without a chain id = %v, want the node's", err)
	}
	d.Close()
}

func TestANodeThatIsNoNode(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>bad gateway</html>", http.StatusBadGateway)
	}))
	defer page.Close()
	_, err := Dial(t.Context(), Config{GRPC: "127.0.0.1:1", RPC: page.URL, Timeout: 300 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "502") || !strings.Contains(err.Error(), "can be reached") {
		t.Errorf("Dial = %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{ChainID: "croft-test", GRPC: "grpc://127.0.0.1:9090", RPC: "http://127.0.0.1:26657"}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		ok     bool
	}{
		{"as it should be", func(*Config) {}, true},
		{"RPC as CometBFT spells it", func(c *Config) { c.RPC = "tcp://127.0.0.1:26657" }, true},
		{"host and port alone", func(c *Config) { c.GRPC = "localhost:443" }, true},
		{"no chain id", func(c *Config) { c.ChainID = "" }, false},
		{"no gRPC address", func(c *Config) { c.GRPC = "" }, false},
		{"gRPC address without port", func(c *Config) { c.GRPC = "grpc://host" }, false},
		{"gRPC address with a path", func(c *Config) { c.GRPC = "grpc://host:1/x" }, false},
		{"gRPC over http", func(c *Config) { c.GRPC = "http://host:1" }, false},
		{"no RPC address", func(c *Config) { c.RPC = "" }, false},
		{"RPC address without scheme", func(c *Config) { c.RPC = "host:26657" }, false},
		{"a gas price without denom", func(c *Config) { c.GasPrice = "0.025" }, false},
		{"less gas than simulated", func(c *Config) { c.GasPercent = 90 }, false},
		{"negative time", func(c *Config) { c.Poll = -1 }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			c, err := New(cfg)
			if (err == nil) != tc.ok || err != nil && croft.KindOf(err) != croft.KindUsage {
				t.Errorf("New = %v", err)
			}
			if err == nil {
				c.Close()
			}
		})
	}
}

// grpcNode answers calls by path.
func grpcNode(t *testing.T, answer func(method string, stream grpc.ServerStream) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		return answer(method, stream)
	}))
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Stop(); serving.Wait() })
	return "grpc://" + l.Addr().String()
}

func TestListsArePagedAtOneHeight(t *testing.T) {
	var asked []string
	address := grpcNode(t, func(_ string, stream grpc.ServerStream) error {
		var req marketv1beta5.QueryOrdersRequest
		if err := stream.RecvMsg(&req); err != nil {
			return err
		}
		in, _ := metadata.FromIncomingContext(stream.Context())
		asked = append(asked, fmt.Sprintf("%s@%s", req.GetPagination().GetKey(), strings.Join(in.Get(heightHeader), "")))
		if err := stream.SetHeader(metadata.Pairs(heightHeader, "77")); err != nil {
			return err
		}
		if string(req.GetPagination().GetKey()) == "b" && len(in.Get(heightHeader)) > 0 {
			return status.Error(codes.InvalidArgument, "state of height 77 is pruned")
		}
		next := map[string]string{"": "a", "a": "b", "b": ""}[string(req.GetPagination().GetKey())]
		return stream.SendMsg(&marketv1beta5.QueryOrdersResponse{
			Orders: []*marketv1beta5.Order{{CreatedAt: 1}, {CreatedAt: 2}}, Pagination: &queryv1beta1.PageResponse{NextKey: []byte(next)},
		})
	})
	c := newFakeNode(t).client(t, func(cfg *Config) { cfg.GRPC = address })
	count := 0
	for _, err := range c.Orders(t.Context(), nil) {
		if err != nil {
			t.Fatal(err)
		}
		count++
	}
	if got, want := fmt.Sprint(count, asked), "6 [@ a@77 b@77 b@]"; got != want {
		t.Errorf("asked %s, want %s", got, want)
	}
}

func TestQueriesWaitForANodeAndGiveErrorsAKind(t *testing.T) {
	calls := 0
	address := grpcNode(t, func(method string, stream grpc.ServerStream) error {
		calls++
		var req authv1beta1.QueryAccountInfoRequest
		if err := stream.RecvMsg(&req); err != nil {
			return err
		}
		switch {
		case method == "/akash.market.v1beta5.Query/Params":
			return status.Error(codes.Unimplemented, "no such service")
		case req.GetAddress() == "nobody":
			return status.Error(codes.NotFound, "account nobody not found")
		case calls < 4:
			return status.Error(codes.Unavailable, "shutting down")
		}
		return stream.SendMsg(&authv1beta1.QueryAccountInfoResponse{Info: &authv1beta1.BaseAccount{AccountNumber: 7, Sequence: 3}})
	})
	c := newFakeNode(t).client(t, func(cfg *Config) { cfg.GRPC = address })
	info, err := c.Account(t.Context(), tenant.Address())
	if err != nil || info.Sequence != 3 || info.Number != 7 || calls != 4 {
		t.Errorf("Account = %+v, %v after %d calls", info, err, calls)
	}
	if _, err := c.PublicKey(t.Context(), tenant.Address()); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("PublicKey of an account without one = %v", err)
	}
	if _, err := c.Account(t.Context(), "nobody"); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("Account = %v", err)
	}
	if _, err := c.MarketParams(t.Context()); croft.KindOf(err) != croft.KindMissing {
		t.Errorf("MarketParams = %v", err)
	}
}

func TestANodeThatHasJustBegunIsWaitedFor(t *testing.T) {
	const text = "codespace sdk code 26: invalid height: croft-local is not ready; please wait for first block"
	calls, refusals := 0, 0
	address := grpcNode(t, func(_ string, stream grpc.ServerStream) error {
		var req authv1beta1.QueryAccountInfoRequest
		if err := stream.RecvMsg(&req); err != nil {
			return err
		}
		if calls++; calls <= refusals {
			return status.Error(codes.Unknown, text)
		}
		return stream.SendMsg(&authv1beta1.QueryAccountInfoResponse{Info: &authv1beta1.BaseAccount{Sequence: 3}})
	})
	c := newFakeNode(t).client(t, func(cfg *Config) { cfg.GRPC, cfg.Timeout = address, 2*time.Second })

	refusals = 3
	if info, err := c.Account(t.Context(), tenant.Address()); err != nil || info.Sequence != 3 || calls != 4 {
		t.Errorf("Account = %+v, %v after %d calls", info, err, calls)
	}
	calls, refusals = 0, 1
	ctx := metadata.AppendToOutgoingContext(t.Context(), heightHeader, "99")
	if _, err := c.Account(ctx, tenant.Address()); err == nil || calls != 1 {
		t.Errorf("Account at a height the node does not have = %v after %d calls, want its refusal at once", err, calls)
	}
	calls, refusals = 0, 1000
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Find(ctx, HashOf(nil)); err == nil || errors.Is(err, ErrTxNotFound) || final(err) {
		t.Errorf("Find = %v, want an error that says nothing about the transaction", err)
	}
}

func TestSignedSurvivesItsJournal(t *testing.T) {
	for _, s := range []Signed{
		{Hash: HashOf([]byte("x")), Raw: []byte("x"), Account: tenant.Address(), Sequence: 4, TimeoutHeight: 99, Height: 7},
		{Hash: HashOf([]byte("y")), Raw: []byte("y"), Account: tenant.Address(), Expires: time.Unix(1_800_000_000, 5).UTC(), Height: 7},
	} {
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Signed
		if err := json.Unmarshal(raw, &back); err != nil || fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", s) {
			t.Errorf("%s came back as %+v, %v", raw, back, err)
		}
	}
	if _, err := ParseHash("abc"); err == nil {
		t.Error("three digits are a hash")
	}
}

func TestTypeURLsAreTheChains(t *testing.T) {
	for want, m := range map[string]proto.Message{
		"/akash.market.v1beta5.MsgCreateBid": &marketv1beta5.MsgCreateBid{},
		"/cosmos.bank.v1beta1.MsgSend":       pay(1)[0],
	} {
		if got := TypeURL(m); got != want {
			t.Errorf("TypeURL = %s, want %s", got, want)
		}
	}
}
