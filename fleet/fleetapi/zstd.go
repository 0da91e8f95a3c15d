package fleetapi

import (
	_ "embed"
	"errors"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// maxPlain is the most bytes of a frame's content. What claims to be more, or
// turns out to be, is refused, and never held as a whole.
const maxPlain = 1 << 20

// words1 is what frames may refer to without bringing it along: names and labels
// as boxes send them, in the form of the words of a batch. It is part of the
// wire and never changes; the next list gets the next number and is added to
// what unpacker knows.
//
//go:embed words1.txt
var words1 []byte

// wordList is the number of words1 in frames.
const wordList = 1

// packer and unpacker are made at the first use and are safe for use by
// several goroutines. The packer has one encoder, for a box packs once a minute,
// and its fastest level: the next one takes 9 MiB for good, not 1, and saves 2 %
// of a minute that was read six times.
var (
	packer = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil,
			zstd.WithEncoderConcurrency(1),
			zstd.WithLowerEncoderMem(true),
			zstd.WithWindowSize(128<<10),
			zstd.WithEncoderCRC(false), // TLS has better
			zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderDictRaw(wordList, words1),
		)
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	unpacker = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(0), // as many as there are processors
			zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxPlain),
			zstd.WithDecoderDictRaw(wordList, words1),
		)
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	})
)

func pack(plain []byte) []byte { return packer().EncodeAll(plain, nil) }

func unpack(packed []byte) ([]byte, error) {
	plain, err := unpacker().DecodeAll(packed, nil)
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, refuse(ReasonOversized, "unpack: content is larger than %d bytes", maxPlain)
	case errors.Is(err, zstd.ErrUnknownDictionary):
		return nil, refuse(ReasonVersion, "unpack: %w", err)
	case err != nil:
		return nil, refuse(ReasonMalformed, "unpack: %w", err)
	}
	return plain, nil
}
