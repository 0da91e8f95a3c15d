package tenantcmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/escrowtypesv1"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/chain/tenant/quote"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

// about runs do on the deployment that a command's argument means.
func about(t *session.TxOptions, cmd *cobra.Command, args []string, do func(context.Context, *tenant.Tenant, *client.Client, tenant.Overview) error) error {
	who, c, err := openTenant(t, cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := cmd.Context()
	if len(args) == 1 {
		if dseq, err := strconv.ParseUint(args[0], 10, 64); err == nil {
			o, err := who.Look(ctx, who.ID(dseq))
			if err != nil {
				return err
			}
			return do(ctx, who, c, o)
		}
	}
	all, err := who.List(ctx, "active")
	if err != nil {
		return err
	}
	var found []tenant.Overview
	var numbers []string
	for _, o := range all {
		if len(args) == 0 || nameOf(o) == args[0] {
			found = append(found, o)
			numbers = append(numbers, strconv.FormatUint(o.ID.DSeq, 10))
		}
	}
	switch {
	case len(found) == 1:
		return do(ctx, who, c, found[0])
	case len(found) > 1:
		return session.Usage(errors.New("there are several deployments that this could mean"), "name one by its number: "+strings.Join(numbers, ", "))
	case len(args) == 1:
		return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s has no active deployment %q", who.Owner(), args[0]), Remedy: "`croft tenant ls` lists them"}
	}
	return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("%s has no active deployment", who.Owner()), Remedy: "begin one with `croft tenant deploy FILE`"}
}

func nameOf(o tenant.Overview) string {
	if o.Record == nil {
		return ""
	}
	return o.Record.Name
}

// money is what a deployment costs and how long it is paid for.
type money struct {
	Rates []price `json:"rates"`           // for each block
	Hour  []price `json:"hour,omitempty"`  // for an hour
	Month []price `json:"month,omitempty"` // for a month
	Left  string  `json:"left,omitempty"`  // until the escrow account is empty; empty when nothing is drawn
	Ends  string  `json:"ends,omitempty"`  // RFC 3339
	funds []akash.Price
	rates []akash.Price
	lasts quote.Runway
	pace  *quote.Pace
	over  bool // the escrow account is closed
}

// measure is the chain's pace; nil while the chain is too young to have one.
func measure(ctx context.Context, c *client.Client) *quote.Pace {
	pace, err := quote.MeasurePace(ctx, c)
	if err != nil {
		return nil
	}
	return &pace
}

func moneyOf(o tenant.Overview, pace *quote.Pace) (money, error) {
	m := money{Rates: []price{}, pace: pace}
	var err error
	if m.rates, err = o.Rates(); err != nil {
		return m, err
	}
	escrow := o.Deployment.GetEscrowAccount()
	for _, f := range escrow.GetState().GetFunds() {
		sum, err := akash.ParseWireDec(f.GetAmount())
		if err != nil {
			return m, err
		}
		m.funds = append(m.funds, akash.Price{Denom: f.GetDenom(), Amount: sum})
	}
	for _, r := range m.rates {
		m.Rates = append(m.Rates, viewPrice(r))
		if pace != nil {
			m.Hour = append(m.Hour, viewPrice(quote.Cost(r, *pace, quote.Hour)))
			m.Month = append(m.Month, viewPrice(quote.Cost(r, *pace, quote.Month)))
		}
	}
	m.over = escrow.GetState().GetState() != escrowtypesv1.State_open
	if pace == nil || m.over {
		return m, nil
	}
	if m.lasts, err = quote.RunwayOf(escrow, m.rates, *pace); err != nil {
		return m, err
	}
	if !m.lasts.Forever {
		m.Left, m.Ends = m.lasts.Left.Truncate(time.Second).String(), m.lasts.End.UTC().Format(time.RFC3339)
	}
	return m, nil
}

func viewPrice(p akash.Price) price { return price{p.Denom, p.Amount.String()} }

// per is what a period costs, for people.
func (m money) per(period time.Duration) string {
	if len(m.rates) == 0 {
		return "nothing"
	}
	if m.pace == nil {
		return "not known yet"
	}
	var parts []string
	for _, r := range m.rates {
		parts = append(parts, quote.Money(quote.Cost(r, *m.pace, period)))
	}
	return strings.Join(parts, " + ")
}

