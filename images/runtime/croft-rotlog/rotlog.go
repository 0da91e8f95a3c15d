// Command croft-rotlog writes what one container prints to a file of bounded
// size.
//
// The shim starts one for each container, from the address that the container's
// task was created with:
//
//	binary-v2:///user/croft-rotlog?path=/perm/…/web-1-0.log&max=1048576&keep=3
//
// path is the file, absolute, in a folder that exists; max how many bytes one
// file has at most, 256 KiB to 1 GiB; keep how many older files stay beside it,
// 0 to 99, as path.1 (the youngest) to path.N; rate, optional, how many bytes a
// second are written in the long run. With binary-v2 the shim notices when the
// log cannot be opened, and the container is not created; with binary it would
// run and its output be lost. A full disk alone does not keep it from running.
//
// Each line is one JSON object and a newline:
//
//	{"t":"2026-11-21T16:42:09.123456789Z","s":"stdout","m":"listening on 8080"}
//
// t is when it was read, by the box's clock, in UTC; s is stdout or stderr; m is
// the text without its newline, with U+FFFD for what is not UTF-8. "p":true says
// that the line goes on in the stream's next record: it was longer than 16 KiB,
// or it stood unfinished for a second, as a prompt does. "lost":N, with a
// sentence for m and stderr for s, says that N records before this one were not
// written.
//
// A container that prints faster than rate is held up, not the box: its writes
// block, as they do on any full pipe. A container is never held up by a full or
// broken disk: lines that cannot be written are dropped and counted, and the
// count is written when there is room again. If the program ends while records
// are being dropped, their number is lost too.
//
// What survives what: kill -9 of containerd and of the shim, all; the program
// ends when the last process of the container has closed its output. kill -9 of
// the program itself: what was written stays, and the next one cuts off a torn
// last line; what the container printed meanwhile is lost. Power cut: what the
// kernel had not yet written (some 30 s) is lost; the rest is whole. Wrong clock:
// records keep their order, the time in them jumps as the clock does. A kill
// during a rotation can leave a gap in the numbers of the older files, no more.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"
)

const (
	maxLine    = 16 << 10        // bytes of text in one record: Docker's figure, which log readers expect
	chunkSize  = 32 << 10        // bytes read at once: half of what a pipe holds
	batchSize  = 64 << 10        // bytes written at once, and what a full disk costs at most per attempt
	idleFlush  = time.Second     // how long an unfinished line may stand unseen
	closeGrace = 8 * time.Second // after SIGTERM; the shim kills after 12 s

	minBytes = 256 << 10 // a batch and the longest record (16 KiB, each byte as \u00xx) fit in
	maxBytes = 1 << 30   // more is no log of a small box
	maxKeep  = 99

	defaultRate = 4 << 20  // bytes a second: a core's tenth; as much as a slow disk takes without others noticing
	burst       = 16 << 20 // bytes: start-up chatter passes at full speed
)

// config is what the address says.
type config struct {
	path string // absolute
	max  int64  // bytes in one file
	keep int    // older files beside it
	rate int64  // bytes a second
}

// parse reads the address's query as the shim passes it: key, value, key, value,
// in any order.
func parse(args []string) (config, error) {
	cfg := config{rate: defaultRate}
	seen := map[string]bool{}
	for ; len(args) >= 2; args = args[2:] {
		key, value := args[0], args[1]
		seen[key] = true
		var err error
		switch key {
		case "path":
			cfg.path = value
		case "max":
			cfg.max, err = between(value, minBytes, maxBytes)
		case "keep":
			var n int64
			n, err = between(value, 0, maxKeep)
			cfg.keep = int(n)
		case "rate":
			cfg.rate, err = between(value, 1<<10, 1<<30)
		default:
			err = errors.New("unknown")
		}
		if err != nil {
			return config{}, fmt.Errorf("read parameter %q: %w", key, err)
		}
	}
	if len(args) != 0 {
		return config{}, fmt.Errorf("parameter %q has no value", args[0])
	}
	if !filepath.IsAbs(cfg.path) {
		return config{}, fmt.Errorf("path %q is not absolute", cfg.path)
	}
	if !seen["max"] || !seen["keep"] {
		return config{}, errors.New("parameters max and keep are needed")
	}
	return cfg, nil
}

