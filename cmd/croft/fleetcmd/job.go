package fleetcmd

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

func newJobCommand() *cobra.Command {
	cmd := session.Group("job", "Ask boxes to do something once")
	o := top(cmd, true)
	cmd.AddCommand(newJobListCommand(o), newJobGetCommand(o), newJobStartCommand(o), newJobCancelCommand(o), newJobHistoryCommand(o))
	return cmd
}

func jobTable(list ...fleetclient.Job) session.Table {
	t := session.Table{
		Head: []string{"job", "device", "kind", "state", "created", "detail", "deadline", "finished", "by", "arguments", "results"}, Wide: 5,
		None: "there is no such job",
	}
	for _, j := range list {
		state := string(j.State)
		if j.Canceling {
			state += " (canceling)"
		}
		row(&t, j.ID, string(j.Device), string(j.Kind), state, when(j.Created), orDash(j.Detail), when(j.Deadline), when(j.Finished), orDash(j.By), pairs(j.Args), pairs(j.Results))
	}
	return t
}

func newJobListCommand(o *options) *cobra.Command {
	var q fleetclient.JobQuery
	var device string
	var limit int
	cmd := &cobra.Command{Use: "list", Short: "List jobs, newest first", Args: session.Args(0, 0), Aliases: []string{"ls"}}
	f := cmd.Flags()
	f.StringVar(&device, "device", "", "only of this box")
	f.StringVar(&q.Bulk, "bulk", "", "only those ordered together")
	f.BoolVar(&q.Pending, "pending", false, "only those that are not ended (default without --device and --bulk)")
	addLimit(cmd, &limit, 100)
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, _ []string) error {
		if device != "" {
			var err error
			if q.Device, err = findDevice(cmd.Context(), c, device); err != nil {
				return err
			}
		}
		q.Pending = q.Pending || device == "" && q.Bulk == ""
		q.PageSize = pageSize(limit)
		list, err := some(cmd, limit, c.Jobs(cmd.Context(), q))
		if err != nil {
			return err
		}
		return o.Show(cmd, jobTable(list...), list)
	})
	return cmd
}

func newJobGetCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "get JOB", Short: "Show a job", Args: session.Args(1, 1)}
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		j, err := c.Job(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return o.Show(cmd, jobTable(j), j)
	})
	return cmd
}

func newJobStartCommand(o *options) *cobra.Command {
	var selector, key string
	var all, yes bool
	var args map[string]string
	var within time.Duration
	cmd := &cobra.Command{
		Use: "start KIND [DEVICE]", Short: "Ask one box, or all that a selector matches", Args: session.Args(1, 2),
		Long: `Ask one box, or all that a selector matches. KIND is reboot, bundle, benchmark or locate.

An order to many that failed halfway is sent again with its --idempotency-key; then the boxes
that have the job do not get it twice.`,
		Example:   "  croft job start reboot croft-k7qm\n  croft job start reboot --selector site=lab\n  croft job start locate --all --yes",
		ValidArgs: []string{string(fleetapi.KindReboot), string(fleetapi.KindBundle), string(fleetapi.KindBenchmark), string(fleetapi.KindLocate)},
	}
	f := cmd.Flags()
	f.StringVarP(&selector, "selector", "l", "", "labels of the boxes, like site=lab")
	f.BoolVar(&all, "all", false, "every box of the fleet")
	f.StringToStringVar(&args, "arg", nil, "argument of the job, like --arg seconds=60")
	f.DurationVar(&within, "within", 24*time.Hour, "how long until the job is given up, at most 720h")
	f.StringVar(&key, "idempotency-key", "", "of the order that is sent again (default: a new one)")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.MarkFlagsMutuallyExclusive("selector", "all")
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, words []string) error {
		if len(words) == 2 == (selector != "" || all) {
			return session.Usage(errors.New("say which boxes"), "name a box, or give --selector or --all")
		}
		ctx, kind, deadline := cmd.Context(), fleetapi.JobKind(words[0]), fleetapi.StampOf(time.Now().Add(within))
		if key == "" {
			key = rand.Text()
		}
		if len(words) == 2 {
			id, err := findDevice(ctx, c, words[1])
			if err != nil {
				return err
			}
			j, err := c.StartJob(ctx, fleetclient.NewJob{Device: id, Kind: kind, Args: args, Deadline: deadline}, key)
			if err != nil {
				return err
			}
			return o.Show(cmd, jobTable(j), j)
		}
		if all {
			if err := session.Confirm(cmd, yes, fmt.Sprintf("Ask every box of the fleet to %s?", kind)); err != nil {
				return err
			}
		}
		done, err := c.StartJobs(ctx, fleetclient.BulkJob{Selector: selector, All: all, Kind: kind, Args: args, Deadline: deadline}, key)
		if err != nil {
			if croft.KindOf(err) != croft.KindUsage && croft.KindOf(err) != croft.KindRefused {
				fmt.Fprintf(cmd.ErrOrStderr(), "Some boxes may have the job. The same command with --idempotency-key %s asks the others.\n", key)
			}
			return err
		}
		t := session.Table{Head: []string{"order", "queued", "skipped"}}
		row(&t, done.Bulk, fmt.Sprint(done.Queued), fmt.Sprint(len(done.Skipped)))
		return o.Show(cmd, t, done)
	})
	return cmd
}

func newJobCancelCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "cancel JOB", Short: "Take a job back", Args: session.Args(1, 1)}
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		j, err := c.CancelJob(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return o.Show(cmd, jobTable(j), j)
	})
	return cmd
}

func newJobHistoryCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "history JOB", Short: "Show what the box said about a job", Args: session.Args(1, 1)}
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		list, err := c.JobHistory(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		t := session.Table{Head: []string{"received", "state", "detail", "too late", "box time"}, Wide: 1, None: "the box has said nothing about it"}
		for _, s := range list {
			row(&t, when(s.Received), string(s.State), orDash(s.Detail), yesNo(!s.Taken), when(s.At))
		}
		return o.Show(cmd, t, list)
	})
	return cmd
}
