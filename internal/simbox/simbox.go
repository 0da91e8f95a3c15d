// Package simbox is boxes without machines: the agent's own line to its fleet,
// with made-up readings, and everything about it that can go wrong.
//
//	b, err := simbox.Open(simbox.Config{Dir: dir, Fleet: simbox.Fleet{URL: url, Roots: roots}})
//	go b.Run(ctx)
//	b.Code()            // what an owner types to claim it
//	b.Link().Cut()      // and b.Link().Mend()
//	b.Clock().Set(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), false)
//
//	c, err := simbox.NewCrowd(simbox.CrowdConfig{Fleet: fleet, Boxes: 20_000})
//	go c.Run(ctx)
//	c.Stats()
//
// # Three kinds
//
// A [Box] is a whole one: key and identity, journal, enrolment, spool, session,
// events, jobs and desired state are those of a real box (agent/uplink and what
// it stands on). Made up are the machine that it reads, the leases that come and
// go on it, and what its jobs do: a reboot ends the session and comes back under
// another boot ID, a bundle is a small zip.
//
// A [Crowd] is many light boxes for load: each has a key and a certificate of its
// own, speaks TLS, MQTT and the codec of fleetapi, and pauses between its tries
// as agent/uplink does. It has one goroutine and one connection, no disk and no
// spool: readings made while the fleet is away are lost, job statuses are sent
// until they are acknowledged. It answers each job at once.
//
// A [Line] is one session and nothing beside it, to say what no sound box would:
// to the topics of others, twice, out of order, malformed.
//
// # Faults
//
//	clock       Clock: any time, believed or not
//	link        Link: cut, or silent so that nobody notices
//	kill -9     end the process; or cut the link, end Run and open the folder again: to
//	            the fleet the same, but the box writes down what it had in memory
//	full spool  Config.Budget
//	twice, out  Line: say again what the fleet has
//	of order
//
// Nothing here waits on the machine's network but [Link] and the Dial of a crowd:
// with those in memory a fleet and thousands of boxes live in a bubble of
// testing/synctest, where an hour is a moment and a second is exact.
//
// # What survives what
//
// A box is its folder, and survives what a real one does. Of a crowd, keys,
// certificates and claim codes are kept; a line cut off at the end of their file
// is a box that enrols again as another. Its certificates last 90 days and are not
// renewed: what is over when a crowd starts is replaced.
package simbox