func between(text string, low, high int64) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, err
	}
	if n < low || n > high {
		return 0, fmt.Errorf("%d is not between %d and %d", n, low, high)
	}
	return n, nil
}

// chunk is what one read of a stream gave.
type chunk struct {
	stream int
	data   []byte
	end    bool
	taken  chan<- struct{} // tells the reader that data may be written over
}

// run copies both streams to the log until both have ended, or until ctx has
// been over for closeGrace. It calls ready once the log is open.
func run(ctx context.Context, cfg config, stdout, stderr io.Reader, ready func() error) error {
	log := newRotation(cfg, openFile)
	if err := log.open(); err != nil && !full(err) {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.close()
	if err := ready(); err != nil {
		return fmt.Errorf("tell the shim that the log is ready: %w", err)
	}

	// A reader that stands in Read when the grace is over is left there: run is
	// all that the program does.
	chunks, stop := make(chan chunk), make(chan struct{})
	defer close(stop)
	go read(0, stdout, chunks, stop)
	go read(1, stderr, chunks, stop)

	var (
		lines   = [2]*splitter{newSplitter("stdout"), newSplitter("stderr")}
		out     = &batch{log: log}
		limit   = newLimit(cfg.rate, burst, time.Now())
		running = ctx.Done()
		over    <-chan time.Time
		idle    = time.NewTimer(idleFlush)
	)
	defer idle.Stop()
	for open := 2; open > 0; {
		select {
		case c := <-chunks:
			lines[c.stream].split(c.data, time.Now(), out.add)
			if c.end {
				lines[c.stream].flush(time.Now(), false, out.add)
				open--
			}
			written := out.flush()
			if ctx.Err() == nil {
				wait(ctx, limit.take(written, time.Now()))
			}
			c.taken <- struct{}{}
			idle.Reset(idleFlush)
		case <-idle.C:
			for _, l := range lines {
				l.flush(time.Now(), true, out.add)
			}
			out.flush()
		case <-running:
			running, over = nil, time.After(closeGrace)
		case <-over:
			for _, l := range lines {
				l.flush(time.Now(), false, out.add)
			}
			out.flush()
			return nil
		}
	}
	return nil
}

// read hands what r gives to run, one chunk at a time.
func read(stream int, r io.Reader, chunks chan<- chunk, stop <-chan struct{}) {
	buffer, taken := make([]byte, chunkSize), make(chan struct{}, 1)
	for {
		n, err := r.Read(buffer)
		select {
		case chunks <- chunk{stream: stream, data: buffer[:n], end: err != nil, taken: taken}:
		case <-stop:
			return
		}
		if err != nil {
			return
		}
		select {
		case <-taken:
		case <-stop:
			return
		}
	}
}

// wait sleeps for d, or until ctx is over.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// limit is a bucket of bytes that fills at rate and holds size.
type limit struct {
	rate, size int64
	left       int64
	at         time.Time
}

func newLimit(rate, size int64, now time.Time) *limit {
	return &limit{rate: rate, size: size, left: size, at: now}
}

// take takes n bytes and says how long to wait until the bucket is no longer
// overdrawn.
func (l *limit) take(n int, now time.Time) time.Duration {
	passed := max(0, min(now.Sub(l.at), time.Hour))
	l.left = min(l.size, l.left+int64(passed.Seconds()*float64(l.rate)))
	l.at = now
	l.left -= int64(n)
	if l.left >= 0 {
		return 0
	}
	return time.Duration(float64(-l.left) / float64(l.rate) * float64(time.Second))
}
