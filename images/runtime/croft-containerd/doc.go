// Command croft-containerd is containerd's daemon with the plugins the box needs
// and no others: plugins.go is the list, config.toml what they are told.
//
//	croft-containerd [--root DIR] [--state DIR] [--address SOCKET] [--config FILE] [--log-level LEVEL]
//	                 [--cgroup DIR] [--after FILE] [--pause TIME]
//
// The agent speaks to it over SOCKET, with containerd's own API, and is its only
// client: whoever may open the socket is root on the box. It is ready when the
// health service answers. SIGTERM ends it; containers run on.
// With --cgroup it serves on after SIGTERM until its shims are gone, for 75 s at
// most, so that the agent can end containers when the box is switched off.
//
// On a box init starts it with the agent, and again when it ends. It then waits for
// the kernel modules (--after) in a cgroup of its own (--cgroup), where its shims and
// log programs stay too: whatever connects from there to the network is a pull.
// Where it cannot start, as on a box whose /perm is read-only, it tries again after
// a pause (--pause), so that failing costs little.
//
// It pulls by the transfer service. Mirrors and certificates of registries come
// with each pull (host_dir in the request's resolver, a folder with
// HOST/hosts.toml): containerd 2.3 and 2.4 read the transfer plugin's config_path
// and never use it. An OCI image for another architecture is stored but not
// unpacked, and the pull succeeds: the agent looks at its platform.
//
// It finds the shim, containerd-shim-runc-v2, in its own folder, and looks for no
// program elsewhere; gokrazy puts both into /user. Containers name the runtime
// io.containerd.runc.v2. The path of a shim would do as well, but then containerd
// asks it which features runc has, and there is no runc.
//
// Not in it: Kubernetes' CRI, sandboxes, NRI, metrics, tracing, the restart
// monitor (the agent restarts, for the network has to be made anew), image
// verifiers, and every snapshotter but overlayfs.
//
// What survives what: kill -9 of the daemon, every container, its shim and its
// log; the next daemon adopts them, and learns how one ended meanwhile. Power
// cut: blobs, images and snapshots below root; a pull that was under way goes on
// from the bytes it has; state is on a tmpfs and starts empty, so containers are
// known and none runs. Full disk: pulls fail, containers run on; free space and
// pull again. Wrong clock: a garbage collection may come early, and frees only
// what nothing refers to; content leases with an end in time, as those of the
// agent's pulls, may end too soon: what was fetched is fetched again. Dead network:
// pulls only.
package main
