package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/bankv1beta1"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/secp256k1v1"
	"github.com/croft-cloud/croft/chain/api/txv1beta1"
)

// fakeChain is a chain with one node in memory: it checks signatures, keeps a
// mempool with CometBFT's rules for sequences, cache and recheck, makes blocks,
// and counts how often each intent (its memo) was executed. Its faults are what
// networks and nodes do.
type fakeChain struct {
	t       testing.TB
	chainID string

	mu      sync.Mutex
	height  int64
	blocks  map[int64][]fakeTx
	times   map[int64]time.Time
	history map[int64]map[account.Address]uint64 // sequences after each height
	check   map[account.Address]uint64           // sequences after the mempool
	mempool []fakeTx
	cache   map[Hash]bool
	nonces  map[int64]bool // unordered expiries used
	ran     map[string]int // executions per memo
	seen    map[Hash]int   // broadcasts that reached the node, per hash
	signed  map[string]map[Hash]bool

	rnd         *rand.Rand
	lostRequest float64                  // share of broadcasts that never arrive
	lostAnswer  float64                  // share of broadcasts whose answer does not
	full        float64                  // share of broadcasts that find the mempool full
	lag         int64                    // queries are answered from up to so many blocks ago
	stale       int64                    // the account is answered for as of this height; 0 is the latest
	noIndex     bool                     // Find finds nothing
	down        bool                     // nothing is answered
	refuse      func(memo string) error  // CheckTx
	fail        func(memo string) uint32 // code of an execution
	anteFail    func(memo string) uint32 // code before the sequence counts
	blockTxs    int                      // most in a block; 0 is no limit
	empty       bool                     // blocks are made with nothing in them
	timeout     int64                    // Config.TimeoutBlocks of the test's client
}

type fakeTx struct {
	raw  []byte
	hash Hash
	memo string
	from account.Address
	seq  uint64
	till int64
	end  time.Time // unordered if set
	fee  string
	gas  uint64
	code uint32
}

var errNetwork = errors.New("connection reset")

func newFake(t testing.TB, seed uint64) *fakeChain {
	f := &fakeChain{
		t: t, chainID: "croft-test", blocks: map[int64][]fakeTx{}, times: map[int64]time.Time{},
		history: map[int64]map[account.Address]uint64{}, check: map[account.Address]uint64{}, cache: map[Hash]bool{},
		nonces: map[int64]bool{}, ran: map[string]int{}, seen: map[Hash]int{}, signed: map[string]map[Hash]bool{},
		rnd: rand.New(rand.NewPCG(seed, 1)),
	}
	f.height, f.history[1], f.times[1] = 1, map[account.Address]uint64{}, time.Now()
	return f
}

func (f *fakeChain) chance(p float64) bool { return p > 0 && f.rnd.Float64() < p }

// client is a Client of the fake chain.
func (f *fakeChain) client(change func(*Config)) *Client {
	f.t.Helper()
	cfg := Config{ChainID: f.chainID, GRPC: "grpc://127.0.0.1:1", RPC: "http://127.0.0.1:1"}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.node = f
	return c
}

// run makes a block every second that has something to put in, until ctx ends.
func (f *fakeChain) run(ctx context.Context) {
	for sleep(ctx, time.Second) == nil {
		f.mu.Lock()
		if !f.down && (f.empty || len(f.mempool) > 0) {
			f.blockLocked()
		}
		f.mu.Unlock()
	}
}

