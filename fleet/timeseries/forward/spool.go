package forward

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

// spool is a queue of frames in files, oldest first, bounded in bytes. What was
// put in survives the end of the process; the oldest file goes when the bound is
// reached. A frame is its length, the CRC-32C of the rest, the number of samples
// (four bytes each, big endian) and the payload.
type spool struct {
	dir    string
	budget int64
	fileAt int64 // bytes after which a new file is begun

	mu      sync.Mutex
	files   []spoolFile // guarded by mu; oldest first, the last is written to
	out     *os.File    // guarded by mu; the last of files
	lost    int64       // guarded by mu; samples dropped
	waiting int64       // guarded by mu; samples not taken yet
	pos     position    // guarded by mu
}

type spoolFile struct {
	number  int64
	bytes   int64
	samples int64 // not taken yet
}

// position is what was taken: all before Offset of the file Number.
type position struct {
	Number int64 `json:"number"`
	Offset int64 `json:"offset"`
}

const frameHead = 12

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func openSpool(dir string, budget int64) (*spool, error) {
	if err := atomicfile.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make remote spool: %w", err)
	}
	s := &spool{dir: dir, budget: budget, fileAt: min(8<<20, budget/8)}
	text, err := os.ReadFile(s.positionPath())
	if err == nil {
		err = json.Unmarshal(text, &s.pos)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.pos = position{} // all is sent again, which is harmless
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read remote spool: %w", err)
	}
	for _, e := range entries { // sorted by name, which is by number
		number, err := strconv.ParseInt(strings.TrimSuffix(e.Name(), ".spool"), 10, 64)
		if err != nil {
			continue
		}
		if err := s.admit(number); err != nil {
			return nil, fmt.Errorf("read remote spool: %w", err)
		}
	}
	return s, s.begin()
}

// admit takes in a file of an earlier process, up to the first damaged frame.
func (s *spool) admit(number int64) error {
	if number < s.pos.Number {
		return os.Remove(s.path(number))
	}
	f, err := os.Open(s.path(number))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	file := spoolFile{number: number}
	for {
		payload, samples, err := readFrame(f)
		if err != nil {
			break
		}
		file.bytes += frameHead + int64(len(payload))
		if number > s.pos.Number || file.bytes > s.pos.Offset {
			file.samples += samples
		}
	}
	s.files = append(s.files, file)
	s.waiting += file.samples
	return os.Truncate(s.path(number), file.bytes)
}

func (s *spool) positionPath() string { return filepath.Join(s.dir, "position") }

func (s *spool) path(number int64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%016d.spool", number))
}

// begin starts a new file; called before the spool is in use or with mu held.
func (s *spool) begin() error {
	number := s.pos.Number + 1
	if n := len(s.files); n > 0 {
		number = max(number, s.files[n-1].number+1)
	}
	out, err := os.OpenFile(s.path(number), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("begin file of remote spool: %w", err)
	}
	if s.out != nil {
		err = s.out.Close()
	}
	s.out = out
	s.files = append(s.files, spoolFile{number: number})
	return err
}

// put adds a frame. When the disk refuses it, its samples count as lost.
func (s *spool) put(payload []byte, samples int) error {
	frame := make([]byte, frameHead, frameHead+len(payload))
	binary.BigEndian.PutUint32(frame, uint32(len(payload)))
	binary.BigEndian.PutUint32(frame[8:], uint32(samples))
	frame = append(frame, payload...)
	binary.BigEndian.PutUint32(frame[4:], crc32.Checksum(frame[8:], castagnoli))

	s.mu.Lock()
	defer s.mu.Unlock()
	last := &s.files[len(s.files)-1]
	if last.bytes >= s.fileAt {
		if err := s.begin(); err != nil {
			s.lost += int64(samples)
			return err
		}
		last = &s.files[len(s.files)-1]
	}
	if _, err := s.out.Write(frame); err != nil {
		s.lost += int64(samples)
		// A torn frame would hide those after it.
		cut := s.out.Truncate(last.bytes)
		_, seek := s.out.Seek(last.bytes, io.SeekStart)
		return errors.Join(fmt.Errorf("write remote spool: %w", err), cut, seek)
	}
	last.bytes += int64(len(frame))
	last.samples += int64(samples)
	s.waiting += int64(samples)
	return s.shrinkLocked()
}

