package fleetlink

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Section is one file of a support bundle. Write gets a context that ends with
// its time; what it has written by then is in the bundle. Secrets are taken out
// by the bundle, but what is a tenant's must not be written at all.
type Section struct {
	Name  string // of the file
	Write func(ctx context.Context, w io.Writer) error
}

const (
	bundlePath    = "/v1/bundles/" // and the job's ID
	bundleType    = "application/zip"
	collectLimit  = 8 * time.Second // for all sections
	sectionLimit  = 2 * time.Second // for one
	sectionMost   = 1 << 20         // bytes of one; the rest is cut off
	bundleMost    = 7 << 20         // of all before packing: a bundle has 8 MiB at most, however badly it packs
	uploadLimit   = time.Hour       // for a job without a deadline
	kernelMessage = 8 << 10         // the largest record of the kernel's log
	stacksMost    = 256 << 10       // of what goroutines do
)

// bundle collects what support wants to know, and sends it to the fleet.
func (l *Link) bundle(ctx context.Context, job fleetapi.Job) (uplink.Result, error) {
	file, err := os.CreateTemp(l.cfg.RunDir, "bundle-*.zip")
	if err != nil {
		return uplink.Result{}, fmt.Errorf("the box has no room to collect a bundle: %w", err)
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}()
	hash := sha256.New()
	missing, err := l.collect(ctx, io.MultiWriter(file, hash))
	if err != nil {
		return uplink.Result{}, fmt.Errorf("collect a bundle: %w", err)
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return uplink.Result{}, fmt.Errorf("collect a bundle: %w", err)
	}
	if err := l.send(ctx, job.ID, file, size); err != nil {
		return uplink.Result{}, err
	}
	fields := map[string]string{"size_bytes": strconv.FormatInt(size, 10), "sha256": hex.EncodeToString(hash.Sum(nil))}
	if len(missing) > 0 {
		fields["incomplete"] = strings.Join(missing, ", ")
	}
	return uplink.Result{Detail: fmt.Sprintf("The support bundle of %d kB was sent.", (size+999)/1000), Fields: fleetapi.Labels(fields)}, nil
}

// bundleAgain collects a bundle once more, after the agent ended meanwhile. The
// fleet may have the first one.
func (l *Link) bundleAgain(ctx context.Context, job fleetapi.Job) (uplink.Result, error) {
	result, err := l.bundle(ctx, job)
	if answer, ok := errors.AsType[*uplink.UploadError](err); ok && answer.Status == http.StatusConflict {
		return uplink.Result{Detail: "The support bundle was sent before the box's software was started again."}, nil
	}
	return result, err
}

// send uploads a bundle, again and again until the job's deadline.
func (l *Link) send(ctx context.Context, job string, file io.ReaderAt, size int64) error {
	if _, bounded := ctx.Deadline(); !bounded {
		bounded, cancel := context.WithTimeoutCause(ctx, uploadLimit, errors.New("the fleet could not be reached for an hour"))
		defer cancel()
		ctx = bounded
	}
	pause := l.pauses()
	for {
		err := l.line.Upload(ctx, bundlePath+job, bundleType, io.NewSectionReader(file, 0, size), size)
		if err == nil {
			return nil
		}
		answer, answered := errors.AsType[*uplink.UploadError](err)
		if answered && answer.Final() {
			return err
		}
		l.log.Warn("bundle not sent, trying again", "job", job, "err", err)
		again := time.NewTimer(pause())
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
		}
	}
}

// collect writes a bundle, and returns the names of sections that are not whole.
func (l *Link) collect(ctx context.Context, w io.Writer) (missing []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, collectLimit)
	defer cancel()
	secrets := l.secrets()
	begin := time.Now()
	pack := zip.NewWriter(w)
	left := bundleMost
	for _, s := range slices.Concat(l.sections(), l.cfg.Sections) {
		raw, fault := l.section(ctx, s, min(left, sectionMost))
		text := scrub(strings.ToValidUTF8(string(raw), "?"), secrets)
		text = text[:min(len(text), left)]
		if fault != nil {
			missing = append(missing, s.Name)
			text += "\n(not whole: " + scrub(fault.Error(), secrets) + ")\n"
		}
		left = max(0, left-len(text))
		part, err := pack.CreateHeader(&zip.FileHeader{Name: s.Name, Method: zip.Deflate, Modified: begin})
		if err != nil {
			return nil, err
		}
		if _, err := io.WriteString(part, text); err != nil {
			return nil, err
		}
	}
	return missing, pack.Close()
}

// errSlow reports a section that took too long.
var errSlow = errors.New("it took too long")

// section runs one section. One that does not answer is left behind, and not run
// again until it has come back.
func (l *Link) section(ctx context.Context, s Section, most int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.patience)
	defer cancel()
	l.mu.Lock()
	busy := l.slow[s.Name]
	l.slow[s.Name] = true
	l.mu.Unlock()
	if busy {
		return nil, errSlow
	}
	out := &short{most: most}
	done := make(chan error, 1)
	go func() { // ends when what it asks answers
		defer func() {
			l.mu.Lock()
			delete(l.slow, s.Name)
			l.mu.Unlock()
		}()
		defer func() {
			if v := recover(); v != nil {
				done <- fmt.Errorf("it panicked: %v", v)
			}
		}()
		done <- s.Write(ctx, out)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = errSlow
	}
	raw, cut := out.take()
	if cut {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	return raw, err
}

