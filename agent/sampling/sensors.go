package sampling

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// What a sensor can say at all; beyond that it is broken or not connected.
const (
	coldest = -100 // °C
	hottest = 250
)

// chip is a folder of hwmon.
type chip struct {
	dir   string
	name  string // its driver's name for it
	unit  string // the device it belongs to; empty if it does not say
	files []string
}

// zone is a thermal zone.
type zone struct {
	dir  string
	kind string
}

func readSensors(p *pass) {
	var chips []chip
	for _, n := range p.numbered("sys/class/hwmon", "hwmon") {
		c := chip{dir: "sys/class/hwmon/hwmon" + strconv.Itoa(n)}
		var ok bool
		if c.name, ok = p.word(c.dir + "/name"); !ok {
			continue
		}
		c.unit = p.target(c.dir + "/device")
		if blocks := p.driveOf(c); len(blocks) > 0 {
			c.unit = blocks[0]
		}
		c.files = p.list(c.dir)
		chips = append(chips, c)
	}
	var zones []zone
	for _, n := range p.numbered("sys/class/thermal", "thermal_zone") {
		z := zone{dir: "sys/class/thermal/thermal_zone" + strconv.Itoa(n)}
		var ok bool
		if z.kind, ok = p.word(z.dir + "/type"); ok {
			zones = append(zones, z)
		}
	}
	hasCore := slices.ContainsFunc(chips, func(c chip) bool { return c.name == "coretemp" })
	names := map[string]int{}
	for _, z := range zones {
		names[z.kind]++
		if z.kind == "x86_pkg_temp" && hasCore || z.kind == "INT3400 Thermal" {
			continue // coretemp tells the same; INT3400 is no sensor and always says 20 °C
		}
		readZone(p, z, names[z.kind])
	}
	for _, c := range chips {
		readChip(p, c, !fromZone(c, zones))
	}
	readCooling(p)
}

// driveOf returns the name of the disk that a chip measures.
func (p *pass) driveOf(c chip) []string {
	if c.name != "drivetemp" {
		return nil
	}
	return p.list(c.dir + "/device/block")
}

// fromZone says whether hwmon shows a thermal zone once more.
func fromZone(c chip, zones []zone) bool {
	if strings.HasPrefix(c.unit, "thermal_zone") {
		return true
	}
	return c.unit == "" && slices.ContainsFunc(zones, func(z zone) bool {
		return strings.ReplaceAll(z.kind, "-", "_") == c.name
	})
}

// readZone reads a thermal zone, the nth of its kind.
func readZone(p *pass, z zone, nth int) {
	sensor := z.kind
	if nth > 1 {
		sensor += "#" + strconv.Itoa(nth)
	}
	sensor = sensorName(sensor)
	p.temperature(temperature, z.dir+"/temp", sensor)
	for _, n := range numbersOf(p.list(z.dir), "trip_point_", "_type") {
		trip := z.dir + "/trip_point_" + strconv.Itoa(n)
		if kind, ok := p.word(trip + "_type"); ok && kind == "critical" {
			p.temperature(temperatureLimit, trip+"_temp", sensor)
			return
		}
	}
}

func readChip(p *pass, c chip, temperatures bool) {
	prefix := chipName(c.name, c.unit)
	if temperatures {
		names := p.channels(c, "temp", "_input")
		for _, ch := range names {
			if fault, ok := p.word(c.dir + "/" + ch.name + "_fault"); ok && fault != "0" {
				continue // nothing is connected
			}
			sensor := sensorName(prefix + ":" + ch.label)
			p.temperature(temperature, c.dir+"/"+ch.name+"_input", sensor)
			if slices.Contains(c.files, ch.name+"_crit") {
				p.temperature(temperatureLimit, c.dir+"/"+ch.name+"_crit", sensor)
			}
		}
	}
	for _, ch := range p.channels(c, "fan", "_input") {
		if rpm, ok := p.number(c.dir + "/" + ch.name + "_input"); ok {
			p.add(fanSpeed, rpm, sensorName(prefix+":"+ch.label))
		}
	}
	// A chip has one or the other of a channel, or both of the same.
	averages := p.channels(c, "power", "_average")
	for _, ch := range averages {
		if microwatts, ok := p.number(c.dir + "/" + ch.name + "_average"); ok {
			p.add(power, microwatts/1e6, sensorName(prefix+":"+ch.label))
		}
	}
	for _, ch := range p.channels(c, "power", "_input") {
		if slices.Contains(averages, ch) {
			continue
		}
		if microwatts, ok := p.number(c.dir + "/" + ch.name + "_input"); ok {
			p.add(power, microwatts/1e6, sensorName(prefix+":"+ch.label))
		}
	}
	if c.name == "rpi_volt" {
		if alarm, ok := p.number(c.dir + "/in0_lcrit_alarm"); ok {
			p.add(undervoltage, min(max(alarm, 0), 1), sensorName(prefix))
		}
	}
}

