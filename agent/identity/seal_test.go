package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/croft-cloud/croft"
)

// sealingSuite is what holds wherever secrets are sealed. open starts the agent
// on this box, or on another one of the same kind.
func sealingSuite(t *testing.T, open func(box string) *Identity) {
	ctx := t.Context()
	here := open("here")
	secret := []byte("sixty-four bytes of a key, and the name of a lease")
	sealed := mustSeal(t, here, secret)
	t.Run("opens what was sealed, after a restart too", func(t *testing.T) {
		wantOpens(t, here, sealed, secret)
		here = open("here")
		wantOpens(t, here, sealed, secret)
	})
	t.Run("hides it and never looks the same", func(t *testing.T) {
		if again := mustSeal(t, here, secret); bytes.Equal(again, sealed) || bytes.Contains(sealed, secret) {
			t.Error("sealing twice gives the same, or the secret in clear")
		}
	})
	t.Run("takes 1 to 128 bytes and makes at most 16 KiB of them", func(t *testing.T) {
		for _, size := range []int{1, maxPlain} {
			plain := bytes.Repeat([]byte{0xa5}, size)
			sealed := mustSeal(t, here, plain)
			wantOpens(t, here, sealed, plain)
			if len(sealed) > 16<<10 {
				t.Errorf("%d bytes became %d", size, len(sealed))
			}
		}
		for _, size := range []int{0, maxPlain + 1} {
			if _, err := here.Seal(ctx, make([]byte, size)); croft.KindOf(err) != croft.KindUsage {
				t.Errorf("%d bytes: error is %v", size, err)
			}
		}
	})
	t.Run("opens nothing that was damaged", func(t *testing.T) {
		for at := range sealed {
			changed := bytes.Clone(sealed)
			changed[at] ^= 1
			wantNever(t, here, changed)
			wantNever(t, here, sealed[:at])
		}
		wantNever(t, here, append(bytes.Clone(sealed), ' '))
	})
	t.Run("opens nothing that was changed on purpose", func(t *testing.T) {
		for _, change := range []func(e *envelope){
			func(e *envelope) { spoil(e.Secret); spoil(e.Private) },
			func(e *envelope) { spoil(e.Secret[:min(1, len(e.Secret))]); spoil(e.Public) },
		} {
			e, err := parseEnvelope(sealed)
			if err != nil {
				t.Fatal(err)
			}
			change(&e)
			changed, err := e.encode()
			if err != nil {
				t.Fatal(err)
			}
			wantNever(t, here, changed)
		}
		for _, body := range []string{`{"form":"tpm-9"}`, `[]`} { // perhaps of a newer release
			changed := sum([]byte(body))
			if plain, err := here.Open(ctx, changed); err == nil || croft.KindOf(err) == croft.KindInvalid {
				t.Errorf("%s: %q, %v", body, plain, err)
			}
		}
	})
	t.Run("opens nothing on another box", func(t *testing.T) {
		if plain, err := open("there").Open(ctx, sealed); err == nil {
			t.Errorf("it opened %q", plain)
		}
	})
	t.Run("works for many at once, and beside signing", func(t *testing.T) {
		var all sync.WaitGroup
		for n := range 8 {
			all.Go(func() {
				plain := fmt.Appendf(nil, "secret %d", n)
				sealed, err := here.Seal(ctx, plain)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := here.Open(ctx, sealed); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("opened %q, %v", got, err)
				}
			})
		}
		wantSigns(t, here)
		all.Wait()
	})
	t.Run("gives up with its context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := here.Seal(ctx, secret); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
		if _, err := here.Open(ctx, sealed); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v", err)
		}
	})
}

func TestSecretsAreSealedWithAFile(t *testing.T) {
	dirs := map[string]string{"here": t.TempDir(), "there": t.TempDir()}
	sealingSuite(t, func(box string) *Identity {
		i := mustOpen(t, dirs[box], noTPM(t))
		wantNotes(t, i)
		mustSeal(t, i, []byte("makes the key"))
		return i
	})
	wantMode(t, sealingPath(dirs["here"]), 0o600)
}

