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

	"github.com/google/uuid"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
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
			return nil, fmt.Errorf("look at lease disks: %w", err)
		}
		if d.Open, err = s.sys.mounted(s.mount(key)); err != nil {
			return nil, fmt.Errorf("look at lease disks: %w", err)
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
		used, total, err = s.sys.usage(s.mount(key))
	default:
		_, used, err = s.sys.allocated(s.image(key))
		total = r.Size
	}
	if err != nil {
		return 0, 0, fmt.Errorf("measure disk of lease %s: %w", key, err)
	}
	return used, total, nil
}
