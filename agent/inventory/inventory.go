// Package inventory says what the machine is: processor, memory, disks, network
// links, virtualisation, GPUs; what of it may be leased; and which attributes the
// provider's record carries so that tenants find it.
//
// Callers need [Read], then [Machine.Capacity] and [Machine.Attributes]. It reads
// /proc and /sys below a root folder and starts nothing; benchmarks are
// hwtest/bench's, GPU facts hwtest/gpu's, which comes in as a [GPULister].
//
// What it cannot read it leaves out and names in [Machine.Notes]: a box with a
// broken sensor or an unknown board still works. Only a machine whose processors
// or memory cannot be told is an error, for nothing could be leased of it.
//
// What survives what: it keeps no state, so there is nothing to lose; hardware
// that was added or removed shows at the next Read.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Machine is what [Read] found. The receiver owns it.
type Machine struct {
	Board   string // maker and model; empty if unknown
	CPU     CPU
	Memory  Memory
	Disks   []Disk // built in, in order of their names
	Links   []Link // real ones, in order of their names
	Virtual bool   // runs under a hypervisor
	GPUs    []GPU
	Notes   []string // sentences about what could not be read
}

// CPU is all processors of the machine.
type CPU struct {
	Model    string   // as it names itself; may be empty
	Vendor   string   // intel, amd, arm; empty if it is none of these
	Arch     string   // x86-64 or arm-64; empty if it is neither
	Threads  int      // that can run at once
	Cores    int      // equal to Threads where that cannot be told
	Features []string // as the kernel calls them, sorted
}

// Memory is the machine's main memory.
type Memory struct {
	Bytes int64  // usable by the kernel
	Type  string // ddr3, ddr4, ddr5, lpddr4, lpddr5; empty if unknown
	ECC   bool
}

// Class is a storage class as tenants order it.
type Class string

// The classes of persistent storage.
const (
	Beta1 Class = "beta1" // hard disks, memory cards
	Beta2 Class = "beta2" // SSD
	Beta3 Class = "beta3" // NVMe
)

// Disk is a built-in disk.
type Disk struct {
	Name  string // vda, nvme0n1
	Model string // may be empty
	Bytes int64
	Class Class
}

// Link is a network interface with hardware behind it.
type Link struct {
	Name     string
	Up       bool
	Speed    int64 // Mbit/s; 0 if unknown
	Wireless bool
}

// GPU is one GPU that can be leased.
type GPU struct {
	Vendor    string // nvidia
	Model     string // as Akash calls it: a100, rtx4090
	Memory    string // 80Gi; empty if unknown
	Interface string // pcie, sxm; empty if unknown
}

// GPULister knows the machine's GPUs; hwtest/gpu will be one.
type GPULister interface {
	GPUs(ctx context.Context) ([]GPU, error)
}

// Bounds of what is read: more than any machine has.
const (
	maxFile    = 4 << 20 // /proc/cpuinfo of 1,000 threads has 2 MB
	maxThreads = 8192    // NR_CPUS of Debian's kernel
	maxEntries = 1024    // disks, links
)

// Read looks at the machine whose /proc and /sys lie below root ("/"). gpus may be
// nil.
func Read(ctx context.Context, root string, gpus GPULister) (Machine, error) {
	r := reader{root: root}
	var m Machine
	cpu, err := parseCPU(r.file("proc/cpuinfo"))
	if err != nil {
		return m, fmt.Errorf("read processors: %w", err)
	}
	m.CPU = cpu
	if m.Memory.Bytes, err = parseMemory(r.file("proc/meminfo")); err != nil {
		return m, fmt.Errorf("read memory: %w", err)
	}
	if raw := r.optional("sys/firmware/dmi/tables/DMI"); len(raw) > 0 {
		m.Memory.Type, m.Memory.ECC = parseMemoryDevices(raw)
	}
	vendor, product := r.word("sys/class/dmi/id/sys_vendor"), r.word("sys/class/dmi/id/product_name")
	model := strings.TrimRight(r.word("sys/firmware/devicetree/base/model"), "\x00")
	m.Board = cmp.Or(strings.TrimSpace(vendor+" "+product), model)
	m.CPU.Model = cmp.Or(m.CPU.Model, model)
	m.Virtual = slices.Contains(m.CPU.Features, "hypervisor") || r.word("sys/hypervisor/type") != ""
	for _, name := range r.list("sys/block") {
		if d, ok := r.disk(name); ok {
			m.Disks = append(m.Disks, d)
		}
	}
	for _, name := range r.list("sys/class/net") {
		if l, ok := r.link(name); ok {
			m.Links = append(m.Links, l)
		}
	}
	if gpus != nil {
		if m.GPUs, err = gpus.GPUs(ctx); err != nil {
			r.notef("The GPUs cannot be read: %v.", err)
		}
	}
	m.Notes = r.notes
	return m, nil
}

// reader reads small files below a root.
type reader struct {
	root  string
	notes []string
}

