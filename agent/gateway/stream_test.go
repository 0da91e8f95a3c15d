package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/croft-cloud/croft/agent/gateway"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// pipes is a network of one listener, in memory, so that tests decide what time
// it is.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return address("gateway") }

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

type addressed struct {
	net.Conn
	from address
}

func (c addressed) RemoteAddr() net.Addr { return c.from }

func (p *pipes) dialFrom(ctx context.Context, from address) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- addressed{there, from}:
		return here, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bubble runs a test with a gateway in a bubble: when it ends, every goroutine
// of the gateway must have ended.
func bubble(t *testing.T, change func(*world), test func(t *testing.T, w *world, p *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		w := start(t, p, newPipes(), change)
		w.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dialFrom(ctx, "192.0.2.1:1000") }
		test(t, w, p)
		w.stop()
	})
}

// open makes a websocket with alice's token.
func (w *world) open(t *testing.T, path string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	return websocket.Dial(t.Context(), "wss://"+host+path, &websocket.DialOptions{HTTPClient: w.raw(t, host, nil), HTTPHeader: bearer(token(t, alice, nil))})
}

func (w *world) mustOpen(t *testing.T, path string) *websocket.Conn {
	t.Helper()
	c, _, err := w.open(t, path) //nolint:bodyclose // websocket.Dial leaves none open
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

// closed reads until the gateway closes, and returns its code and reason.
func closed(t *testing.T, c *websocket.Conn) (websocket.StatusCode, string) {
	t.Helper()
	for {
		_, _, err := c.Read(t.Context())
		if e, ok := errors.AsType[websocket.CloseError](err); ok {
			return e.Code, e.Reason
		}
		if err != nil {
			t.Fatalf("the connection ended without a close frame: %v", err)
		}
	}
}

const (
	logsPath  = "/lease/7/1/1/logs?follow=true"
	shellPath = "/lease/7/1/1/shell?service=web&podIndex=0&tty=0&stdin=1&cmd0="
)

func TestCloseCodes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		path   string
		change func(*world)
		code   websocket.StatusCode
		reason string
	}{
		{"the end of logs", "/lease/7/1/1/logs", nil, 1000, ""},
		{"the end of events", "/lease/7/1/1/kubeevents", nil, 1000, ""},
		{"a lease that is not there", "/lease/8/1/1/logs", nil, 4001, "no lease for deployment"},
		{"a service that is not there", "/lease/7/1/1/kubeevents?service=db", nil, 4001, "no such service exists with that name"},
		{"both spellings of service", "/lease/7/1/1/logs?services=db", nil, 4001, "no such service exists with that name"},
		{"no manifest yet", logsPath, func(w *world) { w.services = nil }, 4000, "no running pods"},
		{"nothing was ever started", "/lease/7/1/1/logs", func(w *world) { w.services[0].Started = 0 }, 4000, "no running pods"},
		{"an error inside", logsPath, func(w *world) { w.err = errors.New("secret") }, 4000, "internal error"},
		{"a backend that is away", logsPath, func(w *world) { w.err = context.DeadlineExceeded }, 4002, "no answer in time; repeat in a while"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, tc.change, func(t *testing.T, w *world, _ *pipes) {
				if code, reason := closed(t, w.mustOpen(t, tc.path)); code != tc.code || reason != tc.reason {
					t.Errorf("= %d %q, want %d %q", code, reason, tc.code, tc.reason)
				}
			})
		})
	}
}

func TestStoppingTellsStreamsToComeAgain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		logs, shell := w.mustOpen(t, logsPath), w.mustOpen(t, shellPath+"sleep")
		synctest.Wait()
		var others sync.WaitGroup
		others.Go(w.stop)
		others.Go(func() {
			if code, _ := closed(t, shell); code != 4002 {
				t.Errorf("the shell was closed with %d", code)
			}
		})
		if code, reason := closed(t, logs); code != 4002 || reason != "the gateway is stopping; connect again" {
			t.Errorf("= %d %q", code, reason)
		}
		others.Wait()
	})
}

func TestAClientThatIsAliveStays(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c := w.mustOpen(t, logsPath)
		ctx := c.CloseRead(t.Context())
		time.Sleep(time.Hour)
		if ctx.Err() != nil {
			t.Error("a client that answers pings was dropped")
		}
	})
}

// secure is a TLS connection with one upgrade behind it, without anything that
// answers by itself.
func (w *world) upgraded(t *testing.T, path string) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := w.dial(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
		path, host, token(t, alice, nil))
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade = %v, %v", resp, err)
	}
	resp.Body.Close()
	t.Cleanup(func() { conn.Close() })
	return c, r
}

