package hosting

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/ingress"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/relay"
	"github.com/croft-cloud/croft/relay/wire"
)

func leaseNumber(n uint64) akash.LeaseID {
	return akash.LeaseID{OrderID: akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: "akash1tenant", DSeq: n}, GSeq: 1}, OSeq: 1}, Provider: "akash1box"}
}

func servicePort(lease uint64, service string, port, external uint16, udp bool) blueprint.Port {
	return blueprint.Port{
		Lease: leaseNumber(lease), Service: service, Port: port, External: external, UDP: udp,
		Backends: []netip.AddrPort{netip.MustParseAddrPort("10.88.0.2:1")},
	}
}

func TestProtocolsAreSeenAndNothingIsLost(t *testing.T) {
	for _, want := range [][]string{nil, {"h2"}, {"h2", "http/1.1"}} {
		client, server := net.Pipe()
		done := make(chan error, 1)
		go func() {
			conn := tls.Client(client, &tls.Config{ServerName: "gateway.example", NextProtos: want, InsecureSkipVerify: true}) // no certificate is shown
			err := conn.Handshake()
			done <- errors.Join(err, client.Close())
		}()
		got, again, err := peek(server)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("offered %q: got %q, %v", want, got, err)
		}
		// The whole hello is there for the one who serves it.
		errSeen := errors.New("seen")
		err = tls.Server(again, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName != "gateway.example" {
				t.Errorf("the second reader sees %q", hello.ServerName)
			}
			return nil, errSeen
		}}).Handshake()
		if !errors.Is(err, errSeen) {
			t.Errorf("the second reader fails with %v", err)
		}
		server.Close()
		if err := <-done; err == nil {
			t.Error("the client saw a handshake that nobody finished")
		}
	}
}

