// Package fleettest tries the whole fleet: croft-fleet as operators run it, with boxes
// that are simulated by the real code of the box (internal/simbox), killed and cut off
// in the middle. Everything is asked by the HTTP API, as a program would.
//
// The same tests run on both set-ups (build tag integration): one croft-fleet with SQLite
// and the broker that is built in; and two replicas with PostgreSQL and Mosquitto.
package fleettest
