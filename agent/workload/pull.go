package workload

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/diary"
	"github.com/croft-cloud/croft/agent/lease"
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
	vain    bool               // nor will be unless somebody changes something

	again    chan struct{} // capacity 1: do not wait, what failed may go now
	done     chan struct{} // closed when it is here
	resolved string        // with digest; set before done is closed
}

// image waits for the replica's OCI image, and makes sure somebody fetches it.
func (r *replica) image(ctx context.Context) (string, bool) {
	r.l.mu.Lock()
	p := r.l.pulls[r.spec.Image]
	if p == nil {
		p = &pull{image: r.spec.Image, again: make(chan struct{}, 1), done: make(chan struct{}), quit: func() {}}
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

// pull fetches one image, however long it takes.
func (l *work) pull(ctx context.Context, p *pull) {
	var pause blueprint.Pause
	for ctx.Err() == nil {
		l.mu.Lock()
		name, credentials := l.rec.Images[p.image], l.rec.Credentials(l.groups, p.image)
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
		resolved, err := l.w.cfg.Images.Pull(ctx, l.key, name, credentials, l.w.cfg.ImageBytes, progress)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if name == p.image {
				l.add(lease.Normal, diary.Pulled, "", "", "image %q is here after %s", p.image, time.Since(began).Round(time.Second/10))
			}
			// Without the record the image is resolved again after a restart.
			if err := l.update(func(r *blueprint.Record) error {
				if r.Images == nil {
					r.Images = map[string]string{}
				}
				r.Images[p.image] = resolved
				return nil
			}, nil); err != nil {
				l.log.Warn("digest of image not recorded", "err", err)
			}
			l.mu.Lock()
			p.problem, p.vain, p.resolved = "", false, resolved
			close(p.done)
			l.mu.Unlock()
			return
		}
		if croft.KindOf(err) == croft.KindNotFound && name != p.image {
			// The registry dropped what the name meant once.
			if err := l.update(func(r *blueprint.Record) error { delete(r.Images, p.image); return nil }, nil); err == nil {
				continue
			}
		}
		wait := pause.Next()
		if blueprint.Lasting(err) {
			wait = slowRetry
		}
		text := l.hide(err.Error() + blueprint.PullRemedy(err))
		l.mu.Lock()
		p.problem, p.vain = "image "+p.image+" is not here: "+text, blueprint.Hopeless(err)
		l.mu.Unlock()
		l.add(lease.Warning, cmp.Or(blueprint.Word(err), diary.Failed), "", "", "image %q could not be pulled: %s. The next attempt is in %s", p.image, text, wait.Round(time.Second/10))
		select {
		case <-ctx.Done():
		case <-p.again:
		case <-time.After(wait):
		}
	}
}
