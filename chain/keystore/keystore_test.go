package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
)

const abandon = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"

// open makes a store with a cheap scrypt, for a test's patience.
func openStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	s.work = 4
	return s
}

func recovered(t *testing.T, s *Store, name string, pass Passphrase) Entry {
	t.Helper()
	words, err := account.ParseMnemonic(abandon)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := s.Recover(name, words, Path{}, pass)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

func TestAKeyComesBackAsItWentIn(t *testing.T) {
	for _, tc := range []struct {
		name string
		pass Passphrase
	}{
		{"without a passphrase", ""},
		{"with a passphrase", "correct horse"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := openStore(t)
			entry, words, err := s.Add("tenant", tc.pass)
			if err != nil {
				t.Fatal(err)
			}
			if entry.Encrypted != (tc.pass != "") {
				t.Errorf("Encrypted = %v", entry.Encrypted)
			}
			again, err := Open(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			key, err := again.Key("tenant", tc.pass)
			if err != nil || key.Address() != entry.Address {
				t.Fatalf("Key = %v, %v, want %s", key, err, entry.Address)
			}
			out, err := again.Export("tenant", tc.pass)
			if err != nil || out.Reveal() != words.Reveal() {
				t.Errorf("Export gave other words: %v", err)
			}
			info, err := os.Stat(filepath.Join(s.dir, "tenant.key"))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode = %v, %v, want 0600", info.Mode(), err)
			}
			raw, _ := os.ReadFile(filepath.Join(s.dir, "tenant.key"))
			if tc.pass != "" && strings.Contains(string(raw), strings.Fields(words.Reveal())[0]+" ") {
				t.Error("the phrase stands in clear in an encrypted file")
			}
			left, _ := os.ReadDir(s.dir)
			if len(left) != 1 {
				t.Errorf("the folder holds %d files, want the key alone", len(left))
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	s := openStore(t)
	recovered(t, s, "plain", "")
	recovered(t, s, "sealed", "right")
	swapped, err := os.ReadFile(filepath.Join(s.dir, "plain.key"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.dir, name+suffix), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	other, _, err := s.Add("other", "")
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := s.Entry("plain")
	write("swapped", strings.ReplaceAll(string(swapped), string(plain.Address), string(other.Address)))
	write("torn", string(swapped[:40]))
	write("future", strings.Replace(string(swapped), `"version": 1`, `"version": 2`, 1))
	_, _, addTwice := s.Add("plain", "")
	key := func(name string, pass Passphrase) error { _, err := s.Key(name, pass); return err }
	for _, tc := range []struct {
		name string
		err  error
		kind croft.Kind
		want string
	}{
		{"a wrong passphrase is refused", key("sealed", "wrong"), croft.KindRefused, "wrong"},
		{"no passphrase for a sealed key asks for one", key("sealed", ""), croft.KindUsage, "give its passphrase"},
		{"a name that exists is not overwritten", addTwice, croft.KindRefused, "exists"},
		{"a name cannot leave the folder", key("../plain", ""), croft.KindUsage, "not allowed"},
		{"a hidden name is refused", key(".plain", ""), croft.KindUsage, "not allowed"},
		{"an unknown name is not found", key("nobody", ""), croft.KindNotFound, "no key"},
		{"deleting an unknown name is not found", s.Delete("nobody"), croft.KindNotFound, "no key"},
		{"another address over the secret is found out", key("swapped", ""), croft.KindInvalid, "public key"},
		{"half a file is damaged", key("torn", ""), croft.KindInvalid, "not a key file"},
		{"a newer file is not guessed at", key("future", ""), croft.KindInvalid, "version 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.err == nil || croft.KindOf(tc.err) != tc.kind || !strings.Contains(tc.err.Error(), tc.want) {
				t.Errorf("error = %v (%s), want %q (%s)", tc.err, croft.KindOf(tc.err), tc.want, tc.kind)
			}
			if tc.err != nil && strings.Contains(tc.err.Error(), "abandon") {
				t.Errorf("the error shows the secret: %v", tc.err)
			}
		})
	}
	if !errors.Is(key("nobody", ""), fs.ErrNotExist) {
		t.Error("a missing key is not fs.ErrNotExist")
	}
	if _, err := s.List(); err == nil {
		t.Error("List passed over damaged files in silence")
	}
}

func TestListAndDelete(t *testing.T) {
	s := openStore(t)
	if entries, err := s.List(); err != nil || len(entries) != 0 {
		t.Fatalf("List of an empty folder = %v, %v", entries, err)
	}
	recovered(t, s, "zoe", "")
	recovered(t, s, "adam", "pass")
	if err := os.WriteFile(filepath.Join(s.dir, "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	entries, err := s.List()
	if err != nil || len(entries) != 2 || entries[0].Name != "adam" || entries[1].Name != "zoe" || !entries[0].Encrypted {
		t.Fatalf("List = %+v, %v", entries, err)
	}
	if err := s.Delete("adam"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Entry("adam"); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("a deleted key is still there: %v", err)
	}
}

func TestOfTwoAddersOfOneNameOneWins(t *testing.T) {
	s := openStore(t)
	var wg sync.WaitGroup
	results := make(chan error, 8)
	for range cap(results) {
		wg.Go(func() {
			_, _, err := s.Add("race", "")
			results <- err
		})
	}
	wg.Wait()
	close(results)
	won := 0
	for err := range results {
		if err == nil {
			won++
		} else if croft.KindOf(err) != croft.KindRefused {
			t.Errorf("a loser got %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d adders won, want 1", won)
	}
	if _, err := s.Key("race", ""); err != nil {
		t.Errorf("the winner's key does not open: %v", err)
	}
}

func TestAFolderOthersMayWriteIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); croft.KindOf(err) != croft.KindRefused {
		t.Errorf("Open = %v, want a refusal", err)
	}
}

func TestAPassphraseIsNeverPrinted(t *testing.T) {
	p := Passphrase("hunter2")
	shown := fmt.Sprintf("%v %s %q %+v %#v %x", p, p, p, p, p, p)
	if strings.Contains(shown, "hunter2") || strings.Contains(shown, "68756e746572") {
		t.Errorf("printed: %s", shown)
	}
	if _, err := p.MarshalText(); err == nil {
		t.Error("a passphrase was encoded")
	}
}
