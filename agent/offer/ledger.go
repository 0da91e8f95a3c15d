package offer

import "sync"

// Ledger is what of a box is taken: the room of each order that was bid on or is
// leased, and memory lent on top of that. It lives in memory. The zero value is
// empty; any goroutine may use it.
type Ledger struct {
	mu   sync.Mutex
	held map[string]Room  // guarded by mu; by order
	lent map[string]int64 // guarded by mu; bytes of memory, by who has borrowed them
}

// Used is the sum of all that is taken.
func (l *Ledger) Used() Room {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.usedLocked()
}

func (l *Ledger) usedLocked() Room {
	var sum Room
	for _, r := range l.held {
		sum = sum.Plus(r)
	}
	for _, bytes := range l.lent {
		sum.Memory += bytes
	}
	return sum
}

// Reserve holds a room for an order that has none yet. False: it is not free, and
// nothing has changed.
func (l *Ledger) Reserve(order string, r, capacity Room) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Lack(l.usedLocked(), capacity) != "" {
		return false
	}
	l.holdLocked(order, r)
	return true
}

// Hold makes a room that of an order, free or not: it is on the chain already.
func (l *Ledger) Hold(order string, r Room) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holdLocked(order, r)
}

func (l *Ledger) holdLocked(order string, r Room) {
	if l.held == nil {
		l.held = map[string]Room{}
	}
	l.held[order] = r
}

// Free gives an order's room back.
func (l *Ledger) Free(order string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, order)
}

// Lend makes bytes of memory all that somebody has borrowed, 0 included. False:
// there is too little, and nothing has changed.
func (l *Ledger) Lend(who string, bytes int64, capacity Room) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	had := l.lent[who]
	delete(l.lent, who)
	fits := bytes <= 0 || (Room{Memory: bytes}).Lack(l.usedLocked(), capacity) == ""
	if !fits {
		bytes = had
	}
	if bytes > 0 {
		if l.lent == nil {
			l.lent = map[string]int64{}
		}
		l.lent[who] = bytes
	}
	return fits
}
