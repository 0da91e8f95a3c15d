package ingress

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAWebsocketOnWhichNothingFlowsIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		u := newUpgraded(there, func(error) {})
		for range 3 {
			go func() { _, _ = here.Write([]byte("x")) }()
			time.Sleep(upgradedIdle - time.Second)
			if _, err := u.Read(make([]byte, 1)); err != nil {
				t.Fatalf("a websocket that is used = %v", err)
			}
		}
		begin := time.Now()
		if _, err := u.Read(make([]byte, 1)); err == nil || time.Since(begin) != upgradedIdle {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		u.Close()
	})
}

func TestAnAnswerThatBeganIsNotCutByTheTimesOfItsRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := 0
		a := &attempt{read: time.Second, send: time.Second}
		a.reading, a.sending = time.AfterFunc(a.read, func() { late++ }), time.AfterFunc(a.send, func() { late++ })
		if err := a.ask(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // the client takes its time
		a.answer()
		a.pass(false) // and its part comes after the answer began
		a.pass(true)
		time.Sleep(time.Minute)
		if late != 0 {
			t.Errorf("%d timers ran", late)
		}
	})
}

func TestABodyIsReadByOneTryOnly(t *testing.T) {
	t.Parallel()
	try := func() *sentBody {
		a := &attempt{reading: time.NewTimer(time.Hour), sending: time.NewTimer(time.Hour)}
		return &sentBody{strings.NewReader("body"), a}
	}
	b := try()
	if !b.a.unread() {
		t.Error("a body that nobody read is not free for another try")
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errTaken) {
		t.Errorf("a try that was given up reads: %v", err)
	}
	b = try()
	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if b.a.unread() {
		t.Error("a body that was begun is sent again")
	}
	if rest, err := io.ReadAll(b); string(rest) != "ody" || err != nil {
		t.Errorf("the try that goes on reads %q, %v", rest, err)
	}
}

func FuzzHostOf(f *testing.F) {
	for _, seed := range []string{"a.example", "A.Example:80", "[::1]:80", "a.example.", "a:b:c", "", "."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host := hostOf(s)
		if strings.ToLower(host) != host {
			t.Errorf("hostOf(%q) = %q", s, host)
		}
		if !hostForm.MatchString(host) {
			return
		}
		for _, same := range []string{host + ".", strings.ToUpper(host), host + ":443", host + ".:80", host + ":"} {
			if got := hostOf(same); got != host {
				t.Errorf("hostOf(%q) = %q, want %q", same, got, host)
			}
		}
	})
}
