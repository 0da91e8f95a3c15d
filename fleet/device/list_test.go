package device_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
)

func (f *fleet) ids(t testing.TB, actor device.Actor, q device.Query) []croft.DeviceID {
	t.Helper()
	var ids []croft.DeviceID
	for {
		boxes, next, err := f.List(t.Context(), actor, q)
		check(t, err)
		for _, b := range boxes {
			ids = append(ids, b.ID)
		}
		if q.Cursor = next; next == "" {
			return ids
		}
	}
}

func TestListsFilterSortAndTurnPages(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		var all []croft.DeviceID
		for n := range 12 {
			id := f.box(t, n)
			all = append(all, id)
			if n == 3 {
				must(f.StartClaim(t.Context(), by("own_ada", abroad), codeOf(3)))(t)
				must(f.ConfirmClaim(t.Context(), "own_ada", id))(t)
			}
			labels := map[string]string{"site": []string{"lab", "field", "attic"}[n%3]}
			if n%2 == 0 {
				labels["gpu"] = "yes"
			}
			check(t, f.SetLabels(t.Context(), staff, id, labels))
			check(t, f.SetName(t.Context(), staff, id, fmt.Sprintf("Box %c", 'z'-n/2)))
			f.pass(t, time.Second)
		}
		no := false
		some := func(keep func(n int) bool) (out []croft.DeviceID) {
			for n, id := range all {
				if keep(n) {
					out = append(out, id)
				}
			}
			slices.Sort(out)
			return out
		}
		for _, tc := range []struct {
			name string
			q    device.Query
			want []croft.DeviceID
		}{
			{"all", device.Query{}, some(func(int) bool { return true })},
			{"equal", device.Query{Selector: "site=lab"}, some(func(n int) bool { return n%3 == 0 })},
			{"two", device.Query{Selector: "site=lab,gpu"}, some(func(n int) bool { return n%6 == 0 })},
			{"in", device.Query{Selector: "site in (lab, attic)"}, some(func(n int) bool { return n%3 != 1 })},
			{"in and present", device.Query{Selector: "site in (lab,attic),gpu==yes"}, some(func(n int) bool { return n%3 != 1 && n%2 == 0 })},
			{"not in", device.Query{Selector: "site notin (lab,attic)"}, some(func(n int) bool { return n%3 == 1 })},
			{"unequal, absent counts", device.Query{Selector: "gpu!=yes"}, some(func(n int) bool { return n%2 == 1 })},
			{"absent", device.Query{Selector: "!gpu"}, some(func(n int) bool { return n%2 == 1 })},
			{"unknown", device.Query{Selector: "moon"}, nil},
			{"owner", device.Query{Owner: "own_ada"}, all[3:4]},
			{"state", device.Query{State: ownership.Claimed}, all[3:4]},
			{"release", device.Query{Release: "9"}, nil},
			{"board", device.Query{Board: "uefi-x86"}, some(func(int) bool { return true })},
			{"offline", device.Query{Online: &no}, nil},
			{"silent longest first", device.Query{Sort: device.SortSeen}, all},
		} {
			for _, limit := range []int{1, 5, 500} {
				tc.q.Limit = limit
				if got := f.ids(t, staff, tc.q); !slices.Equal(got, tc.want) {
					t.Errorf("%s, %d a page: %v, want %v", tc.name, limit, got, tc.want)
				}
			}
		}
		for _, limit := range []int{1, 5} {
			want := slices.Clone(all) // two of each name, the last named first
			slices.SortFunc(want, func(a, b croft.DeviceID) int {
				return cmp.Or(slices.Index(all, b)/2-slices.Index(all, a)/2, cmp.Compare(a, b))
			})
			if got := f.ids(t, staff, device.Query{Sort: device.SortName, Limit: limit}); !slices.Equal(got, want) {
				t.Errorf("by name, %d a page: %v, want %v", limit, got, want)
			}
		}
		if got := f.ids(t, device.Actor{ID: "own_ada"}, device.Query{}); !slices.Equal(got, all[3:4]) {
			t.Errorf("ada lists %v", got)
		}
		for _, q := range []device.Query{{Selector: "a>1"}, {Selector: "=,,"}, {Selector: strings.Repeat("a,", 999)}, {Sort: "owner; DROP TABLE"}, {Cursor: "x"}} {
			if _, _, err := f.List(t.Context(), staff, q); croft.KindOf(err) != croft.KindUsage {
				t.Errorf("%+v: %v, want that it is wrong", q, err)
			}
		}
	})
}

func TestOneBoxOfTextFinds(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		id, other := f.own(t, "own_ada", 1), f.box(t, 2)
		check(t, f.SetName(t.Context(), staff, id, "Küche Links"))
		hello := hello(2, "1.0.0")
		hello.Serial = "CR-0042"
		f.say(t, id, hello)
		for line, want := range map[string][]croft.DeviceID{
			string(id):              {id},
			string(id[:6]):          {id},
			id.ShortName():          {id},
			"CR-0042":               {id},
			"cr-00":                 {id},
			"küche":                 {id},
			"links KÜ":              {id},
			"küche rechts":          nil,
			"ada@example":           {id},
			"bob@example.org":       nil,
			codeOf(2):               {other},
			"203.0.113.7":           {id, other},
			"203.0.113.7 küche":     {id},
			"%":                     nil,
			"' OR 1=1 --":           nil,
			"":                      nil,
			"\x00":                  nil,
			"\xff\xfe":              nil,
			strings.Repeat("a", 99): nil,
		} {
			found, err := f.Search(t.Context(), staff, line)
			check(t, err)
			var ids []croft.DeviceID
			for _, b := range found {
				ids = append(ids, b.ID)
			}
			slices.Sort(want)
			if !slices.Equal(ids, want) {
				t.Errorf("%q finds %v, want %v", line, ids, want)
			}
		}
		if found := must(f.Search(t.Context(), device.Actor{ID: "own_ada"}, "203.0.113"))(t); len(found) != 1 || found[0].ID != id {
			t.Errorf("ada finds %d boxes", len(found))
		}
		_, err := f.Search(t.Context(), staff, strings.Repeat("a", 201))
		wantKind(t, err, croft.KindUsage)
	})
}

