package blueprint

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"time"
)

// The pauses before something is tried again.
const (
	ShortestPause = time.Second
	LongestPause  = 5 * time.Minute
)

// Pause makes pauses that double from [ShortestPause] to [LongestPause]. Each is
// any time from the shortest of its turn to twice that, so that what failed
// together does not come back together. The zero value is ready.
type Pause struct{ least, last time.Duration }

// Next is the next pause.
func (p *Pause) Next() time.Duration {
	p.least = min(max(ShortestPause, 2*p.least), LongestPause/2)
	p.last = p.least + rand.N(p.least)
	return p.last
}

// Last is what Next answered last.
func (p *Pause) Last() time.Duration { return p.last }

// Reset begins with the shortest again.
func (p *Pause) Reset() { *p = Pause{} }

// LastRevision is the highest revision of which a file of a manifest is named;
// 0: none.
func LastRevision(files []fs.DirEntry) uint64 {
	last := uint64(0)
	for _, f := range files {
		var n uint64
		if _, err := fmt.Sscanf(f.Name(), "manifest-%d.json", &n); err == nil {
			last = max(last, n)
		}
	}
	return last
}

// ManifestFile is the file of a manifest in its lease's folder.
func ManifestFile(folder string, revision uint64) string {
	return filepath.Join(folder, fmt.Sprintf("manifest-%d.json", revision))
}
