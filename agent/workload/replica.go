package workload

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/sdl"
)

const (
	steadyAfter   = 2 * time.Minute        // a run this long starts the pauses anew
	quietAnswer   = 10 * time.Second       // a replica without a TCP port answers after running this long
	probeSoon     = 500 * time.Millisecond // between two attempts to connect to a new replica
	probePatience = 30 * time.Second       // after which they become rarer
	probeLate     = 5 * time.Second        // between two attempts to connect to a slow or silent replica
	probeSteady   = 15 * time.Second       // between two looks at one that answers
	probeLimit    = 2 * time.Second        // one attempt; the link is a few microseconds long
	silentAfter   = 3                      // failed looks in a row; one may fall into a full backlog
	unhealthy     = time.Minute            // running without answering; told once
)

// end is that a container ended, or is there no more.
type end struct {
	starts   int // which of the replica's containers
	exit     lease.Exit
	vanished bool
}

// replica is one copy of a service. Its goroutine alone moves it from state to
// state.
type replica struct {
	l    *work
	id   lease.ReplicaID
	spec sdl.Service
	quit context.CancelFunc // it is not wanted any more
	ends chan end           // capacity 1; newest wins

	// guarded by l.mu
	state      blueprint.ReplicaState
	leaving    bool // told to stop
	attachment *lease.Attachment
	starts     int    // containers it had since we know it
	failures   int    // in a row
	problem    string // why it does not answer; a sentence
	vain       bool   // it cannot be started unless somebody changes something
}

// tell brings the end of a container to the replica's goroutine.
func (r *replica) tell(e end) {
	for {
		select {
		case r.ends <- e:
			return
		default:
		}
		select {
		case <-r.ends:
		default:
		}
	}
}

// step moves the replica on. A step that is not in the table is a mistake in
// this package; it is logged and not taken.
func (r *replica) step(e blueprint.Step, alongside func()) {
	r.l.mu.Lock()
	to, err := r.state.Next(e)
	if err == nil {
		r.state = to
	}
	if alongside != nil {
		alongside()
	}
	r.l.mu.Unlock()
	if err != nil {
		r.l.log.Error("replica not moved", "pod", r.id.Pod(), "err", err)
	}
	poke(r.l.wake)
}

func (r *replica) now() blueprint.ReplicaState {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	return r.state
}

func (r *replica) event(kind lease.EventType, reason, format string, args ...any) {
	r.l.add(kind, reason, r.id.Service, r.id.Pod(), format, args...)
}

// run carries the replica until work ends: it is dismissed, the lease is over,
// or the agent ends. Only the first removes anything here. Effects on the
// runtime and the network are not broken off in the middle by anything but
// base, the end of the agent: nobody would know what became of them.
func (r *replica) run(work, inner, base context.Context, there bool) {
	if there {
		r.step(blueprint.Found, nil)
	} else {
		r.step(blueprint.Begun, nil)
	}
	var pause blueprint.Pause
	var image string
	for work.Err() == nil {
		switch r.now() {
		case blueprint.Pulling:
			var ok bool
			if image, ok = r.image(work); ok {
				r.step(blueprint.Pulled, nil)
			}
		case blueprint.Creating:
			if err := r.create(base); err != nil {
				r.failed(err, &pause)
				continue
			}
			r.event(lease.Normal, diary.Created, "folders and address of %s are there", r.id.Pod())
			r.step(blueprint.Created, nil)
		case blueprint.Starting:
			if r.l.crowded() {
				sleep(work, probeSoon)
				continue
			}
			if err := r.start(base, image); err != nil {
				if croft.KindOf(err) == croft.KindNotFound {
					r.l.repull(r.spec.Image)
				}
				r.failed(err, &pause)
				continue
			}
			r.event(lease.Normal, diary.Started, "%s was started", r.id.Pod())
			r.step(blueprint.Started, func() { r.starts, r.vain = r.starts+1, false })
		case blueprint.Running, blueprint.Answering:
			r.watch(work, base, there, &pause)
		case blueprint.BackingOff:
			there = false
			sleep(work, pause.Last())
			if work.Err() == nil {
				r.step(blueprint.Retried, nil)
			}
		default:
			return
		}
	}
	if inner.Err() != nil || base.Err() != nil {
		return
	}
	r.remove(inner, base)
}

