package bundle_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/bundle"
)

// built is a zip file whose entries have these headers and contents.
func built(t testing.TB, content []byte, headers ...*zip.FileHeader) []byte {
	t.Helper()
	var raw bytes.Buffer
	w := zip.NewWriter(&raw)
	for _, h := range headers {
		out := must(w.CreateHeader(h))(t)
		if !strings.HasSuffix(h.Name, "/") {
			must(out.Write(content))(t)
		}
	}
	check(t, w.Close())
	return raw.Bytes()
}

func named(names ...string) (headers []*zip.FileHeader) {
	for _, name := range names {
		headers = append(headers, &zip.FileHeader{Name: name, Method: zip.Deflate})
	}
	return headers
}

// lying is a zip file with one entry whose directory states another size.
func lying(t testing.TB, content []byte, stated uint32) []byte {
	t.Helper()
	raw := built(t, content, named("x")...)
	at := bytes.LastIndex(raw, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(raw[at+24:], stated)
	return raw
}

func TestHostileZips(t *testing.T) {
	link := &zip.FileHeader{Name: "link"}
	link.SetMode(0o777 | 1<<27) // os.ModeSymlink
	folder := &zip.FileHeader{Name: "file"}
	folder.SetMode(0o755 | 1<<31) // os.ModeDir
	many := named(make([]string, 201)...)
	for n, h := range many {
		h.Name = fmt.Sprint(n)
	}
	locked := built(t, []byte("x"), named("x")...)
	locked[bytes.LastIndex(locked, []byte("PK\x01\x02"))+8] |= 1
	method := built(t, []byte("x"), named("x")...)
	method[bytes.LastIndex(method, []byte("PK\x01\x02"))+10] = 99
	broken := built(t, []byte(strings.Repeat("some text ", 100)), &zip.FileHeader{Name: "x", Method: zip.Store})
	broken[bytes.Index(broken, []byte("some"))] = 'S'
	large := built(t, make([]byte, 16<<20+1), named("a", "b", "c", "d")...)
	cut := built(t, []byte("x"), named("x")...)
	for name, raw := range map[string][]byte{
		"nothing":                        nil,
		"no zip":                         []byte("#!/bin/sh\necho hello"),
		"no entries":                     built(t, nil),
		"cut off":                        cut[:len(cut)-1],
		"too many entries":               built(t, nil, many...),
		"too large unpacked":             large,
		"a bomb that lies":               lying(t, make([]byte, 8<<20), 1),
		"less than it says":              lying(t, []byte("abc"), 4),
		"says more than all may have":    lying(t, []byte("abc"), 1<<31),
		"twice the same name":            built(t, nil, named("a", "a")...),
		"an absolute name":               built(t, nil, named("/etc/passwd")...),
		"a name that climbs":             built(t, nil, named("a/../../b")...),
		"only dots":                      built(t, nil, named("..")...),
		"the bundle itself":              built(t, nil, named("./")...),
		"a backslash":                    built(t, nil, named(`..\b`)...),
		"a drive":                        built(t, nil, named("c:b")...),
		"a line end in a name":           built(t, nil, named("a\nb")...),
		"a name that is not UTF-8":       built(t, nil, named("a\xffb")...),
		"a long name":                    built(t, nil, named(strings.Repeat("a", 256))...),
		"an empty part":                  built(t, nil, named("a//b")...),
		"the name the fleet writes":      built(t, nil, named("masked.TXT")...),
		"a link":                         built(t, []byte("/etc/passwd"), link),
		"a folder that calls itself not": built(t, nil, folder),
		"encrypted":                      locked,
		"an unknown method":              method,
		"a wrong checksum":               broken,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bundle.Inspect(bytes.NewReader(raw), int64(len(raw)))
			wantKind(t, err, croft.KindInvalid)
		})
	}
	good := built(t, []byte("x"), named("a/", "a/b", "pci/0000:00:1f.2", "größe.txt", "a b", ".hidden")...)
	if n, err := bundle.Inspect(bytes.NewReader(good), int64(len(good))); n != 6 || err != nil {
		t.Errorf("a good one has %d entries, %v", n, err)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(built(f, []byte("hello"), named("a/", "a/b")...))
	f.Add(lying(f, []byte("abc"), 4))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := bundle.Inspect(bytes.NewReader(raw), int64(len(raw))); err != nil {
			wantKind(t, err, croft.KindInvalid)
			return
		}
		// What is taken can be read out.
		archive := must(zip.NewReader(bytes.NewReader(raw), int64(len(raw))))(t)
		_, err := bundle.Rewrite(t.Context(), io.Discard, archive)
		check(t, err)
	})
}
