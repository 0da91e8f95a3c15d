// The module of the box's root: gok builds everything in it with this one
// go.mod, so its versions, and those of gok itself, are pinned here.
module github.com/croft-cloud/croft/images/gokrazy

go 1.26.5

require (
	github.com/croft-cloud/croft v0.0.0
	github.com/gokrazy/gokrazy v0.0.0-20260703061218-a4a45a20149d
	golang.org/x/sys v0.49.0
)

require (
	github.com/beevik/ntp v1.5.0 // indirect
	github.com/gokrazy/internal v0.0.0-20260625065634-6994f9152c44 // indirect
	github.com/google/gopacket v1.1.19 // indirect
	github.com/google/renameio/v2 v2.0.2 // indirect
	github.com/josharian/native v1.1.0 // indirect
	github.com/kenshaw/evdev v0.1.0 // indirect
	github.com/mdlayher/packet v1.1.2 // indirect
	github.com/mdlayher/socket v0.5.0 // indirect
	github.com/mdlayher/watchdog v0.0.0-20221003142519-49be0df7b3b5 // indirect
	github.com/rtr7/dhcp4 v0.0.0-20220302171438-18c84d089b46 // indirect
	github.com/vishvananda/netlink v1.3.1 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	golang.org/x/net v0.59.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
)

replace github.com/croft-cloud/croft => ../..

tool (
	github.com/gokrazy/gokrazy/cmd/dhcp
	github.com/gokrazy/gokrazy/cmd/ntp
)
