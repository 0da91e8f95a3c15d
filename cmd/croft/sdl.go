package main

import (
	"encoding/hex"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newSDLCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sdl",
		Short: "Check an SDL file and show what is made of it",
		Long: `Check an SDL file (deploy.yml) and show what is made of it: the groups that go
on chain, the manifest that goes to the provider, and the hash that binds them.

Each mistake is one line on standard error: FILE:LINE:COLUMN: KEY: what is
wrong; what to write instead. A file without mistakes leaves it empty. - is
standard input.`,
		Args: noCommand,
		RunE: help,
	}
	cmd.AddCommand(
		newSDLPartCommand("groups", "Print the groups that a deployment asks for on chain, as JSON", func(s *sdl.SDL) ([]byte, error) {
			return sdl.GroupsJSON(s.Groups())
		}),
		newSDLPartCommand("manifest", "Print the manifest, byte for byte as a provider wants it", func(s *sdl.SDL) ([]byte, error) {
			return s.Manifest().JSON(), nil
		}),
		newSDLPartCommand("hash", "Print the hash of the manifest, in hex", func(s *sdl.SDL) ([]byte, error) {
			hash := s.Hash()
			return []byte(hex.EncodeToString(hash[:]) + "\n"), nil
		}),
	)
	return cmd
}

func newSDLPartCommand(name, short string, part func(*sdl.SDL) ([]byte, error)) *cobra.Command {
	return &cobra.Command{
		Use:     name + " FILE",
		Short:   short,
		Example: "  croft sdl " + name + " deploy.yml",
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := session.ReadSDL(cmd, args[0])
			if err != nil {
				return err
			}
			out, err := part(file)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
}
