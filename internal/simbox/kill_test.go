package simbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// victim is what the process of a box that will be killed needs to know.
type victim struct {
	Dir, Fleet, Root string
	From             int // number of its first event
}

const (
	victimEnv  = "CROFT_SIMBOX_VICTIM"
	victimSays = 40 // events of one life
)

func TestMain(m *testing.M) {
	if raw := os.Getenv(victimEnv); raw != "" {
		fmt.Println("end", live([]byte(raw)))
		os.Exit(1)
	}
	if raw := os.Getenv(throngEnv); raw != "" {
		if err := measure([]byte(raw)); err != nil {
			fmt.Println("end", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// live is a victim's life. It tells when its events are in the spool, and then
// who it is; only then its link works.
func live(raw []byte) error {
	var v victim
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	roots, err := enroll.ParseRoots([]byte(v.Root))
	if err != nil {
		return err
	}
	link := NewLink(nil)
	link.Silence()
	b, err := Open(Config{Dir: v.Dir, Fleet: Fleet{URL: v.Fleet, Roots: roots}, Link: link})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	look := time.NewTicker(time.Millisecond)
	waiting := 0
	for n := 0; ; {
		select {
		case err := <-ended:
			return err
		case <-look.C:
		}
		s := b.Status()
		if s.Boots == 0 {
			continue
		}
		if n == 0 {
			waiting = s.Waiting // of lives before
		}
		if n < victimSays {
			b.Event("tick", fleetapi.SeverityWarning, "", map[string]string{"n": fmt.Sprint(v.From + n)})
			n++
		} else if s.Waiting >= waiting+victimSays {
			fmt.Println(b.Device())
			link.Mend()
			return <-ended
		}
	}
}

// soon waits for what happens outside of any bubble.
func soon(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(2 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestKillsLoseAndDoubleNothing(t *testing.T) {
	w := newWorld(t, nil, dbtest.URL(t, dbtest.SQLite))
	v := victim{Dir: t.TempDir(), Fleet: w.fleet().URL, Root: string(w.authority.RootCertificate())}
	said := map[string]bool{}
	var boots []string
	const lives = 6
	for i := range lives {
		v.From = i * victimSays
		for n := range victimSays {
			said[fmt.Sprint(v.From+n)] = true
		}
		raw, err := json.Marshal(v)
		check(t, err)
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), victimEnv+"="+string(raw))
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		lines := bufio.NewScanner(out)
		if !lines.Scan() {
			t.Fatal("the box ended before it was safe")
		}
		id := must(croft.ParseDeviceID(lines.Text()))(t)
		// It is killed when some of what it said is stored; the last when all is.
		want := len(w.ticks(id)) + 1 + rand.IntN(victimSays-1)
		if i == lives-1 {
			want = len(said)
		}
		soon(t, "its events come", func() bool { return len(w.ticks(id)) >= want })
		boots = append(boots, w.box(id).BootID)
		check(t, cmd.Process.Kill())
		if err := cmd.Wait(); err == nil {
			t.Fatal("the box was not killed")
		}
		for n, times := range w.ticks(id) {
			if times != 1 || !said[n] {
				t.Errorf("event %s is stored %d times", n, times)
			}
		}
	}
	for i := range boots[1:] {
		if boots[i] == boots[i+1] {
			t.Errorf("boots %v", boots)
		}
	}
}

// ticks is the stored events of a box that the fleet may not know yet.
func (w *world) ticks(id croft.DeviceID) map[string]int {
	if known, err := w.devices.Known(w.t.Context(), []croft.DeviceID{id}); err != nil || !known[id] {
		return nil
	}
	return w.events(id, "tick")
}
