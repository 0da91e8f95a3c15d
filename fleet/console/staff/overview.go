package staff

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

const (
	listed       = 8                   // boxes in trouble that the overview names
	censusShare  = 20                  // a census that took a second is kept for so many
	certificates = 30 * 24 * time.Hour // boxes renew 60 days before the end
)

// census is what all boxes of the fleet are like, retired ones left out.
type census struct {
	Tally
	ByRelease, ByBoard, ByRegion []Tally
	Trouble                      []Row // the first of those with alerts
	Certificates                 []Row // the first of those that should have renewed
	InTrouble, LateCertificates  int
	Unclaimed                    int
	Capacity                     Capacity
}

// Tally counts boxes of one kind.
type Tally struct {
	Name, Path                      string // Path is of the list of these boxes
	All, Online, Offline, NeverSeen int
	Bad                             int // with alerts
}

func (t *Tally) add(b device.Box) {
	t.All++
	switch {
	case b.Online:
		t.Online++
	case b.Presence == "":
		t.NeverSeen++
	default:
		t.Offline++
	}
	if b.Alerts != "" {
		t.Bad++
	}
}

// NotOffline is the boxes that did not go away.
func (t Tally) NotOffline() int { return t.All - t.Offline }

// Share is a part of all, for bars that are 100 wide.
func (t Tally) Share(n int) float64 { return 100 * float64(n) / float64(max(t.All, 1)) }

// regionLabel is the label that says where a box is.
const regionLabel = "region"

