package outside

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are looked for here: below the range from which Linux takes the ports of
// outgoing connections, so that nobody takes one by chance while what listens on
// it is stopped.
const (
	firstPort = 20_000
	lastPort  = 32_000
)

// freePorts finds n ports in a row that nobody listens on at 127.0.0.1, neither
// with TCP nor with UDP, and returns the first.
func freePorts(n int) (uint16, error) {
	for range 200 {
		first := firstPort + rand.IntN(lastPort-firstPort-n)
		if allFree(first, n) {
			return uint16(first), nil
		}
	}
	return 0, fmt.Errorf("find %d free ports on 127.0.0.1: none seen between %d and %d", n, firstPort, lastPort)
}

func allFree(first, n int) bool {
	for port := first; port < first+n; port++ {
		address := loopback(uint16(port))
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			return false
		}
		tcp.Close()
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			return false
		}
		udp.Close()
	}
	return true
}

// choosePorts replaces each port that is 0 by a free one.
func choosePorts(ports ...*uint16) error {
	free, err := freePorts(len(ports))
	if err != nil {
		return err
	}
	for i, p := range ports {
		if *p == 0 {
			*p = free + uint16(i)
		}
	}
	return nil
}

func loopback(port uint16) string { return at("127.0.0.1", port) }

func at(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
