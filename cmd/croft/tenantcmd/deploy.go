package tenantcmd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

// deployOptions are the flags of `tenant deploy`.
type deployOptions struct {
	*session.TxOptions
	deposit    session.DepositFlags
	dseq       uint64
	name       string
	provider   string
	attributes map[string]string
	maxPrice   string
	timeout    time.Duration
	answer     time.Duration
	resume     bool
	another    bool
	detach     bool
	cleanUp    bool
	dryRun     bool
}

func newDeployCommand(o *session.Options) *cobra.Command {
	d := &deployOptions{}
	cmd := &cobra.Command{
		Use:   "deploy FILE",
		Short: "Run what an SDL file describes, from nothing to a URL",
		Long: `Run what an SDL file describes, from nothing to a URL.

Puts the deployment on the chain with its deposit, shows the bids as they come,
accepts one for each placement, sends the manifest to the providers and waits
until the workload answers. At a terminal you choose the bid; with --yes the
cheapest one that suits is taken.

Each step is written down before it is done. Whatever ends the command, a crash,
Ctrl-C, a chain or provider that is away: the same command, or --resume, goes on
where it was. Nothing is paid twice. --dry-run sends nothing and tells which
providers fit, and what the others lack.`,
		Example: `  croft tenant deploy deploy.yml
  croft tenant deploy deploy.yml --dry-run
  croft tenant deploy deploy.yml --provider region=eu-west --max-price 100uact --yes
  croft tenant deploy --resume`,
		Args: session.Args(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd, args) },
	}
	d.TxOptions = o.BriefSigning(cmd)
	d.deposit.Add(cmd, "5000000 in the denom of the prices")
	f := cmd.Flags()
	f.Uint64Var(&d.dseq, "dseq", 0, "number for the deployment (default: the chain's height); with --resume: which one")
	f.StringVar(&d.name, "name", "", "what you call it (default: the file's name)")
	f.StringVar(&d.provider, "provider", "", "take only this provider: an address, a host name, or KEY=VALUE of an attribute")
	f.StringToStringVar(&d.attributes, "attribute", nil, "take only providers with this attribute, KEY=VALUE; may be repeated")
	f.StringVar(&d.maxPrice, "max-price", "", "pay at most this for each block and lease, like 100uact (default: what the file says)")
	f.DurationVar(&d.timeout, "timeout", 2*time.Minute, "how long to wait for bids")
	f.DurationVar(&d.answer, "answer-timeout", 10*time.Minute, "how long to wait until the workload answers")
	f.BoolVar(&d.resume, "resume", false, "go on with a deployment that was begun")
	f.BoolVar(&d.another, "another", false, "begin a new deployment even if one of the same file is unfinished")
	f.BoolVar(&d.detach, "detach", false, "end as soon as the providers have the manifest")
	f.BoolVar(&d.cleanUp, "close-on-failure", false, "close the deployment, which returns its deposit, if it does not come to run")
	f.BoolVar(&d.dryRun, "dry-run", false, "send nothing; tell which providers fit")
	return cmd
}

// openTenant makes the tenant that a command acts for. The caller closes the
// client.
func openTenant(t *session.TxOptions, cmd *cobra.Command) (*tenant.Tenant, *client.Client, error) {
	call, err := t.Open(cmd, nil)
	if err != nil {
		return nil, nil, err
	}
	granter, err := t.Granter()
	if err != nil {
		return nil, nil, err
	}
	store, err := openStore(t.Options)
	if err != nil {
		return nil, nil, err
	}
	dial, err := t.Dialer()
	if err != nil {
		return nil, nil, err
	}
	visitor, err := t.Visitor()
	if err != nil {
		return nil, nil, err
	}
	who, err := tenant.New(tenant.Config{Chain: call.Chain, Signer: call.Key, Store: store, FeeGranter: granter, Dial: dial, HTTP: visitor})
	return who, call.Chain, err
}

func openStore(o *session.Options) (*tenant.Store, error) {
	dir, err := o.Dir()
	if err != nil {
		return nil, err
	}
	return tenant.OpenStore(filepath.Join(dir, "deployments"))
}