func (f *fakeChain) decode(raw []byte) (fakeTx, error) {
	var tx txv1beta1.TxRaw
	var body txv1beta1.TxBody
	var auth txv1beta1.AuthInfo
	if err := proto.Unmarshal(raw, &tx); err != nil {
		return fakeTx{}, err
	}
	if err := errors.Join(proto.Unmarshal(tx.BodyBytes, &body), proto.Unmarshal(tx.AuthInfoBytes, &auth)); err != nil {
		return fakeTx{}, err
	}
	var key secp256k1v1.PubKey
	if err := proto.Unmarshal(auth.GetSignerInfos()[0].GetPublicKey().GetValue(), &key); err != nil {
		return fakeTx{}, err
	}
	from, err := account.PublicKey(key.GetKey()).Address()
	if err != nil {
		return fakeTx{}, err
	}
	out := fakeTx{
		raw: raw, hash: HashOf(raw), memo: body.GetMemo(), from: from,
		seq: auth.GetSignerInfos()[0].GetSequence(), till: int64(body.GetTimeoutHeight()), gas: auth.GetFee().GetGasLimit(),
	}
	for _, c := range auth.GetFee().GetAmount() {
		out.fee += c.GetAmount() + c.GetDenom()
	}
	if body.GetUnordered() {
		out.end = body.GetTimeoutTimestamp().AsTime()
	}
	if len(tx.GetSignatures()[0]) == 0 {
		return out, nil // a simulation
	}
	doc, err := proto.Marshal(&txv1beta1.SignDoc{BodyBytes: tx.BodyBytes, AuthInfoBytes: tx.AuthInfoBytes, ChainId: f.chainID, AccountNumber: 7})
	if err != nil {
		return fakeTx{}, err
	}
	if err := account.PublicKey(key.GetKey()).Verify(doc, tx.GetSignatures()[0]); err != nil {
		return fakeTx{}, &akash.TxError{Codespace: "sdk", Code: 4, Log: err.Error()}
	}
	return out, nil
}

// ante is what a transaction must pass at these sequences; it uses its place.
func (f *fakeChain) anteLocked(tx fakeTx, seq map[account.Address]uint64, height int64, at time.Time) error {
	if !tx.end.IsZero() {
		if !tx.end.After(at) || tx.end.After(at.Add(10*time.Minute)) {
			return &akash.TxError{Codespace: "sdk", Code: 42, Log: "unordered expiry"}
		}
		if f.nonces[tx.end.UnixNano()] {
			return &akash.TxError{Codespace: "sdk", Code: 18, Log: "already used timeout"}
		}
		return nil
	}
	if tx.till > 0 && height > tx.till {
		return &akash.TxError{Codespace: "sdk", Code: 30}
	}
	if tx.seq != seq[tx.from] {
		return &akash.TxError{Codespace: "sdk", Code: 32, Log: fmt.Sprintf("expected %d, got %d", seq[tx.from], tx.seq)}
	}
	if f.anteFail != nil && height > f.height {
		if code := f.anteFail(tx.memo); code != 0 {
			return &akash.TxError{Codespace: "sdk", Code: code}
		}
	}
	seq[tx.from]++
	return nil
}

func (f *fakeChain) blockLocked() {
	take := len(f.mempool)
	if f.blockTxs > 0 {
		take = min(take, f.blockTxs)
	}
	txs, rest := f.mempool[:take], f.mempool[take:]
	seq := maps.Clone(f.history[f.height])
	var block []fakeTx
	for _, tx := range txs {
		err := f.anteLocked(tx, seq, f.height+1, time.Now())
		verdict, refused := errors.AsType[*akash.TxError](err)
		switch {
		case refused:
			tx.code = verdict.Code
			delete(f.cache, tx.hash)
		case f.fail != nil && f.fail(tx.memo) != 0:
			tx.code = f.fail(tx.memo)
		default:
			f.ran[tx.memo]++
		}
		if !refused && !tx.end.IsZero() {
			f.nonces[tx.end.UnixNano()] = true
		}
		block = append(block, tx)
	}
	f.height++
	f.blocks[f.height], f.history[f.height], f.times[f.height] = block, seq, time.Now()
	f.check, f.mempool = maps.Clone(seq), nil
	for _, tx := range rest { // recheck
		if f.anteLocked(tx, f.check, f.height, f.times[f.height]) == nil {
			f.mempool = append(f.mempool, tx)
		} else {
			delete(f.cache, tx.hash)
		}
	}
}

// restart loses the mempool.
func (f *fakeChain) restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mempool, f.cache, f.check = nil, map[Hash]bool{}, maps.Clone(f.history[f.height])
}

// answered is the height that a query is answered for.
func (f *fakeChain) answeredLocked() int64 {
	if f.lag == 0 {
		return f.height
	}
	return max(1, f.height-f.rnd.Int64N(f.lag+1))
}

func (f *fakeChain) Account(_ context.Context, a account.Address) (AccountInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.chance(f.lostRequest) {
		return AccountInfo{}, errNetwork
	}
	h := f.answeredLocked()
	if f.stale > 0 {
		h = f.stale
	}
	return AccountInfo{Address: a, Number: 7, Sequence: f.history[h][a], Height: h}, nil
}

