package staff

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

// filters are the fields of the URL that say which boxes a list has.
var filters = []string{"selector", "state", "online", "release", "board", "owner"}

// filter is what the URL, or a form made of it, asks for.
func (k *call) filter() (device.Query, error) {
	q := device.Query{
		Selector: k.get("selector"), State: ownership.State(k.get("state")), Board: k.get("board"), Owner: k.get("owner"),
		Release: croft.Version(k.get("release")), Sort: device.Sort(k.get("sort")), Cursor: k.get("cursor"),
	}
	switch k.get("online") {
	case "yes", "no":
		online := k.get("online") == "yes"
		q.Online = &online
	case "":
	default:
		return q, usage("online is yes, no or nothing")
	}
	return q, nil
}

// asked is the filter as it stands in URLs: pairs of names and values.
func (k *call) asked(without ...string) (pairs []string) {
	for _, name := range filters {
		if !slices.Contains(without, name) {
			pairs = append(pairs, name, k.get(name))
		}
	}
	return pairs
}

// filterWord says one field of the filter in words.
func (k *call) filterWord(name string) string {
	v := k.get(name)
	switch name {
	case "state":
		if key := "claim." + v; k.views.Has(key) {
			v = k.views.Say(key)
		}
	case "online":
		return k.views.Say(map[bool]string{true: "state.online", false: "state.offline"}[v == "yes"])
	case "owner":
		v = k.nameOf(v)
	}
	return k.views.Say("filter."+name, v)
}

// Row is a box as lists show it.
type Row struct {
	device.Box
	Path  string
	Title string // its owner's name for it, or its short name
	Tone  frame.Tone
	State string // key of the word for how it is
	Tags  []string
}

func rowOf(b device.Box) Row {
	r := Row{Box: b, Path: boxPath(b.ID), Title: cmp.Or(b.Name, b.ID.ShortName())}
	r.Tone, r.State = stateOf(b)
	r.Tags = tagsOf(b.Labels)
	return r
}

func stateOf(b device.Box) (frame.Tone, string) {
	switch {
	case b.Claim.State == ownership.Retired:
		return frame.Quiet, "state.retired"
	case b.Online && b.Alerts != "":
		return frame.Warn, "state.online"
	case b.Online:
		return frame.Good, "state.online"
	case b.Presence == "":
		return frame.Quiet, "state.never"
	}
	return frame.Bad, "state.offline"
}

// tagsOf is labels as a selector writes them, sorted.
func tagsOf(labels map[string]string) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, name+"="+labels[name])
	}
	return out
}

// Choice is one of several things to choose.
type Choice struct {
	Value, Text string
	Chosen      bool
}

func choices[T ~string](all []T, chosen T, text func(T) string) (out []Choice) {
	for _, one := range all {
		out = append(out, Choice{string(one), text(one), one == chosen})
	}
	return out
}

type boxesPage struct {
	Rows           []Row
	Next           string
	Chips          []Choice // Value is an address
	Filtered       bool
	Fields         map[string]string // as asked
	Words          []string          // the same for people
	States, Online []Choice
	Releases       []Choice
	Boards, Sorts  []Choice
	Jobs, Labels   string // addresses of bulk orders; empty: not for this list
	JobsNeedLabels bool   // jobs for many go by labels only
}

