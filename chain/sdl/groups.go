package sdl

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/croft-cloud/croft/chain/api"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
)

// GroupsJSON is groups as real clients print chain messages (-o json), indented:
// names as in the .proto files, nothing left out, quantities and prices as
// decimal text, prices with eighteen digits behind the point. It fails only for
// what no chain sends, such as a price that is no number.
func GroupsJSON(groups []*deploymentv1beta4.GroupSpec) ([]byte, error) {
	all := []json.RawMessage{}
	for _, g := range groups {
		raw, err := api.JSON(g)
		if err != nil {
			return nil, fmt.Errorf("print group %q: %w", g.GetName(), err)
		}
		all = append(all, raw)
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("print groups: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("print groups: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}
