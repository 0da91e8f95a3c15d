package main

import (
	"fmt"
	"os"

	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

func main() {
	if asksVersion(os.Args[1:]) {
		fmt.Print(describe())
		return
	}
	args, err := enforce(os.Args[1:])
	if err != nil {
		report(os.Args[1:], err)
		os.Exit(128) // as runsc's own failures
	}
	// Sentry and gofers come from this file, wherever the environment points.
	os.Unsetenv("GVISOR_SIDECAR_BINARIES_DIR")
	os.Args = append(os.Args[:1:1], args...)
	cli.Run(nil, commands(), nil)
}

// commands are what the shim calls, and what runsc calls of itself.
func commands() map[util.SubCommand]string {
	const shim, inside = "", "internal use only"
	return map[util.SubCommand]string{
		new(cmd.Create): shim, new(cmd.Start): shim, new(cmd.State): shim, new(cmd.Kill): shim,
		new(cmd.Delete): shim, new(cmd.Exec): shim, new(cmd.Events): shim, new(cmd.PS): shim,
		new(cmd.Pause): shim, new(cmd.Resume): shim, new(cmd.Update): shim, new(cmd.List): shim,
		new(cmd.Wait): shim, new(cmd.Features): shim,
		new(sentrycmd.Boot): inside, new(cmd.Gofer): inside, new(sentrycmd.Umount): inside,
	}
}
