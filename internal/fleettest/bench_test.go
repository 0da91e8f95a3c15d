//go:build integration

package fleettest

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/sampling"
	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/internal/rig/outside"
	"github.com/croft-cloud/croft/internal/simbox"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// What a real box does; figures per day are of that.
const (
	messagesADay = 24 * 60
	readingsADay = 6 * messagesADay
	instants     = 6 // of readings in a message

	enrolRate = 45 // boxes a second; the device port lets 50 requests in
)

// BenchmarkFleet puts more and more boxes (BOXES, default 500,1000,2000,4000) on one
// croft-fleet with SQLite and its own broker, and tells what one costs and how far the
// fleet is behind. Boxes send a message each INTERVAL (default 12s), which stands for
// five times as many in messages; in series and connections they are as many as they are.
func BenchmarkFleet(b *testing.B) {
	interval, err := time.ParseDuration(cmp.Or(os.Getenv("INTERVAL"), "12s"))
	if err != nil {
		b.Fatal(err)
	}
	s := newService(b)
	begin := s.process.usage(b)
	b.Logf("without a box: %.0f MB resident, %.0f MB of them no file's", mega(begin.resident), mega(begin.own))
	total := 0
	for word := range strings.SplitSeq(cmp.Or(os.Getenv("BOXES"), "500,1000,2000,4000"), ",") {
		boxes, err := strconv.Atoi(word)
		if err != nil {
			b.Fatal(err)
		}
		ok := b.Run(fmt.Sprintf("boxes=%d", boxes), func(b *testing.B) {
			for b.Loop() {
				s.grow(b, boxes-total, interval)
				total = boxes
				s.settle(b, 2*interval)
				m := s.measure(b, 5*interval)
				due := float64(boxes) / interval.Seconds()
				b.ReportMetric(due*60, "boxes-at-1/min")
				b.ReportMetric(m.messages/m.seconds, "messages/s")
				b.ReportMetric(m.messages/m.seconds/due, "of-due")
				b.ReportMetric(m.cpu/m.messages*1e6, "µs/message")
				b.ReportMetric(m.cpu/m.seconds, "fleet-cores")
				b.ReportMetric(m.ours/m.seconds, "crowd-cores")
				b.ReportMetric(ms(m.delays.Of(0.5)), "lag-p50-ms")
				b.ReportMetric(ms(m.delays.Of(0.99)), "lag-p99-ms")
				b.ReportMetric(m.up/m.messages, "up-B/message")
				b.ReportMetric(m.down/m.messages, "down-B/message")
				b.ReportMetric(mega(m.after.resident), "MB-resident")
				b.ReportMetric((m.after.own-begin.own)/float64(boxes)/1000, "kB/box")
				s.look(b, 20*time.Second)
				b.ReportMetric(s.fileSize("fleet.db")/float64(boxes), "database-B/box")
			}
			b.ReportMetric(0, "ns/op")
		})
		if !ok {
			return
		}
	}
	s.stop(b)
	s.disk(b, total)
}

// service is a croft-fleet with a crowd that grows.
type service struct {
	fleet   *outside.Fleet
	process process
	boxes   simbox.Fleet
	api     *fleetclient.Client
	cookies map[string]string // of staff

	up, down  atomic.Int64 // bytes between fleet and boxes, in TLS, without IP
	connected int
	end       context.CancelFunc
	crowd     context.Context
	running   sync.WaitGroup
	crowds    []*simbox.Crowd

	mu  sync.Mutex
	ids []croft.DeviceID // guarded by mu
}

func newService(b *testing.B) *service {
	b.Helper()
	broker := freeAddress(b)
	f, err := outside.NewFleet(outside.FleetConfig{
		Dir: b.TempDir(), Program: program, Broker: broker.Port(), Brokers: []string{"tls://" + broker.String()},
		Args: []string{"--connect-rate", "1000", "--max-series", "100000000"},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	if err := f.Start(ctx); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Kill() })
	roots, err := enroll.ParseRoots([]byte(f.Join(outside.FromHost).Roots[0]))
	if err != nil {
		b.Fatal(err)
	}
	s := &service{fleet: f, process: childOf(b, program), boxes: simbox.Fleet{URL: "https://" + f.Device(), Roots: roots}, cookies: map[string]string{}}
	s.crowd, s.end = context.WithCancel(context.Background())
	b.Cleanup(func() { s.end(); s.running.Wait() })
	s.signUp(b)
	return s
}

