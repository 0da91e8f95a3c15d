package media

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// newImage is an image of 62 MiB with nothing but its partitions and a file on
// the first, from 1 MiB to 40.
func newImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	disk, err := file.CreateFromPath(path, 62*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, GUID: strings.ToUpper(guidPrefix) + "C40F7A860000"}
	for i, border := range [][2]uint64{{1, 40}, {40, 45}, {45, 50}, {50, 60}} {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: i + 1, Start: border[0] * mib / 512, End: border[1]*mib/512 - 1, Size: (border[1] - border[0]) * mib,
			Type: gpt.LinuxFilesystem, Name: "part", GUID: strings.ToUpper(guidPrefix) + "C40F7A86000" + string(rune('1'+i)),
		})
	}
	writable, err := disk.Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Write(writable, 62*mib); err != nil {
		t.Fatal(err)
	}
	volume, err := fat32.Create(disk, 39*mib, mib, 512, "ESP", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := volume.Mkdir("/" + filepath.Dir(joinfile.Path)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/EFI/Linux/notes.txt", "/loader/loader.conf"} {
		if err := volume.Mkdir(filepath.Dir(name)); err != nil {
			t.Fatal(err)
		}
		if err := replaceFile(volume, name, bytes.Repeat([]byte(name), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestANetworkFileIsPutOnTheImageAndReplaced(t *testing.T) {
	path := newImage(t)
	network := func(mirrors int) *joinfile.Network {
		n := &joinfile.Network{
			Chain:  joinfile.Chain{ID: "croft-local", RPC: "http://10.0.2.2:26657", GRPC: "grpc://10.0.2.2:9090"},
			Relays: []joinfile.Relay{{Name: "relay.example"}},
		}
		for range mirrors { // the file gets longer
			n.Mirrors = map[string][]string{"docker.io": append(n.Mirrors["docker.io"], "https://mirror.example")}
		}
		return n
	}
	for _, mirrors := range []int{0, 1000, 3, 300} { // one cluster has 512 bytes
		want, err := network(mirrors).Format()
		if err != nil {
			t.Fatal(err)
		}
		if err := SetNetwork(path, network(mirrors)); err != nil {
			t.Fatal(err)
		}
		volume := readVolume(t, path)
		if got, err := volume.ReadFile(joinfile.Path, joinfile.MaxSize); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d mirrors: the image has a file of %d bytes (%v), want %d", mirrors, len(got), err, len(want))
		}
		for _, name := range []string{"EFI/Linux/notes.txt", "loader/loader.conf"} {
			if got, err := volume.ReadFile(name, mib); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("/"+name), 1000)) {
				t.Errorf("%d mirrors: %s has changed: %d bytes, %v", mirrors, name, len(got), err)
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 8*mib {
		t.Errorf("the image of 62 MiB now takes %d bytes (%v)", st.Blocks*512, err)
	}
}

func readVolume(t *testing.T, path string) *esp.Volume {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	sections, err := (&About{Size: 62 * mib}).readTable(f)
	if err != nil {
		t.Fatal(err)
	}
	volume, err := esp.OpenVolume(sections[1])
	if err != nil {
		t.Fatal(err)
	}
	return volume
}

func TestNoNetworkIsPutOnWhatIsNoImage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(path, []byte("dear diary"), 0o600); err != nil {
		t.Fatal(err)
	}
	sound := &joinfile.Network{
		Chain:  joinfile.Chain{ID: "croft-local", RPC: "http://10.0.2.2:26657", GRPC: "grpc://10.0.2.2:9090"},
		Relays: []joinfile.Relay{{Name: "relay.example"}},
	}
	if err := SetNetwork(path, sound); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("a text file: %v", err)
	}
	if err := SetNetwork(newImage(t), &joinfile.Network{}); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("a network without a chain: %v", err)
	}
}

func TestAVoucherIsPutOnTheImage(t *testing.T) {
	path := newImage(t)
	for _, voucher := range []string{"croft1.one-box.signature", "croft1.another.s"} {
		if err := SetVoucher(path, "  "+voucher+"\r\n"); err != nil {
			t.Fatal(err)
		}
		got, err := readVolume(t, path).ReadFile(joinfile.VoucherPath, mib)
		if err != nil || string(got) != voucher+"\n" {
			t.Errorf("the image has %q, %v", got, err)
		}
	}
	if err := SetVoucher(path, "two\nlines"); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("two lines: %v", err)
	}
}
