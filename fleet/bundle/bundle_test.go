package bundle_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/blob"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

var errDown = errors.New("it is down")

func idOf(n int) croft.DeviceID {
	return croft.DeviceIDFromDigest([32]byte{byte(n), 1})
}

// faulty is a store of blobs that can be told to fail.
type faulty struct {
	blob.Store

	mu     sync.Mutex
	put    func() error // guarded by mu; called when a blob is stored; nil: no fault
	delete error        // guarded by mu
}

func (f *faulty) Put(ctx context.Context, key string, size int64, r io.Reader) error {
	if err := f.Store.Put(ctx, key, size, r); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.put != nil {
		return f.put()
	}
	return nil
}

func (f *faulty) Delete(ctx context.Context, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.delete != nil {
		return f.delete
	}
	return f.Store.Delete(ctx, key)
}

// fleet is a store of bundles with jobs and audit log in memory.
type fleet struct {
	*bundle.Store
	url   string
	db    *db.DB
	dir   string // of the blobs
	blobs *faulty

	mu        sync.Mutex
	jobs      map[string]croft.DeviceID // guarded by mu
	ended     map[string]bool           // guarded by mu
	auditDown bool                      // guarded by mu
	audited   []string                  // guarded by mu
}

func (f *fleet) Expected(_ context.Context, device croft.DeviceID, job string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.jobs[job] != device:
		return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such job")}
	case f.ended[job]:
		return &croft.Error{Kind: croft.KindRefused, Err: errors.New("the job has ended")}
	}
	return nil
}

func (f *fleet) Record(_ context.Context, e bundle.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.auditDown {
		return errDown
	}
	f.audited = append(f.audited, e.Action+" by "+e.By+" of "+e.Before["bundle"])
	return nil
}

// job makes a job of a box that waits for its bundle.
func (f *fleet) job(n int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fleetapi.NewID(fleetapi.PrefixJob)
	f.jobs[id] = idOf(n)
	return id
}

func (f *fleet) end(job string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended[job] = true
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

func wantKind(t testing.TB, err error, want croft.Kind) {
	t.Helper()
	if err == nil || croft.KindOf(err) != want {
		t.Errorf("error = %v, of kind %q; want kind %q", err, croft.KindOf(err), want)
	}
}

// each runs a test on every engine; with SQLite in a bubble of time, which a
// connection to PostgreSQL would keep from advancing.
func each(t *testing.T, cfg bundle.Config, test func(t *testing.T, f *fleet)) {
	t.Helper()
	timed(t, cfg, test)
	for _, engine := range dbtest.Engines() {
		if engine == dbtest.SQLite {
			continue
		}
		t.Run(string(engine), func(t *testing.T) { test(t, newFleet(t, dbtest.URL(t, engine), cfg)) })
	}
}

// timed runs a test that waits for the fleet's loops, on SQLite.
func timed(t *testing.T, cfg bundle.Config, test func(t *testing.T, f *fleet)) {
	t.Helper()
	t.Run(string(dbtest.SQLite), func(t *testing.T) {
		url := dbtest.URL(t, dbtest.SQLite)
		synctest.Test(t, func(t *testing.T) { test(t, newFleet(t, url, cfg)) })
	})
}

func newFleet(t testing.TB, url string, cfg bundle.Config) *fleet {
	t.Helper()
	f := &fleet{url: url, db: dbtest.Open(t, url), dir: t.TempDir(), jobs: map[string]croft.DeviceID{}, ended: map[string]bool{}}
	f.blobs = &faulty{Store: must(blob.Open(t.Context(), "file://"+f.dir+"?min-free=0"))(t)}
	cfg.DB, cfg.Blobs, cfg.Jobs, cfg.Audit, cfg.Dir = f.db, f.blobs, f, f, t.TempDir()
	f.Store = must(bundle.New(t.Context(), cfg))(t)
	t.Cleanup(func() {
		if left := must(os.ReadDir(cfg.Dir))(t); len(left) != 0 {
			t.Errorf("temporary files are left: %v", left)
		}
	})
	return f
}

func (f *fleet) run(t testing.TB) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-ended)
	})
}

func (f *fleet) upload(t testing.TB, n int, job string, body []byte) (bundle.Info, bool, error) {
	t.Helper()
	return f.Upload(t.Context(), idOf(n), job, bytes.NewReader(body), int64(len(body)))
}

// fresh uploads a bundle of a new job.
func (f *fleet) fresh(t testing.TB, n int, content string) bundle.Info {
	t.Helper()
	info, fresh, err := f.upload(t, n, f.job(n), zipped(t, content))
	check(t, err)
	if !fresh {
		t.Error("a new bundle was there before")
	}
	return info
}