func TestASilentClientIsDropped(t *testing.T) {
	for _, path := range []string{logsPath, shellPath + "sleep"} {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			_, r := w.upgraded(t, path)
			begin := time.Now()
			_, err := io.Copy(io.Discard, r) // reads pings, and answers none
			if took := time.Since(begin); took < 14*time.Second || took > 30*time.Second {
				t.Errorf("dropped after %s with %v, want about 15 s", took, err)
			}
			synctest.Wait()
			if n := w.running.Load(); n != 0 {
				t.Errorf("%d backends still work for it", n)
			}
		})
	}
}

func TestASlowClientIsDropped(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		w.upgraded(t, shellPath+"yes") // reads nothing more
		time.Sleep(time.Minute)
		if n := w.running.Load(); n != 0 {
			t.Errorf("%d backends still work for it", n)
		}
	})
}

func TestAProgramThatDoesNotReadKeepsItsShell(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c := w.mustOpen(t, shellPath+"sleep")
		var writer sync.WaitGroup
		writer.Go(func() {
			for range 100 {
				if c.Write(t.Context(), websocket.MessageBinary, append([]byte{104}, make([]byte, 16<<10)...)) != nil {
					return
				}
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		var reader sync.WaitGroup
		reader.Go(func() { _, _, _ = c.Read(ctx) }) // answers pings
		time.Sleep(5 * time.Minute)
		if w.running.Load() != 1 {
			t.Error("the shell was dropped while its program did not read")
		}
		time.Sleep(10 * time.Minute)
		if w.running.Load() != 0 {
			t.Error("the shell lives for ever")
		}
		cancel()
		reader.Wait()
		writer.Wait()
	})
}

func TestShellFrames(t *testing.T) {
	read := func(t *testing.T, c *websocket.Conn) string {
		_, data, err := c.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", data[0], data[1:])
	}
	for _, tc := range []struct {
		name string
		path string
		send [][]byte
		want []string
	}{
		{"the end of input is an empty frame", shellPath + "cat", [][]byte{{104, 'a'}, {104}}, []string{"100 a", `102 {"exit_code":0}`}},
		{"width comes first", shellPath + "size", [][]byte{{105, 0, 80, 1, 0}}, []string{"100 80x256\n", `102 {"exit_code":0}`}},
		{"an exit code", shellPath + "fail", nil, []string{"101 failing\n", `102 {"exit_code":3}`}},
		{"a program that is not there", shellPath + "nothing", nil, []string{`103 {"exit_code":0,"message":"no such program"}`}},
		{"a replica that is not there", strings.Replace(shellPath, "podIndex=0", "podIndex=4", 1) + "cat", nil, []string{`103 {"exit_code":0,"message":"replica 4 of web does not exist"}`}},
		{"arguments end at the first gap", shellPath + "echo&cmd1=a&cmd3=c", nil, []string{"100 a\n", `102 {"exit_code":0}`}},
		{"an unknown frame", shellPath + "sleep", [][]byte{{7}}, []string{`103 {"exit_code":0,"message":"the client sends what is no frame: frame 7 is unknown"}`}},
		{"a frame of the other side", shellPath + "sleep", [][]byte{{102, '{', '}'}}, []string{`103 {"exit_code":0,"message":"the client sends what is no frame: frame 102 is unknown"}`}},
		{"an empty frame", shellPath + "sleep", [][]byte{{}}, []string{`103 {"exit_code":0,"message":"the client sends what is no frame: a frame is empty"}`}},
		{"a size too short", shellPath + "sleep", [][]byte{{105, 0}}, []string{`103 {"exit_code":0,"message":"the client sends what is no frame: a resize frame has 1 bytes, want 4"}`}},
		{"input nobody asked for is dropped", strings.Replace(shellPath, "stdin=1", "stdin=0", 1) + "size", [][]byte{{104, 'x'}, {105, 0, 1, 0, 2}}, []string{"100 1x2\n", `102 {"exit_code":0}`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
				c := w.mustOpen(t, tc.path)
				for _, frame := range tc.send {
					if err := c.Write(t.Context(), websocket.MessageBinary, frame); err != nil {
						t.Fatal(err)
					}
				}
				for _, want := range tc.want {
					if got := read(t, c); got != want {
						t.Errorf("frame = %q, want %q", got, want)
					}
				}
				if code, _ := closed(t, c); code != 1000 {
					t.Errorf("closed with %d", code)
				}
			})
		})
	}
}

