package ocispec

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/offer"
)

const (
	// SandboxMemory is what the enclosure needs for itself, on top of what the
	// tenant's programs may use: without it a replica thrashes before it ends.
	SandboxMemory = offer.ReplicaMemory
	// pidsMin and pidsDefault bound the host's threads of one replica, those of
	// the enclosure among them: 64 were enough for 14 programs.
	pidsMin, pidsDefault, pidsMax = 512, 2048, 32768
	// memoryMin is what no program can do without; less is a slip of the unit.
	memoryMin = 4 << 20
	// cpuPeriod is the kernel's default, in microseconds.
	cpuPeriod = 100_000
	// filesMax is how many files one program may have open.
	filesMax = 1 << 20
	// pathLength is Linux's own bound for a path.
	pathLength = 4095
	// mountsMax bounds what a replica mounts: volumes and a few files.
	mountsMax = 64
	// MappedIDs is how many user and group ids a replica has when they are
	// mapped. Images use those below 65,536.
	MappedIDs = 65536
	// outOfMemoryScore makes the kernel choose tenants before the box's own
	// programs.
	outOfMemoryScore = 500
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// capabilities are Docker's default without NET_RAW, which would let a replica
// forge packets on its link.
func capabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// Input is all that a specification is made of.
type Input struct {
	Container lease.Container
	Config    imagespec.ImageConfig // of the image; not trusted
	Who       Identity
	Files     []lease.Mount // generated files of /etc; a mount of the replica's own in the same place wins
	UserIDs   uint32        // where the machine's ids for this replica begin; 0: not mapped
	IOWeight  bool          // the kernel can weigh replicas' disk traffic
}

// Build writes down how a replica runs. It reads and writes nothing. Fails with
// [BadContainer] or [BadImage].
func Build(in Input) (*specs.Spec, error) {
	args, err := arguments(in.Container, in.Config)
	if err != nil {
		return nil, err
	}
	env, err := environment(in.Config.Env, in.Container.Env, in.Who.Home)
	if err != nil {
		return nil, err
	}
	workdir := cmp.Or(in.Config.WorkingDir, "/")
	if !path.IsAbs(workdir) || len(workdir) > pathLength || strings.ContainsRune(workdir, 0) {
		return nil, Errorf(BadImage, "the image works in folder %.200q: want an absolute path", workdir)
	}
	resources, err := resources(in.Container.Limits, in.IOWeight)
	if err != nil {
		return nil, err
	}
	mounts, err := mounts(in.Container.Mounts, in.Files)
	if err != nil {
		return nil, err
	}
	if len(in.Container.GPUs) > 0 {
		return nil, Errorf(BadContainer, "run %s: GPUs cannot be given to replicas yet", in.Container.ID.Pod())
	}
	hostname := in.Container.Hostname
	if len(hostname) > 64 || strings.ContainsAny(hostname, "\x00\n /") {
		return nil, Errorf(BadContainer, "host name %.100q: want at most 64 characters", hostname)
	}

	namespaces := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
		{Type: specs.NetworkNamespace},
	}
	if at := in.Container.Attachment; at != nil {
		if !path.IsAbs(at.NetNS) {
			return nil, Errorf(BadContainer, "network namespace %q: want an absolute path", at.NetNS)
		}
		namespaces[len(namespaces)-1].Path = at.NetNS
	}
	linux := &specs.Linux{
		Namespaces:    namespaces,
		Resources:     resources,
		CgroupsPath:   CgroupPath(in.Container.ID),
		MaskedPaths:   []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	if in.UserIDs != 0 {
		for _, id := range append([]uint32{in.Who.User, in.Who.Group}, in.Who.Groups...) {
			if id >= MappedIDs {
				return nil, Errorf(BadImage, "the image runs as user or group %d: want one below %d", id, MappedIDs)
			}
		}
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: in.UserIDs, Size: MappedIDs}}
		linux.GIDMappings = linux.UIDMappings
	}
	granted := &specs.LinuxCapabilities{Bounding: capabilities()}
	if in.Who.User == 0 { // others get theirs from set-user-id programs only, and those are off
		granted.Effective, granted.Permitted = capabilities(), capabilities()
	}
	score := outOfMemoryScore
	var annotations map[string]string
	if root := in.Container.Limits.Root; root > 0 {
		annotations = map[string]string{rootAnnotation: strconv.FormatInt(root, 10)}
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			User:            specs.User{UID: in.Who.User, GID: in.Who.Group, AdditionalGids: in.Who.Groups},
			Args:            args,
			Env:             env,
			Cwd:             path.Clean(workdir),
			Capabilities:    granted,
			NoNewPrivileges: true,
			OOMScoreAdj:     &score,
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_CORE"},
				{Type: "RLIMIT_NOFILE", Soft: filesMax, Hard: filesMax},
			},
		},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: hostname,
		Mounts:   mounts,
		Linux:    linux,

		Annotations: annotations,
	}, nil
}

