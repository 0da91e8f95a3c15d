package offer

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/resourcesv1beta4"
)

// Room is an amount of the box.
type Room struct {
	CPU     int64            `json:"cpu"`             // thousandths of a core
	Memory  int64            `json:"memory"`          // bytes
	Storage int64            `json:"storage"`         // bytes of disk, whatever the class
	Ports   int64            `json:"ports,omitempty"` // TCP and UDP ports
	GPUs    map[string]int64 `json:"gpus,omitempty"`  // by "vendor/model"
}

// Plus is the sum of both.
func (r Room) Plus(s Room) Room {
	r.CPU, r.Memory, r.Storage, r.Ports = r.CPU+s.CPU, r.Memory+s.Memory, r.Storage+s.Storage, r.Ports+s.Ports
	if len(s.GPUs) > 0 {
		gpus := maps.Clone(r.GPUs)
		if gpus == nil {
			gpus = map[string]int64{}
		}
		for model, n := range s.GPUs {
			gpus[model] += n
		}
		r.GPUs = gpus
	}
	return r
}

// Lack says what of r is missing in total when used of it is taken; empty if r
// fits.
func (r Room) Lack(used, total Room) string {
	for _, p := range []struct {
		what              string
		want, used, total int64
		unit              string
		per               int64
	}{
		{"CPU", r.CPU, used.CPU, total.CPU, "thousandths of a core", 1},
		{"memory", r.Memory, used.Memory, total.Memory, "MiB", 1 << 20},
		{"disk", r.Storage, used.Storage, total.Storage, "MiB", 1 << 20},
		{"ports", r.Ports, used.Ports, total.Ports, "ports", 1},
	} {
		if p.want > 0 && p.want > p.total-p.used {
			return fmt.Sprintf("not enough %s: %d %s wanted, %d of %d free", p.what, (p.want+p.per-1)/p.per, p.unit, max(p.total-p.used, 0)/p.per, p.total/p.per)
		}
	}
	for _, model := range slices.Sorted(maps.Keys(r.GPUs)) {
		if n := r.GPUs[model]; n > total.GPUs[model]-used.GPUs[model] {
			return fmt.Sprintf("not enough GPUs: %d of %s wanted, %d of %d free", n, model, max(total.GPUs[model]-used.GPUs[model], 0), total.GPUs[model])
		}
	}
	return ""
}

// Bounds of what an order may ask of a home box. Whoever takes the manifest has
// the same ones: the box bids on nothing that it would refuse then.
const (
	// MaxServices of one lease. A box has room for about so many sandboxes at all.
	// Services that are alike are one unit of an order, so an order may have more.
	MaxServices = 32
	MaxReplicas = 64      // of one lease
	MaxDisk     = 2 << 40 // bytes of one lease, logs included
)

// What each replica takes of the box on top of what its tenant ordered.
const (
	ReplicaMemory = 64 << 20 // bytes, for the enclosure
	ReplicaLog    = 12 << 20 // bytes of disk: three log files of 4 MiB, as the log rotator keeps them
)

// Bounds that keep every sum below 2^63.
const (
	maxQuantity = 1 << 44 // bytes or thousandths of one replica: 16 TiB
	maxVolumes  = 4       // of one unit, as every Akash provider has it
)

// MaxSpec is the most bytes a group that is bid on has on the wire: it is kept in
// the journal. A service takes some 100.
const MaxSpec = 4 << 10

// classes of storage that mean something here.
const (
	classEphemeral = "ephemeral" // a volume that names none
	classRAM       = "ram"       // memory instead of disk
)

// demand is what a group needs of the box, and what is priced.
type demand struct {
	room      Room
	replicas  int64
	cpu       int64            // thousandths
	memory    int64            // bytes, without what the sandbox needs
	volumes   map[string]int64 // bytes by class
	endpoints int64
	gpus      map[string]int64
}

// RoomOf is what a group needs of a box with so many free GPUs, with overhead
// bytes of memory and [ReplicaLog] of disk for each replica on top. The error is a sentence for the owner;
// the room is then that of the services before the one it is about.
func RoomOf(spec *deploymentv1beta4.GroupSpec, gpus map[string]int64, overhead int64) (Room, error) {
	d, err := demandOf(spec, gpus, overhead)
	return d.room, err
}

