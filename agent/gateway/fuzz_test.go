package gateway

import (
	"io"
	"net/url"
	"slices"
	"testing"
)

func FuzzQueries(f *testing.F) {
	for _, seed := range []string{
		"service=web&podIndex=0&tty=1&stdin=0&cmd0=sh&cmd1=-c&cmd2=ls", "follow=true&service=a,b&tail=-1", "services=web&tail=9223372036854775807",
		"podIndex=-1", "cmd0=%00&cmd1", "service=,&follow=2", "tail=+1",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		v, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		if e, _, err := parseExec(v); err == nil && (e.Service == "" || len(e.Command) == 0 || e.Index < 0 || e.Index > maxPodIndex) {
			t.Errorf("parseExec(%q) = %+v", raw, e)
		}
		if q, err := parseStreamQuery(v); err == nil && (q.tail < -1 || len(q.services) > maxServiceNames || slices.Contains(q.services, "")) {
			t.Errorf("parseStreamQuery(%q) = %+v", raw, q)
		}
	})
}

// FuzzShellFrames cuts data into frames: each begins with its length.
func FuzzShellFrames(f *testing.F) {
	for _, seed := range []string{"\x02\x68a\x01\x68\x02\x68b", "\x05\x69\x00\x50\x00\x18", "\x01\x07", "\x00", "\x02\x69\x00"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, w := io.Pipe()
		read := make(chan int64, 1)
		go func() {
			n, _ := io.Copy(io.Discard, r)
			read <- n
		}()
		in := &input{resize: make(chan Window, 1), pipe: w}
		var sent int64
		ended := false
		for len(data) > 0 {
			n := min(int(data[0]), len(data)-1)
			frame := data[1 : 1+n]
			data = data[1+n:]
			err := in.take(frame)
			good := n > 0 && (frame[0] == frameStdin || frame[0] == frameResize && n == 5)
			if (err == nil) != good {
				t.Fatalf("take(%q) = %v", frame, err)
			}
			if good && frame[0] == frameStdin && !ended {
				sent += int64(n - 1)
				ended = n == 1
			}
		}
		in.close()
		if got := <-read; got != sent {
			t.Errorf("the program got %d of %d bytes", got, sent)
		}
	})
}
