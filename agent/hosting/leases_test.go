package hosting

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/agent/inventory"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/agent/network"
	"github.com/croft-cloud/croft/agent/workload"
)

func peer(service string, index int, answers bool, open ...workload.Opening) workload.Peer {
	return workload.Peer{ID: lease.ReplicaID{Lease: "l1", Service: service, Revision: 1, Index: index}, Resolves: answers, Open: open}
}

func TestReplicasReachWhatTheManifestExposes(t *testing.T) {
	db := []workload.Opening{{Port: 5432, From: "web"}, {Port: 5432, From: "job"}, {Port: 53, UDP: true}}
	got := leaseOf([]workload.Peer{
		peer("web", 0, true, workload.Opening{Port: 80, From: "job"}), peer("db", 0, true, db...), peer("db", 1, false, db...), peer("job", 0, true),
	})
	want := network.Lease{Egress: network.Full, Services: []network.Service{
		{Name: "db", Silent: []string{"db-1-1"}, Ports: []network.Port{
			{Number: 5432, Protocol: "tcp", To: []string{"web", "job"}},
			{Number: 53, Protocol: "udp", To: []string{"db", "job", "web"}},
		}},
		{Name: "web", Ports: []network.Port{{Number: 80, Protocol: "tcp", To: []string{"job"}}}},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMirrorsAreWrittenAsContainerdReadsThem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mirrors")
	for range 2 { // a second time, with less
		if err := writeMirrors(dir, map[string][]string{"docker.io": {"http://10.0.2.2:5000", "https://m.example"}, "quay.io": {"https://q.example"}}); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "docker.io", "hosts.toml"))
	if err != nil || strings.Count(string(raw), "capabilities = [\"pull\", \"resolve\"]") != 2 || !strings.Contains(string(raw), `[host."http://10.0.2.2:5000"]`) {
		t.Errorf("the file is %s, %v", raw, err)
	}
	if err := writeMirrors(dir, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("without mirrors the folder has %v, %v", left, err)
	}
}

func TestAMirrorIsWhereItsNameLeads(t *testing.T) {
	for mirror, want := range map[string]string{
		"http://10.0.2.2:5000": "10.0.2.2:5000", "https://192.0.2.7": "192.0.2.7:443", "http://192.0.2.7": "192.0.2.7:80", "https://[2001:db8::1]:8443": "[2001:db8::1]:8443",
	} {
		if got := addressesOf(t.Context(), mirror); len(got) != 1 || got[0].String() != want {
			t.Errorf("%s leads to %v, want %s", mirror, got, want)
		}
	}
	if got := addressesOf(t.Context(), "https://no-such-mirror.invalid"); got != nil {
		t.Errorf("an unknown name leads to %v", got)
	}
}

func TestABoxKeepsPartOfItsDisk(t *testing.T) {
	if got := reserveOf(10 << 30); got != reserveMin {
		t.Errorf("of 10 GiB %d bytes are kept", got)
	}
	if got := reserveOf(100 << 30); got != 20<<30 {
		t.Errorf("of 100 GiB %d bytes are kept", got)
	}
}

func TestLeasesArePromisedTheLowestClass(t *testing.T) {
	disk := func(c inventory.Class) inventory.Disk { return inventory.Disk{Class: c} }
	for _, tc := range []struct {
		disks []inventory.Disk
		want  inventory.Class
	}{
		{nil, inventory.Beta1},
		{[]inventory.Disk{disk(inventory.Beta3)}, inventory.Beta3},
		{[]inventory.Disk{disk(inventory.Beta3), disk(inventory.Beta2)}, inventory.Beta2},
		{[]inventory.Disk{disk(inventory.Beta1), disk(inventory.Beta3)}, inventory.Beta1},
	} {
		if got := classOf(tc.disks); got != tc.want {
			t.Errorf("of %v leases are promised %s, want %s", tc.disks, got, tc.want)
		}
	}
}