func (f *fakeChain) Status(context.Context) (Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.chance(f.lostRequest) {
		return Status{}, errNetwork
	}
	h := f.answeredLocked()
	return Status{ChainID: f.chainID, Height: h, Time: f.times[h], First: 1}, nil
}

func (f *fakeChain) simulate(_ context.Context, raw []byte) (uint64, error) {
	tx, err := f.decode(raw)
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.chance(f.lostRequest) {
		return 0, errNetwork
	}
	if f.refuse != nil {
		if err := f.refuse(tx.memo); err != nil {
			return 0, err
		}
	}
	if err := f.anteLocked(tx, maps.Clone(f.check), f.height, f.times[f.height]); err != nil {
		return 0, err
	}
	return 60_000, nil
}

func (f *fakeChain) broadcast(_ context.Context, raw []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.chance(f.lostRequest) {
		return errNetwork
	}
	err := f.checkTxLocked(raw)
	if f.chance(f.lostAnswer) {
		return errNetwork
	}
	return err
}

func (f *fakeChain) checkTxLocked(raw []byte) error {
	tx, err := f.decode(raw)
	if err != nil {
		return err
	}
	f.seen[tx.hash]++
	if f.signed[tx.memo] == nil {
		f.signed[tx.memo] = map[Hash]bool{}
	}
	f.signed[tx.memo][tx.hash] = true
	if f.cache[tx.hash] {
		return akash.ErrInCache
	}
	if f.chance(f.full) {
		return akash.ErrMempoolFull
	}
	if f.refuse != nil {
		if err := f.refuse(tx.memo); err != nil {
			return err
		}
	}
	if err := f.anteLocked(tx, f.check, f.height, f.times[f.height]); err != nil {
		return err
	}
	f.cache[tx.hash] = true
	f.mempool = append(f.mempool, tx)
	return nil
}

func (f *fakeChain) Find(ctx context.Context, hash Hash) (Result, error) {
	f.mu.Lock()
	down, noIndex, to := f.down || f.chance(f.lostRequest), f.noIndex, f.answeredLocked()
	f.mu.Unlock()
	if down {
		return Result{}, errNetwork
	}
	if noIndex {
		return Result{}, ErrTxNotFound
	}
	return f.search(ctx, hash, 1, to)
}

func (f *fakeChain) search(_ context.Context, hash Hash, from, to int64) (Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down || f.chance(f.lostRequest) {
		return Result{}, errNetwork
	}
	last, err := Result{}, ErrTxNotFound
	for h := from; h <= to; h++ {
		if h > f.height {
			return Result{}, fmt.Errorf("height %d is not there yet", h)
		}
		for _, tx := range f.blocks[h] {
			if tx.hash == hash && (err != nil || last.Code != 0) {
				last, err = Result{Hash: hash, Height: h, Code: tx.code}, nil
				if tx.code != 0 {
					last.Codespace = "sdk"
				}
			}
		}
	}
	return last, err
}

// foreign makes a transaction of the same account that another program sends.
func (f *fakeChain) foreign(signer *account.Key, memo string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := newDraft(signer.PublicKey(), Tx{Memo: memo, Msgs: pay(1)})
	if err != nil {
		f.t.Error(err)
		return
	}
	raw, err := d.sign(context.Background(), signer, f.chainID, 7, place{sequence: f.check[signer.Address()], timeoutHeight: f.height + 50}, 1, gasPrice{})
	if err != nil {
		f.t.Error(err)
		return
	}
	_ = f.checkTxLocked(raw)
}

// pay is a message to send.
func pay(amount int) []proto.Message {
	return []proto.Message{&bankv1beta1.MsgSend{
		FromAddress: string(tenant.Address()), ToAddress: string(tenant.Address()),
		Amount: []*basev1beta1.Coin{{Denom: "uakt", Amount: fmt.Sprint(amount)}},
	}}
}

var tenant = func() *account.Key {
	words, err := account.ParseMnemonic("abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about")
	if err != nil {
		panic(err)
	}
	k, err := words.Key(0, 0)
	if err != nil {
		panic(err)
	}
	return k
}()
