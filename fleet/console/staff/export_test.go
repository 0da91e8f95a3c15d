package staff

import "github.com/croft-cloud/croft/fleet/auth/rights"

// Needs is what each route needs, by its pattern.
func (s *Pages) Needs() map[string]rights.Permission {
	out := map[string]rights.Permission{}
	for _, r := range s.routes() {
		out[r.pattern] = rights.Permission{Resource: r.resource, Action: r.action}
	}
	return out
}
