package fleet

import (
	"fmt"
	"testing"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

func TestRefusalsAreToldByReasonAndOnce(t *testing.T) {
	type counts = map[fleetapi.Reason]uint64
	for _, tc := range []struct {
		before, now counts
		want        string
	}{
		{counts{}, counts{}, "[]"},
		{counts{}, counts{"size": 2, "format": 1}, "[format=1 size=2]"},
		{counts{"size": 2}, counts{"size": 5, "format": 0}, "[size=3]"},
		{counts{"size": 5}, counts{"size": 5}, "[]"},
	} {
		if got := fmt.Sprint(refusedSince(tc.before, tc.now)); got != tc.want {
			t.Errorf("from %v to %v it says %s, want %s", tc.before, tc.now, got, tc.want)
		}
	}
}