// sentence is what a deployment costs and how long it is paid for, for people.
func (m money) sentence() string {
	switch lasts := m.left(); {
	case len(m.rates) == 0:
		return "it costs nothing yet"
	case lasts == usedUp:
		return "it costs " + m.per(quote.Hour) + " an hour, its money is used up: add some with `croft tenant deposit`"
	default:
		return "it costs " + m.per(quote.Hour) + " an hour, its money lasts " + lasts
	}
}

// usedUp is said of money that lasts no more.
const usedUp = "used up"

// left is how long the money lasts, for people.
func (m money) left() string {
	switch {
	case m.over:
		return "-"
	case m.pace == nil && len(m.rates) > 0:
		return "not known yet"
	case len(m.rates) == 0 || m.lasts.Forever:
		return "for ever"
	case m.lasts.Blocks == 0:
		return usedUp
	}
	return quote.Words(m.lasts.Left)
}

// overview is a deployment as it is shown to programs.
type overview struct {
	deployment
	State string  `json:"state"` // on the chain
	Money money   `json:"money"`
	Ended string  `json:"ended,omitempty"` // why, if its owner did not close it; told by status
	Owed  []price `json:"owed,omitempty"`  // what its providers have not been paid; told by status
	owed  []akash.Price
}

func overviewOf(opts *session.Options, o tenant.Overview, pace *quote.Pace) (overview, error) {
	record := o.Record
	if record == nil {
		record = &tenant.Record{Owner: o.ID.Owner, DSeq: o.ID.DSeq}
	}
	v := overview{deployment: deploymentView(opts, record), State: stateOf(o)}
	v.Leases = []lease{}
	for _, l := range o.Leases {
		id := akash.LeaseIDOf(l.GetLease().GetId())
		p, err := akash.PriceOf(l.GetLease().GetPrice())
		if err != nil {
			return v, err
		}
		v.Leases = append(v.Leases, lease{id.GSeq, id.OSeq, string(id.Provider), viewPrice(p)})
	}
	var err error
	v.Money, err = moneyOf(o, pace)
	return v, err
}

func stateOf(o tenant.Overview) string { return o.Deployment.GetDeployment().GetState().String() }

func newListCommand(o *session.Options) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List your deployments, what they cost and how long they are paid", Args: session.Args(0, 0),
		Example: "  croft tenant ls\n  croft tenant ls --all -o wide",
	}
	t := o.BriefSigning(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "closed ones as well")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		who, c, err := openTenant(t, cmd)
		if err != nil {
			return err
		}
		defer c.Close()
		state := "active"
		if all {
			state = ""
		}
		found, err := who.List(cmd.Context(), state)
		if err != nil {
			return err
		}
		pace := measure(cmd.Context(), c)
		table := session.Table{
			Head: []string{"dseq", "name", "state", "stage", "leases", "cost per hour", "money lasts", "url", "cost per month", "owner"}, Wide: 2,
			None: "no deployments yet; begin one with `croft tenant deploy FILE`",
		}
		views := []overview{}
		for _, d := range found {
			v, err := overviewOf(o, d, pace)
			if err != nil {
				return err
			}
			views = append(views, v)
			table.Row(v.DSeq, v.Name, v.State, v.Stage, strconv.Itoa(len(v.Leases)), v.Money.per(quote.Hour), v.Money.left(), strings.Join(v.URLs, " "), v.Money.per(quote.Month), v.Owner)
		}
		return o.Show(cmd, table, views)
	}
	return cmd
}

func newCostCommand(o *session.Options) *cobra.Command {
	cmd := &cobra.Command{Use: "cost [DEPLOYMENT]", Short: "Tell what a deployment costs and how long its money lasts", Args: session.Args(0, 1)}
	t := o.BriefSigning(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return about(t, cmd, args, func(ctx context.Context, _ *tenant.Tenant, c *client.Client, d tenant.Overview) error {
			v, err := overviewOf(o, d, measure(ctx, c))
			if err != nil {
				return err
			}
			m := v.Money
			var funds []string
			for _, f := range m.funds {
				funds = append(funds, quote.Money(f))
			}
			table := session.Table{Head: []string{"dseq", "per hour", "per day", "per month", "deposited", "lasts"}}
			table.Row(v.DSeq, m.per(quote.Hour), m.per(quote.Day), m.per(quote.Month), strings.Join(funds, " + "), m.left())
			return o.Show(cmd, table, v)
		})
	}
	return cmd
}