func TestHostileStreams(t *testing.T) {
	t.Run("a frame that is too long", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			c := w.mustOpen(t, shellPath+"cat")
			var writer sync.WaitGroup
			writer.Go(func() { _ = c.Write(t.Context(), websocket.MessageBinary, make([]byte, 1<<20)) })
			if code, _ := closed(t, c); code != websocket.StatusMessageTooBig {
				t.Errorf("closed with %d", code)
			}
			writer.Wait()
		})
	})
	t.Run("a client that talks to logs", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			c := w.mustOpen(t, logsPath)
			var writer sync.WaitGroup
			writer.Go(func() {
				for c.Write(t.Context(), websocket.MessageText, []byte("hello")) == nil {
				}
			})
			if code, _ := closed(t, c); code != websocket.StatusPolicyViolation {
				t.Errorf("closed with %d", code)
			}
			writer.Wait()
		})
	})
	t.Run("a client that says now and then that it is alive", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			c := w.mustOpen(t, logsPath)
			var reader sync.WaitGroup
			reader.Go(func() { _, _, _ = c.Read(t.Context()) }) // answers pings
			for range 200 {
				if err := c.Write(t.Context(), websocket.MessageText, []byte("ping")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Second)
			}
			_ = c.CloseNow()
			reader.Wait()
		})
	})
	t.Run("bytes that are no websocket", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			c, r := w.upgraded(t, logsPath)
			if _, err := c.Write([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, r)
			synctest.Wait()
			if n := w.running.Load(); n != 0 {
				t.Errorf("%d backends still work for it", n)
			}
		})
	})
	t.Run("more streams than a tenant may have", func(t *testing.T) {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			open := func() (int, *websocket.Conn) {
				c, resp, err := w.open(t, logsPath)
				if err != nil {
					resp.Body.Close()
					return resp.StatusCode, nil
				}
				return 101, c
			}
			var all []*websocket.Conn
			for i := range 32 {
				code, c := open()
				if code != 101 {
					t.Fatalf("stream %d = %d", i, code)
				}
				all = append(all, c)
			}
			if code, _ := open(); code != http.StatusServiceUnavailable {
				t.Errorf("the 33rd stream = %d", code)
			}
			for _, c := range all {
				_ = c.CloseNow()
			}
			synctest.Wait()
			if code, c := open(); code != 101 {
				t.Errorf("after all have left = %d", code)
			} else {
				_ = c.CloseNow()
			}
		})
	})
}

func TestSlowlorisIsCutOff(t *testing.T) {
	for _, tc := range []struct {
		name string
		text func(*testing.T) string // before the drops; empty: no handshake at all
		most time.Duration
	}{
		{"in the handshake", func(*testing.T) string { return "" }, 11 * time.Second},
		{"in the header", func(*testing.T) string { return "GET /status HTTP/1.1\r\nHost: x\r\nX: " }, 12 * time.Second},
		{"in the body", func(t *testing.T) string {
			return "PUT /deployment/7/manifest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token(t, alice, nil) + "\r\nContent-Length: 1000\r\n\r\n["
		}, 62 * time.Second},
		{"in a body that nobody wants", func(t *testing.T) string {
			return "GET /lease/7/1/1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + token(t, alice, nil) + "\r\nContent-Length: 1000\r\n\r\n["
		}, 62 * time.Second},
		{"between requests", func(*testing.T) string { return "GET /address HTTP/1.1\r\nHost: x\r\n\r\nG" }, 70 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, nil, func(t *testing.T, _ *world, p *pipes) {
				conn, err := p.dialFrom(t.Context(), "192.0.2.9:1")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				begin := time.Now()
				var reader sync.WaitGroup
				if text := tc.text(t); text == "" {
					_, _ = io.Copy(io.Discard, conn)
				} else {
					c := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true})
					reader.Go(func() { _, _ = io.Copy(io.Discard, c) })
					_, err = io.WriteString(c, text)
					for err == nil {
						time.Sleep(time.Second)
						_, err = io.WriteString(c, "x")
					}
				}
				conn.Close()
				reader.Wait()
				if took := time.Since(begin); took > tc.most {
					t.Errorf("cut off after %s", took)
				}
			})
		})
	}
}

