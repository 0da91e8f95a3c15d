package supervise_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/internal/supervise"
)

var errLink = errors.New("link is down")

// untilCancelled is a worker that works for ever.
func untilCancelled(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// start runs a supervisor and returns it with a function that stops it and
// waits. The bubble reports any goroutine left behind.
func start(t *testing.T, workers ...supervise.Worker) (*supervise.Supervisor, func()) {
	t.Helper()
	s, err := supervise.New(supervise.Config{Workers: workers})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	synctest.Wait()
	return s, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		for _, st := range s.States() {
			if st.Phase != supervise.Stopped && st.Phase != supervise.Finished {
				t.Errorf("worker %s is %s after the end", st.Name, st.Phase)
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		workers []supervise.Worker
		want    string
	}{
		{"a worker without a name", []supervise.Worker{{Run: untilCancelled}}, "worker without a name"},
		{"a worker without work", []supervise.Worker{{Name: "page"}}, "worker page: Run is nil"},
		{"two workers of one name", []supervise.Worker{{"page", untilCancelled}, {"page", untilCancelled}}, "worker page is named twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := supervise.New(supervise.Config{Workers: tc.workers})
			if err == nil || err.Error() != tc.want {
				t.Errorf("error is %v, want %s", err, tc.want)
			}
		})
	}
}

func TestWorkersRunUntilToldToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		s, stop := start(t, supervise.Worker{"page", untilCancelled}, supervise.Worker{"market", untilCancelled})
		time.Sleep(time.Hour)
		for i, name := range []string{"page", "market"} {
			if st := s.States()[i]; st.Name != name || st.Phase != supervise.Running || !st.Since.Equal(begin) || st.Restarts != 0 || st.LastError != nil || !st.Up() {
				t.Errorf("state %d is %+v", i, st)
			}
		}
		stop()
		if err := s.Run(t.Context()); err == nil {
			t.Error("a second Run is not refused")
		}
	})
}

func TestRunEndsWhenEveryWorkerFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs := 0
		s, err := supervise.New(supervise.Config{Workers: []supervise.Worker{
			{"once", func(context.Context) error { runs++; return nil }},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if st := s.States()[0]; st.Phase != supervise.Waiting || st.Up() {
			t.Errorf("state before Run is %+v", st)
		}
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st := s.States()[0]; st.Phase != supervise.Finished || !st.Up() || runs != 1 {
			t.Errorf("state is %+v after %d runs", st, runs)
		}
	})
}

func TestAFailedWorkerStartsAgain(t *testing.T) {
	for _, tc := range []struct {
		name string
		fail func(context.Context) error
		is   error
		text string
	}{
		{"after an error", func(context.Context) error { return errLink }, errLink, "link is down"},
		{"after a panic with an error", func(context.Context) error { panic(errLink) }, errLink, "panic: link is down"},
		{"after a panic with a word", func(context.Context) error { panic("boom") }, nil, "panic: boom"},
		{"after panic(nil)", func(context.Context) error { panic(nil) }, nil, "panic: panic called with nil"},
		{"after Goexit", func(context.Context) error { runtime.Goexit(); return nil }, nil, "goroutine ended without returning"},
		{"after a cancellation that is its own", func(context.Context) error { return context.Canceled }, context.Canceled, "context canceled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				runs := 0
				begin := time.Now()
				s, stop := start(t, supervise.Worker{"market", func(ctx context.Context) error {
					if runs++; runs == 1 {
						return tc.fail(ctx)
					}
					return untilCancelled(ctx)
				}}, supervise.Worker{"page", untilCancelled})
				st := s.States()[0]
				if st.Phase != supervise.Pausing || st.Up() || !st.FailedAt.Equal(begin) || !strings.HasPrefix(st.LastError.Error(), tc.text) {
					t.Errorf("after the failure the state is %+v", st)
				}
				if tc.is != nil && !errors.Is(st.LastError, tc.is) {
					t.Errorf("error %v is not %v", st.LastError, tc.is)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				st = s.States()[0]
				if st.Phase != supervise.Running || st.Restarts != 1 || st.LastError == nil || st.Since.Before(begin.Add(time.Second)) {
					t.Errorf("after the pause the state is %+v", st)
				}
				if other := s.States()[1]; other.Restarts != 0 || other.Phase != supervise.Running {
					t.Errorf("the other worker's state is %+v", other)
				}
				stop()
			})
		})
	}
}

func TestPausesGrowAndStartAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var steady atomic.Bool
		begins := make(chan time.Time, 1000)
		_, stop := start(t, supervise.Worker{"market", func(ctx context.Context) error {
			begins <- time.Now()
			if steady.CompareAndSwap(true, false) {
				time.Sleep(time.Minute)
			}
			return errLink
		}})
		time.Sleep(time.Hour)
		synctest.Wait()
		n := len(begins)
		if n < 60 || n > 300 {
			t.Errorf("%d starts in an hour of failures", n)
		}
		last := <-begins
		for i := 1; i < n; i++ {
			at := <-begins
			pause := at.Sub(last)
			if pause < time.Second || pause > time.Minute || i == 1 && pause != time.Second {
				t.Errorf("pause %d is %v", i, pause)
			}
			last = at
		}
		steady.Store(true)
		long := <-begins // the run that lasts a minute
		if pause := (<-begins).Sub(long) - time.Minute; pause != time.Second {
			t.Errorf("after a long run the pause is %v", pause)
		}
		stop()
	})
}

func TestStoppingDuringAPauseIsImmediate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, stop := start(t, supervise.Worker{"market", func(context.Context) error { return errLink }})
		begin := time.Now()
		stop()
		if took := time.Since(begin); took != 0 {
			t.Errorf("stopping took %v", took)
		}
	})
}

func TestRunWaitsForASlowWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, stop := start(t, supervise.Worker{"market", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(5 * time.Second)
			return nil
		}})
		begin := time.Now()
		stop()
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("stopping took %v", took)
		}
	})
}

func TestNothingStartsUnderACancelledContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := supervise.New(supervise.Config{Workers: []supervise.Worker{
		{"market", func(context.Context) error { t.Error("worker was started"); return nil }},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if st := s.States()[0]; st.Phase != supervise.Stopped {
		t.Errorf("state is %+v", st)
	}
}

func TestTheLogTellsWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s, err := supervise.New(supervise.Config{
			Workers: []supervise.Worker{{"market", func(context.Context) error { panic("boom") }}},
			Log:     slog.New(slog.NewTextHandler(&out, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`msg="worker failed"`, "worker=market", `err="panic: boom"`, "pause=1s", "supervise_test.go"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("log lacks %s:\n%s", want, out.String())
			}
		}
	})
}
