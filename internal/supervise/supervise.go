// Package supervise keeps a program's workers running. It starts each in its
// own goroutine, turns its panic into an error, starts it again after a pause
// when it fails, and tells at any time how each of them is doing.
//
// The pause grows with decorrelated jitter from 1 s to 1 min, and starts anew
// once a worker ran for a minute. One worker's failure never stops another.
//
// A worker that returns nil has finished its work and stays stopped. It does
// not stop for what Go cannot recover from (concurrent map writes, out of
// memory): then the process ends, and whoever started it starts it again.
// Nothing here outlives the process.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// The pause before a failed worker starts again.
const (
	shortestPause = time.Second
	longestPause  = time.Minute
	steadyAfter   = time.Minute // a run this long starts the pauses anew
)

// Worker is one part of a program that works until it is told to stop.
type Worker struct {
	Name string // required, unique; snake_case, appears in logs and health reports

	// Run works until ctx is cancelled and then returns soon. Its goroutines
	// have ended when it returns. It is called again after an error.
	Run func(ctx context.Context) error
}

// Phase is where a worker stands.
type Phase string

// The phases.
const (
	Waiting  Phase = "waiting"  // not started yet. Transitions to: Running, Stopped
	Running  Phase = "running"  // at work. Transitions to: Pausing, Finished, Stopped
	Pausing  Phase = "pausing"  // failed, will start again. Transitions to: Running, Stopped
	Finished Phase = "finished" // returned nil before it was told to stop; final
	Stopped  Phase = "stopped"  // ended because it was told to; final
)

// State is how one worker is doing.
type State struct {
	Name      string
	Phase     Phase
	Since     time.Time // when this phase began; zero in Waiting
	Restarts  int       // times it was started again after a failure
	LastError error     // of its newest failure; nil if it never failed
	FailedAt  time.Time // when that was; zero if it never failed
}

// Up reports whether the worker does, or has done, what it should.
func (s State) Up() bool { return s.Phase == Running || s.Phase == Finished }

// PanicError is a worker's panic.
type PanicError struct {
	Value any    // what was passed to panic
	Stack []byte // of the goroutine that panicked
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap is the panic's value when that is an error, else nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// errGoexit reports a worker that ended its goroutine instead of returning.
var errGoexit = errors.New("goroutine ended without returning")

// Config is copied by [New], checked once, and never changed afterwards.
type Config struct {
	Workers []Worker
	Log     *slog.Logger // default: discard
}

// Supervisor runs workers. All methods may be called at any time from any
// goroutine.
type Supervisor struct {
	workers []Worker
	log     *slog.Logger

	mu      sync.Mutex
	started bool    // guarded by mu
	states  []State // guarded by mu; index as in workers
}

// New checks the workers and starts nothing.
func New(cfg Config) (*Supervisor, error) {
	s := &Supervisor{log: cfg.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	seen := make(map[string]bool, len(cfg.Workers))
	for _, w := range cfg.Workers {
		switch {
		case w.Name == "":
			return nil, errors.New("worker without a name")
		case w.Run == nil:
			return nil, fmt.Errorf("worker %s: Run is nil", w.Name)
		case seen[w.Name]:
			return nil, fmt.Errorf("worker %s is named twice", w.Name)
		}
		seen[w.Name] = true
		s.workers = append(s.workers, w)
		s.states = append(s.states, State{Name: w.Name, Phase: Waiting})
	}
	return s, nil
}

// Run starts every worker and returns when each has finished or, after ctx was
// cancelled, has stopped. It can be called once; only a second call fails.
func (s *Supervisor) Run(ctx context.Context) error {
	s.mu.Lock()
	again := s.started
	s.started = true
	s.mu.Unlock()
	if again {
		return errors.New("supervisor was started before")
	}
	var all sync.WaitGroup
	for i := range s.workers {
		all.Go(func() { s.keep(ctx, i) })
	}
	all.Wait()
	return nil
}

// States is a snapshot of every worker, in the order given to [New].
func (s *Supervisor) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]State(nil), s.states...)
}

// keep runs one worker, again after each failure, until it finishes or ctx is
// cancelled.
func (s *Supervisor) keep(ctx context.Context, i int) {
	w := s.workers[i]
	log := s.log.With("worker", w.Name)
	var pause time.Duration
	for restarts := 0; ctx.Err() == nil; restarts++ {
		begin := time.Now()
		s.change(i, func(st *State) { st.Phase, st.Restarts = Running, restarts })
		err := call(ctx, w.Run)
		ran := time.Since(begin)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Cause(ctx)) && !errors.Is(err, ctx.Err()) {
				log.Warn("worker stopped with an error", "err", err)
			}
			break
		}
		if err == nil {
			log.Info("worker finished", "took", ran)
			s.change(i, func(st *State) { st.Phase = Finished })
			return
		}
		if ran >= steadyAfter {
			pause = 0
		}
		pause = nextPause(pause)
		s.change(i, func(st *State) { st.Phase, st.LastError, st.FailedAt = Pausing, err, time.Now() })
		attrs := []any{"err", err, "ran", ran, "restarts", restarts, "pause", pause}
		if p, ok := errors.AsType[*PanicError](err); ok {
			attrs = append(attrs, "stack", string(p.Stack))
		}
		log.Error("worker failed", attrs...)
		if !sleep(ctx, pause) {
			break
		}
	}
	s.change(i, func(st *State) { st.Phase = Stopped })
}

// change edits one worker's state; the new phase begins now.
func (s *Supervisor) change(i int, edit func(*State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(&s.states[i])
	s.states[i].Since = time.Now()
}

// call calls run in a goroutine of its own, so that a panic or runtime.Goexit
// ends that goroutine only, and waits for it.
func call(ctx context.Context, run func(context.Context) error) error {
	result := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() {
			if v := recover(); v != nil {
				err = &PanicError{Value: v, Stack: debug.Stack()}
			}
			result <- err
		}()
		err = run(ctx)
	}()
	return <-result
}

// nextPause draws the pause that follows one of the given length: between the
// shortest and three times the previous one, at most the longest.
func nextPause(previous time.Duration) time.Duration {
	most := max(3*previous, shortestPause)
	return min(shortestPause+rand.N(most-shortestPause+1), longestPause)
}

// sleep waits for d and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
