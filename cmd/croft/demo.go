package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/images/media"
	"github.com/croft-cloud/croft/internal/rig"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

func newDemoCommand() *cobra.Command {
	var check bool
	var out string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a box that earns: from an empty disk to a tenant's web page",
		Long: `Show a box that earns, step by step: an image is built and boots in a virtual
machine behind a router; a chain, a relay, a fleet and a registry of OCI images
stand around it on this machine; the box enrols and is claimed on a phone, becomes
a provider, and a tenant leases it.

All parts are the real ones; only the world is small, and its money is play
money. Run it in the repository. It takes some minutes: the processor of the box
is emulated. The world stays for you to look at until Ctrl-C.`,
		Example: `  croft demo
  croft demo --check      # close the lease and leave when every step was seen`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			unlock, err := lockDemo(out)
			if err != nil {
				return err
			}
			defer unlock()
			d := &demo{out: out, dir: filepath.Join(out, "demo"), w: &lastWrite{w: cmd.OutOrStdout()}}
			defer func() { err = errors.Join(err, d.close()) }()
			if err := d.play(cmd.Context(), d.story()); err != nil {
				return err
			}
			if check {
				return d.play(cmd.Context(), d.ending())
			}
			d.invite()
			<-cmd.Context().Done()
			fmt.Fprintln(d.w, "\nSwitching all of it off.")
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "end after the last step; exit 0 only if every step was seen")
	cmd.Flags().StringVar(&out, "out", "build", "folder for image, programs and machine")
	return cmd
}

// What the box of the demo is. /perm must hold the workloads' disks and stay
// largely free; what is not written takes no place here.
const (
	demoMemory = 3 << 30
	demoDisk   = 24 << 30
)

// lockDemo makes sure that nobody else's demo is swept away.
func lockDemo(out string) (unlock func(), err error) {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, fmt.Errorf("make folder for the demo: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(out, "demo.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the demo: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("a demo runs in %s already: %w", out, err),
			Remedy: "end it, or choose another folder with --out",
		}
	}
	return func() { f.Close() }, nil
}

// demo is the story of the README, step by step.
type demo struct {
	out, dir string
	w        *lastWrite
	steps    int

	image   string
	log     *os.File // of the world
	world   *outside.World
	machine *rig.QEMU
	page    string // URL of the owner page
	power   time.Time
	account account.Address // of the box
	dseq    string
	url     string // of the workload
}

// step is one line of the story.
type step struct {
	what string
	do   func(context.Context) (string, error)
}

func (d *demo) story() []step {
	return []step{
		{"image and programs are built", d.build},
		{"around the box: a relay and a registry", d.surround},
		{"a fleet begins, to look after boxes", d.startFleet},
		{"the box is switched on, behind a router", d.switchOn},
		{"its owner page answers", d.waitPage},
		{"it has enrolled with the fleet by itself", d.waitEnrolled},
		{"its owner scans the code: \"This is mine\"", d.claim},
		{"it finds itself healthy and keeps this version", d.waitHealthy},
		{"it has made itself an account", d.waitAccount},
		{"a chain begins, where an auditor vouches for it", d.beginChain},
		{"it registers as a provider: open for work", d.waitOpen},
		{"a tenant deploys " + filepath.Base(outside.DeployFile), d.deploy},
		{"the workload answers through the relay", d.visit},
		{"the tenant reads its log and runs a command in it", d.lookInside},
		{"the owner sees that the box earns", d.waitWorking},
	}
}

func (d *demo) ending() []step {
	return []step{
		{"the tenant closes the deployment", d.closeDeployment},
		{"all that it had on the box is free again", d.waitFree},
	}
}

func (d *demo) play(ctx context.Context, steps []step) error {
	for _, s := range steps {
		d.steps++
		begin := time.Now()
		said, err := d.withSignsOfLife(ctx, s)
		if ctx.Err() != nil {
			return fmt.Errorf("step %d, %s: stopped", d.steps, s.what)
		}
		if err != nil {
			return fmt.Errorf("step %d, %s: %w", d.steps, s.what, err)
		}
		fmt.Fprintf(d.w, "%2d  %-52s %6.1f s  %s\n", d.steps, s.what, time.Since(begin).Seconds(), said)
	}
	return nil
}

