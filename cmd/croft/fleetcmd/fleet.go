package fleetcmd

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

func newFleetCommand() *cobra.Command {
	cmd := session.Group("fleet", "Look at the fleet as a whole")
	o := top(cmd, true)
	overview := &cobra.Command{Use: "overview", Short: "Show the fleet in numbers", Args: session.Args(0, 0)}
	overview.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, _ []string) error {
		v, err := c.Overview(cmd.Context())
		if err != nil {
			return err
		}
		t := session.Table{Head: []string{"board", "release", "state", "online", "boxes"}, None: "there are no boxes"}
		for _, n := range v.Counts {
			row(&t, n.Board, orDash(string(n.Release)), n.State, fmt.Sprint(n.Online), fmt.Sprint(n.All))
		}
		if len(v.Counts) > 0 {
			row(&t, "all in service", "", "", fmt.Sprint(v.Online), fmt.Sprint(v.Total))
			row(&t, "alerts firing", "", "", "", fmt.Sprint(v.Firing))
		}
		return o.Show(cmd, t, v)
	})
	cmd.AddCommand(overview)
	return cmd
}

func newOwnerCommand() *cobra.Command {
	cmd := session.Group("owner", "Find owners and their boxes")
	o := top(cmd, true)
	cmd.AddCommand(newOwnerListCommand(o), newOwnerGetCommand(o))
	return cmd
}

func ownerTable(list ...fleetclient.Account) session.Table {
	t := session.Table{Head: []string{"owner", "name", "email", "since", "shut out"}, None: "no owner is like that"}
	for _, a := range list {
		row(&t, a.ID, orDash(a.Name), orDash(a.Email), when(a.Created), yesNo(a.Disabled))
	}
	return t
}

func newOwnerListCommand(o *options) *cobra.Command {
	var limit int
	cmd := &cobra.Command{Use: "list [TEXT]", Short: "List owners whose e-mail address or name begins so", Args: session.Args(0, 1), Aliases: []string{"ls"}}
	addLimit(cmd, &limit, 100)
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		list, err := some(cmd, limit, c.Owners(cmd.Context(), strings.Join(args, ""), pageSize(limit)))
		if err != nil {
			return err
		}
		return o.Show(cmd, ownerTable(list...), list)
	})
	return cmd
}

// ownerView is an owner with his boxes.
type ownerView struct {
	Owner   fleetclient.Account  `json:"owner"`
	Devices []fleetclient.Device `json:"devices"`
}

func newOwnerGetCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "get OWNER", Short: "Show an owner and his boxes", Args: session.Args(1, 1)}
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		var v ownerView
		var err error
		if v.Owner, err = c.Owner(cmd.Context(), args[0]); err != nil {
			return err
		}
		if v.Devices, err = some(cmd, 500, c.Devices(cmd.Context(), fleetclient.DeviceQuery{Owner: v.Owner.ID, PageSize: 500})); err != nil {
			return err
		}
		if f := form(cmd); f == "json" || f == "yaml" {
			return o.Print(cmd, v)
		}
		owner, boxes := ownerTable(v.Owner), deviceTable(v.Devices...)
		boxes.None = "no box is his"
		_, err = fmt.Fprint(cmd.OutOrStdout(), owner.Text(true)+"\n"+boxes.Text(form(cmd) == "wide"))
		return err
	})
	return cmd
}

func newAlertCommand() *cobra.Command {
	cmd := session.Group("alert", "See what is wrong")
	o := top(cmd, true)
	cmd.AddCommand(newAlertListCommand(o), newAckCommand(o), newRulesCommand(o))
	return cmd
}

func alertTable(list ...fleetclient.Alert) session.Table {
	t := session.Table{Head: []string{"alert", "severity", "about", "sentence", "fired", "ended", "taken on by", "note", "rule"}, Wide: 3, None: "nothing is wrong"}
	for _, a := range list {
		about := a.Box
		if about == "" {
			about = a.Target
		}
		row(&t, a.ID, string(a.Severity), orDash(about), a.Sentence, when(a.Fired), when(a.Ended), orDash(a.AckedBy), orDash(a.Note), a.Rule)
	}
	return t
}

