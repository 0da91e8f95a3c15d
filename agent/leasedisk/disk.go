package leasedisk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/google/uuid"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// State says what there is of a disk.
type State string

// The states. They are read from the files, not stored.
const (
	Absent     State = "absent"     // nothing
	Unfinished State = "unfinished" // a Create that did not end
	Good       State = "good"       // a disk; Open decides about its content
	Lost       State = "lost"       // its content is gone
	Removing   State = "removing"   // a Remove that did not end
)

// Disk is what [Store.Disks] tells of one lease.
type Disk struct {
	Lease lease.Key
	State State
	Size  int64  // bytes that were promised; 0 if that is unknown
	Open  bool   // mounted
	Lost  string // why it is lost, a sentence's end
}

// recordVersion is the form of lease.json. 1: 2026-11, first.
const recordVersion = 1

// record is what lease.json holds.
type record struct {
	Version    int       `json:"version"`
	Lease      lease.Key `json:"lease"`
	Size       int64     `json:"size_bytes"`
	UUID       uuid.UUID `json:"uuid"`
	Encryption string    `json:"encryption"`
	Lost       string    `json:"lost,omitempty"`
}

func (r record) encode() []byte {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers always can be written
	}
	return append(data, '\n')
}

// maxFile is more than any record or sealed key takes.
const maxFile = 16 << 10

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	return data, err // a longer file is none of ours, and nobody takes its beginning for one
}

// errRecord reports a record that nobody can use.
var errRecord = errors.New("its record is damaged")

func (s *Store) readRecord(key lease.Key) (record, error) {
	data, err := readSmall(s.record(key))
	if err != nil {
		return record{}, err
	}
	var r record
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	switch err := decoder.Decode(&r); {
	case err != nil:
		return record{}, fmt.Errorf("%w: %w", errRecord, err)
	case r.Version != recordVersion || r.Lease != key || r.Size < MinSize || r.Size > MaxSize || r.Size%sizeStep != 0:
		return record{}, errRecord
	}
	return r, nil
}

// look reads what there is of a lease's disk. An error means that it cannot be
// told now.
func (s *Store) look(key lease.Key) (Disk, error) {
	d := Disk{Lease: key}
	there := map[string]bool{}
	for _, path := range []string{s.dir(key), s.record(key), s.image(key), s.sealed(key)} {
		_, err := os.Lstat(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return d, err
		}
		there[path] = err == nil
	}
	switch {
	case !there[s.dir(key)]:
		d.State = Absent
		return d, nil
	case !there[s.record(key)]:
		d.State = Unfinished
		return d, nil
	}
	r, err := s.readRecord(key)
	if err != nil && !errors.Is(err, errRecord) {
		return d, err
	}
	d.State, d.Size, d.Lost = Good, r.Size, r.Lost
	switch {
	case err != nil:
		d.Lost = err.Error()
	case d.Lost == "" && !there[s.image(key)]:
		d.Lost = "its image is missing"
	}
	switch {
	case !there[s.sealed(key)]:
		d.State = Removing
	case d.Lost != "":
		d.State = Lost
	}
	return d, nil
}

// usable returns the record of a disk that may be opened.
func (s *Store) usable(key lease.Key) (record, error) {
	d, err := s.look(key)
	if err != nil {
		return record{}, err
	}
	switch d.State {
	case Absent, Unfinished:
		return record{}, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("the lease has no disk"), Remedy: "create it first"}
	case Removing:
		return record{}, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("the lease's disk is being removed"), Remedy: "remove it, then create another"}
	case Lost:
		return record{}, lostError(d.Lost)
	case Good:
	}
	r, err := s.readRecord(key)
	if err != nil {
		return record{}, err
	}
	if own := s.sys.encryption(); r.Encryption != own {
		return record{}, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("the disk was made with encryption %q, and this agent makes them with %q", r.Encryption, own),
		}
	}
	return r, nil
}

