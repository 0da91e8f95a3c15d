package crashtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Flags of an entry in a write log.
const (
	logFlush   = 1
	logFUA     = 2
	logDiscard = 4
	logMark    = 8
)

const logMagic = 0x6a736677736872

// ReadLog reads a write log as QEMU's blklogwrites and Linux's dm-log-writes
// make it (Documentation/admin-guide/device-mapper/log-writes.rst). It starts
// with a superblock: magic, version, number of entries (64 bits each) and sector
// size (32 bits), little endian. Each entry takes one sector: sector, number of
// sectors, flags, length of a mark (64 bits each); the data follows in whole
// sectors. Both numbers count sectors of the size in the superblock.
//
// Discarded sectors keep their content, which is one of the things a disk may
// do, and marks are skipped. A log that was cut off is an error: let the machine
// flush, and stop it properly.
func ReadLog(r io.ReaderAt) ([]Write, error) {
	head := make([]byte, 28)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read write log: %w", err)
	}
	le := binary.LittleEndian
	entries, sector := le.Uint64(head[16:]), int64(le.Uint32(head[24:]))
	if le.Uint64(head) != logMagic {
		return nil, errors.New("read write log: wrong magic number")
	}
	if version := le.Uint64(head[8:]); version != 1 {
		return nil, fmt.Errorf("read write log: version %d, want 1", version)
	}
	if sector < SectorSize || sector%SectorSize != 0 || sector > 1<<16 {
		return nil, fmt.Errorf("read write log: sector size %d", sector)
	}
	var writes []Write
	at := sector
	for i := range entries {
		e := make([]byte, 32)
		if _, err := r.ReadAt(e, at); err != nil {
			return nil, fmt.Errorf("read entry %d of %d of write log: %w", i+1, entries, err)
		}
		at += sector
		first, count, flags := le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:])
		w := Write{Offset: int64(first) * sector, Flush: flags&logFlush != 0}
		if flags&(logDiscard|logMark) == 0 && count > 0 {
			if count > 1<<22 {
				return nil, fmt.Errorf("read entry %d of %d of write log: %d sectors in one write", i+1, entries, count)
			}
			w.Data = make([]byte, int64(count)*sector)
			if _, err := r.ReadAt(w.Data, at); err != nil {
				return nil, fmt.Errorf("read entry %d of %d of write log: %w", i+1, entries, err)
			}
			at += int64(len(w.Data))
		}
		if w.Flush || len(w.Data) > 0 {
			writes = append(writes, w)
		}
	}
	return writes, nil
}

// Clip keeps of the writes to a whole disk what concerns the partition of size
// bytes at offset start, counted from there. Flushes stay.
func Clip(writes []Write, start, size int64) []Write {
	var clipped []Write
	for _, w := range writes {
		from, to := max(w.Offset, start), min(w.Offset+int64(len(w.Data)), start+size)
		switch {
		case from < to:
			clipped = append(clipped, Write{Offset: from - start, Data: w.Data[from-w.Offset : to-w.Offset], Flush: w.Flush})
		case w.Flush:
			clipped = append(clipped, Write{Flush: true})
		}
	}
	return clipped
}
