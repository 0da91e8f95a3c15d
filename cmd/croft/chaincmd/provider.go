package chaincmd

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/marketv1"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/cmd/croft/session"
)

func newProviderCommand() *cobra.Command {
	cmd, o := session.TopCommand("provider", "Talk to providers' gateways (the Akash command line's verbs)", `Talk to providers' gateways: send manifests, look at leases, read logs, run
commands. These are the verbs and flags of the Akash command line.

A gateway shows a certificate of a public authority, or one that its provider
published on the chain; nothing is sent to any other. The tenant shows a token
that its key signs for each request, or with --auth-type mtls its certificate.`, "text")
	cmd.Example = `  croft provider send-manifest deploy.yml --dseq 7 --from tenant
  croft provider lease-status --dseq 7 --provider akash1… --from tenant
  croft provider lease-logs -f --dseq 7 --provider akash1… --from tenant`
	cmd.AddCommand(
		sendManifestCommand(o), getManifestCommand(o), leaseStatusCommand(o), serviceStatusCommand(o),
		leaseLogsCommand(o), leaseEventsCommand(o), leaseShellCommand(o), statusCommand(o),
	)
	return cmd
}

// gatewayCall are the flags of commands that talk to a gateway as a tenant.
type gatewayCall struct {
	*session.Options
	ids
	from string
	auth string
	url  string
}

func gatewayFlags(o *session.Options, cmd *cobra.Command, which ...string) *gatewayCall {
	g := &gatewayCall{Options: o}
	g.add(cmd.Flags(), append(which, "owner", "provider")...)
	f := cmd.Flags()
	f.Lookup("owner").Usage = "the tenant: an address or the name of a key (default: that of --from)"
	f.StringVar(&g.from, "from", "", "key of the tenant, by name or address (default: the only one)")
	f.StringVar(&g.auth, "auth-type", "jwt", "what to show to the gateway: jwt, mtls")
	f.StringVar(&g.url, "provider-url", "", "the gateway's address (default: what stands on the chain)")
	session.Complete(cmd, "auth-type", "jwt", "mtls")
	return g
}

// with connects to the chain and takes the key out.
func (g *gatewayCall) with(cmd *cobra.Command, do func(*client.Client, *session.Key) error) error {
	if err := g.check(cmd); err != nil {
		return err
	}
	if err := g.CheckFormat(cmd); err != nil {
		return err
	}
	if !slices.Contains([]string{"jwt", "mtls"}, g.auth) {
		return session.Usage(fmt.Errorf("--auth-type %s is not known", g.auth), "choose jwt or mtls")
	}
	from := g.from
	if from == "" {
		from = g.owner
	}
	key, err := g.Signer(cmd, from)
	if err != nil {
		return err
	}
	if g.owner != "" {
		owner, err := g.Resolve("--owner", g.owner)
		if err != nil {
			return err
		}
		if owner != key.Address() {
			return session.Usage(fmt.Errorf("--owner %s is not the account of --from, %s", owner, key.Address()), "leave --owner out, or name its key with --from")
		}
	}
	c, err := g.Dial(cmd)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c, key)
}

// gateway connects to the gateway of a provider. The caller closes it.
func (g *gatewayCall) gateway(ctx context.Context, c *client.Client, key *session.Key, provider account.Address) (*gatewayclient.Gateway, error) {
	uri := g.url
	if uri == "" {
		p, err := c.Provider(ctx, provider)
		if err != nil {
			return nil, err
		}
		uri = p.GetHostUri()
	}
	dial, err := g.Dialer()
	if err != nil {
		return nil, err
	}
	cfg := gatewayclient.Config{Provider: provider, URI: uri, Registry: c, Signer: key, Dial: dial}
	if g.auth == "mtls" {
		pair, err := keptPair(g.Options, key.Address())
		if err != nil {
			return nil, err
		}
		cfg.Signer, cfg.Certificate = nil, &pair
	}
	return gatewayclient.New(cfg)
}

