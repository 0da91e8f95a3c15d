package fleetlink

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// newLight is a folder as the kernel has one for each lamp.
func newLight(t *testing.T, root, name, trigger, brightness string) string {
	dir := filepath.Join(root, "sys/class/leds", name)
	check(t, os.MkdirAll(dir, 0o755))
	for file, text := range map[string]string{"trigger": trigger, "brightness": brightness + "\n", "max_brightness": "255\n"} {
		if text != "" {
			check(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
		}
	}
	return dir
}

func TestLocatedBoxShowsItselfForAWhile(t *testing.T) {
	root := t.TempDir()
	disk := newLight(t, root, "disk", "none timer [disk-activity] heartbeat\n", "0")
	power := newLight(t, root, "power", "[none] timer\n", "255")
	plain := newLight(t, root, "plain", "", "7")
	check(t, os.MkdirAll(filepath.Join(root, "sys/class/leds/dead"), 0o755)) // tells nothing
	synctest.Test(t, func(t *testing.T) {
		changes := 0
		l := &Link{cfg: Config{Root: root, Changed: func() { changes++ }}}
		lamps := func() [3]string {
			return [3]string{readWord(disk, "brightness"), readWord(power, "brightness"), readWord(plain, "brightness")}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, tc := range []struct {
			name string
			args map[string]string
			span time.Duration
		}{
			{"a minute", nil, time.Minute},
			{"as long as was asked for", map[string]string{"seconds": "5"}, 5 * time.Second},
			{"until it is taken back", map[string]string{"seconds": "600"}, 0},
		} {
			newLight(t, root, "disk", "none timer [disk-activity] heartbeat\n", "0") // a real one says it so again
			begin, done := time.Now(), make(chan error, 1)
			go func() {
				_, err := l.locate(ctx, *newJob(fleetapi.KindLocate, tc.args))
				done <- err
			}()
			synctest.Wait()
			if lamps() != [3]string{"255", "255", "255"} || readWord(disk, "trigger") != "none" || l.showing != 1 {
				t.Errorf("%s: at first the lamps are %v, %q", tc.name, lamps(), readWord(disk, "trigger"))
			}
			time.Sleep(locateBlink)
			synctest.Wait()
			if lamps() != [3]string{"0", "0", "0"} {
				t.Errorf("%s: then they are %v", tc.name, lamps())
			}
			if tc.span == 0 {
				cancel()
			}
			err := <-done
			if (err != nil) != (tc.span == 0) || tc.span > 0 && time.Since(begin) != tc.span {
				t.Errorf("%s: it took %v, %v", tc.name, time.Since(begin), err)
			}
			if lamps() != [3]string{"0", "255", "7"} || readWord(disk, "trigger") != "disk-activity" || l.showing != 0 {
				t.Errorf("%s: in the end the lamps are %v, %q", tc.name, lamps(), readWord(disk, "trigger"))
			}
		}
		if changes != 6 {
			t.Errorf("the page was told %d times, want 6", changes)
		}
	})
}

func TestKernelLinesAreAsDmesgShowsThem(t *testing.T) {
	for _, tc := range []struct{ name, record, want string }{
		{"a line with properties", "6,339,5140900,-;NET: Registered\n SUBSYSTEM=net\n", "[    5.140900] NET: Registered\n"},
		{"a continued line", "4,7,12,c,more;a;b\n", "[    0.000012] a;b\n"},
		{"a record of another form", "something\n", "something\n"},
		{"no time", "6,1,x,-;text\n", "text\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := kernelLine(tc.record); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
