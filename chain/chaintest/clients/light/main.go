// Light sends one coin to its own account and prints the balance: the smallest
// program on chain/client, for the benchmark that compares its size and memory
// with the same on cosmos-sdk.
//
//	MNEMONIC='…' light GRPC RPC CHAIN-ID
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/client"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	words, err := account.ParseMnemonic(os.Getenv("MNEMONIC"))
	if err != nil {
		return err
	}
	key, err := words.Key(0, 0)
	if err != nil {
		return err
	}
	c, err := client.Dial(ctx, client.Config{GRPC: args[0], RPC: args[1], ChainID: args[2]})
	if err != nil {
		return err
	}
	defer c.Close()
	me := string(key.Address())
	_, err = c.Send(ctx, key, client.Tx{Gas: 200_000, Msgs: []proto.Message{&bankv1beta1.MsgSend{
		FromAddress: me, ToAddress: me, Amount: []*basev1beta1.Coin{{Denom: "uakt", Amount: "1"}},
	}}})
	if err != nil {
		return err
	}
	balance, err := c.Balance(ctx, key.Address(), "uakt")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, balance.Amount); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin) // stay to be measured
	return err
}