func newAlertListCommand(o *options) *cobra.Command {
	var q fleetclient.AlertQuery
	var device string
	var all bool
	var limit int
	cmd := &cobra.Command{Use: "list", Short: "List alerts that fire, newest first", Args: session.Args(0, 0), Aliases: []string{"ls"}}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "those that ended too")
	f.StringVar(&device, "device", "", "only of this box")
	f.StringVar(&q.Rule, "rule", "", "only of this rule")
	addLimit(cmd, &limit, 100)
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, _ []string) error {
		if device != "" {
			var err error
			if q.Device, err = findDevice(cmd.Context(), c, device); err != nil {
				return err
			}
		}
		q.Firing, q.PageSize = !all, pageSize(limit)
		list, err := some(cmd, limit, c.Alerts(cmd.Context(), q))
		if err != nil {
			return err
		}
		return o.Show(cmd, alertTable(list...), list)
	})
	return cmd
}

func newAckCommand(o *options) *cobra.Command {
	var note string
	cmd := &cobra.Command{Use: "ack ALERT", Short: "Take an alert on", Args: session.Args(1, 1)}
	cmd.Flags().StringVar(&note, "note", "", "what you do about it")
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, args []string) error {
		if err := c.Ack(cmd.Context(), args[0], note); err != nil {
			return err
		}
		t := session.Table{Head: []string{"alert", "result"}}
		row(&t, args[0], "is yours")
		return o.Show(cmd, t, map[string]string{"alert": args[0], "result": "is yours"})
	})
	return cmd
}

func newRulesCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "rules", Short: "List alert rules", Args: session.Args(0, 0)}
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, _ []string) error {
		list, err := c.Rules(cmd.Context())
		if err != nil {
			return err
		}
		t := session.Table{Head: []string{"rule", "name", "severity", "for", "judged", "built in", "off", "expression"}, Wide: 3, None: "there are no rules"}
		for _, r := range list {
			judged := when(r.Judged)
			if r.Error != "" {
				judged = r.Error
			}
			row(&t, r.Rule.ID, r.Rule.Name, string(r.Rule.Severity), r.Rule.For.String(), judged, yesNo(r.Builtin), yesNo(r.Rule.Off), orDash(r.Rule.Expr))
		}
		return o.Show(cmd, t, list)
	})
	return cmd
}

func newAuditCommand() *cobra.Command {
	var q fleetclient.AuditQuery
	var since, until string
	var limit int
	cmd := &cobra.Command{
		Use: "audit", Short: "List who changed what, newest first", Args: session.Args(0, 0),
		Example: "  croft audit --object DEVICE --limit 20\n  croft audit --action claim. --since 2026-11-01T00:00:00Z",
	}
	o := top(cmd, true)
	f := cmd.Flags()
	f.StringVar(&q.Actor, "actor", "", "account that did it")
	f.StringVar(&q.Object, "object", "", "id of what was changed")
	f.StringVar(&q.Action, "action", "", "like claim.confirm, or with a dot at the end all that begin so")
	f.StringVar(&q.Address, "address", "", "it came from")
	f.StringVar(&since, "since", "", "not before this time, like 2026-11-01T00:00:00Z")
	f.StringVar(&until, "until", "", "before this time")
	addLimit(cmd, &limit, 50)
	cmd.RunE = onFleet(o, func(cmd *cobra.Command, c *fleetclient.Client, _ []string) error {
		for _, one := range []struct {
			flag, text string
			to         *time.Time
		}{{"since", since, &q.From}, {"until", until, &q.Until}} {
			if one.text != "" {
				at, err := time.Parse(time.RFC3339, one.text)
				if err != nil {
					return session.Usage(fmt.Errorf("--%s %q is no time", one.flag, one.text), "write it like 2026-11-01T00:00:00Z")
				}
				*one.to = at
			}
		}
		q.PageSize = pageSize(limit)
		list, err := some(cmd, limit, c.Audit(cmd.Context(), q))
		if err != nil {
			return err
		}
		t := session.Table{Head: []string{"time", "actor", "action", "object", "before", "after", "number", "role", "address"}, Wide: 3, None: "nothing was changed"}
		for _, e := range list {
			row(&t, when(e.At), e.Actor, e.Action, orDash(e.Object), pairs(e.Before), pairs(e.After), fmt.Sprint(e.Seq), orDash(e.Role), orDash(e.Address))
		}
		return o.Show(cmd, t, list)
	})
	return cmd
}
