package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	snapshots "github.com/containerd/containerd/api/services/snapshots/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
	"github.com/croft-cloud/croft/agent/replicalog"
)

// shim is containerd's own for runc, which drives runsc just as well; gVisor's
// shim hangs without the annotations that Kubernetes sets.
const shim = "io.containerd.runc.v2"

// How containerd names the JSON of the runtime specification.
const (
	specType    = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	processType = "types.containerd.io/opencontainers/runtime-spec/1/Process"
)

// Start makes and starts a container. One that runs under this ID is left
// alone; one that ended makes way, and is told by [Sandbox.NextExit] before the
// new one's end. What it wrote to its root is gone with it, volumes stay.
//
// The end of ctx does not break a start off that has begun; it takes two minutes
// at most. Fails with [BadContainer], [BadImage], [UnknownImage], [RuntimeAway] or
// [RuntimeRefused]; nothing is left then.
func (s *Sandbox) Start(ctx context.Context, c lease.Container) error {
	id := c.ID.Container()
	doing := "start " + c.ID.Pod()
	if _, digest, ok := strings.Cut(c.Image, "@"); !ok || !ocispec.IsDigest(digest) {
		return fail(BadContainer, "%s: image %.200q is not named with its digest", doing, c.Image)
	}
	for _, path := range []string{c.Scratch, c.Log} {
		if !filepath.IsAbs(path) || strings.ContainsAny(path, ",:\x00\n") {
			return fail(BadContainer, "%s: path %q of scratch folder or log: want an absolute one without commas and colons", doing, path)
		}
	}
	unlock, err := s.changing.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	defer unlock()
	defer s.look(ctx, id) // a program may have ended before anybody watched
	defer s.enter(id)()

	found, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	if found != nil && found.running() {
		return nil
	}
	if err := s.remove(ctx, c.ID, true); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	// Not broken off: containerd would tidy up behind our back, and leave things.
	if err := s.start(context.WithoutCancel(ctx), c, id); err != nil {
		tidy, cancel := context.WithTimeout(context.WithoutCancel(ctx), killBound)
		defer cancel()
		if err := s.remove(tidy, c.ID, false); err != nil {
			s.log.Warn("remains of a failed start were not removed", "container", id, "error", err)
		}
		return err
	}
	return nil
}

func (s *Sandbox) start(ctx context.Context, c lease.Container, id string) error {
	ctx, cancel := context.WithTimeout(s.inNamespace(ctx), startBound)
	defer cancel()
	doing := "start " + c.ID.Pod()

	image, err := s.loadImage(ctx, c.Image)
	if errors.Is(err, ocispec.ErrNotHere) {
		return fail(UnknownImage, "%s: image %s is not whole here: pull it again", doing, c.Image)
	}
	if err != nil {
		return err
	}
	view, err := s.snapshots.View(ctx, &snapshots.ViewSnapshotRequest{
		Snapshotter: snapshotter, Key: id, Parent: image.Chain,
		Labels: map[string]string{
			leaseLabel:              string(c.ID.Lease),
			"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339), // goes with remove, or collectViews
		},
	})
	if isMissing(err) {
		return fail(UnknownImage, "%s: image %s is not unpacked here: pull it again", doing, c.Image)
	}
	if err != nil {
		return sortError(err, doing)
	}
	var mounts []specs.Mount
	for _, m := range view.Mounts {
		mounts = append(mounts, specs.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	lower, err := ocispec.ViewLayers(mounts)
	if err != nil {
		return fail(RuntimeRefused, "%s: %w", doing, err)
	}
	passwd, group, err := lower.ReadAccounts()
	if err != nil {
		return err
	}
	who, err := ocispec.LookUpUser(image.Config.User, passwd, group)
	if err != nil {
		return err
	}
	files, rootfs, err := s.prepareScratch(c, lower)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	weighs, err := s.prepareCgroups()
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	spec, err := ocispec.Build(ocispec.Input{Container: c, Config: image.Config, Who: who, Files: files, UserIDs: ocispec.UserIDs(s.cfg.UserIDs, c.ID.Lease), IOWeight: weighs})
	if err != nil {
		return err
	}
	written, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	replica, err := json.Marshal(c.ID)
	if err != nil {
		return err
	}
	options, err := typeurl.MarshalAnyToProto(&runcoptions.Options{BinaryName: s.cfg.Runsc, Root: s.cfg.RunscRoot})
	if err != nil {
		return err
	}
	labels := map[string]string{replicaLabel: string(replica), leaseLabel: string(c.ID.Lease), lifeLabel: rand.Text()}
	if signal := unix.SignalNum(strings.ToUpper(image.Config.StopSignal)); signal != 0 {
		labels[signalLabel] = unix.SignalName(signal)
	}
	if _, err := s.containers.Create(ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		ID: id, Labels: labels, Image: c.Image,
		Runtime:     &containers.Container_Runtime{Name: shim, Options: options},
		Spec:        &anypb.Any{TypeUrl: specType, Value: written},
		Snapshotter: snapshotter, SnapshotKey: id,
	}}); err != nil {
		return sortError(err, doing)
	}
	log := replicalog.URI(s.cfg.Rotlog, c.Log, s.cfg.LogBytes, s.cfg.LogFiles)
	if _, err := s.tasks.Create(ctx, &tasks.CreateTaskRequest{
		ContainerID: id, Rootfs: rootfs, Stdout: log, Stderr: log, Options: options,
	}); err != nil {
		return sortError(err, doing)
	}
	// The enclosure stands; from here on the tenant's program runs.
	if err := s.limitCPU(c.ID, c.Limits.CPU); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if _, err := s.tasks.Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
		return sortError(err, doing)
	}
	return nil
}

