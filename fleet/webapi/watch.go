package webapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

const (
	watchMost   = 1000                  // boxes in one watch
	watchLife   = 10 * time.Minute      // then the watcher connects again, and is looked at again
	watchPause  = 2 * time.Second       // between two looks
	watchPerBox = 10 * time.Millisecond // and so much more for each box
	watchAnyway = 30 * time.Second      // a box that falls silent is not told of
	watchBeat   = 15 * time.Second      // a sign of life, for proxies
	watchWrite  = 30 * time.Second      // for one write

	watchersOfOne = 20
	watchersOfAll = 1000
)

// watchers counts those who watch.
type watchers struct {
	mu  sync.Mutex
	of  map[string]int // guarded by mu; by account
	all int            // guarded by mu
}

func (s *watchers) enter(account string) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]int{}
	}
	if s.all >= watchersOfAll || s.of[account] >= watchersOfOne {
		return nil, errCrowded
	}
	s.all++
	s.of[account]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.of[account]--; s.of[account] == 0 {
			delete(s.of, account)
		}
	}, nil
}

func (k *call) watchDevice() error {
	box, _, err := k.box(readDevice)
	if err != nil {
		return err
	}
	return k.watch(func(changed string) bool {
		return strings.Contains(changed, string(box.ID))
	}, func(ctx context.Context) ([]device.Box, error) {
		now, err := k.cfg.Devices.Box(ctx, k.actor(readDevice), box.ID)
		if errors.Is(err, device.ErrNoBox) {
			return nil, nil
		}
		return []device.Box{now}, err
	})
}

func (k *call) watchDevices() error {
	return k.watch(func(string) bool { return true }, func(ctx context.Context) ([]device.Box, error) {
		var boxes []device.Box
		for q := (device.Query{Selector: k.q.Get("selector"), Limit: 500}); ; {
			more, next, err := k.cfg.Devices.List(ctx, k.actor(readDevice), q)
			if err != nil {
				return nil, err
			}
			boxes = append(boxes, more...)
			if len(boxes) > watchMost || len(boxes) == watchMost && next != "" {
				return nil, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("more than %d boxes match", watchMost), Remedy: "watch fewer, by a selector"}
			}
			if next == "" {
				return boxes, nil
			}
			q.Cursor = next
		}
	})
}

// watch sends boxes as they are, and then each one that changed. When it was last
// seen is no change. about tells whether the boxes named may be among those watched.
func (k *call) watch(about func(changed string) bool, look func(context.Context) ([]device.Box, error)) error {
	leave, err := k.watchers.enter(k.p.Account)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(k.r.Context(), watchLife)
	defer cancel()
	heard := k.cfg.DB.Listen(ctx, device.Topic) // before the first look, so that nothing falls between
	boxes, err := look(ctx)
	if err != nil {
		return err
	}
	h := k.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy holds nothing back
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	known := map[croft.DeviceID][]byte{}
	for {
		if k.send(boxes, known) != nil || len(known) == 0 && k.r.PathValue("device") != "" {
			return nil // the client went away, or the box did
		}
		if !k.await(ctx, heard, about, beat.C, watchPause+time.Duration(len(boxes))*watchPerBox) {
			return nil
		}
		if boxes, err = look(ctx); err != nil {
			if ctx.Err() == nil {
				k.log.Warn("boxes cannot be watched any more", "error", err)
			}
			return nil // the answer has begun: the client connects again and is told
		}
	}
}

// await returns when it is time to look again, or false when the watch ends.
func (k *call) await(ctx context.Context, heard <-chan string, about func(string) bool, beat <-chan time.Time, pause time.Duration) bool {
	soonest, anyway := time.NewTimer(pause), time.NewTimer(max(pause, watchAnyway))
	defer soonest.Stop()
	defer anyway.Stop()
	rested, changed := false, false
	for !rested || !changed {
		select {
		case <-ctx.Done():
			return false
		case ids, ok := <-heard:
			if !ok {
				return false
			}
			changed = changed || ids == "" || about(ids)
		case <-soonest.C:
			rested = true
		case <-anyway.C:
			return true
		case <-beat:
			if k.write([]byte(":\n\n")) != nil {
				return false
			}
		}
	}
	return true
}

// send writes what differs from what is known, and makes it known.
func (k *call) send(boxes []device.Box, known map[croft.DeviceID][]byte) error {
	var out bytes.Buffer
	there := map[croft.DeviceID]bool{}
	for _, b := range boxes {
		there[b.ID] = true
		one := k.deviceOf(b)
		seen := one.Seen
		one.Seen = fleetapi.Stamp{}
		raw, err := json.Marshal(one)
		if err != nil {
			return err
		}
		if bytes.Equal(raw, known[b.ID]) {
			continue
		}
		known[b.ID] = raw
		one.Seen = seen
		if err := event(&out, "device", fleetclient.Change{Device: &one}); err != nil {
			return err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if !there[id] {
			delete(known, id)
			if err := event(&out, "gone", fleetclient.Change{Gone: id}); err != nil {
				return err
			}
		}
	}
	return k.write(out.Bytes())
}

func event(out *bytes.Buffer, name string, change fleetclient.Change) error {
	raw, err := json.Marshal(change)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "event: %s\ndata: %s\n\n", name, raw)
	return nil
}

// write sends at once.
func (k *call) write(raw []byte) error {
	control := http.NewResponseController(k.w)
	if err := control.SetWriteDeadline(time.Now().Add(watchWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := k.w.Write(raw); err != nil {
		return err
	}
	return control.Flush()
}
