package fleetlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func (l *Link) handlers() map[fleetapi.JobKind]uplink.Handler {
	return map[fleetapi.JobKind]uplink.Handler{
		fleetapi.KindReboot: {Run: l.reboot, Resume: l.rebooted},
		fleetapi.KindLocate: {Run: l.locate, Repeatable: true},
		fleetapi.KindBundle: {Run: l.bundle, Resume: l.bundleAgain, Repeatable: true},
	}
}

const rebootKey = "fleetlink/reboot" // in the journal: rebootRecord, of the newest job

type rebootRecord struct {
	Job    string `json:"job"`
	BootID string `json:"boot_id"` // in which the box was asked
}

// reboot asks for a new start. In the end it is ended by it.
func (l *Link) reboot(ctx context.Context, job fleetapi.Job) (uplink.Result, error) {
	if err := l.cfg.Journal.Put(rebootKey, rebootRecord{Job: job.ID, BootID: l.cfg.BootID}); err != nil {
		return uplink.Result{}, fmt.Errorf("the box cannot write down that it is about to start again: %w", err)
	}
	if err := l.cfg.Reboot(ctx); err != nil {
		return uplink.Result{}, err
	}
	<-ctx.Done()
	return uplink.Result{}, ctx.Err()
}

// rebooted tells whether the box has started again.
func (l *Link) rebooted(_ context.Context, job fleetapi.Job) (uplink.Result, error) {
	var asked rebootRecord
	if found, err := l.cfg.Journal.Get(rebootKey, &asked); err != nil || !found || asked.Job != job.ID {
		return uplink.Result{}, errors.New("the box does not know any more whether it started again")
	}
	if asked.BootID == l.cfg.BootID {
		return uplink.Result{}, errors.New("the box's software was started again, but not the box")
	}
	return uplink.Result{Detail: "The box started again."}, nil
}

const (
	locateFor   = time.Minute
	locateMost  = 10 * time.Minute
	locateBlink = 400 * time.Millisecond
)

// locate shows which box it is, on its screen and by its lights.
func (l *Link) locate(ctx context.Context, job fleetapi.Job) (uplink.Result, error) {
	span := locateFor
	if text := fleetapi.LabelValue(job.Args, "seconds"); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if span = time.Duration(n) * time.Second; err != nil || n == 0 || span > locateMost {
			return uplink.Result{}, fmt.Errorf("the argument seconds is %.20q: want 1 to %.0f", text, locateMost.Seconds())
		}
	}
	l.show(1)
	defer l.show(-1)
	lights := openLights(filepath.Join(l.cfg.Root, "sys/class/leds"))
	defer lights.restore()
	end := time.NewTimer(span)
	defer end.Stop()
	blink := time.NewTicker(locateBlink)
	defer blink.Stop()
	for on := true; ; on = !on {
		lights.shine(on)
		select {
		case <-blink.C:
		case <-end.C:
			return uplink.Result{
				Detail: fmt.Sprintf("The box showed itself for %.0f seconds.", span.Seconds()),
				Fields: fleetapi.Labels(map[string]string{"lights": strconv.Itoa(len(lights))}),
			}, nil
		case <-ctx.Done():
			return uplink.Result{}, ctx.Err()
		}
	}
}

// show counts those who want the box to show itself.
func (l *Link) show(more int) {
	l.mu.Lock()
	l.showing += more
	l.mu.Unlock()
	l.cfg.Changed()
}

// light is a lamp that the kernel lets programs switch, as it was.
type light struct {
	dir                 string
	most                string // its greatest brightness
	brightness, trigger string
}

type lights []light

// openLights takes the lamps of a folder into its hands. What cannot be had is
// left alone.
func openLights(dir string) lights {
	var all lights
	dirs, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		one := light{dir: dir, most: readWord(dir, "max_brightness"), brightness: readWord(dir, "brightness")}
		if _, rest, found := strings.Cut(readWord(dir, "trigger"), "["); found {
			one.trigger, _, _ = strings.Cut(rest, "]")
		}
		if one.most == "" || one.brightness == "" || one.trigger != "" && one.trigger != "none" && one.write("trigger", "none") != nil {
			continue
		}
		all = append(all, one)
	}
	return all
}

func (all lights) shine(on bool) {
	for _, one := range all {
		value := "0"
		if on {
			value = one.most
		}
		_ = one.write("brightness", value) // it may have been unplugged
	}
}

func (all lights) restore() {
	for _, one := range all {
		_ = one.write("brightness", one.brightness)
		if one.trigger != "" && one.trigger != "none" {
			_ = one.write("trigger", one.trigger)
		}
	}
}

func (one light) write(name, value string) error {
	return os.WriteFile(filepath.Join(one.dir, name), []byte(value), 0o644)
}

func readWord(dir, name string) string {
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
