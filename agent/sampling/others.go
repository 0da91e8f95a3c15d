package sampling

import (
	"context"
	"fmt"
)

// Leases knows what each lease uses. It is asked once a Read and answers, or gives up,
// when ctx ends.
type Leases interface {
	// LeaseUsage returns one entry per running lease. With an error it may return
	// what it has.
	LeaseUsage(ctx context.Context) ([]LeaseUsage, error)
}

// LeaseUsage is what a lease uses. What is unknown is nil.
type LeaseUsage struct {
	Lease         string   // its key; 1 to 64 letters, digits and "_.:@#+-"
	CPUSeconds    *float64 // of all its replicas since it began
	MemoryBytes   *float64 // now
	DiskBytes     *float64 // now
	ReceivedBytes *float64 // since it began
	SentBytes     *float64 // since it began
}

// Earnings knows what the box earns. It is asked once a Read and answers, or gives up,
// when ctx ends.
type Earnings interface {
	// Earnings returns one entry per denom; nothing earned is an entry too, once that is
	// known. With an error it may return what it has.
	Earnings(ctx context.Context) ([]Earning, error)
}

// Earning is what the box earns in coins of one denom, in base units. What is unknown is
// nil. A reading holds amounts up to 2^53 exactly, nine billion coins; larger ones are
// missed, never rounded.
type Earning struct {
	Denom string // as the chain names it; what is no good label in it becomes "_"
	Paid  *int64 // to the box's account so far, by all leases ever
	Month *int64 // what the leases that run pay in a month, at their prices
}

// GPUs knows how the GPUs do; cmd/croft-gpuprobe will be behind it. It is asked once a
// Read and answers, or gives up, when ctx ends.
type GPUs interface {
	// GPUs returns one entry per GPU. With an error it may return what it has.
	GPUs(ctx context.Context) ([]GPU, error)
}

// GPU is what a GPU tells. What it does not tell is nil, never zero.
type GPU struct {
	ID string // stays the same over reboots and slots, such as its UUID; 1 to 64 letters, digits and "_.:@#+-"

	BusyRatio       *float64 // 0..1, over the driver's last period
	MemoryBusyRatio *float64 // 0..1, the same

	MemoryTotalBytes, MemoryUsedBytes           *float64
	PowerWatts, PowerLimitWatts                 *float64
	CoreCelsius, MemoryCelsius                  *float64
	FanRatio                                    *float64 // 0..1
	ECCCorrected, ECCUncorrected                *float64 // errors since the driver was loaded
	CoreHertz, MemoryHertz                      *float64 // clocks now
	HeatThrottledSeconds, PowerThrottledSeconds *float64 // since the driver was loaded

	PCIeGeneration, PCIeLanes *float64 // in use now
	PCIeReplays               *float64 // since the driver was loaded
}

// told is a value that somebody else may have told.
type told struct {
	metric metric
	value  *float64
	labels []string
}

// tell adds what is known about one lease or GPU, if its name is a good label.
func (p *pass) tell(kind, name string, values []told) {
	if name == "" || label(name) != name {
		p.miss("a "+kind, fmt.Errorf("its name %.80q is no label", name))
		return
	}
	for _, v := range values {
		if v.value == nil {
			continue
		}
		if *v.value < 0 && v.metric != gpuTemperature {
			p.miss(table[v.metric].Name, fmt.Errorf("value is %v", *v.value))
			continue
		}
		p.add(v.metric, *v.value, append([]string{name}, v.labels...)...)
	}
}

func (s *Sampler) readLeases(p *pass) {
	if s.cfg.Leases == nil {
		return
	}
	list, err := s.cfg.Leases.LeaseUsage(p.ctx)
	if err != nil {
		p.miss("the leases", err)
	}
	for _, u := range list {
		p.tell("lease", u.Lease, []told{
			{leaseCPUSeconds, u.CPUSeconds, nil},
			{leaseMemory, u.MemoryBytes, nil},
			{leaseDisk, u.DiskBytes, nil},
			{leaseNetworkBytes, u.ReceivedBytes, []string{"in"}},
			{leaseNetworkBytes, u.SentBytes, []string{"out"}},
		})
	}
}

func (s *Sampler) readEarnings(p *pass) {
	if s.cfg.Earnings == nil {
		return
	}
	list, err := s.cfg.Earnings.Earnings(p.ctx)
	if err != nil {
		p.miss("the earnings", err)
	}
	for _, e := range list {
		p.tell("denom", label(e.Denom), []told{
			{earned, p.exact(earned, e.Paid), nil},
			{incomeMonth, p.exact(incomeMonth, e.Month), nil},
		})
	}
}

// exact is an amount as a reading; nil if it is unknown, or no reading can hold it.
func (p *pass) exact(m metric, amount *int64) *float64 {
	if amount == nil {
		return nil
	}
	if *amount > 1<<53 {
		p.miss(table[m].Name, fmt.Errorf("%d base units are more than a reading can hold", *amount))
		return nil
	}
	return new(float64(*amount))
}

func (s *Sampler) readGPUs(p *pass) {
	if s.cfg.GPUs == nil {
		return
	}
	list, err := s.cfg.GPUs.GPUs(p.ctx)
	if err != nil {
		p.miss("the GPUs", err)
	}
	for _, g := range list {
		p.tell("GPU", g.ID, []told{
			{gpuBusy, g.BusyRatio, nil},
			{gpuMemoryBusy, g.MemoryBusyRatio, nil},
			{gpuMemory, g.MemoryTotalBytes, []string{"total"}},
			{gpuMemory, g.MemoryUsedBytes, []string{"used"}},
			{gpuPower, g.PowerWatts, nil},
			{gpuPowerLimit, g.PowerLimitWatts, nil},
			{gpuTemperature, g.CoreCelsius, []string{"core"}},
			{gpuTemperature, g.MemoryCelsius, []string{"memory"}},
			{gpuFan, g.FanRatio, nil},
			{gpuECCErrors, g.ECCCorrected, []string{"corrected"}},
			{gpuECCErrors, g.ECCUncorrected, []string{"uncorrected"}},
			{gpuClock, g.CoreHertz, []string{"core"}},
			{gpuClock, g.MemoryHertz, []string{"memory"}},
			{gpuThrottledSeconds, g.HeatThrottledSeconds, []string{"heat"}},
			{gpuThrottledSeconds, g.PowerThrottledSeconds, []string{"power"}},
			{gpuPCIeGeneration, g.PCIeGeneration, nil},
			{gpuPCIeLanes, g.PCIeLanes, nil},
			{gpuPCIeReplays, g.PCIeReplays, nil},
		})
	}
}
