package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestTenantScripts runs the manual of the tenant's commands, as far as it needs
// no chain.
func TestTenantScripts(t *testing.T) {
	runScripts(t, "testdata/tenant", func(p *testscript.Params) {
		setup := p.Setup
		p.Setup = func(env *testscript.Env) error {
			env.Setenv("XDG_CONFIG_HOME", env.WorkDir+"/config")
			return setup(env)
		}
	})
}
