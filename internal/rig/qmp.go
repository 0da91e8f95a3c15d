package rig

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Event is something QEMU told about the machine without being asked.
type Event struct {
	Name   string    // one of the Event constants, or another name of QEMU's
	Reason string    // for EventShutdown and EventReset the reason, for EventWatchdog the action
	Guest  bool      // the guest asked for it
	At     time.Time // by the host's clock
}

// The events worth waiting for.
const (
	EventShutdown  = "SHUTDOWN"  // the machine turns off; Reason such as guest-shutdown or host-qmp-quit
	EventReset     = "RESET"     // the processor starts anew, told once or twice each; Reason such as guest-reset or host-qmp-system-reset
	EventWatchdog  = "WATCHDOG"  // the hardware watchdog ran out; Reason is what it did
	EventPowerdown = "POWERDOWN" // the power button was pressed
)

// qmp speaks QEMU's machine protocol: JSON objects, one a line, our commands
// matched to its answers by id, its events in between.
type qmp struct {
	conn    io.ReadWriteCloser
	onEvent func(Event)   // called from the reader, one at a time
	done    chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	lastID  int                   // guarded by mu
	waiting map[int]chan qmpReply // guarded by mu; nil after the reader has ended
	readErr error                 // guarded by mu
}

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

type qmpMessage struct {
	qmpReply
	ID        *int            `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// event reads what the events named above have in common; others may carry
// anything.
func (m *qmpMessage) event() Event {
	var data struct {
		Reason string `json:"reason"`
		Action string `json:"action"`
		Guest  bool   `json:"guest"`
	}
	_ = json.Unmarshal(m.Data, &data) // what does not fit stays empty
	return Event{
		Name:   m.Event,
		Reason: cmp.Or(data.Reason, data.Action),
		Guest:  data.Guest,
		At:     time.UnixMicro(m.Timestamp.Seconds*1e6 + m.Timestamp.Microseconds),
	}
}

// openQMP takes over conn and makes the opening handshake.
func openQMP(ctx context.Context, conn io.ReadWriteCloser, onEvent func(Event)) (*qmp, error) {
	q := &qmp{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[int]chan qmpReply{}}
	go q.read()
	// The greeting needs no waiting for: QEMU reads our command after it.
	if err := q.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) read() {
	defer close(q.done)
	lines := bufio.NewReader(q.conn)
	for {
		line, err := lines.ReadBytes('\n')
		var msg qmpMessage
		if err == nil {
			err = json.Unmarshal(line, &msg)
		}
		if err != nil {
			q.mu.Lock()
			q.readErr = err
			for _, reply := range q.waiting {
				close(reply)
			}
			q.waiting = nil
			q.mu.Unlock()
			return
		}
		switch {
		case msg.Event != "":
			q.onEvent(msg.event())
		case msg.ID != nil:
			q.mu.Lock()
			reply := q.waiting[*msg.ID]
			delete(q.waiting, *msg.ID)
			q.mu.Unlock()
			if reply != nil {
				reply <- msg.qmpReply
			}
		}
	}
}

// execute sends one command and waits for its answer, which goes into result
// unless that is nil.
func (q *qmp) execute(ctx context.Context, command string, arguments, result any) error {
	reply := make(chan qmpReply, 1)
	q.mu.Lock()
	if q.waiting == nil {
		err := q.readErr
		q.mu.Unlock()
		return fmt.Errorf("send %s to QEMU: %w", command, err)
	}
	q.lastID++
	id := q.lastID
	q.waiting[id] = reply
	q.mu.Unlock()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fmt.Errorf("send %s to QEMU: %w", command, err)
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send %s to QEMU: %w", command, err)
	}
	select {
	case answer, ok := <-reply:
		switch {
		case !ok:
			return fmt.Errorf("wait for QEMU's answer to %s: %w", command, io.ErrUnexpectedEOF)
		case answer.Error != nil:
			return fmt.Errorf("run %s in QEMU: %w", command, errors.New(answer.Error.Desc))
		case result != nil:
			if err := json.Unmarshal(answer.Return, result); err != nil {
				return fmt.Errorf("read QEMU's answer to %s: %w", command, err)
			}
		}
		return nil
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		return fmt.Errorf("wait for QEMU's answer to %s: %w", command, context.Cause(ctx))
	}
}

// close ends the conversation and waits for the reader.
func (q *qmp) close() {
	q.conn.Close()
	<-q.done
}
