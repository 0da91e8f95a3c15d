package leasedisk

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

func promise(bytes int64) func() int64 { return func() int64 { return bytes } }

// place writes bytes of something that is no disk.
func (f *fake) place(bytes int64) { f.room, f.others = f.room-bytes, f.others+bytes }

func TestWhatLiesInTheReserveLeavesTheRoomAsItIs(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 1000 << 20
	w.cfg.Reserve = 400 << 20
	s := w.store(w.sys)
	room := func() int64 {
		t.Helper()
		room, err := s.Room()
		must(t, err)
		return room
	}
	begin := room()
	if begin < 595<<20 || begin > 600<<20 {
		t.Fatalf("room is %d", begin)
	}
	f.place(350 << 20) // all but the eighth that stays free
	if got := room(); got != begin {
		t.Errorf("with images in the reserve room is %d, was %d", got, begin)
	}
	must(t, s.Create(t.Context(), keyA, begin))
	must(t, s.Remove(t.Context(), keyA))
	f.place(100 << 20)
	if got := room(); got > begin-99<<20 || got < begin-101<<20 {
		t.Errorf("with images beyond the reserve room is %d, was %d", got, begin)
	}
}

func TestLoansLeaveWhatWasPromised(t *testing.T) {
	for _, tc := range []struct {
		name     string
		disk     int64 // of keyA, made before
		promised int64 // to all leases
		want     int64 // most that may be lent of 1000 MiB, with 400 in reserve, in MiB
	}{
		{"nobody has anything: all but an eighth of the reserve", 0, 0, 950},
		{"a lease was promised a disk and has none yet", 0, 500 << 20, 450},
		{"it has its disk, and wrote nothing", 500 << 20, 500 << 20, 450},
		{"a disk that nobody was promised counts as well", 500 << 20, 0, 450},
		{"one lease has its disk, another none yet", 200 << 20, 500 << 20, 450},
		{"all that is let is promised", 0, 595 << 20, 355},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, f := fakeWorld(t)
			f.room = 1000 << 20
			w.cfg.Reserve = 400 << 20
			s := w.store(w.sys)
			if tc.disk > 0 {
				must(t, s.Create(t.Context(), keyA, tc.disk))
			}
			granted, giveBack, err := s.Borrow(t.Context(), keyB, 1<<40, promise(tc.promised))
			must(t, err)
			if granted > tc.want<<20 || granted < (tc.want-8)<<20 {
				t.Errorf("%d MiB are lent, want %d", granted>>20, tc.want)
			}
			// As much as is lent is written. What was promised still can be made.
			f.place(granted)
			giveBack()
			if more := tc.promised - tc.disk; more > 0 {
				must(t, s.Create(t.Context(), keyB, more))
			}
		})
	}
}

func TestALoanIsNotPromisedToADisk(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 1000 << 20
	w.cfg.Reserve = 400 << 20
	s := w.store(w.sys)
	_, giveBack, err := s.Borrow(t.Context(), keyB, 900<<20, promise(0))
	must(t, err)
	wantKind(t, s.Create(t.Context(), keyA, 500<<20), croft.KindNoSpace)
	giveBack()
	giveBack() // changes nothing
	must(t, s.Create(t.Context(), keyA, 500<<20))
	if s.lent != 0 {
		t.Errorf("%d bytes are lent to nobody", s.lent)
	}
}

func TestAFullDiskLendsNothing(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 10 << 20
	w.cfg.Reserve = 400 << 20
	s := w.store(w.sys)
	_, _, err := s.Borrow(t.Context(), keyA, 1, promise(0))
	wantKind(t, err, croft.KindNoSpace)
	if len(s.line) != 0 {
		t.Error("who was refused still stands in line")
	}
	_, _, err = s.Borrow(t.Context(), keyA, 0, promise(0))
	wantKind(t, err, croft.KindUsage)
}

