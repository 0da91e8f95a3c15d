package sandbox

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	containers "github.com/containerd/containerd/api/services/containers/v1"
	events "github.com/containerd/containerd/api/services/events/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/typeurl/v2"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
)

const (
	// lookEvery is how often all containers are looked at, events or not.
	lookEvery = 30 * time.Second
	// reconnectFirst and reconnectLast bound the wait before containerd is asked
	// for events again.
	reconnectFirst, reconnectLast = 200 * time.Millisecond, 5 * time.Second
	// killedCode is the code of a replica whose end nobody saw: whoever ended it
	// did not ask.
	killedCode = 137
)

// state is a container of ours as containerd has it.
type state struct {
	id      string
	replica lease.ReplicaID
	life    string
	signal  string
	made    time.Time
	task    *task.Process // nil: there is none
}

// running says whether the replica's program runs. One that was made and never
// started does not: its starter is gone.
func (f state) running() bool {
	return f.task != nil && (f.task.Status == task.Status_RUNNING || f.task.Status == task.Status_PAUSED || f.task.Status == task.Status_PAUSING)
}

// find looks a container up; nil if there is none.
func (s *Sandbox) find(ctx context.Context, id string) (*state, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	got, err := s.containers.Get(call, &containers.GetContainerRequest{ID: id})
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, sortError(err, "look up container "+id)
	}
	found := readLabels(got.Container)
	if found.task, err = s.task(ctx, id); err != nil {
		return nil, err
	}
	return &found, nil
}

func readLabels(c *containers.Container) state {
	found := state{id: c.ID, life: c.Labels[lifeLabel], signal: c.Labels[signalLabel], made: c.CreatedAt.AsTime()}
	// A container of somebody else's in our namespace has no replica; nothing
	// of ours asks for it, and it is never reported.
	_ = json.Unmarshal([]byte(c.Labels[replicaLabel]), &found.replica)
	return found
}

func (s *Sandbox) task(ctx context.Context, id string) (*task.Process, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	got, err := s.tasks.Get(call, &tasks.GetRequest{ContainerID: id})
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, sortError(err, "look up container "+id)
	}
	return got.Process, nil
}

// list is every container of ours with its task.
func (s *Sandbox) list(ctx context.Context) ([]state, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	known, err := s.containers.List(call, &containers.ListContainersRequest{})
	if err != nil {
		return nil, sortError(err, "list containers")
	}
	var all []state
	for _, c := range known.Containers {
		found := readLabels(c)
		if found.replica.Lease == "" || found.replica.Container() != found.id {
			continue
		}
		if found.task, err = s.task(ctx, found.id); err != nil {
			return nil, err
		}
		all = append(all, found)
	}
	return all, nil
}

// List is every container there is, also ended ones: nil for one that runs or
// is being started.
func (s *Sandbox) List(ctx context.Context) (map[lease.ReplicaID]*lease.Exit, error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	found := map[lease.ReplicaID]*lease.Exit{}
	for _, f := range all {
		found[f.replica] = nil
		if !f.running() && !s.isBusy(f.id) {
			exit := s.exitOf(f)
			found[f.replica] = &exit
		}
	}
	return found, nil
}

// Started is when a replica was last started.
func (s *Sandbox) Started(ctx context.Context, id lease.ReplicaID) (time.Time, error) {
	found, err := s.find(ctx, id.Container())
	if err != nil {
		return time.Time{}, err
	}
	if found == nil {
		return time.Time{}, fail(UnknownContainer, "%s does not run here", id.Pod())
	}
	return found.made, nil
}

// exitOf is the end of a container that does not run.
func (s *Sandbox) exitOf(f state) lease.Exit {
	exit := lease.Exit{Code: killedCode, At: time.Now().UTC()}
	if f.task != nil && f.task.Status == task.Status_STOPPED {
		exit.Code = int(f.task.ExitStatus)
		if at := f.task.ExitedAt; at.IsValid() && !at.AsTime().IsZero() {
			exit.At = at.AsTime()
		}
	}
	if exit.Code == killedCode {
		s.mu.Lock()
		exit.OOM = s.ends.oom[f.life]
		s.mu.Unlock()
		// The event may come after the end, or have come while nobody listened.
		exit.OOM = exit.OOM || s.killedForMemory(f.replica)
	}
	return exit
}

// killedForMemory asks the kernel whether it ended a program of the replica's
// for want of memory. The cgroup stays until the task is deleted.
func (s *Sandbox) killedForMemory(id lease.ReplicaID) bool {
	for _, folder := range s.cgroups(ocispec.CgroupPath(id)) {
		for _, name := range []string{"memory.events", "memory.oom_control"} {
			raw, _ := os.ReadFile(filepath.Join(folder, name)) // one of them is there, if the cgroup is
			if countOf(raw, "oom_kill") > 0 {
				return true
			}
		}
	}
	return false
}

// countOf reads one number of a file of "name number" lines; 0 if it is not
// there.
func countOf(raw []byte, name string) int64 {
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil && key == name {
			return n
		}
	}
	return 0
}

// ends are the ends of replicas that are to be told. A life is told once.
type ends struct {
	told  map[string]bool // lives
	oom   map[string]bool // lives that wanted too much memory
	queue []end
}

