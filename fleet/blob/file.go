package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

const (
	defaultMinFree = 256 << 20
	unfinished     = ".put-" // begins the names of files that are being written
	slash          = ","     // stands for '/' in names; no key has it
)

// folder is a [Store] in one flat folder: a blob is a file named by its key. A
// file being written is locked by whoever writes it.
type folder struct {
	dir     string
	minFree int64
}

func openFile(u *url.URL, query url.Values) (Store, error) {
	if u.Host != "" || u.User != nil || u.Fragment != "" || !filepath.IsAbs(u.Path) {
		return nil, usage("open blob store: want a URL of a folder, as file:///var/lib/croft/blobs")
	}
	opts, err := options(query, "min-free")
	if err != nil {
		return nil, err
	}
	s := &folder{dir: filepath.Clean(u.Path), minFree: defaultMinFree}
	if text := opts["min-free"]; text != "" {
		if s.minFree, err = strconv.ParseInt(text, 10, 64); err != nil || s.minFree < 0 {
			return nil, usage("open blob store: min-free: want a number of bytes")
		}
	}
	if err := atomicfile.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	if err := s.removeUnfinished(); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	return s, nil
}

// removeUnfinished removes what nobody writes any more.
func (s *folder) removeUnfinished() error {
	names, err := filepath.Glob(filepath.Join(escapeGlob(s.dir), unfinished+"*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := removeUnlocked(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

func removeUnlocked(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil // it is being written
		}
		return err
	}
	return os.Remove(name)
}

func (s *folder) path(key string) string {
	return filepath.Join(s.dir, strings.ReplaceAll(key, "/", slash))
}

func (s *folder) Put(ctx context.Context, key string, size int64, r io.Reader) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if err := s.put(ctx, key, size, r); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = noSpace(err)
		}
		return fmt.Errorf("put blob %s: %w", key, err)
	}
	return nil
}

func (s *folder) put(ctx context.Context, key string, size int64, r io.Reader) (err error) {
	body, err := newExactly(r, size)
	if err != nil {
		return err
	}
	if err := s.room(size); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, unfinished+"*")
	if err != nil {
		return err
	}
	defer f.Close() // gives the lock back; what matters was synced before
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err // somebody opens the store just now, and removes it
	}
	if _, err := io.Copy(f, withContext{ctx, body}); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.path(key)); err != nil {
		return err
	}
	return s.sync()
}

// room fails if the disk would have too little left.
func (s *folder) room(size int64) error {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &disk); err != nil {
		return err
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < s.minFree || free-s.minFree < size {
		return noSpace(fmt.Errorf("%d bytes are free, and %d of them stay so", free, s.minFree))
	}
	return nil
}

// sync makes names last.
func (s *folder) sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (s *folder) Get(_ context.Context, key string) (io.ReadCloser, int64, error) {
	if err := checkKey(key); err != nil {
		return nil, 0, err
	}
	f, err := os.Open(s.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, 0, fmt.Errorf("get blob %s: %w", key, err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("get blob %s: %w", key, err)
	}
	return f, info.Size(), nil
}

func (s *folder) Delete(_ context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	err := os.Remove(s.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.sync()
	}
	if err != nil {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

func (s *folder) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		items, err := s.list(ctx, prefix)
		if err != nil {
			yield(Item{}, fmt.Errorf("list blobs: %w", err))
			return
		}
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (s *folder) list(ctx context.Context, prefix string) ([]Item, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, entry := range entries {
		key := strings.ReplaceAll(entry.Name(), slash, "/")
		if !entry.Type().IsRegular() || !strings.HasPrefix(key, prefix) || checkKey(key) != nil {
			continue
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		items = append(items, Item{Key: key, Size: info.Size()})
	}
	slices.SortFunc(items, func(a, b Item) int { return cmp.Compare(a.Key, b.Key) })
	return items, ctx.Err()
}

// withContext is a reader that ends with a context.
type withContext struct {
	ctx  context.Context
	from io.Reader
}

func (r withContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.from.Read(p)
}