// failed notes that the replica could not be made.
func (r *replica) failed(err error, pause *blueprint.Pause) {
	wait := pause.Next()
	r.event(lease.Warning, diary.Failed, "%s could not be started: %v; the next attempt is in %s", r.id.Pod(), err, wait.Round(time.Second/10))
	r.step(blueprint.Failed, func() {
		r.failures++
		r.problem = "it could not be started: " + err.Error()
		r.vain = blueprint.Hopeless(err) && croft.KindOf(err) != croft.KindNotFound // an image is fetched anew
	})
}

// create makes the replica's folders and its link, with the rules for it.
func (r *replica) create(ctx context.Context) error {
	r.l.mu.Lock()
	disk := r.l.disk
	r.l.mu.Unlock()
	own := blueprint.ReplicaFolder(disk, r.id)
	// What an earlier container wrote to its root is gone in part at best
	// (facts/containers.md §4); a replica begins with its image.
	if err := os.RemoveAll(own + "/scratch"); err != nil {
		return fmt.Errorf("clear root: %w", err)
	}
	if err := os.MkdirAll(own+"/scratch", 0o755); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	for _, v := range r.spec.Resources.Storage {
		if blueprint.InMemory(v) || blueprint.MountOf(r.spec, v).Mount == "" {
			continue
		}
		folder := blueprint.VolumeFolder(disk, r.id, v)
		if err := makeVolume(folder); err != nil {
			return fmt.Errorf("make volume %s: %w", v.Name, err)
		}
	}
	return r.attach(ctx)
}

// makeVolume makes a folder that whoever the image's program runs as can write
// to. One that is there is the tenant's, its mode included.
func makeVolume(folder string) error {
	if _, err := os.Lstat(folder); err == nil {
		return nil
	}
	unready := folder + ".new"
	if err := os.MkdirAll(unready, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(unready, 0o777); err != nil {
		return err
	}
	return os.Rename(unready, folder)
}

// attach gives the replica its address, and the lease's rules, before it runs.
func (r *replica) attach(ctx context.Context) error {
	r.l.mu.Lock()
	had := r.attachment != nil
	r.l.mu.Unlock()
	if had {
		if err := r.l.w.cfg.Network.Renew(ctx, r.id); err != nil {
			return fmt.Errorf("renew address: %w", err)
		}
		return nil
	}
	attachment, err := r.l.w.cfg.Network.Attach(ctx, r.id)
	if err != nil {
		return fmt.Errorf("attach to network: %w", err)
	}
	r.l.mu.Lock()
	r.attachment = &attachment
	r.l.mu.Unlock()
	if err := r.l.name(ctx); err != nil {
		r.l.mu.Lock()
		r.attachment = nil
		r.l.mu.Unlock()
		return err
	}
	return nil
}

func (r *replica) start(ctx context.Context, image string) error {
	r.l.mu.Lock()
	disk, attachment, gpus := r.l.disk, *r.attachment, r.l.rec.GPUs[r.id.Pod()]
	r.l.mu.Unlock()
	return r.l.w.cfg.Runtime.Start(ctx, blueprint.Container(r.spec, blueprint.Site{
		Lease: r.l.id, Replica: r.id, PublicHost: r.l.w.cfg.PublicHost,
		Disk: disk, Image: image, Attachment: attachment, GPUs: gpus,
	}))
}

// watch looks after a running container until it ends or work does.
func (r *replica) watch(work, base context.Context, there bool, pause *blueprint.Pause) {
	began := time.Now()
	wait, told, misses := probeSoon, false, 0
	if there {
		wait = 0
	}
	for work.Err() == nil {
		timer := time.NewTimer(wait)
		select {
		case <-work.Done():
			timer.Stop()
			return
		case e := <-r.ends:
			timer.Stop()
			r.l.mu.Lock()
			mine := e.starts == r.starts
			r.l.mu.Unlock()
			if mine {
				if time.Since(began) >= steadyAfter {
					pause.Reset()
				}
				r.ended(base, e, pause)
				return
			}
			continue
		case <-timer.C:
		}
		r.l.mu.Lock()
		known := r.attachment != nil
		r.l.mu.Unlock()
		if !known { // found running
			if err := r.attach(base); err != nil {
				r.l.log.Warn("found replica not attached", "pod", r.id.Pod(), "err", err)
				wait = probeLate
				continue
			}
		}
		err := r.probe(work, began, there)
		if work.Err() != nil {
			return
		}
		switch state := r.now(); {
		case err == nil && state == blueprint.Running:
			misses = 0
			r.event(lease.Normal, diary.Ready, "%s answers", r.id.Pod())
			r.step(blueprint.Answered, func() { r.failures, r.problem = 0, "" })
		case err == nil:
			misses = 0
		case state == blueprint.Answering:
			if misses++; misses >= silentAfter {
				r.event(lease.Warning, diary.Unhealthy, "%s does not answer any more: %v", r.id.Pod(), err)
				r.step(blueprint.Silent, func() { r.problem = "it runs and does not answer: " + err.Error() })
			}
		case !told && time.Since(began) >= unhealthy:
			told = true
			r.event(lease.Warning, diary.Unhealthy, "%s runs since %s and does not answer: %v", r.id.Pod(), unhealthy, err)
			r.l.mu.Lock()
			r.problem = "it runs and does not answer: " + err.Error()
			r.l.mu.Unlock()
		}
		switch {
		case r.now() == blueprint.Answering && misses == 0:
			wait = probeSteady
		case time.Since(began) < probePatience:
			wait = probeSoon
		default:
			wait = probeLate
		}
	}
}

// probe tries whether the replica does its work: any of its TCP ports takes a
// connection. Without one, running for a while must do.
func (r *replica) probe(ctx context.Context, began time.Time, there bool) error {
	r.l.mu.Lock()
	var ports []uint16
	for _, e := range r.l.rec.Spec(r.l.groups, r.id).Expose {
		if e.Proto == "TCP" && !slices.Contains(ports, uint16(e.Port)) {
			ports = append(ports, uint16(e.Port))
		}
	}
	address := r.attachment.Address.Addr()
	r.l.mu.Unlock()
	if len(ports) == 0 {
		if there || time.Since(began) >= quietAnswer {
			return nil
		}
		return errors.New("it runs for a short time only")
	}
	var errs []error
	for _, port := range ports {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, probeLimit)
			defer cancel()
			return r.l.w.cfg.Dial(ctx, netip.AddrPortFrom(address, port))
		}()
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("port %d: %w", port, err))
	}
	return errs[0]
}

