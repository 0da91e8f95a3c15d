package sampling

// flows are the files in which the kernel counts what a link carries.
var flows = [...]struct {
	file      string
	metric    metric
	direction string
}{
	{"rx_bytes", networkBytes, "in"},
	{"tx_bytes", networkBytes, "out"},
	{"rx_packets", networkPackets, "in"},
	{"tx_packets", networkPackets, "out"},
	{"rx_errors", networkErrors, "in"},
	{"tx_errors", networkErrors, "out"},
	{"rx_dropped", networkDrops, "in"},
	{"tx_dropped", networkDrops, "out"},
}

func readNetwork(p *pass) {
	for _, name := range p.list("sys/class/net") {
		dir := "sys/class/net/" + name
		if !p.has(dir + "/device") { // lo, bridges, the leases' links
			continue
		}
		link := label(name)
		for _, f := range flows {
			if n, ok := p.number(dir + "/statistics/" + f.file); ok {
				p.add(f.metric, n, link, f.direction)
			}
		}
		if n, ok := p.number(dir + "/carrier_changes"); ok {
			p.add(networkCarrierChanges, n, link)
		}
		state, ok := p.word(dir + "/operstate")
		if !ok {
			continue
		}
		if state != "up" {
			p.add(networkUp, 0, link)
			continue
		}
		p.add(networkUp, 1, link)
		// Virtual and wireless links do not know theirs, and say -1 or that the question is wrong.
		if mbits, ok := p.number(dir + "/speed"); ok && mbits > 0 {
			p.add(networkSpeed, mbits*1e6, link)
		}
	}
}
