// Package session is what the commands of package chaincmd and tenantcmd share:
// flags and environment, the network they mean, keys and passphrases, the forms
// of an answer, and signing with a fee.
//
// It reads flags, environment, terminal and files, and prints. Nothing is kept
// between two commands but the keystore and settings.json, which is replaced
// whole. Secrets are read without showing them and never printed.
package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/croft-cloud/croft"
)

// Options are the flags that every command of this package has.
type Options struct {
	home    string
	network string
	over    Network // what flags and environment say instead
	format  string
}

// TopCommand makes a command of the first level with the common flags.
func TopCommand(use, short, long string, format string) (*cobra.Command, *Options) {
	o := &Options{}
	cmd := Group(use, short)
	cmd.Long = long
	cmd.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd) }
	f := cmd.PersistentFlags()
	f.StringVar(&o.home, "home", "", "folder of keys and settings (default: croft in the user's configuration)")
	f.StringVar(&o.network, "network", "", "network to talk to (default: as 'croft tenant network use' chose, else croft-local)")
	f.StringVar(&o.over.Node, "node", "", "the node's RPC address, like http://127.0.0.1:26657")
	f.StringVar(&o.over.GRPC, "grpc", "", "the node's gRPC address (default: port 9090 of --node's host)")
	f.StringVar(&o.over.ChainID, "chain-id", "", "id of the chain")
	f.StringVarP(&o.format, "output", "o", format, "form of the answer: "+strings.Join(formats(format), ", "))
	Complete(cmd, "output", formats(format)...)
	return cmd, o
}

// Group is a command that only holds others.
func Group(use, short string, of ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(of...)
	return cmd
}

// fromEnvironment gives flags that were not typed the value of CROFT_FLAG or,
// as with the Akash command line, AKASH_FLAG.
func fromEnvironment(cmd *cobra.Command) error {
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			return
		}
		name := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		for _, key := range []string{"CROFT_" + name, "AKASH_" + name} {
			value, ok := os.LookupEnv(key)
			if !ok || value == "" || key == "AKASH_HOME" || f.Name == "help" {
				continue
			}
			if err := cmd.Flags().Set(f.Name, value); err != nil {
				errs = append(errs, Usage(fmt.Errorf("environment variable %s: %w", key, err), "correct or unset it"))
			}
			return
		}
	})
	return errors.Join(errs...)
}

// Dir is the folder of keys and settings.
func (o *Options) Dir() (string, error) {
	if o.home != "" {
		return o.home, nil
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return "", &croft.Error{Kind: croft.KindMissing, Err: err, Remedy: "say with --home where keys and settings are"}
	}
	return filepath.Join(config, "croft"), nil
}

// Usage is an error about the command line.
func Usage(err error, remedy string) error {
	return &croft.Error{Kind: croft.KindUsage, Err: err, Remedy: remedy}
}

// MissingFlag is the error about a flag that a command cannot do without.
func MissingFlag(cmd *cobra.Command, name string) error {
	return Usage(fmt.Errorf("%s needs --%s", cmd.CommandPath(), name), "see `"+cmd.CommandPath()+" --help`")
}

// noCommand is for a command that only holds others: a word behind it is one it
// does not have.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	remedy := "see `" + cmd.CommandPath() + " --help`"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		remedy = "did you mean `" + cmd.CommandPath() + " " + near[0] + "`?"
	}
	return Usage(fmt.Errorf("%s has no command %q", cmd.CommandPath(), args[0]), remedy)
}

// Args wants between least and most arguments; most below 0 is no limit.
func Args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		want := fmt.Sprintf("%d argument", least)
		if most != least {
			want = fmt.Sprintf("%d or more argument", least)
		}
		if most > least {
			want = fmt.Sprintf("%d to %d argument", least, most)
		}
		if least != 1 || most != 1 {
			want += "s"
		}
		return Usage(fmt.Errorf("%s takes %s, got %d", cmd.CommandPath(), want, len(args)), "usage: "+cmd.UseLine())
	}
}

// Complete offers words for the value of a flag.
func Complete(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // there is no such flag: a mistake of the caller
	}
}
