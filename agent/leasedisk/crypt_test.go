//go:build vm

package leasedisk

import (
	"bytes"
	"crypto/aes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"
)

// What a kernel with dm-crypt, and a process with CAP_SYS_RESOURCE, can do.
const (
	encrypted  = true
	deviceSize = 40 << 20
)

func TestThisKernelEncrypts(t *testing.T) {
	must(t, linux{}.check())
}

func TestDisksFillTheirSize(t *testing.T) {
	for _, mib := range []int64{17, 20, 127, 128, 129, 131, 133, 256, 257, 1000, 5000} {
		w := realWorld(t)
		w.size = mib << 20
		s := w.store(w.sys)
		begin := time.Now()
		w.used(s)
		w.wantSize(s, w.size)
		_, taken, err := w.sys.allocated(s.image(keyA))
		must(t, err)
		t.Logf("%d MiB: made in %v, takes %d KiB", mib, time.Since(begin), taken>>10)
		must(t, s.Close(t.Context(), keyA))
		w.keeps(s)
		w.wantSize(s, w.size)
		w.dispose(s)
	}
}

func TestEncryptionAtRest(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.closed(s)
	image, err := os.Open(s.image(keyA))
	must(t, err)
	defer image.Close()
	raw, err := io.ReadAll(image)
	must(t, err)
	if bytes.Contains(raw, []byte("by the tenant")) {
		t.Error("the image holds the tenant's text in clear")
	}
	// What is in it is what any implementation of XTS under this key reads.
	secret, err := s.unseal(t.Context(), keyA)
	must(t, err)
	cipher, err := xts.NewCipher(aes.NewCipher, secret)
	must(t, err)
	found := false
	for at := 0; at+4096 <= len(raw); at += 4096 {
		plain := make([]byte, 4096)
		cipher.Decrypt(plain, raw[at:at+4096], uint64(at/512))
		if at == 0 && (plain[superAt+magicAt] != 0x53 || plain[superAt+magicAt+1] != 0xef) {
			t.Error("the image does not begin with an ext4 under its key")
		}
		found = found || bytes.Contains(plain, []byte("by the tenant"))
	}
	if !found {
		t.Error("the tenant's text is not in the image, under its key")
	}
	must(t, s.Create(t.Context(), keyB, w.size))
	other, err := s.unseal(t.Context(), keyB)
	must(t, err)
	if bytes.Equal(other, secret) {
		t.Error("two leases share a key")
	}
	must(t, s.Remove(t.Context(), keyB))
	w.dispose(s)
}

// What a killed agent leaves at any step is taken down by the next call; beside it
// nothing may be left by a step that fails.
func TestAFailureInTheMiddleLeavesNoDevice(t *testing.T) {
	w := realWorld(t)
	s := w.store(w.sys)
	w.closed(s)
	must(t, os.WriteFile(s.sealed(keyA), nil, 0o600))
	if _, err := s.Open(t.Context(), keyA); err == nil {
		t.Fatal("a disk without its key was opened")
	}
	w.clean(t)
	_, hold, err := s.build(t.Context(), keyA, make([]byte, 3)) // no key of any cipher
	if err == nil {
		must(t, hold())
		t.Fatal("a key of 3 bytes was taken")
	}
	w.clean(t)
	// The name is taken by a mapping that a killed agent left.
	if _, _, err := dm(unix.DM_DEV_CREATE, mapping(keyA), 0, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.build(t.Context(), keyA, make([]byte, keySize)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("error is %v", err)
	}
	if loops, err := w.sys.loops(s.image(keyA)); err != nil || len(loops) > 0 {
		t.Errorf("the image is on %v (%v)", loops, err)
	}
	w.dispose(s)
}
