package fleetcmd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

func newDeviceCommand() *cobra.Command {
	cmd := session.Group("device", "Look after boxes")
	cmd.Long = "Look after boxes. DEVICE is an id, or the beginning of a short name, serial number, address or word of a name if only one box has it."
	o := top(cmd, true)
	cmd.AddCommand(
		newDeviceListCommand(o), newDeviceGetCommand(o), newDeviceDescribeCommand(o), newDeviceLogCommand(o), newDeviceEventsCommand(o),
		newSetNameCommand(o), newLabelCommand(o), newClaimCommand(o), newTransferCommand(o),
		newEndCommand(o, "release", "Give a box up: it is nobody's then", "Give up %s? It is nobody's then.", (*fleetclient.Client).Release, "given up"),
		newEndCommand(o, "retire", "Take a box out of the fleet for good", "Take %s out of the fleet for good?", (*fleetclient.Client).Retire, "retired"),
		newEndCommand(o, "revoke", "Make a box's certificates worthless; it enrols again", "Revoke the certificates of %s?", (*fleetclient.Client).Revoke, "has to enrol again"),
	)
	return cmd
}

func deviceTable(list ...fleetclient.Device) session.Table {
	t := session.Table{
		Head: []string{"device", "name", "online", "state", "release", "board", "seen", "serial", "address", "owner", "labels", "alerts"}, Wide: 5,
		None: "no box is like that",
	}
	for _, d := range list {
		row(&t, string(d.ID), orDash(d.Name), yesNo(d.Online), d.Claim.State, orDash(string(d.Release)), d.Board, when(d.Seen),
			orDash(d.Serial), orDash(d.Address), orDash(d.Claim.Owner), pairs(d.Labels), orDash(d.Alerts))
	}
	return t
}

func newDeviceListCommand(o *options) *cobra.Command {
	var q fleetclient.DeviceQuery
	var online, offline, watch bool
	var release string
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List boxes", Args: session.Args(0, 0), Aliases: []string{"ls"},
		Example: "  croft device list --selector site=lab,tier!=old --offline\n  croft device list -l site=lab --watch -o json",
	}
	f := cmd.Flags()
	f.StringVarP(&q.Selector, "selector", "l", "", "labels, like site=lab,gpu,!broken,tier in (a,b)")
	f.StringVar(&q.State, "state", "", "of the claim, like claimed")
	f.StringVar(&release, "release", "", "that they run")
	f.StringVar(&q.Board, "board", "", "hardware model")
	f.StringVar(&q.Owner, "owner", "", "account")
	f.StringVar(&q.Sort, "sort", "", "id, name or seen (longest silent first)")
	f.BoolVar(&online, "online", false, "only those that are online")
	f.BoolVar(&offline, "offline", false, "only those that are not")
	f.BoolVarP(&watch, "watch", "w", false, "go on with what changes, until Ctrl-C; by --selector only")
	addLimit(cmd, &limit, 500)
	cmd.MarkFlagsMutuallyExclusive("online", "offline")
	for _, other := range []string{"state", "release", "board", "owner", "sort", "online", "offline", "limit"} {
		cmd.MarkFlagsMutuallyExclusive("watch", other)
	}
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, _ []string) error {
		if watch {
			return follow(cmd, c.WatchDevices(cmd.Context(), q.Selector))
		}
		if online || offline {
			q.Online = &online
		}
		q.Release, q.PageSize = croft.Version(release), pageSize(limit)
		list, err := some(cmd, limit, c.Devices(cmd.Context(), q))
		if err != nil {
			return err
		}
		return o.Show(cmd, deviceTable(list...), list)
	})
	return cmd
}

// follow prints changes, one line each.
func follow(cmd *cobra.Command, changes iter.Seq2[fleetclient.Change, error]) error {
	for change, err := range changes {
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%-32s  gone", change.Gone)
		if d := change.Device; d != nil {
			state := "offline"
			if d.Online {
				state = "online"
			}
			text = clean(strings.TrimSpace(fmt.Sprintf("%-32s  %-7s  %-12s  %-10s  %s  %s", d.ID, state, d.Claim.State, orDash(string(d.Release)), d.Name, d.Alerts)))
		}
		if err := line(cmd, text, change); err != nil {
			return err
		}
	}
	return nil
}

func newDeviceGetCommand(o *options) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{Use: "get DEVICE", Short: "Show a box in one line", Args: session.Args(1, 1)}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what changes, until Ctrl-C")
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		if watch {
			return follow(cmd, c.WatchDevice(cmd.Context(), id))
		}
		d, err := c.Device(cmd.Context(), id)
		if err != nil {
			return err
		}
		return o.Show(cmd, deviceTable(d), d)
	})
	return cmd
}

