// Package blob keeps large things by key: in a folder, or in a bucket of S3.
//
//	store, err := blob.Open(ctx, "file:///var/lib/croft/blobs")
//	store, err := blob.Open(ctx, "s3://KEY:SECRET@s3.example.org/croft?region=eu-central-1")
//	err = store.Put(ctx, "bundle/bun_01JD…", size, reader)
//	body, size, err := store.Get(ctx, key)
//
// # URLs
//
//   - file:///folder?min-free=BYTES. The folder is made if it is missing. Put
//     refuses what would leave less than min-free (default 256 MiB) of its disk.
//   - s3://KEY:SECRET@host:port/bucket?region=…&tls=yes|no&path=yes|no. The bucket
//     must exist. Without KEY:SECRET they are taken from AWS_ACCESS_KEY_ID and
//     AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN). region is us-east-1, tls is
//     yes if not given; path says whether the bucket stands in the path or in the
//     host's name, and is guessed from the host if not given.
//
// No error and no log repeats a URL or a secret.
//
// # What survives what
//
// A blob that Put returned nil for is on the disk, or S3 has said so. A reader
// that fails, a crash, a full disk: the key has what it had before, whole. What a
// crash leaves of a file half written is removed at the next Open. Several
// programs may have the same folder open.
//
// The package does not encrypt, and knows no dates: who wants blobs to end
// deletes them.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strings"
	"sync"

	"github.com/croft-cloud/croft"
)

// Store keeps blobs. All methods may be called from any goroutine.
//
// A key has 1 to [MaxKey] bytes: parts of letters, digits, '-', '_' and '.', that
// begin with a letter or a digit, with '/' between them. Anything else is refused
// with an error of kind usage.
type Store interface {
	// Put makes what r gives the blob under key, in place of one that is there.
	// r must give exactly size bytes, and is not read after Put returned. On an error nothing has changed; only if
	// the answer of S3 was lost the new blob may be there, whole. Putting the
	// same again changes nothing. A disk or bucket that is full is an error of
	// kind no_space.
	Put(ctx context.Context, key string, size int64, r io.Reader) error

	// Get opens a blob, and tells its size. The caller closes it. One that is
	// replaced or deleted meanwhile is read to its end, or reading fails. If there is
	// none the error is [ErrNotFound].
	Get(ctx context.Context, key string) (io.ReadCloser, int64, error)

	// Delete makes that there is no blob under key; if there was none, that is
	// no error.
	Delete(ctx context.Context, key string) error

	// List is the blobs whose keys begin with prefix, in order of their keys.
	// After an error nothing follows. What is put or deleted meanwhile may or
	// may not be in it.
	List(ctx context.Context, prefix string) iter.Seq2[Item, error]
}

// Item is one blob in a list.
type Item struct {
	Key  string
	Size int64 // bytes
}

// MaxKey is how many bytes a key may have.
const MaxKey = 200

// ErrNotFound reports that there is no blob under the key.
var ErrNotFound = &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no such blob")}

// Open opens the store at a URL.
func Open(ctx context.Context, rawURL string) (Store, error) {
	// Errors of url.Parse repeat parts of the URL, which may be the secret.
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, usage("open blob store: the URL cannot be read")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, usage("open blob store: what follows the '?' of the URL cannot be read")
	}
	switch u.Scheme {
	case "file":
		return openFile(u, query)
	case "s3":
		return openS3(ctx, u, query)
	}
	return nil, usage("open blob store: want a URL that begins with file:// or s3://")
}

// options takes the known words out of a URL's query, and refuses others.
func options(query url.Values, known ...string) (map[string]string, error) {
	found := map[string]string{}
	for _, name := range known {
		if len(query[name]) > 1 {
			return nil, usage("open blob store: the URL says %s twice", name)
		}
		found[name] = query.Get(name)
		query.Del(name)
	}
	if len(query) > 0 {
		return nil, usage("open blob store: the URL may say %s after the '?', and nothing else", strings.Join(known, ", "))
	}
	return found, nil
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}

func noSpace(err error) error {
	return &croft.Error{Kind: croft.KindNoSpace, Err: err, Remedy: "free some space where the blobs are, or give them a larger place"}
}

// checkKey says what is wrong with a key.
func checkKey(key string) error {
	ok := len(key) <= MaxKey
	for part := range strings.SplitSeq(key, "/") {
		ok = ok && part != "" && part[0] != '.' && part[0] != '-' && part[0] != '_' && inAlphabet(part)
	}
	if !ok {
		return usage("blob key %.64q: want parts of letters, digits, '-', '_' and '.', with '/' between them, at most %d bytes", key, MaxKey)
	}
	return nil
}

// checkPrefix says what is wrong with a prefix: it must be one some key can have.
func checkPrefix(prefix string) error {
	if prefix == "" || checkKey(prefix+"0") == nil {
		return nil
	}
	return usage("blob prefix %.64q: no key begins with it", prefix)
}

func inAlphabet(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// exactly reads size bytes from a reader, and fails before the last of them is
// given if there are more or fewer. So whoever waits for size bytes never has
// them of a reader that is wrong.
type exactly struct {
	failed func() // told when it fails; may be nil

	mu   sync.Mutex // held while from is read: after stop nobody reads it
	from io.Reader  // guarded by mu
	left int64      // guarded by mu
	err  error      // guarded by mu; why it failed, nil while it did not
}

var (
	errShort   = errors.New("the reader gave fewer bytes than announced")
	errLong    = errors.New("the reader gave more bytes than announced")
	errStopped = errors.New("nobody waits for it any more")
)

func newExactly(r io.Reader, size int64) (*exactly, error) {
	if size < 0 {
		return nil, usage("the size of a blob must be known")
	}
	if size == 0 {
		if err := atEnd(r); err != nil {
			return nil, err
		}
	}
	return &exactly{from: r, left: size}, nil
}

// atEnd fails if there is more to read.
func atEnd(r io.Reader) error {
	var one [1]byte
	switch n, err := io.ReadFull(r, one[:]); {
	case n > 0:
		return errLong
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

func (e *exactly) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return 0, e.err
	}
	if e.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.from.Read(p)
	e.left -= int64(n)
	if e.left == 0 && err == nil {
		err = atEnd(e.from)
	}
	switch {
	case e.left == 0 && errors.Is(err, io.EOF):
	case errors.Is(err, io.EOF):
		e.err = errShort
	default:
		e.err = err
	}
	if e.err != nil {
		if e.failed != nil {
			e.failed()
		}
		return 0, e.err
	}
	return n, nil
}

// stop ends reading, and tells why it had failed before.
func (e *exactly) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	failed := e.err
	e.err = errStopped
	return failed
}
