package frame

import (
	"context"
	"errors"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/health"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// Doctor finds out how boxes are. Whether somebody may know it is for the caller.
type Doctor struct {
	Devices *device.Store
	Series  *timeseries.Store
}

// Exam is what was found out about a box. Of readings older than ten minutes there
// is nothing in it.
type Exam struct {
	health.Report
	Readings map[health.Gauge]float64
	Leases   int     // it runs; -1: not known
	Busy     float64 // share of its processor, 0 to 1; -1: not known
}

// questions are answered with one value for each box.
var questions = map[health.Gauge]string{
	health.Hottest:      `max by (device) (croft_temperature_celsius)`,
	health.DiskUsed:     `max by (device) (1 - croft_filesystem_bytes{mount="/perm",kind="available"} / ignoring (kind) croft_filesystem_bytes{mount="/perm",kind="size"})`,
	health.Throttled:    `sum by (device) (increase(croft_throttled_total[1h]))`,
	health.Restarts:     `max by (device) (resets(croft_agent_cpu_seconds_total{mode="user"}[1h]))`,
	health.ClockOff:     `max by (device) (-croft_clock_offset_seconds)`,
	health.PermReadOnly: `max by (device) (croft_filesystem_readonly{mount="/perm"})`,
	health.MemoryFree:   `min by (device) (croft_memory_bytes{kind="available"} / ignoring (kind) croft_memory_bytes{kind="total"})`,
	askLeases:           `count by (device) (count by (device, lease) (croft_lease_memory_bytes))`,
	askBusy:             `1 - sum by (device) (rate(croft_cpu_seconds_total{mode=~"idle|iowait"}[5m])) / sum by (device) (rate(croft_cpu_seconds_total[5m]))`,
}

const (
	askLeases health.Gauge = "leases"
	askBusy   health.Gauge = "busy"
)

// Examine judges boxes, at this moment.
func (d Doctor) Examine(ctx context.Context, boxes []device.Box) (map[croft.DeviceID]Exam, error) {
	scope, now := timeseries.Scope{}, time.Now()
	found := map[croft.DeviceID]map[health.Gauge]float64{}
	for _, box := range boxes {
		scope.Devices = append(scope.Devices, box.ID)
		found[box.ID] = map[health.Gauge]float64{}
	}
	exams := map[croft.DeviceID]Exam{}
	if len(boxes) == 0 {
		return exams, nil
	}
	for gauge, question := range questions {
		answer, err := d.Series.Instant(ctx, scope, question, now)
		if err != nil {
			return nil, errors.Join(errors.New("ask how boxes are"), err)
		}
		for _, one := range answer {
			if of, ok := found[croft.DeviceID(one.Labels["device"])]; ok && len(one.Points) > 0 {
				of[gauge] = one.Points[0].Value
			}
		}
	}
	for _, box := range boxes {
		readings := found[box.ID]
		exam := Exam{Readings: readings, Leases: -1, Busy: -1}
		if n, ok := readings[askLeases]; ok {
			exam.Leases = int(n)
		} else if _, alive := readings[health.MemoryFree]; alive {
			exam.Leases = 0
		}
		if busy, ok := readings[askBusy]; ok {
			exam.Busy = min(max(busy, 0), 1)
		}
		c := health.Case{
			Now: now, Known: box.Presence != "", Online: box.Online, Seen: box.Seen, Farewell: box.Presence == fleetapi.Lost, Synced: box.Synced,
			Retired: box.Claim.State == ownership.Retired, CertificateUntil: box.CertificateUntil, Readings: readings, Alerts: box.Alerts,
		}
		if !box.Online && c.Known {
			var err error
			if c.LiveNeighbours, c.SilentNeighbours, err = d.Devices.Neighbours(ctx, box.ID); err != nil {
				return nil, err
			}
		}
		exam.Report = health.Of(c)
		exams[box.ID] = exam
	}
	return exams, nil
}