func (d *deployOptions) run(cmd *cobra.Command, args []string) error {
	if err := d.CheckFormat(cmd); err != nil {
		return err
	}
	if d.resume == (len(args) == 1) {
		return session.Usage(errors.New("croft tenant deploy takes either an SDL file or --resume"), "usage: "+cmd.UseLine())
	}
	var file *sdl.SDL
	var err error
	if len(args) == 1 {
		if file, err = session.ReadSDL(cmd, args[0]); err != nil {
			return err
		}
		if d.name == "" {
			d.name = strings.TrimSuffix(filepath.Base(args[0]), filepath.Ext(args[0]))
		}
	}
	if d.dryRun {
		return d.tellFit(cmd, file)
	}
	want, err := d.want()
	if err != nil {
		return err
	}
	who, c, err := openTenant(d.TxOptions, cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	record, err := d.plan(cmd, who, c, file)
	if err != nil {
		return err
	}
	screen := &screen{w: cmd.ErrOrStderr(), live: session.IsTerminal(cmd.ErrOrStderr())}
	cfg := tenant.DeployConfig{
		BidTimeout: d.timeout, AnswerTimeout: d.answer, CloseOnFailure: d.cleanUp, Detach: d.detach,
		Progress: screen.show, Choose: tenant.Cheapest(want),
	}
	if !d.Yes {
		cfg.Choose = ask(cmd, screen, want)
	}
	record, err = who.Deploy(cmd.Context(), record.ID(), cfg)
	screen.end()
	if err != nil {
		return resumable(err, record)
	}
	return report(d.Options, cmd, record)
}

// want is which bids suit.
func (d *deployOptions) want() (tenant.Want, error) {
	want := tenant.Want{Provider: d.provider, Attributes: d.attributes}
	if d.maxPrice != "" {
		var err error
		if want.MaxPrice, err = session.ParsePrice("--max-price", d.maxPrice); err != nil {
			return want, err
		}
	}
	return want, nil
}

// plan finds the deployment to go on with, or plans a new one after asking.
func (d *deployOptions) plan(cmd *cobra.Command, who *tenant.Tenant, c *client.Client, file *sdl.SDL) (*tenant.Record, error) {
	if d.resume {
		return d.unfinished(who, c)
	}
	deposit, err := d.deposit.Deposit(nil)
	if err != nil {
		return nil, err
	}
	cfg := tenant.PlanConfig{Name: d.name, DSeq: d.dseq, Deposit: deposit.GetAmount(), Sources: deposit.GetSources(), Another: d.another}
	what := "5000000" + file.Groups()[0].GetResources()[0].GetPrice().GetDenom() // as Plan chooses
	if cfg.Deposit != nil {
		what = cfg.Deposit.GetAmount() + cfg.Deposit.GetDenom()
	}
	if err := session.Confirm(cmd, d.Yes, fmt.Sprintf("Deploy %s as %s, with a deposit of %s?", d.name, who.Owner(), what)); err != nil {
		return nil, err
	}
	return who.Plan(cmd.Context(), file, cfg)
}

// unfinished is the deployment that --resume means.
func (d *deployOptions) unfinished(who *tenant.Tenant, c *client.Client) (*tenant.Record, error) {
	store, err := openStore(d.Options)
	if err != nil {
		return nil, err
	}
	records, err := store.List(c.ChainID(), who.Owner())
	if err != nil {
		return nil, err
	}
	var open []*tenant.Record
	var numbers []string
	for _, r := range records {
		if r.DSeq == d.dseq {
			return r, nil
		}
		if d.dseq == 0 && !r.Stage.Settled() {
			open = append(open, r)
			numbers = append(numbers, strconv.FormatUint(r.DSeq, 10))
		}
	}
	switch len(open) {
	case 1:
		return open[0], nil
	case 0:
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: errors.New("there is no unfinished deployment to go on with"), Remedy: "`croft tenant ls` shows your deployments"}
	}
	return nil, session.Usage(errors.New("there are several unfinished deployments"), "say with --dseq which: "+strings.Join(numbers, ", "))
}

// resumable says how to go on after a failure.
func resumable(err error, r *tenant.Record) error {
	if r == nil || r.Stage == tenant.Closed {
		return err
	}
	goOn := fmt.Sprintf("`croft tenant deploy --resume --dseq %d` goes on with it", r.DSeq)
	if errors.Is(err, context.Canceled) {
		return &croft.Error{Err: fmt.Errorf("stopped; deployment %d is %s", r.DSeq, r.Stage), Remedy: goOn}
	}
	if e, ok := errors.AsType[*croft.Error](err); ok && e.Remedy != "" {
		return err
	}
	return &croft.Error{Kind: croft.KindOf(err), Err: err, Remedy: goOn}
}

// report is what a deploy prints in the end.
func report(o *session.Options, cmd *cobra.Command, r *tenant.Record) error {
	t := session.Table{Head: []string{"dseq", "name", "stage", "url"}}
	for _, url := range append(urls(o, r), "")[:max(1, len(r.URIs))] {
		t.Row(strconv.FormatUint(r.DSeq, 10), r.Name, string(r.Stage), url)
	}
	return o.Show(cmd, t, deploymentView(o, r))
}

// urls are where a deployment answers.
func urls(o *session.Options, r *tenant.Record) []string {
	all := make([]string, 0, len(r.URIs))
	for _, uri := range r.URIs {
		all = append(all, o.Link(uri))
	}
	return all
}

// deployment is a deployment as it is shown to programs.
type deployment struct {
	DSeq   string   `json:"dseq"`
	Owner  string   `json:"owner"`
	Name   string   `json:"name"`
	Stage  string   `json:"stage"`
	Reason string   `json:"reason,omitempty"`
	URLs   []string `json:"urls"`
	Leases []lease  `json:"leases"`
}

type lease struct {
	GSeq     uint32 `json:"gseq"`
	OSeq     uint32 `json:"oseq"`
	Provider string `json:"provider"`
	Price    price  `json:"price"`
}

