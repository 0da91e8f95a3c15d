package fleetapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

func TestStamps(t *testing.T) {
	for _, tc := range []struct{ name, raw, want string }{
		{"milliseconds stay", `"2026-11-21T12:00:00.123Z"`, `"2026-11-21T12:00:00.123Z"`},
		{"zeros are written", `"2026-11-21T12:00:00Z"`, `"2026-11-21T12:00:00.000Z"`},
		{"finer parts are cut", `"2026-11-21T12:00:00.123999999Z"`, `"2026-11-21T12:00:00.123Z"`},
		{"zones become UTC", `"2026-11-21T12:00:00+02:00"`, `"2026-11-21T10:00:00.000Z"`},
		{"null is none", `null`, `null`},
		{"the zero time is none", `"0001-01-01T00:00:00Z"`, `null`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var s Stamp
			if err := json.Unmarshal([]byte(tc.raw), &s); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(s)
			if err != nil || string(got) != tc.want {
				t.Errorf("%s became %s, %v; want %s", tc.raw, got, err, tc.want)
			}
		})
	}
	for raw, want := range map[string]Reason{
		`"yesterday"`: ReasonMalformed, `1700000000`: ReasonMalformed, `{}`: ReasonMalformed,
		`"1969-12-31T23:59:59Z"`: ReasonRange, `"2201-01-01T00:00:00Z"`: ReasonRange,
	} {
		var s Stamp
		if err := json.Unmarshal([]byte(raw), &s); ReasonOf(err) != want {
			t.Errorf("Unmarshal(%s): %v (%s), want %s", raw, err, ReasonOf(err), want)
		}
	}
	if raw, err := json.Marshal(Stamp{time.Unix(-1, 0)}); err == nil {
		t.Errorf("a time before 1970 became %s", raw)
	}
	if got := StampOf(testTime.Add(999 * time.Microsecond)); !got.Equal(testTime) {
		t.Errorf("StampOf = %s", got)
	}
	if !StampOf(time.Time{}).IsZero() {
		t.Error("StampOf of no time is one")
	}
}

func TestErrorDocuments(t *testing.T) {
	refused := &croft.Error{Kind: croft.KindRefused, Err: errors.New("box has an owner"), Remedy: "ask the owner to transfer it"}
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"an error for people", refused, `{"kind":"refused","message":"box has an owner","remedy":"ask the owner to transfer it"}`},
		{"one behind others", fmt.Errorf("claim box 7 of shard 3: %w", refused), `{"kind":"refused","message":"box has an owner","remedy":"ask the owner to transfer it"}`},
		{"one without a remedy", &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no such box")}, `{"kind":"not_found","message":"no such box"}`},
		{"what is inside stays inside", errors.New("dial postgres://fleet:secret@db"), `{"kind":"","message":"the fleet could not do it now","remedy":"try again in a minute"}`},
		{"also with a kind that says nothing", &croft.Error{Err: errors.New("secret")}, `{"kind":"","message":"the fleet could not do it now","remedy":"try again in a minute"}`},
		{"text is cleaned", &croft.Error{Kind: croft.KindUsage, Err: errors.New("name \x1b[31m\nis odd")}, `{"kind":"usage","message":"name  [31m is odd"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := ErrorDocumentOf(tc.err)
			raw, err := json.Marshal(d)
			if err != nil || string(raw) != tc.want {
				t.Fatalf("document is %s, %v; want %s", raw, err, tc.want)
			}
			back, err := ParseErrorDocument(raw)
			if diff := cmp.Diff(d, back); err != nil || diff != "" {
				t.Errorf("ParseErrorDocument: %v\n%s", err, diff)
			}
			got := back.Err()
			if croft.KindOf(got) != d.Kind || !strings.HasPrefix(got.Error(), d.Message) || !strings.HasSuffix(got.Error(), d.Remedy) {
				t.Errorf("Err = %v of kind %s", got, croft.KindOf(got))
			}
		})
	}
}

func TestErrorDocumentsThatAreNone(t *testing.T) {
	for raw, want := range map[string]Reason{
		"": ReasonMalformed, "<html>": ReasonMalformed, "[]": ReasonMalformed, "{}": ReasonMissing,
		`{"message":"a\u0000"}`:                 ReasonText,
		`{"kind":"A B","message":"a"}`:          ReasonText,
		`{"message":"a","remedy":"\u202e"}`:     ReasonText,
		strings.Repeat(" ", MaxErrorDocument+1): ReasonOversized,
	} {
		if d, err := ParseErrorDocument([]byte(raw)); ReasonOf(err) != want || d != (ErrorDocument{}) && want != ReasonText {
			t.Errorf("ParseErrorDocument(%.40q) = %v, %v (%s), want %s", raw, d, err, ReasonOf(err), want)
		}
	}
}
