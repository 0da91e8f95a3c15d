package rig

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
)

// LoggedWrite is one request in a write log.
type LoggedWrite struct {
	Offset  int64  // bytes
	Size    int64  // bytes
	Data    []byte // Size bytes; nil for a discard and an empty flush
	Flush   bool   // all earlier writes are on the disk before this one
	FUA     bool   // this one is on the disk when it is answered
	Discard bool   // the bytes are of no more use
}

// The log format is that of Linux's dm-log-writes: a header sector, then for
// each request an entry sector and its data, all little-endian.
const (
	writeLogMagic   = 0x6a736677736872
	writeLogVersion = 1

	writeLogFlush   = 1 << 0
	writeLogFUA     = 1 << 1
	writeLogDiscard = 1 << 2
)

// ReadWriteLog reads a log made through [Disk].LogWrites, in the order of the
// requests. An error ends it.
func ReadWriteLog(r io.Reader) iter.Seq2[LoggedWrite, error] {
	return func(yield func(LoggedWrite, error) bool) {
		fail := func(err error) { yield(LoggedWrite{}, fmt.Errorf("read write log: %w", err)) }
		in := bufio.NewReaderSize(r, 1<<20)
		header := make([]byte, 28)
		if _, err := io.ReadFull(in, header); err != nil {
			fail(err)
			return
		}
		magic, version := binary.LittleEndian.Uint64(header), binary.LittleEndian.Uint64(header[8:])
		entries := binary.LittleEndian.Uint64(header[16:])
		sector := int64(binary.LittleEndian.Uint32(header[24:]))
		if magic != writeLogMagic || version != writeLogVersion || sector < sectorSize || sector > 1<<16 {
			fail(fmt.Errorf("magic %#x, version %d, sector size %d: not a write log", magic, version, sector))
			return
		}
		if _, err := in.Discard(int(sector) - len(header)); err != nil {
			fail(err)
			return
		}
		entry := make([]byte, sector)
		for i := range entries {
			if _, err := io.ReadFull(in, entry); err != nil {
				fail(fmt.Errorf("entry %d of %d: %w", i, entries, err))
				return
			}
			flags := binary.LittleEndian.Uint64(entry[16:])
			w := LoggedWrite{
				Offset:  int64(binary.LittleEndian.Uint64(entry)) * sector,
				Size:    int64(binary.LittleEndian.Uint64(entry[8:])) * sector,
				Flush:   flags&writeLogFlush != 0,
				FUA:     flags&writeLogFUA != 0,
				Discard: flags&writeLogDiscard != 0,
			}
			if w.Size < 0 || w.Size > 1<<30 && !w.Discard {
				fail(fmt.Errorf("entry %d of %d writes %d bytes", i, entries, w.Size))
				return
			}
			if w.Size > 0 && !w.Discard {
				w.Data = make([]byte, w.Size)
				if _, err := io.ReadFull(in, w.Data); err != nil {
					fail(fmt.Errorf("entry %d of %d: %w", i, entries, err))
					return
				}
			}
			if !yield(w, nil) {
				return
			}
		}
	}
}
