package sandbox

import (
	"context"
	"math"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/typeurl/v2"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/ocispec"
)

// Usage is what a replica uses now. Memory leaves out what the kernel only
// remembers of files, as Kubernetes counts it; MemoryMax leaves out what the
// enclosure may use for itself.
func (s *Sandbox) Usage(ctx context.Context, replica lease.ReplicaID) (lease.Usage, error) {
	call, cancel := s.call(ctx)
	defer cancel()
	got, err := s.tasks.Metrics(call, &tasks.MetricsRequest{Filters: []string{"id==" + replica.Container()}})
	if err != nil {
		return lease.Usage{}, sortError(err, "measure "+replica.Pod())
	}
	for _, metric := range got.Metrics {
		if metric.ID == replica.Container() {
			return readUsage(metric.Data)
		}
	}
	return lease.Usage{}, fail(UnknownContainer, "%s does not run here", replica.Pod())
}

// readUsage reads the figures of either kind of cgroup.
func readUsage(data typeurl.Any) (lease.Usage, error) {
	value, err := typeurl.UnmarshalAny(data)
	if err != nil {
		return lease.Usage{}, fail(RuntimeRefused, "read figures of kind %.80q: %w", data.GetTypeUrl(), err)
	}
	var u lease.Usage
	var limit, used, forgettable uint64
	switch m := value.(type) {
	case *cgroup1.Metrics:
		u.CPU = duration(m.GetCPU().GetUsage().GetTotal(), time.Nanosecond)
		u.Pids = number(m.GetPids().GetCurrent())
		used, limit, forgettable = m.GetMemory().GetUsage().GetUsage(), m.GetMemory().GetUsage().GetLimit(), m.GetMemory().GetTotalInactiveFile()
	case *cgroup2.Metrics:
		u.CPU = duration(m.GetCPU().GetUsageUsec(), time.Microsecond)
		u.Pids = number(m.GetPids().GetCurrent())
		used, limit, forgettable = m.GetMemory().GetUsage(), m.GetMemory().GetUsageLimit(), m.GetMemory().GetInactiveFile()
	default:
		return lease.Usage{}, fail(RuntimeRefused, "figures of kind %.80q are unknown", data.GetTypeUrl())
	}
	u.Memory = number(used - min(used, forgettable))
	u.MemoryMax = number(limit - min(limit, ocispec.SandboxMemory))
	return u, nil
}

func number(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func duration(n uint64, unit time.Duration) time.Duration {
	return time.Duration(min(n, uint64(math.MaxInt64/unit))) * unit
}