// rootAnnotation tells croft-runsc how many bytes a root may take.
const rootAnnotation = "cloud.croft.root"

// CgroupRoot holds all replicas' cgroups. It must be there before the first one:
// runsc removes, with a replica's cgroup, those above that it made for it, and
// fails while others are in there. Hence no folder for each lease, either.
const CgroupRoot = "/croft"

// UserIDs is where the machine's ids for replicas of a lease begin, of all that
// there are from first on; 0: they are not mapped. Its key chooses one of some
// 65,500 ranges, so there is nothing to keep; of a hundred leases two share theirs
// on one box in thirteen.
func UserIDs(first uint32, key lease.Key) uint32 {
	if first == 0 {
		return 0
	}
	sum := sha256.Sum256([]byte(key))
	ranges := (math.MaxUint32 - first) / MappedIDs
	return first + binary.BigEndian.Uint32(sum[:])%ranges*MappedIDs
}

// CgroupPath is where a replica's programs are counted and limited.
func CgroupPath(id lease.ReplicaID) string { return path.Join(CgroupRoot, id.Container()) }

// arguments joins what the manifest says with what the image says, as
// Kubernetes does: a command of the manifest replaces both of the image's.
func arguments(c lease.Container, config imagespec.ImageConfig) ([]string, error) {
	var args []string
	switch {
	case c.Command != nil:
		args = slices.Concat(c.Command, c.Args)
	case c.Args != nil:
		args = slices.Concat(config.Entrypoint, c.Args)
	default:
		args = slices.Concat(config.Entrypoint, config.Cmd)
	}
	if len(args) == 0 || args[0] == "" {
		return nil, Errorf(BadImage, "the image does not say what to run, and the manifest neither")
	}
	return args, CheckArguments(args)
}

// CheckArguments bounds what a program is started with. Fails with
// [BadContainer].
func CheckArguments(args []string) error {
	size := 0
	for _, arg := range args {
		if strings.ContainsRune(arg, 0) {
			return Errorf(BadContainer, "an argument holds a zero byte")
		}
		size += len(arg)
	}
	if len(args) > argumentsMax || size > argumentBytes {
		return Errorf(BadContainer, "%d arguments of %d bytes: want at most %d of %d", len(args), size, argumentsMax, argumentBytes)
	}
	return nil
}

// environment puts the manifest's variables over the image's. PATH and HOME are
// added where neither has them.
func environment(image, manifest []string, home string) ([]string, error) {
	if n := len(image) + len(manifest); n > environMax {
		return nil, Errorf(BadContainer, "%d environment variables: want at most %d", n, environMax)
	}
	var env []string
	at := map[string]int{}
	size := 0
	for _, variable := range slices.Concat([]string{defaultPath, "HOME=" + home}, image, manifest) {
		key, _, ok := strings.Cut(variable, "=")
		if !ok || key == "" || strings.ContainsRune(variable, 0) {
			return nil, Errorf(BadContainer, "environment variable %.100q: want KEY=value", variable)
		}
		if size += len(variable); size > environBytes {
			return nil, Errorf(BadContainer, "environment variables of more than %d bytes", environBytes)
		}
		if i, ok := at[key]; ok {
			env[i] = variable
			continue
		}
		at[key] = len(env)
		env = append(env, variable)
	}
	return env, nil
}

func resources(limits lease.Limits, ioWeight bool) (*specs.LinuxResources, error) {
	if limits.CPU <= 0 || limits.CPU > 1_000_000 {
		return nil, Errorf(BadContainer, "%d thousandths of a core: want 1 to 1000000", limits.CPU)
	}
	if limits.Memory < memoryMin || limits.Memory > sizeMax {
		return nil, Errorf(BadContainer, "%d bytes of memory: want at least %d", limits.Memory, memoryMin)
	}
	pids := limits.Pids
	if pids == 0 {
		pids = pidsDefault
	}
	pids = min(max(pids, pidsMin), pidsMax)
	memory := limits.Memory + SandboxMemory
	quota := max(cpuQuota(limits.CPU), cpuQuota(EnclosureCPU)) // the tenant's program is not in it yet
	shares := min(max(uint64(limits.CPU)*1024/1000, 2), 262144)
	period := uint64(cpuPeriod)
	all := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: &memory},
		CPU:     &specs.LinuxCPU{Shares: &shares, Quota: &quota, Period: &period},
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
	if ioWeight {
		// As its share of the processor: 100 for a core, within the kernel's bounds.
		weight := uint16(min(max(limits.CPU/10, 10), 1000))
		all.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
	}
	return all, nil
}