// stop lets all boxes leave and ends the fleet in order, so that its folder rests.
func (s *service) stop(b *testing.B) {
	s.end()
	s.running.Wait()
	if err := s.fleet.Stop(); err != nil {
		b.Error(err)
	}
}

// signUp makes the first admin.
func (s *service) signUp(b *testing.B) {
	address, err := s.fleet.AdminURL()
	if err != nil {
		b.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		b.Fatal(err)
	}
	var got struct {
		FormToken string `json:"form_token"`
		URL       string `json:"url"`
		Token     string `json:"token"`
	}
	do := func(method, path string, fields map[string]string) {
		body, err := json.Marshal(fields)
		if err != nil {
			b.Fatal(err)
		}
		r := s.request(b, method, path, bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json")
		r.Header.Set("Origin", s.fleet.Console())
		r.Header.Set(authhttp.FormHeader, got.FormToken)
		answer, err := client.Do(r)
		if err != nil {
			b.Fatal(err)
		}
		defer answer.Body.Close()
		for _, c := range answer.Cookies() {
			s.cookies[c.Name] = c.Value
		}
		whole := struct{ Data any }{&got}
		if err := json.NewDecoder(answer.Body).Decode(&whole); err != nil || answer.StatusCode != http.StatusOK {
			b.Fatalf("%s %s: %s: %v", method, path, answer.Status, err)
		}
	}
	do(http.MethodGet, "/auth/me", nil)
	do(http.MethodPost, "/auth/accept", map[string]string{
		"token": u.Query().Get("token"), "email": "root@example.org", "name": "Root", "password": "correct horse battery staple",
	})
	do(http.MethodGet, "/auth/me", nil)
	do(http.MethodPost, "/auth/totp/begin", nil)
	parsed, err := url.Parse(got.URL)
	if err != nil {
		b.Fatal(err)
	}
	code, err := totp.GenerateCode(parsed.Query().Get("secret"), time.Now())
	if err != nil {
		b.Fatal(err)
	}
	do(http.MethodPost, "/auth/totp/confirm", map[string]string{"code": code})
	do(http.MethodGet, "/auth/me", nil)
	do(http.MethodPost, "/auth/tokens", map[string]string{"name": "bench", "scopes": "device:read telemetry:read fleet:read", "days": "1"})
	s.api = &fleetclient.Client{URL: s.fleet.Console(), Token: got.Token}
}

// freeAddress is one at which nobody listens.
func freeAddress(b *testing.B) netip.AddrPort {
	b.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func (s *service) request(b *testing.B, method, path string, body io.Reader) *http.Request {
	r, err := http.NewRequestWithContext(context.Background(), method, s.fleet.Console()+path, body)
	if err != nil {
		b.Fatal(err)
	}
	for name, value := range s.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	return r
}

// grow adds boxes and returns when all are enrolled and connected.
func (s *service) grow(b *testing.B, boxes int, interval time.Duration) {
	first := uint64(s.connected)
	c, err := simbox.NewCrowd(simbox.CrowdConfig{
		Fleet: s.boxes, Boxes: boxes, First: first, Interval: interval, ReadEvery: interval / instants,
		Confirm: true, Spread: time.Duration(boxes) * time.Second / enrolRate, EnrolRate: enrolRate,
		Dial: func(n uint64) simbox.Dial { return counted(simbox.Homes(n), &s.up, &s.down) },
		Enrolled: func(m simbox.Member) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.ids = append(s.ids, m.Device)
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	s.running.Go(func() {
		if err := c.Run(s.crowd); err != nil {
			b.Error(err)
		}
	})
	begin, before := time.Now(), s.process.usage(b)
	limit := time.Now().Add(2*time.Minute + 2*time.Duration(boxes)*time.Second/enrolRate)
	for c.Stats().Connected < boxes {
		if time.Now().After(limit) {
			b.Fatalf("of %d boxes %+v", boxes, c.Stats())
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.Logf("%d boxes more, enrolled and connected in %.0f s, %.1f ms of the fleet's processor time each",
		boxes, time.Since(begin).Seconds(), (s.process.usage(b).cpu-before.cpu)/float64(boxes)*1000)
	s.crowds = append(s.crowds, c)
	s.connected += boxes
}

// settle lets time pass.
func (s *service) settle(b *testing.B, long time.Duration) {
	select {
	case <-time.After(long):
	case <-b.Context().Done():
	}
}

// measured is what happened in a while.
type measured struct {
	seconds, messages   float64
	cpu, ours, up, down float64 // processor seconds of the fleet and of this process; bytes
	delays              simbox.Delays
	after               usage
}

func (s *service) measure(b *testing.B, long time.Duration) (m measured) {
	var before simbox.Delays
	sum := func(into *simbox.Delays) (messages float64) {
		for _, c := range s.crowds {
			stats := c.Stats()
			messages += float64(stats.Acknowledged)
			for i, n := range stats.Delays {
				into[i] += n
			}
		}
		return messages
	}
	sent, cpu, ours := sum(&before), s.process.usage(b).cpu, process("self").usage(b).cpu
	up, down, begin := s.up.Load(), s.down.Load(), time.Now()
	s.settle(b, long)
	m.messages = sum(&m.delays) - sent
	for i := range m.delays {
		m.delays[i] -= before[i]
	}
	m.seconds, m.up, m.down = time.Since(begin).Seconds(), float64(s.up.Load()-up), float64(s.down.Load()-down)
	m.after = s.process.usage(b)
	m.cpu, m.ours = m.after.cpu-cpu, process("self").usage(b).cpu-ours
	if m.messages == 0 {
		b.Fatal("no message was stored")
	}
	return m
}

// look opens pages of boxes as a support person does: the page, then its charts.
func (s *service) look(b *testing.B, long time.Duration) {
	took := map[string][]time.Duration{}
	for n, until := 0, time.Now().Add(long); time.Now().Before(until); n++ {
		s.mu.Lock()
		id := s.ids[(n*7919)%len(s.ids)]
		s.mu.Unlock()
		begin := time.Now()
		if _, err := s.api.Device(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		took["api"] = append(took["api"], time.Since(begin))
		begin = time.Now()
		page := "/fleet/boxes/" + string(id)
		s.open(b, page)
		took["page"] = append(took["page"], time.Since(begin))
		begin = time.Now()
		for _, chart := range []string{"cpu", "memory", "heat", "disk", "network", "leases"} {
			s.open(b, page+"/chart/"+chart)
		}
		took["charts"] = append(took["charts"], time.Since(begin))
		time.Sleep(50 * time.Millisecond)
	}
	for what, all := range took {
		report(b, what, all)
	}
}

func (s *service) open(b *testing.B, path string) {
	answer, err := client.Do(s.request(b, http.MethodGet, path, nil))
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK || answer.Request.URL.Path != path {
		b.Fatalf("GET %s: %s at %s: %v", path, answer.Status, answer.Request.URL, err)
	}
}

func report(b *testing.B, what string, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(ms(took[len(took)/2]), what+"-p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), what+"-p99-ms")
}

// fileSize is that of a file of the fleet and of its journal.
func (s *service) fileSize(name string) (sum float64) {
	for _, end := range []string{"", "-wal"} {
		if info, err := os.Stat(filepath.Join(s.fleet.Home(), name+end)); err == nil {
			sum += float64(info.Size())
		}
	}
	return sum
}

// disk tells what samples take in the log and, once the log is over, in a block, which
// Debian's Prometheus makes of it.
func (s *service) disk(b *testing.B, boxes int) {
	dir := filepath.Join(b.TempDir(), "data")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(s.fleet.Home(), "readings", "samples"))); err != nil {
		b.Fatal(err)
	}
	p := newPrometheus(b, dir, "scrape_configs: []\n")
	p.disk(b, boxes)
	p.stop(b)
}

const prometheusProgram = "/usr/bin/prometheus"

// prometheus is Debian's.
type prometheus struct {
	dir, address string
	cmd          *exec.Cmd
	process      process
	ended        chan struct{}
}

func newPrometheus(b *testing.B, dir, config string) *prometheus {
	b.Helper()
	if _, err := os.Stat(prometheusProgram); err != nil {
		b.Skip("Prometheus is not installed: apt-get install prometheus")
	}
	file := filepath.Join(b.TempDir(), "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	p := &prometheus{dir: dir, address: freeAddress(b).String(), ended: make(chan struct{})}
	p.cmd = exec.Command(prometheusProgram, "--config.file", file, "--storage.tsdb.path", dir, "--web.listen-address", p.address, "--web.enable-admin-api", "--log.level=warn")
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p.process = process(strconv.Itoa(p.cmd.Process.Pid))
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	b.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.ended })
	for until := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		if answer, err := client.Get("http://" + p.address + "/-/ready"); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return p
			}
		}
		if time.Now().After(until) {
			b.Fatal("Prometheus does not become ready")
		}
	}
}

func (p *prometheus) stop(b *testing.B) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	<-p.ended
}

// disk reports the bytes of the log for a sample, and of a block for a box and day.
func (p *prometheus) disk(b *testing.B, boxes int) {
	log := bytesIn(b, filepath.Join(p.dir, "wal"))
	answer, err := client.Post("http://"+p.address+"/api/v1/admin/tsdb/snapshot", "", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		b.Fatal(answer.Status)
	}
	metas, err := filepath.Glob(filepath.Join(p.dir, "snapshots", "*", "*", "meta.json"))
	if err != nil || len(metas) == 0 {
		b.Fatal("the snapshot has no block: ", err)
	}
	var samples, series, chunks, index float64
	for _, meta := range metas {
		var block struct {
			Stats struct{ NumSamples, NumSeries float64 }
		}
		raw, err := os.ReadFile(meta)
		if err != nil || json.Unmarshal(raw, &block) != nil {
			b.Fatal(meta, err)
		}
		samples += block.Stats.NumSamples
		series = max(series, block.Stats.NumSeries)
		chunks += bytesIn(b, filepath.Join(filepath.Dir(meta), "chunks"))
		index = max(index, bytesIn(b, filepath.Join(filepath.Dir(meta), "index")))
	}
	b.Logf("%d boxes, %.0f series, %.2f M samples: log %.2f B/sample, block %.2f B/sample and index %.0f B/series", boxes, series, samples/1e6, log/samples, chunks/samples, index/series)
	b.Logf("kB on disk for each box and day: %.0f of samples, %.0f of index; the log of two hours %.0f",
		chunks/samples*series/float64(boxes)*readingsADay/1000, index/float64(boxes)/1000, log/samples*series/float64(boxes)*readingsADay/12/1000)
}

// bytesIn is how much a folder holds, or how long a file is.
func bytesIn(b *testing.B, path string) (sum float64) {
	err := filepath.WalkDir(path, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() {
			sum += float64(info.Size())
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Fatal(err)
	}
	return sum
}

// BenchmarkAgainstPrometheus carries the same readings of as many boxes (BOXES, default
// 1000), read each READ (default 5s; six of them are one message to croft-fleet), to
// croft-fleet and then to Debian's Prometheus, which scrapes them as from node_exporter:
// each box at an address of its own, plain HTTP, compressed.
func BenchmarkAgainstPrometheus(b *testing.B) {
	if _, err := os.Stat(prometheusProgram); err != nil {
		b.Skip("Prometheus is not installed: apt-get install prometheus")
	}
	boxes, err := strconv.Atoi(cmp.Or(os.Getenv("BOXES"), "1000"))
	if err != nil {
		b.Fatal(err)
	}
	every, err := time.ParseDuration(cmp.Or(os.Getenv("READ"), "5s"))
	if err != nil {
		b.Fatal(err)
	}
	interval := instants * every
	tell := func(b *testing.B, seconds, cpu, up, down float64, before, after usage) {
		rounds := seconds / every.Seconds() * float64(boxes) // of readings, of one box
		b.ReportMetric(cpu/rounds*1e6, "µs/round")
		b.ReportMetric(cpu/rounds*readingsADay, "cpu-s/box·day")
		b.ReportMetric(up/rounds*readingsADay/1e6, "MB-up/box·day")
		b.ReportMetric(down/rounds*readingsADay/1e6, "MB-down/box·day")
		b.ReportMetric((after.own-before.own)/float64(boxes)/1000, "kB/box")
		b.ReportMetric(mega(after.resident), "MB-resident")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("croft", func(b *testing.B) {
		for b.Loop() {
			s := newService(b)
			before := s.process.usage(b)
			s.grow(b, boxes, interval)
			s.settle(b, 3*interval)
			m := s.measure(b, 4*interval)
			tell(b, m.seconds, m.cpu, m.up, m.down, before, m.after)
			s.mu.Lock()
			ids := slices.Clone(s.ids)
			s.mu.Unlock()
			charts(b, s.fleet.Console()+"/api/v1/prometheus", s.api.Token, ids)
			s.stop(b)
			s.disk(b, boxes)
		}
	})
	b.Run("prometheus", func(b *testing.B) {
		for b.Loop() {
			e := newExporters(b)
			var config strings.Builder
			fmt.Fprintf(&config, "global: {scrape_interval: %v, scrape_timeout: %v}\nscrape_configs:\n- job_name: boxes\n  static_configs:\n", every, every)
			ids := make([]croft.DeviceID, boxes)
			for n := range boxes {
				key, err := simbox.NewKey()
				if err != nil {
					b.Fatal(err)
				}
				if ids[n], err = enroll.DeviceOf(key.Public()); err != nil {
					b.Fatal(err)
				}
				fmt.Fprintf(&config, "  - {targets: ['%s'], labels: {device: %s}}\n", e.address(n), ids[n])
			}
			idle := newPrometheus(b, filepath.Join(b.TempDir(), "idle"), "scrape_configs: []\n")
			before := idle.process.usage(b)
			idle.stop(b)
			p := newPrometheus(b, filepath.Join(b.TempDir(), "data"), config.String())
			time.Sleep(3 * interval)
			begin, start, up, down := p.process.usage(b), time.Now(), e.up.Load(), e.down.Load()
			time.Sleep(4 * interval)
			after, seconds := p.process.usage(b), time.Since(start).Seconds()
			tell(b, seconds, after.cpu-begin.cpu, float64(e.up.Load()-up), float64(e.down.Load()-down), before, after)
			charts(b, "http://"+p.address, "", ids)
			p.disk(b, boxes)
			p.stop(b)
		}
	})
}

// charts asks both for the same.
func charts(b *testing.B, origin, token string, ids []croft.DeviceID) {
	queries := []string{
		`1 - sum(rate(croft_cpu_seconds_total{mode="idle",device="ID"}[2m])) / sum(rate(croft_cpu_seconds_total{device="ID"}[2m]))`,
		`max(croft_memory_bytes{kind="available",device="ID"})`,
		`max(croft_temperature_celsius{device="ID"})`,
		`sum(rate(croft_network_bytes_total{direction="in",device="ID"}[2m]))`,
	}
	var took []time.Duration
	for n := range 100 {
		to := time.Now()
		begin := time.Now()
		for _, query := range queries {
			form := url.Values{
				"query": {strings.ReplaceAll(query, "ID", string(ids[(n*7919)%len(ids)]))}, "step": {"60"},
				"start": {fmt.Sprint(to.Add(-3 * time.Hour).Unix())}, "end": {fmt.Sprint(to.Unix())},
			}
			r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, origin+"/api/v1/query_range?"+form.Encode(), nil)
			if err != nil {
				b.Fatal(err)
			}
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			answer, err := client.Do(r)
			if err != nil {
				b.Fatal(err)
			}
			raw, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || answer.StatusCode != http.StatusOK || !bytes.Contains(raw, []byte(`"values"`)) {
				b.Fatalf("%s: %s %.200s %v", query, answer.Status, raw, err)
			}
		}
		took = append(took, time.Since(begin))
	}
	report(b, "four-charts", took)
}

// exporters answers as the node_exporter of each box would, at an address of the
// loopback for each.
type exporters struct {
	port     int
	boot     time.Time
	about    map[string]sampling.Metric
	up, down atomic.Int64 // bytes from and to boxes
}

func newExporters(b *testing.B) *exporters {
	l, err := net.Listen("tcp4", ":0") // any of 127.0.0.0/8
	if err != nil {
		b.Fatal(err)
	}
	e := &exporters{port: l.Addr().(*net.TCPAddr).Port, boot: time.Now(), about: map[string]sampling.Metric{}}
	for _, m := range sampling.Table() {
		e.about[m.Name] = m
	}
	server := &http.Server{Handler: e}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(countedListener{l, &e.up, &e.down}) }()
	b.Cleanup(func() { server.Close(); <-done })
	return e
}

func (e *exporters) address(n int) string {
	n += 1 << 8
	return fmt.Sprintf("127.%d.%d.%d:%d", byte(n>>16), byte(n>>8), byte(n), e.port)
}

func (e *exporters) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	own := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr).IP.To4()
	n := uint64(own[1])<<16 | uint64(own[2])<<8 | uint64(own[3])
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var out io.Writer = w
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		defer packed.Close()
		out = packed
	}
	var text bytes.Buffer
	last := ""
	for _, one := range simbox.Readings(n-1<<8, e.boot, time.Now()) {
		if one.Name != last {
			last = one.Name
			kind := "gauge"
			if one.Counter {
				kind = "counter"
			}
			fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", last, e.about[last].Help, last, kind)
		}
		if math.IsNaN(one.Value) {
			continue
		}
		words := make([]string, len(one.Labels))
		for i, l := range one.Labels {
			words[i] = fmt.Sprintf("%s=%q", l.Name, l.Value)
		}
		if len(words) > 0 {
			fmt.Fprintf(&text, "%s{%s} %v\n", one.Name, strings.Join(words, ","), one.Value)
		} else {
			fmt.Fprintf(&text, "%s %v\n", one.Name, one.Value)
		}
	}
	_, _ = out.Write(text.Bytes()) // who asked may be gone
}

