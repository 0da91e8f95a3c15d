package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	images "github.com/containerd/containerd/api/services/images/v1"
	contentleases "github.com/containerd/containerd/api/services/leases/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	streaming "github.com/containerd/containerd/api/services/streaming/v1"
	transfer "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
	"github.com/croft-cloud/croft/chain/sdl"
)

const (
	// stallBound ends a pull in which nothing moves: a registry that holds the
	// line and sends nothing would keep the lease waiting for ever.
	stallBound = 5 * time.Minute
	// measureEvery is how often the unpacked size is looked at. A gzip stream
	// grows at most a few hundred megabytes in that time.
	measureEvery = time.Second
	// keepBroken is how long what a broken pull fetched is kept.
	keepBroken = 24 * time.Hour
	// collectBound ends a collection: images of many gigabytes and hundreds of
	// thousands of files on the disk of a small box.
	collectBound = 10 * time.Minute
	// lastWords is how long after a pull its last progress may still come.
	lastWords = time.Second
)

// ownerLabel marks an image record with a lease that may use it.
func ownerLabel(key lease.Key) string { return "croft.cloud/owner." + string(key) }

const (
	ownerLabels = "croft.cloud/owner."
	pullPrefix  = "pull-" // of names of content leases and image records while a pull lasts
)

func hasOwner(labels map[string]string) bool {
	for name := range labels {
		if strings.HasPrefix(name, ownerLabels) {
			return true
		}
	}
	return false
}

func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// pullName names the content lease of a pull. The same pull tried again has the
// same name, and so finds what the last one fetched.
func pullName(key lease.Key, ref ocispec.Reference) string {
	return pullPrefix + string(key) + "-" + shortHash(ref.String())
}

// Pull makes an OCI image usable for a lease and returns its name with digest,
// as [Sandbox.Start] wants it. The limit, in bytes, is for the compressed and
// for the unpacked image each; a file counts 16 KiB at least. The credentials,
// which may be nil, are shown to their own host only. The progress, which may be
// nil, is called by one goroutine at a time, never after Pull has returned, and
// must not block; done and total are compressed bytes and grow; [ocispec.Phase]
// puts them in a word.
//
// An image with digest that the lease owns already is not asked for again.
//
// Fails with [BadReference], [UnknownImage], [CredentialsRefused],
// [WrongArchitecture], [ImageTooLarge], [BadImage], [RegistryDown],
// [RuntimeAway] or [RuntimeRefused].
func (s *Sandbox) Pull(ctx context.Context, key lease.Key, image string, credentials *sdl.Credentials, limit int64, progress func(done, total int64)) (string, error) {
	ref, err := ocispec.ParseReference(image, s.cfg.PrivateRegistries)
	if err != nil {
		return "", err
	}
	if limit <= 0 {
		return "", fail(ImageTooLarge, "pull %s: no space is allowed for it", ref)
	}
	name := pullName(key, ref)
	unlock, err := s.pulling.lock(ctx, name)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	defer unlock()
	defer s.enter(name)()

	if ref.Digest != "" {
		if owned, err := s.owned(ctx, key, ref.WithDigest(ref.Digest)); err != nil || owned {
			return ref.WithDigest(ref.Digest), err
		}
	}
	if err := s.createContentLease(ctx, name, key); err != nil {
		return "", err
	}
	err = s.transferImage(ctx, name, ref, credentials, limit, progress)
	kept := ""
	if err == nil {
		kept, err = s.keep(ctx, name, ref, key, limit)
	}
	switch failed, ok := errors.AsType[*Error](err); {
	case err == nil:
		s.forgetPull(ctx, name, false)
	case errors.Is(err, ocispec.ErrNoRange), ok && !failed.Temporary():
		// containerd hears of a pull's end a moment later; what it unpacks meanwhile
		// would stay. The next attempt has no use for it.
		for tries := 0; tries < 100 && s.unpacking(ctx, name); tries++ {
			time.Sleep(100 * time.Millisecond)
		}
		s.forgetPull(ctx, name, true)
	}
	return kept, err
}

