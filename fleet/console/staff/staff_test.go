package staff_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console/frame"
	"github.com/croft-cloud/croft/fleet/console/staff"
)

const origin = "https://fleet.example.org"

func TestWordsAreAllThereAndAllUsed(t *testing.T) {
	for _, fault := range frame.Check(staff.Part(), os.DirFS(".")) {
		t.Error(fault)
	}
}

var update = flag.Bool("update", false, "rewrite golden files")

// TestRoutesAreAsReviewed holds the routes and who may use them against a file, whose
// changes people look at.
func TestRoutesAreAsReviewed(t *testing.T) {
	w := newWorld(t, origin)
	needs := w.pages.Needs()
	var got strings.Builder
	for _, pattern := range slices.SortedFunc(maps.Keys(needs), func(a, b string) int { return strings.Compare(pathOf(a)+a, pathOf(b)+b) }) {
		var may []string
		for _, role := range rights.Roles() {
			if role.Staff() && role.Grants(needs[pattern]) == rights.All {
				may = append(may, string(role))
			}
		}
		fmt.Fprintf(&got, "%-52s %-16s %s\n", pattern, needs[pattern], strings.Join(may, " "))
	}
	const golden = "testdata/routes.txt"
	if *update {
		check(t, os.WriteFile(golden, []byte(got.String()), 0o644))
	}
	if want := string(must(os.ReadFile(golden))(t)); got.String() != want {
		t.Errorf("routes are\n%s\nwant those of %s (-update rewrites it)", &got, golden)
	}
}

func pathOf(pattern string) string {
	_, path, _ := strings.Cut(pattern, " ")
	return path
}

func TestPagesAreShown(t *testing.T) {
	w := newWorld(t, origin)
	id := w.box(1)
	w.measure(id, 30, 50)
	for _, path := range []string{
		"/fleet", "/fleet/boxes", "/fleet/boxes/" + string(id), "/fleet/search", "/fleet/alerts", "/fleet/alerts?past=yes", "/fleet/alerts/silences", "/fleet/alerts/rules",
		"/fleet/alerts/rule", "/fleet/alerts/rule?id=offline", "/fleet/alerts/rule?id=region_offline", "/fleet/alerts/rule?id=unjudged", "/fleet/alerts/receivers", "/fleet/people", "/fleet/people/" + w.ids[rights.RoleSupport], "/fleet/audit", "/fleet/serials", "/fleet/groups",
		"/fleet/bulk/jobs", "/fleet/bulk/labels", "/fleet/boxes/" + string(id) + "/events", "/fleet/boxes/" + string(id) + "/log", "/fleet/boxes/" + string(id) + "/jobs",
		"/fleet/boxes/" + string(id) + "/retire", "/fleet/boxes/" + string(id) + "/revoke", "/fleet/boxes/" + string(id) + "/free", "/fleet/boxes/" + string(id) + "/reboot",
	} {
		w.as(rights.RoleAdmin).page(path)
	}
}
