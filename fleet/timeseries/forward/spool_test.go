package forward

import (
	"fmt"
	"os"
	"testing"
)

func TestADamagedSpoolGivesUpOnlyWhatIsDamaged(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(text []byte) []byte
		want   int
	}{
		{"a torn last frame", func(b []byte) []byte { return b[:len(b)-3] }, 9},
		{"a flipped bit in the last frame", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, 9},
		{"a length out of reason", func(b []byte) []byte { b[0] = 0xff; return b }, 0},
		{"nothing", func([]byte) []byte { return nil }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := openSpool(dir, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 10 {
				if err := s.put(fmt.Appendf(nil, "payload %d", i), 1); err != nil {
					t.Fatal(err)
				}
			}
			name := s.path(s.files[0].number)
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, tc.damage(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err = openSpool(dir, 1<<20); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.close() }()
			got, err := s.take(1 << 20)
			if err != nil || len(got.payloads) != tc.want {
				t.Errorf("%d frames are left, %v; want %d", len(got.payloads), err, tc.want)
			}
			if err := s.put([]byte("new"), 1); err != nil {
				t.Fatal(err)
			}
			if err := s.done(got); err != nil {
				t.Fatal(err)
			}
			if got, err = s.take(1 << 20); err != nil || len(got.payloads) != 1 {
				t.Errorf("after the damage: %d frames, %v; want 1", len(got.payloads), err)
			}
			if err := s.done(got); err != nil {
				t.Fatal(err)
			}
			if waiting, _ := s.numbers(); waiting != 0 {
				t.Errorf("%d samples wait", waiting)
			}
		})
	}
}

func TestDamageWhileItRunsCostsOneFile(t *testing.T) {
	s, err := openSpool(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	s.fileAt = 1 // a file each
	for i := range 4 {
		if err := s.put(fmt.Append(nil, i), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.path(s.files[1].number), []byte("rotten, and as long as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	var sent []string
	for range 10 { // as sendSome does
		got, err := s.take(1 << 20)
		if err != nil {
			err = s.skip()
		} else {
			for _, p := range got.payloads {
				sent = append(sent, string(p))
			}
			err = s.done(got)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if waiting, lost := s.numbers(); fmt.Sprint(sent) != "[0 2 3]" || waiting != 0 || lost != 1 {
		t.Errorf("sent %v, %d wait, %d are lost", sent, waiting, lost)
	}
}
