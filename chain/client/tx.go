package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/secp256k1v1"
	"github.com/croft-cloud/croft/chain/api/txsigningv1beta1"
	"github.com/croft-cloud/croft/chain/api/txv1beta1"
)

// Tx is what a caller wants done, all of it or nothing.
type Tx struct {
	// Msgs are messages of chain/api; at least one.
	Msgs []proto.Message
	// Memo is public text in the transaction; usually empty.
	Memo string
	// Gas is the limit; default: the simulated use × Config.GasPercent.
	Gas uint64
	// Fee is offered whatever the gas limit is: coins of different denoms, sorted
	// by denom; empty but not nil for none. Default: by Config.GasPrice.
	Fee []*basev1beta1.Coin
	// FeeGranter pays the fee if it has granted that; default: the signer pays.
	FeeGranter account.Address
	// TimeoutBlocks is how many blocks the transaction may wait before it is
	// dead; default Config.TimeoutBlocks.
	TimeoutBlocks int64
	// Unordered lets the transaction overtake others of the account and be
	// overtaken: it has no place, but an expiry five minutes ahead by the
	// chain's clock. When the chain has been idle for minutes, its clock says
	// nothing, and the transaction is sent ordered.
	Unordered bool
	// Once forbids a second signature: when the first is dead, [ErrDead] is
	// answered instead.
	Once bool
	// OnSigned, if set, is called after signing and before anything leaves, for
	// each signature. Its error stops the sending.
	OnSigned func(context.Context, Signed) error
}

// Hash names a transaction: the SHA-256 of its bytes.
type Hash [sha256.Size]byte

// HashOf is the hash of a signed transaction.
func HashOf(raw []byte) Hash { return sha256.Sum256(raw) }

// String is 64 digits in upper case, as explorers show it.
func (h Hash) String() string { return strings.ToUpper(hex.EncodeToString(h[:])) }

// MarshalText implements [encoding.TextMarshaler].
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hash) UnmarshalText(text []byte) error {
	parsed, err := ParseHash(string(text))
	if err != nil {
		return err
	}
	*h = parsed
	return nil
}

// ParseHash reads 64 hexadecimal digits, with or without 0x before them.
func ParseHash(s string) (Hash, error) {
	raw, err := hex.DecodeString(strings.TrimPrefix(s, "0x"))
	if err != nil || len(raw) != len(Hash{}) {
		return Hash{}, fmt.Errorf("transaction hash %q: want 64 hexadecimal digits", s)
	}
	return Hash(raw), nil
}

// Result is a transaction in its block.
type Result struct {
	Hash      Hash
	Height    int64
	Code      uint32 // 0: executed
	Codespace string // of Code
	Log       string // of a Code that is not 0
	GasWanted int64
	GasUsed   int64
	Events    []akash.Event
}

// err is the chain's verdict as an error, nil for an executed transaction.
func (r Result) err() error {
	if r.Code == 0 {
		return nil
	}
	return (&akash.TxError{Codespace: r.Codespace, Code: r.Code, Log: r.Log}).Explain()
}

// wirePrefix begins the proto names of the light messages. Without it they are
// the chain's.
const wirePrefix = "croft.wire."

// TypeURL is the name under which the chain knows a message of chain/api:
// "/akash.market.v1beta5.MsgCreateBid".
func TypeURL(m proto.Message) string {
	return "/" + strings.TrimPrefix(string(m.ProtoReflect().Descriptor().FullName()), wirePrefix)
}

// deterministic is how everything that is signed is encoded.
var deterministic = proto.MarshalOptions{Deterministic: true}

// Pack puts a message of chain/api into an Any, as messages that carry others
// want it (authz, feegrant).
func Pack(m proto.Message) (*anypb.Any, error) {
	value, err := deterministic.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", TypeURL(m), err)
	}
	return &anypb.Any{TypeUrl: TypeURL(m), Value: value}, nil
}

// draft is a transaction that lacks its place, gas and signature.
type draft struct {
	tx     Tx
	msgs   []*anypb.Any
	public account.PublicKey
	owner  account.Address
	key    *anypb.Any // public, as SignerInfo wants it
}

func newDraft(public account.PublicKey, tx Tx) (draft, error) {
	if len(tx.Msgs) == 0 {
		return draft{}, usage(errors.New("transaction has no message"), "give at least one")
	}
	owner, err := public.Address()
	if err != nil {
		return draft{}, err
	}
	d := draft{tx: tx, public: public, owner: owner}
	for _, m := range tx.Msgs {
		packed, err := Pack(m)
		if err != nil {
			return draft{}, err
		}
		d.msgs = append(d.msgs, packed)
	}
	if d.key, err = Pack(&secp256k1v1.PubKey{Key: public}); err != nil {
		return draft{}, err
	}
	size := len(tx.Memo)
	for _, m := range d.msgs {
		size += proto.Size(m)
	}
	if size > maxTxBytes {
		return draft{}, &croft.Error{
			Kind: croft.KindInvalid, Err: fmt.Errorf("transaction of %d bytes is too large: a node takes %d", size, maxTxBytes),
			Remedy: "split its messages over several transactions, or make what they carry shorter",
		}
	}
	return d, nil
}

