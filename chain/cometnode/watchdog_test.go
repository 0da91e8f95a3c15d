package cometnode

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/types"
)

func TestWatchdog(t *testing.T) {
	for _, tc := range []struct {
		name  string
		drive func(height *atomic.Int64, idle *atomic.Bool, failed chan<- struct{}, stop func())
		after time.Duration // when it must have ended
		want  error
	}{
		{"a chain that moves is left alone", func(height *atomic.Int64, _ *atomic.Bool, _ chan<- struct{}, stop func()) {
			for range 30 {
				time.Sleep(9 * time.Second)
				height.Add(1)
			}
			stop()
		}, 270 * time.Second, nil},
		{
			"a chain that stands still for the limit is reported", func(*atomic.Int64, *atomic.Bool, chan<- struct{}, func()) {},
			10 * time.Second, ErrStalled,
		},
		{"a node that still looks for peers gets ten times the limit", func(_ *atomic.Int64, idle *atomic.Bool, _ chan<- struct{}, _ func()) {
			idle.Store(true)
		}, 100 * time.Second, ErrStalled},
		{"consensus that says it failed is not waited for", func(_ *atomic.Int64, _ *atomic.Bool, failed chan<- struct{}, _ func()) {
			time.Sleep(500 * time.Millisecond)
			failed <- struct{}{}
		}, 500 * time.Millisecond, ErrStalled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var height atomic.Int64
				var idle atomic.Bool
				failed := make(chan struct{}, 1)
				var out bytes.Buffer
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w := Watchdog{
					Every: time.Second, Limit: 10 * time.Second, Height: height.Load, Idle: idle.Load, Failed: failed,
					Log: slog.New(slog.NewTextHandler(&out, nil)),
				}
				begin := time.Now()
				go tc.drive(&height, &idle, failed, cancel)
				if err := w.Run(ctx); !errors.Is(err, tc.want) {
					t.Errorf("run: %v, want %v", err, tc.want)
				}
				if took := time.Since(begin); took != tc.after {
					t.Errorf("ended after %s, want %s", took, tc.after)
				}
				if said := strings.Contains(out.String(), "goroutine "); said != (tc.want != nil) {
					t.Errorf("stacks in the log: %t", said)
				}
			})
		})
	}
}

func TestLogHearsThatConsensusFailed(t *testing.T) {
	heard := false
	l := CometLog{Log{Slog: slog.New(slog.DiscardHandler), OnFailed: func() { heard = true }}}
	l.With("module", "consensus").Error("some other error")
	if heard {
		t.Error("any error was taken for the end of consensus")
	}
	l.With("module", "consensus").Error("CONSENSUS FAILURE!!!", "err", "no space left on device")
	if !heard {
		t.Error("the end of consensus was not heard")
	}
}

func TestTrimWALKeepsWhatARestartReads(t *testing.T) {
	end, other := consensus.EndHeightMessage{Height: 7}, types.EventDataRoundState{Height: 8}
	for _, tc := range []struct {
		name  string
		files map[string]consensus.WALMessage
		want  string
	}{
		{"files before the last end of a block go", map[string]consensus.WALMessage{"wal.998": end, "wal.999": end, "wal.1000": end, "wal": other}, "wal wal.1000"},
		{"a block that fills a whole file keeps the file where it begins", map[string]consensus.WALMessage{"wal.000": end, "wal.001": end, "wal.002": other, "wal": other}, "wal wal.001 wal.002"},
		{"the first block keeps all", map[string]consensus.WALMessage{"wal.000": other, "wal.001": other, "wal": other}, "wal wal.000 wal.001"},
		{"a log of one file stays", map[string]consensus.WALMessage{"wal": end}, "wal"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, msg := range tc.files {
				var raw bytes.Buffer
				if err := consensus.NewWALEncoder(&raw).Encode(&consensus.TimedWALMessage{Time: time.Now(), Msg: msg}); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), raw.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := TrimWAL(dir); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, e := range entries {
				left = append(left, e.Name())
			}
			if got := strings.Join(left, " "); got != tc.want {
				t.Errorf("left are %q, want %q", got, tc.want)
			}
		})
	}
}
