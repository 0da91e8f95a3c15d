package main

// What is linked in. A plugin registers itself when it is imported, so this list
// is the feature list of the daemon; what is missing from it cannot be switched on.
import (
	_ "github.com/containerd/containerd/api/types/runc/options"              // decodes the shim's options
	_ "github.com/containerd/containerd/v2/core/runtime/v2"                  // starts shims, finds them again
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"     // blobs on disk
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"      // layers to files
	_ "github.com/containerd/containerd/v2/plugins/events"                   // events between plugins and to the agent
	_ "github.com/containerd/containerd/v2/plugins/gc"                       // frees what nothing refers to
	_ "github.com/containerd/containerd/v2/plugins/leases"                   // keeps what is being worked on
	_ "github.com/containerd/containerd/v2/plugins/metadata"                 // the bolt database
	_ "github.com/containerd/containerd/v2/plugins/mount"                    // the task service wants it
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"              // the agent's door
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"             // the shims' door
	_ "github.com/containerd/containerd/v2/plugins/services/containers"      // API: containers
	_ "github.com/containerd/containerd/v2/plugins/services/content"         // API: blobs
	_ "github.com/containerd/containerd/v2/plugins/services/diff"            // API: layers
	_ "github.com/containerd/containerd/v2/plugins/services/events"          // API: events, also from shims
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"     // API: is it up
	_ "github.com/containerd/containerd/v2/plugins/services/images"          // API: images
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"   // API: which plugins
	_ "github.com/containerd/containerd/v2/plugins/services/leases"          // API: content leases
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"      // API: namespaces
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"       // API: snapshots
	_ "github.com/containerd/containerd/v2/plugins/services/streaming"       // API: progress and credentials of a pull
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"           // API: running containers
	_ "github.com/containerd/containerd/v2/plugins/services/transfer"        // API: pull
	_ "github.com/containerd/containerd/v2/plugins/services/version"         // API: version
	_ "github.com/containerd/containerd/v2/plugins/services/warning"         // deprecations, for introspection
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin" // layers as overlayfs
	_ "github.com/containerd/containerd/v2/plugins/streaming"                // streams behind the API
	_ "github.com/containerd/containerd/v2/plugins/transfer"                 // pulls and unpacks
)