// demandOf adds a group up. The error is a sentence for the owner. Free is what
// GPUs are picked from, overhead what each replica needs on top.
func demandOf(spec *deploymentv1beta4.GroupSpec, free map[string]int64, overhead int64) (demand, error) {
	d := demand{volumes: map[string]int64{}, gpus: map[string]int64{}}
	for i, u := range spec.GetResources() {
		n := int64(u.GetCount())
		if n < 1 || n > MaxReplicas {
			return d, fmt.Errorf("service %d wants %d replicas: 1 to %d are possible", i+1, n, MaxReplicas)
		}
		if d.replicas+n > MaxReplicas {
			return d, fmt.Errorf("the order has more than %d replicas in all, which is the most that one lease can have", MaxReplicas)
		}
		r := u.GetResource()
		cpu, err := quantity(r.GetCpu().GetUnits())
		if err != nil {
			return d, fmt.Errorf("CPU of service %d: %w", i+1, err)
		}
		memory, err := quantity(r.GetMemory().GetQuantity())
		if err != nil {
			return d, fmt.Errorf("memory of service %d: %w", i+1, err)
		}
		gpus, err := quantity(r.GetGpu().GetUnits())
		if err != nil || gpus > MaxReplicas {
			return d, fmt.Errorf("GPUs of service %d: unreadable or too many", i+1)
		}
		if len(r.GetStorage()) > maxVolumes {
			return d, fmt.Errorf("service %d has %d volumes: at most %d are possible", i+1, len(r.GetStorage()), maxVolumes)
		}
		for _, v := range r.GetStorage() {
			size, err := quantity(v.GetQuantity())
			if err != nil {
				return d, fmt.Errorf("volume %q of service %d: %w", v.GetName(), i+1, err)
			}
			class := classOf(v)
			d.volumes[class] += size * n
			if class == classRAM {
				d.room.Memory += size * n
			} else {
				d.room.Storage += size * n
			}
		}
		for _, e := range r.GetEndpoints() {
			switch e.GetKind() {
			case resourcesv1beta4.Endpoint_SHARED_HTTP:
			case resourcesv1beta4.Endpoint_RANDOM_PORT:
				d.room.Ports++
			default:
				return d, fmt.Errorf("service %d wants an IP address of its own: the box has none to lease", i+1)
			}
			d.endpoints++
		}
		if gpus > 0 {
			model := pickGPU(r.GetGpu().GetAttributes(), free, d.gpus, gpus*n)
			if model == "" {
				return d, fmt.Errorf("not enough GPUs: service %d wants %d of %s", i+1, gpus*n, keysOf(r.GetGpu().GetAttributes()))
			}
			d.gpus[model] += gpus * n
		}
		d.replicas += n
		d.cpu += cpu * n
		d.memory += memory * n
		d.room.CPU += cpu * n
		d.room.Memory += (memory + overhead) * n
		d.room.Storage += ReplicaLog * n
		if d.room.Storage > MaxDisk {
			return d, fmt.Errorf("the order wants more than %d GiB of disk, which is the most that one lease can have", MaxDisk>>30)
		}
	}
	if len(d.gpus) > 0 {
		d.room.GPUs = d.gpus
	}
	return d, nil
}

// quantity reads ASCII decimal, as the wire has it. Absent is 0.
func quantity(v *resourcesv1beta4.ResourceValue) (int64, error) {
	if len(v.GetVal()) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(v.GetVal()), 10, 64)
	if err != nil || n < 0 || n > maxQuantity {
		return 0, fmt.Errorf("quantity %.32q is no number from 0 to %d", v.GetVal(), int64(maxQuantity))
	}
	return n, nil
}

func classOf(v *resourcesv1beta4.Storage) string {
	for _, a := range v.GetAttributes() {
		if a.GetKey() == "class" && a.GetValue() != "" {
			return a.GetValue()
		}
	}
	return classEphemeral
}

// pickGPU chooses the first model, in the order of names, that one of the wanted
// keys names and of which enough are free.
func pickGPU(wanted []*attributesv1.Attribute, free, taken map[string]int64, n int64) string {
	for _, model := range slices.Sorted(maps.Keys(free)) {
		if free[model]-taken[model] < n {
			continue
		}
		for _, w := range wanted {
			parts := strings.Split(w.GetKey(), "/")
			if len(parts) < 4 || parts[0] != "vendor" || parts[2] != "model" {
				continue
			}
			vendor, name, _ := strings.Cut(model, "/")
			if parts[1] == vendor && (parts[3] == name || parts[3] == "*") {
				return model
			}
		}
	}
	return ""
}

// Money is millionths of the currency the box's prices are in.
type Money int64

// String is the amount with two to six places.
func (m Money) String() string {
	sign := ""
	if m < 0 {
		sign, m = "-", -m
	}
	places := strings.TrimRight(fmt.Sprintf("%06d", int64(m)%1_000_000), "0")
	return fmt.Sprintf("%s%d.%s", sign, int64(m)/1_000_000, places+strings.Repeat("0", max(2-len(places), 0)))
}