func TestConnectionsOfOneClientAreBounded(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, p *pipes) {
		var open []net.Conn
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for range 64 {
			c, err := p.dialFrom(t.Context(), "[2001:db8::1]:1")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		synctest.Wait()
		c, err := p.dialFrom(t.Context(), "[2001:db8::ffff]:2") // the same network
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(begin) > 0 {
			t.Errorf("a connection too many ended with %v after %s", err, time.Since(begin))
		}
		if status, _ := ask(t, w.raw(t, host, nil), "GET", "/address", "", nil); status != 200 {
			t.Errorf("another client = %d", status)
		}
	})
}

func TestRates(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c, header := w.raw(t, host, nil), bearer(token(t, alice, nil))
		counts := map[int]int{}
		for range 110 {
			status, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", header)
			counts[status]++
		}
		if counts[200] != 100 || counts[429] != 10 {
			t.Errorf("statuses = %v, want 100 of 200 and 10 of 429", counts)
		}
		for range 150 {
			status, _ := ask(t, c, "GET", "/address", "", nil)
			counts[status]++
		}
		if counts[429] < 50 {
			t.Errorf("statuses = %v: one address may ask without end", counts)
		}
		time.Sleep(time.Minute)
		if status, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", header); status != 200 {
			t.Errorf("a minute later = %d", status)
		}
	})
}

func TestAFloodCostsNoQueries(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c := w.raw(t, host, nil)
		good, bad := bearer(token(t, alice, nil)), bearer(token(t, newcomer, nil))
		for range 40 {
			ask(t, c, "GET", "/lease/7/1/1/status", "", good)
			ask(t, c, "GET", "/lease/7/1/1/status", "", bad)
		}
		if n := w.chain.asked(); n != 2 {
			t.Errorf("80 requests of two accounts cost %d queries", n)
		}
		w.chain.mu.Lock()
		w.chain.keys[newcomer.Address()] = newcomer.PublicKey()
		w.chain.mu.Unlock()
		time.Sleep(4 * time.Second)
		if status, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", bad); status != 404 {
			t.Errorf("an account whose key came = %d, want 404", status)
		}
	})
}

func TestInventedAccountsDoNotAskTheChainWithoutEnd(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, p *pipes) {
		c := w.raw(t, host, nil)
		ask(t, c, "GET", "/lease/7/1/1/status", "", bearer(token(t, alice, nil)))
		busy := 0
		for i := range 150 {
			if status, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", bearer(token(t, key(uint32(100+i)), nil))); status == 503 {
				busy++
			}
		}
		if n := w.chain.asked(); n > 20 || busy < 130 {
			t.Errorf("150 inventions of one address cost %d queries, %d were sent away", n, busy)
		}
		if status, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", bearer(token(t, alice, nil))); status != 200 {
			t.Errorf("who is known, from the same address = %d", status)
		}
		w.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dialFrom(ctx, "198.51.100.7:1") }
		if status, _ := ask(t, w.raw(t, host, nil), "GET", "/lease/7/1/1/status", "", bearer(token(t, mallory, nil))); status != 404 {
			t.Errorf("who is not known yet, from another address = %d", status)
		}
	})
}

// A chain that does not answer holds up nobody who is known.
func TestAHangingChainIsNotWaitedForEachTime(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c, header := w.raw(t, host, nil), bearer(token(t, alice, nil))
		ask(t, c, "GET", "/lease/7/1/1/status", "", header)
		time.Sleep(10*time.Minute + time.Second)
		header = bearer(token(t, alice, nil))
		w.chain.mu.Lock()
		w.chain.hangs = true
		w.chain.mu.Unlock()
		begin := time.Now()
		for range 20 {
			if status, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", header); status != 200 {
				t.Fatalf("status = %d", status)
			}
		}
		if took := time.Since(begin); took > 6*time.Second {
			t.Errorf("20 requests took %s", took)
		}
	})
}

func TestWithoutTheChain(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		c := w.raw(t, host, nil)
		status := func(k string) int {
			signer := alice
			if k == "mallory" {
				signer = mallory
			}
			got, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", bearer(token(t, signer, nil)))
			return got
		}
		if got := status("alice"); got != 200 {
			t.Fatalf("with the chain = %d", got)
		}
		w.chain.setDown(true)
		time.Sleep(14 * time.Minute)
		if got := status("alice"); got != 200 {
			t.Errorf("who is known, a while later = %d", got)
		}
		got, body := ask(t, c, "GET", "/lease/7/1/1/status", "", bearer(token(t, mallory, nil)))
		if got != 503 || body != "the chain cannot be asked who you are; repeat in a while\n" {
			t.Errorf("who is not known = %d %q", got, body)
		}
		time.Sleep(2 * time.Minute)
		if got := status("alice"); got != 503 {
			t.Errorf("who is known, much later = %d", got)
		}
		w.chain.setDown(false)
		if got := status("alice"); got != 200 {
			t.Errorf("with the chain again = %d", got)
		}
	})
}

