//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/croft-cloud/croft/agent/ownerpage"
	"github.com/croft-cloud/croft/internal/rig"
)

// bootRounds is how often each image is booted. The images take turns, so that
// a machine that is busy for a while slows all of them.
const bootRounds = 3

// BenchmarkPowerToPage measures the time from power-on to the first answer of
// the box's page, beside that of gokrazy's own image on the same machine but
// for the firmware: UEFI for croft, BIOS for gokrazy, which knows no other.
//
// gokrazy's command line makes the kernel wait 10 s for slow disks. The ratio
// that counts is to gokrazy without that wait; the other one is for the record.
func BenchmarkPowerToPage(b *testing.B) {
	settled := confirmed(b)
	plain, eager := plainGokrazy(b)
	kinds := []*bootKind{
		{name: "gokrazy", image: plain, bios: true},
		{name: "gokrazy_without_wait", image: eager, bios: true},
		{name: "croft_first_boot", image: releases.good.Image},
		{name: "croft_settled", image: settled},
	}
	for range bootRounds {
		for _, k := range kinds {
			k.took = append(k.took, k.boot(b))
		}
	}
	shipped, base := kinds[0].median(), kinds[1].median()
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // measured above
			b.ReportMetric(k.median(), "s/boot")
			b.ReportMetric(slices.Min(k.took).Seconds(), "s_lowest")
			b.ReportMetric(slices.Max(k.took).Seconds(), "s_highest")
			b.ReportMetric(k.median()/base, "×gokrazy_without_wait")
			b.ReportMetric(k.median()/shipped, "×gokrazy")
		})
	}
}

// bootKind is one image in the comparison.
type bootKind struct {
	name  string
	image string
	bios  bool
	took  []time.Duration
}

func (k *bootKind) median() float64 {
	sorted := slices.Sorted(slices.Values(k.took))
	return sorted[len(sorted)/2].Seconds()
}

// boot boots a fresh copy of the image and cuts its power when its page
// answers.
func (k *bootKind) boot(b *testing.B) time.Duration {
	box := newBox(b, settings{from: k.image, config: func(c *rig.Config) {
		if k.bios {
			c.Firmware = rig.BIOS
		}
	}})
	start := time.Now()
	box.powerOn()
	waitPage(b, box.url)
	took := time.Since(start)
	b.Logf("%-20s %5.1f s", k.name, took.Seconds())
	if err := box.Close(); err != nil {
		b.Error(err)
	}
	if err := os.Remove(box.disk); err != nil {
		b.Error(err)
	}
	return took
}

// waitPage waits for any HTTP answer (gokrazy wants a password first). One
// connection that was opened too early may hang for seconds, so a new attempt
// begins every 250 ms whatever became of the others.
func waitPage(b *testing.B, url string) {
	ctx, cancel := context.WithTimeout(b.Context(), bootLimit)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	var attempts sync.WaitGroup
	defer attempts.Wait()
	answered := make(chan struct{}, 1)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		attempts.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return
			}
			resp, err := client.Do(req)
			if err != nil {
				return
			}
			resp.Body.Close()
			select {
			case answered <- struct{}{}:
			default:
			}
		})
		select {
		case <-answered:
			cancel()
			return
		case <-ctx.Done():
			b.Fatalf("%s never answered", url)
		case <-tick.C:
		}
	}
}

// plainGokrazy builds gokrazy's own image with its own tool. Eager is the same
// without the wait for slow disks.
func plainGokrazy(b *testing.B) (plain, eager string) {
	dir := b.TempDir()
	build := filepath.Join(dir, "plain", "builddir")
	for name, to := range map[string]string{
		"config.json": filepath.Join(dir, "plain"), "go.mod": build, "go.sum": build,
	} {
		raw, err := os.ReadFile(filepath.Join("testdata/gokrazy", name))
		if err == nil {
			err = os.MkdirAll(to, 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), raw, 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	gok := filepath.Join(dir, "gok")
	plain, eager = filepath.Join(dir, "plain.img"), filepath.Join(dir, "eager.img")
	const size = 1258299392 // gok's smallest disk
	for _, step := range []struct {
		dir  string
		args []string
	}{
		{filepath.Join(repository, "images/gokrazy"), []string{"go", "build", "-modfile=gok.mod", "-o", gok, "github.com/gokrazy/tools/cmd/gok"}},
		{filepath.Join(dir, "plain"), []string{gok, "--parent_dir=" + dir, "-i", "plain", "overwrite", "--full=" + plain, fmt.Sprint("--target_storage_bytes=", size)}},
	} {
		cmd := exec.CommandContext(b.Context(), step.args[0], step.args[1:]...)
		cmd.Dir = step.dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOTOOLCHAIN=local", "GOFLAGS=-trimpath -buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("build gokrazy's image: %v\n%s", err, out)
		}
	}
	copySparse(b, eager, plain)
	f, err := os.OpenFile(eager, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	boot := make([]byte, 128<<20) // more than the boot partition
	if _, err := io.ReadFull(f, boot); err != nil {
		b.Fatal(err)
	}
	at := bytes.Index(boot, []byte("rootdelay=10"))
	if at < 0 {
		b.Fatal("gokrazy's command line has no rootdelay=10 any more: drop this variant")
	}
	if _, err := f.WriteAt([]byte("rootdelay=0 "), int64(at)); err != nil {
		b.Fatal(err)
	}
	return plain, eager
}

// BenchmarkImageSize measures what a box downloads and stores.
func BenchmarkImageSize(b *testing.B) {
	const mb = 1e6
	for _, f := range []struct{ name, path string }{
		{"root", releases.good.Root}, {"kernel_image", releases.good.UKI},
	} {
		b.Run(f.name, func(b *testing.B) {
			size, packed := packedSize(b, f.path)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(size)/mb, "MB")
			b.ReportMetric(float64(packed)/mb, "MB_zstd")
		})
	}
	b.Run("sum", func(b *testing.B) {
		size, packed := packedSize(b, releases.good.Root, releases.good.UKI)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(size)/mb, "MB")
		b.ReportMetric(float64(packed)/mb, "MB_zstd")
	})
	b.Run("whole_image", func(b *testing.B) {
		var st syscall.Stat_t
		if err := syscall.Stat(releases.good.Image, &st); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(st.Size)/mb, "MB")
		b.ReportMetric(float64(st.Blocks*512)/mb, "MB_used")
	})
}

// packedSize compresses each file by itself, as an update does.
func packedSize(b *testing.B, paths ...string) (size, packed int64) {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		var out counter
		enc, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(enc, f)
		if err == nil {
			err = enc.Close()
		}
		f.Close()
		if err != nil {
			b.Fatal(err)
		}
		size += n
		packed += int64(out)
	}
	return size, packed
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// BenchmarkAgentMemory measures the agent's resident set after confirmation,
// with the page seen once and the screen drawn, for a minute.
func BenchmarkAgentMemory(b *testing.B) {
	box := newBox(b, settings{from: confirmed(b)})
	box.powerOn()
	box.waitConfirmed()
	waitPage(b, box.url)
	if _, err := box.Screenshot(b.Context()); err != nil {
		b.Fatal(err)
	}
	var resident []int64
	var last ownerpage.StatusJSON
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for range 12 {
		<-tick.C
		s, err := box.ask(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		resident, last = append(resident, s.AgentMemoryBytes), s
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(slices.Min(resident))/1e6, "MB_lowest")
	b.ReportMetric(float64(slices.Max(resident))/1e6, "MB_highest")
	b.ReportMetric(float64(last.MemoryUsedBytes)/1e6, "MB_whole_box")
	box.shutDown()
}
