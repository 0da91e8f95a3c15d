package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/croft-cloud/croft"
)

// maxObject is the most bytes S3 takes in one request. Blobs are put in one, so
// that nothing of one that failed stays behind.
const maxObject = 5 << 30

// tries is how often a request without a body is sent before it has failed.
const tries = 3

// bucket is a [Store] in a bucket of S3.
type bucket struct {
	client minio.Core
	name   string
}

func openS3(ctx context.Context, u *url.URL, query url.Values) (Store, error) {
	name := strings.Trim(u.Path, "/")
	if u.Host == "" || name == "" || strings.Contains(name, "/") || u.Fragment != "" {
		return nil, usage("open blob store: want a URL of a bucket, as s3://host:port/bucket")
	}
	opts, err := options(query, "region", "tls", "path")
	if err != nil {
		return nil, err
	}
	config := minio.Options{Region: cmp.Or(opts["region"], "us-east-1"), MaxRetries: tries}
	switch opts["tls"] {
	case "", "yes":
		config.Secure = true
	case "no":
	default:
		return nil, usage("open blob store: tls: want yes or no")
	}
	switch opts["path"] {
	case "":
	case "yes":
		config.BucketLookup = minio.BucketLookupPath
	case "no":
		config.BucketLookup = minio.BucketLookupDNS
	default:
		return nil, usage("open blob store: path: want yes or no")
	}
	if config.Creds, err = keys(u.User); err != nil {
		return nil, err
	}
	client, err := minio.New(u.Host, &config)
	if err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	s := &bucket{client: minio.Core{Client: client}, name: name}
	switch exists, err := client.BucketExists(ctx, name); {
	case err != nil:
		return nil, fmt.Errorf("open blob store: %w", explain(err))
	case !exists:
		return nil, &croft.Error{
			Kind: croft.KindMissing, Err: fmt.Errorf("open blob store: there is no bucket %s", name), Remedy: "create the bucket",
		}
	}
	return s, nil
}

// keys are those of the URL, or of the environment.
func keys(user *url.Userinfo) (*credentials.Credentials, error) {
	id, secret, token := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")
	if user != nil {
		id, token = user.Username(), ""
		secret, _ = user.Password()
	}
	if id == "" || secret == "" {
		return nil, &croft.Error{
			Kind: croft.KindUsage, Err: errors.New("open blob store: no keys for S3 are given"),
			Remedy: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write s3://KEY:SECRET@host/bucket",
		}
	}
	return credentials.NewStaticV4(id, secret, token), nil
}

// explain gives errors of S3 the kinds of this package.
func explain(err error) error {
	response, ok := errors.AsType[minio.ErrorResponse](err)
	switch {
	case !ok:
		return err
	case response.Code == minio.NoSuchKey:
		return ErrNotFound
	case response.StatusCode == http.StatusInsufficientStorage, response.Code == "XMinioStorageFull",
		response.Code == "XMinioAdminBucketQuotaExceeded", response.Code == "QuotaExceeded":
		return noSpace(err)
	case response.Code == "AccessDenied", response.Code == "InvalidAccessKeyId", response.Code == "SignatureDoesNotMatch",
		response.StatusCode == http.StatusForbidden:
		return &croft.Error{Kind: croft.KindRefused, Err: err, Remedy: "check the keys for S3 and what they may do with the bucket"}
	}
	return err
}

func (s *bucket) Put(ctx context.Context, key string, size int64, r io.Reader) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if size > maxObject {
		return usage("put blob %s: it has %d bytes: want at most %d", key, size, int64(maxObject))
	}
	body, err := newExactly(r, size)
	if err != nil {
		return fmt.Errorf("put blob %s: %w", key, err)
	}
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	body.failed = cancel // the client would wait, for another try there is not
	_, err = s.client.Client.PutObject(sending, s.name, key, body, size, minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableMultipart: true,
		DisableContentSha256: size == 0, // without TLS the client sends an empty body without its length, and S3 refuses that
	})
	if failed := body.stop(); failed != nil { // the client would hide it
		err = failed
	}
	if err != nil {
		return fmt.Errorf("put blob %s: %w", key, explain(err))
	}
	return nil
}

func (s *bucket) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	if err := checkKey(key); err != nil {
		return nil, 0, err
	}
	body, info, _, err := s.client.GetObject(ctx, s.name, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, 0, fmt.Errorf("get blob %s: %w", key, explain(err))
	}
	return body, info.Size, nil
}

func (s *bucket) Delete(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	err := s.client.RemoveObject(ctx, s.name, key, minio.RemoveObjectOptions{})
	if err = explain(err); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

func (s *bucket) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := checkPrefix(prefix); err != nil {
			yield(Item{}, fmt.Errorf("list blobs: %w", err))
			return
		}
		for object := range s.client.ListObjectsIter(ctx, s.name, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if object.Err != nil {
				yield(Item{}, fmt.Errorf("list blobs: %w", explain(object.Err)))
				return
			}
			if checkKey(object.Key) == nil && !yield(Item{Key: object.Key, Size: object.Size}, nil) {
				return
			}
		}
		if ctx.Err() != nil { // it ends the list without a word
			yield(Item{}, fmt.Errorf("list blobs: %w", ctx.Err()))
		}
	}
}