func TestSecretsAreSealedInTheTPM(t *testing.T) {
	dirs := map[string]string{"here": t.TempDir(), "there": t.TempDir()}
	states := map[string]string{"here": t.TempDir(), "there": t.TempDir()}
	stops := map[string]func(){}
	sealingSuite(t, func(box string) *Identity {
		// Each start of a box is one of its TPM, at a place that stays.
		place := filepath.Join(dirs[box], "tpm")
		if stop := stops[box]; stop != nil {
			stop()
		}
		stops[box] = powerTPM(t, states[box], place)
		i := mustOpen(t, dirs[box], place)
		wantNotes(t, i)
		if i.Kind() != KindTPM {
			t.Fatalf("kind is %s", i.Kind())
		}
		return i
	})
	if _, err := os.Stat(sealingPath(dirs["here"])); err == nil {
		t.Error("a key file was made all the same")
	}
}

func TestATPMThatIsAwayIsNotNow(t *testing.T) {
	dir, state, otherState := t.TempDir(), t.TempDir(), t.TempDir()
	place := filepath.Join(t.TempDir(), "tpm")
	stop := powerTPM(t, state, place)
	i := mustOpen(t, dir, place)
	secret := []byte("a key")
	sealed := mustSeal(t, i, secret)

	stop() // nobody answers
	wantNotNow(t, i, sealed)
	if _, err := i.Seal(t.Context(), secret); err == nil {
		t.Error("a secret was sealed without the TPM")
	}
	stop = powerTPM(t, state, place)
	wantOpens(t, i, sealed, secret) // the same agent, without a restart
	stop()

	if err := os.Remove(place); err != nil { // the kernel finds none
		t.Fatal(err)
	}
	i = mustOpen(t, dir, place)
	if i.Kind() != KindFile {
		t.Fatalf("kind is %s", i.Kind())
	}
	wantNotNow(t, i, sealed)
	standIn := mustSeal(t, i, secret)

	stop = powerTPM(t, otherState, place)
	other := mustOpen(t, "", place)
	wantNotNow(t, other, sealed)
	closeTPM(t, other)
	stop()

	powerTPM(t, state, place)
	wantOpens(t, i, sealed, secret) // the file key stands in for the device's until the next start
	i = mustOpen(t, dir, place)
	defer closeTPM(t, i)
	if i.Kind() != KindTPM {
		t.Fatalf("kind is %s", i.Kind())
	}
	wantOpens(t, i, sealed, secret)
	wantOpens(t, i, standIn, secret)
}

func TestAClearedTPMIsNever(t *testing.T) {
	dir := t.TempDir()
	socket, _ := startTPM(t, t.TempDir())
	i := mustOpen(t, dir, socket)
	sealed := mustSeal(t, i, []byte("a key"))
	closeTPM(t, i)
	tpm, err := openTPM(socket)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(tpm)
	if err := errors.Join(err, tpm.Close()); err != nil {
		t.Fatal(err)
	}
	i = mustOpen(t, dir, socket)
	defer closeTPM(t, i)
	wantNever(t, i, sealed)
}

func TestSealingLeavesNothingInTheTPM(t *testing.T) {
	socket, _ := startTPM(t, t.TempDir())
	i := mustOpen(t, t.TempDir(), socket)
	secret := []byte("a key")
	sealed := mustSeal(t, i, secret)
	e, err := parseEnvelope(sealed)
	if err != nil {
		t.Fatal(err)
	}
	spoil(e.Private)
	spoilt, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	e.Root = []byte("of another")
	foreign, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // a TPM has room for three, and the device key is in it
		sealed = mustSeal(t, i, secret)
		wantOpens(t, i, sealed, secret)
		wantNever(t, i, spoilt)
		wantNever(t, i, foreign) // its board is ours: as if cleared
	}
	closeTPM(t, i)
	wantNoHandles(t, socket)
}

func TestALostOrOtherSealingKeyIsNever(t *testing.T) {
	dir := t.TempDir()
	i := mustOpen(t, dir, noTPM(t))
	secret := []byte("a key")
	sealed := mustSeal(t, i, secret)
	if err := os.Remove(sealingPath(dir)); err != nil {
		t.Fatal(err)
	}
	wantNever(t, i, sealed)
	mustSeal(t, i, secret) // with a new one
	wantNever(t, i, sealed)
}

