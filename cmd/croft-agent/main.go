// Croft-agent is the daemon on the box.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft/agent"
)

// The box's memory belongs to its tenants: the garbage collector runs when the
// heap has grown by gcPercent, half as much as usual, and works harder when all
// memory in use comes near memoryLimit, in bytes.
const (
	gcPercent   = 50
	memoryLimit = 16 << 20
)

func main() {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	asked, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	ctx, cancel := context.WithCancelCause(context.Background())
	context.AfterFunc(asked, func() { cancel(agent.ErrPowerOff) }) // gokrazy asks when the box goes off
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "croft-agent:", err)
	}
	// Never 0: gokrazy takes that for a wish to stay stopped.
	os.Exit(1)
}

func run(ctx context.Context) error {
	a, err := agent.New(agent.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}