func TestLabelsAndGroups(t *testing.T) {
	each(t, func(t *testing.T, f *fleet) {
		ctx := t.Context()
		id := f.box(t, 1)
		many := map[string]string{}
		for n := range device.MaxLabels + 1 {
			many[fmt.Sprint("l", n)] = "x"
		}
		for _, bad := range []map[string]string{{"Site": "x"}, {"": "x"}, {"site": ""}, {"site": "a b"}, {"site": "<b>"}, {"site": strings.Repeat("x", 64)}, many} {
			wantKind(t, f.SetLabels(ctx, staff, id, bad), croft.KindUsage)
		}
		check(t, f.SetLabels(ctx, staff, id, map[string]string{"site": "lab"}))
		v := must(f.Box(ctx, staff, id))(t).Desired.Version
		check(t, f.SetLabels(ctx, staff, id, map[string]string{"site": "lab"}))
		if box := must(f.Box(ctx, staff, id))(t); box.Desired.Version != v || len(box.Desired.Labels) != 1 {
			t.Errorf("the same labels made %+v", box.Desired)
		}

		lab := must(f.SaveGroup(ctx, staff, device.Group{Name: "Lab", Selector: "site=lab"}))(t)
		_, err := f.SaveGroup(ctx, staff, device.Group{Name: "Lab", Selector: "site=attic"})
		wantKind(t, err, croft.KindRefused)
		_, err = f.SaveGroup(ctx, staff, device.Group{Name: "Bad", Selector: "site==" + "="})
		wantKind(t, err, croft.KindUsage)
		ada := device.Actor{ID: "own_ada"}
		must(f.SaveGroup(ctx, ada, device.Group{Name: "Lab", Selector: "gpu"}))(t)
		lab.Name = "Mine now"
		_, err = f.SaveGroup(ctx, ada, lab)
		wantKind(t, err, croft.KindNotFound)
		wantKind(t, f.DeleteGroup(ctx, ada, lab.ID), croft.KindNotFound)
		lab.Name = "Laboratory"
		must(f.SaveGroup(ctx, staff, lab))(t)
		if groups := must(f.Groups(ctx, staff))(t); len(groups) != 1 || groups[0].Name != "Laboratory" {
			t.Errorf("groups %+v", groups)
		}
		check(t, f.DeleteGroup(ctx, staff, lab.ID))
	})
}

// TestNoListReadsEverything asks SQLite how it would answer: every list is
// answered from an index, and only the orders without a filter walk one, which
// they leave after a page.
func TestNoListReadsEverything(t *testing.T) {
	d := dbtest.Open(t, dbtest.URL(t, dbtest.SQLite))
	f := newFleet(t, d)
	yes, no := true, false
	filters := map[string]device.Query{
		"owner": {Owner: "a"}, "state": {State: ownership.Claimed}, "release": {Release: "1"}, "board": {Board: "b"},
		"label": {Selector: "a=b"}, "has label": {Selector: "a"}, "labels": {Selector: "a in (b,c),d,!e"},
		"owner and label": {Owner: "a", Selector: "a=b"}, "online": {Online: &yes}, "offline": {Online: &no},
	}
	for name, q := range filters {
		for _, sort := range []device.Sort{device.SortID, device.SortName, device.SortSeen} {
			q.Sort = sort
			for _, line := range plan(t, f, q) {
				if strings.HasPrefix(line, "SCAN") && (sort != device.SortSeen || !strings.Contains(line, "device_seen_at")) {
					t.Errorf("list by %s, sorted by %s: %s", name, sort, line)
				}
			}
		}
	}
	for _, q := range []device.Query{{}, {Sort: device.SortName}, {Sort: device.SortSeen}, {Selector: "!a"}} {
		for _, line := range plan(t, f, q) {
			if strings.HasPrefix(line, "SCAN") && !strings.Contains(line, "USING") || strings.Contains(line, "TEMP B-TREE") {
				t.Errorf("list %+v: %s", q, line)
			}
		}
	}
}

func plan(t testing.TB, f *fleet, q device.Query) (lines []string) {
	t.Helper()
	for _, after := range []string{"", device.CursorAt("x", 1, string(idOf(1)))} {
		q.Cursor = after
		sql, args := device.ListSQL(t, staff, q)
		check(t, f.db.Read(t.Context(), func(tx *db.Tx) error {
			rows, err := tx.Query("EXPLAIN QUERY PLAN "+sql, args...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused int
				var line string
				if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
					return err
				}
				lines = append(lines, line)
			}
			return rows.Err()
		}))
	}
	return lines
}
