package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// The errors of uploads, besides [ErrTooFast] and those of [Jobs]. What is no
// good bundle is an error of kind invalid.
var (
	ErrTooLarge = &croft.Error{
		Kind: croft.KindUsage, Err: errors.New("the bundle is too large"), Remedy: "collect less",
	}
	ErrConflict = &croft.Error{
		Kind: croft.KindRefused, Err: errors.New("there is another bundle of this job"), Remedy: "keep the bundle that was uploaded first",
	}
	ErrFull = &croft.Error{
		Kind: croft.KindNoSpace, Err: errors.New("the fleet has no room for more bundles"), Remedy: "try again when old bundles are deleted",
	}
)

// errBody reports that the box went away in the middle.
var errBody = errors.New("upload broke off")

// putWithin is how long storing may take. An orphan is older than that by far.
const putWithin = 10 * time.Minute

// Upload takes the bundle of a job. size is how many bytes body gives; -1 if that
// is not known. fresh is false if exactly this bundle was there already, also if
// the job has ended since. On an error nothing is kept, and the box may try again.
func (s *Store) Upload(ctx context.Context, device croft.DeviceID, job string, body io.Reader, size int64) (info Info, fresh bool, err error) {
	if size > s.cfg.MaxBytes {
		return Info{}, false, ErrTooLarge
	}
	leave, err := s.gate.enter(device)
	if err != nil {
		return Info{}, false, err
	}
	defer leave()
	known, err := s.known(ctx, device, job)
	if err != nil {
		return Info{}, false, err
	}
	if known == nil {
		if err := s.cfg.Jobs.Expected(ctx, device, job); err != nil {
			return Info{}, false, err
		}
	}
	file, n, digest, err := s.receive(body, size)
	if err != nil {
		return Info{}, false, err
	}
	defer file.Close()
	if known != nil {
		return same(*known, digest)
	}
	entries, err := inspect(file, n)
	if err != nil {
		return Info{}, false, err
	}
	info = Info{
		ID: fleetapi.NewID(prefix), Device: device, Job: job, Digest: digest, Size: n, Entries: entries,
		Created: db.Instant(db.Micros(time.Now())),
	}
	info.Expires = info.Created.Add(s.cfg.Keep)
	if err := s.put(ctx, info, file); err != nil {
		return Info{}, false, err
	}
	return s.keep(ctx, info)
}

// same is the bundle that is there, if it is the same.
func same(known Info, digest string) (Info, bool, error) {
	if known.Digest != digest {
		return Info{}, false, ErrConflict
	}
	return known, false, nil
}

// known is the bundle of a job, or nil.
func (s *Store) known(ctx context.Context, device croft.DeviceID, job string) (*Info, error) {
	var found []Info
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = s.find(tx, "job = ? AND device = ?", job, string(device))
		return err
	})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

// temporary is a file without a name: nothing of it survives the program.
func (s *Store) temporary() (*os.File, error) {
	f, err := os.CreateTemp(s.cfg.Dir, "bundle-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// receive reads an upload whole, and leaves it to be read from its beginning.
func (s *Store) receive(body io.Reader, size int64) (_ *os.File, n int64, digest string, err error) {
	f, err := s.temporary()
	if err != nil {
		return nil, 0, "", fmt.Errorf("receive bundle: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	from := &reader{from: io.LimitReader(body, s.cfg.MaxBytes+1)}
	sum := sha256.New()
	n, err = io.Copy(io.MultiWriter(f, sum), from)
	switch {
	case from.err != nil:
		return nil, 0, "", fmt.Errorf("%w: %w", errBody, from.err)
	case err != nil:
		return nil, 0, "", fmt.Errorf("receive bundle: %w", err)
	case n > s.cfg.MaxBytes:
		return nil, 0, "", ErrTooLarge
	case size >= 0 && n != size:
		return nil, 0, "", fmt.Errorf("%w: it has %d bytes, and %d were announced", errBody, n, size)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, 0, "", fmt.Errorf("receive bundle: %w", err)
	}
	return f, n, hex.EncodeToString(sum.Sum(nil)), nil
}

// reader remembers why reading failed, to tell that from writing.
type reader struct {
	from io.Reader
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// put stores the bytes of a bundle. What the blobs say about themselves is not
// for the box.
func (s *Store) put(ctx context.Context, info Info, body io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, putWithin)
	defer cancel()
	err := s.cfg.Blobs.Put(ctx, folder+info.ID, info.Size, body)
	switch {
	case err == nil:
		return nil
	case croft.KindOf(err) == croft.KindNoSpace:
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return &croft.Error{Kind: croft.KindOther, Err: fmt.Errorf("store bundle: %w", err)}
}

// keep records a bundle that is stored, unless another of its job was faster.
func (s *Store) keep(ctx context.Context, info Info) (Info, bool, error) {
	var faster *Info
	var evicted []Info
	err := s.db.Write(ctx, func(tx *db.Tx) (err error) {
		faster, evicted, err = s.record(tx, info)
		return err
	})
	switch {
	case errors.Is(err, ErrFull):
		s.dropBlobs(ctx, []Info{info})
		return Info{}, false, err
	case err != nil: // perhaps it is recorded: the blob stays
		return Info{}, false, err
	case faster != nil:
		s.dropBlobs(ctx, []Info{info})
		return same(*faster, info.Digest)
	}
	s.dropBlobs(ctx, evicted)
	return info, true, nil
}

func (s *Store) record(tx *db.Tx, info Info) (faster *Info, evicted []Info, err error) {
	found, err := s.find(tx, "job = ?", info.Job)
	if err != nil {
		return nil, nil, err
	}
	if len(found) > 0 {
		return &found[0], nil, nil
	}
	of, err := s.find(tx, "device = ?", string(info.Device))
	if err != nil {
		return nil, nil, err
	}
	evicted = of[min(len(of), s.cfg.PerDevice-1):]
	if err := forget(tx, byFleet, "bundle.evict", evicted); err != nil {
		return nil, nil, err
	}
	var total int64
	if err := tx.Row("SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM bundle_bundles").Scan(&total); err != nil {
		return nil, nil, err
	}
	if total+info.Size > s.cfg.MaxTotal {
		return nil, nil, ErrFull
	}
	// If another transaction was faster, the database says that of this one, and
	// it runs again.
	_, err = tx.Exec("INSERT INTO bundle_bundles ("+columns+") VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job) DO NOTHING",
		info.ID, string(info.Device), info.Job, info.Digest, info.Size, info.Entries, db.Micros(info.Created))
	tx.Notify(Topic, info.ID)
	return nil, evicted, err
}
