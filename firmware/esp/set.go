package esp

import "github.com/croft-cloud/croft/firmware/slot"

// Read lists the boot files, as [Partition.Read] does.
func (v *Volume) Read() (slot.Set, error) {
	files, err := v.Files()
	if err != nil {
		return slot.Set{}, err
	}
	var names []string
	for _, f := range files {
		if f.Size > 0 {
			names = append(names, f.Name)
		}
	}
	return slot.ParseNames(names), nil
}
