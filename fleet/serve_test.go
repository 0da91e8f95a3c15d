package fleet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener of connections in memory.
type pipes struct{ made chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p.made; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p.made); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestABodyThatNeverEndsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, l := &Fleet{log: slog.New(slog.DiscardHandler)}, pipes{make(chan net.Conn)}
		ctx, cancel := context.WithCancel(t.Context())
		read, served := make(chan error, 1), make(chan error, 1)
		go func() {
			served <- f.serve(ctx, l, nil, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, err := io.ReadAll(r.Body)
				read <- err
			}))
		}()
		here, there := net.Pipe()
		l.made <- there
		if _, err := fmt.Fprint(here, "POST /auth/link HTTP/1.1\r\nHost: fleet.example\r\nContent-Length: 100\r\n\r\nemail="); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		select {
		case err := <-read:
			if err == nil {
				t.Error("half a body was taken for a whole one")
			}
		default:
			t.Error("after an hour the fleet still waits for a body")
		}
		here.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