// maxTxBytes is how large the messages of a transaction may be. A simulation
// carries them twice as long, in hexadecimal, and CometBFT cuts the connection
// at a request of 1,000,000 bytes, which looks like a node that is away.
const maxTxBytes = 400_000

// place is where a transaction may stand: at a sequence up to a height, or
// anywhere up to a time.
type place struct {
	sequence      uint64
	timeoutHeight int64
	expires       time.Time // unordered if set
}

// fee is what is offered for this much gas.
func (d draft) fee(gas uint64, price gasPrice) []*basev1beta1.Coin {
	if d.tx.Fee != nil {
		return d.tx.Fee
	}
	return price.fee(gas)
}

// encode makes body and auth info.
func (d draft) encode(at place, gas uint64, fee []*basev1beta1.Coin) (body, auth []byte, err error) {
	txBody := &txv1beta1.TxBody{Messages: d.msgs, Memo: d.tx.Memo}
	if at.expires.IsZero() {
		txBody.TimeoutHeight = uint64(at.timeoutHeight)
	} else {
		txBody.Unordered = true
		txBody.TimeoutTimestamp = timestamppb.New(at.expires)
	}
	if body, err = deterministic.Marshal(txBody); err != nil {
		return nil, nil, fmt.Errorf("encode transaction: %w", err)
	}
	auth, err = deterministic.Marshal(&txv1beta1.AuthInfo{
		SignerInfos: []*txv1beta1.SignerInfo{{
			PublicKey: d.key,
			ModeInfo: &txv1beta1.ModeInfo{Sum: &txv1beta1.ModeInfo_Single_{
				Single: &txv1beta1.ModeInfo_Single{Mode: txsigningv1beta1.SignMode_SIGN_MODE_DIRECT},
			}},
			Sequence: at.sequence,
		}},
		Fee: &txv1beta1.Fee{Amount: fee, GasLimit: gas, Granter: string(d.tx.FeeGranter)},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("encode transaction: %w", err)
	}
	return body, auth, nil
}

// unsigned is the transaction as a simulation wants it: with an empty signature.
func (d draft) unsigned(at place, price gasPrice) ([]byte, error) {
	// The fee is there so that its checks are simulated as well; the gas is not
	// known yet.
	body, auth, err := d.encode(at, 0, d.fee(1, price))
	if err != nil {
		return nil, err
	}
	return deterministic.Marshal(&txv1beta1.TxRaw{BodyBytes: body, AuthInfoBytes: auth, Signatures: [][]byte{{}}})
}

// sign makes the transaction that may leave.
func (d draft) sign(ctx context.Context, signer account.Signer, chainID string, number uint64, at place, gas uint64, price gasPrice) ([]byte, error) {
	body, auth, err := d.encode(at, gas, d.fee(gas, price))
	if err != nil {
		return nil, err
	}
	doc, err := deterministic.Marshal(&txv1beta1.SignDoc{
		BodyBytes: body, AuthInfoBytes: auth, ChainId: chainID, AccountNumber: number,
	})
	if err != nil {
		return nil, fmt.Errorf("encode transaction: %w", err)
	}
	signature, err := signer.Sign(ctx, doc)
	if err != nil {
		return nil, fmt.Errorf("sign transaction: %w", err)
	}
	if err := d.public.Verify(doc, signature); err != nil {
		return nil, fmt.Errorf("sign transaction: signer's signature: %w", err)
	}
	return deterministic.Marshal(&txv1beta1.TxRaw{BodyBytes: body, AuthInfoBytes: auth, Signatures: [][]byte{signature}})
}

// withMargin is the gas limit for a simulated use.
func (c *Client) withMargin(used uint64) uint64 { return used * c.cfg.GasPercent / 100 }

// Simulate runs the transaction without its effects, at the account's place
// after what waits already, and returns the gas limit that Send would set. It
// needs no secret.
func (c *Client) Simulate(ctx context.Context, public account.PublicKey, tx Tx) (uint64, error) {
	d, err := newDraft(public, tx)
	if err != nil {
		return 0, fmt.Errorf("simulate transaction: %w", err)
	}
	s := c.sequencer(d.owner)
	for attempt := 0; ; attempt++ {
		gas, err := s.simulate(ctx, c, d)
		if err == nil {
			return gas, nil
		}
		if !errors.Is(err, akash.ErrWrongSequence) && final(err) || pause(ctx, attempt) != nil {
			return 0, explain("simulate transaction", err)
		}
	}
}