// withSignsOfLife prints a line whenever nothing was heard of s for five seconds.
func (d *demo) withSignsOfLife(ctx context.Context, s step) (string, error) {
	begin := time.Now()
	done, quiet := make(chan struct{}), make(chan struct{})
	defer func() { close(done); <-quiet }()
	go func() {
		defer close(quiet)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if d.w.silence() >= 5*time.Second {
					fmt.Fprintf(d.w, "    … %s, %d s\n", s.what, int(time.Since(begin).Seconds()))
				}
			}
		}
	}()
	d.w.reset()
	return s.do(ctx)
}

// close ends all that the demo began.
func (d *demo) close() error {
	var errs []error
	if d.machine != nil {
		errs = append(errs, d.machine.Close())
	}
	if d.world != nil {
		errs = append(errs, d.world.Close(), d.log.Close())
	}
	return errors.Join(errs...)
}

func (d *demo) build(ctx context.Context) (string, error) {
	if err := errors.Join(os.RemoveAll(d.dir), os.MkdirAll(d.dir, 0o755)); err != nil {
		return "", fmt.Errorf("make folder for the demo: %w", err)
	}
	board, err := boards.Get("uefi-x86")
	if err != nil {
		return "", err
	}
	result, err := build.Build(ctx, build.Options{Board: board, Source: ".", Out: d.out, Progress: d.tell})
	if err != nil {
		return "", err
	}
	d.image = result.Image
	d.tell("building the chain's program")
	if err := outside.Build(ctx, ".", "./cmd/croft-chaind", d.chaind()); err != nil {
		return "", err
	}
	if err := d.buildFleet(ctx); err != nil {
		return "", err
	}
	return "version " + string(result.Release.Version), keepSelf(d.program())
}

// chaind is the chain's program.
func (d *demo) chaind() string { return filepath.Join(d.dir, "croft-chaind") }

// program is this program, where a person finds it.
func (d *demo) program() string { return filepath.Join(d.dir, "croft") }

// keepSelf copies this program, which may lie in go's cache, to path.
func keepSelf(path string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		return fmt.Errorf("copy this program: %w", err)
	}
	return os.WriteFile(path, raw, 0o755)
}

// tell prints a line below the step that is being done.
func (d *demo) tell(line string) { fmt.Fprintln(d.w, "    "+line) }

func (d *demo) surround(ctx context.Context) (_ string, err error) {
	if d.log, err = os.Create(filepath.Join(d.dir, "world.log")); err != nil {
		return "", fmt.Errorf("make the world's log: %w", err)
	}
	d.world, err = outside.New(outside.Config{
		Dir: filepath.Join(d.dir, "world"), Chaind: d.chaind(), Fleetd: d.fleetd(), Log: slog.New(slog.NewTextHandler(d.log, nil)),
	})
	if err != nil {
		return "", errors.Join(err, d.log.Close())
	}
	return "with the tenant's OCI image in it", d.world.PutWeb(ctx, ".")
}

// switchOn starts a box from a copy of the image that knows which network it
// joins.
func (d *demo) switchOn(ctx context.Context) (string, error) {
	image := filepath.Join(d.dir, "box.img")
	if said, err := exec.CommandContext(ctx, "cp", "--sparse=always", d.image, image).CombinedOutput(); err != nil {
		return "", fmt.Errorf("copy the image: %w: %s", err, said)
	}
	if err := media.SetNetwork(image, d.world.Network(outside.FromGuest)); err != nil {
		return "", err
	}
	machine, err := rig.NewQEMU(rig.Config{
		Dir:      filepath.Join(d.dir, "box"),
		Memory:   demoMemory,
		Disks:    []rig.Disk{{Path: image, Overlay: true, Size: demoDisk}},
		Forwards: []rig.Forward{{Guest: ownerPagePort}},
	})
	if err != nil {
		return "", err
	}
	d.machine = machine
	address, err := machine.Address(ownerPagePort)
	if err != nil {
		return "", err
	}
	d.page, d.power = "http://"+address+"/", time.Now()
	return fmt.Sprintf("%d GiB of memory, a disk of %d GiB", demoMemory>>30, demoDisk>>30), machine.PowerOn(ctx)
}