// forgetPull deletes the content lease of a pull; Collect does if it cannot.
func (s *Sandbox) forgetPull(ctx context.Context, name string, wait bool) {
	call, cancel := s.call(ctx)
	defer cancel()
	if _, err := s.leases.Delete(call, &contentleases.DeleteRequest{ID: name, Sync: wait}); err != nil && !isMissing(err) {
		s.log.Warn("content lease was not deleted", "name", name, "error", err)
	}
}

// owned says whether a lease has an image, whole and unpacked.
func (s *Sandbox) owned(ctx context.Context, key lease.Key, name string) (bool, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	found, err := s.images.Get(call, &images.GetImageRequest{Name: name})
	if isMissing(err) {
		return false, nil
	}
	if err != nil {
		return false, sortError(err, "look up image "+name)
	}
	if _, ok := found.Image.Labels[ownerLabel(key)]; !ok {
		return false, nil
	}
	here, err := s.readImage(ctx, found.Image.GetTarget().GetDigest())
	if errors.Is(err, ocispec.ErrNotHere) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, err = s.snapshots.Stat(call, &snapshots.StatSnapshotRequest{Snapshotter: snapshotter, Key: here.Chain})
	if isMissing(err) {
		return false, nil
	}
	return err == nil, sortError(err, "look up image "+name)
}

func (s *Sandbox) createContentLease(ctx context.Context, name string, key lease.Key) error {
	call, cancel := s.call(ctx)
	defer cancel()
	_, err := s.leases.Create(call, &contentleases.CreateRequest{ID: name, Labels: map[string]string{
		leaseLabel:                string(key),
		"containerd.io/gc.expire": time.Now().Add(keepBroken).UTC().Format(time.RFC3339),
	}})
	if code(err) == codes.AlreadyExists {
		return nil
	}
	if err != nil {
		return sortError(err, "begin the pull")
	}
	// What other pulls of the lease's left when they broke goes now: else a
	// registry that always breaks them would fill the disk through ever new names.
	return s.deletePulls(ctx, func(owner lease.Key) bool { return owner == key })
}