// limitCPU takes back what [ocispec.Build] gives the enclosure for its own start.
func (s *Sandbox) limitCPU(replica lease.ReplicaID, cpu int64) error {
	for _, folder := range s.cgroups(ocispec.CgroupPath(replica)) {
		for name, text := range ocispec.CPUFiles(cpu) {
			file, err := os.OpenFile(filepath.Join(folder, name), os.O_WRONLY, 0)
			if err != nil {
				continue // the other kind's, or another controller's folder
			}
			_, err = file.WriteString(text)
			return errors.Join(err, file.Close())
		}
	}
	return fail(RuntimeRefused, "limit the processor: the container has no cgroup")
}

// prepareScratch makes the folders a root file system consists of, empty, and
// the generated files. What a replica wrote to its root does not outlive it:
// gVisor keeps it in a file that only the same sandbox can read.
func (s *Sandbox) prepareScratch(c lease.Container, lower ocispec.Layers) ([]lease.Mount, []*types.Mount, error) {
	upper, work, etc := filepath.Join(c.Scratch, "upper"), filepath.Join(c.Scratch, "work"), filepath.Join(c.Scratch, "etc")
	for _, folder := range []string{upper, work, etc} {
		if err := os.RemoveAll(folder); err != nil {
			return nil, nil, err
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, nil, err
		}
	}
	// The root's own mode and owner show in the replica.
	root := ocispec.UserIDs(s.cfg.UserIDs, c.ID.Lease)
	if err := errors.Join(os.Chown(upper, int(root), int(root)), lower.KeepTemporary(upper, root)); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Dir(c.Log), 0o755); err != nil {
		return nil, nil, err
	}
	if err := ocispec.GiveVolumes(c.Mounts, root); err != nil {
		return nil, nil, err
	}
	var files []lease.Mount
	for _, file := range []struct{ name, text string }{
		{"resolv.conf", ocispec.ResolverFile(c)},
		{"hosts", ocispec.HostsFile(c)},
		{"hostname", c.Hostname + "\n"},
	} {
		path := filepath.Join(etc, file.name)
		if err := os.WriteFile(path, []byte(file.text), 0o644); err != nil {
			return nil, nil, err
		}
		files = append(files, lease.Mount{Source: path, Destination: "/etc/" + file.name, ReadOnly: true})
	}
	// An image may hold device nodes and set-user-id programs of the machine's root.
	options := []string{"nodev", "nosuid", "workdir=" + work, "upperdir=" + upper, "lowerdir=" + strings.Join(lower, ":")}
	if root != 0 {
		options = append(options, fmt.Sprintf("uidmap=0:%d:%d", root, ocispec.MappedIDs), fmt.Sprintf("gidmap=0:%d:%d", root, ocispec.MappedIDs))
	}
	return files, []*types.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