func TestABrokenSealingKeyIsKeptAsideAndReplaced(t *testing.T) {
	for name, spoilt := range map[string]func(path string) error{
		"short": func(path string) error { return os.WriteFile(path, []byte("short"), 0o600) },
		"long":  func(path string) error { return os.WriteFile(path, make([]byte, maxKeyFile+1), 0o600) },
		"a symbolic link": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/etc/hostname", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			i := mustOpen(t, dir, noTPM(t))
			secret := []byte("a key")
			sealed := mustSeal(t, i, secret)
			if err := spoilt(sealingPath(dir)); err != nil {
				t.Fatal(err)
			}
			wantNotNow(t, i, sealed) // until the next start decides
			if _, err := i.Seal(t.Context(), secret); err == nil {
				t.Error("a secret was sealed with a broken key")
			}
			i = mustOpen(t, dir, noTPM(t))
			wantNotes(t, i, "The sealing key file was broken (not a key file) and is kept as "+sealingPath(dir)+".broken-1.")
			wantNever(t, i, sealed)
			wantOpens(t, i, mustSeal(t, i, secret), secret)
			wantNotes(t, mustOpen(t, dir, noTPM(t)))
		})
	}
}

func TestASealingKeyForAllToReadIsReported(t *testing.T) {
	dir := t.TempDir()
	mustSeal(t, mustOpen(t, dir, noTPM(t)), []byte("a key"))
	if err := os.Chmod(sealingPath(dir), 0o644); err != nil {
		t.Fatal(err)
	}
	wantNotes(t, mustOpen(t, dir, noTPM(t)), "sealing.key were 0644 and are 0600 again")
	wantMode(t, sealingPath(dir), 0o600)
}

func TestNothingIsSealedWithAKeyThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	kept := mustOpen(t, dir, noTPM(t))
	sealed := mustSeal(t, kept, []byte("a key"))
	i := mustOpen(t, "", noTPM(t))
	if _, err := i.Seal(t.Context(), []byte("a key")); croft.KindOf(err) != croft.KindMissing {
		t.Errorf("error is %v", err)
	}
	wantNotNow(t, i, sealed)
	// A directory under the temporary name fails the write, as a full disk does.
	other := t.TempDir()
	i = mustOpen(t, other, noTPM(t))
	if err := os.Mkdir(filepath.Join(other, "identity", "."+sealingName+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Seal(t.Context(), []byte("a key")); err == nil {
		t.Error("a secret was sealed with a key that is nowhere")
	}
}

// What is on disks out there is read by every release to come.
func TestTheEnvelopeNeverChanges(t *testing.T) {
	body := []byte(`{"form":"tpm-1","board":"AQ==","root":"Ag==","public":"Aw==","private":"BA==","secret":"BQ=="}`)
	want := envelope{Form: "tpm-1", Board: []byte{1}, Root: []byte{2}, Public: []byte{3}, Private: []byte{4}, Secret: []byte{5}}
	got, err := want.encode()
	if err != nil || !bytes.Equal(got, sum(body)) {
		t.Errorf("%+v becomes %q, %v", want, got, err)
	}
	e, err := parseEnvelope(sum(body))
	if again, jsonErr := json.Marshal(e); err != nil || jsonErr != nil || !bytes.Equal(again, body) {
		t.Errorf("it is read as %s, %v", again, err)
	}
	if formTPM != "tpm-1" || formFile != "file-1" || sealingLabel != "croft sealed 1" {
		t.Error("a name in it changed")
	}
}

// sum puts the hash before an envelope.
func sum(body []byte) []byte {
	hash := sha256.Sum256(body)
	return append(hash[:], body...)
}

func spoil(data []byte) {
	if len(data) > 0 {
		data[len(data)-1] ^= 1
	}
}

func sealingPath(dir string) string { return filepath.Join(dir, "identity", sealingName) }

func mustSeal(t *testing.T, i *Identity, plain []byte) []byte {
	t.Helper()
	sealed, err := i.Seal(t.Context(), plain)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func wantOpens(t *testing.T, i *Identity, sealed, plain []byte) {
	t.Helper()
	if got, err := i.Open(t.Context(), sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("opened %q, %v; want %q", got, err, plain)
	}
}

func wantNever(t *testing.T, i *Identity, sealed []byte) {
	t.Helper()
	if plain, err := i.Open(t.Context(), sealed); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("opened %q, error of kind %q: %v", plain, croft.KindOf(err), err)
	}
}

func wantNotNow(t *testing.T, i *Identity, sealed []byte) {
	t.Helper()
	if plain, err := i.Open(t.Context(), sealed); err == nil || croft.KindOf(err) == croft.KindInvalid {
		t.Errorf("opened %q, error of kind %q: %v", plain, croft.KindOf(err), err)
	}
}

// powerTPM starts a software TPM that is found at place, as a device is.
func powerTPM(t *testing.T, state, place string) (stop func()) {
	t.Helper()
	socket, stop := startTPM(t, state)
	if err := os.Remove(place); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.Symlink(socket, place); err != nil {
		t.Fatal(err)
	}
	return stop
}
