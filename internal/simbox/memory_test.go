package simbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// throng is what the process of a crowd needs to know.
type throng struct {
	Authority, Broker string
	Boxes             int
}

const throngEnv = "CROFT_SIMBOX_THRONG"

// measure runs a crowd and prints what a box of it costs: kB of heap and stacks,
// kB of all the process has, and microseconds of processor time for a message.
func measure(raw []byte) error {
	var cfg throng
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return err
	}
	authority, err := enroll.ParseAuthority([]byte(cfg.Authority))
	if err != nil {
		return err
	}
	roots, err := enroll.ParseRoots(authority.RootCertificate())
	if err != nil {
		return err
	}
	debug.SetGCPercent(50) // as croft sim does
	c, err := NewCrowd(CrowdConfig{
		Fleet: Fleet{Roots: roots}, Boxes: cfg.Boxes, Brokers: []string{cfg.Broker}, EnrolRate: 1e6, Dial: Homes,
		Interval: 15 * time.Second, ReadEvery: 2500 * time.Millisecond, Confirm: true, // 6 instants, as in a minute
		Issue: func(_ context.Context, id croft.DeviceID, req *enroll.Request) (string, error) {
			issued, err := authority.IssueDevice(req.CSR, enroll.Peer{Standing: enroll.Candidate, Device: id}, time.Now())
			if err != nil {
				return "", err
			}
			return issued.Chain, nil
		},
	})
	if err != nil {
		return err
	}
	go c.Run(context.Background()) //nolint:errcheck // the process ends first
	for look := time.NewTicker(100 * time.Millisecond); c.Stats().Connected < cfg.Boxes; <-look.C {
	}
	debug.FreeOSMemory()
	<-time.After(10 * time.Second)
	before, cpu := c.Stats(), processorTime()
	<-time.After(15 * time.Second)
	after, sum := c.Stats(), processorTime()-cpu
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	runtime.GC()
	runtime.ReadMemStats(&mem)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	resident, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		return err
	}
	fmt.Println(
		float64(mem.HeapAlloc+mem.StackInuse)/1024/float64(cfg.Boxes), float64(resident)/float64(cfg.Boxes),
		float64(sum.Microseconds())/float64(after.Sent-before.Sent), float64(after.Bytes-before.Bytes)/float64(after.Sent-before.Sent),
	)
	return nil
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err) // it is given no wrong argument
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkCrowd tells what a light box costs, with the crowd in a process of its
// own.
func BenchmarkCrowd(b *testing.B) {
	const boxes = 4000
	for b.Loop() {
		w := newWorld(b, nil, "")
		pem := must(w.authority.PEM())(b)
		raw := must(json.Marshal(throng{Authority: string(pem), Broker: w.brokers()[0], Boxes: boxes}))(b)
		cmd := exec.CommandContext(b.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), throngEnv+"="+string(raw))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		check(b, err)
		check(b, cmd.Start())
		lines := bufio.NewScanner(out)
		lines.Scan()
		var inUse, resident, perMessage, bytes float64
		if _, err := fmt.Sscan(lines.Text(), &inUse, &resident, &perMessage, &bytes); err != nil {
			b.Fatalf("%q: %v", lines.Text(), err)
		}
		check(b, cmd.Wait())
		b.ReportMetric(inUse, "kB-used/box")
		b.ReportMetric(resident, "kB-resident/box")
		b.ReportMetric(perMessage, "µs/message")
		b.ReportMetric(bytes, "bytes/message")
	}
}
