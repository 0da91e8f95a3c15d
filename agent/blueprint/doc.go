// Package blueprint turns a manifest into replicas: it checks what a tenant sent,
// says what the box should run for it, and what to do next to get there from
// what runs.
//
//	sent, err := blueprint.Read(body)                      // what it means, if a box can run it
//	err = sent.Fits(hash, groups)                          // whether it is the one on chain
//	plan, changed := plan.Follow(groups, answering, key)   // a new manifest is taken in
//	deeds := blueprint.Decide(situation)                   // again after each of them; none: it is as it should be
//	state, err := state.Next(blueprint.Accepted)           // the state machines
//	state = state.Judge(key, plan.Wants(groups), replicas) // after a look at what runs
//	container := blueprint.Container(service, site)        // for the runtime
//	table := routes.Table()                                // for the ingress
//
// It does no I/O, starts nothing and remembers nothing: agent/workload does, and
// asks this package what. It does not ask the chain whether a manifest is the
// right one.
//
// It promises that whatever a tenant sends is refused, or becomes containers that
// stay within the lease's disk and deeds that come to an end; that no deed gives a
// persistent volume a second user, or the replicas of a lease more memory and
// GPUs than was leased and lent; and that during an update the old replicas go as
// new ones answer, unless there is no room for both, which the deed says.
package blueprint