// boxStatus is the part of the owner page's status.json that the demo looks at.
// Importing agent/ownerpage would link all of its modules into croft.
type boxStatus struct {
	Name     string     `json:"name"`
	Slot     croft.Slot `json:"slot"`
	State    string     `json:"state"`
	Problems []string   `json:"problems"`
	Network  string     `json:"network"`
	Hosting  boxWork    `json:"hosting"`
	Fleet    boxFleet   `json:"fleet"`
}

// boxWork is what a box says of itself as a provider.
type boxWork struct {
	State    string          `json:"state"`
	Account  account.Address `json:"account"`
	Tenants  int             `json:"tenants"`
	Line     string          `json:"line"`
	Sentence string          `json:"sentence"`
	Month    []boxCoin       `json:"month"`
	Leased   boxRoom         `json:"leased"`
	Offered  boxRoom         `json:"offered"`
}

type boxCoin struct {
	Denom  string `json:"denom"`
	Amount int64  `json:"amount"`
}

type boxRoom struct {
	CPU     int64 `json:"cpu_millis"`
	Memory  int64 `json:"memory_bytes"`
	Storage int64 `json:"storage_bytes"`
}

func (s boxStatus) healthy() bool { return s.State == "healthy" && s.Network == "online" }

// open reports whether tenants may come.
func (s boxStatus) open() bool { return s.Hosting.State == "open" }

// earns reports whether the box works for one tenant and knows for how much.
func (s boxStatus) earns() bool {
	return s.Hosting.State == "working" && s.Hosting.Tenants == 1 && len(s.Hosting.Month) > 0
}

// free reports whether nothing of the box is in use.
func (s boxStatus) free() bool {
	return s.open() && s.Hosting.Tenants == 0 && s.Hosting.Leased == (boxRoom{}) && s.Hosting.Offered == (boxRoom{})
}

// ask fetches a page of the owner page.
func (d *demo) ask(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.page+path, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	const most = 1 << 20
	return io.ReadAll(io.LimitReader(resp.Body, most))
}