// BenchmarkSampling reads this machine by the box's own code, which makes one message
// of six rounds, and by Debian's node_exporter, which is asked each round.
func BenchmarkSampling(b *testing.B) {
	const rounds = 300
	b.Run("croft", func(b *testing.B) {
		sampler, err := sampling.New(sampling.Config{Mounts: []string{"/"}})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			before, size, series := process("self").usage(b).cpu, 0, 0
			for range rounds / instants {
				builder := fleetapi.Builder{}
				for range instants {
					readings, at := sampler.Read(b.Context())
					series = len(readings)
					if err := builder.Add(at, readings); err != nil {
						b.Fatal(err)
					}
					time.Sleep(2 * time.Millisecond) // instants of a batch differ
				}
				batch := builder.Take()
				batch.Epoch, batch.Seq, batch.BootID, batch.Interval = 1, 1, "2c4b0d5e-8d1f-4a65-b6d4-61a1f0bb0b51", 10*time.Second
				raw, err := fleetapi.Encode(batch)
				if err != nil {
					b.Fatal(err)
				}
				size += len(raw)
			}
			tellRound(b, process("self").usage(b).cpu-before, float64(size), float64(series), rounds)
		}
	})
	b.Run("node_exporter", func(b *testing.B) {
		const program = "/usr/bin/prometheus-node-exporter"
		if _, err := os.Stat(program); err != nil {
			b.Skip("node_exporter is not installed: apt-get install prometheus-node-exporter")
		}
		address := freeAddress(b).String()
		cmd := exec.Command(program, "--web.listen-address", address, "--log.level=error")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		var up, down atomic.Int64
		measured := &http.Client{Transport: &http.Transport{DisableCompression: true, DialContext: counted((&net.Dialer{}).DialContext, &down, &up)}}
		scrape := func() (series int, err error) {
			r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
			if err != nil {
				return 0, err
			}
			r.Header.Set("Accept-Encoding", "gzip")
			r.Header.Set("Accept", "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
			r.Header.Set("User-Agent", "Prometheus/2.42.0")
			answer, err := measured.Do(r)
			if err != nil {
				return 0, err
			}
			defer answer.Body.Close()
			plain, err := gzip.NewReader(answer.Body)
			if err != nil {
				return 0, err
			}
			text, err := io.ReadAll(plain)
			for line := range bytes.Lines(text) {
				if line[0] != '#' {
					series++
				}
			}
			return series, err
		}
		for until := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			if _, err := scrape(); err == nil {
				break
			} else if time.Now().After(until) {
				b.Fatal(err)
			}
		}
		exporter := process(strconv.Itoa(cmd.Process.Pid))
		for b.Loop() {
			before, sent, series := exporter.usage(b).cpu, up.Load()+down.Load(), 0
			for range rounds {
				n, err := scrape()
				if err != nil {
					b.Fatal(err)
				}
				series = n
			}
			tellRound(b, exporter.usage(b).cpu-before, float64(up.Load()+down.Load()-sent), float64(series), rounds)
		}
	})
}

