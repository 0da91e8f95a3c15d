// Web is the program that stands in for a tenant's: small enough to see through,
// and able to do what tests of a box need.
//
//	web                  listens on PORT, or 3000
//	web echo PORT        says over TCP and UDP what it is told
//	web say WORDS…       prints the words; web fail N exits with N; web cat copies
//	                     its input; web list FOLDER names what lies there; web find HOST
//	                     prints a name's addresses; web dial HOST:PORT says whether
//	                     something listens; for shells into an image that has no other
//	                     program
//
// Over HTTP:
//
//	/              host name, number of the request, environment, as JSON
//	/take          takes a body of any size (POST)
//	/write?mib=N   writes a file of N MiB into /tmp, or the folder dir=
//	/alloc?mib=N   takes N MiB of memory and keeps it
//	/exit?code=N   ends the program
//
// Each request is a line on standard output.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if code, ok := errors.AsType[exit](err); ok {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

// exit is a wish to end with this code.
type exit int

func (e exit) Error() string { return "exit " + strconv.Itoa(int(e)) }

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		port := os.Getenv("PORT")
		if port == "" {
			port = "3000"
		}
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return fmt.Errorf("listen for visitors: %w", err)
		}
		return serve(ctx, listener, stdout)
	}
	switch verb := args[0]; {
	case verb == "say":
		_, err := fmt.Fprintln(stdout, strings.Join(args[1:], " "))
		return err
	case verb == "echo" && len(args) == 2:
		return echo(ctx, args[1], stdout)
	case verb == "list" && len(args) == 2:
		entries, err := os.ReadDir(args[1])
		for _, e := range entries {
			_, _ = fmt.Fprintln(stdout, e.Name())
		}
		return err
	case verb == "find" && len(args) == 2:
		addresses, err := net.DefaultResolver.LookupHost(ctx, args[1])
		for _, a := range addresses {
			_, _ = fmt.Fprintln(stdout, a)
		}
		return err
	case verb == "dial" && len(args) == 2:
		conn, err := net.DialTimeout("tcp", args[1], 2*time.Second)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(stdout, "it listens")
		return conn.Close()
	case verb == "cat":
		_, err := io.Copy(stdout, stdin)
		return err
	case verb == "fail" && len(args) == 2:
		code, err := strconv.ParseUint(args[1], 10, 8)
		if err != nil {
			return fmt.Errorf("read exit code: %w", err)
		}
		return exit(code)
	}
	return fmt.Errorf("%q is not known; say WORDS, cat, list FOLDER, find HOST, dial HOST:PORT, echo PORT, or fail N", strings.Join(args, " "))
}

// echo answers every word with itself, over TCP and UDP, until ctx ends.
func echo(ctx context.Context, port string, log io.Writer) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return fmt.Errorf("listen for words: %w", err)
	}
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for words: %w", err), listener.Close())
	}
	var talks sync.WaitGroup
	talks.Go(func() {
		for word := make([]byte, 64<<10); ; {
			n, from, err := packets.ReadFrom(word)
			if err != nil {
				return // it was closed
			}
			_, _ = packets.WriteTo(word[:n], from) // whoever wants an answer asks again
		}
	})
	stop := context.AfterFunc(ctx, func() {
		listener.Close()
		packets.Close()
	})
	defer stop()
	_, _ = fmt.Fprintf(log, "listening on %s\n", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			packets.Close()
			talks.Wait()
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("listen for words: %w", err)
		}
		go func() { // ends with its talker, or with the program
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// site is what the visitors see.
type site struct {
	end  context.CancelCauseFunc
	seen atomic.Int64

	mu    sync.Mutex
	taken [][]byte // guarded by mu; memory that is kept

	logMu sync.Mutex // one line at a time
	log   io.Writer
}

func (s *site) say(format string, args ...any) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	fmt.Fprintf(s.log, format+"\n", args...) //nolint:errcheck // a full log must not stop the site
}

// serve answers until ctx ends or a visitor ends the program.
func serve(ctx context.Context, listener net.Listener, log io.Writer) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &site{end: end, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("POST /take", s.take)
	mux.HandleFunc("GET /write", s.write)
	mux.HandleFunc("GET /alloc", s.alloc)
	mux.HandleFunc("GET /exit", s.exit)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.seen.Add(1)
		s.say("request %d: %s %s from %s", n, r.Method, r.URL, r.RemoteAddr)
		mux.ServeHTTP(w, r)
	})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	s.say("listening on %s", listener.Addr())
	select {
	case err := <-ended:
		return fmt.Errorf("serve visitors: %w", err)
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(patience) != nil {
		server.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve visitors: %w", err)
	}
	if code, ok := errors.AsType[exit](context.Cause(ctx)); ok {
		return code
	}
	return nil
}

// home is the front page.
func (s *site) home(w http.ResponseWriter, r *http.Request) {
	host, err := os.Hostname()
	if err != nil {
		host = err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(map[string]any{"host": host, "asked_for": r.Host, "requests": s.seen.Load(), "env": os.Environ()}) // the visitor has gone
}

// take counts a body's bytes.
func (s *site) take(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "took %d bytes\n", n) //nolint:errcheck // the visitor has gone
}

// mebibytes reads the parameter mib, 1 if it is not there.
func mebibytes(r *http.Request) (int, error) {
	const most = 1 << 20 // a TiB: more than any box has
	text := r.URL.Query().Get("mib")
	if text == "" {
		return 1, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("mib is %q: want 0 to %d", text, most)
	}
	return n, nil
}

// write fills a disk.
func (s *site) write(w http.ResponseWriter, r *http.Request) {
	n, err := mebibytes(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	dir := r.URL.Query().Get("dir")
	if dir == "" {
		dir = "/tmp"
	}
	written, err := fill(filepath.Join(dir, "web-"+strconv.FormatInt(s.seen.Load(), 10)), n)
	if err != nil {
		http.Error(w, fmt.Sprintf("wrote %d MiB, then: %v", written, err), http.StatusInsufficientStorage)
		return
	}
	fmt.Fprintf(w, "wrote %d MiB\n", written) //nolint:errcheck // the visitor has gone
}

// fill writes a file of n MiB to the disk itself and says how many it took.
func fill(path string, n int) (written int, err error) {
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	for ; written < n; written++ {
		if _, err := file.Write(block); err != nil {
			return written, err
		}
	}
	return written, file.Sync()
}

// alloc takes memory and touches it, so that it is really taken.
func (s *site) alloc(w http.ResponseWriter, r *http.Request) {
	n, err := mebibytes(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		s.taken = append(s.taken, block)
	}
	fmt.Fprintf(w, "holding %d MiB\n", len(s.taken)) //nolint:errcheck // the visitor has gone
}

// exit ends the program after the answer.
func (s *site) exit(w http.ResponseWriter, r *http.Request) {
	code := 0
	if text := r.URL.Query().Get("code"); text != "" {
		n, err := strconv.ParseUint(text, 10, 8)
		if err != nil {
			http.Error(w, "code: want 0 to 255", http.StatusBadRequest)
			return
		}
		code = int(n)
	}
	fmt.Fprintf(w, "ending with %d\n", code) //nolint:errcheck // the visitor has gone
	s.end(exit(code))
}
