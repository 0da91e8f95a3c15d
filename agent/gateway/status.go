package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/croft-cloud/croft/chain/api/inventoryv1"
	"github.com/croft-cloud/croft/chain/api/providerv1"
	"github.com/croft-cloud/croft/chain/api/quantityv1"
)

// statusFresh is how old a status may be that anybody can ask for.
const statusFresh = time.Second

// snapshot is the last status of the box.
type snapshot struct {
	mu   sync.Mutex // held while the backend is asked, so that one asks for all
	at   time.Time  // guarded by mu
	last Provider   // guarded by mu
}

// provided is the status of the box, at most statusFresh old.
func (g *Gateway) provided(ctx context.Context) (Provider, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	g.status.mu.Lock()
	defer g.status.mu.Unlock()
	if !g.status.at.IsZero() && time.Since(g.status.at) < statusFresh {
		return g.status.last, nil
	}
	p, err := g.cfg.Provided.Provided(ctx)
	if err != nil {
		return Provider{}, fmt.Errorf("ask for the provider's status: %w", err)
	}
	g.status.last, g.status.at = p, time.Now()
	return p, nil
}

// amountsJSON has numbers alone: sizes in bytes, cores in thousandths.
type amountsJSON struct {
	CPU              int64            `json:"cpu"`
	GPU              int64            `json:"gpu"`
	Memory           int64            `json:"memory"`
	StorageEphemeral int64            `json:"storage_ephemeral"`
	Storage          map[string]int64 `json:"storage,omitzero"`
}

func (a Amounts) json() amountsJSON {
	return amountsJSON(a)
}

func amountsList(all []Amounts) []amountsJSON {
	out := []amountsJSON{}
	for _, a := range all {
		one := a.json()
		if one.Storage == nil {
			one.Storage = map[string]int64{} // unlike that of nodes, it is always there
		}
		out = append(out, one)
	}
	return out
}

// statusJSON is the answer to /status, in Akash's words.
func (g *Gateway) statusJSON(p Provider) any {
	storage := []any{}
	for _, c := range p.Classes {
		storage = append(storage, map[string]any{"class": c.Name, "size": c.Available})
	}
	public := g.cfg.Host
	if len(p.PublicHosts) > 0 {
		public = p.PublicHosts[0]
	}
	out := map[string]any{
		"cluster": map[string]any{
			"leases": p.Leases,
			"inventory": map[string]any{
				"active": amountsList(p.Active), "pending": amountsList(p.Pending),
				"available": map[string]any{
					"nodes": []any{map[string]any{
						"name": p.Machine.Name, "allocatable": p.Machine.Allocatable.json(), "available": p.Machine.Available.json(),
					}},
					"storage": storage,
				},
			},
		},
		"bidengine": map[string]any{"orders": p.Orders}, "manifest": map[string]any{"deployments": p.Deployments},
		"cluster_public_hostname": public, "address": g.cfg.Provider,
	}
	if len(p.Errors) > 0 {
		out["errors"] = p.Errors
	}
	return out
}

// statusMessage is the same for gRPC.
func (g *Gateway) statusMessage(p Provider) *providerv1.Status {
	all, free := p.Machine.Allocatable, p.Machine.Available
	node := &inventoryv1.Node{
		Name: p.Machine.Name,
		Resources: &inventoryv1.NodeResources{
			Cpu: &inventoryv1.CPU{Quantity: pair(all.CPU, free.CPU, cores), Info: []*inventoryv1.CPUInfo{{
				Id: "0", Vendor: p.Machine.Processor.Vendor, Model: p.Machine.Processor.Model, Vcores: uint32(max(p.Machine.Processor.Threads, 0)),
			}}},
			Memory:           &inventoryv1.Memory{Quantity: pair(all.Memory, free.Memory, plain)},
			Gpu:              &inventoryv1.GPU{Quantity: pair(all.GPU, free.GPU, plain)},
			EphemeralStorage: pair(all.StorageEphemeral, free.StorageEphemeral, plain),
			VolumesAttached:  pair(0, 0, plain), VolumesMounted: pair(0, 0, plain),
		},
		Capabilities: &inventoryv1.NodeCapabilities{},
	}
	for _, u := range p.Machine.GPUs {
		node.Resources.Gpu.Info = append(node.Resources.Gpu.Info, &inventoryv1.GPUInfo{
			Vendor: u.Vendor, VendorId: u.VendorID, Name: u.Name, Modelid: u.ModelID, Interface: u.Interface, MemorySize: u.MemorySize,
		})
	}
	cluster := &inventoryv1.Cluster{Nodes: []*inventoryv1.Node{node}}
	for _, c := range p.Classes {
		node.Capabilities.StorageClasses = append(node.Capabilities.StorageClasses, c.Name)
		cluster.Storage = append(cluster.Storage, &inventoryv1.Storage{
			Quantity: pair(c.Size, c.Available, plain), Info: &inventoryv1.StorageInfo{Class: c.Name},
		})
	}
	hosts := p.PublicHosts
	if len(hosts) == 0 {
		hosts = []string{g.cfg.Host}
	}
	m := &providerv1.Status{
		Errors: p.Errors,
		Cluster: &providerv1.ClusterStatus{
			Leases: &providerv1.Leases{Active: uint32(max(p.Leases, 0))},
			Inventory: &providerv1.Inventory{
				Cluster:      cluster,
				Reservations: &providerv1.Reservations{Pending: metric(p.Pending), Active: metric(p.Active)},
				LeasedIp:     pair(0, 0, plain),
			},
		},
		BidEngine:       &providerv1.BidEngineStatus{Orders: uint32(max(p.Orders, 0))},
		Manifest:        &providerv1.ManifestStatus{Deployments: uint32(max(p.Deployments, 0))},
		PublicHostnames: hosts,
		Timestamp:       timestamppb.Now(),
	}
	if p.Reclamation > 0 {
		m.ReclamationWindow = durationpb.New(p.Reclamation)
	}
	return m
}

// plain and cores write numbers as Kubernetes does.
func plain(n int64) string { return strconv.FormatInt(n, 10) }

func cores(thousandths int64) string {
	if thousandths%1000 == 0 {
		return plain(thousandths / 1000)
	}
	return plain(thousandths) + "m"
}

func quantity(n int64, write func(int64) string) *quantityv1.Quantity {
	return &quantityv1.Quantity{String_: write(n)}
}

func pair(all, free int64, write func(int64) string) *inventoryv1.ResourcePair {
	return &inventoryv1.ResourcePair{Allocatable: quantity(all, write), Allocated: quantity(all-free, write), Capacity: quantity(all, write)}
}

func metric(all []Amounts) *providerv1.ReservationsMetric {
	var sum Amounts
	classes := map[string]int64{}
	for _, a := range all {
		sum.CPU += a.CPU
		sum.GPU += a.GPU
		sum.Memory += a.Memory
		sum.StorageEphemeral += a.StorageEphemeral
		for class, n := range a.Storage {
			classes[class] += n
		}
	}
	m := &providerv1.ResourcesMetric{
		Cpu: quantity(sum.CPU, cores), Memory: quantity(sum.Memory, plain), Gpu: quantity(sum.GPU, plain),
		EphemeralStorage: quantity(sum.StorageEphemeral, plain), Storage: map[string]*quantityv1.Quantity{},
	}
	for _, class := range slices.Sorted(maps.Keys(classes)) {
		m.Storage[class] = quantity(classes[class], plain)
	}
	return &providerv1.ReservationsMetric{Count: uint32(len(all)), Resources: m}
}
