package verity

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newImage writes size bytes of noise and returns the file.
func newImage(t testing.TB, size int) string {
	t.Helper()
	noise := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size)})
	if _, err := random.Read(noise); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(path, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func format(t testing.TB, path string) Root {
	t.Helper()
	root, err := Format(path)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func holds(t *testing.T, root Root, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return root.Holds(f)
}

// blocks are sizes around the borders of the tree: one hash block covers 128.
var blocks = []int{2, 127, 128, 129, 128*128 + 1}

func TestFormattedRootIsFoundAndVerified(t *testing.T) {
	for _, n := range blocks {
		t.Run(strconv.Itoa(n)+" blocks", func(t *testing.T) {
			path := newImage(t, n*BlockSize-100) // padded by Format
			root := format(t, path)
			if root.Size != int64(n*BlockSize) {
				t.Errorf("size is %d, want %d", root.Size, n*BlockSize)
			}
			if !holds(t, root, path) {
				t.Error("the root is not found where it is")
			}
			if err := root.Verify(path); err != nil {
				t.Error(err)
			}
			read, err := FromCommandLine("quiet " + strings.Join(root.Arguments(), " ") + " ro")
			if err != nil || read != root {
				t.Errorf("from the command line: %v, %v, want %v", read, err, root)
			}
			again := newImage(t, n*BlockSize-100)
			if other := format(t, again); other != root {
				t.Errorf("the same image gives %v, then %v", root, other)
			}
		})
	}
}

func TestVeritysetupAgrees(t *testing.T) {
	if _, err := exec.LookPath("veritysetup"); err != nil {
		t.Fatalf("this test needs veritysetup (package cryptsetup-bin): %v", err)
	}
	for _, n := range blocks {
		path := newImage(t, n*BlockSize)
		root := format(t, path)
		size := strconv.FormatInt(root.Size, 10)
		out, err := exec.Command("veritysetup", "verify", path, path, root.Hash, "--hash-offset="+size).CombinedOutput()
		if err != nil {
			t.Errorf("%d blocks: veritysetup: %v\n%s", n, err, out)
		}
	}
}

// TestEveryFlippedByteIsFound flips bytes all over data, superblock and tree,
// every one of the superblock's.
func TestEveryFlippedByteIsFound(t *testing.T) {
	path := newImage(t, 130*BlockSize)
	root := format(t, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var places []int
	for at := range 512 + 16 { // superblock, and some of the padding behind it
		places = append(places, int(root.Size)+at)
	}
	places = append(places, 0, int(root.Size)-1, int(root.Size)+BlockSize-1, int(root.Size)+BlockSize, len(whole)-1)
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		places = append(places, random.IntN(len(whole)))
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range places {
		if _, err := f.WriteAt([]byte{whole[at] ^ 0x10}, int64(at)); err != nil {
			t.Fatal(err)
		}
		if err := root.Verify(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d flipped: %v, want ErrCorrupt", at, err)
		}
		if _, err := f.WriteAt(whole[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := root.Verify(path); err != nil {
		t.Errorf("after all is mended: %v", err)
	}
}

func TestWhatIsNotTheRoot(t *testing.T) {
	path := newImage(t, 10*BlockSize)
	root := format(t, path)
	other := newImage(t, 11*BlockSize)
	format(t, other)
	if holds(t, root, other) {
		t.Error("another root is taken for this one")
	}
	if err := root.Verify(other); !errors.Is(err, ErrCorrupt) {
		t.Errorf("verify another root: %v, want ErrCorrupt", err)
	}
	if err := root.Verify(path + "-missing"); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("a file that is missing is not a damaged one: %v", err)
	}
	cut := filepath.Join(t.TempDir(), "cut")
	for _, size := range []int64{0, root.Size - 1, root.Size + 100, root.Size + BlockSize} {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cut, raw[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if holds(t, root, cut) {
			t.Errorf("found in the first %d bytes of it", size)
		}
		if err := root.Verify(cut); !errors.Is(err, ErrCorrupt) {
			t.Errorf("verify the first %d bytes of it: %v, want ErrCorrupt", size, err)
		}
	}
	for _, size := range []int64{1 << 62, 1<<63 - BlockSize} {
		if (Root{Hash: root.Hash, Size: size}).Holds(bytes.NewReader(make([]byte, 8192))) {
			t.Errorf("size %d is found", size)
		}
	}
	if _, err := Format(newImage(t, BlockSize)); err == nil {
		t.Error("an image too small for a tree was formatted")
	}
}

func TestFromCommandLineRefuses(t *testing.T) {
	hash := strings.Repeat("ab", sha256.Size)
	for _, tc := range []struct{ name, line string }{
		{"an empty line", ""},
		{"a line without size", "croft.roothash=" + hash},
		{"a line without hash", "croft.rootsize=4096"},
		{"a short hash", "croft.roothash=abcd croft.rootsize=4096"},
		{"a hash that is not hex", "croft.roothash=" + strings.Repeat("xy", sha256.Size) + " croft.rootsize=4096"},
		{"a size that is no multiple of a block", "croft.roothash=" + hash + " croft.rootsize=4097"},
		{"a negative size", "croft.roothash=" + hash + " croft.rootsize=-4096"},
		{"a size beyond 63 bits", "croft.roothash=" + hash + " croft.rootsize=9223372036854775808"},
		{"an argument without value", "croft.roothash croft.rootsize"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if root, err := FromCommandLine(tc.line); err == nil {
				t.Errorf("read as %v", root)
			}
		})
	}
}

func FuzzFromCommandLine(f *testing.F) {
	f.Add("croft.roothash=" + strings.Repeat("ab", sha256.Size) + " croft.rootsize=8192 quiet")
	f.Add("croft.rootsize=8192 croft.rootsize=4096")
	f.Fuzz(func(t *testing.T, line string) {
		root, err := FromCommandLine(line)
		if err != nil {
			return
		}
		again, err := FromCommandLine(strings.Join(root.Arguments(), " "))
		if err != nil || again != root {
			t.Errorf("%v is written as %q and read as %v, %v", root, root.Arguments(), again, err)
		}
	})
}

func TestOneFailedReadIsNoDamage(t *testing.T) {
	bad := func(errno error) error { return &fs.PathError{Op: "read", Path: "root", Err: errno} }
	for _, tc := range []struct {
		name    string
		results []error // of the attempts, in order
		corrupt bool
		ok      bool
	}{
		{"a read that fails once", []error{bad(unix.EIO), nil}, false, true},
		{"one that fails twice", []error{bad(unix.EIO), bad(unix.ENODATA), nil}, false, true},
		{"a block the medium never gives back", []error{bad(unix.EIO), bad(unix.EIO), bad(unix.EIO)}, true, false},
		{"a block that differs, found at the second attempt", []error{bad(unix.EIO), ErrCorrupt}, true, false},
		{"no memory to read into", []error{bad(unix.ENOMEM)}, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			attempts, waits := 0, 0
			err := patiently(func() error { attempts++; return tc.results[attempts-1] }, func() { waits++ })
			if (err == nil) != tc.ok || errors.Is(err, ErrCorrupt) != tc.corrupt || attempts != len(tc.results) || waits != attempts-1 {
				t.Errorf("%v after %d attempts and %d pauses", err, attempts, waits)
			}
		})
	}
	path := newImage(t, 10*BlockSize)
	root := format(t, path)
	if err := root.Verify(t.TempDir()); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("what cannot be read at all gives %v, want another error than ErrCorrupt", err)
	}
}
