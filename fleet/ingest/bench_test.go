package ingest_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/ingest"
)

// void takes everything at once.
type void struct{ *sink }

func (void) Batch(context.Context, croft.DeviceID, *fleetapi.Batch) error { return nil }
func (void) Event(context.Context, croft.DeviceID, *fleetapi.Event) error { return nil }

// raw is a connection that costs the test little: MQTT by hand over real TLS.
type raw struct{ *tls.Conn }

func packet(kind byte, body ...[]byte) []byte {
	n := 0
	for _, b := range body {
		n += len(b)
	}
	out := []byte{kind}
	for more := true; more; {
		digit := byte(n % 128)
		if n /= 128; n > 0 {
			digit |= 128
		}
		out, more = append(out, digit), n > 0
	}
	for _, b := range body {
		out = append(out, b...)
	}
	return out
}

func text(s string) []byte { return append([]byte{byte(len(s) >> 8), byte(len(s))}, s...) }

func (b *box) raw(tb testing.TB, config *tls.Config) raw {
	tb.Helper()
	c, err := tls.Dial("tcp", b.w.address, config)
	check(tb, err)
	_, err = c.Write(packet(0x10, text("MQTT"), []byte{4, 2, 0, 0}, text(string(b.id))))
	check(tb, err)
	answer := make([]byte, 4)
	_, err = io.ReadFull(c, answer)
	check(tb, err)
	if answer[3] != 0 {
		tb.Fatalf("the broker refuses: %d", answer[3])
	}
	return raw{c}
}

// batchOf is a minute of readings as a box has them.
func batchOf(tb testing.TB, series, instants int) []byte {
	b := batch(1)
	b.Times, b.Series = nil, nil
	for i := range instants {
		b.Times = append(b.Times, when.Add(time.Duration(i)*b.Interval))
	}
	for k := range series {
		values := make([]float64, instants)
		for i := range values {
			values[i] = float64(k*1000 + i*k)
		}
		b.Series = append(b.Series, fleetapi.Series{Name: fmt.Sprintf("croft_load%03d", k), Values: values})
	}
	return must[[]byte](tb)(fleetapi.Encode(b))
}

func (w *world) quick(tb testing.TB, b *box) *tls.Config {
	c := w.trust(tb).TLS(func() (*tls.Certificate, error) { return b.cert, nil })
	return c
}

// BenchmarkReadings is batches of 120 series and 6 instants by QoS 0 through the
// embedded broker to a sink that does nothing.
func BenchmarkReadings(b *testing.B) {
	payload := batchOf(b, 120, 6)
	through(b, func(device *box) []byte {
		return packet(0x30, text(fleetapi.SubjectReadings.Topic(device.id)), payload)
	}, fleetapi.SubjectReadings, nil)
}

// BenchmarkEvents is events by QoS 1, each acknowledged.
func BenchmarkEvents(b *testing.B) {
	payload := must[[]byte](b)(fleetapi.Encode(event(7, 1)))
	through(b, func(device *box) []byte {
		return packet(0x32, text(fleetapi.SubjectEvent.Topic(device.id)), []byte{0, 1}, payload)
	}, fleetapi.SubjectEvent, make([]byte, 4))
}

// through sends messages over some connections and waits until all are stored.
func through(b *testing.B, message func(*box) []byte, subject fleetapi.Subject, ack []byte) {
	w := embedded(b)
	in := w.start(b, ingest.Config{
		Sink: void{newSink()}, QueuePerDevice: 1 << 20, QueueBytes: 1 << 30,
		Embedded: &ingest.Embedded{PacketRate: 1e9, PacketBurst: 1e9},
	})
	const lines = 16
	var all [lines]raw
	var out [lines][]byte
	for i := range lines {
		device := w.box(b)
		all[i], out[i] = device.raw(b, w.quick(b, device)), message(device)
	}
	b.SetBytes(int64(len(out[0])))
	b.ReportAllocs()
	b.ResetTimer()
	done := make(chan error, lines)
	for i := range lines {
		go func() {
			buffer := make([]byte, len(ack))
			for range b.N/lines + 1 {
				if _, err := all[i].Write(out[i]); err != nil {
					done <- err
					return
				}
				if _, err := io.ReadFull(all[i], buffer); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range lines {
		check(b, <-done)
	}
	until(b, "all are stored", func() bool { return in.Stats().Stored[subject] == uint64(lines*(b.N/lines+1)) })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

// BenchmarkIdleConnections reports what a connection that says nothing costs the
// fleet, and one that has sent a batch. The boxes are in this process: their part
// is measured beside and taken off.
func BenchmarkIdleConnections(b *testing.B) {
	const n = 1000
	for _, talks := range []bool{false, true} {
		b.Run(fmt.Sprintf("talks=%v", talks), func(b *testing.B) {
			for b.Loop() {
				w := embedded(b)
				in := w.start(b, ingest.Config{Sink: void{newSink()}, Embedded: &ingest.Embedded{ConnectRate: 1e6}})
				payload := batchOf(b, 120, 6)
				boxes := make([]*box, n)
				for i := range boxes {
					boxes[i] = w.box(b)
				}
				config := make([]*tls.Config, n)
				for i, device := range boxes {
					config[i] = w.quick(b, device)
				}
				before := used()
				lines := make([]raw, n)
				for i, device := range boxes {
					lines[i] = device.raw(b, config[i])
					if talks {
						_, err := lines[i].Write(packet(0x30, text(fleetapi.SubjectReadings.Topic(device.id)), payload))
						check(b, err)
					}
				}
				if talks {
					until(b, "all are stored", func() bool { return in.Stats().Stored[fleetapi.SubjectReadings] == n })
				}
				both := used() - before
				b.ReportMetric(float64(both)/n, "B/pair")
				in.stop() // leaves the boxes' side
				b.ReportMetric(float64(used()-before)/n, "B/box-side")
				b.ReportMetric(float64(both-(used()-before))/n, "B/connection")
				for _, l := range lines {
					_ = l.Close()
				}
			}
		})
	}
}

// used is the bytes of heap and stacks in use.
func used() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