// waitFor asks the page until it says what is wanted, or a time is over.
func (d *demo) waitFor(ctx context.Context, patience time.Duration, want func(boxStatus) bool) (boxStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var s boxStatus
	for {
		raw, err := d.ask(ctx, "status.json")
		if err == nil {
			var now boxStatus
			if err = json.Unmarshal(raw, &now); err == nil {
				s = now
				if want(s) {
					return s, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			if s.Name == "" {
				return s, d.missed(fmt.Errorf("the owner page did not answer in %v: %w", patience, err))
			}
			return s, d.missed(fmt.Errorf("the box did not get there in %v: it is %s, network %s, work %q; %s",
				patience, s.State, s.Network, s.Hosting.State, strings.Join(append(s.Problems, s.Hosting.Sentence), " ")))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// missed says where to look after a failure of the box.
func (d *demo) missed(err error) error {
	remedy := fmt.Sprintf("what the box said is in %s, what the relay saw in %s; a machine that is busy with other work may be too slow",
		filepath.Join(d.dir, "box", "serial.log"), filepath.Join(d.dir, "world.log"))
	return &croft.Error{Kind: croft.KindOf(err), Err: err, Remedy: remedy}
}

func (d *demo) waitPage(ctx context.Context) (string, error) {
	_, err := d.waitFor(ctx, 5*time.Minute, func(boxStatus) bool { return true })
	return fmt.Sprintf("%s  (%.0f s after power-on)", d.page, time.Since(d.power).Seconds()), err
}

func (d *demo) waitHealthy(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, 5*time.Minute, boxStatus.healthy)
	return fmt.Sprintf("%s, slot %s", s.Name, s.Slot), err
}

func (d *demo) waitAccount(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, 5*time.Minute, func(s boxStatus) bool { return s.Hosting.Account != "" })
	d.account = s.Hosting.Account
	return string(d.account), err
}

// beginChain makes a chain and tells `croft tenant` where it is.
func (d *demo) beginChain(ctx context.Context) (string, error) {
	chain := d.world.Chain
	if err := chain.Make(ctx, outside.DeployAudit(d.account)); err != nil {
		return "", err
	}
	if err := chain.Start(ctx); err != nil {
		return "", &croft.Error{Kind: croft.KindOf(err), Err: err, Remedy: "what it said is in " + chain.Log()}
	}
	for _, args := range [][]string{
		{"tenant", "network", "use", demoNetwork, "--rest", chain.REST(), "--relay-http", d.world.Relay.HTTP()},
		{"tenant", "keys", "use-local", "--accounts", chain.Accounts()},
	} {
		if _, err := d.croft(ctx, args...); err != nil {
			return "", err
		}
	}
	return outside.ChainID + ", a block each second; " + chain.RPC(), nil
}

func (d *demo) waitOpen(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, 5*time.Minute, boxStatus.open)
	return s.Hosting.Line, err
}

// demoNetwork is what `croft tenant` calls the chain.
const demoNetwork = "demo"

// home is the folder of the tenant's keys, settings and deployments.
func (d *demo) home() string { return filepath.Join(d.dir, "tenant") }

// croft runs one command of this program as the tenant, and returns what it
// answered. What it says meanwhile stands below the step.
func (d *demo) croft(ctx context.Context, args ...string) (string, error) {
	var answer bytes.Buffer
	said := &indented{w: d.w}
	// All that the person's own environment could say otherwise is said here.
	flags := []string{"--home", d.home(), "--network", demoNetwork, "--node", d.world.Chain.RPC(), "--grpc", d.world.Chain.GRPC(), "--chain-id", outside.ChainID}
	err := run(ctx, append(args[:2:2], append(flags, args[2:]...)...), bytes.NewReader(nil), &answer, said)
	return answer.String(), err
}

func (d *demo) deploy(ctx context.Context) (string, error) {
	answer, err := d.croft(ctx, "tenant", "deploy", "--from", outside.TenantAccount, "--yes", "--name", "web", "--answer-timeout", "20m", "-o", "json", outside.DeployFile)
	if err != nil {
		return "", d.missed(err)
	}
	var made struct {
		DSeq string   `json:"dseq"`
		URLs []string `json:"urls"`
	}
	if err := json.Unmarshal([]byte(answer), &made); err != nil {
		return "", fmt.Errorf("read the answer of croft tenant deploy: %w", err)
	}
	if len(made.URLs) == 0 {
		return "", d.missed(errors.New("the deployment has no URL"))
	}
	d.dseq, d.url = made.DSeq, made.URLs[0]
	return "deployment " + d.dseq, nil
}

func (d *demo) visit(ctx context.Context) (string, error) {
	// As a browser does, which takes names below localhost for this machine.
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, d.world.Relay.HTTP())
	}
	visitor := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return "", err
	}
	resp, err := visitor.Do(req)
	if err != nil {
		return "", d.missed(err)
	}
	defer resp.Body.Close()
	var page struct {
		Host string   `json:"host"`
		Env  []string `json:"env"`
	}
	const most, greeting = 64 << 10, "GREETING="
	if resp.StatusCode != http.StatusOK {
		return "", d.missed(fmt.Errorf("%s answers %s", d.url, resp.Status))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(&page); err != nil {
		return "", d.missed(fmt.Errorf("read %s: %w", d.url, err))
	}
	for _, variable := range page.Env {
		if word, found := strings.CutPrefix(variable, greeting); found {
			return fmt.Sprintf("%s: %q, says %s\n    %s", resp.Status, word, page.Host, d.url), nil
		}
	}
	return "", d.missed(fmt.Errorf("%s is not what the tenant's OCI image shows", d.url))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

func (d *demo) lookInside(ctx context.Context) (string, error) {
	log, err := d.croft(ctx, "tenant", "logs", "--from", outside.TenantAccount, d.dseq)
	if err != nil {
		return "", d.missed(err)
	}
	if log == "" {
		return "", d.missed(errors.New("its log is empty"))
	}
	const word = "hello from inside"
	said, err := d.croft(ctx, "tenant", "shell", "--from", outside.TenantAccount, d.dseq, "/bin/app", "say", word)
	if err != nil {
		return "", d.missed(err)
	}
	if strings.TrimSpace(said) != word {
		return "", d.missed(fmt.Errorf("the command wrote %q, want %q", said, word))
	}
	return fmt.Sprintf("%q, %q", firstLine(log), strings.TrimSpace(said)), nil
}

func (d *demo) waitWorking(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, 2*time.Minute, boxStatus.earns)
	if err != nil {
		return "", err
	}
	return s.Hosting.Line, d.keepLook(ctx)
}