// Many borrow at once, and write all that they may. Nothing that was promised to
// a disk is eaten at any moment.
func TestManyLoansAtOnceShareWhatIsFree(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 1000 << 20
	w.cfg.Reserve = 400 << 20
	const promised = 500 << 20
	synctest.Test(t, func(t *testing.T) {
		s := w.store(w.sys)
		var wg sync.WaitGroup
		most, at := 0, 0
		for i := range 16 {
			key := lease.Key(fmt.Sprintf("l000000000%x", i/4))
			wg.Go(func() {
				granted, giveBack, err := s.Borrow(t.Context(), key, 100<<20, promise(promised))
				if err != nil {
					t.Error(err)
					return
				}
				s.mu.Lock() // the fake's
				at++
				most = max(most, at)
				f.place(granted)
				if f.room < promised {
					t.Errorf("%d MiB are free, %d are promised", f.room>>20, promised>>20)
				}
				s.mu.Unlock()
				time.Sleep(time.Minute)
				s.mu.Lock()
				at--
				f.place(-granted) // its lease ended
				s.mu.Unlock()
				giveBack()
			})
		}
		wg.Wait()
		if most < 2 {
			t.Error("never two at once, though there is room")
		}
		if s.lent != 0 || len(s.line) != 0 {
			t.Errorf("afterwards %d bytes are lent, %d wait", s.lent, len(s.line))
		}
	})
}

func TestLeasesTakeTurns(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 1000 << 20
	s := w.store(w.sys)
	synctest.Test(t, func(t *testing.T) {
		s.stirred = make(chan struct{}) // of this bubble
		var wg sync.WaitGroup
		var order []lease.Key
		ask := func(key lease.Key) {
			wg.Go(func() {
				_, giveBack, err := s.Borrow(t.Context(), key, 800<<20, promise(0))
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, key) // one at a time: there is room for one
				time.Sleep(time.Minute)
				giveBack()
			})
			synctest.Wait()
		}
		for range 4 {
			ask(keyA)
		}
		ask(keyB) // came last, and has had nothing yet
		ask(keyB)
		wg.Wait()
		if want := []lease.Key{keyA, keyB, keyA, keyB, keyA, keyA}; !slices.Equal(order, want) {
			t.Errorf("the order is %v, want %v", order, want)
		}
	})
}

func TestALeaseHasOneLoanAtATime(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 1000 << 20
	s := w.store(w.sys)
	synctest.Test(t, func(t *testing.T) {
		s.stirred = make(chan struct{}) // of this bubble
		_, giveBack, err := s.Borrow(t.Context(), keyA, 100<<20, promise(0))
		must(t, err)
		second := make(chan func())
		go func() {
			_, back, err := s.Borrow(t.Context(), keyA, 100<<20, promise(0))
			must(t, err)
			second <- back
		}()
		synctest.Wait()
		_, back, err := s.Borrow(t.Context(), keyB, 100<<20, promise(0)) // others do not wait for that
		must(t, err)
		back()
		select {
		case <-second:
			t.Error("one lease has two loans")
		default:
		}
		giveBack()
		(<-second)()
	})
}

func TestWhoGivesUpMakesWay(t *testing.T) {
	w, f := fakeWorld(t)
	f.room = 1000 << 20
	s := w.store(w.sys)
	synctest.Test(t, func(t *testing.T) {
		s.stirred = make(chan struct{}) // of this bubble
		_, giveBack, err := s.Borrow(t.Context(), keyA, 800<<20, promise(0))
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		gone, got := make(chan error), make(chan error)
		go func() {
			_, _, err := s.Borrow(ctx, keyB, 900<<20, promise(0))
			gone <- err
		}()
		synctest.Wait()
		go func() {
			_, back, err := s.Borrow(t.Context(), "lcccccccccc", 100<<20, promise(0)) // would fit beside the first
			if err == nil {
				back()
			}
			got <- err
		}()
		synctest.Wait()
		select {
		case err := <-got:
			t.Errorf("a small loan went ahead of a large one, which so might never come: %v", err)
		default:
		}
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
		must(t, <-got)
		giveBack()
	})
}
