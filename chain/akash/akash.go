// Package akash holds the words of an Akash-compatible chain that its messages
// spell awkwardly: ids that can be compared and written as text, decimal numbers
// and prices, the events of a block as Go values, and the verdicts on a
// transaction with a sentence on what to do about each.
//
// It knows the encodings of the wire (package api has the messages) and nothing
// of connections; package client has those. It keeps no state.
package akash