// count reads every box, or remembers what it read a moment ago: one that reads while
// others wait.
func (s *Pages) count(ctx context.Context) (*census, error) {
	s.census.Lock()
	defer s.census.Unlock()
	begin := time.Now()
	if s.census.census != nil && begin.Before(s.census.until) {
		return s.census.census, nil
	}
	c := &census{}
	releases, boards, regions := map[string]*Tally{}, map[string]*Tally{}, map[string]*Tally{}
	into := func(m map[string]*Tally, name string, b device.Box) {
		if m[name] == nil {
			m[name] = &Tally{Name: name}
		}
		m[name].add(b)
	}
	err := eachBox(ctx, s.cfg.Devices, device.Query{}, func(b device.Box) bool {
		c.add(b)
		into(releases, string(b.Release), b)
		into(boards, b.Board, b)
		into(regions, b.Labels[regionLabel], b)
		if !b.Claim.State.Owned() {
			c.Unclaimed++
		}
		if b.Alerts != "" {
			if c.InTrouble++; len(c.Trouble) < listed {
				c.Trouble = append(c.Trouble, rowOf(b))
			}
		}
		if !b.CertificateUntil.IsZero() && b.CertificateUntil.Sub(begin) < certificates {
			if c.LateCertificates++; len(c.Certificates) < listed {
				c.Certificates = append(c.Certificates, rowOf(b))
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	most := func(m map[string]*Tally, field, prefix string) (out []Tally) {
		for _, t := range m {
			t.Path = link("/fleet/boxes", field, prefix+t.Name)
			out = append(out, *t)
		}
		slices.SortFunc(out, func(a, b Tally) int { return cmp.Or(cmp.Compare(b.All, a.All), cmp.Compare(a.Name, b.Name)) })
		return out
	}
	c.ByRelease, c.ByBoard, c.ByRegion = most(releases, "release", ""), most(boards, "board", ""), most(regions, "selector", regionLabel+"=")
	if c.Capacity, err = s.capacity(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("capacity cannot be summed up", "err", err)
	}
	s.census.census, s.census.until = c, time.Now().Add(censusShare*time.Since(begin))
	return c, nil
}

// eachBox hands over all boxes of a list that are in the fleet, until do says false.
func eachBox(ctx context.Context, devices *device.Store, q device.Query, do func(device.Box) bool) error {
	q.Limit = 500
	for {
		page, next, err := devices.List(ctx, device.Actor{ID: "fleet", Staff: true}, q)
		if err != nil {
			return err
		}
		for _, b := range page {
			if b.Claim.State != ownership.Retired && !do(b) {
				return nil
			}
		}
		if next == "" {
			return nil
		}
		q.Cursor = next
	}
}

// Capacity is what the boxes have and what of it is used.
type Capacity struct {
	Known                bool
	Threads, Busy        float64
	Memory, Used         float64
	Leases, LeaseMemory  float64
	Disk, DiskUsed       float64
	BusyShare, UsedShare float64
	DiskShare            float64
}

// ask answers several expressions at once: each is one value, by its name. What has
// no answer is not there.
func ask(ctx context.Context, series *timeseries.Store, scope timeseries.Scope, asked map[string]string) (map[string]float64, error) {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		parts = append(parts, `label_replace(`+asked[name]+`, "asked", "`+name+`", "", "")`)
	}
	found, err := series.Instant(ctx, scope, strings.Join(parts, " or "), time.Now())
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, one := range found {
		if n := len(one.Points); n > 0 {
			out[one.Labels["asked"]] = one.Points[n-1].Value
		}
	}
	return out, nil
}

func (s *Pages) capacity(ctx context.Context) (Capacity, error) {
	v, err := ask(ctx, s.cfg.Series, timeseries.Scope{All: true}, map[string]string{
		"threads": `sum(croft_cpu_threads)`, "idle": `sum(rate(croft_cpu_seconds_total{mode="idle"}[5m]))`,
		"memory": `sum(croft_memory_bytes{kind="total"})`, "free": `sum(croft_memory_bytes{kind="available"})`,
		"leases": `count(croft_lease_memory_bytes)`, "lease_memory": `sum(croft_lease_memory_bytes)`,
		"disk": `sum(croft_filesystem_bytes{mount="/perm",kind="size"})`, "disk_free": `sum(croft_filesystem_bytes{mount="/perm",kind="available"})`,
	})
	share := func(part, whole float64) float64 {
		if whole <= 0 {
			return 0
		}
		return min(max(part/whole, 0), 1)
	}
	c := Capacity{
		Known: v["threads"] > 0, Threads: v["threads"], Memory: v["memory"], Used: v["memory"] - v["free"],
		Leases: v["leases"], LeaseMemory: v["lease_memory"], Disk: v["disk"], DiskUsed: v["disk"] - v["disk_free"],
	}
	if idle, known := v["idle"]; known {
		c.Busy = max(c.Threads-idle, 0)
	}
	c.BusyShare, c.UsedShare, c.DiskShare = share(c.Busy, c.Threads), share(c.Used, c.Memory), share(c.DiskUsed, c.Disk)
	return c, err
}

type overviewPage struct {
	*census
	Firing  []Firing
	More    bool // more alerts fire than are listed
	Status  Status
	Parts   []string // names of parts that fail, sorted
	Newest  time.Time
	Stored  int64
	Series  int
	Devices int
	Broken  string
}

// Firing is an alert as pages show it.
type Firing struct {
	alert.Alert
	Tone  frame.Tone
	Path  string // of the box; empty: it is about several
	Title string
	AckBy string // name of who took it on
}

// toneOf is how a severity looks.
func toneOf(s fleetapi.Severity) frame.Tone {
	switch s {
	case fleetapi.SeverityCritical, fleetapi.SeverityError:
		return frame.Bad
	case fleetapi.SeverityWarning:
		return frame.Warn
	case fleetapi.SeverityInfo:
	}
	return frame.Note
}

func firingOf(a alert.Alert) Firing {
	f := Firing{Alert: a, Tone: toneOf(a.Severity), Title: a.Target}
	if a.Device != "" {
		f.Path, f.Title = boxPath(a.Device), cmp.Or(a.Box, a.Device.ShortName())
	}
	if !a.Ended.IsZero() {
		f.Tone = frame.Quiet
	}
	return f
}

func boxPath(id croft.DeviceID, more ...string) string {
	return "/fleet/boxes/" + string(id) + strings.Join(more, "")
}

func (s *Pages) overview(k *call) error {
	c, err := s.count(k.ctx())
	if err != nil {
		return err
	}
	page := overviewPage{census: c, Status: s.cfg.Status(k.ctx())}
	page.Parts = slices.Sorted(maps.Keys(page.Status.Failing))
	firing, next, err := s.cfg.Alerts.List(k.ctx(), alert.Actor(k.actor()), alert.Query{Firing: true, Limit: listed})
	if err != nil {
		return err
	}
	page.More = next != ""
	for _, a := range firing {
		page.Firing = append(page.Firing, firingOf(a))
	}
	stats := s.cfg.Series.Stats()
	page.Newest, page.Stored, page.Series, page.Devices, page.Broken = stats.Newest, stats.Stored, stats.Series, stats.Devices, stats.Broken
	return k.show(frame.Page{Template: "overview", Title: s.views.Say("overview.title"), Nav: "/fleet", Data: page, Live: []string{device.Topic, alert.Topic}})
}