// Policy is what the box asks for, in money per month of 730.5 hours.
type Policy struct {
	CPU      Money            `json:"cpu"`      // per core
	Memory   Money            `json:"memory"`   // per GiB
	Storage  map[string]Money `json:"storage"`  // per GiB, by class; a class without a price is not offered
	Endpoint Money            `json:"endpoint"` // per name or port
	GPU      map[string]Money `json:"gpu"`      // each, by "vendor/model"; a model without a price is not offered
	Power    Power            `json:"power"`    // the floor: nothing is let for less than the power it takes

	// Worth says what a million of a denom is worth: 1_000_000 for uact. An order
	// in a denom that is not here is refused.
	Worth map[string]Money `json:"worth"`
}

// Power is what the box's electricity costs.
type Power struct {
	Watts int64            `json:"watts"` // of the whole box at full load, GPUs apart; a lease's part is that of its cores
	GPU   map[string]int64 `json:"gpu"`   // watts of one at full load, by "vendor/model"
	KWh   Money            `json:"kwh"`   // price of a kilowatt-hour
}

// DefaultPolicy has the prices of Akash's community script, in dollars, and no
// price of power.
func DefaultPolicy() Policy {
	return Policy{
		CPU: 1_600_000, Memory: 800_000, Endpoint: 50_000,
		Storage: map[string]Money{classEphemeral: 20_000, "beta1": 10_000, "beta2": 30_000, "beta3": 40_000, "default": 20_000, classRAM: 800_000},
		Worth:   map[string]Money{"uact": 1_000_000},
	}
}

var atto = new(big.Int).Exp(big.NewInt(10), big.NewInt(18), nil)

// month is the price of a demand in 10^-18 of Money for a month: the sum of its
// parts, or the floor if that is higher. The error is a sentence.
func (p Policy) month(d demand, capacity Room) (*big.Int, error) {
	sum := new(big.Int)
	add := func(price Money, quantity, per int64) {
		sum.Add(sum, scaled(big.NewInt(int64(price)), quantity, per))
	}
	add(p.CPU, d.cpu, 1000)
	add(p.Memory, d.memory, 1<<30)
	add(p.Endpoint, d.endpoints, 1)
	for class, size := range d.volumes {
		price, ok := p.Storage[class]
		if !ok {
			return nil, fmt.Errorf("storage of class %.32q is not offered", class)
		}
		add(price, size, 1<<30)
	}
	for model, n := range d.gpus {
		price, ok := p.GPU[model]
		if !ok {
			return nil, fmt.Errorf("GPU %s has no price", model)
		}
		add(price, n, 1)
	}
	if floor := p.floor(d, capacity); floor.Cmp(sum) > 0 {
		return floor, nil
	}
	return sum, nil
}

// floor is what the power of a demand at full load costs in a month.
func (p Policy) floor(d demand, capacity Room) *big.Int {
	kwh := big.NewInt(int64(p.Power.KWh))
	sum := new(big.Int)
	if capacity.CPU > 0 {
		watts := new(big.Int).Mul(kwh, big.NewInt(p.Power.Watts))
		sum.Add(sum, scaled(watts.Mul(watts, big.NewInt(MonthMinutes)), d.cpu, capacity.CPU))
	}
	for model, n := range d.gpus {
		watts := new(big.Int).Mul(kwh, big.NewInt(p.Power.GPU[model]))
		sum.Add(sum, scaled(watts.Mul(watts, big.NewInt(MonthMinutes)), n, 1))
	}
	return up(sum, big.NewInt(60_000)) // minutes of watts to kilowatt-hours
}

// scaled is n × quantity / per in 10^-18, rounded up.
func scaled(n *big.Int, quantity, per int64) *big.Int {
	x := new(big.Int).Mul(n, big.NewInt(quantity))
	return up(x.Mul(x, atto), big.NewInt(per))
}

// up divides and rounds up.
func up(n, by *big.Int) *big.Int {
	q, r := new(big.Int).QuoRem(n, by, new(big.Int))
	if r.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

// Check finds prices that make no sense.
func (p Policy) Check() error {
	for name, prices := range map[string]map[string]Money{"storage": p.Storage, "GPU": p.GPU, "worth": p.Worth} {
		for what, price := range prices {
			if price < 0 || name == "worth" && price == 0 {
				return fmt.Errorf("price policy: %s of %s is %s", name, what, price)
			}
		}
	}
	if p.CPU < 0 || p.Memory < 0 || p.Endpoint < 0 || p.Power.KWh < 0 || p.Power.Watts < 0 {
		return fmt.Errorf("price policy: a price is below zero")
	}
	if len(p.Worth) == 0 {
		return fmt.Errorf("price policy: no denom has a worth")
	}
	return nil
}
