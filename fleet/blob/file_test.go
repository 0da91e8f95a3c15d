package blob_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/blob"
)

func openFolder(t *testing.T, dir string) blob.Store {
	t.Helper()
	s, err := blob.Open(t.Context(), "file://"+dir+"?min-free=0")
	check(t, err)
	return s
}

func TestFolder(t *testing.T) {
	suite(t, func(t *testing.T) blob.Store { return openFolder(t, filepath.Join(t.TempDir(), "some", "blobs")) })
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestFolderKeepsBlobsAndNothingElse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "odd [name]*")
	check(t, os.Mkdir(dir, 0o700))
	s := openFolder(t, dir)
	put(t, s, "bundle/one", "1")
	if err := s.Put(t.Context(), "bundle/two", 9, iotest.ErrReader(io.ErrNoProgress)); err == nil {
		t.Error("a broken reader is no error")
	}
	if got := names(t, dir); !slices.Equal(got, []string{"bundle,one"}) {
		t.Errorf("folder has %v", got)
	}
	// A crash, a stranger's file, a folder.
	check(t, os.WriteFile(filepath.Join(dir, ".put-123"), []byte("half"), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "Not a key"), nil, 0o600))
	check(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	if got := list(t, s, ""); !slices.Equal(got, []string{"bundle/one:1"}) {
		t.Errorf("list is %v", got)
	}
	// Opened again, the leftover is gone, and what is being written is not.
	writing := make(chan struct{})
	goOn := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- s.Put(t.Context(), "bundle/slow", 4, io.MultiReader(strings.NewReader("sl"), readerFunc(func([]byte) (int, error) {
			close(writing)
			<-goOn
			return 0, io.EOF
		}), strings.NewReader("ow")))
	}()
	<-writing
	again := openFolder(t, dir)
	close(goOn)
	check(t, <-done)
	if got := names(t, dir); !slices.Equal(got, []string{"Not a key", "bundle,one", "bundle,slow", "folder"}) {
		t.Errorf("folder has %v", got)
	}
	if got := get(t, again, "bundle/slow"); got != "slow" {
		t.Errorf("blob is %q", got)
	}
}

func TestFolderLeavesRoomOnItsDisk(t *testing.T) {
	dir := t.TempDir()
	var disk syscall.Statfs_t
	check(t, syscall.Statfs(dir, &disk))
	free := int64(disk.Bavail) * disk.Bsize
	for _, tc := range []struct {
		name    string
		minFree int64
		size    int64
	}{
		{"the disk has too little already", free + 1<<40, 1},
		{"the blob would take too much", 0, free + 1<<40},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := blob.Open(t.Context(), fmt.Sprintf("file://%s?min-free=%d", dir, tc.minFree))
			check(t, err)
			untouched := readerFunc(func([]byte) (int, error) { t.Error("the reader was read"); return 0, io.EOF })
			wantKind(t, s.Put(t.Context(), "k", tc.size, untouched), croft.KindNoSpace)
		})
	}
}

func TestOpenRefusesURLs(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	for _, url := range []string{
		"", "/var/lib/blobs", "http://host/bucket", "file://host/folder", "file://", "file:relative", "file:///x#y",
		"file:///x?minfree=1", "file:///x?min-free=-1", "file:///x?min-free=1&min-free=2", "file:///x?min-free=%zz",
		"s3://HUSHKEY:HUSH@host", "s3://HUSHKEY:HUSH@host/", "s3://HUSHKEY:HUSH@host/a/b", "s3:///bucket",
		"s3://HUSHKEY:HUSH@host/bucket?tls=maybe", "s3://HUSHKEY:HUSH@host/bucket?path=1", "s3://HUSHKEY:HUSH@host/bucket?zone=x",
		"s3://HUSHKEY:HU%zzSH@host/bucket", "s3://HUSHKEY:HUSH/@host/bucket", "s3://HUSHKEY:HUSH @host:port/bucket",
		"s3://host/bucket", "s3://HUSHKEY@host/bucket",
	} {
		_, err := blob.Open(t.Context(), url)
		wantKind(t, err, croft.KindUsage)
		if err != nil && strings.Contains(err.Error(), "HUSH") {
			t.Errorf("error tells the secret: %v", err)
		}
	}
}
