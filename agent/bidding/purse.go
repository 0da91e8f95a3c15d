package bidding

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// Secrets keeps the box's keys. Read answers an error that is fs.ErrNotExist for
// a name that was never written; what Write answered nil for is there after a
// power cut.
type Secrets interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error
}

// Folder is [Secrets] in files of mode 0600 in the directory it names.
type Folder string

// Read implements Secrets.
func (f Folder) Read(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(f), name))
}

// Write implements Secrets.
func (f Folder) Write(name string, data []byte) error {
	if err := atomicfile.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(string(f), name), data, 0o600)
}

// OpenKey is the key of the box's own account, made at the first start and kept
// as twenty-four words. A file that is there and unreadable is an error, never a
// reason for another account: the box's earnings are in the old one.
func OpenKey(s Secrets) (*account.Key, error) {
	raw, err := s.Read(secretKey)
	if errors.Is(err, fs.ErrNotExist) {
		words, err := account.NewMnemonic()
		if err != nil {
			return nil, fmt.Errorf("make the box's account key: %w", err)
		}
		if err := s.Write(secretKey, []byte(words.Reveal()+"\n")); err != nil {
			return nil, fmt.Errorf("keep the box's account key: %w", err)
		}
		return words.Key(0, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("read the box's account key: %w", err)
	}
	words, err := account.ParseMnemonic(string(raw))
	if err != nil {
		return nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read the box's account key: %w", err), Remedy: "restore " + secretKey + " from a copy, or remove it to begin with a new account"}
	}
	return words.Key(0, 0)
}

// Funding gives the box's account what it needs for fees and deposits. Ensure
// returns nil when something has arrived, or is not needed. It is called at most
// every five minutes.
type Funding interface {
	Ensure(ctx context.Context, address account.Address) error
}

// Faucet is [Funding] by a local chain's faucet.
type Faucet struct {
	URL    *url.URL     // required; the faucet's address: http://host:1317/faucet
	Client *http.Client // default: one that waits 40 s; the faucet answers after a block
}

// Ensure implements Funding.
func (f Faucet) Ensure(ctx context.Context, address account.Address) error {
	if f.URL == nil {
		return &croft.Error{Kind: croft.KindUsage, Err: errors.New("ask faucet: it has no URL"), Remedy: "set the faucet's URL"}
	}
	body := strings.NewReader(fmt.Sprintf(`{"address":%q}`, address))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL.String(), body)
	if err != nil {
		return fmt.Errorf("ask faucet: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := cmp.Or(f.Client, &http.Client{Timeout: 40 * time.Second}).Do(req)
	if err != nil {
		return fmt.Errorf("ask faucet: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		return &croft.Error{Kind: croft.KindRefused, Err: errors.New("ask faucet: it has just given"), Remedy: "wait a minute"}
	case resp.StatusCode != http.StatusOK || err != nil:
		return fmt.Errorf("ask faucet: status %d: %.200q: %w", resp.StatusCode, answer, cmp.Or(err, errors.New("it gave nothing")))
	}
	return nil
}
