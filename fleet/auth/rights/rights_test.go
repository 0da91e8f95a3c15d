package rights_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/fleet/auth/rights"
)

// TestMatrix lists every cell: permission × role × whose. The file is written by
// hand, so that a change of the table is a change of two places.
func TestMatrix(t *testing.T) {
	raw, err := os.ReadFile("testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	for line := range strings.Lines(string(raw)) {
		if words := strings.Fields(line); len(words) == 5 && words[0] != "permission" {
			want[words[0]] = words[1:]
		}
	}
	if len(want) != len(rights.Permissions()) {
		t.Errorf("the matrix has %d lines, the table %d", len(want), len(rights.Permissions()))
	}
	for _, p := range rights.Permissions() {
		row, ok := want[p.String()]
		if !ok {
			t.Errorf("%s is not in the matrix", p)
			continue
		}
		for i, role := range rights.Roles() {
			who := rights.Principal{Account: "me", Role: role, Session: "ses_1", Stage: rights.StageFull}
			for _, owner := range []string{"me", "other", ""} {
				may := row[i] == "all" || (row[i] == "own" && owner == "me")
				on := rights.Object{Resource: p.Resource, Owner: owner}
				if got := rights.Allowed(who, p.Action, on); got != may {
					t.Errorf("%s may do %s to a thing of %q: %v, want %v", role, p, owner, got, may)
				}
				for name, less := range map[string]rights.Principal{
					"nobody":             {},
					"a role of nobody":   {Role: role, Stage: rights.StageFull},
					"half signed in":     {Account: "me", Role: role, Session: "ses_1", Stage: rights.StageTOTP},
					"without a code yet": {Account: "me", Role: role, Session: "ses_1", Stage: rights.StageEnroll},
					"an unscoped token":  {Account: "me", Role: role, Token: "tok_1", Stage: rights.StageFull},
					"an unknown role":    {Account: "me", Role: "root", Session: "ses_1", Stage: rights.StageFull},
				} {
					if rights.Allowed(less, p.Action, on) {
						t.Errorf("%s (%s) may do %s to a thing of %q", name, role, p, owner)
					}
				}
				scoped := rights.Principal{Account: "me", Role: role, Token: "tok_1", Scopes: []rights.Permission{p}, Stage: rights.StageFull}
				if got := rights.Allowed(scoped, p.Action, on); got != may {
					t.Errorf("a token of %s for %s, on a thing of %q: %v, want %v", role, p, owner, got, may)
				}
				for _, q := range rights.Permissions() {
					if q != p && rights.Allowed(scoped, q.Action, rights.Object{Resource: q.Resource, Owner: owner}) {
						t.Errorf("a token for %s may do %s", p, q)
					}
				}
			}
		}
	}
}

func TestWhatIsNotInTheTableIsForbidden(t *testing.T) {
	who := rights.Principal{Account: "me", Role: rights.RoleAdmin, Session: "ses_1", Stage: rights.StageFull}
	if rights.Allowed(who, "fly", rights.Object{Resource: rights.Device, Owner: "me"}) || rights.Allowed(who, rights.Read, rights.Object{}) {
		t.Error("an admin may do what nobody thought of")
	}
}

func TestTexts(t *testing.T) {
	for _, p := range rights.Permissions() {
		if got, err := rights.ParsePermission(p.String()); err != nil || got != p {
			t.Errorf("ParsePermission(%q) = %v, %v", p, got, err)
		}
	}
	for _, bad := range []string{"", ":", "device", "device:", ":read", "device:read:x", "Device:read", "*:*"} {
		if _, err := rights.ParsePermission(bad); err == nil {
			t.Errorf("ParsePermission(%q) accepts it", bad)
		}
	}
	scopes, err := rights.ParseScopes(" job:read  device:read\tjob:read ")
	if text := rights.FormatScopes(scopes); err != nil || text != "device:read job:read" {
		t.Errorf("scopes = %q, %v", text, err)
	}
	for _, r := range rights.Roles() {
		if r.Staff() != (r != rights.RoleOwner) {
			t.Errorf("%s is staff: %v", r, r.Staff())
		}
	}
	if p := rights.FromContext(rights.NewContext(t.Context(), rights.Principal{Account: "me"})); p.Account != "me" {
		t.Error(fmt.Sprint("the context lost ", p))
	}
	if p := rights.FromContext(t.Context()); p.Account != "" {
		t.Error("a context without anybody has somebody")
	}
}