// keepLook writes down how the box looks to its owner now.
func (d *demo) keepLook(ctx context.Context) error {
	png, err := d.machine.Screenshot(ctx)
	if err != nil {
		return err
	}
	page, err := d.ask(ctx, "")
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(d.dir, "screen.png"), png, 0o644), os.WriteFile(filepath.Join(d.dir, "page.html"), page, 0o644))
}

func (d *demo) closeDeployment(ctx context.Context) (string, error) {
	_, err := d.croft(ctx, "tenant", "close", "--from", outside.TenantAccount, "--yes", d.dseq)
	return "", err
}

func (d *demo) waitFree(ctx context.Context) (string, error) {
	s, err := d.waitFor(ctx, 3*time.Minute, boxStatus.free)
	return s.Hosting.Line, err
}

// invite says what a person can do now.
func (d *demo) invite() {
	program := d.program()
	if !filepath.IsAbs(program) {
		program = "." + string(filepath.Separator) + program
	}
	fmt.Fprintf(d.w, `
All of it stays on for you to look at. Ctrl-C switches it off.

  the owner's page     %s
  the fleet's console  %s
     its first admin   %s
  the owner's phone    %s
  the tenant's page    %s
  the box's screen     %s
  what the box says    %s

In another terminal, in this folder:

  export CROFT_HOME=%s CROFT_FROM=%s
  %s tenant status
  %s tenant logs -f
  %s tenant shell %s -- /bin/app say hello
  %s tenant close %s
  %s tenant deploy %s
`, d.page, d.world.Fleet.Console(), d.admin(), filepath.Join(d.dir, "owner-*.png"), d.url, filepath.Join(d.dir, "screen.png"), filepath.Join(d.dir, "box", "serial.log"),
		d.home(), outside.TenantAccount, program, program, program, d.dseq, program, d.dseq, program, outside.DeployFile)
}

// lastWrite is an io.Writer for several goroutines that knows how long nobody
// has written.
type lastWrite struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
	at time.Time // guarded by mu
}

func (l *lastWrite) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = time.Now()
	return l.w.Write(p)
}

func (l *lastWrite) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = time.Now()
}

func (l *lastWrite) silence() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.at)
}

// indented passes whole lines on, each below the step it belongs to.
type indented struct {
	w    io.Writer
	rest []byte
}

func (i *indented) Write(p []byte) (int, error) {
	i.rest = append(i.rest, p...)
	for {
		line, rest, found := bytes.Cut(i.rest, []byte("\n"))
		if !found {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(i.w, "    %s\n", line); err != nil {
			return 0, err
		}
		i.rest = rest
	}
}