func tellRound(b *testing.B, cpu, size, series, rounds float64) {
	b.ReportMetric(series, "series")
	b.ReportMetric(cpu/rounds*1e6, "µs/round")
	b.ReportMetric(cpu/rounds/series*1e6, "µs/series")
	b.ReportMetric(size/rounds, "B/round")
	b.ReportMetric(size/rounds/series, "B/series")
	b.ReportMetric(0, "ns/op")
}

// process is a number in /proc, or "self".
type process string

// usage is what the kernel says of a process.
type usage struct {
	cpu           float64 // seconds
	resident, own float64 // bytes; own are those that are no file's
}

func (p process) usage(b *testing.B) (u usage) {
	b.Helper()
	stat, err := os.ReadFile("/proc/" + string(p) + "/stat")
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	for _, ticks := range fields[11:13] { // user, system
		n, err := strconv.Atoi(ticks)
		if err != nil {
			b.Fatal(err)
		}
		u.cpu += float64(n) / 100
	}
	status, err := os.ReadFile("/proc/" + string(p) + "/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		for name, into := range map[string]*float64{"VmRSS:": &u.resident, "RssAnon:": &u.own} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				n, err := strconv.Atoi(strings.Fields(rest)[0])
				if err != nil {
					b.Fatal(err)
				}
				*into = float64(n) * 1024
			}
		}
	}
	return u
}

// childOf finds the process of this one that runs a program.
func childOf(b *testing.B, program string) process {
	b.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		b.Fatal(err)
	}
	found := map[process]bool{}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == program {
			found[process(filepath.Base(filepath.Dir(link)))] = true
		}
	}
	if len(found) != 1 {
		b.Fatalf("%d processes run %s", len(found), program)
	}
	return slices.Collect(maps.Keys(found))[0]
}

// counted counts what goes over the connections of a dialer.
func counted(dial simbox.Dial, up, down *atomic.Int64) simbox.Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return countedConn{c, up, down}, nil
	}
}

// countedListener counts what goes over the connections it takes.
type countedListener struct {
	net.Listener
	written, read *atomic.Int64
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{c, l.written, l.read}, nil
}

type countedConn struct {
	net.Conn
	written, read *atomic.Int64
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func mega(bytes float64) float64 { return bytes / 1e6 }