// Stop ends a replica: it is asked to, has grace to do so, and is killed. Then
// all that it was made of is removed but its disk and its images. There being
// none is no error, and a Stop that failed can be repeated.
func (s *Sandbox) Stop(ctx context.Context, replica lease.ReplicaID, grace time.Duration) error {
	id := replica.Container()
	doing := "stop " + replica.Pod()
	unlock, err := s.changing.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	defer unlock()
	defer s.enter(id)()

	found, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	if found != nil && found.running() && grace > 0 {
		signal := unix.SignalNum(found.signal)
		if signal == 0 {
			signal = unix.SIGTERM
		}
		if err := s.kill(ctx, id, "", signal); err != nil {
			return sortError(err, doing)
		}
		if err := s.waitEnd(ctx, id, "", grace); err != nil {
			return sortError(err, doing)
		}
		if _, err = s.find(ctx, id); err != nil {
			return err
		}
	}
	// The enclosure's own end is not the tenant's to pay either. It may have ended.
	_ = s.limitCPU(replica, ocispec.EnclosureCPU)
	return s.remove(ctx, replica, true)
}

// remove kills what still runs and deletes task, container, view and state, in
// an order that can be broken off anywhere: the record that names all else goes
// last. The caller holds the container's lock.
//
// tell is false for what never came to life: its Start says so itself.
func (s *Sandbox) remove(ctx context.Context, replica lease.ReplicaID, tell bool) error {
	id := replica.Container()
	doing := "remove " + replica.Pod()
	found, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	if found != nil {
		if found.task != nil && found.task.Status != task.Status_STOPPED {
			if err := s.kill(ctx, id, "", unix.SIGKILL); err != nil {
				return sortError(err, doing)
			}
			if err := s.waitEnd(ctx, id, "", killBound); err != nil {
				return sortError(err, doing)
			}
			if found, err = s.find(ctx, id); err != nil {
				return err
			}
			if found != nil && found.task != nil && found.task.Status != task.Status_STOPPED {
				return fail(RuntimeAway, "%s: it was killed and did not end in %s", doing, killBound)
			}
		}
		if found != nil && tell {
			s.report(*found)
		}
	}
	call, cancel := context.WithTimeout(s.inNamespace(ctx), killBound)
	defer cancel()
	if _, err := s.tasks.Delete(call, &tasks.DeleteTaskRequest{ContainerID: id}); err != nil && !isMissing(err) {
		return sortError(err, doing)
	}
	if err := s.sweep(ctx, replica); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if _, err := s.snapshots.Remove(call, &snapshots.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: id}); err != nil && !isMissing(err) {
		return sortError(err, doing)
	}
	if _, err := s.containers.Delete(call, &containers.DeleteContainerRequest{ID: id}); err != nil && !isMissing(err) {
		return sortError(err, doing)
	}
	return nil
}

// kill sends a signal to a replica or, with exec, to a command in it. That it
// has ended is no error.
func (s *Sandbox) kill(ctx context.Context, id, exec string, signal unix.Signal) error {
	call, cancel := s.call(ctx)
	defer cancel()
	_, err := s.tasks.Kill(call, &tasks.KillRequest{ContainerID: id, ExecID: exec, Signal: uint32(signal), All: exec == "" && signal == unix.SIGKILL})
	if isMissing(err) || code(err) == codes.FailedPrecondition {
		return nil
	}
	return err
}

// waitEnd returns when a replica or command has ended, or after a time.
func (s *Sandbox) waitEnd(ctx context.Context, id, exec string, at time.Duration) error {
	call, cancel := context.WithCancel(s.inNamespace(ctx)) // of a deadline shims tell in words of their own
	defer cancel()
	defer time.AfterFunc(at, cancel).Stop()
	_, err := s.tasks.Wait(call, &tasks.WaitRequest{ContainerID: id, ExecID: exec})
	if late := call.Err() != nil && ctx.Err() == nil; late || isMissing(err) {
		return nil
	}
	return err
}

