package fleetapi

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestIDs(t *testing.T) {
	for _, p := range []Prefix{
		PrefixUser, PrefixOwner, PrefixJob, PrefixToken, PrefixSession,
		PrefixEvent, PrefixGroup, PrefixRule, PrefixNotification,
	} {
		id := NewID(p)
		if got, err := ParseID(p, id); got != id || err != nil {
			t.Errorf("ParseID(%s, %q) = %q, %v", p, id, got, err)
		}
		if id == NewID(p) {
			t.Errorf("%q was made twice", id)
		}
	}
}

func TestLaterIDsSortLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := NewID(PrefixJob)
		for range 100 {
			time.Sleep(time.Millisecond)
			id := NewID(PrefixJob)
			if id <= before {
				t.Fatalf("%s follows %s", id, before)
			}
			before = id
		}
	})
}

func TestIDsThatAreNone(t *testing.T) {
	for _, id := range []string{
		"", "job", "job_", testJob[4:], testJob[:29], testJob + "0", "usr" + testJob[3:], "JOB" + testJob[3:],
		strings.ToLower(testJob), "job_8" + testJob[5:], "job_" + strings.Repeat("U", 26), "job-" + testJob[4:],
		testJob[:29] + "\n", testJob[:28] + "é", strings.Repeat(testJob, 1000),
	} {
		if got, err := ParseID(PrefixJob, id); got != "" || ReasonOf(err) != ReasonMalformed {
			t.Errorf("ParseID(%.40q) = %q, %v", id, got, err)
		}
	}
}
