// Package chaincmd is the Akash command line's verbs, `croft tx`, `croft query`
// and `croft provider`, with the same flags, so that its articles and scripts
// work here.
package chaincmd

import "github.com/spf13/cobra"

// New makes the commands that go below `croft`.
func New() []*cobra.Command {
	return []*cobra.Command{newTxCommand(), newQueryCommand(), newProviderCommand()}
}