func (f *fleet) stored(t testing.TB) (ids []string) {
	t.Helper()
	for item, err := range f.blobs.List(t.Context(), "") {
		check(t, err)
		ids = append(ids, strings.TrimPrefix(item.Key, "bundle/"))
	}
	return ids
}

func (f *fleet) listed(t testing.TB, n int) (ids []string) {
	t.Helper()
	for _, i := range must(f.List(t.Context(), idOf(n)))(t) {
		ids = append(ids, i.ID)
	}
	return ids
}

func (f *fleet) told() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.audited)
}

// zipped is a zip file with one entry.
func zipped(t testing.TB, content string) []byte {
	t.Helper()
	return pack(t, map[string]string{"agent.log": content})
}

func pack(t testing.TB, entries map[string]string) []byte {
	t.Helper()
	var raw bytes.Buffer
	w := zip.NewWriter(&raw)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		_, err := must(w.Create(name))(t).Write([]byte(entries[name]))
		check(t, err)
	}
	check(t, w.Close())
	return raw.Bytes()
}

func unpack(t testing.TB, raw []byte) map[string]string {
	t.Helper()
	r := must(zip.NewReader(bytes.NewReader(raw), int64(len(raw))))(t)
	entries := map[string]string{}
	for _, file := range r.File {
		content := must(file.Open())(t)
		entries[file.Name] = string(must(io.ReadAll(content))(t))
		check(t, content.Close())
	}
	return entries
}

func TestUploadIsKeptOnce(t *testing.T) {
	each(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		job, body := f.job(1), zipped(t, "all is well")
		info, fresh, err := f.upload(t, 1, job, body)
		check(t, err)
		if !fresh || info.Device != idOf(1) || info.Job != job || info.Size != int64(len(body)) || info.Entries != 1 ||
			info.Expires.Sub(info.Created) != 30*24*time.Hour {
			t.Errorf("fresh %v, info %+v", fresh, info)
		}
		f.end(job) // the answer was lost, and the box was done all the same
		again, fresh, err := f.upload(t, 1, job, body)
		check(t, err)
		if fresh || again != info {
			t.Errorf("again: fresh %v, info %+v", fresh, again)
		}
		if _, _, err := f.upload(t, 1, job, zipped(t, "no, it is not")); !errors.Is(err, bundle.ErrConflict) {
			t.Errorf("another bundle of the job: %v", err)
		}
		if got := must(f.Info(t.Context(), info.ID))(t); got != info {
			t.Errorf("info is %+v", got)
		}
		if got := f.stored(t); !slices.Equal(got, []string{info.ID}) {
			t.Errorf("stored are %v", got)
		}
		reading := must(f.Open(t.Context(), info.ID))(t)
		raw := must(io.ReadAll(reading))(t)
		check(t, reading.Close())
		if got := unpack(t, raw); len(got) != 1 || got["agent.log"] != "all is well" || reading.Size != int64(len(raw)) || reading.Info != info || len(reading.Masked) != 0 {
			t.Errorf("read %v of %+v", got, reading)
		}
	})
}

func TestUploadNobodyWaitsForIsRefused(t *testing.T) {
	each(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		unread := iotest.ErrReader(errors.New("the body was read"))
		_, _, err := f.Upload(t.Context(), idOf(1), fleetapi.NewID(fleetapi.PrefixJob), unread, 10)
		wantKind(t, err, croft.KindNotFound)
		_, _, err = f.Upload(t.Context(), idOf(1), f.job(2), unread, 10)
		wantKind(t, err, croft.KindNotFound)
		job := f.job(1)
		f.end(job)
		_, _, err = f.Upload(t.Context(), idOf(1), job, unread, 10)
		wantKind(t, err, croft.KindRefused)
		// A bundle that is there is not shown to another box.
		info := f.fresh(t, 2, "mine")
		_, _, err = f.Upload(t.Context(), idOf(1), info.Job, unread, 10)
		wantKind(t, err, croft.KindNotFound)
		if got := f.stored(t); len(got) != 1 {
			t.Errorf("stored are %v", got)
		}
	})
}

