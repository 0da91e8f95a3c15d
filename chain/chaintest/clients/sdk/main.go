// Sdk sends one coin to its own account and prints the balance, with
// cosmos-sdk's own client packages, as a program on them does: the other side
// of the benchmark beside package light.
//
//	MNEMONIC='…' sdk GRPC RPC CHAIN-ID
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	clienttx "github.com/cosmos/cosmos-sdk/client/tx"
	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/crypto/hd"
	"github.com/cosmos/cosmos-sdk/crypto/keyring"
	"github.com/cosmos/cosmos-sdk/std"
	sdk "github.com/cosmos/cosmos-sdk/types"
	txtypes "github.com/cosmos/cosmos-sdk/types/tx"
	"github.com/cosmos/cosmos-sdk/types/tx/signing"
	authtx "github.com/cosmos/cosmos-sdk/x/auth/tx"
	authtypes "github.com/cosmos/cosmos-sdk/x/auth/types"
	banktypes "github.com/cosmos/cosmos-sdk/x/bank/types"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	sdk.GetConfig().SetBech32PrefixForAccount("akash", "akashpub")
	registry := codectypes.NewInterfaceRegistry()
	std.RegisterInterfaces(registry)
	authtypes.RegisterInterfaces(registry)
	banktypes.RegisterInterfaces(registry)
	cdc := codec.NewProtoCodec(registry)
	config := authtx.NewTxConfig(cdc, authtx.DefaultSignModes)
	keys := keyring.NewInMemory(cdc)
	record, err := keys.NewAccount("me", os.Getenv("MNEMONIC"), "", sdk.FullFundraiserPath, hd.Secp256k1)
	if err != nil {
		return err
	}
	me, err := record.GetAddress()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	info, err := authtypes.NewQueryClient(conn).AccountInfo(ctx, &authtypes.QueryAccountInfoRequest{Address: me.String()})
	if err != nil {
		return err
	}
	factory := clienttx.Factory{}.WithChainID(args[2]).WithKeybase(keys).WithTxConfig(config).
		WithAccountNumber(info.Info.AccountNumber).WithSequence(info.Info.Sequence).
		WithGas(200_000).WithFees("5000uakt").WithSignMode(signing.SignMode_SIGN_MODE_DIRECT)
	builder, err := factory.BuildUnsignedTx(banktypes.NewMsgSend(me, me, sdk.NewCoins(sdk.NewInt64Coin("uakt", 1))))
	if err != nil {
		return err
	}
	if err := clienttx.Sign(ctx, factory, "me", builder, true); err != nil {
		return err
	}
	raw, err := config.TxEncoder()(builder.GetTx())
	if err != nil {
		return err
	}
	service := txtypes.NewServiceClient(conn)
	sent, err := service.BroadcastTx(ctx, &txtypes.BroadcastTxRequest{TxBytes: raw, Mode: txtypes.BroadcastMode_BROADCAST_MODE_SYNC})
	if err != nil {
		return err
	}
	if sent.TxResponse.Code != 0 {
		return fmt.Errorf("send: %s", sent.TxResponse.RawLog)
	}
	for {
		if _, err := service.GetTx(ctx, &txtypes.GetTxRequest{Hash: sent.TxResponse.TxHash}); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	balance, err := banktypes.NewQueryClient(conn).Balance(ctx, &banktypes.QueryBalanceRequest{Address: me.String(), Denom: "uakt"})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, balance.Balance.Amount); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin) // stay to be measured
	return err
}
