package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/blob"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, want croft.Kind) {
	t.Helper()
	if err == nil || croft.KindOf(err) != want {
		t.Errorf("error = %v, of kind %q; want kind %q", err, croft.KindOf(err), want)
	}
}

func put(t testing.TB, s blob.Store, key, content string) {
	t.Helper()
	check(t, s.Put(t.Context(), key, int64(len(content)), strings.NewReader(content)))
}

func get(t testing.TB, s blob.Store, key string) string {
	t.Helper()
	body, size, err := s.Get(t.Context(), key)
	check(t, err)
	defer body.Close()
	raw, err := io.ReadAll(body)
	check(t, err)
	if int64(len(raw)) != size {
		t.Errorf("%s has %d bytes, and is said to have %d", key, len(raw), size)
	}
	return string(raw)
}

func list(t testing.TB, s blob.Store, prefix string) []string {
	t.Helper()
	found := []string{}
	for item, err := range s.List(t.Context(), prefix) {
		check(t, err)
		found = append(found, fmt.Sprintf("%s:%d", item.Key, item.Size))
	}
	return found
}

// suite is what every store passes. open gives an empty one.
func suite(t *testing.T, open func(t *testing.T) blob.Store) {
	t.Run("a blob is read as it was put", func(t *testing.T) {
		s := open(t)
		big := string(bytes.Repeat([]byte("0123456789abcdef"), 20_000)) // several chunks of S3's signature
		for _, content := range []string{"", "x", big} {
			put(t, s, "a/b", content)
			if got := get(t, s, "a/b"); got != content {
				t.Errorf("read %d bytes, put %d", len(got), len(content))
			}
		}
		put(t, s, "a/b", big)
		if got := list(t, s, ""); !slices.Equal(got, []string{"a/b:320000"}) {
			t.Errorf("put twice, the list is %v", got)
		}
	})
	t.Run("what is not there is not found, and deleting it is fine", func(t *testing.T) {
		s := open(t)
		if _, _, err := s.Get(t.Context(), "none"); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("error is %v", err)
		}
		check(t, s.Delete(t.Context(), "none"))
		put(t, s, "one", "1")
		put(t, s, "one/two", "2") // a key may be the beginning of another
		check(t, s.Delete(t.Context(), "one"))
		if _, _, err := s.Get(t.Context(), "one"); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("after the delete the error is %v", err)
		}
		if got := get(t, s, "one/two"); got != "2" {
			t.Errorf("the other blob is %q", got)
		}
	})
	t.Run("a reader that fails leaves what was there", func(t *testing.T) {
		broken := errors.New("the line broke")
		for name, tc := range map[string]struct {
			size int64
			give func() io.Reader
			want error
		}{
			"in the middle": {100_000, func() io.Reader {
				return io.MultiReader(strings.NewReader(strings.Repeat("x", 70_000)), iotest.ErrReader(broken))
			}, broken},
			"after the last byte": {5, func() io.Reader { return io.MultiReader(strings.NewReader("12345"), iotest.ErrReader(broken)) }, broken},
			"at once":             {0, func() io.Reader { return iotest.ErrReader(broken) }, broken},
			"too few bytes":       {6, reads("12345"), nil},
			"one byte too many":   {4, reads("12345"), nil},
			"something for empty": {0, reads("1"), nil},
			"size not known":      {-1, reads("1"), nil},
		} {
			t.Run(name, func(t *testing.T) {
				s := open(t)
				put(t, s, "old", "before")
				for _, key := range []string{"old", "new"} {
					err := s.Put(t.Context(), key, tc.size, tc.give())
					if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
						t.Errorf("put of %s: %v", key, err)
					}
				}
				if got := list(t, s, ""); !slices.Equal(got, []string{"old:6"}) {
					t.Errorf("there is %v", got)
				}
				if got := get(t, s, "old"); got != "before" {
					t.Errorf("what was there is now %q", got)
				}
			})
		}
	})
	t.Run("a put whose context ended leaves nothing", func(t *testing.T) {
		s := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		endless := readerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
		if err := s.Put(ctx, "x", 16<<20, endless); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
		if got := list(t, s, ""); len(got) != 0 {
			t.Errorf("there is %v", got)
		}
	})
	t.Run("a list is what begins with the prefix, in order", func(t *testing.T) {
		s := open(t)
		for _, key := range []string{"b/1", "a/2", "a/1", "a/10", "ab", "a-b", "a.b"} {
			put(t, s, key, key)
		}
		want := []string{"a-b:3", "a.b:3", "a/1:3", "a/10:4", "a/2:3", "ab:2", "b/1:3"}
		if got := list(t, s, ""); !slices.Equal(got, want) {
			t.Errorf("list is %v, want %v", got, want)
		}
		if got := list(t, s, "a/"); !slices.Equal(got, []string{"a/1:3", "a/10:4", "a/2:3"}) {
			t.Errorf("list of a/ is %v", got)
		}
		if got := list(t, s, "a/1"); !slices.Equal(got, []string{"a/1:3", "a/10:4"}) {
			t.Errorf("list of a/1 is %v", got)
		}
		if got := list(t, s, "none"); len(got) != 0 {
			t.Errorf("list of none is %v", got)
		}
		for _, err := range s.List(t.Context(), "") {
			check(t, err)
			break // a caller who has seen enough
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		var last error
		for _, last = range s.List(ended, "") {
		}
		if !errors.Is(last, context.Canceled) {
			t.Errorf("a list whose context ended says %v", last)
		}
	})
	t.Run("keys outside the alphabet are refused", func(t *testing.T) {
		s := open(t)
		for _, key := range []string{
			"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".hidden", "a/.b", "-a", "_a",
			"a\\b", "a,b", "a b", "a\x00b", "a\nb", "ä", "a%2fb", "a?b", "a#b", "a:b", strings.Repeat("a", blob.MaxKey+1),
		} {
			wantKind(t, s.Put(t.Context(), key, 1, strings.NewReader("x")), croft.KindUsage)
			_, _, err := s.Get(t.Context(), key)
			wantKind(t, err, croft.KindUsage)
			wantKind(t, s.Delete(t.Context(), key), croft.KindUsage)
			if key == "" || key == "a/" { // these are prefixes
				continue
			}
			for _, err := range s.List(t.Context(), key) {
				wantKind(t, err, croft.KindUsage)
			}
		}
		if got := list(t, s, ""); len(got) != 0 {
			t.Errorf("there is %v", got)
		}
		put(t, s, strings.Repeat("a", blob.MaxKey), "the longest key")
		put(t, s, "A/z9-_.Z", "every kind of byte")
	})
	t.Run("writers of one key take turns, and readers see one of them", func(t *testing.T) {
		s := open(t)
		put(t, s, "k", strings.Repeat("0", 50_000))
		var work sync.WaitGroup
		for n := range 4 {
			content := strings.Repeat(fmt.Sprint(n+1), 50_000)
			work.Go(func() {
				if err := s.Put(t.Context(), "k", int64(len(content)), strings.NewReader(content)); err != nil {
					t.Error(err)
				}
			})
			work.Go(func() {
				body, _, err := s.Get(t.Context(), "k")
				if err != nil {
					t.Error(err)
					return
				}
				defer body.Close()
				raw, err := io.ReadAll(body)
				if err != nil || len(raw) != 50_000 || bytes.Count(raw, raw[:1]) != len(raw) {
					t.Errorf("read a mix of %d bytes, %v", len(raw), err)
				}
			})
		}
		work.Wait()
		if got := list(t, s, ""); !slices.Equal(got, []string{"k:50000"}) {
			t.Errorf("there is %v", got)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func reads(content string) func() io.Reader {
	return func() io.Reader { return strings.NewReader(content) }
}
