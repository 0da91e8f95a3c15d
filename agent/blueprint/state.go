package blueprint

import (
	"fmt"

	"github.com/croft-cloud/croft/agent/lease"
)

// State is where the workload of a lease stands.
type State string

// The states of a workload.
const (
	WaitingManifest State = "waiting_manifest" // the lease is ours, its manifest is not here. Transitions to: Deploying, Closing
	Deploying       State = "deploying"        // not all replicas of the newest manifest have answered yet. Transitions to: Deploying, Running, Degraded, Closing
	AllRunning      State = "running"          // every replica answers. Transitions to: Deploying, Degraded, Closing
	Degraded        State = "degraded"         // a replica ended or stopped answering. Transitions to: Deploying, Running, Closing
	Closing         State = "closing"          // the lease is over, its things are being freed. Transitions to: Gone
	Gone            State = "gone"             // nothing is left; final
)

// Move is what happens to a workload.
type Move string

// The moves of a workload.
const (
	Accepted Move = "accepted" // a new manifest is stored
	Complete Move = "complete" // every replica of the newest manifest answers
	Impaired Move = "impaired" // a replica is not what it should be
	Closed   Move = "closed"   // the chain says the lease is over
	Freed    Move = "freed"    // nothing is left on the box
	Lost     Move = "lost"     // the stored manifest cannot be read
)

var stateLaw = map[State]map[Move]State{
	WaitingManifest: {Accepted: Deploying, Closed: Closing},
	Deploying:       {Accepted: Deploying, Complete: AllRunning, Impaired: Degraded, Lost: WaitingManifest, Closed: Closing},
	AllRunning:      {Accepted: Deploying, Impaired: Degraded, Lost: WaitingManifest, Closed: Closing},
	Degraded:        {Accepted: Deploying, Complete: AllRunning, Lost: WaitingManifest, Closed: Closing},
	Closing:         {Freed: Gone},
	Gone:            {},
}

// Next is the state after m, or an error if the table has none.
func (s State) Next(m Move) (State, error) {
	if to, ok := stateLaw[s][m]; ok {
		return to, nil
	}
	return s, fmt.Errorf("workload is %s, cannot be %s", s, m)
}

// Judge is the state after a look at a workload's replicas.
func (s State) Judge(key lease.Key, wants []Want, replicas map[lease.ReplicaID]ReplicaState) State {
	whole, broken := true, false
	for _, w := range wants {
		whole = whole && len(w.Plan.Old) == 0
		for _, id := range w.Replicas(key) {
			if id.Revision == w.Plan.Target.Revision {
				state := replicas[id]
				whole = whole && state == Answering
				broken = broken || state == BackingOff || s == AllRunning && state != Answering
			}
		}
	}
	m := Move("")
	switch {
	case whole:
		m = Complete
	case broken:
		m = Impaired
	}
	if to, err := s.Next(m); err == nil {
		return to
	}
	return s
}

// ReplicaState is where one replica stands.
type ReplicaState string

// The states of a replica.
const (
	Wanted     ReplicaState = "new"         // wanted. Transitions to: Pulling, Running (found running), Stopping
	Pulling    ReplicaState = "pulling"     // waits for its OCI image. Transitions to: Creating, Stopping
	Creating   ReplicaState = "creating"    // gets folders and an address. Transitions to: Starting, BackingOff, Stopping
	Starting   ReplicaState = "starting"    // its container is being made and started. Transitions to: Running, BackingOff, Stopping
	Running    ReplicaState = "running"     // its container runs. Transitions to: Answering, BackingOff, Stopping
	Answering  ReplicaState = "answering"   // and does its work. Transitions to: Running, BackingOff, Stopping
	BackingOff ReplicaState = "backing_off" // ended or could not start; will be tried again. Transitions to: Pulling, Stopping
	Stopping   ReplicaState = "stopping"    // not wanted any more. Transitions to: Removed
	Removed    ReplicaState = "removed"     // nothing is left; final
)

// Step is what happens to a replica.
type Step string

// The steps of a replica.
const (
	Begun    Step = "wanted"   // nothing of it is there: make it
	Found    Step = "found"    // its container is there already
	Pulled   Step = "pulled"   // the OCI image is here
	Created  Step = "created"  // folders and address are there
	Started  Step = "started"  // the container runs
	Answered Step = "answered" // it accepts connections
	Silent   Step = "silent"   // it accepts none any more
	Failed   Step = "failed"   // it ended, or could not be made
	Retried  Step = "retried"  // the pause is over
	Stopped  Step = "stopped"  // it is not wanted any more
	Cleared  Step = "removed"  // container, address and folders are gone
)

var replicaLaw = map[ReplicaState]map[Step]ReplicaState{
	Wanted:     {Begun: Pulling, Found: Running, Stopped: Stopping},
	Pulling:    {Pulled: Creating, Stopped: Stopping},
	Creating:   {Created: Starting, Failed: BackingOff, Stopped: Stopping},
	Starting:   {Started: Running, Failed: BackingOff, Stopped: Stopping},
	Running:    {Answered: Answering, Failed: BackingOff, Stopped: Stopping},
	Answering:  {Silent: Running, Failed: BackingOff, Stopped: Stopping},
	BackingOff: {Retried: Pulling, Stopped: Stopping},
	Stopping:   {Cleared: Removed},
	Removed:    {},
}

// Next is the state after e, or an error if the table has none.
func (s ReplicaState) Next(e Step) (ReplicaState, error) {
	if to, ok := replicaLaw[s][e]; ok {
		return to, nil
	}
	return s, fmt.Errorf("replica is %s, cannot be %s", s, e)
}
