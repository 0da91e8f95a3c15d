package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/croft-cloud/croft"
)

var _ crypto.Signer = (*Identity)(nil)

func TestAFileKeyIsMadeOnceAndKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "perm", "croft")
	i := mustOpen(t, dir, noTPM(t))
	wantNotes(t, i)
	if i.Kind() != KindFile {
		t.Errorf("kind is %s", i.Kind())
	}
	der, err := x509.MarshalPKIXPublicKey(i.Public())
	if err != nil {
		t.Fatal(err)
	}
	if want := croft.DeviceIDFromDigest(sha256.Sum256(der)); i.DeviceID() != want {
		t.Errorf("device ID is %s, want %s", i.DeviceID(), want)
	}
	wantMode(t, filepath.Join(dir, "identity"), fs.ModeDir|0o700)
	wantMode(t, keyPath(dir), 0o600)
	wantSigns(t, i)
	again := mustOpen(t, dir, noTPM(t))
	wantNotes(t, again)
	if again.DeviceID() != i.DeviceID() {
		t.Errorf("device ID is %s, was %s", again.DeviceID(), i.DeviceID())
	}
	if other := mustOpen(t, t.TempDir(), noTPM(t)); other.DeviceID() == i.DeviceID() {
		t.Error("two devices have one ID")
	}
}

func TestAKeyOfAnotherToolIsRead(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	writeKey(t, dir, append([]byte("a comment\n"), pemKey(t, key)...), 0o600)
	i := mustOpen(t, dir, noTPM(t))
	wantNotes(t, i)
	if !key.PublicKey.Equal(i.Public()) {
		t.Error("the key is not the one in the file")
	}
}

func TestABrokenKeyFileIsKeptAsideAndReported(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	whole := pemKey(t, good)
	for _, tc := range []struct {
		name string
		data []byte
	}{
		{"empty", nil},
		{"zeros", make([]byte, 241)},
		{"cut off", whole[:len(whole)/2]},
		{"a flipped character", bytes.Replace(whole, []byte("M"), []byte("N"), 1)},
		{"another PEM type", bytes.ReplaceAll(whole, []byte("PRIVATE KEY"), []byte("PUBLIC KEY"))},
		{"another curve", pemKey(t, p384)},
		{"another algorithm", pemKey(t, rsaKey)},
		{"much too long", append(bytes.Repeat([]byte("\n"), maxKeyFile), whole...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			was := mustOpen(t, dir, noTPM(t)).DeviceID()
			writeKey(t, dir, tc.data, 0o600)
			i := mustOpen(t, dir, noTPM(t))
			wantNotes(t, i, "is kept as "+keyPath(dir)+".broken-1.", "This device was "+string(was)+" and is now "+string(i.DeviceID()))
			if i.Kind() != KindFile {
				t.Errorf("kind is %s", i.Kind())
			}
			if kept, err := os.ReadFile(keyPath(dir) + ".broken-1"); err != nil || !bytes.Equal(kept, tc.data) {
				t.Errorf("kept aside: %q, %v", kept, err)
			}
			writeKey(t, dir, []byte("broken again"), 0o600)
			if second := mustOpen(t, dir, noTPM(t)); len(second.Notes()) != 2 {
				t.Errorf("notes are %q", second.Notes())
			}
			if kept, err := os.ReadFile(keyPath(dir) + ".broken-2"); err != nil || string(kept) != "broken again" {
				t.Errorf("second one kept aside: %q, %v", kept, err)
			}
			wantNotes(t, mustOpen(t, dir, noTPM(t)))
		})
	}
	for _, tc := range []struct {
		name string
		make func(path string) error
	}{
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"a symbolic link", func(path string) error { return os.Symlink("/etc/hostname", path) }},
		{"a FIFO", func(path string) error { return syscall.Mkfifo(path, 0o600) }},
	} {
		t.Run(tc.name+" in its place", func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Dir(keyPath(dir)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := tc.make(keyPath(dir)); err != nil {
				t.Fatal(err)
			}
			i := mustOpen(t, dir, noTPM(t))
			wantNotes(t, i, ".broken-1.")
			if i.Kind() != KindFile {
				t.Errorf("kind is %s", i.Kind())
			}
		})
	}
}