// short keeps the first bytes of what is written to it, until they are taken.
type short struct {
	most int

	mu  sync.Mutex
	buf []byte // guarded by mu
	cut bool   // guarded by mu
}

func (s *short) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(p), s.most-len(s.buf))
	s.buf = append(s.buf, p[:n]...)
	if n < len(p) {
		s.cut = true
		return n, io.ErrShortWrite
	}
	return n, nil
}

func (s *short) take() (raw []byte, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, s.buf, s.most = s.buf, nil, 0
	return raw, s.cut
}

// sections are those that every bundle has.
func (l *Link) sections() []Section {
	return []Section{
		{"box.json", l.writeBox},
		{"agent.log", func(_ context.Context, w io.Writer) error { _, err := l.cfg.Lines.WriteTo(w); return err }},
		{"kernel.log", func(_ context.Context, w io.Writer) error { return kernelLog(w) }},
		{"events.jsonl", l.writeEvents},
		{"readings.txt", l.writeReadings},
		{"goroutines.txt", func(_ context.Context, w io.Writer) error {
			stacks := make([]byte, stacksMost)
			_, err := w.Write(stacks[:runtime.Stack(stacks, true)])
			return err
		}},
	}
}

// writeBox writes who the box is and how its line is doing.
func (l *Link) writeBox(_ context.Context, w io.Writer) error {
	s := l.line.Status()
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	now, known := l.clock.Now()
	facts := l.cfg.Facts()
	l.mu.Lock()
	wishes := l.wishes
	l.mu.Unlock()
	return WriteJSON(w, map[string]any{
		"device": s.Device, "boot_id": l.cfg.BootID, "board": l.cfg.Board, "release": l.cfg.Release, "slot": l.cfg.Slot, "facts": facts,
		"clock":  map[string]any{"now": now.UTC(), "known": known, "evidence": l.clock.known(), "since_boot": sinceBoot().String()},
		"wishes": map[string]any{"version": wishes.Version, "claimed": wishes.Claimed, "interval": wishes.Interval.String(), "release": wishes.Release},
		"line": map[string]any{
			"enrolment": s.Enrolment, "certificate_until": s.CertificateUntil, "connected": s.Connected, "since": s.Since, "broker": s.Broker,
			"problem": s.Problem, "error": text(s.LastError), "failed_at": s.FailedAt, "waiting": s.Waiting, "waiting_bytes": s.WaitingBytes,
			"dropped": s.Dropped, "damaged": s.Damaged, "refused": s.Refused, "storage": text(s.Storage),
		},
	})
}

// WriteJSON writes a section that is one JSON document.
func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeEvents writes the journal's events, a line each. Its values are not in a
// bundle: among them are secrets.
func (l *Link) writeEvents(_ context.Context, w io.Writer) error {
	e := json.NewEncoder(w)
	for event := range l.cfg.Journal.Events(0) {
		if err := e.Encode(event); err != nil {
			return err
		}
	}
	for _, d := range l.cfg.Journal.Damage() {
		if err := e.Encode(map[string]string{"damage": d.String()}); err != nil {
			return err
		}
	}
	return nil
}

// writeReadings writes what the box reads about itself now, and what it misses.
func (l *Link) writeReadings(ctx context.Context, w io.Writer) error {
	readings, at := l.sampler.Read(ctx)
	var out bytes.Buffer
	fmt.Fprintf(&out, "# at %s\n", at.UTC().Format(time.RFC3339))
	for _, r := range readings {
		labels := map[string]string{}
		for _, label := range r.Labels {
			labels[label.Name] = label.Value
		}
		out.WriteString(r.Name)
		for _, name := range slices.Sorted(maps.Keys(labels)) {
			fmt.Fprintf(&out, " %s=%s", name, labels[name])
		}
		fmt.Fprintf(&out, " %v\n", r.Value)
	}
	for _, m := range l.sampler.Misses() {
		fmt.Fprintf(&out, "# missed %s %d times, last at %s: %s\n", m.Group, m.Count, m.At.UTC().Format(time.RFC3339), m.Last)
	}
	_, err := w.Write(out.Bytes())
	return err
}

// kernelLog writes what the kernel keeps of its log.
func kernelLog(w io.Writer) error {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the kernel's log: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	record := make([]byte, kernelMessage)
	for {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN): // that is all
			return nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR): // overwritten meanwhile
			continue
		case err != nil:
			return fmt.Errorf("read the kernel's log: %w", err)
		case n == 0:
			return nil
		}
		if _, err := io.WriteString(w, kernelLine(string(record[:n]))); err != nil {
			return err
		}
	}
}

// kernelLine is a record of /dev/kmsg as dmesg shows it: "6,339,5140900,-;text".
func kernelLine(record string) string {
	head, text, found := strings.Cut(record, ";")
	text, _, _ = strings.Cut(text, "\n") // what follows are properties
	fields := strings.Split(head, ",")
	if !found || len(fields) < 3 {
		return strings.TrimRight(record, "\n") + "\n"
	}
	micros, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return text + "\n"
	}
	return fmt.Sprintf("[%12.6f] %s\n", float64(micros)/1e6, text)
}
