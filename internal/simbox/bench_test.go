package simbox

import (
	"testing"
	"time"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func BenchmarkMessage(b *testing.B) {
	now := time.Now()
	m, size := newModel(7, now.Add(-time.Hour)), 0
	boot := newBootID()
	for b.Loop() {
		batch := m.batch(now, 6, 10*time.Second)
		batch.Epoch, batch.Seq, batch.BootID = 1, 1, boot
		raw, err := fleetapi.Encode(batch)
		check(b, err)
		size = len(raw)
		now = now.Add(time.Minute)
	}
	b.ReportMetric(float64(size), "bytes/message")
}
