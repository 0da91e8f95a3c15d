package workload

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/sdl"
)

const (
	// progressEvery bounds the events that one pull makes.
	progressEvery = 10 * time.Second
	// slowRetry is the pause after an error that will take a change by somebody:
	// a registry is not to be asked for a missing image all day long.
	slowRetry = 10 * time.Minute
)

// pull is one OCI image on its way to the lease.
type pull struct {
	image string // as the tenant wrote it

	// guarded by work.mu
	asked   bool // a replica waits for it
	begun   bool
	quit    context.CancelFunc // once begun
	problem string             // why it is not here yet; a sentence

	done     chan struct{} // closed when it is here
	resolved string        // with digest; set before done is closed
}

// image waits for the replica's OCI image, and makes sure somebody fetches it.
func (r *replica) image(ctx context.Context) (string, bool) {
	r.l.mu.Lock()
	p := r.l.pulls[r.spec.Image]
	if p == nil {
		p = &pull{image: r.spec.Image, done: make(chan struct{}), quit: func() {}}
		r.l.pulls[r.spec.Image] = p
	}
	p.asked = true
	r.l.mu.Unlock()
	poke(r.l.wake)
	select {
	case <-p.done:
		return p.resolved, true
	case <-ctx.Done():
		return "", false
	}
}

// fetch begins the pulls that replicas wait for.
func (l *work) fetch(ctx context.Context, owned *sync.WaitGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pulls {
		if p.asked && !p.begun {
			p.begun = true
			pulling, quit := context.WithCancel(ctx)
			p.quit = quit
			owned.Go(func() {
				defer quit()
				l.pull(pulling, p)
			})
		}
	}
}

// repull lets the next replica fetch an image anew: the runtime lost it.
func (l *work) repull(image string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pulls[image]; p != nil {
		select {
		case <-p.done:
			delete(l.pulls, image)
		default:
		}
	}
}

func (l *work) credentials(image string) *sdl.Credentials {
	l.mu.Lock()
	defer l.mu.Unlock()
	newest := l.groups[l.rec.Applied]
	for _, s := range newest.Services {
		if s.Image == image && s.Credentials != nil {
			return s.Credentials
		}
	}
	for _, g := range l.groups {
		for _, s := range g.Services {
			if s.Image == image && s.Credentials != nil {
				return s.Credentials
			}
		}
	}
	return nil
}

// pull fetches one image, however long it takes.
func (l *work) pull(ctx context.Context, p *pull) {
	var pause backoff
	for ctx.Err() == nil {
		l.mu.Lock()
		name := l.rec.Images[p.image]
		l.mu.Unlock()
		if name == "" {
			name = p.image
			l.add(lease.Normal, diary.Pulling, "", "", "pulling image %q", p.image)
		}
		began, shown := time.Now(), time.Now()
		progress := func(done, total int64) {
			// Called by whatever fetches, from one goroutine at a time.
			if ctx.Err() != nil || time.Since(shown) < progressEvery {
				return
			}
			shown = time.Now()
			if total > 0 {
				l.add(lease.Normal, diary.Pulling, "", "", "pulling image %q: %s of %s", p.image, blueprint.BytesText(done), blueprint.BytesText(total))
			} else {
				l.add(lease.Normal, diary.Pulling, "", "", "pulling image %q: %s", p.image, blueprint.BytesText(done))
			}
		}
		resolved, err := l.w.cfg.Images.Pull(ctx, l.key, name, l.credentials(p.image), l.w.cfg.ImageBytes, progress)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if name == p.image {
				l.add(lease.Normal, diary.Pulled, "", "", "image %q is here after %s", p.image, round(time.Since(began)))
			}
			// Without the record the image is resolved again after a restart.
			if err := l.update(func(r *record) error {
				if r.Images == nil {
					r.Images = map[string]string{}
				}
				r.Images[p.image] = resolved
				return nil
			}, nil); err != nil {
				l.log.Warn("digest of image not recorded", "err", err)
			}
			l.mu.Lock()
			p.problem, p.resolved = "", resolved
			close(p.done)
			l.mu.Unlock()
			return
		}
		if lasting(err) && name != p.image {
			// The registry dropped what the name meant once.
			if err := l.update(func(r *record) error { delete(r.Images, p.image); return nil }, nil); err == nil {
				continue
			}
		}
		wait := pause.next()
		if lasting(err) {
			wait = slowRetry
		}
		reason := diary.Failed
		if word, ok := errors.AsType[interface {
			error
			Word() string
		}](err); ok {
			reason = word.Word()
		}
		text := l.hide(err.Error() + remedy(err))
		l.mu.Lock()
		p.problem = "image " + p.image + " is not here: " + text
		l.mu.Unlock()
		l.add(lease.Warning, reason, "", "", "image %q could not be pulled: %s. The next attempt is in %s", p.image, text, round(wait))
		sleep(ctx, wait)
	}
}

// lasting says whether a repetition soon would be in vain.
func lasting(err error) bool {
	if t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err); ok {
		return !t.Temporary()
	}
	return croft.KindOf(err) != croft.KindOther
}

// remedy is what to do about a pull that failed, if its error does not say.
func remedy(err error) string {
	if e, ok := errors.AsType[*croft.Error](err); ok && e.Remedy != "" {
		return "" // it stands in the error's text
	}
	switch croft.KindOf(err) {
	case croft.KindNotFound, croft.KindUsage:
		return "; check the image's name and tag"
	case croft.KindRefused:
		return "; check the image's name and the credentials of its registry"
	case croft.KindInvalid, croft.KindMissing:
		return "; build the image for this provider's architecture"
	case croft.KindNoSpace:
		return "; use a smaller image"
	default:
		return ""
	}
}
