package secret

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"

	"github.com/croft-cloud/croft"
)

// The cost of a password. Stored hashes keep the cost they were made with, and
// are made anew at the next sign-in.
const (
	argonMemory  = 32 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonKey     = 32
)

// Lengths of passwords: letters at least, bytes at most.
const (
	minPassword = 12
	maxPassword = 256
)

// worst are passwords of enough letters that those who guess begin with. Longer
// ones that only repeat or count are refused by other rules.
var worst = strings.Fields(`
	123456789012 1234567890123 12345678901234 123456789012345 1234567890123456 0123456789012
	password1234 password12345 password123456 passwordpassword password1password 1234password
	qwertyuiop12 qwertyuiop123 qwertyuiop1234 qwertyuiop[] qwertyuiopas qwertyuiopasdf qwertyuiopasdfghjkl
	qwerty123456 qwerty1234567 123456qwerty 1q2w3e4r5t6y 1q2w3e4r5t6y7u 1qaz2wsx3edc 1qaz2wsx3edc4rfv
	abcdefghijkl abcdefghijklm abcdefgh1234 abc123abc123 abcd1234abcd a1b2c3d4e5f6 zaq12wsxcde3 q1w2e3r4t5y6
	iloveyou1234 iloveyouforever letmein12345 letmeinletmein welcome12345 welcome123456 welcomewelcome
	changeme1234 changemechangeme administrator administrator1 admin1234567 adminadmin12 adminadminadmin
	correcthorsebatterystaple trustno1trustno1 superman1234 football1234 baseball1234 monkey123456
	dragon123456 sunshine1234 princess1234 master123456 michael12345 shadow123456 p@ssw0rd1234 passw0rd1234
	croftcroftcroft croft1234567 fleetfleetfleet`)

// Passwords makes and compares what is stored of passwords: argon2id over an HMAC
// with the key, so that nobody guesses without it.
type Passwords struct {
	keys    Keys
	hashing chan struct{} // one place per password being hashed
}

// NewPasswords hashes as many passwords at once as there are cores.
func NewPasswords(keys Keys) *Passwords {
	return &Passwords{keys, make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// checkPassword refuses what is guessed first.
func checkPassword(password Text, email, name string) error {
	text := password.Reveal()
	small := strings.ToLower(text)
	different := map[rune]bool{}
	for _, r := range small {
		different[r] = true
	}
	switch {
	case !utf8.ValidString(text) || len(text) > maxPassword:
		return usage("the password is longer than %d bytes", maxPassword)
	case utf8.RuneCountInString(text) < minPassword:
		return usage("the password has less than %d letters", minPassword)
	case len(different) < 5:
		return usage("the password repeats a few letters only")
	case small == email || (name != "" && small == strings.ToLower(name)):
		return usage("the password is your name or address")
	}
	if slices.Contains(worst, small) {
		return usage("this password is one of those that are guessed first")
	}
	return nil
}

// New checks a password and makes what is stored of it.
func (s *Passwords) New(ctx context.Context, password Text, email, name string) (string, error) {
	if err := checkPassword(password, email, name); err != nil {
		return "", err
	}
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // it never fails
	hash, err := s.argon(ctx, password, salt, argonTime, argonMemory, argonThreads)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(hash)), err
}

// argon hashes the password under the key, as many at once as there are cores.
func (s *Passwords) argon(ctx context.Context, password Text, salt []byte, time, memory uint32, threads uint8) ([]byte, error) {
	select {
	case s.hashing <- struct{}{}:
		defer func() { <-s.hashing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return argon2.IDKey(s.keys.Tag("password", password.Reveal()), salt, time, memory, threads, argonKey), nil
}

// Matches reports whether a password is the stored one, and whether that was
// stored with another cost than today's. An empty stored hash takes as long and
// matches nothing.
func (s *Passwords) Matches(ctx context.Context, stored string, password Text) (ok, old bool, err error) {
	memory, time, threads := uint32(argonMemory), uint32(argonTime), uint8(argonThreads)
	salt, want := make([]byte, argonSalt), []byte(nil)
	if stored != "" {
		parts := strings.Split(stored, "$")
		if len(parts) != 6 || parts[1] != "argon2id" {
			return false, false, errors.New("stored password is not one of argon2id")
		}
		if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil || memory > 1<<20 || time < 1 || time > 100 || threads < 1 {
			return false, false, errors.New("stored password has no cost")
		}
		var err1, err2 error
		salt, err1 = base64.RawStdEncoding.DecodeString(parts[4])
		want, err2 = base64.RawStdEncoding.DecodeString(parts[5])
		if err := errors.Join(err1, err2); err != nil {
			return false, false, fmt.Errorf("read stored password: %w", err)
		}
	}
	if len(password.Reveal()) > maxPassword {
		password = Text{}
	}
	got, err := s.argon(ctx, password, salt, time, memory, threads)
	return err == nil && subtle.ConstantTimeCompare(got, want) == 1, memory != argonMemory || time != argonTime || threads != argonThreads, err
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}