// channel is one sensor of a chip.
type channel struct {
	name  string // temp1
	label string // what its maker calls it, or its name; different for each
}

// channels returns those of a kind that have a file with this ending, in order.
func (p *pass) channels(c chip, kind, ending string) []channel {
	var list []channel
	used := map[string]bool{}
	for _, n := range numbersOf(c.files, kind, ending) {
		ch := channel{name: kind + strconv.Itoa(n)}
		ch.label = ch.name
		if slices.Contains(c.files, ch.name+"_label") {
			if l, ok := p.word(c.dir + "/" + ch.name + "_label"); ok && sensorName(l) != "" {
				ch.label = sensorName(l)
			}
		}
		if used[ch.label] {
			ch.label += "_" + ch.name
		}
		used[ch.label] = true
		list = append(list, ch)
	}
	return list
}

// temperature reads a file of thousandths of a degree.
func (p *pass) temperature(m metric, file, sensor string) {
	millis, ok := p.number(file)
	if !ok {
		return
	}
	if millis < coldest*1000 || millis > hottest*1000 {
		if m == temperature { // a limit that is none is no loss
			p.miss("/"+file, errors.New("no sensor measures "+strconv.FormatFloat(millis/1000, 'f', 3, 64)+" °C"))
		}
		return
	}
	p.add(m, millis/1000, sensor)
}

// chipName names a chip so that it is another than any other's and the same at each
// boot: coretemp.0, nvme0, k10temp@0000:00:18.3, acpitz.
func chipName(name, unit string) string {
	switch {
	case unit == "":
		return name
	case strings.HasPrefix(unit, name):
		return unit
	}
	return name + "@" + unit
}

func sensorName(s string) string { return label(strings.ToLower(s)) }

// readCooling reads what is done against heat. Most types come once per processor; the
// hardest at work is told. A device without steps, or that tells none, is left out.
func readCooling(p *pass) {
	const dir = "sys/class/thermal"
	shares := map[string]float64{}
	var order []string
	for _, n := range p.numbered(dir, "cooling_device") {
		device := dir + "/cooling_device" + strconv.Itoa(n)
		kind, ok := p.word(device + "/type")
		state, ok2 := p.number(device + "/cur_state")
		most, ok3 := p.number(device + "/max_state")
		if !ok || !ok2 || !ok3 || most <= 0 || state < 0 {
			continue
		}
		kind = sensorName(kind)
		if _, ok := shares[kind]; !ok {
			order = append(order, kind)
		}
		shares[kind] = max(shares[kind], state/most)
	}
	for _, kind := range order {
		p.add(cooling, shares[kind], kind)
	}
}

// readEnergy reads the energy counters of whole sockets; those of their parts lie below.
func readEnergy(p *pass) {
	const dir = "sys/class/powercap"
	for _, n := range p.numbered(dir, "intel-rapl:") {
		domain := dir + "/intel-rapl:" + strconv.Itoa(n)
		name, ok := p.word(domain + "/name")
		if !ok {
			continue
		}
		if microjoules, ok := p.number(domain + "/energy_uj"); ok {
			p.add(energy, microjoules/1e6, sensorName(name))
		}
	}
}
