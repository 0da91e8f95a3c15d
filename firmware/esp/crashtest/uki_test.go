package crashtest_test

import (
	"bytes"
	"testing"

	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/firmware/esp/crashtest"
	"github.com/croft-cloud/croft/firmware/slot"
)

func TestCheckUKI(t *testing.T) {
	whole := crashtest.UKI("root=a", 100<<10, 1)
	noInitrd := bytes.Replace(whole, []byte(".initrd"), []byte(".nothin"), 1)
	const name = "croft_0002_b_1.1.0+3.efi"
	for _, tc := range []struct {
		name    string
		content []byte
		want    slot.UKIState
	}{
		{"a whole image", whole, slot.UKIIntact},
		{"one cut in its last section", whole[:len(whole)-1], slot.UKITruncated},
		{"one cut in its header", whole[:100], slot.UKITruncated},
		{"one without initrd", noInitrd, slot.UKITruncated},
		{"zeros", make([]byte, 4096), slot.UKITruncated},
		{"an empty file", []byte{}, slot.UKITruncated},
		{"no file", nil, slot.UKIMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string][]byte{"croft_0001_a_1.0.0.efi": whole}
			if tc.content != nil {
				files[name] = tc.content
			}
			v, err := esp.OpenVolume(bytes.NewReader(image(t, files)))
			if err != nil {
				t.Fatal(err)
			}
			e, err := slot.ParseName(name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := v.CheckUKI(e); err != nil || got != tc.want {
				t.Errorf("CheckUKI = %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}
