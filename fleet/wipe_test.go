package fleet

import (
	"net"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

// open makes a fleet that does not run.
func open(t *testing.T, dir string) *Fleet {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	f, err := New(t.Context(), Config{Dir: dir, Origin: "http://localhost", Web: listen(), Device: listen(), Broker: listen(), Hosts: []string{"127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReadingsOfAFormerOwnersTimeGoAndDoNotComeBack(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	id, other := croft.DeviceIDFromDigest([32]byte{1}), croft.DeviceIDFromDigest([32]byte{2})
	now := time.Now().Truncate(time.Second)
	left := now.Add(-10 * time.Minute)
	bring := func(id croft.DeviceID, at time.Time, value float64) {
		t.Helper()
		batch := &fleetapi.Batch{Synced: true, Times: []time.Time{at}, Series: []fleetapi.Series{{Name: "croft_load1", Values: []float64{value}}}}
		if err := f.sink.Batch(t.Context(), id, batch); err != nil {
			t.Fatal(err)
		}
	}
	want := func(id croft.DeviceID, values ...float64) {
		t.Helper()
		found, err := f.series.Range(t.Context(), timeseries.Scope{Devices: []croft.DeviceID{id}}, "croft_load1", now.Add(-time.Hour), now, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var got []float64
		for _, one := range found {
			for _, p := range one.Points {
				if n := len(got); n == 0 || got[n-1] != p.Value {
					got = append(got, p.Value)
				}
			}
		}
		if len(got) != len(values) {
			t.Fatalf("readings %v, want %v", got, values)
		}
		for i := range got {
			if got[i] != values[i] {
				t.Errorf("readings %v, want %v", got, values)
			}
		}
	}

	bring(id, left.Add(-20*time.Minute), 1)
	bring(other, left.Add(-20*time.Minute), 1)
	if err := f.db.Write(t.Context(), func(tx *db.Tx) error { return f.wiper.order(tx, id, left) }); err != nil {
		t.Fatal(err)
	}
	if err := f.wiper.carryOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(id)
	want(other, 1)

	bring(id, left.Add(-15*time.Minute), 2) // it was without a network when its owner gave it up
	bring(id, left.Add(time.Minute), 3)
	want(id, 3)

	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	f = open(t, dir)
	defer func() {
		if err := f.close(); err != nil {
			t.Error(err)
		}
	}()
	bring(id, left.Add(-5*time.Minute), 4)
	bring(id, left.Add(2*time.Minute), 5)
	want(id, 3, 5)
}
