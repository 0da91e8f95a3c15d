package simbox

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// pathBundles is where a box puts a support bundle, on the fleet's device port:
// PUT of a zip, under the job's id.
const pathBundles = "/v1/bundles/"

// handlers do what the fleet asks of a box.
func (b *Box) handlers() map[fleetapi.JobKind]uplink.Handler {
	return map[fleetapi.JobKind]uplink.Handler{
		fleetapi.KindReboot: {
			Run: func(ctx context.Context, _ fleetapi.Job) (uplink.Result, error) {
				select {
				case b.reboot <- struct{}{}:
				default: // it is due already
				}
				<-ctx.Done()
				return uplink.Result{}, ctx.Err() // goes on after the reboot
			},
			Resume: func(context.Context, fleetapi.Job) (uplink.Result, error) {
				return uplink.Result{Detail: "The box was started again."}, nil
			},
		},
		fleetapi.KindLocate: {Repeatable: true, Run: func(context.Context, fleetapi.Job) (uplink.Result, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.located++
			return uplink.Result{Detail: "The box shows who it is."}, nil
		}},
		fleetapi.KindBundle: {Repeatable: true, Run: b.sendBundle},
		fleetapi.KindBenchmark: {Run: func(ctx context.Context, _ fleetapi.Job) (uplink.Result, error) {
			t := time.NewTimer(3 * time.Second)
			defer t.Stop()
			select {
			case <-t.C:
			case <-ctx.Done():
				return uplink.Result{}, ctx.Err()
			}
			return uplink.Result{Detail: "The box was measured.", Fields: fleetapi.Labels(map[string]string{
				"cpu_score": fmt.Sprint(1200 + b.cfg.Number%100), "method": "simulated/1",
			})}, nil
		}},
	}
}

// sendBundle puts together what support wants to know and sends it.
func (b *Box) sendBundle(ctx context.Context, job fleetapi.Job) (uplink.Result, error) {
	bundle, err := b.bundle()
	if err != nil {
		return uplink.Result{}, err
	}
	b.mu.Lock()
	line := b.line
	b.mu.Unlock()
	if err := line.Upload(ctx, pathBundles+job.ID, "application/zip", bytes.NewReader(bundle), int64(len(bundle))); err != nil {
		return uplink.Result{}, err
	}
	return uplink.Result{Detail: "The support bundle was sent.", Fields: fleetapi.Labels(map[string]string{"bytes": fmt.Sprint(len(bundle))})}, nil
}

// bundle is a small zip like that of a box.
func (b *Box) bundle() ([]byte, error) {
	status := b.Status()
	about, err := json.MarshalIndent(map[string]any{
		"device": b.Device(), "release": b.cfg.Release, "board": b.cfg.Board, "boot": status.BootID, "boots": status.Boots,
		"waiting": status.Waiting, "dropped": status.Dropped,
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, f := range []struct{ name, text string }{
		{"about.json", string(about)},
		{"log.txt", "This box is simulated. A real one puts its log here.\n"},
	} {
		w, err := z.Create(f.name)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte(f.text)); err != nil {
			return nil, err
		}
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
