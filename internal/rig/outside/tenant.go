package outside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
)

// Tenant is a tenant of this world. It does what `croft tenant` does, but finds boxes without DNS.
type Tenant struct {
	*tenant.Tenant
	Chain *client.Client
	Key   *account.Key

	visitor *http.Client
}

// Tenant makes the tenant of a chain that runs, with the chain's account "tenant".
// The caller closes it. What it knows of its deployments is kept in the world's
// folder.
func (w *World) Tenant(ctx context.Context) (*Tenant, error) { return w.TenantOf(ctx, TenantAccount) }

// TenantOf makes a tenant with another of the chain's accounts.
func (w *World) TenantOf(ctx context.Context, name string) (*Tenant, error) {
	key, err := w.Chain.Key(name)
	if err != nil {
		return nil, err
	}
	store, err := tenant.OpenStore(filepath.Join(w.dir, "tenant"))
	if err != nil {
		return nil, err
	}
	c, err := w.Chain.Dial(ctx)
	if err != nil {
		return nil, err
	}
	visitor := w.Relay.Client()
	t, err := tenant.New(tenant.Config{Chain: c, Signer: key, Store: store, Dial: w.Relay.Dial, HTTP: visitor, Log: w.log})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &Tenant{Tenant: t, Chain: c, Key: key, visitor: visitor}, nil
}

// Leave ends the tenant's connection to the chain; its deployments go on.
func (t *Tenant) Leave() { t.Chain.Close() }

// Run deploys what an SDL file describes and returns when the workload answers.
// Doing it again with the same file goes on where it was.
func (t *Tenant) Run(ctx context.Context, file []byte, show func(tenant.Progress)) (*tenant.Record, error) {
	parsed, err := sdl.Parse(file)
	if err != nil {
		return nil, err
	}
	plan, err := t.Plan(ctx, parsed, tenant.PlanConfig{})
	if err != nil {
		return nil, err
	}
	return t.Deploy(ctx, plan.ID(), tenant.DeployConfig{Progress: show})
}

// Get asks for a page of a workload, through the relay.
func (t *Tenant) Get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := t.visitor.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	const most = 1 << 20
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("%s answers %s: %s", url, resp.Status, body)
	}
	return string(body), nil
}

// With calls do with the gateway of a lease's provider.
func (t *Tenant) With(ctx context.Context, lease akash.LeaseID, do func(*gatewayclient.Gateway) error) error {
	g, err := t.Gateway(ctx, lease.Provider)
	if err != nil {
		return err
	}
	defer g.Close()
	return do(g)
}

// Shell runs a command in the first replica of a service and returns what it
// wrote to standard output.
func (t *Tenant) Shell(ctx context.Context, lease akash.LeaseID, service string, command ...string) (string, error) {
	var out bytes.Buffer
	err := t.With(ctx, lease, func(g *gatewayclient.Gateway) error {
		return g.Shell(ctx, lease, gatewayclient.ShellConfig{Service: service, Command: command, Stdout: &out})
	})
	return out.String(), err
}

// Logs are the lines that a lease's services have written until now.
func (t *Tenant) Logs(ctx context.Context, lease akash.LeaseID) ([]gatewayclient.LogLine, error) {
	var lines []gatewayclient.LogLine
	err := t.With(ctx, lease, func(g *gatewayclient.Gateway) error {
		for line, err := range g.Logs(ctx, lease, gatewayclient.StreamConfig{}) {
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
		return nil
	})
	return lines, err
}

// Events is what has happened to a lease's services until now.
func (t *Tenant) Events(ctx context.Context, lease akash.LeaseID) ([]gatewayclient.Event, error) {
	var events []gatewayclient.Event
	err := t.With(ctx, lease, func(g *gatewayclient.Gateway) error {
		for event, err := range g.Events(ctx, lease, gatewayclient.StreamConfig{}) {
			if err != nil {
				return err
			}
			events = append(events, event)
		}
		return nil
	})
	return events, err
}

// Status is how a lease's services are, as its provider tells it.
func (t *Tenant) Status(ctx context.Context, lease akash.LeaseID) (gatewayclient.LeaseStatus, error) {
	var status gatewayclient.LeaseStatus
	err := t.With(ctx, lease, func(g *gatewayclient.Gateway) (err error) {
		status, err = g.LeaseStatus(ctx, lease)
		return err
	})
	return status, err
}