func (r *reader) notef(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *reader) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(r.root, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// file returns a file that every machine has.
func (r *reader) file(name string) string {
	data, err := r.read(name)
	if err != nil {
		r.notef("/%s cannot be read: %v.", name, err)
	}
	return string(data)
}

// optional returns a file that machines may lack.
func (r *reader) optional(name string) []byte {
	data, err := r.read(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.notef("/%s cannot be read: %v.", name, err)
	}
	return data
}

// word returns a file of one line; nothing if it cannot be read, as the speed of
// a link that is down.
func (r *reader) word(name string) string {
	data, err := r.read(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func (r *reader) list(dir string) []string {
	entries, err := os.ReadDir(filepath.Join(r.root, dir))
	if err != nil {
		r.notef("/%s cannot be read: %v.", dir, err)
	}
	var names []string
	for _, e := range entries[:min(len(entries), maxEntries)] {
		names = append(names, e.Name())
	}
	return names
}

func (r *reader) has(name string) bool {
	_, err := os.Stat(filepath.Join(r.root, name))
	return err == nil
}

func (r *reader) disk(name string) (Disk, bool) {
	dir := "sys/block/" + name
	for _, prefix := range []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"} {
		if strings.HasPrefix(name, prefix) {
			return Disk{}, false
		}
	}
	if strings.Contains(name, "boot") || r.word(dir+"/removable") == "1" { // mmcblk0boot0
		return Disk{}, false
	}
	bytes, err := parseSectors(r.word(dir + "/size"))
	if err != nil {
		r.notef("The size of disk %s cannot be read: %v.", name, err)
		return Disk{}, false
	}
	if bytes == 0 {
		return Disk{}, false // an empty card reader
	}
	return Disk{
		Name: name, Bytes: bytes,
		Model: r.word(dir + "/device/model"),
		Class: classOf(name, r.word(dir+"/queue/rotational")),
	}, true
}

func (r *reader) link(name string) (Link, bool) {
	dir := "sys/class/net/" + name
	if !r.has(dir + "/device") { // lo, veth, bridges
		return Link{}, false
	}
	return Link{
		Name: name, Up: r.word(dir+"/operstate") == "up",
		Speed:    parseSpeed(r.word(dir + "/speed")),
		Wireless: r.has(dir+"/wireless") || r.has(dir+"/phy80211"),
	}, true
}

// Capacity is what may be leased at most.
type Capacity struct {
	CPU    int64 // thousandths of a thread
	Memory int64 // bytes
	GPUs   int
}

// What the box keeps for itself. Storage is counted by agent/leasedisk (Room).
const (
	keepCPU    = 500     // agent, containerd, network and encryption of all leases; a quarter at most
	keepMemory = 1 << 30 // kernel, agent, containerd and page cache; a quarter at most
	// keepShare of memory goes to page tables and to the sandboxes' own need
	// beyond what each lease is charged for.
	keepShare = 16
)

// Capacity is the machine less what the box keeps.
func (m Machine) Capacity() Capacity {
	cpu := int64(m.CPU.Threads) * 1000
	memory := m.Memory.Bytes
	return Capacity{
		CPU:    cpu - min(keepCPU, cpu/4),
		Memory: memory - min(keepMemory, memory/4) - memory/keepShare,
		GPUs:   len(m.GPUs),
	}
}

// Attribute is a line of the provider's record.
type Attribute struct{ Key, Value string }

// Attributes are what the machine itself tells, sorted by key, as the hosted
// console of Akash knows them. What the owner adds (location, e-mail, tier) the
// caller adds. class is the class of the disk that leases lie on.
func (m Machine) Attributes(class Class) []Attribute {
	values := map[string]string{
		"capabilities/cpu":                  m.CPU.Vendor,
		"capabilities/cpu/arch":             m.CPU.Arch,
		"capabilities/storage/1/class":      string(class),
		"capabilities/storage/1/persistent": "true",
		"feat-persistent-storage":           "true",
	}
	if class == "" {
		delete(values, "capabilities/storage/1/persistent")
		delete(values, "feat-persistent-storage")
	}
	if m.Memory.Type != "" {
		values["capabilities/memory"] = m.Memory.Type
		if m.Memory.ECC {
			values["capabilities/memory"] += "ecc"
		}
	}
	for _, g := range m.GPUs {
		vendor, model := attributeWord(g.Vendor), attributeWord(g.Model)
		if vendor == "" || model == "" {
			continue
		}
		key := "capabilities/gpu/vendor/" + vendor + "/model/" + model
		values["capabilities/gpu"] = vendor
		values[key] = "true"
		ram, bus := attributeWord(g.Memory), attributeWord(g.Interface)
		if ram != "" {
			values[key+"/ram/"+ram] = "true"
		}
		if bus != "" {
			values[key+"/interface/"+bus] = "true"
		}
		if ram != "" && bus != "" {
			values[key+"/ram/"+ram+"/interface/"+bus] = "true"
		}
	}
	var list []Attribute
	for key, value := range values {
		if value != "" {
			list = append(list, Attribute{key, value})
		}
	}
	slices.SortFunc(list, func(a, b Attribute) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// attributeWord keeps of a driver's words what a key on the chain may hold.
func attributeWord(s string) string {
	const longest = 32
	keep := func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			return c
		}
		return -1
	}
	s = strings.Map(keep, s)
	return s[:min(len(s), longest)]
}
