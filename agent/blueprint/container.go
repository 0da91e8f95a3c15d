package blueprint

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/sdl"
)

// ReplicaFolder is where all that is of one replica alone lies.
func ReplicaFolder(disk string, id lease.ReplicaID) string {
	return filepath.Join(disk, "replicas", id.Pod())
}

// LogFile is where the output of a replica goes.
func LogFile(disk string, id lease.ReplicaID) string {
	return filepath.Join(ReplicaFolder(disk, id), "log")
}

// VolumeFolder is where a volume lies. Names of volumes come from the tenant
// and may be any text, so their hash stands for them.
func VolumeFolder(disk string, id lease.ReplicaID, v sdl.Storage) string {
	sum := sha256.Sum256([]byte(v.Name))
	name := hex.EncodeToString(sum[:10])
	if persistent(v) {
		return filepath.Join(disk, "volumes", id.Service, fmt.Sprint(id.Index), name)
	}
	return filepath.Join(ReplicaFolder(disk, id), "volumes", name)
}

// Site is where and for whom a replica runs.
type Site struct {
	Lease      akash.LeaseID
	Replica    lease.ReplicaID
	PublicHost string // AKASH_CLUSTER_PUBLIC_HOSTNAME
	Disk       string // folder of the lease's disk
	Image      string // OCI image with digest
	Attachment lease.Attachment
	GPUs       []int // indexes of the machine's GPUs
}

// Container is what the runtime is asked to run for a replica of a service.
func Container(s sdl.Service, at Site) lease.Container {
	c := lease.Container{
		ID:         at.Replica,
		Image:      at.Image,
		Command:    s.Command,
		Args:       s.Args,
		Env:        environment(at, s.Env),
		Limits:     lease.Limits{CPU: bounded64(s.Resources.CPU.Units), Memory: MemoryOf(s)},
		Scratch:    filepath.Join(ReplicaFolder(at.Disk, at.Replica), "scratch"),
		Log:        LogFile(at.Disk, at.Replica),
		Hostname:   hostname(at.Replica),
		Attachment: &at.Attachment,
		GPUs:       at.GPUs,
	}
	for _, v := range s.Resources.Storage {
		p := MountOf(s, v)
		if p.Mount == "" {
			if !InMemory(v) {
				c.Limits.Root += bounded64(v.Size)
			}
			continue
		}
		m := lease.Mount{Destination: path.Clean(p.Mount), ReadOnly: p.ReadOnly}
		if InMemory(v) {
			m.Tmpfs = bounded64(v.Size)
		} else {
			m.Source = VolumeFolder(at.Disk, at.Replica, v)
		}
		c.Mounts = append(c.Mounts, m)
	}
	// A mount inside another must come after it.
	slices.SortFunc(c.Mounts, func(a, b lease.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return c
}

// hostname is the pod's name, cut to what a kernel takes.
func hostname(id lease.ReplicaID) string {
	pod := id.Pod()
	if len(pod) <= maxName {
		return pod
	}
	tail := pod[len(id.Service):]
	return strings.TrimRight(id.Service[:maxName-len(tail)], "-") + tail
}

// environment is the tenant's, after what every container on Akash finds
// there.
func environment(at Site, tenant []string) []string {
	ours := []string{
		"AKASH_OWNER=" + string(at.Lease.Owner),
		"AKASH_PROVIDER=" + string(at.Lease.Provider),
		fmt.Sprintf("AKASH_DEPLOYMENT_SEQUENCE=%d", at.Lease.DSeq),
		fmt.Sprintf("AKASH_GROUP_SEQUENCE=%d", at.Lease.GSeq),
		fmt.Sprintf("AKASH_ORDER_SEQUENCE=%d", at.Lease.OSeq),
		"AKASH_CLUSTER_PUBLIC_HOSTNAME=" + at.PublicHost,
	}
	var env []string
	for _, variable := range ours {
		name, _, _ := strings.Cut(variable, "=")
		if !slices.ContainsFunc(tenant, func(v string) bool { return v == name || strings.HasPrefix(v, name+"=") }) {
			env = append(env, variable)
		}
	}
	for _, variable := range tenant {
		if !strings.Contains(variable, "=") {
			variable += "=" // a bare name is an empty value
		}
		env = append(env, variable)
	}
	return env
}