// ended notes how the container ended and clears it away. Replicas are always
// started again, whatever their exit code, as on Akash.
func (r *replica) ended(ctx context.Context, e end, pause *blueprint.Pause) {
	how := "is not there any more"
	if !e.vanished {
		how = blueprint.ExitText(e.exit, blueprint.MemoryOf(r.spec))
	}
	if e.exit.OOM {
		r.event(lease.Warning, diary.OOMKilled, "%s needed more than its limit of %s of memory and was ended; lease more memory, or let the program use less",
			r.id.Pod(), blueprint.BytesText(blueprint.MemoryOf(r.spec)))
	}
	wait := pause.Next()
	r.l.mu.Lock()
	failures := r.failures + 1
	r.l.mu.Unlock()
	if err := r.l.w.cfg.Runtime.Stop(ctx, r.id, 0); err != nil {
		// Start makes the ended one give way if need be.
		r.l.log.Warn("ended container not removed", "pod", r.id.Pod(), "err", err)
	}
	r.event(lease.Warning, diary.BackOff, "%s %s, %s in a row; it starts again in %s", r.id.Pod(), how, blueprint.TimesText(failures), wait.Round(time.Second/10))
	r.step(blueprint.Failed, func() {
		r.failures = failures
		r.problem = fmt.Sprintf("it %s, %s in a row", how, blueprint.TimesText(failures))
	})
}

// remove takes the replica's container, link and folders away. It tries until
// it can or the lease or the agent ends.
func (r *replica) remove(inner, base context.Context) {
	r.step(blueprint.Stopped, nil)
	r.event(lease.Normal, diary.Killing, "%s is being stopped", r.id.Pod())
	var pause blueprint.Pause
	for inner.Err() == nil {
		err := r.clear(base)
		if err == nil {
			break
		}
		r.l.log.Warn("replica not removed yet", "pod", r.id.Pod(), "err", err)
		sleep(inner, pause.Next())
	}
	if inner.Err() != nil {
		return
	}
	r.step(blueprint.Cleared, func() { delete(r.l.replicas, r.id) })
}

func (r *replica) clear(ctx context.Context) error {
	if err := r.l.w.cfg.Runtime.Stop(ctx, r.id, r.l.w.cfg.Grace); err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	if err := r.l.w.cfg.Network.Detach(ctx, r.id); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	r.l.mu.Lock()
	disk := r.l.disk
	r.l.mu.Unlock()
	if err := os.RemoveAll(blueprint.ReplicaFolder(disk, r.id)); err != nil {
		return fmt.Errorf("remove folders: %w", err)
	}
	return nil
}
