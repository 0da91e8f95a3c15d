// Package loader carries the source of start.efi, the small program that the
// firmware runs first. It starts systemd-boot and restarts the machine when
// systemd-boot comes back, so that a kernel image that cannot even be loaded
// costs a try like any other failure. images/build compiles it.
package loader

import _ "embed"

// Source is the C source of start.efi.
//
//go:embed src/start.c
var Source []byte