func TestALostKeyFileIsReported(t *testing.T) {
	dir := t.TempDir()
	was := mustOpen(t, dir, noTPM(t)).DeviceID()
	if err := os.Remove(keyPath(dir)); err != nil {
		t.Fatal(err)
	}
	wantNotes(t, mustOpen(t, dir, noTPM(t)), "This device was "+string(was)+" and is now ")
	wantNotes(t, mustOpen(t, dir, noTPM(t)))
}

func TestWrongPermissionsAreRepairedAndReported(t *testing.T) {
	dir := t.TempDir()
	was := mustOpen(t, dir, noTPM(t)).DeviceID()
	for path, mode := range map[string]fs.FileMode{keyPath(dir): 0o644, filepath.Dir(keyPath(dir)): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	i := mustOpen(t, dir, noTPM(t))
	wantNotes(t, i, "identity were 0755 and are 0700 again", "device.key were 0644 and are 0600 again")
	if i.DeviceID() != was {
		t.Errorf("device ID is %s, was %s", i.DeviceID(), was)
	}
	wantMode(t, filepath.Dir(keyPath(dir)), fs.ModeDir|0o700)
	wantMode(t, keyPath(dir), 0o600)
	wantNotes(t, mustOpen(t, dir, noTPM(t)))
}

func TestADamagedRecordIsReportedAndWrittenAnew(t *testing.T) {
	for _, data := range []string{"", "{", `{"kind":"cloud","device_id":"` + strings.Repeat("a", 32) + `"}`, `{"kind":"file","device_id":"A"}`} {
		dir := t.TempDir()
		was := mustOpen(t, dir, noTPM(t)).DeviceID()
		if err := os.WriteFile(filepath.Join(dir, "identity", recordName), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		i := mustOpen(t, dir, noTPM(t))
		wantNotes(t, i, "The record of this device's identity is damaged")
		if i.DeviceID() != was {
			t.Errorf("record %q: device ID is %s, was %s", data, i.DeviceID(), was)
		}
		wantNotes(t, mustOpen(t, dir, noTPM(t)))
	}
}

func TestWithoutPermTheKeyIsInMemory(t *testing.T) {
	i := mustOpen(t, "", noTPM(t))
	wantNotes(t, i, "another identity after each restart")
	if i.Kind() != KindMemory {
		t.Errorf("kind is %s", i.Kind())
	}
	wantSigns(t, i)
}

func TestADirectoryThatCannotBeMadeMeansMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	i := mustOpen(t, file, noTPM(t))
	wantNotes(t, i, "cannot be made", "another identity after each restart")
	if i.Kind() != KindMemory {
		t.Errorf("kind is %s", i.Kind())
	}
}

func TestAKeyThatCannotBeStoredIsNotPassedOffAsKept(t *testing.T) {
	dir := t.TempDir()
	// A directory under the temporary name fails the write, as a full disk does.
	if err := os.MkdirAll(filepath.Join(dir, "identity", "."+keyName+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	i := mustOpen(t, dir, noTPM(t))
	wantNotes(t, i, "The device key cannot be stored", "another identity after each restart")
	if i.Kind() != KindMemory {
		t.Errorf("kind is %s", i.Kind())
	}
	if _, err := os.Stat(filepath.Join(dir, "identity", recordName)); err == nil {
		t.Error("a key in memory was recorded")
	}
}

func TestATPMThatFailsGivesWayToAFile(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(t.TempDir(), "tpm") // a file is no TPM
	if err := os.WriteFile(fake, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	i := mustOpen(t, dir, fake)
	wantNotes(t, i, "The TPM cannot be used: open TPM: ")
	if i.Kind() != KindFile {
		t.Errorf("kind is %s", i.Kind())
	}
	again := mustOpen(t, dir, fake)
	wantNotes(t, again, "its key was made in a file before and stays there")
	if again.DeviceID() != i.DeviceID() {
		t.Errorf("device ID is %s, was %s", again.DeviceID(), i.DeviceID())
	}
}

func TestSignRefuses(t *testing.T) {
	i := mustOpen(t, "", noTPM(t))
	for _, tc := range []struct {
		name   string
		digest []byte
		opts   crypto.SignerOpts
	}{
		{"no options", make([]byte, 32), nil},
		{"no hash", make([]byte, 32), crypto.Hash(0)},
		{"a digest of another hash", make([]byte, 32), crypto.SHA512},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := i.Sign(rand.Reader, tc.digest, tc.opts); err == nil {
				t.Error("no error")
			}
		})
	}
}

// The template is what names every device with a TPM.
func TestTheTemplateNeverChanges(t *testing.T) {
	const want = "0023000b00040472000000100018000b000300100020" +
		"60004d5a438189a20f455c1244e78d4c3d6a3528d522335c32f6084a7a72d6ad" + // SHA-256 of "croft device key 1"
		"00200000000000000000000000000000000000000000000000000000000000000000"
	if got := hex.EncodeToString(tpm2.Marshal(template())); got != want {
		t.Errorf("every device would get another identity: template is\n%s, want\n%s", got, want)
	}
}

func TestFitDigest(t *testing.T) {
	for _, tc := range []struct {
		name        string
		digest, out string
	}{
		{"32 bytes stay", strings.Repeat("ab", 32), strings.Repeat("ab", 32)},
		{"more are cut", strings.Repeat("ab", 64), strings.Repeat("ab", 32)},
		{"fewer get leading zeros", strings.Repeat("ab", 20), strings.Repeat("00", 12) + strings.Repeat("ab", 20)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			digest, err := hex.DecodeString(tc.digest)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(fitDigest(digest)); got != tc.out {
				t.Errorf("%s becomes %s, want %s", tc.digest, got, tc.out)
			}
		})
	}
}

func mustOpen(t *testing.T, dir, tpm string) *Identity {
	t.Helper()
	i, err := Open(Config{Dir: dir, TPM: tpm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if i.Kind() != KindTPM { // those tests close it themselves
			i.Close()
		}
	})
	return i
}

func noTPM(t *testing.T) string { return filepath.Join(t.TempDir(), "tpmrm0") }

func keyPath(dir string) string { return filepath.Join(dir, "identity", keyName) }

func writeKey(t *testing.T, dir string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(keyPath(dir)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyPath(dir), data, mode); err != nil {
		t.Fatal(err)
	}
}

func pemKey(t *testing.T, key crypto.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
}

// wantNotes checks that there are exactly these notes, by what they contain.
func wantNotes(t *testing.T, i *Identity, want ...string) {
	t.Helper()
	got := i.Notes()
	ok := len(got) == len(want)
	for n := 0; ok && n < len(want); n++ {
		ok = strings.Contains(got[n], want[n]) && strings.HasSuffix(got[n], ".")
	}
	if !ok {
		t.Errorf("notes are %q, want %q", got, want)
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	if info, err := os.Stat(path); err != nil || info.Mode() != want {
		t.Errorf("%s is %v, %v; want %v", path, info.Mode(), err, want)
	}
}

// wantSigns checks signatures of several hashes, from several goroutines, and a
// TLS handshake with a certificate of the key.
func wantSigns(t *testing.T, i *Identity) {
	t.Helper()
	message := []byte("hello")
	sum256, sum512 := sha256.Sum256(message), sha512.Sum512(message)
	public, ok := i.Public().(*ecdsa.PublicKey)
	if !ok {
		t.Fatalf("public key is a %T", i.Public())
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for hash, digest := range map[crypto.Hash][]byte{crypto.SHA256: sum256[:], crypto.SHA512: sum512[:]} {
				signature, err := i.Sign(rand.Reader, digest, hash)
				if err != nil || !ecdsa.VerifyASN1(public, digest, signature) {
					t.Errorf("%v signature is not valid: %v", hash, err)
				}
			}
		})
	}
	all.Wait()
	if err := handshake(t, i); err != nil {
		t.Errorf("TLS handshake: %v", err)
	}
}

func handshake(t *testing.T, i *Identity) error {
	t.Helper()
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"box"}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, i.Public(), i)
	if err != nil {
		return fmt.Errorf("create certificate: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		// The client's verdict counts; it may have hung up first.
		_ = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: i}}}).Handshake()
	}()
	err = tls.Client(near, &tls.Config{RootCAs: pool, ServerName: "box"}).Handshake()
	near.Close()
	<-served
	return err
}
