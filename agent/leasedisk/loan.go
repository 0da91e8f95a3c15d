package leasedisk

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
)

// restPart is the part of the reserve that stays free however much lies in it:
// for journal, spool and updates.
const restPart = 8

// lookAgain is how often somebody who waits for a loan looks whether there is
// room: what others delete is not told.
const lookAgain = 5 * time.Second

// asker waits for a loan.
type asker struct{ lease lease.Key }

// Borrow lends bytes of Dir's file system to something that is no disk, an OCI
// image on its way. As long as the loan lasts nobody else is promised them,
// neither a disk nor another loan; what was written stays written when it is
// given back, and counts as what lies there. Promised says how many bytes all
// leases together were promised, those without a disk as well.
//
// A lease has one loan at a time. While there is too little because of other loans
// it waits, and the lease whose last loan is longest ago comes first. When there
// are none it lends what there is. Its error is of kind [croft.KindNoSpace] if that is nothing.
//
// The caller calls giveBack, once or more often.
func (s *Store) Borrow(ctx context.Context, key lease.Key, bytes int64, promised func() int64) (granted int64, giveBack func(), err error) {
	if bytes <= 0 {
		return 0, nil, usage("loan of %d bytes", bytes)
	}
	me := &asker{key}
	s.mu.Lock()
	s.line = append(s.line, me)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.line = slices.DeleteFunc(s.line, func(a *asker) bool { return a == me })
		s.stirLocked()
	}()
	for {
		sum := promised()
		s.mu.Lock()
		stirred := s.stirred
		granted, err = s.lendLocked(me, bytes, sum)
		s.mu.Unlock()
		switch {
		case err != nil:
			return 0, nil, fmt.Errorf("lend room of the disk to lease %s: %w", key, err)
		case granted > 0:
			return granted, sync.OnceFunc(func() { s.takeBack(key, granted) }), nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		case <-stirred:
		case <-time.After(lookAgain):
		}
	}
}

// lendLocked is how much an asker gets now; 0: it has to wait.
func (s *Store) lendLocked(me *asker, bytes, promised int64) (int64, error) {
	var first *asker
	for _, a := range s.line { // of several the one that came first
		if !s.borrowing[a.lease] && (first == nil || s.turns[a.lease] < s.turns[first.lease]) {
			first = a
		}
	}
	if first != me {
		return 0, nil
	}
	m, err := s.measureLocked()
	if err != nil {
		return 0, err
	}
	spare := m.free - s.lent - m.rest - m.owed
	if unmade := promised - m.made; unmade > 0 {
		spare -= unmade + unmade>>(overheadShift-1) + sizeStep // more than Create finds missing: it rounds
	}
	switch {
	case spare < bytes && s.lent > 0:
		return 0, nil
	case spare <= 0:
		return 0, &croft.Error{Kind: croft.KindNoSpace, Err: fmt.Errorf("all that is free was promised to leases, and %d bytes more", -spare), Remedy: "end a lease"}
	}
	granted := min(bytes, spare)
	s.turn++
	s.lent, s.turns[me.lease], s.borrowing[me.lease] = s.lent+granted, s.turn, true
	return granted, nil
}

func (s *Store) takeBack(key lease.Key, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent -= bytes
	delete(s.borrowing, key)
	s.stirLocked()
}

// stirLocked wakes all that wait for a loan.
func (s *Store) stirLocked() {
	close(s.stirred)
	s.stirred = make(chan struct{})
}

// measured is what Dir's file system holds, in bytes.
type measured struct {
	free  int64
	other int64 // taken by what is no disk
	rest  int64 // that stay free whatever happens
	made  int64 // sizes of all disks
	owed  int64 // of those, what they may still write
	disks int
}

func (s *Store) measureLocked() (m measured, err error) {
	free, used, err := s.sys.space(s.cfg.Dir)
	if err != nil {
		return m, err
	}
	m.free, m.other, m.rest = free, used, s.cfg.Reserve/restPart
	keys, err := s.keys()
	if err != nil {
		return m, err
	}
	m.disks = len(keys)
	for key := range s.promised {
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	for _, key := range keys {
		size, allocated, err := s.sys.allocated(s.image(key))
		if err != nil {
			return m, err
		}
		d, err := s.look(key)
		if err != nil {
			return m, err
		}
		size = max(size, d.Size, s.promised[key]) // the image may be behind
		m.made += size
		m.owed += max(0, size+size>>overheadShift-allocated)
		m.other -= allocated
	}
	m.other = max(m.other, 0)
	return m, nil
}

// roomLocked is what may still be promised to leases, and how many have a disk.
func (s *Store) roomLocked() (room int64, disks int, err error) {
	m, err := s.measureLocked()
	if err != nil {
		return 0, 0, err
	}
	// Loans count as written: within the reserve they change nothing.
	keep := max(s.cfg.Reserve-m.other-s.lent, m.rest)
	room = m.free - s.lent - keep - m.owed
	room -= max(room, 0) >> overheadShift
	return max(room/sizeStep*sizeStep, 0), m.disks, nil
}
