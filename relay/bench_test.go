package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/croft-cloud/croft/relay/wire"
)

// origin is what stands behind each of the paths that are compared: a server of
// TLS that answers 'e' with an echo and 'd' with as many bytes as the next
// eight digits say.
func origin(cert tls.Certificate, conn net.Conn) {
	defer conn.Close()
	c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
	b := make([]byte, 9)
	block := make([]byte, 64<<10)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if b[0] == 'e' {
			if _, err := c.Write(b); err != nil {
				return
			}
			continue
		}
		n, _ := strconv.Atoi(string(b[1:]))
		for n > 0 {
			k := min(n, len(block))
			if _, err := c.Write(block[:k]); err != nil {
				return
			}
			n -= k
		}
	}
}

// path is one way for a user to the origin.
type path struct{ name, address string }

func directPath(b *testing.B, cert tls.Certificate) path {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go origin(cert, conn)
		}
	}()
	return path{"direct", l.Addr().String()}
}

func relayPath(b *testing.B, cert tls.Certificate) path {
	r := startRelay(b, nil)
	who := newIdentity(b)
	c, _ := startClient(b, who, func(_ context.Context, s *wire.Stream) { origin(cert, s) }, nil, r)
	if err := c.Set([]string{"shop.example"}, nil); err != nil {
		b.Fatal(err)
	}
	await(b, c, "the host", settled)
	return path{"relay", r.address}
}

// sshPath is ssh -R to the direct path, through an sshd of its own without
// root. It says why there is none.
func sshPath(b *testing.B, direct path) (path, string) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		return path{}, "ssh is not installed (apt-get install openssh-client)"
	}
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if sshd = "/usr/sbin/sshd"; exec.Command("test", "-x", sshd).Run() != nil {
			return path{}, "sshd is not installed (apt-get install openssh-server)"
		}
	}
	dir := b.TempDir()
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			b.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return port
	}
	sshPort, port := free(), free()
	config := fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s/host\nAuthorizedKeysFile %s/user.pub\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nAllowTcpForwarding yes\n", sshPort, dir, dir)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // where sshd of Debian goes when it is root
			b.Fatal(err)
		}
	}
	// start runs a program until the benchmark's end, and waits until it says that
	// its port is open.
	start := func(ready, name string, args ...string) {
		cmd := exec.Command(name, args...)
		stderr, err := cmd.StderrPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		var reading sync.WaitGroup
		b.Cleanup(func() { _ = cmd.Process.Kill(); reading.Wait(); _ = cmd.Wait() })
		opened := make(chan string, 1)
		reading.Go(func() {
			var said strings.Builder
			open := false
			for lines := bufio.NewScanner(stderr); lines.Scan(); { // to the end, or the program would wait
				if !open && strings.Contains(lines.Text(), ready) {
					open = true
					opened <- ""
				}
				if !open {
					said.WriteString(lines.Text() + "\n")
				}
			}
			if !open {
				opened <- said.String()
			}
		})
		if said := <-opened; said != "" {
			b.Fatalf("%s ended: %s", name, said)
		}
	}
	start("Server listening on", sshd, "-D", "-e", "-f", filepath.Join(dir, "config"))
	start("remote forward success", ssh, "-v", "-N", "-F", "none", "-p", sshPort, "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes", "-R", "127.0.0.1:"+port+":"+direct.address, "127.0.0.1")
	return path{"ssh", "127.0.0.1:" + port}, ""
}

func (p path) dial(b *testing.B) *tls.Conn {
	conn, err := net.Dial("tcp", p.address)
	if err != nil {
		b.Fatal(err)
	}
	c := tls.Client(conn, &tls.Config{ServerName: "shop.example", InsecureSkipVerify: true})
	if err := c.HandshakeContext(b.Context()); err != nil {
		b.Fatalf("%s: %v", p.name, err)
	}
	return c
}

