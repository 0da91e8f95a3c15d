package gatewayclient

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// LeaseStatus is how the services of a lease are, as the provider tells it.
type LeaseStatus struct {
	Services map[string]ServiceStatus   `json:"services"`        // by name
	Ports    map[string][]ForwardedPort `json:"forwarded_ports"` // by service
	IPs      map[string][]LeasedIP      `json:"ips"`             // by service; nil if there are none
	Errors   []string                   `json:"errors,omitempty"`
}

// ServiceStatus is how one service is.
type ServiceStatus struct {
	Name               string   `json:"name"`
	Available          int32    `json:"available"` // replicas that serve
	Total              int32    `json:"total"`     // replicas wanted
	URIs               []string `json:"uris"`      // host names, or host:port, without a scheme; nil if it has no HTTP from outside
	ObservedGeneration int64    `json:"observed_generation"`
	Replicas           int32    `json:"replicas"`
	UpdatedReplicas    int32    `json:"updated_replicas"`
	ReadyReplicas      int32    `json:"ready_replicas"`
	AvailableReplicas  int32    `json:"available_replicas"`
}

// ForwardedPort is a port of a service as the world reaches it.
type ForwardedPort struct {
	Host         string `json:"host"`
	Port         uint32 `json:"port"`         // of the service
	ExternalPort uint32 `json:"externalPort"` // on Host
	Proto        string `json:"proto"`        // TCP or UDP
	Name         string `json:"name"`         // of the service
}

// LeasedIP is an address of the lease's own. Its keys are in upper case on the
// wire.
type LeasedIP struct {
	Port         uint32
	ExternalPort uint32
	Protocol     string
	IP           string
}

// Ready reports whether every service has all its replicas. A lease without
// services, as it is before its manifest, is not.
func (s LeaseStatus) Ready() bool {
	for _, service := range s.Services {
		if service.Total < 1 || service.Available < service.Total {
			return false
		}
	}
	return len(s.Services) > 0
}

// Summary is for people: "web 1/1, db 0/1".
func (s LeaseStatus) Summary() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		parts = append(parts, fmt.Sprintf("%s %d/%d", oneLine(name), s.Services[name].Available, s.Services[name].Total))
	}
	return strings.Join(parts, ", ")
}

// URIs are the host names under which the services answer HTTP, sorted, each
// once.
func (s LeaseStatus) URIs() []string {
	var uris []string
	for _, service := range s.Services {
		uris = append(uris, service.URIs...)
	}
	slices.Sort(uris)
	return slices.Compact(uris)
}

// ProviderStatus is what a provider tells of itself in public.
type ProviderStatus struct {
	Address     string `json:"address"`
	PublicHost  string `json:"cluster_public_hostname"`
	Cluster     ClusterStatus
	Orders      uint32          // it is thinking about
	Deployments uint32          // it has manifests of
	Raw         json.RawMessage // the whole answer
}

// ClusterStatus is what a provider has and how much of it is in use.
type ClusterStatus struct {
	Leases    uint32
	Available []NodeStatus // its machines
	Active    []Amounts    // what each lease has
	Pending   []Amounts    // what each bid keeps back
}

// NodeStatus is one machine.
type NodeStatus struct {
	Name        string  `json:"name"`
	Allocatable Amounts `json:"allocatable"`
	Available   Amounts `json:"available"`
}

// Amounts of resources. Negative values are the provider's way to say "more than
// there is".
type Amounts struct {
	CPU              int64            `json:"cpu"` // thousandths of a core
	GPU              int64            `json:"gpu"`
	Memory           int64            `json:"memory"`            // bytes
	StorageEphemeral int64            `json:"storage_ephemeral"` // bytes
	Storage          map[string]int64 `json:"storage,omitempty"` // bytes, by class
}

// UnmarshalJSON flattens the nested answer.
func (s *ProviderStatus) UnmarshalJSON(raw []byte) error {
	var in struct {
		Address string `json:"address"`
		Host    string `json:"cluster_public_hostname"`
		Cluster struct {
			Leases    uint32 `json:"leases"`
			Inventory struct {
				Active    []Amounts `json:"active"`
				Pending   []Amounts `json:"pending"`
				Available struct {
					Nodes []NodeStatus `json:"nodes"`
				} `json:"available"`
			} `json:"inventory"`
		} `json:"cluster"`
		BidEngine struct {
			Orders uint32 `json:"orders"`
		} `json:"bidengine"`
		Manifest struct {
			Deployments uint32 `json:"deployments"`
		} `json:"manifest"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	*s = ProviderStatus{
		Address: in.Address, PublicHost: in.Host, Orders: in.BidEngine.Orders, Deployments: in.Manifest.Deployments,
		Cluster: ClusterStatus{
			Leases: in.Cluster.Leases, Available: in.Cluster.Inventory.Available.Nodes,
			Active: in.Cluster.Inventory.Active, Pending: in.Cluster.Inventory.Pending,
		},
		Raw: slices.Clone(raw),
	}
	return nil
}

// MarshalJSON is the answer as it came.
func (s ProviderStatus) MarshalJSON() ([]byte, error) {
	if len(s.Raw) == 0 {
		return []byte("null"), nil
	}
	return s.Raw, nil
}

// Version is what software a provider runs.
type Version struct {
	Akash struct {
		Name      string `json:"name"`
		Server    string `json:"server_name"`
		Version   string `json:"version"`
		Commit    string `json:"commit"`
		BuildTags string `json:"build_tags"`
		Go        string `json:"go"`
		CosmosSDK string `json:"cosmos_sdk_version"`
	} `json:"akash"`
	Kube json.RawMessage `json:"kube,omitempty"` // of its cluster; free form
}