// keptPair is the certificate kept here, with its key, for a TLS connection.
func keptPair(o *session.Options, owner account.Address) (tls.Certificate, error) {
	if _, _, err := keptCertificate(o, owner); err != nil {
		return tls.Certificate{}, err
	}
	path, err := certificatePath(o, owner)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		return pair, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read certificate %s: %w", path, err), Remedy: "make one anew with `croft tx cert generate client --overwrite`"}
	}
	return pair, nil
}

// onLease runs do at the lease that the flags name.
func (g *gatewayCall) onLease(cmd *cobra.Command, do func(context.Context, session.At) error) error {
	return g.with(cmd, func(c *client.Client, key *session.Key) error {
		id, err := g.bid(g.Options, key.Address())
		if err != nil {
			return err
		}
		id.Owner = key.Address()
		gateway, err := g.gateway(cmd.Context(), c, key, id.Provider)
		if err != nil {
			return err
		}
		defer gateway.Close()
		return do(cmd.Context(), session.At{Gateway: gateway, Lease: id.Lease()})
	})
}

// sent is the outcome of sending a manifest to one provider.
type sent struct {
	Provider account.Address `json:"provider"`
	Status   string          `json:"status"`
	Error    string          `json:"error,omitempty"`
}

// manifestPatience is how long a provider may take to see its lease.
const manifestPatience = 30 * time.Second

func sendManifestCommand(o *session.Options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "send-manifest FILE", Short: "Send a deployment's manifest to its provider", Args: session.Args(1, 1),
		Long: `Send a deployment's manifest to its provider, or without --provider to every
provider that has a lease of it. The manifest goes to the gateway and never on
the chain, which knows its hash only.`,
		Example: "  croft provider send-manifest deploy.yml --dseq 7 --oseq 1 --gseq 1 --owner akash1… --provider akash1…",
	}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	optional(cmd.Flags(), "provider")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, err := session.ReadSDL(cmd, args[0])
		if err != nil {
			return err
		}
		return g.with(cmd, func(c *client.Client, key *session.Key) error {
			ctx := cmd.Context()
			providers, err := g.providers(ctx, c, key)
			if err != nil {
				return err
			}
			var outcome []sent
			var failed error
			for _, provider := range providers {
				gateway, err := g.gateway(ctx, c, key, provider)
				if err == nil {
					err = gateway.SendManifestWait(ctx, g.dseq, file.Manifest().JSON(), manifestPatience)
					gateway.Close()
				}
				if err != nil {
					failed = err
					outcome = append(outcome, sent{provider, "FAIL", err.Error()})
					continue
				}
				outcome = append(outcome, sent{Provider: provider, Status: "PASS"})
			}
			if err := g.Print(cmd, outcome); err != nil {
				return err
			}
			return failed
		})
	}
	return cmd
}

// providers are who gets the manifest.
func (g *gatewayCall) providers(ctx context.Context, c *client.Client, key *session.Key) ([]account.Address, error) {
	if g.provider != "" {
		provider, err := g.Resolve("--provider", g.provider)
		return []account.Address{provider}, err
	}
	var providers []account.Address
	for l, err := range c.Leases(ctx, &marketv1.LeaseFilters{Owner: string(key.Address()), Dseq: g.dseq, State: "active"}) {
		if err != nil {
			return nil, err
		}
		if p := akash.LeaseIDOf(l.GetLease().GetId()).Provider; !slices.Contains(providers, p) {
			providers = append(providers, p)
		}
	}
	if len(providers) == 0 {
		return nil, &croft.Error{
			Kind: croft.KindNotFound, Err: fmt.Errorf("deployment %d of %s has no active lease", g.dseq, key.Address()),
			Remedy: "accept a bid first: `croft query market bid list` shows them, `croft tx market lease create` accepts one",
		}
	}
	return providers, nil
}

