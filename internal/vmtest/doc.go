// Package vmtest holds the tests that boot whole boxes in virtual machines:
// first boot, slots, faults, power cuts, /perm, network. They carry the build
// tag vm; `make vm` runs them. There is no code here but tests.
package vmtest