type end struct {
	replica lease.ReplicaID
	exit    lease.Exit
}

// report tells the end of a container that does not run, unless that was done.
func (s *Sandbox) report(f state) {
	if f.replica.Lease == "" || f.life == "" || f.running() {
		return
	}
	s.mu.Lock()
	told := s.ends.told[f.life]
	s.mu.Unlock()
	if told {
		return
	}
	exit := s.exitOf(f)
	s.mu.Lock()
	if !s.ends.told[f.life] {
		if s.ends.told == nil {
			s.ends.told = map[string]bool{}
		}
		s.ends.told[f.life] = true
		s.ends.queue = append(s.ends.queue, end{f.replica, exit})
	}
	s.mu.Unlock()
	s.wake()
}

func (s *Sandbox) wake() {
	select {
	case s.ended <- struct{}{}:
	default:
	}
}

// NextExit waits for the end of a replica and takes it off the queue. Each life
// of a replica, from a Start to the next, ends once.
func (s *Sandbox) NextExit(ctx context.Context) (lease.ReplicaID, lease.Exit, error) {
	for {
		s.mu.Lock()
		if len(s.ends.queue) > 0 {
			first := s.ends.queue[0]
			s.ends.queue = s.ends.queue[1:]
			more := len(s.ends.queue) > 0
			s.mu.Unlock()
			if more {
				s.wake()
			}
			return first.replica, first.exit, nil
		}
		s.mu.Unlock()
		select {
		case <-s.ended:
		case <-ctx.Done():
			return lease.ReplicaID{}, lease.Exit{}, ctx.Err()
		}
	}
}

// look reports a container's end, if it has ended and nobody is changing it.
func (s *Sandbox) look(ctx context.Context, id string) {
	if s.isBusy(id) {
		return
	}
	found, err := s.find(ctx, id)
	if err != nil || found == nil || s.isBusy(id) {
		return // reconcile will
	}
	s.report(*found)
}

// reconcile looks at all containers and forgets lives that are over.
func (s *Sandbox) reconcile(ctx context.Context) error {
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	lives := map[string]bool{}
	for _, f := range all {
		lives[f.life] = true
		if !f.running() && !s.isBusy(f.id) {
			s.look(ctx, f.id) // again: it may have been changed since it was listed
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.busy) > 0 {
		return nil // a life may have begun after the list was made
	}
	over := func(life string, _ bool) bool { return !lives[life] }
	maps.DeleteFunc(s.ends.told, over)
	maps.DeleteFunc(s.ends.oom, over)
	return nil
}

// Run watches for ends of replicas until ctx ends. While containerd is away it
// asks for it again and again, and then looks at what it missed.
func (s *Sandbox) Run(ctx context.Context) error {
	if err := s.clearPipes(); err != nil {
		return err
	}
	wait, away := reconnectFirst, false
	for {
		begun := time.Now()
		err := s.watch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !away {
			s.log.Warn("container runtime is away", "error", err)
			away = true
		}
		if time.Since(begun) > reconnectLast {
			wait, away = reconnectFirst, false
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(2*wait, reconnectLast)
	}
}

// watch takes events until the connection breaks. Events are hints: what is true
// is asked for, so that neither a lost nor a late event tells a wrong end.
func (s *Sandbox) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.events.Subscribe(s.inNamespace(ctx), &events.SubscribeRequest{Filters: []string{
		`namespace==` + s.cfg.Namespace + `,topic=="/tasks/exit"`,
		`namespace==` + s.cfg.Namespace + `,topic=="/tasks/oom"`,
		`namespace==` + s.cfg.Namespace + `,topic=="/tasks/delete"`,
	}})
	if err != nil {
		return err
	}
	type message struct {
		id  string
		oom bool
		err error
	}
	messages := make(chan message)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			envelope, err := stream.Recv()
			m := message{err: err}
			if err == nil {
				m.id, m.oom = readEvent(envelope.GetEvent())
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	defer func() {
		cancel()
		<-done
	}()
	if err := s.reconcile(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case m := <-messages:
			switch {
			case m.err != nil:
				return m.err
			case m.oom:
				s.noteOOM(ctx, m.id)
			case m.id != "":
				s.look(ctx, m.id)
			}
		case <-tick.C:
			if err := s.reconcile(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readEvent is the container of an event of interest.
func readEvent(event typeurl.Any) (id string, oom bool) {
	if event == nil {
		return "", false
	}
	value, err := typeurl.UnmarshalAny(event)
	if err != nil {
		return "", false
	}
	switch e := value.(type) {
	case *eventtypes.TaskExit:
		if e.ID == e.ContainerID { // others are commands
			return e.ContainerID, false
		}
	case *eventtypes.TaskDelete:
		return e.ContainerID, false
	case *eventtypes.TaskOOM:
		return e.ContainerID, true
	}
	return "", false
}

func (s *Sandbox) noteOOM(ctx context.Context, id string) {
	found, err := s.find(ctx, id)
	if err != nil || found == nil || found.life == "" {
		return // the kernel's own count is looked at, too
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends.oom == nil {
		s.ends.oom = map[string]bool{}
	}
	s.ends.oom[found.life] = true
}