// EnclosureCPU is what an enclosure may take for its own start and end, in
// thousandths of a core.
const EnclosureCPU = 1000

// cpuQuota is how many of cpuPeriod's microseconds so many thousandths of a core
// are. The kernel takes none below a thousandth of a second.
func cpuQuota(cpu int64) int64 { return max(cpu*cpuPeriod/1000, 1000) }

// CPUFiles are the files of a cgroup that limit a replica to so many thousandths
// of a core, in version 2 and in version 1.
func CPUFiles(cpu int64) map[string]string {
	return map[string]string{
		"cpu.max":          fmt.Sprintf("%d %d", cpuQuota(cpu), cpuPeriod),
		"cpu.cfs_quota_us": fmt.Sprint(cpuQuota(cpu)),
	}
}

// kernelFolders are those of the replica's root that no volume may cover, with
// /dev/shm as the one exception.
var kernelFolders = []string{"/proc", "/sys", "/dev"}

// mounts are the usual ones, the generated files, then the replica's own.
// Outer folders come before those in them.
func mounts(own, files []lease.Mount) ([]specs.Mount, error) {
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
	}
	if len(own) > mountsMax {
		return nil, Errorf(BadContainer, "%d volumes: want at most %d", len(own), mountsMax)
	}
	taken := map[string]bool{}
	var added []specs.Mount
	for i, m := range slices.Concat(own, files) {
		to := path.Clean(m.Destination)
		if !path.IsAbs(m.Destination) || to == "/" || len(to) > pathLength || strings.ContainsRune(to, 0) {
			return nil, Errorf(BadContainer, "volume at %.200q: want an absolute path below the root", m.Destination)
		}
		if to != "/dev/shm" && slices.ContainsFunc(kernelFolders, func(folder string) bool {
			return to == folder || strings.HasPrefix(to, folder+"/")
		}) {
			return nil, Errorf(BadContainer, "volume at %.200q: this folder is the kernel's", m.Destination)
		}
		if taken[to] {
			if i >= len(own) {
				continue // the replica brings its own /etc/hosts
			}
			return nil, Errorf(BadContainer, "two volumes at %.200q", m.Destination)
		}
		taken[to] = true
		mount := specs.Mount{Destination: to, Type: "bind", Source: m.Source, Options: []string{"rbind", "rprivate", "nosuid", "nodev"}}
		if m.Tmpfs != 0 {
			if m.Tmpfs < 0 || m.Tmpfs > sizeMax || m.Source != "" {
				return nil, Errorf(BadContainer, "volume in memory at %.200q: want a size and no source", m.Destination)
			}
			mount = specs.Mount{Destination: to, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", m.Tmpfs)}}
		} else if !path.IsAbs(m.Source) || path.Clean(m.Source) == "/" {
			return nil, Errorf(BadContainer, "volume at %.200q: source %q is not an absolute path", m.Destination, m.Source)
		}
		if m.ReadOnly {
			mount.Options = append(mount.Options, "ro")
		}
		added = append(added, mount)
	}
	slices.SortStableFunc(added, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	if taken["/dev/shm"] {
		all = all[:len(all)-1]
	}
	return append(all, added...), nil
}

// HostsFile is the /etc/hosts of a replica that brings none.
func HostsFile(c lease.Container) string {
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n"
	if c.Attachment != nil && c.Hostname != "" {
		text += c.Attachment.Address.Addr().String() + "\t" + c.Hostname + "\n"
	}
	return text
}

// ResolverFile is the /etc/resolv.conf of a replica that brings none; empty
// without a network.
func ResolverFile(c lease.Container) string {
	if c.Attachment == nil || !c.Attachment.Gateway.IsValid() {
		return "" // no network, no names
	}
	return "nameserver " + c.Attachment.Gateway.String() + "\noptions ndots:1\n"
}
