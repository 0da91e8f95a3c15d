package kernel

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

func TestClosure(t *testing.T) {
	deps, err := ParseDependencies(strings.NewReader(`kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/lib/crc16.ko:
kernel/fs/mbcache.ko:
kernel/fs/jbd2/jbd2.ko: kernel/lib/crc-x.ko
kernel/lib/crc-x.ko:
kernel/drivers/md/dm-verity.ko: kernel/drivers/md/dm-bufio.ko kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-bufio.ko: kernel/drivers/md/dm-mod.ko
kernel/drivers/md/dm-mod.ko:
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		wanted []string
		have   map[string]bool
		want   []string
	}{
		{"needs come first, each once", []string{"ext4", "dm_verity"}, nil, []string{
			"kernel/lib/crc16.ko", "kernel/fs/mbcache.ko", "kernel/lib/crc-x.ko", "kernel/fs/jbd2/jbd2.ko", "kernel/fs/ext4/ext4.ko",
			"kernel/drivers/md/dm-mod.ko", "kernel/drivers/md/dm-bufio.ko", "kernel/drivers/md/dm-verity.ko",
		}},
		{"dash and underscore are the same", []string{"dm-mod"}, nil, []string{"kernel/drivers/md/dm-mod.ko"}},
		{"what is loaded already is left out", []string{"dm_verity"}, map[string]bool{"dm_mod": true}, []string{
			"kernel/drivers/md/dm-bufio.ko", "kernel/drivers/md/dm-verity.ko",
		}},
		{"what is built in needs no file", []string{"virtio"}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Closure(tc.wanted, deps, map[string]bool{"virtio": true}, tc.have)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Closure (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := Closure([]string{"ext4", "warp_drive"}, deps, nil, nil); croft.KindOf(err) != croft.KindNotFound {
		t.Errorf("an unknown module gave %v, want a %s error", err, croft.KindNotFound)
	}
}
