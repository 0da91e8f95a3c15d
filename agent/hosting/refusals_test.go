package hosting

import (
	"errors"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
)

func TestRefusedManifestsAreRememberedWhileTheirLeaseRuns(t *testing.T) {
	var r refusals
	one, two := akash.LeaseID{Provider: "one"}, akash.LeaseID{Provider: "two"}
	r.forget(one)
	r.note(one, errors.New("the box's own trouble"))
	if e, ok := r.of(one); ok {
		t.Errorf("the box's own trouble is told as %+v", e)
	}
	r.note(one, &croft.Error{Kind: croft.KindInvalid, Err: errors.New("it is wrong"), Remedy: "correct it"})
	r.note(two, &croft.Error{Kind: croft.KindRefused, Err: errors.New(strings.Repeat("é", 2000))})
	if e, ok := r.of(one); !ok || e.Type != lease.Warning || e.Reason != "ManifestRefused" || e.Note != "a manifest was refused: it is wrong; correct it" || e.At.IsZero() {
		t.Errorf("event is %+v", e)
	}
	if e, _ := r.of(two); len(e.Note) > 1100 || strings.ToValidUTF8(e.Note, "") != e.Note {
		t.Errorf("a long reason makes %d bytes", len(e.Note))
	}
	r.keep([]akash.LeaseID{one})
	if _, ok := r.of(two); ok {
		t.Error("a lease that ended is remembered")
	}
	r.forget(one)
	if _, ok := r.of(one); ok {
		t.Error("a manifest that was taken is remembered as refused")
	}
}
