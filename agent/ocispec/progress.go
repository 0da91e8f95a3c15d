package ocispec

import (
	"math"
	"strings"
	"time"
)

// Phases of a pull, in their order.
const (
	Resolving   = "resolving"   // the registry is asked what the name means
	Downloading = "downloading" // bytes come
	Unpacking   = "unpacking"   // all bytes are here, files are written
)

// Phase is what a pull does, from what it told of itself.
func Phase(done, total int64) string {
	switch {
	case total == 0:
		return Resolving
	case done < total:
		return Downloading
	default:
		return Unpacking
	}
}

// blobsMax bounds the parts of one image: indexes, manifests, a configuration
// and layers, and what builders attach to them.
const blobsMax = 4 * LayersMax

// sizeMax is beyond any disk; larger sizes are lies that would overflow sums.
const sizeMax = 1 << 50

// inodeBytes is what a file counts at least: ext4 has one inode for as many bytes
// of the disk, and millions of empty files would leave none to anybody else.
const inodeBytes = 16 << 10

// Space is what an unpacked layer takes of the disk, in bytes.
func Space(size, inodes int64) int64 {
	return max(size, min(inodes, math.MaxInt64/inodeBytes)*inodeBytes)
}

// Progress is what containerd says about one part of a pull.
type Progress struct {
	Event     string // "downloading", "extracted", …, in containerd's words
	Digest    string // of the part
	MediaType string // tells layers from other parts
	Size      int64  // compressed bytes of the part, as the manifest has it
	Done      int64  // bytes that are here or, when extracting, unpacked
}

// Tally adds up what containerd says about the parts of one pull. Its owner guards it.
type Tally struct {
	limit   int64 // compressed bytes
	parts   map[string]*part
	layers  int       // among parts
	done    int64     // compressed bytes that are here
	total   int64     // compressed bytes that are known of
	Changed time.Time // when anything last moved
}

type part struct{ done, total, unpacked int64 }

// NewTally begins a tally of at most limit compressed bytes.
func NewTally(limit int64) *Tally {
	return &Tally{limit: limit, parts: map[string]*part{}, Changed: time.Now()}
}

// Shown is what people see: nothing before the first layer is known, because
// the manifest's own bytes say nothing about the image's.
func (t *Tally) Shown() (done, total int64) {
	if t.layers == 0 {
		return 0, 0
	}
	return t.done, t.total
}

// Add takes one message. It says whether what is shown changed. Fails
// with [BadImage] or [ImageTooLarge].
func (t *Tally) Add(p Progress) (changed bool, err error) {
	doneBefore, totalBefore := t.Shown()
	digest := p.Digest // the one name of a part that all messages about it share
	isLayer := strings.Contains(p.MediaType, "layer") || strings.Contains(p.MediaType, "rootfs")
	known := t.parts[digest]
	if known == nil {
		if len(t.parts) == blobsMax {
			return false, Errorf(BadImage, "the image has more than %d parts", blobsMax)
		}
		known = &part{}
		t.parts[digest] = known
		if isLayer {
			t.layers++
		}
	}
	size := p.Size
	// containerd takes a document into memory as a whole.
	if size <= 0 || size > sizeMax || p.Done < 0 || !isLayer && size > manifestBytes {
		return false, Errorf(BadImage, "the image has a part of %d bytes, of type %.80q", size, p.MediaType)
	}
	if size > known.total {
		t.total += size - known.total
		known.total = size
	}
	moved := false
	fetched := p.Done
	switch p.Event {
	case "extracting", "extracted":
		fetched = known.total // containerd does not say so by itself then
		if unpacked := min(p.Done, known.total); unpacked > known.unpacked {
			known.unpacked, moved = unpacked, true
		}
	case "downloading", "complete", "already exists":
	default:
		fetched = 0
	}
	if done := min(fetched, known.total); done > known.done {
		t.done += done - known.done
		known.done, moved = done, true
	}
	if t.total > t.limit {
		return true, Errorf(ImageTooLarge, "the image has %d bytes or more, %d are allowed", t.total, t.limit)
	}
	done, total := t.Shown()
	changed = done != doneBefore || total != totalBefore
	if changed || moved {
		t.Changed = time.Now()
	}
	return changed, nil
}