func (s *Pages) boxes(k *call) error {
	q, err := k.filter()
	if err != nil {
		return err
	}
	found, next, err := s.cfg.Devices.List(k.ctx(), k.actor(), q)
	if err != nil {
		return err
	}
	c, err := s.count(k.ctx())
	if err != nil {
		return err
	}
	page := boxesPage{Next: k.next(next), Fields: map[string]string{}}
	for _, b := range found {
		page.Rows = append(page.Rows, rowOf(b))
	}
	for _, name := range filters {
		if page.Fields[name] = k.get(name); k.get(name) != "" {
			page.Words = append(page.Words, k.filterWord(name))
		}
	}
	page.Filtered = len(page.Words) > 0
	chip := func(key string, pairs ...string) {
		here := !page.Filtered && len(pairs) == 0 || len(pairs) > 0 && k.get(pairs[0]) == pairs[1]
		page.Chips = append(page.Chips, Choice{link("/fleet/boxes", pairs...), s.views.Say(key), here})
	}
	chip("boxes.all")
	chip("boxes.offline", "online", "no")
	chip("boxes.unclaimed", "state", string(ownership.Unclaimed))
	chip("boxes.retired", "state", string(ownership.Retired))
	state := func(v ownership.State) string {
		if v == "" {
			return s.views.Say("boxes.any")
		}
		return s.claimWord(v)
	}
	page.States = choices(append([]ownership.State{""}, ownership.States()...), q.State, state)
	page.Online = choices([]string{"", "yes", "no"}, k.get("online"), func(v string) string {
		return s.views.Say(map[string]string{"": "boxes.any", "yes": "state.online", "no": "state.offline"}[v])
	})
	names := func(tallies []Tally, chosen string) []Choice {
		all := []string{""}
		for _, t := range tallies {
			all = append(all, t.Name)
		}
		if !slices.Contains(all, chosen) {
			all = append(all, chosen)
		}
		return choices(slices.Compact(all), chosen, func(v string) string { return cmp.Or(v, s.views.Say("boxes.any")) })
	}
	page.Releases, page.Boards = names(c.ByRelease, string(q.Release)), names(c.ByBoard, q.Board)
	page.Sorts = choices([]device.Sort{device.SortID, device.SortName, device.SortSeen}, cmp.Or(q.Sort, device.SortID), func(v device.Sort) string {
		return s.views.Say("sort." + string(v))
	})
	if len(found) > 0 {
		page.Labels = link("/fleet/bulk/labels", k.asked()...)
		if page.JobsNeedLabels = q != (device.Query{Selector: q.Selector, Sort: q.Sort, Cursor: q.Cursor}); !page.JobsNeedLabels {
			page.Jobs = link("/fleet/bulk/jobs", "selector", q.Selector)
		}
	}
	return k.show(frame.Page{Template: "boxes", Title: s.views.Say("boxes.title"), Nav: "/fleet/boxes", Data: page, Live: watched(found)})
}

// watched is what a page of these boxes shows.
func watched(boxes []device.Box) (out []string) {
	for _, b := range boxes {
		out = append(out, device.Topic+":"+string(b.ID))
	}
	return out
}

type searchPage struct {
	Rows []Row
	Q    string
}

// search goes to the box, if there is one only.
func (s *Pages) search(k *call) error {
	page := searchPage{Q: k.get("q")}
	found, err := s.cfg.Devices.Search(k.ctx(), k.actor(), page.Q)
	if err != nil {
		return err
	}
	if len(found) == 1 {
		return k.leave(boxPath(found[0].ID))
	}
	for _, b := range found {
		page.Rows = append(page.Rows, rowOf(b))
	}
	return k.show(frame.Page{Template: "search", Title: s.views.Say("search.title"), Nav: "/fleet/boxes", Data: page})
}

// Bulk is an order to many boxes, to be confirmed.
type Bulk struct {
	Count    int // boxes that match now
	Rows     []Row
	Fields   []Choice // hidden: Value is the field's name, Text its value
	Words    []string // the filter, for people
	Kinds    []Choice
	Key      string
	All      bool // no filter at all
	Must     bool // the number has to be typed
	Selector string
}

// typed is from how many boxes on their number has to be typed.
const typed = 10

func (k *call) bulk() (Bulk, device.Query, error) {
	q, err := k.filter()
	if err != nil {
		return Bulk{}, q, err
	}
	q.Cursor, q.Sort = "", ""
	b := Bulk{Key: rand.Text(), Selector: q.Selector, All: true}
	for _, name := range filters {
		if v := k.get(name); v != "" {
			b.Fields, b.All = append(b.Fields, Choice{Value: name, Text: v}), false
			b.Words = append(b.Words, k.filterWord(name))
		}
	}
	err = eachBox(k.ctx(), k.cfg.Devices, q, func(box device.Box) bool {
		if b.Count++; b.Count <= 5 {
			b.Rows = append(b.Rows, rowOf(box))
		}
		return b.Count <= job.MaxBulk
	})
	b.Must = b.Count > typed
	return b, q, err
}