// shrinkLocked drops the oldest files while there is too much.
func (s *spool) shrinkLocked() error {
	var sum int64
	for _, f := range s.files {
		sum += f.bytes
	}
	for sum > s.budget && len(s.files) > 1 {
		oldest := s.files[0]
		if err := os.Remove(s.path(oldest.number)); err != nil {
			return fmt.Errorf("drop file of remote spool: %w", err)
		}
		s.files = s.files[1:]
		s.lost += oldest.samples
		s.waiting -= oldest.samples
		sum -= oldest.bytes
	}
	return nil
}

// taken is some frames in a row and where they end.
type taken struct {
	payloads [][]byte
	samples  map[int64]int64 // by file
	end      position
}

func (t taken) total() (sum int64) {
	for _, n := range t.samples {
		sum += n
	}
	return sum
}

// take reads the oldest frames, up to about so many bytes of payload; none: the
// spool is empty. They stay until done. It fails only if the very next frame
// cannot be read, which [spool.skip] is for.
func (s *spool) take(bytes int) (taken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pos.Number < s.files[0].number {
		s.pos = position{Number: s.files[0].number} // what was between was dropped
	}
	t := taken{samples: map[int64]int64{}, end: s.pos}
	for i := 0; i < len(s.files) && bytes > 0; i++ {
		file := s.files[i]
		if file.number < t.end.Number {
			continue
		}
		if file.number > t.end.Number {
			t.end = position{Number: file.number}
		}
		if t.end.Offset >= file.bytes {
			continue
		}
		if err := s.takeFile(file, &t, &bytes); err != nil {
			if len(t.payloads) > 0 {
				return t, nil // what lies before the damage goes first
			}
			s.pos = t.end
			return taken{}, err
		}
	}
	return t, nil
}

func (s *spool) takeFile(file spoolFile, t *taken, bytes *int) (err error) {
	f, err := os.Open(s.path(file.number))
	if err != nil {
		return fmt.Errorf("read remote spool: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Seek(t.end.Offset, io.SeekStart); err != nil {
		return fmt.Errorf("read remote spool: %w", err)
	}
	for t.end.Offset < file.bytes && *bytes > 0 {
		payload, samples, err := readFrame(f)
		if err != nil {
			return fmt.Errorf("read remote spool: %w", err)
		}
		t.payloads = append(t.payloads, payload)
		t.samples[file.number] += samples
		t.end.Offset += frameHead + int64(len(payload))
		*bytes -= len(payload)
	}
	return nil
}

// done forgets what was taken. The position is made durable, so that a restart
// sends at most the last request again.
func (s *spool) done(t taken) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.files {
		n := t.samples[s.files[i].number]
		s.files[i].samples -= n
		s.waiting -= n
	}
	for len(s.files) > 1 && s.files[0].number < t.end.Number {
		if err := os.Remove(s.path(s.files[0].number)); err != nil {
			return fmt.Errorf("remove file of remote spool: %w", err)
		}
		s.files = s.files[1:]
	}
	s.pos = t.end
	text, err := json.Marshal(s.pos)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteFile(s.positionPath(), text, 0o600); err != nil {
		return fmt.Errorf("write position of remote spool: %w", err)
	}
	return nil
}

// skip gives up what is left of the file that take could not read.
func (s *spool) skip() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.files {
		if f := &s.files[i]; f.number == s.pos.Number {
			s.lost += f.samples
			s.waiting -= f.samples
			f.samples = 0
			s.pos.Offset = f.bytes
			if i == len(s.files)-1 {
				return s.begin()
			}
		}
	}
	return nil
}

func (s *spool) numbers() (waiting, lost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting, s.lost
}

func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Close()
}

// maxFrame bounds what a damaged length can make us read.
const maxFrame = 16 << 20

func readFrame(r io.Reader) (payload []byte, samples int64, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxFrame {
		return nil, 0, errors.New("frame is damaged")
	}
	payload = make([]byte, length)
	if _, err := io.ReadFull(r, payload); err != nil {
		return nil, 0, err
	}
	sum := crc32.Update(crc32.Checksum(head[8:], castagnoli), castagnoli, payload)
	if sum != binary.BigEndian.Uint32(head[4:]) {
		return nil, 0, errors.New("frame is damaged")
	}
	return payload, int64(binary.BigEndian.Uint32(head[8:])), nil
}
