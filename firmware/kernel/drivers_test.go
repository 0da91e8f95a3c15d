package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someAliases = `# Aliases extracted from modules themselves.
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias pci:v000015B3d00001013sv*sd*bc*sc*i* mlx5_core
alias auxiliary:mlx5_core.sf mlx5_core
alias pci:v00001022d00001456sv*sd*bc*sc*i* ccp
alias acpi*:AMDI0C00:* ccp
alias usb:v0BDAp8152d*dc*dsc*dp*ic*isc*ip*in* r8152
alias virtio:d00000001v* virtio-net
`

func aliases(t *testing.T) PCIAliases {
	t.Helper()
	pci, err := ParsePCIAliases(strings.NewReader(someAliases))
	if err != nil {
		t.Fatal(err)
	}
	return pci
}

func TestOnlyDriversOfPCIDevicesAreConditional(t *testing.T) {
	want := PCIAliases{
		"e1000e":    {"pci:v00008086d000010D3sv*sd*bc*sc*i*"},
		"ahci":      {"pci:v*d*sv*sd*bc01sc06i01*"},
		"mlx5_core": {"pci:v000015B3d00001013sv*sd*bc*sc*i*"},
	}
	if diff := cmp.Diff(want, aliases(t)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSteps(t *testing.T) {
	deps := Dependencies{
		"net/e1000e.ko": {"ptp.ko"}, "net/mlx5_core.ko": {"tls.ko", "ptp.ko"}, "net/r8152.ko": {"mii.ko"},
		"ata/ahci.ko": {"ata/libahci.ko"}, "scsi/sd_mod.ko": {"t10.ko"},
		"ptp.ko": nil, "tls.ko": nil, "mii.ko": nil, "ata/libahci.ko": nil, "t10.ko": nil,
	}
	wanted := []string{"e1000e", "mlx5-core", "r8152", "ahci", "libahci", "sd_mod"}
	order, err := Closure(wanted, deps, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range Steps(order, wanted, deps, aliases(t)) {
		got[s.File] = strings.Join(s.Drivers, " ")
	}
	want := map[string]string{
		"ptp.ko": "e1000e mlx5_core", "net/e1000e.ko": "e1000e", "tls.ko": "mlx5_core", "net/mlx5_core.ko": "mlx5_core",
		"mii.ko": "", "net/r8152.ko": "", // USB: may be plugged in at any time
		"ata/libahci.ko": "", "ata/ahci.ko": "ahci", // wanted for itself too
		"t10.ko": "", "scsi/sd_mod.ko": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("drivers by module (-want +got):\n%s", diff)
	}
}

func TestToLoad(t *testing.T) {
	const list = "ptp.ko e1000e mlx5_core\ne1000e.ko e1000e\nmlx5_core.ko mlx5_core\nmii.ko\nahci.ko ahci\n"
	const (
		intel = "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\n"
		sata  = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01\n"
		none  = "pci:v00008086d000029C0sv00001AF4sd00001100bc06sc00i00\n"
	)
	for _, tc := range []struct {
		name    string
		devices []string
		aliases bool
		want    string
	}{
		{"a device has its driver and what that needs", []string{none, intel}, true, "ptp.ko e1000e.ko mii.ko"},
		{"a pattern may name a class of devices", []string{sata}, true, "mii.ko ahci.ko"},
		{"without any such device the others are loaded", []string{none}, true, "mii.ko"},
		{"when no device can be seen all are loaded", nil, true, "ptp.ko e1000e.ko mlx5_core.ko mii.ko ahci.ko"},
		{"when the patterns are missing all are loaded", []string{none}, false, "ptp.ko e1000e.ko mlx5_core.ko mii.ko ahci.ko"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, sys := t.TempDir(), t.TempDir()
			write(t, filepath.Join(dir, ListFile), list)
			if tc.aliases {
				var out strings.Builder
				steps := []Step{{Drivers: []string{"mlx5_core", "e1000e"}}, {Drivers: []string{"ahci", "e1000e"}}, {}}
				if err := aliases(t).WriteAliases(&out, steps); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(dir, AliasFile), out.String())
			}
			for i, device := range tc.devices {
				write(t, filepath.Join(sys, "bus/pci/devices", string(rune('a'+i)), "modalias"), device)
			}
			files, err := toLoad(dir, sys)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(files, " "); got != tc.want {
				t.Errorf("to load: %s, want %s", got, tc.want)
			}
		})
	}
	if _, err := toLoad(t.TempDir(), t.TempDir()); err == nil {
		t.Error("no error without a list")
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