// confirmed is an order whose page said how many boxes it is for, and that is still so.
func (k *call) confirmed() (Bulk, device.Query, error) {
	b, q, err := k.bulk()
	if err != nil {
		return b, q, err
	}
	said, err := strconv.Atoi(k.get("count"))
	switch {
	case err != nil || k.get("typed") == "" && b.Must:
		return b, q, usage("type the number of boxes, %d, to say that you mean them all", b.Count)
	case b.Must && k.get("typed") != k.get("count"):
		return b, q, usage("you typed %.20q, and it is %d boxes", k.get("typed"), b.Count)
	case said != b.Count:
		return b, q, &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("now it is %d boxes and no longer %d", b.Count, said), Remedy: "look at the page again"}
	case b.Count == 0:
		return b, q, usage("no box matches")
	}
	return b, q, nil
}

// kinds are the jobs that the console orders.
var kinds = []fleetapi.JobKind{fleetapi.KindLocate, fleetapi.KindBundle, fleetapi.KindReboot} // boxes of this release reject the benchmark

func (s *Pages) kindWord(kind fleetapi.JobKind) string {
	if key := "job." + string(kind); s.views.Has(key) {
		return s.views.Say(key)
	}
	return string(kind)
}

// askBulk is the page before an order to many boxes.
func (s *Pages) askBulk(what string) func(*call) error {
	return func(k *call) error {
		b, _, err := k.bulk()
		if err != nil {
			return err
		}
		b.Kinds = choices(kinds, "", s.kindWord)
		return k.show(frame.Page{Template: "bulk" + what, Title: s.views.Say("bulk." + what + "_title"), Nav: "/fleet/boxes", Data: b})
	}
}

func (s *Pages) orderJobs(k *call) error {
	b, q, err := k.confirmed()
	if err != nil {
		return err
	}
	if q != (device.Query{Selector: q.Selector}) {
		return usage("jobs for many boxes go by labels: take the other filters away")
	}
	if !slices.Contains(kinds, fleetapi.JobKind(k.get("kind"))) {
		return usage("choose what the boxes are to do")
	}
	done, err := s.cfg.Jobs.QueueBulk(k.ctx(), job.Actor(k.actor()), job.Bulk{
		Selector: q.Selector, All: b.All, Kind: fleetapi.JobKind(k.get("kind")), Key: k.get("key"),
	})
	if err != nil {
		return err
	}
	return k.done(link("/fleet/bulk/result", "bulk", done.ID, "skipped", strconv.Itoa(len(done.Skipped))), "bulk.queued", done.Queued)
}

// readChange reads "site=lab -old": labels to set, and names to take away.
func readChange(text string) (set map[string]string, gone []string, err error) {
	set = map[string]string{}
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\r' || r == '\t' }) {
		name, value, has := strings.Cut(word, "=")
		away, minus := strings.CutPrefix(word, "-")
		switch {
		case minus && !has && away != "":
			gone = append(gone, away)
		case !minus && has && name != "" && value != "":
			set[name] = value
		default:
			return nil, nil, usage(`label %.64q: write labels like "site=lab", and "-site" for one to take away`, word)
		}
	}
	return set, gone, nil
}

// orderLabels changes boxes one by one; one that cannot be changed stops it, and to do
// it again is harmless.
func (s *Pages) orderLabels(k *call) error {
	_, q, err := k.confirmed()
	if err != nil {
		return err
	}
	set, gone, err := readChange(k.get("labels"))
	if err != nil {
		return err
	}
	if len(set)+len(gone) == 0 {
		return usage("say which labels to set or to take away")
	}
	var boxes []device.Box // all of them first: their labels may be what the filter goes by
	err = eachBox(k.ctx(), s.cfg.Devices, q, func(b device.Box) bool {
		boxes = append(boxes, b)
		return true
	})
	if err != nil {
		return err
	}
	for n, b := range boxes {
		labels := map[string]string{}
		maps.Copy(labels, b.Labels)
		maps.DeleteFunc(labels, func(name, _ string) bool { return slices.Contains(gone, name) })
		maps.Copy(labels, set)
		if err := s.cfg.Devices.SetLabels(k.ctx(), k.actor(), b.ID, labels); err != nil {
			if said, ok := errors.AsType[*croft.Error](err); ok {
				return &croft.Error{Kind: said.Kind, Err: fmt.Errorf("the labels of %d boxes were changed, then %s could not be: %w", n, b.ID.ShortName(), said.Err), Remedy: said.Remedy}
			}
			return err
		}
	}
	return k.done(link("/fleet/boxes", k.asked()...), "bulk.labelled", len(boxes))
}