// described is a box with what goes on with it.
type described struct {
	Device fleetclient.Device  `json:"device"`
	Jobs   []fleetclient.Job   `json:"pending_jobs"`
	Alerts []fleetclient.Alert `json:"firing_alerts"`
	Events []fleetclient.Event `json:"last_events"`
}

const lastEvents = 10

func newDeviceDescribeCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "describe DEVICE", Short: "Show a box with its facts, jobs, alerts and last events", Args: session.Args(1, 1)}
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		ctx := cmd.Context()
		var v described
		var err error
		if v.Device, err = c.Device(ctx, id); err != nil {
			return err
		}
		if v.Jobs, err = first(100, c.Jobs(ctx, fleetclient.JobQuery{Device: id, Pending: true})); err != nil {
			return err
		}
		if v.Alerts, err = first(100, c.Alerts(ctx, fleetclient.AlertQuery{Device: id, Firing: true})); err != nil {
			return err
		}
		if v.Events, err = first(lastEvents, c.Events(ctx, id, lastEvents)); err != nil {
			return err
		}
		if f := form(cmd); f == "json" || f == "yaml" {
			return o.Print(cmd, v)
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), v.text())
		return err
	})
	return cmd
}

func first[T any](n int, list iter.Seq2[T, error]) ([]T, error) {
	out := []T{}
	for one, err := range list {
		if err != nil {
			return nil, err
		}
		if out = append(out, one); len(out) == n {
			break
		}
	}
	return out, nil
}

func (v described) text() string {
	d := v.Device
	about := session.Table{Head: []string{"box", ""}}
	for _, one := range [][2]string{
		{"ID", string(d.ID)},
		{"Name", d.Name},
		{"Serial number", d.Serial},
		{"Board", d.Board},
		{"Release", string(d.Release)},
		{"Should run", string(d.WantedRelease)},
		{"Slot", string(d.Slot)},
		{"Online", yesNo(d.Online) + ", since " + when(d.PresenceSince)},
		{"Seen", when(d.Seen)},
		{"Address", d.Address},
		{"Clock", map[bool]string{true: "set by a server", false: "not set"}[d.ClockSynced]},
		{"Claim", d.Claim.State},
		{"Owner", d.Claim.Owner},
		{"Enrolled", when(d.Enrolled)},
		{"Certificate until", when(d.CertificateUntil)},
		{"Labels", pairs(d.Labels)},
		{"Readings every", d.Interval.String()},
		{"Alerts", d.Alerts},
	} {
		row(&about, one[0], orDash(one[1]))
	}
	var out strings.Builder
	out.WriteString(about.Text(true))
	facts := session.Table{Head: []string{"fact", "value"}}
	for _, name := range slices.Sorted(maps.Keys(d.Facts)) {
		row(&facts, name, d.Facts[name])
	}
	for _, section := range []struct {
		rows int
		t    session.Table
	}{{len(d.Facts), facts}, {len(v.Jobs), jobTable(v.Jobs...)}, {len(v.Alerts), alertTable(v.Alerts...)}, {len(v.Events), eventTable(v.Events...)}} {
		if section.rows > 0 {
			out.WriteString("\n" + section.t.Text(false))
		}
	}
	return out.String()
}

func eventTable(list ...fleetclient.Event) session.Table {
	t := session.Table{Head: []string{"time", "severity", "event", "fields", "received"}, Wide: 1, None: "nothing has happened"}
	for _, e := range list {
		row(&t, when(e.At), string(e.Severity), e.Kind, pairs(e.Fields), when(e.Received))
	}
	return t
}

func newDeviceEventsCommand(o *options) *cobra.Command {
	var limit int
	cmd := &cobra.Command{Use: "events DEVICE", Short: "Show what happened to a box, newest first", Args: session.Args(1, 1)}
	addLimit(cmd, &limit, 50)
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		list, err := some(cmd, limit, c.Events(cmd.Context(), id, pageSize(limit)))
		if err != nil {
			return err
		}
		return o.Show(cmd, eventTable(list...), list)
	})
	return cmd
}

func newDeviceLogCommand(o *options) *cobra.Command {
	var limit int
	var more bool
	cmd := &cobra.Command{Use: "log DEVICE", Short: "Show what a box writes to its log", Args: session.Args(1, 1)}
	cmd.Flags().BoolVarP(&more, "follow", "f", false, "go on with what is new, until Ctrl-C")
	cmd.Flags().IntVar(&limit, "limit", 100, "begin with so many of the last lines, 1 to 500")
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		var after int64
		for {
			lines, err := c.Log(cmd.Context(), id, after, limit)
			if err != nil {
				return err
			}
			for _, l := range lines {
				after = l.N
				if err := line(cmd, clean(fmt.Sprintf("%s %-5s %s", when(l.At), l.Level, l.Text)), l); err != nil {
					return err
				}
			}
			if !more {
				return nil
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(pause):
			}
		}
	})
	return cmd
}

