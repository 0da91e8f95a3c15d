package sampling

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of /proc/self/mountinfo.
type mount struct {
	point, kind, source string
	readOnly            bool
}

func (s *Sampler) readMounts(p *pass) {
	text, ok := p.required("proc/self/mountinfo")
	if !ok {
		return
	}
	mounts, err := parseMounts(text)
	if err != nil {
		p.miss("/proc/self/mountinfo", err)
	}
	for _, point := range s.cfg.Mounts {
		// What was mounted last on a point is what one sees.
		i := slices.IndexFunc(mounts, func(m mount) bool { return m.point == point })
		if i < 0 {
			continue
		}
		m := mounts[i]
		readOnly := 0.0
		if m.readOnly {
			readOnly = 1
		}
		p.add(filesystemReadOnly, readOnly, point)
		if m.kind == "ext4" {
			if n, ok := p.number("sys/fs/ext4/" + path.Base(m.source) + "/errors_count"); ok {
				p.add(filesystemErrors, n, point)
			}
		}
		var st unix.Statfs_t
		if err := s.statfs(filepath.Join(s.cfg.Root, point), &st); err != nil {
			p.miss("the space of "+point, err)
			continue
		}
		p.add(filesystemBytes, float64(st.Blocks)*float64(st.Frsize), point, "size")
		p.add(filesystemBytes, float64(st.Bavail)*float64(st.Frsize), point, "available")
		if st.Files > 0 {
			p.add(filesystemInodes, float64(st.Files), point, "size")
			p.add(filesystemInodes, float64(st.Ffree), point, "available")
		}
	}
}

// parseMounts returns what is mounted, latest first, and with it an error if a line
// cannot be read. Points with blanks in them stay as the kernel writes them.
func parseMounts(text string) ([]mount, error) {
	var mounts []mount
	var wrong error
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		where, what := strings.Fields(left), strings.Fields(right)
		if !ok || len(where) < 6 || len(what) < 3 {
			wrong = fmt.Errorf("line is %.128q", line)
			continue
		}
		mounts = append(mounts, mount{
			point: where[4], kind: what[0], source: what[1],
			readOnly: hasOption(where[5], "ro") || hasOption(what[2], "ro"),
		})
	}
	slices.Reverse(mounts)
	return mounts, wrong
}

func hasOption(options, name string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == name {
			return true
		}
	}
	return false
}

func readDisks(p *pass) {
	for _, name := range p.list("sys/block") {
		dir := "sys/block/" + name
		// Loop devices and what lies on other disks have no device of their own.
		if strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "fd") || strings.Contains(name, "boot") || !p.has(dir+"/device") {
			continue
		}
		if hidden, ok := p.word(dir + "/hidden"); ok && hidden != "0" {
			continue // one of several paths to a disk
		}
		if size, ok := p.number(dir + "/size"); ok && size == 0 {
			continue // an empty card reader
		}
		text, ok := p.required(dir + "/stat")
		if !ok {
			continue
		}
		device := label(name)
		d, err := parseDisk(text)
		if err != nil {
			p.miss("/"+dir+"/stat", err)
		} else {
			p.add(diskReads, d.reads, device)
			p.add(diskWrites, d.writes, device)
			p.add(diskReadBytes, d.readBytes, device)
			p.add(diskWrittenBytes, d.writtenBytes, device)
			p.add(diskReadSeconds, d.readSeconds, device)
			p.add(diskWriteSeconds, d.writeSeconds, device)
			p.add(diskBusySeconds, d.busySeconds, device)
		}
		readHealth(p, name)
	}
}

type disk struct {
	reads, readBytes, readSeconds      float64
	writes, writtenBytes, writeSeconds float64
	busySeconds                        float64
}

// parseDisk reads /sys/block/*/stat: 11 numbers, to which newer kernels add.
func parseDisk(text string) (disk, error) {
	const sector, columns = 512, 11
	fields := strings.Fields(text)
	if len(fields) < columns {
		return disk{}, fmt.Errorf("there are %d fields", len(fields))
	}
	var n [columns]float64
	for i := range n {
		var err error
		if n[i], err = parseCount(fields[i]); err != nil {
			return disk{}, err
		}
	}
	return disk{
		reads: n[0], readBytes: n[2] * sector, readSeconds: n[3] / 1000,
		writes: n[4], writtenBytes: n[6] * sector, writeSeconds: n[7] / 1000,
		busySeconds: n[9] / 1000,
	}, nil
}

// readHealth reads what the kernel shows of a drive's health in files.
func readHealth(p *pass, name string) {
	dir, device := "sys/block/"+name+"/device", label(name)
	state := dir + "/state"
	if controller, ok := nvmeController(name); ok {
		state = "sys/class/nvme/" + controller + "/state"
	}
	if word, ok := p.word(state); ok {
		online := 0.0
		if word == "live" || word == "running" {
			online = 1
		}
		p.add(diskOnline, online, device)
	}
	if n, ok := p.coded(dir + "/ioerr_cnt"); ok {
		p.add(diskIOErrors, n, device)
	}
	if !strings.HasPrefix(name, "mmcblk") {
		return
	}
	if text, ok := p.word(dir + "/life_time"); ok {
		tenths, err := parseWear(text)
		if err != nil {
			p.miss("/"+dir+"/life_time", err)
		} else if tenths > 0 { // 0: the drive does not say
			p.add(diskWear, float64(tenths)/10, device)
		}
	}
	if n, ok := p.coded(dir + "/pre_eol_info"); ok && n > 0 {
		p.add(diskEndOfLife, n, device)
	}
}

// nvmeController returns nvme0 of nvme0n1.
func nvmeController(name string) (string, bool) {
	rest, ok := strings.CutPrefix(name, "nvme")
	number, _, ok2 := strings.Cut(rest, "n")
	if _, err := strconv.ParseUint(number, 10, 16); !ok || !ok2 || err != nil {
		return "", false
	}
	return "nvme" + number, true
}

// coded returns the number in a file that drives may lack and that has it in the
// notation of C.
func (p *pass) coded(name string) (float64, bool) {
	text, ok := p.word(name)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		p.miss("/"+name, fmt.Errorf("number is %.32q", text))
	}
	return float64(n), err == nil
}

// parseWear reads the wear of an eMMC's two kinds of memory, in tenths, and returns the
// higher.
func parseWear(text string) (uint64, error) {
	const most = 11
	var highest uint64
	fields := strings.Fields(text)
	for _, word := range fields {
		n, err := strconv.ParseUint(word, 0, 8)
		if err != nil || n > most {
			return 0, fmt.Errorf("wear is %.32q", text)
		}
		highest = max(highest, n)
	}
	if len(fields) != 2 {
		return 0, fmt.Errorf("wear is %.32q", text)
	}
	return highest, nil
}