// List names every lease that has a disk or parts of one, in order. What the
// caller does not know it removes.
func (s *Store) List(_ context.Context) ([]lease.Key, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, fmt.Errorf("list lease disks: %w", err)
	}
	return keys, nil
}

// Disks tells what there is of each lease that [Store.List] names.
func (s *Store) Disks() ([]Disk, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, fmt.Errorf("look at lease disks: %w", err)
	}
	disks := make([]Disk, 0, len(keys))
	for _, key := range keys {
		d, err := s.look(key)
		if err != nil {
			return nil, fmt.Errorf("list lease disks: %w", err)
		}
		if d.Open, err = s.sys.mounted(s.mount(key)); err != nil {
			return nil, fmt.Errorf("list lease disks: %w", err)
		}
		disks = append(disks, d)
	}
	return disks, nil
}

// Usage returns how many bytes of the lease's disk are in use, and its size. Of
// a closed disk it is what the image takes on /perm.
func (s *Store) Usage(key lease.Key) (used, total int64, err error) {
	if !keyForm.MatchString(string(key)) {
		return 0, 0, usage("lease key %q: want l and ten of 0-9 and a-v", key)
	}
	r, err := s.usable(key)
	if err != nil {
		return 0, 0, fmt.Errorf("measure disk of lease %s: %w", key, err)
	}
	up, err := s.sys.mounted(s.mount(key))
	switch {
	case err != nil:
	case up:
		used, total, _, err = s.sys.usage(s.mount(key))
	default:
		_, used, err = s.sys.allocated(s.image(key))
		total = r.Size
	}
	if err != nil {
		return 0, 0, fmt.Errorf("measure disk of lease %s: %w", key, err)
	}
	return used, total, nil
}

// Health returns nil while programs can write to the open disk. Kind
// [croft.KindInvalid]: the kernel met damage and made it read-only, or it is
// lost; closing and opening tries again.
func (s *Store) Health(key lease.Key) error {
	if !keyForm.MatchString(string(key)) {
		return usage("lease key %q: want l and ten of 0-9 and a-v", key)
	}
	if _, err := s.usable(key); err != nil {
		return fmt.Errorf("check disk of lease %s: %w", key, err)
	}
	if err := s.mustBeOpen(key); err != nil {
		return fmt.Errorf("check disk of lease %s: %w", key, err)
	}
	_, _, readOnly, err := s.sys.usage(s.mount(key))
	if err != nil {
		return fmt.Errorf("check disk of lease %s: %w", key, err)
	}
	if readOnly {
		return &croft.Error{
			Kind: croft.KindInvalid, Err: fmt.Errorf("disk of lease %s: the kernel met damage and made it read-only", key),
			Remedy: "restart the lease",
		}
	}
	return nil
}

func (s *Store) mustBeOpen(key lease.Key) error {
	up, err := s.sys.mounted(s.mount(key))
	if err == nil && !up {
		err = &croft.Error{Kind: croft.KindRefused, Err: errors.New("the disk is not open"), Remedy: "open it first"}
	}
	return err
}

// The folders at the root of a disk.
const (
	scratchDir = "scratch"
	volumesDir = "volumes"
	logsDir    = "logs"
	filesDir   = "files"
)