// serviceView is one service as `status` shows it.
type serviceView struct {
	Provider  string   `json:"provider"`
	GSeq      uint32   `json:"gseq"`
	OSeq      uint32   `json:"oseq"`
	Service   string   `json:"service"`
	Available int32    `json:"available"`
	Total     int32    `json:"total"`
	URLs      []string `json:"urls"`
	Error     string   `json:"error,omitempty"` // why the provider did not tell
}

func newStatusCommand(o *session.Options) *cobra.Command {
	cmd := &cobra.Command{Use: "status [DEPLOYMENT]", Short: "Show how a deployment is: on the chain, at its providers, its money", Args: session.Args(0, 1)}
	t := o.BriefSigning(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return about(t, cmd, args, func(ctx context.Context, who *tenant.Tenant, c *client.Client, d tenant.Overview) error {
			v, err := overviewOf(o, d, measure(ctx, c))
			if err != nil {
				return err
			}
			if v.Ended, v.owed, err = endOf(ctx, c, d); err != nil {
				return err
			}
			for _, p := range v.owed {
				v.Owed = append(v.Owed, viewPrice(p))
			}
			services := servicesOf(ctx, o, who, d)
			table := session.Table{Head: []string{"service", "ready", "url", "provider"}, None: "it has no lease; `croft tenant deploy --resume --dseq " + v.DSeq + "` waits for bids"}
			if v.State != deploymentv1.Deployment_active.String() {
				table.None = "it is over"
			}
			for _, s := range services {
				if s.Error != "" {
					table.Row("?", "?", "", s.Provider)
					continue
				}
				table.Row(s.Service, fmt.Sprintf("%d/%d", s.Available, s.Total), strings.Join(s.URLs, " "), s.Provider)
			}
			if f := cmd.Flag("output").Value.String(); f == "table" || f == "wide" {
				fmt.Fprintf(cmd.OutOrStdout(), "deployment %s", v.DSeq)
				if v.Name != "" {
					fmt.Fprintf(cmd.OutOrStdout(), " (%s)", v.Name)
				}
				fmt.Fprintf(cmd.OutOrStdout(), " is %s%s\n\n", v.State, v.tail())
				defer tellSilent(cmd, services)
			}
			return o.Show(cmd, table, struct {
				overview
				Services []serviceView `json:"services"`
			}{v, services})
		})
	}
	return cmd
}

// tail goes on after "deployment 7 is closed".
func (v overview) tail() string {
	switch {
	case v.State == deploymentv1.Deployment_active.String():
		return "; " + v.Money.sentence()
	case v.Ended == "":
		return ""
	}
	tail := ": its money was used up"
	var owed []string
	for _, p := range v.owed {
		owed = append(owed, quote.Money(p))
	}
	if len(owed) > 0 {
		tail += ", and it still owes its providers " + strings.Join(owed, " + ")
	}
	return tail
}

// endOf says why a deployment ended, if not by its owner, and what it owes.
func endOf(ctx context.Context, c *client.Client, o tenant.Overview) (ended string, owed []akash.Price, err error) {
	dry := deploymentv1beta4.Group_insufficient_funds
	if !slices.ContainsFunc(o.Deployment.GetGroups(), func(g *deploymentv1beta4.Group) bool { return g.GetState() == dry }) {
		return "", nil, nil
	}
	filters := &marketv1.LeaseFilters{Owner: string(o.ID.Owner), Dseq: o.ID.DSeq, State: marketv1.Lease_insufficient_funds.String()}
	for l, err := range c.Leases(ctx, filters) {
		if err != nil {
			return "", nil, fmt.Errorf("list leases of %s: %w", o.ID, err)
		}
		p, err := akash.PriceOf(l.GetEscrowPayment().GetState().GetUnsettled())
		if err != nil {
			return "", nil, fmt.Errorf("debt of %s: %w", akash.LeaseIDOf(l.GetLease().GetId()), err)
		}
		if p.Amount.Sign() > 0 {
			owed = append(owed, p)
		}
	}
	return dry.String(), quote.SumPrices(owed), nil
}

// tellSilent says below the table which providers did not tell, and why.
func tellSilent(cmd *cobra.Command, services []serviceView) {
	for _, s := range services {
		if s.Error != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "\nprovider %s does not tell how it is: %s\n", s.Provider, brief(s.Error))
		}
	}
}