func TestUploadsOfOneJobAtOnce(t *testing.T) {
	each(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		// Two replicas, two uploads each, of two different bundles.
		d := f.db
		if !strings.HasPrefix(f.url, "sqlite:") {
			d = dbtest.Open(t, f.url)
		}
		other := must(bundle.New(t.Context(), bundle.Config{DB: d, Blobs: f.blobs, Jobs: f, Audit: f, Dir: t.TempDir()}))(t)
		for range 4 {
			job, bodies := f.job(1), [][]byte{zipped(t, "one"), zipped(t, "two")}
			infos, fresh, errs := make([]bundle.Info, 4), make([]bool, 4), make([]error, 4)
			var work sync.WaitGroup
			for n := range 4 {
				store := []*bundle.Store{f.Store, other}[n%2]
				work.Go(func() {
					infos[n], fresh[n], errs[n] = store.Upload(t.Context(), idOf(1), job, bytes.NewReader(bodies[n/2]), -1)
				})
			}
			work.Wait()
			won := slices.Index(fresh, true)
			if won < 0 {
				t.Fatalf("none won: %v", errs)
			}
			for n := range 4 {
				switch {
				case n == won:
				case fresh[n]:
					t.Errorf("%d won too", n)
				case n/2 == won/2:
					if errs[n] != nil || infos[n] != infos[won] {
						t.Errorf("the same bundle: %+v, %v", infos[n], errs[n])
					}
				default:
					if !errors.Is(errs[n], bundle.ErrConflict) {
						t.Errorf("another bundle: %v", errs[n])
					}
				}
			}
			if got := f.stored(t); !slices.Equal(got, []string{infos[won].ID}) {
				t.Errorf("stored are %v", got)
			}
			check(t, f.Delete(t.Context(), "usr_1", infos[won].ID))
		}
	})
}

