package main

import (
	"context"
	"os"

	"github.com/containerd/containerd/v2/core/runtime/v2/logging"
)

func main() {
	logging.Run(func(ctx context.Context, pipes *logging.Config, ready func() error) error {
		cfg, err := parse(os.Args[1:])
		if err != nil {
			return err
		}
		return run(ctx, cfg, pipes.Stdout, pipes.Stderr, ready)
	})
}
