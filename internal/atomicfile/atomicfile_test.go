package atomicfile_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/croft-cloud/croft/internal/atomicfile"
)

func TestWriteFile(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(t *testing.T, path string)
		data   string
		perm   fs.FileMode
	}{
		{"a new file is created", nil, "one", 0o600},
		{"empty content is content", nil, "", 0o644},
		{"permissions are exact whatever the umask", nil, "one", 0o666},
		{"an old file is replaced, permissions included", func(t *testing.T, path string) {
			write(t, path, "a much longer old content", 0o644)
		}, "one", 0o600},
		{"a longer leftover of a crash is taken over", func(t *testing.T, path string) {
			write(t, path, "old", 0o644)
			write(t, leftover(path), "half of something much longer than the new", 0o644)
		}, "one", 0o600},
		{"a symbolic link becomes a file and its target stays", func(t *testing.T, path string) {
			if err := os.Symlink("/dev/null", path); err != nil {
				t.Fatal(err)
			}
		}, "one", 0o600},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.json")
			if tc.before != nil {
				tc.before(t, path)
			}
			if err := atomicfile.WriteFile(path, []byte(tc.data), tc.perm); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != tc.data {
				t.Errorf("content is %q, %v; want %q", got, err, tc.data)
			}
			info, err := os.Lstat(path)
			if err != nil || info.Mode() != tc.perm {
				t.Errorf("mode is %v, %v; want %v", info.Mode(), err, tc.perm)
			}
			onlyFile(t, path)
		})
	}
}

func TestWriteFileThatFailsLeavesNothingBehind(t *testing.T) {
	t.Run("the target is a directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.json")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		err := atomicfile.WriteFile(path, []byte("x"), 0o600)
		if err == nil || !strings.HasPrefix(err.Error(), "write file "+path+": ") {
			t.Errorf("error is %v", err)
		}
		onlyFile(t, path)
	})
	t.Run("the directory is missing", func(t *testing.T) {
		if err := atomicfile.WriteFile(filepath.Join(t.TempDir(), "no", "x"), nil, 0o600); err == nil {
			t.Error("no error")
		}
	})
	t.Run("the path names no file", func(t *testing.T) {
		for _, path := range []string{"", ".", "..", "dir/"} {
			if err := atomicfile.WriteFile(path, nil, 0o600); err == nil {
				t.Errorf("no error for %q", path)
			}
		}
	})
	t.Run("a link planted under the temporary name is not followed", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "state.json")
		victim := filepath.Join(t.TempDir(), "victim")
		write(t, victim, "precious", 0o600)
		if err := os.Symlink(victim, leftover(path)); err != nil {
			t.Fatal(err)
		}
		if err := atomicfile.WriteFile(path, []byte("x"), 0o600); err == nil {
			t.Error("no error")
		}
		if got, err := os.ReadFile(victim); err != nil || string(got) != "precious" {
			t.Errorf("the link's target is now %q, %v", got, err)
		}
	})
}

func TestAReaderSeesTheOldOrTheNewContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	content := func(n int) []byte { return bytes.Repeat([]byte{byte('a' + n)}, 64<<10) }
	write(t, path, string(content(0)), 0o600)
	var writers sync.WaitGroup
	for n := range 4 {
		writers.Go(func() {
			for range 5 {
				if err := atomicfile.WriteFile(path, content(n), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 64<<10 || bytes.Count(got, got[:1]) != len(got) {
			t.Fatalf("a reader saw a mix of %d bytes", len(got))
		}
	}
	onlyFile(t, path)
}

func TestMkdirAll(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "file"), "", 0o600)
	for _, tc := range []struct{ name, path, err string }{
		{"missing parents are made", "a/b/c", ""},
		{"a directory that is there is fine", "a/b", ""},
		{"a path may end in a slash", "d/", ""},
		{"a file in the way is reported", "file/x", "not a directory"},
		{"a file at the path is reported", "file", "not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := root + "/" + tc.path
			err := atomicfile.MkdirAll(path, 0o700)
			if tc.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), "make directory "+path+": ") || !strings.HasSuffix(err.Error(), tc.err) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeDir|0o700 {
				t.Errorf("path is %v, %v", info, err)
			}
		})
	}
}

func write(t *testing.T, path, data string, perm fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), perm); err != nil {
		t.Fatal(err)
	}
}

func leftover(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// onlyFile checks that path is all its directory holds.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("directory holds %v", entries)
	}
}

func TestMain(m *testing.M) {
	syscall.Umask(0o077)
	os.Exit(m.Run())
}