type resultPage struct {
	Jobs                             []JobRow
	Kind, By                         string
	All, Waiting, Good, Bad, Skipped int
	Next                             string
	States                           []Choice // Text is how many
	More                             bool     // there are more than were counted
	Tally                            Tally
}

// Ended is how many jobs came to an end, for the bar.
func (p resultPage) Ended() int { return p.Good + p.Bad }

// counted is how many jobs of an order are counted at most, for each view.
const counted = 10_000

// bulkResult is how far an order to many boxes is: those that went wrong first.
func (s *Pages) bulkResult(k *call) error {
	bulk := k.get("bulk")
	if bulk == "" {
		return job.ErrNoJob
	}
	page := resultPage{Tally: Tally{}}
	page.Skipped, _ = strconv.Atoi(k.get("skipped"))
	states := map[fleetapi.JobState]int{}
	var bad, waiting, good []job.Job
	for q := (job.Query{Bulk: bulk, Limit: 500}); ; {
		found, next, err := s.cfg.Jobs.List(k.ctx(), job.Actor(k.actor()), q)
		if err != nil {
			return err
		}
		for _, j := range found {
			page.Kind, page.By = s.kindWord(j.Kind), j.By
			states[j.State]++
			switch {
			case j.State == fleetapi.Succeeded:
				good = append(good, j)
			case j.State.Final():
				bad = append(bad, j)
			default:
				waiting = append(waiting, j)
			}
		}
		if q.Cursor = next; next == "" {
			break
		}
		if page.All = len(bad) + len(waiting) + len(good); page.All >= counted {
			page.More = true
			break
		}
	}
	page.Good, page.Bad, page.Waiting = len(good), len(bad), len(waiting)
	page.All = page.Good + page.Bad + page.Waiting
	if page.All == 0 {
		return job.ErrNoJob
	}
	page.Tally.All = page.All
	for _, state := range fleetapi.JobStates() {
		if states[state] > 0 {
			page.States = append(page.States, Choice{Value: s.views.Say("jobstate." + string(state)), Text: strconv.Itoa(states[state])})
		}
	}
	page.By = k.nameOf(page.By)
	shown := slices.Concat(bad, waiting, good)
	for _, j := range shown[:min(len(shown), 100)] {
		page.Jobs = append(page.Jobs, s.jobRow(j))
	}
	return k.show(frame.Page{Template: "result", Title: s.views.Say("bulk.result_title"), Nav: "/fleet/boxes", Data: page, Live: []string{job.Topic}})
}

// nameOf is somebody's name, as far as the reader may know it.
func (k *call) nameOf(account string) string {
	switch account {
	case "":
		return ""
	case k.p.Account:
		return k.views.Say("people.you")
	}
	if a, err := k.cfg.Auth.Account(k.ctx(), k.p, account); err == nil {
		return cmp.Or(a.Name, a.Email, account)
	}
	return account
}

// names notes names of people, so that each is asked for once.
type names map[string]string

func (n names) of(k *call, account string) string {
	if _, known := n[account]; !known {
		n[account] = k.nameOf(account)
	}
	return n[account]
}

// alertsOf is what fires for a box.
func (k *call) alertsOf(id croft.DeviceID) ([]Firing, error) {
	found, _, err := k.cfg.Alerts.List(k.ctx(), alert.Actor(k.actor()), alert.Query{Firing: true, Device: id, Limit: 50})
	var out []Firing
	for _, a := range found {
		out = append(out, firingOf(a))
	}
	return out, err
}