func TestWhatIsNoHelloIsTurnedAway(t *testing.T) {
	client, server := net.Pipe()
	go func() {
		_, err := client.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		if err == nil {
			err = client.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}()
	if _, _, err := peek(server); err == nil {
		t.Error("plain HTTP was taken for TLS")
	}
	server.Close()
}

func TestADoorwayHandsOverAndCloses(t *testing.T) {
	d := newDoorway()
	a, b := net.Pipe()
	defer b.Close()
	brought := make(chan error, 1)
	go func() { brought <- d.bring(t.Context(), a) }()
	got, err := d.Accept()
	if err != nil || got != a || <-brought != nil {
		t.Errorf("accepted %v, %v", got, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.bring(gone, a); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody accepts: %v", err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if err := d.bring(t.Context(), a); !errors.Is(err, net.ErrClosed) {
		t.Errorf("bring after close: %v", err)
	}
}

func TestPortsKeepTheirDoors(t *testing.T) {
	var d doors
	web, game, other := servicePort(1, "web", 80, 80, false), servicePort(1, "game", 7777, 7777, true), servicePort(2, "web", 80, 80, false)
	numbers := func(ports ...blueprint.Port) map[wire.Port]uint16 {
		routes := d.open(blueprint.Table{Ports: ports})
		for i, r := range routes.Ports {
			if r.Port == 0 || slices.ContainsFunc(routes.Ports[:i], func(o ingress.PortRoute) bool { return o.Port == r.Port && o.Proto == r.Proto }) {
				t.Errorf("routes are %+v", routes.Ports)
			}
		}
		return d.number
	}
	first := numbers(web, game)
	second := numbers(other, game, web)
	for _, p := range []blueprint.Port{web, game} {
		if first[wirePort(p)] != second[wirePort(p)] {
			t.Errorf("%s moved from door %d to %d", p.Service, first[wirePort(p)], second[wirePort(p)])
		}
	}
	if third := numbers(other); third[wirePort(other)] != second[wirePort(other)] || len(third) != 1 {
		t.Errorf("doors are %v", third)
	}
	if fourth := numbers(web, other); fourth[wirePort(web)] == fourth[wirePort(other)] {
		t.Errorf("two ports behind one door: %v", fourth)
	}
	// The same port of a service under two external numbers has one door.
	twice := web
	twice.External = 8080
	if routes := d.open(blueprint.Table{Ports: []blueprint.Port{web, twice}}); len(routes.Ports) != 1 {
		t.Errorf("routes are %+v", routes.Ports)
	}
}

func TestRelaysNumberPortsEachItsOwnWay(t *testing.T) {
	web, mail := wirePort(servicePort(1, "web", 80, 80, false)), wirePort(servicePort(2, "mail", 25, 25, false))
	held := func(p wire.Port, external uint16) wire.HeldPort { return wire.HeldPort{Port: p, External: external} }
	states := []relay.RelayState{
		{Name: "one", Ports: []wire.HeldPort{held(web, 31000), held(mail, 31001)}},
		{Name: "two", Ports: []wire.HeldPort{held(mail, 31000), {Port: web, Problem: wire.ProblemFull}}},
	}
	var d doors
	d.open(blueprint.Table{Ports: []blueprint.Port{servicePort(1, "web", 80, 80, false), servicePort(2, "mail", 25, 25, false)}})
	for _, tc := range []struct {
		relay    string
		external uint16
		kind     wire.Kind
		want     wire.Port
	}{{"one", 31000, wire.KindTCP, web}, {"one", 31001, wire.KindTCP, mail}, {"two", 31000, wire.KindTCP, mail}} {
		if got, ok := d.behind(states, tc.relay, tc.kind, tc.external); !ok || got != d.number[tc.want] {
			t.Errorf("port %d of relay %s leads to door %d, %v", tc.external, tc.relay, got, ok)
		}
	}
	for _, relay := range []string{"two", "three"} {
		if got, ok := d.behind(states, relay, wire.KindTCP, 31001); ok {
			t.Errorf("a port that relay %s does not have leads to %d", relay, got)
		}
	}
	if _, ok := d.behind(states, "one", wire.KindUDP, 31000); ok {
		t.Error("a UDP port leads to a TCP service")
	}
	if got := externals(states, mail); !slices.Equal(got, []uint16{31001, 31000}) {
		t.Errorf("mail is at %v", got)
	}
	if got := externals(states, web); !slices.Equal(got, []uint16{31000}) {
		t.Errorf("web is at %v", got)
	}
}

func TestRelaysAreAskedForWhatTheyDoNotGiveAnyway(t *testing.T) {
	table := blueprint.Table{
		Hosts: []blueprint.Host{{Name: "shop.example"}, {Name: "x.box.example"}, {Name: "box.example"}, {Name: "notbox.example"}},
		Ports: []blueprint.Port{servicePort(1, "web", 80, 80, false), servicePort(1, "web", 80, 8080, false), servicePort(1, "web", 80, 80, true)},
	}
	hosts, ports := wanted(table, "box.example")
	if !slices.Equal(hosts, []string{"shop.example", "notbox.example"}) || len(ports) != 2 {
		t.Errorf("wanted are %q, %v", hosts, ports)
	}
	for _, p := range ports {
		if err := p.Check(); err != nil {
			t.Error(err)
		}
	}
	for n := range 200 {
		table.Hosts = append(table.Hosts, blueprint.Host{Name: "h.example"})
		table.Ports = append(table.Ports, servicePort(uint64(n), "web", 80, 80, false))
	}
	if hosts, ports := wanted(table, "box.example"); len(hosts) != wire.MaxNames || len(ports) != wire.MaxPorts {
		t.Errorf("%d hosts and %d ports are wanted", len(hosts), len(ports))
	}
}

// A reader of what was peeked at gets every byte once, in any pieces.
func TestAReplayIsComplete(t *testing.T) {
	client, server := net.Pipe()
	go func() {
		if _, err := client.Write([]byte("fghij")); err != nil {
			t.Error(err)
		}
		client.Close()
	}()
	raw, err := io.ReadAll(&replay{Conn: server, first: []byte("abcde")})
	if err != nil || string(raw) != "abcdefghij" {
		t.Errorf("read %q, %v", raw, err)
	}
}
