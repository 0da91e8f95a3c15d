package db

import (
	"context"
	"sync"
)

// MaxPayload is how long a notification's payload may be, in bytes: PostgreSQL
// carries 7,999, of which the topic takes its part.
const MaxPayload = 7000

// maxTopic is how long a topic may be, in bytes.
const maxTopic = 200

// backlog is how many payloads wait for one listener.
const backlog = 16

// note is one notification.
type note struct{ topic, payload string }

// bus hands notifications to the listeners of this process. It never waits for
// one of them.
type bus struct {
	mu        sync.Mutex
	listeners map[*listener]struct{} // guarded by mu; nil after close
}

type listener struct {
	topic string
	out   chan string
}

func newBus() *bus { return &bus{listeners: make(map[*listener]struct{})} }

func (b *bus) listen(ctx context.Context, topic string) <-chan string {
	l := &listener{topic: topic, out: make(chan string, backlog)}
	b.mu.Lock()
	if b.listeners == nil {
		close(l.out)
	} else {
		b.listeners[l] = struct{}{}
	}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, ok := b.listeners[l]; ok {
			delete(b.listeners, l)
			close(l.out)
		}
	})
	return l.out
}

// tell gives the note to those who listen for its topic.
func (b *bus) tell(n note) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		if l.topic == n.topic {
			l.give(n.payload)
		}
	}
}

// tellAll tells every listener to read everything again.
func (b *bus) tellAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		l.give("")
	}
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		close(l.out)
	}
	b.listeners = nil
}

// give hands over the payload, or, if the listener has not kept up, the empty
// one in place of all that waits. The bus's lock is held, so nobody else gives.
func (l *listener) give(payload string) {
	select {
	case l.out <- payload:
		return
	default:
	}
	for {
		select {
		case <-l.out:
			continue
		default:
		}
		l.out <- "" // room was made, and only the holder of the lock fills it
		return
	}
}