func TestUploadThatBreaksOff(t *testing.T) {
	each(t, bundle.Config{MaxBytes: 1000}, func(t *testing.T, f *fleet) {
		body := zipped(t, "x")
		for name, tc := range map[string]struct {
			body io.Reader
			size int64
			want error
		}{
			"the line broke":    {io.MultiReader(bytes.NewReader(body), iotest.ErrReader(errDown)), -1, errDown},
			"shorter than said": {bytes.NewReader(body), int64(len(body)) + 1, nil},
			"longer than said":  {bytes.NewReader(body), int64(len(body)) - 1, nil},
			"said too large":    {iotest.ErrReader(errDown), 1001, bundle.ErrTooLarge},
			"is too large":      {io.LimitReader(zeros{}, 1<<40), -1, bundle.ErrTooLarge},
		} {
			if _, _, err := f.Upload(t.Context(), idOf(1), f.job(1), tc.body, tc.size); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := f.stored(t); len(got) != 0 {
			t.Errorf("stored are %v", got)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestKilledBetweenBlobAndRecord(t *testing.T) {
	timed(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		f.run(t)
		kept := f.fresh(t, 1, "before")
		job, body := f.job(1), zipped(t, "x")
		ctx, kill := context.WithCancel(t.Context())
		f.blobs.put = func() error { kill(); return nil }
		if _, _, err := f.Upload(ctx, idOf(1), job, bytes.NewReader(body), -1); !errors.Is(err, context.Canceled) {
			t.Fatalf("error is %v", err)
		}
		f.blobs.put = nil
		if len(f.stored(t)) != 2 || len(f.listed(t, 1)) != 1 {
			t.Fatalf("stored are %v, listed are %v", f.stored(t), f.listed(t, 1))
		}
		time.Sleep(30 * time.Minute)
		info, fresh, err := f.upload(t, 1, job, body)
		check(t, err)
		if !fresh {
			t.Error("what was not recorded counts")
		}
		check(t, f.blobs.Store.Put(t.Context(), "bundle/strange", 1, strings.NewReader("x")))
		check(t, f.blobs.Store.Put(t.Context(), "other/"+fleetapi.NewID("bun"), 1, strings.NewReader("x")))
		time.Sleep(2 * time.Hour)
		if got := f.stored(t); len(got) != 4 || !slices.Contains(got, kept.ID) || !slices.Contains(got, info.ID) || !slices.Contains(got, "strange") {
			t.Errorf("stored are %v, want what is recorded and what is not ours", got)
		}
	})
}

func TestOrphansAreYoungFirst(t *testing.T) {
	timed(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		f.run(t)
		time.Sleep(59 * time.Minute)
		for range 450 { // more than is looked up at once
			check(t, os.WriteFile(filepath.Join(f.dir, "bundle,"+fleetapi.NewID("bun")), nil, 0o600))
		}
		time.Sleep(30 * time.Minute) // swept once
		if got := f.stored(t); len(got) != 450 {
			t.Errorf("%d are stored: an upload may be on its way", len(got))
		}
		time.Sleep(time.Hour)
		if got := f.stored(t); len(got) != 0 {
			t.Errorf("%d are stored", len(got))
		}
	})
}

func TestBlobsAreDown(t *testing.T) {
	timed(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		f.run(t)
		info := f.fresh(t, 1, "x")
		f.blobs.delete = errDown
		check(t, f.Delete(t.Context(), "usr_1", info.ID))
		if len(f.listed(t, 1)) != 0 || len(f.stored(t)) != 1 {
			t.Errorf("listed are %v, stored are %v", f.listed(t, 1), f.stored(t))
		}
		f.blobs.delete = nil
		time.Sleep(2*time.Hour + time.Minute)
		if got := f.stored(t); len(got) != 0 {
			t.Errorf("stored are %v", got)
		}
		// What blobs say about themselves is not for boxes.
		f.blobs.put = func() error { return &croft.Error{Kind: croft.KindRefused, Err: errDown} }
		_, _, err := f.upload(t, 1, f.job(1), zipped(t, "x"))
		wantKind(t, err, croft.KindOther)
		f.blobs.put = func() error { return &croft.Error{Kind: croft.KindNoSpace, Err: errDown} }
		if _, _, err := f.upload(t, 1, f.job(1), zipped(t, "x")); !errors.Is(err, bundle.ErrFull) || fleetapi.ErrorDocumentOf(err).Message != bundle.ErrFull.Err.Error() {
			t.Errorf("error is %v", err)
		}
	})
}

func TestBundlesEnd(t *testing.T) {
	timed(t, bundle.Config{Keep: 4 * time.Hour}, func(t *testing.T, f *fleet) {
		f.run(t)
		old := f.fresh(t, 1, "old")
		time.Sleep(2 * time.Hour)
		young := f.fresh(t, 1, "young")
		time.Sleep(2*time.Hour - time.Second)
		if got := f.listed(t, 1); !slices.Equal(got, []string{young.ID, old.ID}) {
			t.Errorf("listed are %v", got)
		}
		time.Sleep(2 * time.Minute)
		if got := f.listed(t, 1); !slices.Equal(got, []string{young.ID}) {
			t.Errorf("listed are %v", got)
		}
		if got := f.stored(t); !slices.Equal(got, []string{young.ID}) {
			t.Errorf("stored are %v", got)
		}
		if got := f.told(); !slices.Equal(got, []string{"bundle.expire by fleet of " + old.ID}) {
			t.Errorf("audited is %v", got)
		}
	})
}

func TestManyBundlesEndAtOnce(t *testing.T) {
	timed(t, bundle.Config{Keep: time.Hour}, func(t *testing.T, f *fleet) {
		body := zipped(t, "x")
		for n := range 205 {
			_, _, err := f.upload(t, n, f.job(n), body)
			check(t, err)
		}
		f.run(t)
		time.Sleep(time.Hour + 2*time.Minute)
		if got := f.stored(t); len(got) != 0 || len(f.told()) != 205 {
			t.Errorf("%d are stored, %d audited", len(got), len(f.told()))
		}
	})
}

func TestABoxHasItsNewest(t *testing.T) {
	timed(t, bundle.Config{PerDevice: 2}, func(t *testing.T, f *fleet) {
		other := f.fresh(t, 2, "other")
		var ids []string
		for n := range 4 {
			ids = append(ids, f.fresh(t, 1, fmt.Sprint(n)).ID)
			time.Sleep(2 * time.Millisecond) // ids are in order to the millisecond
		}
		if got := f.listed(t, 1); !slices.Equal(got, []string{ids[3], ids[2]}) {
			t.Errorf("listed are %v of %v", got, ids)
		}
		if got := f.stored(t); len(got) != 3 || !slices.Contains(got, other.ID) {
			t.Errorf("stored are %v", got)
		}
	})
}

func TestAllBundlesHaveABudget(t *testing.T) {
	body := zipped(t, "0")
	each(t, bundle.Config{MaxTotal: 2 * int64(len(body)), PerDevice: 2}, func(t *testing.T, f *fleet) {
		one, two := f.fresh(t, 1, "1"), f.fresh(t, 1, "2")
		_, _, err := f.upload(t, 2, f.job(2), zipped(t, "3"))
		wantKind(t, err, croft.KindNoSpace)
		if got := f.stored(t); len(got) != 2 {
			t.Errorf("stored are %v", got)
		}
		three := f.fresh(t, 1, "3") // takes the place of its own oldest
		if got := f.listed(t, 1); !slices.Contains(got, three.ID) || len(got) != 2 {
			t.Errorf("listed are %v, of %s %s", got, one.ID, two.ID)
		}
		check(t, f.DeleteDevice(t.Context(), idOf(1)))
		f.fresh(t, 2, "3")
	})
}

func TestUploadsAreRateLimited(t *testing.T) {
	timed(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		for range 10 {
			f.fresh(t, 1, "x")
		}
		if _, _, err := f.upload(t, 1, f.job(1), zipped(t, "x")); !errors.Is(err, bundle.ErrTooFast) {
			t.Errorf("error is %v", err)
		}
		f.fresh(t, 2, "another box")
		time.Sleep(time.Minute)
		f.fresh(t, 1, "a minute later")
	})
	t.Run("at once", func(t *testing.T) {
		timed(t, bundle.Config{}, func(t *testing.T, f *fleet) {
			var work sync.WaitGroup
			goOn := make(chan struct{})
			hold := func(n int) {
				job := f.job(n)
				work.Go(func() {
					_, _, err := f.Upload(t.Context(), idOf(n), job, readerFunc(func([]byte) (int, error) { <-goOn; return 0, io.EOF }), -1)
					wantKind(t, err, croft.KindInvalid)
				})
			}
			tooMany := func(n int) {
				t.Helper()
				if _, _, err := f.upload(t, n, f.job(n), zipped(t, "x")); !errors.Is(err, bundle.ErrTooFast) {
					t.Errorf("error is %v", err)
				}
			}
			hold(0)
			hold(0)
			synctest.Wait()
			tooMany(0) // the box has its two
			f.fresh(t, 9, "another box")
			for n := range 14 {
				hold(1 + n/2)
			}
			synctest.Wait()
			tooMany(9) // all together have theirs
			close(goOn)
			work.Wait()
			f.fresh(t, 0, "x")
		})
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDelete(t *testing.T) {
	each(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		one, two, three := f.fresh(t, 1, "1"), f.fresh(t, 1, "2"), f.fresh(t, 2, "3")
		check(t, f.Delete(t.Context(), "usr_1", one.ID))
		if err := f.Delete(t.Context(), "usr_1", one.ID); !errors.Is(err, bundle.ErrNoBundle) {
			t.Errorf("the second delete: %v", err)
		}
		_, err := f.Open(t.Context(), one.ID)
		wantKind(t, err, croft.KindNotFound)
		check(t, f.DeleteDevice(t.Context(), idOf(1)))
		check(t, f.DeleteDevice(t.Context(), idOf(1)))
		if len(f.listed(t, 1)) != 0 || !slices.Equal(f.stored(t), []string{three.ID}) {
			t.Errorf("listed are %v, stored are %v; deleted was %s", f.listed(t, 1), f.stored(t), two.ID)
		}
	})
}

func TestAuditLogIsTold(t *testing.T) {
	timed(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		f.run(t)
		one, two := f.fresh(t, 1, "1"), f.fresh(t, 1, "2")
		f.auditDown = true
		check(t, f.Delete(t.Context(), "usr_1", one.ID))
		time.Sleep(time.Minute)
		f.mu.Lock()
		f.auditDown = false
		f.mu.Unlock()
		time.Sleep(time.Minute)
		check(t, f.DeleteDevice(t.Context(), idOf(1)))
		time.Sleep(time.Minute)
		if got := f.told(); !slices.Equal(got, []string{"bundle.delete by usr_1 of " + one.ID, "bundle.delete by fleet of " + two.ID}) {
			t.Errorf("audited is %v", got)
		}
	})
}

func TestContentIsLostOrDamaged(t *testing.T) {
	each(t, bundle.Config{}, func(t *testing.T, f *fleet) {
		info := f.fresh(t, 1, "x")
		path := filepath.Join(f.dir, "bundle,"+info.ID)
		check(t, os.WriteFile(path, zipped(t, "y"), 0o600))
		_, err := f.Open(t.Context(), info.ID)
		wantKind(t, err, croft.KindInvalid)
		check(t, os.Remove(path))
		_, err = f.Open(t.Context(), info.ID)
		wantKind(t, err, croft.KindNotFound)
		if got := f.listed(t, 1); len(got) != 1 {
			t.Errorf("listed are %v", got)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	f := newFleet(t, dbtest.URL(t, dbtest.SQLite), bundle.Config{})
	for name, cfg := range map[string]bundle.Config{
		"no blobs":         {DB: f.db, Jobs: f, Audit: f},
		"a negative limit": {DB: f.db, Blobs: f.blobs, Jobs: f, Audit: f, PerDevice: -1},
	} {
		if _, err := bundle.New(t.Context(), cfg); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
}