// brief is the beginning of a long error, on one line.
func brief(s string) string {
	const most = 120 // runes
	if runes := []rune(akash.FirstLine(s)); len(runes) > most {
		return string(runes[:most]) + "… (all of it: -o json)"
	}
	return akash.FirstLine(s)
}

// servicesOf asks each provider. One that does not answer hides no other.
func servicesOf(ctx context.Context, o *session.Options, who *tenant.Tenant, d tenant.Overview) []serviceView {
	views := []serviceView{}
	for _, l := range d.Leases {
		id := akash.LeaseIDOf(l.GetLease().GetId())
		status, err := leaseStatus(ctx, who, id)
		if err != nil {
			views = append(views, serviceView{Provider: string(id.Provider), GSeq: id.GSeq, OSeq: id.OSeq, Service: "?", URLs: []string{}, Error: err.Error()})
			continue
		}
		for _, name := range sortedKeys(status.Services) {
			s := status.Services[name]
			v := serviceView{Provider: string(id.Provider), GSeq: id.GSeq, OSeq: id.OSeq, Service: name, Available: s.Available, Total: s.Total, URLs: []string{}}
			for _, uri := range s.URIs {
				v.URLs = append(v.URLs, o.Link(uri))
			}
			for _, p := range status.Ports[name] {
				v.URLs = append(v.URLs, fmt.Sprintf("%s://%s:%d", strings.ToLower(p.Proto), p.Host, p.ExternalPort))
			}
			views = append(views, v)
		}
	}
	return views
}

func leaseStatus(ctx context.Context, who *tenant.Tenant, id akash.LeaseID) (gatewayclient.LeaseStatus, error) {
	g, err := who.Gateway(ctx, id.Provider)
	if err != nil {
		return gatewayclient.LeaseStatus{}, err
	}
	defer g.Close()
	return g.LeaseStatus(ctx, id)
}

// atLeases opens the gateways of a deployment's leases and closes them after do.
func atLeases(ctx context.Context, who *tenant.Tenant, d tenant.Overview, do func([]session.At) error) error {
	if len(d.Leases) == 0 {
		return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("deployment %d has no active lease", d.ID.DSeq), Remedy: fmt.Sprintf("`croft tenant deploy --resume --dseq %d` waits for bids", d.ID.DSeq)}
	}
	var leases []session.At
	defer func() {
		for _, at := range leases {
			at.Gateway.Close()
		}
	}()
	for _, l := range d.Leases {
		id := akash.LeaseIDOf(l.GetLease().GetId())
		g, err := who.Gateway(ctx, id.Provider)
		if err != nil {
			return err
		}
		leases = append(leases, session.At{Gateway: g, Lease: id})
	}
	return do(leases)
}

func newLogsCommand(o *session.Options) *cobra.Command {
	var s session.StreamFlags
	cmd := &cobra.Command{Use: "logs [DEPLOYMENT]", Short: "Show what a deployment's services write", Args: session.Args(0, 1), Example: "  croft tenant logs -f"}
	t := o.BriefSigning(cmd)
	s.Add(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return about(t, cmd, args, func(ctx context.Context, who *tenant.Tenant, _ *client.Client, d tenant.Overview) error {
			return atLeases(ctx, who, d, func(leases []session.At) error { return o.Logs(cmd, s, leases) })
		})
	}
	return cmd
}

func newEventsCommand(o *session.Options) *cobra.Command {
	var s session.StreamFlags
	cmd := &cobra.Command{Use: "events [DEPLOYMENT]", Short: "Show what happens to a deployment's services", Args: session.Args(0, 1)}
	t := o.BriefSigning(cmd)
	s.Add(cmd, false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return about(t, cmd, args, func(ctx context.Context, who *tenant.Tenant, _ *client.Client, d tenant.Overview) error {
			return atLeases(ctx, who, d, func(leases []session.At) error { return o.Events(cmd, s, leases) })
		})
	}
	return cmd
}

