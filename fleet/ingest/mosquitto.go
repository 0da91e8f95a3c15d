package ingest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Mosquitto describes a Mosquitto 2 broker for a fleet. Boxes come to one port
// with their certificates, the fleet to another with a password. Write Config to
// mosquitto.conf and ACL to ACLFile, and make PasswordFile with
//
//	mosquitto_passwd -c PasswordFile fleet
//
// Mosquitto reads CRL, PasswordFile and ACLFile again at SIGHUP.
type Mosquitto struct {
	DeviceAddress string // where boxes connect: an IP address, or empty for all
	DevicePort    int
	FleetAddress  string
	FleetPort     int

	Roots string // file: the fleet's root certificates, PEM
	Cert  string // file: the server's certificate and its issuer's, PEM
	Key   string // file: its key, PEM
	CRL   string // file: revoked certificates; empty if there are none yet

	PasswordFile string
	ACLFile      string
	Dir          string // folder that survives a restart: sessions and retained messages
}

// FleetUser is the fleet's name at the broker.
const FleetUser = "fleet"

// Config is mosquitto.conf.
func (m Mosquitto) Config() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	listener := func(port int, address string) {
		line("%s", strings.TrimSpace(fmt.Sprintf("listener %d %s", port, address)))
		line("certfile %s", m.Cert)
		line("keyfile %s", m.Key)
		line("tls_version tlsv1.3")
	}
	line("# One user file and one list of rights for both listeners: with")
	line("# per_listener_settings, what is kept for a session is refused to it after a restart.")
	line("per_listener_settings false")
	line("allow_anonymous false")
	line("password_file %s", m.PasswordFile)
	line("acl_file %s", m.ACLFile)
	line("")
	line("# Sessions of the fleet and desired states survive a restart.")
	line("persistence true")
	line("persistence_location %s/", strings.TrimSuffix(m.Dir, "/"))
	line("autosave_on_changes false")
	line("autosave_interval 30")
	line("")
	line("# By default more than 20 messages wait, and more than 1,000 are dropped.")
	line("max_inflight_messages 1000")
	line("max_queued_messages 0")
	line("max_packet_size %d", maxPacket())
	line("max_keepalive %d", maxKeepalive)
	line("set_tcp_nodelay true")
	line("")
	line("# Boxes: user and client id are the certificate's CN.")
	listener(m.DevicePort, m.DeviceAddress)
	line("cafile %s", m.Roots)
	if m.CRL != "" {
		line("crlfile %s", m.CRL)
	}
	line("require_certificate true")
	line("use_identity_as_username true")
	line("use_username_as_clientid true")
	line("")
	line("# The fleet.")
	listener(m.FleetPort, m.FleetAddress)
	return b.String()
}

// ACL is the list of rights: each device may say what goes up and hear what goes
// down, of its own. It is narrower than croft/v1/%c/#, which would let a device
// tell itself what the fleet would.
func (m Mosquitto) ACL() string {
	var b strings.Builder
	fmt.Fprintf(&b, "user %s\ntopic readwrite croft/v1/#\n\n", FleetUser)
	subjects := fleetapi.Subjects()
	slices.Sort(subjects)
	for _, s := range subjects {
		right := "read "
		if s.Up() {
			right = "write"
		}
		fmt.Fprintf(&b, "pattern %s croft/v1/%%u/%s\n", right, s)
	}
	return b.String()
}