func TestARevokedCertificateEnds(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
		pair, mine := pairOf(t, alice)
		w.chain.publish(pair)
		c := w.raw(t, "mtls."+host, mine)
		if got, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", nil); got != 200 {
			t.Fatalf("published = %d", got)
		}
		w.chain.revoke(pair.Certificate.Serial)
		time.Sleep(11 * time.Second)
		if got, _ := ask(t, c, "GET", "/lease/7/1/1/status", "", nil); got != 401 {
			t.Errorf("revoked, over the same connection = %d", got)
		}
	})
}

func TestAFollowerGoesOnAfterARestartOfTheGateway(t *testing.T) {
	bubble(t, func(w *world) { w.lines = []gateway.LogLine{{Pod: "web-1-0", Text: "one"}} }, func(t *testing.T, w *world, _ *pipes) {
		g := w.client(t, gatewayclient.Config{Signer: alice})
		var reason error
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cfg := gatewayclient.StreamConfig{Follow: true, Reconnected: func(err error) { reason = err; cancel() }}
		for _, err := range g.Logs(ctx, leased, cfg) {
			if err == nil {
				go w.stop()
			}
		}
		if !errors.Is(reason, gatewayclient.ErrUnavailable) {
			t.Errorf("the client tries again because of %v", reason)
		}
		w.stop()
	})
}

// An account without a lease here is answered before its manifest has come, and
// however long that is.
func TestABodyOfAStrangerIsNotRead(t *testing.T) {
	bubble(t, nil, func(t *testing.T, _ *world, p *pipes) {
		conn, err := p.dialFrom(t.Context(), "192.0.2.9:1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true})
		begin := time.Now()
		if _, err := io.WriteString(c, "PUT /deployment/7/manifest HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+token(t, mallory, nil)+"\r\nContent-Length: 1000000\r\n\r\n["); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 404 || !strings.Contains(string(body), "no lease for deployment") || time.Since(begin) > time.Second {
			t.Errorf("after %s: %d %q, %v", time.Since(begin), resp.StatusCode, body, err)
		}
	})
}

func TestManifestsOfOneTenantLeaveRoomForOthers(t *testing.T) {
	bubble(t, func(w *world) {
		w.held = make(chan struct{})
		w.also = akash.DeploymentID{Owner: mallory.Address(), DSeq: 9}
	}, func(t *testing.T, w *world, _ *pipes) {
		var statuses [6]int
		var senders sync.WaitGroup
		for i := range statuses {
			senders.Go(func() {
				statuses[i], _ = ask(t, w.raw(t, host, nil), "PUT", "/deployment/7/manifest", manifest, bearer(token(t, alice, nil)))
			})
		}
		synctest.Wait()
		begin := time.Now()
		status, _ := ask(t, w.raw(t, host, nil), "PUT", "/deployment/9/manifest", manifest, bearer(token(t, mallory, nil)))
		if status != 404 || time.Since(begin) > time.Second {
			t.Errorf("another tenant's manifest = %d after %s", status, time.Since(begin))
		}
		time.Sleep(time.Minute)
		close(w.held)
		senders.Wait()
		counts := map[int]int{}
		for _, status := range statuses {
			counts[status]++
		}
		if counts[200] != 4 || counts[429] != 2 {
			t.Errorf("statuses = %v, want 4 of 200 and 2 of 429", counts)
		}
	})
}

// Who has no lease is told so on a stream, and takes no place of those that tenants
// have.
func TestStreamsOfStrangersAreCountedApart(t *testing.T) {
	for _, path := range []string{"/lease/8/1/1/logs?follow=true", "/lease/8/1/1/shell?service=web&podIndex=0&tty=0&stdin=0&cmd0=sleep"} {
		bubble(t, nil, func(t *testing.T, w *world, _ *pipes) {
			for range 4 { // nobody reads, so the gateway waits for their answer to its close
				w.mustOpen(t, path)
			}
			_, resp, err := w.open(t, path) //nolint:bodyclose // websocket.Dial leaves none open
			if err == nil || resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("the fifth = %v", err)
			}
			_ = w.mustOpen(t, logsPath).CloseNow()
			time.Sleep(time.Minute)
			_ = w.mustOpen(t, path).CloseNow()
		})
	}
}