func newShellCommand(o *session.Options) *cobra.Command {
	var s session.ShellFlags
	var service string
	cmd := &cobra.Command{
		Use: "shell DEPLOYMENT [COMMAND [ARGUMENT]...]", Short: "Run a command in a service, or a shell", Args: session.Args(1, -1),
		Long: `Run a command in a service, or a shell. croft ends with the command's exit code.
Flags of croft stand before the command, or before --; what follows is its own.`,
		Example: `  croft tenant shell 7
  croft tenant shell 7 --service web -- ls -l
  croft tenant shell --service db 7 pg_dump app > app.sql`,
	}
	t := o.BriefSigning(cmd)
	s.Add(cmd)
	cmd.Flags().StringVar(&service, "service", "", "name of the service (default: the only one)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		command, err := s.Command(cmd, args[1:])
		if err != nil {
			return err
		}
		return about(t, cmd, args[:1], func(ctx context.Context, who *tenant.Tenant, _ *client.Client, d tenant.Overview) error {
			return atLeases(ctx, who, d, func(leases []session.At) error {
				at, name, err := serviceAt(ctx, leases, service)
				if err != nil {
					return err
				}
				return s.Shell(cmd, at, name, command)
			})
		})
	}
	return cmd
}

// serviceAt finds the lease that a service runs under; without a name, the only
// service there is.
func serviceAt(ctx context.Context, leases []session.At, want string) (session.At, string, error) {
	var at session.At
	var names []string
	for _, l := range leases {
		status, err := l.Gateway.LeaseStatus(ctx, l.Lease)
		if err != nil {
			return at, "", err
		}
		for _, name := range sortedKeys(status.Services) {
			names = append(names, name)
			if name == want || want == "" {
				at = l
			}
		}
	}
	switch {
	case want == "" && len(names) == 1:
		return at, names[0], nil
	case want == "" || at.Gateway == nil:
		return at, "", session.Usage(fmt.Errorf("there is no one service %q", want), "say with --service which: "+strings.Join(names, ", "))
	}
	return at, want, nil
}

func newUpdateCommand(o *session.Options) *cobra.Command {
	var answer time.Duration
	cmd := &cobra.Command{
		Use: "update DEPLOYMENT FILE", Short: "Run a changed SDL file in the place of the old one", Args: session.Args(2, 2),
		Long: `Run a changed SDL file in the place of the old one: images, commands, environment.

Resources, counts, open ports, prices and placements are fixed for the life of a
deployment; the command says what must not change. It can be repeated after any
failure.`,
		Example: "  croft tenant update 7 deploy.yml",
	}
	t := o.BriefSigning(cmd)
	cmd.Flags().DurationVar(&answer, "answer-timeout", 10*time.Minute, "how long to wait until the workload answers")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, err := session.ReadSDL(cmd, args[1])
		if err != nil {
			return err
		}
		return about(t, cmd, args[:1], func(ctx context.Context, who *tenant.Tenant, _ *client.Client, d tenant.Overview) error {
			screen := &screen{w: cmd.ErrOrStderr(), live: session.IsTerminal(cmd.ErrOrStderr())}
			record, err := who.Update(ctx, d.ID, file, tenant.DeployConfig{AnswerTimeout: answer, Progress: screen.show})
			if err != nil {
				return err
			}
			return report(o, cmd, record)
		})
	}
	return cmd
}

func newCloseCommand(o *session.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "close [DEPLOYMENT]", Short: "Close a deployment: all ends, the rest of the deposit returns", Args: session.Args(0, 1),
		Example: "  croft tenant close 7 --yes",
	}
	t := o.BriefSigning(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return about(t, cmd, args, func(ctx context.Context, who *tenant.Tenant, _ *client.Client, d tenant.Overview) error {
			if err := session.Confirm(cmd, t.Yes, fmt.Sprintf("Close deployment %d, with what it stores?", d.ID.DSeq)); err != nil {
				return err
			}
			record, err := who.Close(ctx, d.ID, (&screen{w: cmd.ErrOrStderr()}).show)
			if err != nil {
				return err
			}
			return report(o, cmd, record)
		})
	}
	return cmd
}