// pause is between two looks at what nobody tells of.
const pause = 2 * time.Second

func newSetNameCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "set-name DEVICE NAME", Short: "Give a box a name; an empty one takes it away", Args: session.Args(2, 2)}
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, args []string) error {
		d, err := c.ChangeDevice(cmd.Context(), id, fleetclient.DevicePatch{Name: &args[0]})
		if err != nil {
			return err
		}
		return o.Show(cmd, deviceTable(d), d)
	})
	return cmd
}

func newLabelCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "label DEVICE NAME=VALUE... NAME-...", Short: "Set labels of a box, or take them away", Args: session.Args(2, -1),
		Example: "  croft device label croft-k7qm site=lab tier=a old-",
	}
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, args []string) error {
		set := map[string]*string{}
		for _, arg := range args {
			name, value, given := strings.Cut(arg, "=")
			switch gone, minus := strings.CutSuffix(arg, "-"); {
			case given && name != "":
				set[name] = &value
			case minus && gone != "":
				set[gone] = nil
			default:
				return session.Usage(fmt.Errorf("%q is no label", arg), "write NAME=VALUE, or NAME- to take it away")
			}
		}
		d, err := c.ChangeDevice(cmd.Context(), id, fleetclient.DevicePatch{Labels: set})
		if err != nil {
			return err
		}
		t := session.Table{Head: []string{"device", "labels"}}
		row(&t, string(d.ID), pairs(d.Labels))
		return o.Show(cmd, t, d)
	})
	return cmd
}

func newClaimCommand(o *options) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "claim CODE", Short: "Make a box your own, by the code on its sticker or screen", Args: session.Args(1, 1),
		Long: `Make a box your own, by the code on its sticker or screen, or the code of its seller.

The box that is found is shown before it is yours; without yes it is let go again.`,
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		ctx := cmd.Context()
		found, err := c.StartClaim(ctx, args[0])
		if err != nil {
			return err
		}
		if err := session.Confirm(cmd, yes, fmt.Sprintf("Is %s (%s, %s) yours?", found.Device.ShortName(), clean(found.Board), map[bool]string{true: "online", false: "not online"}[found.Online])); err != nil {
			return errors.Join(err, c.UndoClaim(ctx, found.Device))
		}
		d, err := c.ConfirmClaim(ctx, found.Device)
		if err != nil {
			return err
		}
		return o.Show(cmd, deviceTable(d), d)
	})
	return cmd
}

func newTransferCommand(o *options) *cobra.Command {
	var withdraw, yes bool
	cmd := &cobra.Command{
		Use: "transfer DEVICE", Short: "Make the code with which somebody else can claim your box, once", Args: session.Args(1, 1),
	}
	cmd.Flags().BoolVar(&withdraw, "withdraw", false, "take the code back")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		if withdraw {
			if err := c.WithdrawTransfer(cmd.Context(), id); err != nil {
				return err
			}
			return said(o, cmd, id, "keeps its owner")
		}
		if err := session.Confirm(cmd, yes, fmt.Sprintf("Whoever has the code can take %s from you. Go on?", id)); err != nil {
			return err
		}
		code, err := c.OfferTransfer(cmd.Context(), id)
		if err != nil {
			return err
		}
		t := session.Table{Head: []string{"device", "code", "until"}}
		row(&t, string(id), code.Code, when(code.Until))
		return o.Show(cmd, t, code)
	})
	return cmd
}

// result is the answer of what has nothing else to tell.
type result struct {
	Device croft.DeviceID `json:"device"`
	Result string         `json:"result"`
}

func said(o *options, cmd *cobra.Command, id croft.DeviceID, what string) error {
	t := session.Table{Head: []string{"device", "result"}}
	row(&t, string(id), what)
	return o.Show(cmd, t, result{id, what})
}

// newEndCommand is a command that ends something of a box, and asks before.
func newEndCommand(o *options, name, short, question string, do func(*fleetclient.Client, context.Context, croft.DeviceID) error, what string) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{Use: name + " DEVICE", Short: short, Args: session.Args(1, 1)}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = onDevice(o, func(cmd *cobra.Command, c *fleetclient.Client, id croft.DeviceID, _ []string) error {
		if err := session.Confirm(cmd, yes, fmt.Sprintf(question, id)); err != nil {
			return err
		}
		if err := do(c, cmd.Context(), id); err != nil {
			return err
		}
		return said(o, cmd, id, what)
	})
	return cmd
}