func furnish(mount string) error {
	root, err := os.OpenRoot(mount)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, dir := range []string{scratchDir, volumesDir, logsDir, filesDir} {
		if err := root.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// nameForm is what services, volumes and files may be called: no path, no
// hidden file, no more than a kernel allows with something appended.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// maxIndex is more than any service has replicas, in ten digits.
const maxIndex = 1<<31 - 1

func checkReplica(id lease.ReplicaID) error {
	if !nameForm.MatchString(id.Service) || id.Index < 0 || id.Index > maxIndex {
		return usage("replica %d of service %q: not a name for a folder", id.Index, id.Service)
	}
	return nil
}

// on works on an open disk: a tenant may have put a link anywhere below his
// volumes, so nothing is reached but through root.
func (s *Store) on(ctx context.Context, key lease.Key, what string, do func(root *os.Root) error) error {
	release, err := s.acquire(ctx, key)
	if err != nil {
		return fmt.Errorf("%s of lease %s: %w", what, key, err)
	}
	defer release()
	err = s.mustBeOpen(key)
	var root *os.Root
	if err == nil {
		root, err = os.OpenRoot(s.mount(key))
	}
	if err != nil {
		return fmt.Errorf("%s of lease %s: %w", what, key, err)
	}
	defer root.Close()
	if err := do(root); err != nil {
		return fmt.Errorf("%s of lease %s: %w", what, key, noSpace(err))
	}
	return nil
}

// Scratch makes the folder for what a replica writes to its root and returns it.
// In it are the folders upper and work of an overlay.
func (s *Store) Scratch(ctx context.Context, id lease.ReplicaID) (string, error) {
	if err := checkReplica(id); err != nil {
		return "", err
	}
	dir := filepath.Join(scratchDir, id.Container())
	err := s.on(ctx, id.Lease, "make scratch folder", func(root *os.Root) error {
		for _, sub := range []string{"upper", "work"} {
			if err := root.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				return err
			}
			// upper is the replica's root folder: any of its users may enter.
			if err := root.Chmod(filepath.Join(dir, sub), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
	return filepath.Join(s.mount(id.Lease), dir), err
}

// RemoveScratch removes what a replica wrote to its root, and its log. The
// replica is gone.
func (s *Store) RemoveScratch(ctx context.Context, id lease.ReplicaID) error {
	if err := checkReplica(id); err != nil {
		return err
	}
	return s.on(ctx, id.Lease, "remove scratch folder", func(root *os.Root) error {
		return errors.Join(
			root.RemoveAll(filepath.Join(scratchDir, id.Container())),
			root.RemoveAll(logFile(id)),
		)
	})
}

// Volume makes the folder of a volume and returns it. It belongs to the index-th
// replica of a service and outlives revisions of the manifest. Any user of the
// replica may write to it, as images run under users of their own.
func (s *Store) Volume(ctx context.Context, key lease.Key, service string, index int, name string) (string, error) {
	if err := checkReplica(lease.ReplicaID{Lease: key, Service: service, Index: index}); err != nil {
		return "", err
	}
	if !nameForm.MatchString(name) {
		return "", usage("volume %q: not a name for a folder", name)
	}
	parent := filepath.Join(volumesDir, fmt.Sprintf("%s-%d", service, index))
	dir := filepath.Join(parent, name)
	err := s.on(ctx, key, "make volume", func(root *os.Root) error {
		if err := root.MkdirAll(parent, 0o711); err != nil {
			return err
		}
		err := root.Mkdir(dir, 0o777)
		if errors.Is(err, fs.ErrExist) {
			return nil // the tenant's, with the tenant's permissions
		}
		if err != nil {
			return err
		}
		return root.Chmod(dir, 0o777) // whatever the umask says
	})
	return filepath.Join(s.mount(key), dir), err
}

// Log returns the file for a replica's output. It need not exist.
func (s *Store) Log(id lease.ReplicaID) (string, error) {
	if err := checkReplica(id); err != nil {
		return "", err
	}
	if !keyForm.MatchString(string(id.Lease)) {
		return "", usage("lease key %q: want l and ten of 0-9 and a-v", id.Lease)
	}
	return filepath.Join(s.mount(id.Lease), logFile(id)), nil
}

func logFile(id lease.ReplicaID) string { return filepath.Join(logsDir, id.Pod()+".log") }

// File writes a generated file (hosts, resolv.conf) that any user of a replica
// may read, and returns its path.
func (s *Store) File(ctx context.Context, key lease.Key, name string, data []byte) (string, error) {
	if !nameForm.MatchString(name) {
		return "", usage("file %q: not a name for a file", name)
	}
	path := filepath.Join(s.mount(key), filesDir, name)
	// Tenants never get this folder, only single files of it read-only.
	err := s.on(ctx, key, "write generated file", func(*os.Root) error {
		return atomicfile.WriteFile(path, data, 0o644)
	})
	return path, err
}