func newDepositCommand(o *session.Options) *cobra.Command {
	var from session.DepositFlags
	cmd := &cobra.Command{
		Use: "deposit [DEPLOYMENT] AMOUNT", Short: "Add to what a deployment is paid from", Args: session.Args(1, 2),
		Example: "  croft tenant deposit 7 5act",
	}
	t := o.BriefSigning(cmd)
	from.AddSources(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		amount := args[len(args)-1]
		if _, err := session.ParseCoin("amount", amount); err != nil {
			return err
		}
		return about(t, cmd, args[:len(args)-1], func(ctx context.Context, who *tenant.Tenant, c *client.Client, d tenant.Overview) error {
			msg, err := session.DepositMsg(who.Owner(), d.ID, amount, from)
			if err != nil {
				return err
			}
			if err := session.Confirm(cmd, t.Yes, fmt.Sprintf("Add %s to deployment %d?", amount, d.ID.DSeq)); err != nil {
				return err
			}
			call, err := t.Open(cmd, nil)
			if err != nil {
				return err
			}
			defer call.Chain.Close()
			if _, err := call.Send(ctx, msg); err != nil {
				return err
			}
			after, err := who.Look(ctx, d.ID)
			if err != nil {
				return err
			}
			v, err := overviewOf(o, after, measure(ctx, c))
			if err != nil {
				return err
			}
			table := session.Table{Head: []string{"dseq", "added", "lasts"}}
			table.Row(v.DSeq, amount, v.Money.left())
			return o.Show(cmd, table, v)
		})
	}
	return cmd
}

// fitView is a provider as `deploy --dry-run` shows it.
type fitView struct {
	Provider string   `json:"provider"`
	Host     string   `json:"host"`
	Fits     bool     `json:"fits"`
	Groups   []string `json:"groups"`
	Lacks    []string `json:"lacks"`
}

// fitsOf adds what the flags ask for to what the chain does. What a provider
// would bid is not known; that it must bid in the denom of the file is.
func fitsOf(want tenant.Want, groups []*deploymentv1beta4.GroupSpec, reports []quote.Report) []fitView {
	views := make([]fitView, 0, len(reports))
	for _, r := range reports {
		offer := tenant.Offer{ID: akash.BidID{Provider: account.Address(r.Provider.GetOwner())}, Provider: r.Provider}
		v := fitView{r.Provider.GetOwner(), offer.Host(), r.Fits(), append([]string{}, r.Groups...), append([]string{}, r.Lacks...)}
		if lack := (tenant.Want{Provider: want.Provider, Attributes: want.Attributes}).Accepts(offer); lack != "" {
			v.Fits, v.Groups, v.Lacks = false, []string{}, append(v.Lacks, lack)
		}
		for _, g := range groups {
			denom := g.GetResources()[0].GetPrice().GetDenom()
			if want.MaxPrice.Denom != "" && denom != want.MaxPrice.Denom {
				v.Fits, v.Lacks = false, append(v.Lacks, fmt.Sprintf("placement %q: price is in %s, not in %s", g.GetName(), denom, want.MaxPrice.Denom))
				v.Groups = slices.DeleteFunc(v.Groups, func(name string) bool { return name == g.GetName() })
			}
		}
		views = append(views, v)
	}
	slices.SortStableFunc(views, func(a, b fitView) int {
		switch {
		case a.Fits == b.Fits:
			return 0
		case a.Fits:
			return -1
		}
		return 1
	})
	return views
}

// tellFit says which providers could bid on a file. It needs no key.
func (d *deployOptions) tellFit(cmd *cobra.Command, file *sdl.SDL) error {
	if file == nil {
		return session.Usage(errors.New("--dry-run needs an SDL file"), "usage: "+cmd.UseLine())
	}
	want, err := d.want()
	if err != nil {
		return err
	}
	c, err := d.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	providers, err := all(c.Providers(cmd.Context()))
	if err != nil {
		return err
	}
	audits, err := all(c.AuditedAttributes(cmd.Context(), "", ""))
	if err != nil {
		return err
	}
	table := session.Table{Head: []string{"provider", "fits", "host", "what it lacks"}, None: "no provider is registered on this chain"}
	views := fitsOf(want, file.Groups(), quote.Fit(file.Groups(), providers, audits))
	fits := 0
	for _, v := range views {
		yes := "no"
		if v.Fits {
			yes = "yes"
			fits++
		}
		table.Row(v.Provider, yes, v.Host, strings.Join(v.Lacks, "; "))
	}
	if err := d.Show(cmd, table, views); err != nil {
		return err
	}
	if fits == 0 {
		return &croft.Error{Kind: croft.KindNotFound, Err: errors.New("no provider fits"), Remedy: "ask for less in placement (attributes, signedBy), storage classes, GPU models, or in --provider, --attribute and --max-price"}
	}
	return nil
}
