package fleet

import (
	"slices"
	"testing"

	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/console"
	"github.com/croft-cloud/croft/fleet/webapi"
)

// croft's commands work with a token from the account page.
func TestTokensOfTheAccountPageReachAllOfTheAPI(t *testing.T) {
	for _, role := range rights.Roles() {
		offered := console.Scopes(role)
		for _, route := range webapi.Routes() {
			for _, need := range route.Need {
				if role.Grants(need) != rights.None && !slices.Contains(offered, need) {
					t.Errorf("%s %s needs %s, which the account page does not offer to the role %s", route.Method, route.Pattern, need, role)
				}
			}
		}
	}
}