func getManifestCommand(o *session.Options) *cobra.Command {
	cmd := &cobra.Command{Use: "get-manifest", Short: "Show the manifest that a provider runs", Args: session.Args(0, 0)}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.onLease(cmd, func(ctx context.Context, at session.At) error {
			manifest, err := at.Gateway.GetManifest(ctx, at.Lease)
			if err != nil {
				return err
			}
			return g.Print(cmd, manifest)
		})
	}
	return cmd
}

func leaseStatusCommand(o *session.Options) *cobra.Command {
	cmd := &cobra.Command{Use: "lease-status", Short: "Show how the services of a lease are and where they answer", Args: session.Args(0, 0)}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.onLease(cmd, func(ctx context.Context, at session.At) error {
			status, err := at.Gateway.LeaseStatus(ctx, at.Lease)
			if err != nil {
				return err
			}
			return g.Print(cmd, status)
		})
	}
	return cmd
}

func serviceStatusCommand(o *session.Options) *cobra.Command {
	var service string
	cmd := &cobra.Command{Use: "service-status", Short: "Show how one service of a lease is", Args: session.Args(0, 0)}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	cmd.Flags().StringVar(&service, "service", "", "name of the service")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if service == "" {
			return session.MissingFlag(cmd, "service")
		}
		return g.onLease(cmd, func(ctx context.Context, at session.At) error {
			status, err := at.Gateway.ServiceStatus(ctx, at.Lease, service)
			if err != nil {
				return err
			}
			return g.Print(cmd, status)
		})
	}
	return cmd
}

func leaseLogsCommand(o *session.Options) *cobra.Command {
	var s session.StreamFlags
	cmd := &cobra.Command{Use: "lease-logs", Short: "Show what the services of a lease write", Args: session.Args(0, 0)}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	s.Add(cmd, true)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.onLease(cmd, func(_ context.Context, at session.At) error { return g.Logs(cmd, s, []session.At{at}) })
	}
	return cmd
}

func leaseEventsCommand(o *session.Options) *cobra.Command {
	var s session.StreamFlags
	cmd := &cobra.Command{Use: "lease-events", Short: "Show what happens to the services of a lease", Args: session.Args(0, 0)}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	s.Add(cmd, false)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.onLease(cmd, func(_ context.Context, at session.At) error { return g.Events(cmd, s, []session.At{at}) })
	}
	return cmd
}

func leaseShellCommand(o *session.Options) *cobra.Command {
	var s session.ShellFlags
	cmd := &cobra.Command{
		Use: "lease-shell SERVICE [COMMAND [ARGUMENT]...]", Short: "Run a command in a service of a lease", Args: session.Args(1, -1),
		Example: "  croft provider lease-shell --dseq 7 --provider akash1… --tty --stdin web /bin/sh",
	}
	g := gatewayFlags(o, cmd, "dseq", "gseq", "oseq")
	s.Add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		command, err := s.Command(cmd, args[1:])
		if err != nil {
			return err
		}
		return g.onLease(cmd, func(_ context.Context, at session.At) error { return s.Shell(cmd, at, args[0], command) })
	}
	return cmd
}

func statusCommand(o *session.Options) *cobra.Command {
	var url string
	cmd := &cobra.Command{Use: "status PROVIDER", Short: "Show what a provider has and how much of it is in use", Args: session.Args(1, 1)}
	cmd.Flags().StringVar(&url, "provider-url", "", "the gateway's address (default: what stands on the chain)")
	return ask(o, cmd, func(args []string) (query, error) {
		provider, err := o.Resolve("provider", args[0])
		return func(ctx context.Context, c *client.Client) (any, error) {
			if url == "" {
				p, err := c.Provider(ctx, provider)
				if err != nil {
					return nil, err
				}
				url = p.GetHostUri()
			}
			dial, err := o.Dialer()
			if err != nil {
				return nil, err
			}
			gateway, err := gatewayclient.New(gatewayclient.Config{Provider: provider, URI: url, Registry: c, Dial: dial})
			if err != nil {
				return nil, err
			}
			defer gateway.Close()
			return gateway.Status(ctx)
		}, err
	})
}