// sweep removes what containerd and runsc leave behind when a start or stop
// fails on their side: shims, processes in the container's cgroup, the cgroup
// itself, and runsc's record, without which the same container could not be made again.
func (s *Sandbox) sweep(ctx context.Context, replica lease.ReplicaID) error {
	id := replica.Container()
	for _, pid := range ocispec.Shims("/proc", s.cfg.Namespace, id) {
		_ = unix.Kill(pid, unix.SIGKILL) // it may be gone by now
	}
	folders := s.cgroups(ocispec.CgroupPath(replica))
	for tries := 0; ; tries++ { // a fork bomb loses: nothing in a sandbox forks host processes for long once its sentry is killed
		err := removeCgroups(folders)
		if err == nil {
			break
		}
		if tries == 50 {
			return fail(RuntimeRefused, "remove cgroup: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	left, err := filepath.Glob(filepath.Join(s.cfg.RunscRoot, s.cfg.Namespace, "*"+id+"*")) // runsc-ID.sock, too
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups kills who is in there, and removes what is empty. runsc does it,
// but for failed starts, and sets no limits on a cgroup that it finds.
func removeCgroups(folders []string) error {
	var errs []error
	for _, folder := range folders {
		raw, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs")) // gone, most of the time
		for field := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				_ = unix.Kill(pid, unix.SIGKILL) // it may be gone by now
			}
		}
		if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// prepareCgroups makes the cgroup that holds those of all replicas, and says
// whether the kernel can weigh their disk traffic. runsc fails where it cannot.
// Where the old hierarchy is used runsc removes no more than the replica's own.
func (s *Sandbox) prepareCgroups() (weighs bool, err error) {
	if !s.unified() {
		return false, nil
	}
	all := filepath.Join(s.cfg.CgroupRoot, ocispec.CgroupRoot)
	if err := os.MkdirAll(all, 0o755); err != nil {
		return false, err
	}
	files, err := filepath.Glob(filepath.Join(all, "io.*weight")) // io.weight, io.bfq.weight
	return len(files) > 0, err
}

func (s *Sandbox) unified() bool {
	_, err := os.Stat(filepath.Join(s.cfg.CgroupRoot, "cgroup.controllers"))
	return err == nil
}

// cgroups are the folders that one cgroup has, if it exists: one in the unified
// hierarchy, one per controller in the old one.
func (s *Sandbox) cgroups(path string) []string {
	if s.unified() {
		return []string{filepath.Join(s.cfg.CgroupRoot, path)}
	}
	var all []string
	hierarchies, err := os.ReadDir(s.cfg.CgroupRoot)
	if err != nil {
		return nil
	}
	for _, h := range hierarchies {
		all = append(all, filepath.Join(s.cfg.CgroupRoot, h.Name(), path))
	}
	return all
}

// collectViews removes views of containers that are not there: a start that
// this process's predecessor did not finish.
func (s *Sandbox) collectViews(ctx context.Context) error {
	call, cancel := s.call(ctx)
	defer cancel()
	known, err := s.containers.List(call, &containers.ListContainersRequest{})
	if err != nil {
		return sortError(err, "list containers")
	}
	has := map[string]bool{}
	for _, c := range known.Containers {
		has[c.ID] = true
	}
	stream, err := s.snapshots.List(call, &snapshots.ListSnapshotsRequest{Snapshotter: snapshotter})
	if err != nil {
		return sortError(err, "list snapshots")
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return sortError(err, "list snapshots")
		}
		for _, info := range part.Info {
			if info.Kind != snapshots.Kind_VIEW || info.Labels[leaseLabel] == "" || has[info.Name] || s.isBusy(info.Name) {
				continue
			}
			if _, err := s.snapshots.Remove(call, &snapshots.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: info.Name}); err != nil && !isMissing(err) {
				return sortError(err, "remove view "+info.Name)
			}
		}
	}
}
