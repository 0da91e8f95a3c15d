package crashtest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
)

// UKI makes a file that looks like a unified kernel image, with the sections a
// boot needs, the command line given and about size bytes of kernel. Equal
// arguments give equal bytes. No machine could run it.
func UKI(cmdline string, size int, seed uint64) []byte {
	const align, headers = 512, 1024
	kernel := make([]byte, size)
	rng := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
	_, _ = rng.Read(kernel) // never fails
	sections := []struct {
		name string
		data []byte
	}{
		{".osrel", []byte("ID=croft\nNAME=croft\n")}, {".cmdline", []byte(cmdline + "\x00")}, {".linux", kernel}, {".initrd", []byte("070701")},
	}
	le := binary.LittleEndian
	b := make([]byte, headers)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	p := b[0x80:]
	copy(p, "PE\x00\x00")
	le.PutUint16(p[4:], 0x8664) // x86-64
	le.PutUint16(p[6:], uint16(len(sections)))
	le.PutUint16(p[20:], 240)    // size of the optional header
	le.PutUint16(p[22:], 0x0022) // executable
	o := p[24:]
	le.PutUint16(o, 0x20b) // PE32+
	le.PutUint32(o[32:], align)
	le.PutUint32(o[36:], align)
	le.PutUint32(o[60:], headers)
	le.PutUint16(o[68:], 10) // EFI application
	le.PutUint32(o[108:], 16)
	for i, s := range sections {
		h := b[0x80+24+240+40*i:]
		raw := (len(s.data) + align - 1) / align * align
		copy(h[:8], s.name)
		le.PutUint32(h[8:], uint32(len(s.data)))
		le.PutUint32(h[12:], uint32(len(b)))
		le.PutUint32(h[16:], uint32(raw))
		le.PutUint32(h[20:], uint32(len(b)))
		b = append(append(b, s.data...), bytes.Repeat([]byte{0}, raw-len(s.data))...)
	}
	return b
}
