package esp_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/croft-cloud/croft/firmware/esp"
)

// volume is an EFI partition of 40 MiB with the files.
func volume(t *testing.T, files map[string][]byte) *esp.Volume {
	t.Helper()
	path := filepath.Join(t.TempDir(), "esp")
	disk, err := file.CreateFromPath(path, 40<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	partition, err := fat32.Create(disk, 40<<20, 0, 512, "ESP", true)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := partition.Mkdir("/" + filepath.Dir(name)); err != nil {
			t.Fatal(err)
		}
		f, err := partition.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	v, err := esp.OpenVolume(r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestReadFile(t *testing.T) {
	long := bytes.Repeat([]byte("several clusters. "), 1000)
	v := volume(t, map[string][]byte{"croft/network.json": long, "top.txt": []byte("in the root"), "deep/er/empty": nil})
	for _, tc := range []struct {
		path string
		want []byte
		err  string
	}{
		{"croft/network.json", long, ""},
		{"CROFT/Network.JSON", long, ""},
		{"top.txt", []byte("in the root"), ""},
		{"deep/er/empty", nil, ""},
		{"croft/other.json", nil, fs.ErrNotExist.Error()},
		{"croft", nil, fs.ErrNotExist.Error()},
		{"nowhere/network.json", nil, fs.ErrNotExist.Error()},
		{"top.txt/network.json", nil, fs.ErrNotExist.Error()},
	} {
		t.Run(tc.path, func(t *testing.T) {
			got, err := v.ReadFile(tc.path, int64(len(long)))
			if tc.err != "" && (!errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), tc.path)) {
				t.Errorf("error is %v, want one that it is not there", err)
			}
			if tc.err == "" && err != nil || !bytes.Equal(got, tc.want) {
				t.Errorf("read %d bytes, %v; want %d", len(got), err, len(tc.want))
			}
		})
	}
	if got, err := v.ReadFile("croft/network.json", int64(len(long))-1); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file above the limit gave %d bytes, %v", len(got), err)
	}
}
