// Package api is where the chain's wire contract lives: the .proto files in
// proto/, and below this folder the Go messages that clients use, one package
// for each proto package (akash.market.v1beta5 is marketv1beta5).
//
// These messages belong to proto packages of our own, croft.wire.…, so that
// they can be linked into one program with cosmos-sdk, which registers the
// original names. Field numbers and types are those of the originals, and so
// are the bytes; gRPC paths and Any type URLs are strings and name the
// originals: "/akash.market.v1beta5.MsgCreateBid". Services are not generated.
//
// The same contract in the form that cosmos-sdk's codec wants is chain/gogo.
// "make gen" writes both anew, offline (internal/tools/protogen).
package api

//go:generate go run -C ../../internal/tools ./protogen
