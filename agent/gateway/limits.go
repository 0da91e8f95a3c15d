package gateway

import "time"

// Limits of a connection.
const (
	maxConnections          = 512              // of each listener; one costs some 40 KiB
	maxConnectionsPerClient = 64               // of one address; a tool uses up to 6 and a proxy of many tenants more
	headerTimeout           = 10 * time.Second // for handshake and header: what slowloris stretches
	bodyTimeout             = 60 * time.Second // for header and body: a manifest of 1 MiB over 20 KiB/s
	answerTimeout           = 30 * time.Second // for the answer to be taken, where nothing else is said
	idleTimeout             = 60 * time.Second // between two requests
	grace                   = 3 * time.Second  // for running requests when the gateway stops
)

// Limits of a request.
const (
	maxHeaderBytes   = 32 << 10 // twice the longest token
	maxManifestBytes = 1 << 20  // the chain bounds groups and units: real ones stay below 100 KiB
	maxManifests     = 16       // read or looked at, at once: each costs its size, and twice that while it is understood
	maxManifestsEach = 4        // of one account
	manifestPause    = 100 * time.Millisecond
	manifestPatience = 10 * time.Second  // for a place among them
	maxMigrateBytes  = 64 << 10          // 255 bytes for each of a few hundred host names
	maxMigrateNames  = 256               // of one request
	manifestTimeout  = 120 * time.Second // as on Akash: the provider may wait for the chain
	queryTimeout     = 20 * time.Second  // all else that is asked once
	maxErrorRunes    = 1000              // of a sentence to a client
)

// Rates. The first number is per second, the second how much may come at once.
const (
	clientRate  = 20 // of one address, before anything else is looked at
	clientBurst = 200
	tenantRate  = 20 // of one account: the command line asks once a second
	tenantBurst = 100
	idleFrames  = 1 // of a client that has nothing to say: logs, events; some tools keep connections alive so
	idleBurst   = 64
)

// Limits of streams (logs, events, shells).
const (
	maxStreams          = 256              // each costs a connection and four goroutines
	maxStreamsPerTenant = 32               // some people, some tools
	maxStrays           = 32               // of accounts without the lease, which are told so: they take no place of tenants
	maxStraysPerAccount = 4                // of one of them
	maxShells           = 64               // of them; each is a process in a sandbox
	maxShellsPerTenant  = 16               // a person has a few open
	pingEvery           = 10 * time.Second // as on Akash
	pongWithin          = 15 * time.Second // of the last one, as on Akash
	writeWithin         = 15 * time.Second // one message; a client slower than that is dropped
	maxFrameBytes       = 256 << 10        // from a client: shells send 16 KiB, pasted text may be more
	maxDrainFrames      = 64               // that are read after the last word was said
	maxOutputBytes      = 32 << 10         // of a shell in one message
	stdinWithin         = 10 * time.Minute // for a program to read what was typed
	maxPodIndex         = 10_000
	maxServiceNames     = 64 // in a list of services
)