// echoOnce is one round trip.
func echoOnce(b *testing.B, c net.Conn) {
	msg := []byte("e12345678")
	if _, err := c.Write(msg); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, msg); err != nil {
		b.Fatal(err)
	}
}

// download reads n bytes over each of several connections at once.
func (p path) download(b *testing.B, connections, n int) {
	var wg sync.WaitGroup
	for range connections {
		c := p.dial(b)
		wg.Go(func() {
			defer c.Close()
			if _, err := fmt.Fprintf(c, "d%08d", n); err != nil {
				b.Error(err)
				return
			}
			if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkPaths compares a direct TLS connection, the relay and ssh -R by
// taking turns in one run, so that what else the machine does meets all alike.
// It reports medians, and each path's ratio to the direct one.
func BenchmarkPaths(b *testing.B) {
	cert := certify(b, "shop.example")
	direct := directPath(b, cert)
	paths := []path{direct, relayPath(b, cert)}
	if ssh, why := sshPath(b, direct); why == "" {
		paths = append(paths, ssh)
	} else {
		b.Logf("without ssh -R: %s", why)
	}
	const size = 32 << 20
	for _, m := range []struct {
		name, unit string
		measure    func(path) float64
	}{
		{"first byte", "µs", func(p path) float64 { // dial, TLS, question, answer
			begun := time.Now()
			c := p.dial(b)
			defer c.Close()
			echoOnce(b, c)
			return float64(time.Since(begun).Microseconds())
		}},
		{"round trip", "µs", func(p path) float64 {
			c := p.dial(b)
			defer c.Close()
			echoOnce(b, c)
			begun := time.Now()
			for range 50 {
				echoOnce(b, c)
			}
			return float64(time.Since(begun).Microseconds()) / 50
		}},
		{"one download", "MB/s", func(p path) float64 {
			begun := time.Now()
			p.download(b, 1, size)
			return size / 1e6 / time.Since(begun).Seconds()
		}},
		{"eight downloads", "MB/s", func(p path) float64 {
			begun := time.Now()
			p.download(b, 8, size/8)
			return size / 1e6 / time.Since(begun).Seconds()
		}},
	} {
		b.Run(m.name, func(b *testing.B) {
			figures := make([][]float64, len(paths))
			for b.Loop() {
				for i, p := range paths {
					figures[i] = append(figures[i], m.measure(p))
				}
			}
			median := func(i int) float64 { slices.Sort(figures[i]); return figures[i][len(figures[i])/2] }
			b.ReportMetric(0, "ns/op")
			for i, p := range paths {
				b.ReportMetric(median(i), p.name+"-"+m.unit)
				if i > 0 {
					b.ReportMetric(median(i)/median(0), p.name+"/direct")
				}
			}
		})
	}
}

// BenchmarkIdleTunnels tells what a tunnel costs that nobody uses: heap and
// stacks of both its ends, which are in this one process.
func BenchmarkIdleTunnels(b *testing.B) {
	const tunnels = 1000
	for b.Loop() {
		b.StopTimer()
		r := startRelay(b, func(cfg *Config) { cfg.Limits.TunnelRate = 1e6 })
		var identities []identity
		for range tunnels {
			identities = append(identities, newIdentity(b))
		}
		before := inUse()
		b.StartTimer()
		var boxes []*Client
		var stops []func()
		for _, who := range identities {
			c, stop := startClient(b, who, echo, nil, r)
			boxes, stops = append(boxes, c), append(stops, stop)
		}
		for _, c := range boxes {
			await(b, c, "the tunnel", func(s []RelayState) bool { return s[0].Phase == Up })
		}
		b.StopTimer()
		b.ReportMetric(float64(inUse()-before)/tunnels, "B/tunnel")
		for _, stop := range stops {
			stop()
		}
		r.stop()
		b.StartTimer()
	}
}

// inUse is the heap and the stacks after a collection, which shrinks both.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
