// Panicinit stands in for croft-init in the initramfs of a test image and
// panics at once, as a first program with a bug does.
package main

func main() {
	panic("planted: the first program panics")
}
