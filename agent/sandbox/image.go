package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"

	content "github.com/containerd/containerd/api/services/content/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"

	"github.com/croft-cloud/croft/agent/ocispec"
)

// snapshotter is the only one the box has.
const snapshotter = "overlayfs"

// loadImage reads the image kept under name.
func (s *Sandbox) loadImage(ctx context.Context, name string) (ocispec.Image, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	found, err := s.images.Get(call, &images.GetImageRequest{Name: name})
	if isMissing(err) {
		return ocispec.Image{}, fail(UnknownImage, "image %s is not here: pull it first", name)
	}
	if err != nil {
		return ocispec.Image{}, sortError(err, "look up image "+name)
	}
	return s.readImage(ctx, found.Image.GetTarget().GetDigest())
}

// readImage reads the image whose index or manifest has a digest.
func (s *Sandbox) readImage(ctx context.Context, digest string) (ocispec.Image, error) {
	return ocispec.ReadImage(digest, func(digest string, limit int64) ([]byte, error) { return s.readBlob(ctx, digest, limit) })
}

// readBlob reads a document of at most limit bytes from containerd's store,
// which checked its digest when it came.
func (s *Sandbox) readBlob(ctx context.Context, digest string, limit int64) ([]byte, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	info, err := s.content.Info(call, &content.InfoRequest{Digest: digest})
	if isMissing(err) {
		return nil, fmt.Errorf("read %s: %w", digest, ocispec.ErrNotHere)
	}
	if err != nil {
		return nil, sortError(err, "read "+digest)
	}
	size := info.GetInfo().GetSize()
	if size > limit {
		return nil, fail(BadImage, "a document of the image has %d bytes: want at most %d", size, limit)
	}
	stream, err := s.content.Read(call, &content.ReadContentRequest{Digest: digest})
	if err != nil {
		return nil, sortError(err, "read "+digest)
	}
	raw := make([]byte, 0, size)
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return raw, nil
		}
		if err != nil {
			return nil, sortError(err, "read "+digest)
		}
		if int64(len(raw)+len(part.Data)) > limit {
			return nil, fail(BadImage, "a document of the image has more than %d bytes", limit)
		}
		raw = append(raw, part.Data...)
	}
}

// unpackedSize adds up what a snapshot and all below it take on the disk.
func (s *Sandbox) unpackedSize(ctx context.Context, chain string) (int64, error) {
	var total int64
	for range ocispec.LayersMax {
		call, cancel := s.call(ctx)
		usage, err := s.snapshots.Usage(call, &snapshots.UsageRequest{Snapshotter: snapshotter, Key: chain})
		if err != nil {
			cancel()
			return 0, sortError(err, "measure the image")
		}
		total += ocispec.Space(usage.Size, usage.Inodes)
		info, err := s.snapshots.Stat(call, &snapshots.StatSnapshotRequest{Snapshotter: snapshotter, Key: chain})
		cancel()
		if err != nil {
			return 0, sortError(err, "measure the image")
		}
		if chain = info.Info.Parent; chain == "" {
			return total, nil
		}
	}
	return 0, fail(BadImage, "the image has more than %d layers", ocispec.LayersMax)
}