type price struct {
	Denom  string `json:"denom"`
	Amount string `json:"amount"` // for each block
}

func deploymentView(o *session.Options, r *tenant.Record) deployment {
	v := deployment{
		DSeq: strconv.FormatUint(r.DSeq, 10), Owner: string(r.Owner), Name: r.Name, Stage: string(r.Stage), Reason: r.Reason,
		URLs: urls(o, r), Leases: []lease{},
	}
	for _, l := range r.Leases {
		v.Leases = append(v.Leases, lease{l.GSeq, l.OSeq, string(l.Provider), price{l.Denom, l.Amount}})
	}
	return v
}

// ask lets a person choose among the bids that suit.
func ask(cmd *cobra.Command, screen *screen, want tenant.Want) tenant.Choose {
	return func(ctx context.Context, c tenant.Choice) ([]akash.BidID, error) {
		if c.Waited < 3*time.Second { // let the others in
			return nil, nil
		}
		var picks []akash.BidID
		for _, gseq := range c.Groups {
			var offers []tenant.Offer
			for _, o := range c.Of(gseq) {
				if want.Accepts(o) == "" {
					offers = append(offers, o)
				}
			}
			if len(offers) == 0 {
				return nil, nil
			}
			pick, err := pickOffer(cmd, screen, offers)
			if err != nil || pick == nil {
				return nil, err
			}
			picks = append(picks, pick.ID)
		}
		return picks, nil
	}
}

// pickOffer asks for the number of an offer; nil means to look again.
func pickOffer(cmd *cobra.Command, screen *screen, offers []tenant.Offer) (*tenant.Offer, error) {
	if !session.IsTerminal(cmd.InOrStdin()) {
		return nil, &croft.Error{Kind: croft.KindRefused, Err: errors.New("there are bids, and nobody to choose one"), Remedy: "pass --yes to take the cheapest"}
	}
	screen.freeze(offerLines(offers))
	fmt.Fprintf(screen.w, "Which bid for %s? Its number, r to look again, or q to stop [1]: ", offers[0].Group)
	line, err := session.Await(cmd, func() (string, error) { return bufio.NewReader(cmd.InOrStdin()).ReadString('\n') }, func() {})
	if err != nil {
		return nil, err
	}
	switch line = strings.TrimSpace(line); line {
	case "":
		return &offers[0], nil
	case "r":
		return nil, nil
	case "q":
		return nil, &croft.Error{Kind: croft.KindRefused, Err: errors.New("no bid was chosen"), Remedy: "deploy it again to choose one, or close the deployment to get the deposit back"}
	}
	n, err := strconv.Atoi(line)
	if err != nil || n < 1 || n > len(offers) {
		fmt.Fprintf(screen.w, "%q is not a number from 1 to %d.\n", line, len(offers))
		return nil, nil
	}
	return &offers[n-1], nil
}

// offerLines are the bids as a table, the cheapest first.
func offerLines(offers []tenant.Offer) []string {
	t := session.Table{Head: []string{"#", "provider", "price per block", "placement", "address"}}
	for i, o := range offers {
		t.Row(strconv.Itoa(i+1), o.Host(), amount(o.Price), o.Group, string(o.ID.Provider))
	}
	return strings.Split(strings.TrimRight(t.Text(false), "\n"), "\n")
}

// amount is a price without needless zeros.
func amount(p akash.Price) string { return short(p.Amount.String(), 0) + " " + p.Denom }

// screen shows how a deployment gets on: each step on a line, bids in a table
// that on a terminal stays in its place.
type screen struct {
	w     io.Writer
	live  bool
	last  string
	table int // lines of the table under the cursor that may be overwritten
}

func (s *screen) show(p tenant.Progress) {
	line := p.Step
	if p.Retry != nil {
		line += ": " + p.Retry.Error()
	}
	var waiting []string
	for i, l := range p.Leases {
		if text := l.Summary(); text != "" && i < len(p.Record.Leases) && !strings.Contains(line, text) {
			waiting = append(waiting, text)
		}
	}
	if len(waiting) > 0 {
		line += " (" + strings.Join(waiting, "; ") + ")"
	}
	if line != s.last {
		s.clear()
		s.last = line
		fmt.Fprintf(s.w, "%s  %s\n", time.Now().Format(time.TimeOnly), line)
	}
	if p.Offers != nil {
		s.draw(offerLines(p.Offers))
	}
}

// draw puts lines where the last ones were.
func (s *screen) draw(lines []string) {
	s.clear()
	for _, line := range lines {
		fmt.Fprintln(s.w, "  "+line)
	}
	if s.live {
		s.table = len(lines)
	}
}

// clear takes the lines of the last draw away.
func (s *screen) clear() {
	if s.table > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\x1b[J", s.table)
	}
	s.table = 0
}

// freeze draws lines that stay.
func (s *screen) freeze(lines []string) {
	s.draw(lines)
	s.table = 0
}

// end keeps what is drawn.
func (s *screen) end() { s.table = 0 }