// transferImage has containerd fetch and unpack an image, under the content
// lease and as image record of that name.
func (s *Sandbox) transferImage(ctx context.Context, name string, ref ocispec.Reference, credentials *sdl.Credentials, limit int64, progress func(done, total int64)) error {
	ctx, cancel := context.WithCancelCause(s.inNamespace(ctx))
	defer cancel(nil)
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel(nil)

	resolver := &transfertypes.RegistryResolver{HostDir: s.cfg.HostDir}
	if credentials != nil {
		stream, id, err := s.openStream(ctx)
		if err != nil {
			return err
		}
		resolver.AuthStream = id
		workers.Go(func() { answerAuth(stream, *credentials) })
	}
	stream, id, err := s.openStream(ctx)
	if err != nil {
		return err
	}
	counted := ocispec.NewTally(limit)
	var mu sync.Mutex // guards counted, and makes calls of progress one at a time
	heard := make(chan struct{})
	workers.Go(func() {
		defer close(heard)
		progress(0, 0)
		for {
			message, err := stream.Recv()
			if err != nil {
				return // the transfer is over, and says how itself
			}
			var p transfertypes.Progress
			if typeurl.UnmarshalTo(message, &p) != nil || p.Desc == nil || p.Name == "" {
				continue
			}
			mu.Lock()
			changed, err := counted.Add(ocispec.Progress{Event: p.Event, Digest: p.Desc.Digest, MediaType: p.Desc.MediaType, Size: p.Desc.Size, Done: p.Progress})
			done, total := counted.Shown()
			mu.Unlock()
			if err != nil {
				cancel(err)
				return
			}
			if changed {
				progress(done, total)
			}
		}
	})
	workers.Go(func() {
		var last int64
		tick := time.NewTicker(measureEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			size := s.unpackedUnder(ctx, name)
			if size > limit {
				cancel(fail(ImageTooLarge, "the unpacked image takes %d bytes or more, %d are allowed", size, limit))
				return
			}
			mu.Lock()
			if size != last {
				last, counted.Changed = size, time.Now()
			}
			still := time.Since(counted.Changed)
			mu.Unlock()
			if still > stallBound {
				cancel(fail(RegistryDown, "pull %s: nothing came for %s", ref, stallBound))
				return
			}
		}
	})

	source, err := typeurl.MarshalAnyToProto(&transfertypes.OCIRegistry{Reference: ref.String(), Resolver: resolver})
	if err != nil {
		return err
	}
	system, architecture := ocispec.Platform()
	target := &types.Platform{OS: system, Architecture: architecture}
	destination, err := typeurl.MarshalAnyToProto(&transfertypes.ImageStore{
		Name:          name,
		Platforms:     []*types.Platform{target},
		ManifestLimit: 1,
		Unpacks:       []*transfertypes.UnpackConfiguration{{Platform: target, Snapshotter: snapshotter}},
	})
	if err != nil {
		return err
	}
	_, err = s.transfer.Transfer(underLease(ctx, name), &transfer.TransferRequest{
		Source: source, Destination: destination,
		Options: &transfer.TransferOptions{ProgressStream: id},
	})
	if err == nil {
		select { // containerd closes the stream of progress; what it still holds is worth a moment
		case <-heard:
		case <-time.After(lastWords):
		}
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	if err != nil {
		return sortPullError(err, ref.String())
	}
	cancel(nil)
	workers.Wait()
	// containerd's last word is often not the last byte.
	if _, total := counted.Shown(); total > 0 {
		progress(total, total)
	}
	return nil
}

// openStream makes one of containerd's named streams.
func (s *Sandbox) openStream(ctx context.Context) (streaming.Streaming_StreamClient, string, error) {
	id := "croft-" + rand.Text()
	stream, err := s.streaming.Stream(ctx)
	if err != nil {
		return nil, "", sortError(err, "open a stream")
	}
	hello, err := typeurl.MarshalAnyToProto(&streaming.StreamInit{ID: id})
	if err != nil {
		return nil, "", err
	}
	if err := stream.Send(hello); err == nil {
		_, err = stream.Recv() // says that the stream can be named
		if err != nil {
			return nil, "", sortError(err, "open a stream")
		}
		return stream, id, nil
	}
	_, err = stream.Recv() // Send only says that it is over, Recv why
	return nil, "", sortError(err, "open a stream")
}

// answerAuth tells containerd the credentials, when it asks for their host.
func answerAuth(stream streaming.Streaming_StreamClient, credentials sdl.Credentials) {
	for {
		message, err := stream.Recv()
		if err != nil {
			return
		}
		var question transfertypes.AuthRequest
		if typeurl.UnmarshalTo(message, &question) != nil {
			return
		}
		answer := &transfertypes.AuthResponse{AuthType: transfertypes.AuthType_NONE}
		if ocispec.CredentialHost(credentials.Host, question.Host) {
			answer = &transfertypes.AuthResponse{
				AuthType: transfertypes.AuthType_CREDENTIALS,
				Username: credentials.Username,
				Secret:   credentials.Password,
			}
		}
		packed, err := typeurl.MarshalAnyToProto(answer)
		if err != nil || stream.Send(packed) != nil {
			return
		}
	}
}

// unpacking says whether containerd is writing a layer of a pull.
func (s *Sandbox) unpacking(ctx context.Context, name string) bool {
	call, cancel := s.call(ctx)
	defer cancel()
	list, err := s.leases.ListResources(call, &contentleases.ListResourcesRequest{ID: name})
	return err == nil && slices.ContainsFunc(list.Resources, func(r *contentleases.Resource) bool { return strings.HasPrefix(r.ID, "extract-") })
}

// unpackedUnder is how much a pull has unpacked so far. It counts what can be
// counted: snapshots come and go meanwhile.
func (s *Sandbox) unpackedUnder(ctx context.Context, name string) (total int64) {
	call, cancel := s.call(ctx)
	defer cancel()
	list, err := s.leases.ListResources(call, &contentleases.ListResourcesRequest{ID: name})
	if err != nil {
		return 0
	}
	for _, resource := range list.Resources {
		if resource.Type != "snapshots/"+snapshotter {
			continue
		}
		if usage, err := s.snapshots.Usage(call, &snapshots.UsageRequest{Snapshotter: snapshotter, Key: resource.ID}); err == nil {
			total += ocispec.Space(usage.Size, usage.Inodes)
		}
	}
	return total
}

// keep checks what was pulled and gives it to the lease, under its name with
// digest.
func (s *Sandbox) keep(ctx context.Context, pulled string, ref ocispec.Reference, key lease.Key, limit int64) (string, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	found, err := s.images.Get(call, &images.GetImageRequest{Name: pulled})
	if err != nil {
		return "", sortError(err, "look up the pulled image")
	}
	defer func() {
		if _, err := s.images.Delete(call, &images.DeleteImageRequest{Name: pulled}); err != nil && !isMissing(err) {
			s.log.Warn("image record of a pull was not deleted", "name", pulled, "error", err) // Collect will
		}
	}()
	target := found.Image.GetTarget()
	here, err := s.readImage(ctx, target.GetDigest())
	if errors.Is(err, ocispec.ErrNotHere) {
		err = fail(BadImage, "pull %s: the image is not whole", ref)
	}
	if err != nil {
		return "", err
	}
	size, err := s.unpackedSize(ctx, here.Chain)
	if err != nil {
		return "", err
	}
	if size > limit {
		return "", fail(ImageTooLarge, "the unpacked image takes %d bytes, %d are allowed", size, limit)
	}
	name := ref.WithDigest(target.GetDigest())
	s.owning.Lock()
	defer s.owning.Unlock()
	_, err = s.images.Create(call, &images.CreateImageRequest{Image: &images.Image{
		Name: name, Target: target, Labels: map[string]string{ownerLabel(key): "1"},
	}})
	if code(err) != codes.AlreadyExists {
		return name, sortError(err, "keep image "+name)
	}
	known, err := s.images.Get(call, &images.GetImageRequest{Name: name})
	if err != nil {
		return "", sortError(err, "keep image "+name)
	}
	labels := maps.Clone(known.Image.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[ownerLabel(key)] = "1"
	return name, s.relabel(ctx, known.Image, labels)
}

// relabel replaces an image's labels. The target goes along unchanged:
// containerd 2.3 dies of an update without one.
func (s *Sandbox) relabel(ctx context.Context, image *images.Image, labels map[string]string) error {
	call, cancel := s.call(ctx)
	defer cancel()
	_, err := s.images.Update(call, &images.UpdateImageRequest{
		Image:      &images.Image{Name: image.Name, Target: image.Target, Labels: labels},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
	})
	return sortError(err, "keep image "+image.Name)
}

// Release ends a lease's use of all images but those named, with digest, and
// frees those that no other lease uses. Without names it forgets what broken
// pulls of the lease left, too. Containers that run go on.
func (s *Sandbox) Release(ctx context.Context, key lease.Key, keep ...string) error {
	s.owning.Lock()
	defer s.owning.Unlock()
	call, cancel := s.call(ctx)
	defer cancel()
	list, err := s.images.List(call, &images.ListImagesRequest{})
	if err != nil {
		return sortError(err, "list images")
	}
	for _, image := range list.Images {
		if _, ok := image.Labels[ownerLabel(key)]; !ok || slices.Contains(keep, image.Name) {
			continue
		}
		labels := maps.Clone(image.Labels)
		delete(labels, ownerLabel(key))
		if hasOwner(labels) {
			if err := s.relabel(ctx, image, labels); err != nil {
				return err
			}
			continue
		}
		if _, err := s.images.Delete(call, &images.DeleteImageRequest{Name: image.Name}); err != nil && !isMissing(err) {
			return sortError(err, "delete image "+image.Name)
		}
	}
	if len(keep) == 0 {
		err := s.deletePulls(ctx, func(owner lease.Key) bool { return owner == key })
		if err != nil {
			return err
		}
	}
	return s.collectNow(ctx)
}

// Collect frees all that belongs to none of the leases named: images, what
// broken pulls left, views of containers that are gone. It leaves containers
// alone, whoever they belong to, and with them the layers they stand on. It can
// be repeated at any time, and must not be called with leases missing whose
// replicas are about to be started.
func (s *Sandbox) Collect(ctx context.Context, keep []lease.Key) error {
	s.owning.Lock()
	defer s.owning.Unlock()
	call, cancel := s.call(ctx)
	defer cancel()

	list, err := s.images.List(call, &images.ListImagesRequest{})
	if err != nil {
		return sortError(err, "list images")
	}
	for _, image := range list.Images {
		if strings.HasPrefix(image.Name, pullPrefix) {
			if s.isBusy(image.Name) {
				continue
			}
		} else if left, changed := owners(image.Labels, keep); left > 0 {
			if changed != nil {
				if err := s.relabel(ctx, image, changed); err != nil {
					return err
				}
			}
			continue
		}
		if _, err := s.images.Delete(call, &images.DeleteImageRequest{Name: image.Name}); err != nil && !isMissing(err) {
			return sortError(err, "delete image "+image.Name)
		}
	}

	if err := s.deletePulls(ctx, func(owner lease.Key) bool { return !slices.Contains(keep, owner) }); err != nil {
		return err
	}
	if err := s.collectViews(ctx); err != nil {
		return err
	}
	return s.collectNow(ctx)
}

// deletePulls forgets what broken pulls of some leases left.
func (s *Sandbox) deletePulls(ctx context.Context, of func(lease.Key) bool) error {
	call, cancel := s.call(ctx)
	defer cancel()
	pulls, err := s.leases.List(call, &contentleases.ListRequest{})
	if err != nil {
		return sortError(err, "list content leases")
	}
	for _, pull := range pulls.Leases {
		if !strings.HasPrefix(pull.ID, pullPrefix) || !of(lease.Key(pull.Labels[leaseLabel])) || s.isBusy(pull.ID) {
			continue
		}
		if _, err := s.leases.Delete(call, &contentleases.DeleteRequest{ID: pull.ID}); err != nil && !isMissing(err) {
			return sortError(err, "delete content lease "+pull.ID)
		}
	}
	return nil
}

// collectNow has containerd delete what nothing refers to, and waits for it.
// Deleting a content lease is the one call that does both.
func (s *Sandbox) collectNow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(s.inNamespace(ctx), collectBound)
	defer cancel()
	const sweep = "collect"
	if _, err := s.leases.Create(ctx, &contentleases.CreateRequest{ID: sweep}); err != nil && code(err) != codes.AlreadyExists {
		return sortError(err, "collect garbage")
	}
	_, err := s.leases.Delete(ctx, &contentleases.DeleteRequest{ID: sweep, Sync: true})
	return sortError(err, "collect garbage")
}

func (s *Sandbox) isBusy(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy[name] > 0
}

// owners counts the leases of keep that own an image. The labels are those it
// should have, nil if they are as they should be.
func owners(labels map[string]string, keep []lease.Key) (count int, changed map[string]string) {
	left := map[string]string{}
	for name, value := range labels {
		key, isOwner := strings.CutPrefix(name, ownerLabels)
		if isOwner && !slices.Contains(keep, lease.Key(key)) {
			continue
		}
		if isOwner {
			count++
		}
		left[name] = value
	}
	if len(left) == len(labels) {
		return count, nil
	}
	return count, left
}
