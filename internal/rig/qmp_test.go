package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// fakeQEMU is the other end of QMP: it answers each command with what answer
// returns, and ends when that is empty or the client hangs up.
func fakeQEMU(conn net.Conn, answer func(command, id string) string) error {
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}`+"\r\n"); err != nil {
		return err
	}
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var request struct {
			Execute string
			ID      json.Number
		}
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			return err
		}
		text := answer(request.Execute, request.ID.String())
		if text == "" {
			return nil
		}
		if _, err := io.WriteString(conn, text); err != nil {
			return err
		}
	}
	return nil
}

func openFake(t *testing.T, onEvent func(Event), answer func(command, id string) string) (*qmp, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- fakeQEMU(theirs, answer) }()
	q, err := openQMP(t.Context(), ours, onEvent)
	t.Cleanup(func() {
		if q != nil {
			q.close()
		}
		if err := <-ended; err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("fake QEMU: %v", err)
		}
	})
	return q, err
}

func ok(id string) string { return fmt.Sprintf(`{"return": {}, "id": %s}`+"\r\n", id) }

func noEvent(Event) {}

func TestQMPMatchesAnswersAndEvents(t *testing.T) {
	events := make(chan Event, 10)
	q, err := openFake(t, func(e Event) { events <- e }, func(command, id string) string {
		switch command {
		case "query-status":
			return `{"timestamp": {"seconds": 10, "microseconds": 20}, "event": "WATCHDOG", "data": {"action": "reset"}}` + "\r\n" +
				`{"timestamp": {"seconds": 11, "microseconds": 0}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}` + "\r\n" +
				`{"timestamp": {"seconds": 12, "microseconds": 0}, "event": "ODD", "data": {"reason": {"no": "string"}}}` + "\r\n" +
				`{"return": {"status": "running"}, "id": ` + id + "}\r\n"
		case "cont":
			return `{"error": {"class": "GenericError", "desc": "Resetting the Virtual Machine is required"}, "id": ` + id + "}\r\n"
		}
		return ok(id)
	})
	if err != nil {
		t.Fatal(err)
	}
	var status struct{ Status string }
	if err := q.execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("query-status = %+v, %v", status, err)
	}
	want := []Event{
		{Name: EventWatchdog, Reason: "reset", At: time.UnixMicro(10_000_020)},
		{Name: EventReset, Reason: "guest-reset", Guest: true, At: time.Unix(11, 0)},
		{Name: "ODD", At: time.Unix(12, 0)},
	}
	for _, w := range want {
		if got := <-events; got != w {
			t.Errorf("event %+v, want %+v", got, w)
		}
	}
	if err := q.execute(t.Context(), "cont", nil, nil); err == nil || !strings.Contains(err.Error(), "Resetting the Virtual Machine is required") {
		t.Errorf("cont = %v, want QEMU's own words", err)
	}
}

func TestQMPEndsWithQEMU(t *testing.T) {
	q, err := openFake(t, noEvent, func(command, id string) string {
		if command == "quit" {
			return ""
		}
		return ok(id)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.execute(t.Context(), "quit", nil, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("command without answer = %v", err)
	}
	<-q.done
	if err := q.execute(t.Context(), "cont", nil, nil); err == nil {
		t.Error("command after the end is accepted")
	}
}

func TestQMPStopsWaitingWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	q, err := openFake(t, noEvent, func(command, id string) string {
		if command == "stop" {
			cancel()
			return " "
		}
		return ok(id)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.execute(ctx, "stop", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("execute = %v", err)
	}
}

func TestQMPThatRefusesTheHandshakeIsClosed(t *testing.T) {
	_, err := openFake(t, noEvent, func(_, id string) string {
		return `{"error": {"class": "CommandNotFound", "desc": "no"}, "id": ` + id + "}\n"
	})
	if err == nil {
		t.Error("handshake succeeds")
	}
}
