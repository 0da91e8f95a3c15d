package blueprint

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/sdl"
)

// appSDL is a web service with two replicas, and a database with a persistent
// volume.
const appSDL = `version: "2.0"
services:
  web:
    image: web:1
    env: [COLOUR=red, BARE=]
    expose:
      - {port: 8080, as: 80, accept: ["web.example.com"], to: [{global: true}]}
      - {port: 9000, to: [{global: true}]}
  db:
    image: db:1
    params: {storage: {data: {mount: /var/lib/db}}}
    expose:
      - {port: 5432, to: [{service: web}]}
profiles:
  compute:
    web: {resources: {cpu: {units: 0.5}, memory: {size: 512Mi}, storage: {size: 1Gi}}}
    db: {resources: {cpu: {units: 0.5}, memory: {size: 256Mi}, storage: [{size: 1Gi}, {name: data, size: 2Gi, attributes: {persistent: true, class: beta2}}]}}
  placement:
    home:
      pricing: {web: {denom: uact, amount: 100}, db: {denom: uact, amount: 100}}
deployment:
  web: {home: {profile: web, count: 2}}
  db: {home: {profile: db, count: 1}}
`

// FuzzManifest: whatever a tenant sends is refused, or becomes containers that
// stay within the lease's disk and a plan that settles.
func FuzzManifest(f *testing.F) {
	file, err := sdl.Parse([]byte(appSDL))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file.Manifest().JSON())
	f.Add([]byte(`[]`))
	f.Add([]byte(`[{"name":"a","services":[{"name":"w","params":{"storage":[{"name":"../x","mount":"/../proc"}]}}]}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		manifest, _, err := Parse(raw)
		if err != nil || Validate(manifest) != nil {
			return
		}
		for _, g := range manifest {
			memory, disk, gpus := Leased(g)
			if memory < 0 || disk < 0 || gpus < 0 {
				t.Fatalf("leased %d, %d, %d", memory, disk, gpus)
			}
			r, _ := Plan{Revision: 1}.Follow(map[uint64]sdl.Group{1: g}, func(lease.ReplicaID) bool { return false }, "l0")
			s := Situation{Memory: memory, GPUs: gpus, Key: "l0"}
			for _, spec := range g.Services {
				s.Services = append(s.Services, Want{
					Name: spec.Name, Plan: r.Services[spec.Name], Count: int(spec.Count),
					Memory: MemoryOf(spec), GPUs: GPUsOf(spec), Exclusive: Exclusive(spec),
				})
				c := Container(spec, Site{Replica: lease.ReplicaID{Lease: "l0", Service: spec.Name, Revision: 1}, Disk: "/disk", Image: "x"})
				for _, m := range c.Mounts {
					if m.Tmpfs == 0 && m.Source != "" && !strings.HasPrefix(filepath.Clean(m.Source), "/disk/") {
						t.Fatalf("mount of %s", m.Source)
					}
					if within(m.Destination, "/proc") || m.Destination == "/" {
						t.Fatalf("mount at %s", m.Destination)
					}
				}
				if len(c.Hostname) > maxName {
					t.Fatalf("hostname %s", c.Hostname)
				}
			}
			starts := 0
			for _, d := range Decide(s) {
				if d.Start != nil {
					starts++
				}
			}
			total := 0
			for _, spec := range g.Services {
				total += int(spec.Count)
			}
			if starts != total {
				t.Fatalf("%d replicas are started of %d", starts, total)
			}
		}
	})
}
