package law

// Text is the law. A package that is not in it does not exist, so adding a
// package begins here; the same table stands in ARCHITECTURE.md, where the test
// keeps it equal (go test ./internal/law -update).
//
// Patterns: "a/b" is that package, "a/*" each package right below a, "a/..." a
// and all below it, "." the root package, "./..." every package of this module.
// Other words are import paths from outside; they cover what lies below them.
// A line "word = …" names a list.
const Text = `
floors: a package imports lower floors only
  0  .                        ids, enums, values, error kinds; standard library only
  1  internal/atomicfile      replace a file so that a power cut leaves the old or the new one
  1  internal/law             this table, as a test
  1  internal/supervise       run workers, restart them with back-off
  1  internal/version         which build this is
  2  firmware/slot            A/B slots and boot state, as pure decisions
  2  firmware/boards          one gokrazy config and kernel choice per board, embedded
  2  firmware/bootlog         what one boot leaves behind for the next program and the next boot
  2  firmware/bootdisk        the disk the firmware booted, and its partitions
  2  firmware/watchdog        the hardware watchdog: arm, feed, hand over
  3  firmware/perm            /perm: create, repair, grow, mount
  3  firmware/esp             the EFI partition: unified kernel images, boot counters, bless
  3  firmware/verity          dm-verity: hash tree, open, check
  3  firmware/kernel          which Debian kernel, which modules, in which order
  3  firmware/loader          the small EFI program that starts systemd-boot
  2  images/manifest          what a release contains: digests, sizes, board, version; canonical bytes
  3  images/release           the TUF repository: roles, sign, verify
  3  images/delta             from one root to the next
  4  images/media             look at finished disk images; write them to disks
  4  images/build             board + packages → reproducible disk image, update bundle, SBOM
  2  provisioning/claim       claim codes and the claim's state machine
  2  provisioning/joinfile    what a box must be told about the network it joins
  2  provisioning/enroll      device key → device certificate: messages and checks of both sides
  3  provisioning/factory     serial numbers, label, first flash, factory report
  2  hwtest/report            results with unit, method version, spread; signing
  3  hwtest/bench             CPU, memory, disk, network benchmarks
  3  hwtest/gpu               GPU facts and counters behind one interface
  3  hwtest/burnin            pass/fail hardware check
  2  chain/api                the wire contract: .proto files and what generates from them
  2  chain/api/*              generated messages of clients; no cosmos-sdk
  2  chain/gogo/*             generated messages of cosmos-sdk's codec, from the same contract
  2  chain/account            keys and addresses
  2  chain/comet              a node's JSON-RPC, one call and one subscription at a time
  3  chain/akash              ids, prices, events and verdicts of an Akash-compatible chain, as Go values
  3  chain/sdl                SDL 2.0/2.1 → manifest, groups, hash
  4  chain/client             sign, broadcast, query, watch; the one door to a chain
  3  chain/keystore           a tenant's keys in files, encrypted when they wish
  3  chain/credential         certificates and tokens with which tenant and provider know each other
  3  chain/cometnode          what a program needs around CometBFT: keys, databases, snapshots, log, watchdog
  3  chain/x/*                keepers and rules, one folder per module
  4  chain/app                wires the modules into one chain, and runs a node of it
  5  chain/tenant/gatewayclient a provider's gateway as its tenants speak to it
  5  chain/tenant/quote       which providers fit, what a lease costs, how long the money lasts
  6  chain/tenant             a tenant's side of a deployment: bids, lease, manifest, update, close
  6  chain/chaintest          a chain in memory, and the suite every chain client passes
  3  agent/journal            crash-safe local state on /perm
  3  agent/identity           device key and certificate
  4  agent/inventory          CPU, memory, disk and board facts from /proc and /sys
  4  agent/lease              the words the workers share about leases
  4  agent/crowd              how many strangers, how often, and when the last has left
  4  agent/offer              what the box asks for an order, and why it makes no offer
  5  agent/bidding            order → bid → lease: the provider's state machine
  5  agent/blueprint          a manifest as replicas, and the next step towards them
  5  agent/diary              the numbered events of one lease
  5  agent/ocispec            OCI references and images, and the spec a sandbox is made from
  5  agent/replicalog         what a replica has said, across rotated files
  6  agent/workload           lease → running → settled: the workload's state machine
  6  agent/sandbox            the one door to containerd and runsc
  5  agent/leasedisk          one encrypted disk image per lease
  5  agent/network/firewall   who may reach whom, as rules of nftables
  6  agent/network            routed veth, nftables, shaping, byte counters
  5  agent/gateway            the provider gateway: REST, websockets, gRPC status
  5  agent/ingress            hosts and ports of a lease → its containers, through the relay
  4  agent/sampling           what the box reads about itself: CPU, memory, disks, heat, network, leases
  3  agent/uplink/spool       messages that wait for the broker
  4  agent/uplink             the box's line to the fleet: spool, events, jobs, desired state
  7  agent/fleetlink          joins uplink, sampling and the box: what it says to its fleet and does for it
  4  agent/update             install, trial boot, confirm, roll back
  2  agent/ownerpage/figures  amounts and times in words for people
  3  agent/ownerpage/letting  what the box lets and earns, for the owner's eyes
  4  agent/ownerpage          the LAN status page and the HDMI screen
  7  agent/hosting            joins the parts with which a box earns
  8  agent                    wires the workers above; starts, restarts and stops them
  2  relay/wire               tunnel frames and handshake
  3  relay                    server side (in the fleet) and client side (on the device)
  2  fleet/fleetapi           wire types, routes and client of the fleet API; MQTT topics and payloads
  3  fleet/db                 opens and migrates SQL
  3  fleet/device/ownership   who owns a box: the claim's state machine
  3  fleet/device/health      what is wrong with a box, in words
  4  fleet/device             devices, owners, claims, groups
  5  fleet/device/deviceport  the port at which boxes enrol
  4  fleet/job                what boxes are asked to do
  4  fleet/ingest             telemetry in: topic rights, validation, dedup
  3  fleet/timeseries/forward samples on their way to another store, by remote write
  4  fleet/timeseries         time-series store, PromQL API
  3  fleet/alert/batch        many rows by one statement
  3  fleet/alert/notice       an alert in words, and its way to people
  4  fleet/alert              alert rules and who is told
  4  fleet/rollout            releases, waves, pause and halt
  4  fleet/payout             rewards per epoch, ledger, payouts
  3  fleet/auth/rights        who may do what to whose things
  3  fleet/auth/secret        what hides itself, keys, passwords, one-time codes
  4  fleet/auth/pace          how often something may be tried
  4  fleet/auth/oidclogin     staff by the identity provider they have
  4  fleet/auth/smtp          mails out
  5  fleet/auth               people: sessions, passkeys, roles, tokens
  6  fleet/auth/authhttp      their way in: cookies, forms, who may call what
  4  fleet/auditlog           who changed what
  3  fleet/blob               large things: in a folder, or in S3
  4  fleet/bundle             support bundles of boxes
  3  fleet/fleetclient        the fleet's HTTP API as programs speak it: types and client
  7  fleet/webapi             the fleet's HTTP API, and the document that describes it
  7  fleet/console/frame      what all pages share: layout, words, assets, live updates
  8  fleet/console            an owner's pages, and everybody's way in
  8  fleet/console/staff      pages of support, operators and admins
  9  fleet                    wires the contexts above into one server
  6  fleet/db/dbtest          runs a test once per database engine
  5  internal/simbox          a box without a machine: the agent's line to the fleet, with made-up readings
  10 internal/fleettest       a whole fleet in process, for tests
  6  firmware/esp/crashtest   replays every power cut of an install, for tests
  6  internal/rig             one Machine interface (power, serial, network, disk faults): QEMU now, boards later
  7  internal/rig/outside     the world outside a box: chain, relay, registry
  7  internal/rig/outside/web the program that stands in for a tenant's
  7  internal/rig/outside/owner the program that stands in for an owner: a browser
  7  internal/rig/faulty/*    programs with a planted fault, built into test images only
  7  chain/chaintest/clients/* one small program on either client, to compare
  8  internal/vmtest          the box in a virtual machine, tests only
  8  internal/vmtest/*        first programs of test machines
  7  internal/tools/protogen  generates the chain's messages; in the tools' module
  7  images/gokrazy/init      PID 1 of the root; a module of its own
  7  images/runtime/*         containerd, runsc and the log rotator for the image; a module of its own
  6  chain/tenant/gatewaystub a provider's gateway that only listens, for tests
  6  chain/npmpeer            the TypeScript client of Akash's tenants, for tests
  7  cmd/croft/session        a tenant at the command line: network, key, output
  8  cmd/croft/chaincmd       the real client's verbs: tx, query, provider
  8  cmd/croft/tenantcmd      croft tenant
  8  cmd/croft/relaycmd       croft relay
  8  cmd/croft/factorycmd     croft factory
  8  cmd/croft/fleetcmd       croft fleet, device, owner, job, support
  8  cmd/croft/simcmd         croft sim
  10 cmd/croft                the command people type
  9  cmd/croft-agent          the daemon on the box
  7  cmd/croft-init           the program in the initramfs
  10 cmd/croft-fleet          the service
  7  cmd/croft-chaind         the chain daemon
  7  cmd/croft-gpuprobe       GPU facts over a pipe; the only cgo

never: what must not be reached, through any number of imports
  box = agent/... cmd/croft-agent cmd/croft-init images/gokrazy/init
  sdk = github.com/cosmos/cosmos-sdk cosmossdk.io/core cosmossdk.io/store github.com/cometbft/cometbft
  box reaches chain/x/... chain/app                              # the device carries no chain software
  box reaches sdk                                                # 541 packages and 101 modules; chain/client is the light door
  box reaches fleet/... except fleet/fleetapi                    # box and service share their wire and nothing else
  box reaches images/build provisioning/factory                  # a box builds no images and makes no boxes
  box reaches database/sql except database/sql/driver            # the journal is the box's only store; a driver's types alone are harmless
  agent/... cmd/croft-agent images/gokrazy/init reaches testing  # test support has no place in a shipped program
  fleet/... reaches agent/... firmware/... except firmware/slot  # the service knows boxes by their wire and by slot's words
  fleet/... reaches github.com/containerd/containerd             # containers run on boxes
  light = chain/api/... chain/account chain/akash chain/comet chain/sdl chain/client chain/keystore chain/credential chain/tenant/... cmd/croft/...
  light reaches sdk                                              # a client is 11 MB, not 57
  chain/... reaches ./... except . chain/...                     # the chain stands alone: every validator runs it

twins: packages that share their names on purpose
  chain/api/* chain/gogo/*                                       # one contract, two codecs; only a test sees both

doors: a heavy library is imported by these alone ("tests" are all _test.go files)
  github.com/diskfs/go-diskfs         opens to images/build images/media firmware/... cmd/croft tests # one library for partition tables and FAT, and few who write disks
  github.com/containerd/go-dmverity   opens to firmware/verity                             # one place decides what a verified root is
  github.com/google/go-tpm            opens to agent/identity                              # one owner of the device key
  github.com/pion/mdns                opens to agent/ownerpage                             # one answer on the owner's network
  github.com/go-pdf/fpdf              opens to provisioning/factory tests                  # labels are the only thing we print
  github.com/spf13/cobra              opens to cmd/...                                     # flags and arguments end in cmd
  github.com/containerd/containerd    opens to agent/sandbox images/runtime/...            # two thirds of the agent's foreign packages come with it
  github.com/miekg/dns                opens to agent/network tests                         # one place speaks the protocol of names
  github.com/vishvananda/netlink      opens to agent/network tests                         # one owner of links and addresses
  github.com/google/nftables          opens to agent/network/... tests                     # one owner of the rules
  github.com/hashicorp/yamux          opens to relay/wire                                  # one place knows how tunnels share a connection
  github.com/eclipse/paho.mqtt.golang opens to agent/uplink fleet/ingest                   # MQTT has one mouth and one ear
  github.com/mochi-mqtt/server        opens to fleet/ingest                                # the broker is a detail of it
  github.com/prometheus/prometheus    opens to fleet/timeseries/...                        # one owner of samples
  github.com/theupdateframework/go-tuf opens to images/release                             # one place decides what a good release is
  modernc.org/sqlite                  opens to fleet/db                                    # contexts see database/sql, never an engine
  github.com/pressly/goose            opens to fleet/db                                    # one way to migrate
  github.com/jackc/pgx                opens to fleet/db                                    # contexts see database/sql, never an engine
  github.com/cosmos/cosmos-sdk        opens to chain/x/... chain/gogo/... chain/cometnode chain/app chain/chaintest/... cmd/croft-chaind # the SDK stays where the keepers are
  github.com/cometbft/cometbft        opens to chain/x/... chain/cometnode chain/app chain/chaintest cmd/croft-chaind # consensus stays where the keepers are
  github.com/NVIDIA/go-nvml           opens to cmd/croft-gpuprobe                          # needs cgo and the driver's loader
  C                                   opens to cmd/croft-gpuprobe                          # everything else is static, CGO_ENABLED=0
  internal/rig                        opens to cmd/croft internal/vmtest tests             # test support; croft vm is a feature made of it
  internal/vmtest                     opens to tests                                       # test support
  firmware/esp/crashtest              opens to internal/vmtest/* tests                     # test support
  fleet/db/dbtest                     opens to internal/fleettest tests                       # test support
  internal/fleettest                  opens to tests                                       # test support
  internal/simbox                     opens to cmd/croft/simcmd internal/fleettest tests    # test support; croft sim is a feature made of it
  github.com/minio/minio-go           opens to fleet/blob                                  # one place knows where large things lie
  github.com/johannesboyne/gofakes3   opens to tests                                       # an S3 server for tests
  github.com/chromedp/chromedp        opens to internal/rig/outside/owner tests            # a browser is for tests and demos
  chain/chaintest                     opens to tests                                       # test support
  chain/npmpeer                       opens to tests                                       # test support
  chain/tenant/gatewaystub            opens to tests                                       # test support
  os/exec                             opens to images/build images/gokrazy/init hwtest/... chain/npmpeer fleet/db/dbtest internal/fleettest cmd/... firmware/perm internal/rig internal/rig/outside internal/tools/protogen internal/vmtest tests # a box has no shell: what runs a program is named here
`
