package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/basev1beta1"
)

// inBubble runs a test beside a chain that makes blocks.
func inBubble(t *testing.T, seed uint64, test func(t *testing.T, ctx context.Context, f *fakeChain)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := newFake(t, seed)
		var chain sync.WaitGroup
		chain.Go(func() { f.run(ctx) })
		test(t, ctx, f)
		cancel()
		chain.Wait()
	})
}

// sendAll sends from many goroutines and returns the errors by memo.
func sendAll(ctx context.Context, c *Client, goroutines, each int, change func(*Tx)) map[string]error {
	var mu sync.Mutex
	out := map[string]error{}
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				tx := Tx{Msgs: pay(1), Memo: fmt.Sprintf("%d.%d", g, i)}
				if change != nil {
					change(&tx)
				}
				_, err := c.Send(ctx, tenant, tx)
				mu.Lock()
				out[tx.Memo] = err
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out
}

// wantOnce checks that every intent was executed exactly once.
func wantOnce(t *testing.T, f *fakeChain, errs map[string]error, count int) {
	t.Helper()
	if len(errs) != count {
		t.Errorf("%d sends returned, want %d", len(errs), count)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for memo, err := range errs {
		if err != nil {
			t.Errorf("send %s: %v", memo, err)
		}
		if f.ran[memo] != 1 {
			t.Errorf("intent %s was executed %d times", memo, f.ran[memo])
		}
	}
}

func TestManyGoroutinesShareOneSigner(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		c := f.client(nil)
		wantOnce(t, f, sendAll(ctx, c, 50, 4, nil), 200)
		if got := f.history[f.height][tenant.Address()]; got != 200 {
			t.Errorf("sequence = %d, want 200", got)
		}
		for memo, hashes := range f.signed {
			if len(hashes) != 1 {
				t.Errorf("intent %s has %d signatures, want 1", memo, len(hashes))
			}
		}
	})
}

// Whatever goes wrong, and in whatever order: every intent is executed exactly
// once.
func TestEveryIntentIsExecutedOnceUnderFaults(t *testing.T) {
	for _, tc := range []struct {
		name    string
		faults  func(*fakeChain)
		foreign bool
		restart bool
	}{
		{"answers are lost", func(f *fakeChain) { f.lostAnswer = 0.3 }, false, false},
		{"requests are lost", func(f *fakeChain) { f.lostRequest = 0.2 }, false, false},
		{"the mempool is often full", func(f *fakeChain) { f.full = 0.5 }, false, false},
		{"the node restarts and loses its mempool", func(*fakeChain) {}, false, true},
		{"the node keeps no index", func(f *fakeChain) { f.noIndex = true }, false, false},
		{"answers come from nodes behind", func(f *fakeChain) { f.lag = 3 }, false, false},
		{"blocks are small", func(f *fakeChain) { f.blockTxs = 3 }, false, true},
		{"another program uses the account", func(*fakeChain) {}, true, false},
		{"time is short and answers are old", func(f *fakeChain) { f.timeout, f.lag, f.noIndex, f.blockTxs, f.empty = 2, 3, true, 2, true }, false, false},
		{"all of it", func(f *fakeChain) {
			f.lostAnswer, f.lostRequest, f.full, f.lag, f.blockTxs = 0.2, 0.1, 0.2, 2, 5
		}, true, true},
		{"all of it without an index", func(f *fakeChain) {
			f.lostAnswer, f.lostRequest, f.full, f.lag, f.blockTxs, f.noIndex = 0.2, 0.1, 0.2, 2, 5, true
		}, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for seed := range uint64(2) {
				inBubble(t, seed, func(t *testing.T, ctx context.Context, f *fakeChain) {
					ctx, cancel := context.WithTimeout(ctx, time.Hour)
					defer cancel()
					tc.faults(f)
					var trouble sync.WaitGroup
					troubled, calm := context.WithCancel(ctx)
					trouble.Go(func() {
						for i := 0; sleep(troubled, 1300*time.Millisecond) == nil; i++ {
							if tc.foreign {
								f.foreign(tenant, fmt.Sprintf("foreign %d", i))
							}
							if tc.restart && i%4 == 3 {
								f.restart()
							}
						}
					})
					c := f.client(func(cfg *Config) { cfg.TimeoutBlocks = f.timeout })
					wantOnce(t, f, sendAll(ctx, c, 8, 3, nil), 24)
					calm()
					trouble.Wait()
				})
			}
		})
	}
}

func TestANodeThatIsDownIsWaitedFor(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		c := f.client(nil)
		f.down = true
		time.AfterFunc(30*time.Second, func() { f.mu.Lock(); f.down = false; f.mu.Unlock() })
		begin := time.Now()
		wantOnce(t, f, sendAll(ctx, c, 4, 1, nil), 4)
		if took := time.Since(begin); took > 40*time.Second {
			t.Errorf("it took %s, want little more than the outage", took)
		}
	})
}

func TestTheEndOfTheCallersPatience(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		c := f.client(nil)
		short := func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, 5*time.Second) }

		f.down = true
		first, cancel := short()
		_, err := c.Send(first, tenant, Tx{Msgs: pay(1), Memo: "never"})
		cancel()
		if _, open := errors.AsType[*UnconfirmedError](err); open || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nothing was sent") {
			t.Errorf("before anything was signed: %v", err)
		}
		f.down = false

		f.lostAnswer, f.noIndex = 1, true
		second, cancel := short()
		var kept Signed
		_, err = c.Send(second, tenant, Tx{Msgs: pay(1), Memo: "open", OnSigned: func(_ context.Context, s Signed) error {
			kept = s
			return nil
		}})
		cancel()
		// The block with it came, so it is found by reading blocks, index or not.
		if err != nil {
			t.Errorf("a lost answer: %v", err)
		}
		if r, err := c.Resume(ctx, kept); err != nil || r.Hash != kept.Hash {
			t.Errorf("Resume of what is in a block = %+v, %v", r, err)
		}
		if f.ran["open"] != 1 || f.ran["never"] != 0 {
			t.Errorf("executions: %v", f.ran)
		}

		f.lostAnswer = 0
		third, cancel := short()
		_, err = c.Send(third, tenant, Tx{Msgs: pay(1), Memo: "cut off", OnSigned: func(_ context.Context, s Signed) error {
			kept = s
			f.mu.Lock()
			f.down = true
			f.mu.Unlock()
			return nil
		}})
		cancel()
		open, ok := errors.AsType[*UnconfirmedError](err)
		if !ok || open.Signed.Hash != kept.Hash || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("after signing: %v", err)
		}
		f.mu.Lock()
		f.down = false
		f.mu.Unlock()
		// Another process, with nothing but what was written down.
		if r, err := f.client(nil).Resume(ctx, open.Signed); err != nil || r.Hash != kept.Hash {
			t.Errorf("Resume = %+v, %v", r, err)
		}
		wantOnce(t, f, map[string]error{"cut off": nil}, 1)
	})
}

func TestResumeOfADeadTransactionSaysSo(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		c := f.client(nil)
		var kept Signed
		stop := errors.New("disk is full")
		_, err := c.Send(ctx, tenant, Tx{Msgs: pay(1), Memo: "kept back", OnSigned: func(_ context.Context, s Signed) error {
			kept = s
			return stop
		}})
		if !errors.Is(err, stop) || f.seen[kept.Hash] != 0 {
			t.Errorf("Send = %v; the node saw it %d times, want the error of OnSigned and 0", err, f.seen[kept.Hash])
		}
		if _, err := c.Send(ctx, tenant, Tx{Msgs: pay(1), Memo: "other"}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Resume(ctx, kept); !errors.Is(err, ErrDead) {
			t.Errorf("Resume = %v, want ErrDead", err)
		}
		if f.ran["kept back"] != 0 {
			t.Error("a dead transaction was executed")
		}
		kept.Raw = append([]byte(nil), kept.Raw...)
		kept.Raw[0]++
		if _, err := c.Resume(ctx, kept); croft.KindOf(err) != croft.KindUsage {
			t.Errorf("Resume of changed bytes = %v", err)
		}
	})
}

func TestPastItsTimeoutHeightATransactionIsSignedAnew(t *testing.T) {
	for _, once := range []bool{false, true} {
		t.Run(fmt.Sprintf("once=%v", once), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				f := newFake(t, 1)
				var chain sync.WaitGroup
				f.empty = true
				chain.Go(func() { f.run(ctx) })
				c := f.client(func(cfg *Config) { cfg.TimeoutBlocks = 5 })
				f.full = 1 // until its time is over
				time.AfterFunc(20*time.Second, func() { f.mu.Lock(); f.full = 0; f.mu.Unlock() })
				_, err := c.Send(ctx, tenant, Tx{Msgs: pay(1), Memo: "late", Once: once})
				if once {
					if !errors.Is(err, ErrDead) || f.ran["late"] != 0 {
						t.Errorf("Send = %v after %d executions, want ErrDead", err, f.ran["late"])
					}
				} else {
					wantOnce(t, f, map[string]error{"late": err}, 1)
					if len(f.signed["late"]) < 2 {
						t.Error("it was not signed anew")
					}
				}
				cancel()
				chain.Wait()
			})
		})
	}
}

// What ends an intent past its timeout height is the account as of that height
// or later, not the height alone: the intent may have been executed in time.
func TestPastItsTimeoutHeightTheAccountDecides(t *testing.T) {
	for _, tc := range []struct {
		name  string
		stale time.Duration // how long the account is answered for from before the sending
	}{
		{"its place is used", 0},
		{"the answers about the account are old", time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
				defer cancel()
				f.noIndex, f.empty = true, true
				c := f.client(func(cfg *Config) { cfg.TimeoutBlocks = 5 })
				var kept Signed
				cut, stop := context.WithCancel(ctx)
				_, err := c.Send(cut, tenant, Tx{Msgs: pay(1), Memo: "late", OnSigned: func(_ context.Context, s Signed) error {
					kept = s
					stop() // it leaves, and nobody waits for it
					return nil
				}})
				if _, open := errors.AsType[*UnconfirmedError](err); !open {
					t.Fatalf("Send = %v, want what is open", err)
				}
				time.Sleep(30 * time.Second)
				if tc.stale > 0 {
					f.mu.Lock()
					f.stale = kept.Height
					f.mu.Unlock()
					time.AfterFunc(tc.stale, func() { f.mu.Lock(); f.stale = 0; f.mu.Unlock() })
				}
				c = f.client(nil) // as after a crash
				s := c.sequencer(tenant.Address())
				status, err := f.Status(ctx)
				if err != nil {
					t.Fatal(err)
				}
				s.saw(status.Height) // the chain is known to be past the timeout
				if r, err := c.Resume(ctx, kept); err != nil || r.Height > kept.TimeoutHeight {
					t.Errorf("Resume = %+v, %v, want the block it was executed in", r, err)
				}
				wantOnce(t, f, map[string]error{"late": nil}, 1)
			})
		})
	}
}

func TestAFixedFeeIsOfferedAsItIs(t *testing.T) {
	for _, tc := range []struct {
		name string
		fee  []*basev1beta1.Coin
		want string
	}{
		{"none given: by the price of gas", nil, "2250uakt"},
		{"one given", []*basev1beta1.Coin{{Denom: "uact", Amount: "7"}}, "7uact"},
		{"an empty one is none", []*basev1beta1.Coin{}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
				var kept Signed
				_, err := f.client(nil).Send(ctx, tenant, Tx{Msgs: pay(1), Fee: tc.fee, OnSigned: func(_ context.Context, s Signed) error {
					kept = s
					return nil
				}})
				if err != nil {
					t.Fatal(err)
				}
				if tx, err := f.decode(kept.Raw); err != nil || tx.fee != tc.want || tx.gas != 90_000 {
					t.Errorf("fee = %q for %d gas, %v, want %q for 90000", tx.fee, tx.gas, err, tc.want)
				}
			})
		})
	}
}

func TestVerdictsReachTheCaller(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		c := f.client(nil)
		f.refuse = func(memo string) error {
			if memo == "refused" {
				return &akash.TxError{Codespace: "market", Code: 13, Log: "order not open\nstack"}
			}
			return nil
		}
		f.fail = func(memo string) uint32 {
			if memo == "fails" {
				return 5
			}
			return 0
		}
		_, err := c.Send(ctx, tenant, Tx{Msgs: pay(1), Memo: "refused"})
		if !errors.Is(err, akash.ErrOrderNotOpen) || croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "newest order") || strings.Contains(err.Error(), "stack") {
			t.Errorf("refused by CheckTx: %v", err)
		}
		r, err := c.Send(ctx, tenant, Tx{Msgs: pay(1), Memo: "fails"})
		if !errors.Is(err, akash.ErrInsufficientFunds) || r.Height == 0 || r.Code != 5 {
			t.Errorf("failed in its block: %+v, %v", r, err)
		}
		if _, err := c.Send(ctx, tenant, Tx{Memo: "empty"}); croft.KindOf(err) != croft.KindUsage {
			t.Errorf("a transaction without messages: %v", err)
		}
		// Neither costs the account a place that stays empty.
		wantOnce(t, f, sendAll(ctx, c, 3, 1, nil), 3)
	})
}

// One fails in its block before its place is used; those after it have to wait
// for the next one that takes the place.
func TestAHoleIsFilledByTheNextTransaction(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		c := f.client(nil)
		f.anteFail = func(memo string) uint32 {
			if memo == "poor" {
				return 5
			}
			return 0
		}
		var wg sync.WaitGroup
		errs := make([]error, 3)
		for i, memo := range []string{"poor", "after", "filler"} {
			wg.Go(func() {
				if sleep(ctx, time.Duration(i)*100*time.Millisecond+time.Duration(i/2)*20*time.Second) != nil {
					return
				}
				_, errs[i] = c.Send(ctx, tenant, Tx{Msgs: pay(1), Memo: memo})
			})
		}
		wg.Wait()
		if !errors.Is(errs[0], akash.ErrInsufficientFunds) {
			t.Errorf("the one that failed: %v", errs[0])
		}
		wantOnce(t, f, map[string]error{"after": errs[1], "filler": errs[2]}, 2)
		if f.ran["poor"] != 0 {
			t.Error("the one that failed was executed")
		}
	})
}

func TestUnordered(t *testing.T) {
	for _, tc := range []struct {
		name   string
		faults func(*fakeChain)
	}{
		{"on a good day", func(*fakeChain) {}},
		{"under faults", func(f *fakeChain) { f.lostAnswer, f.lostRequest, f.full = 0.3, 0.2, 0.3 }},
		{"without an index", func(f *fakeChain) { f.lostAnswer, f.noIndex = 0.3, true }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				f := newFake(t, 3)
				var chain sync.WaitGroup
				f.empty = true
				chain.Go(func() { f.run(ctx) })
				tc.faults(f)
				wantOnce(t, f, sendAll(ctx, f.client(nil), 6, 2, func(tx *Tx) { tx.Unordered = true }), 12)
				if got := f.history[f.height][tenant.Address()]; got != 0 {
					t.Errorf("sequence = %d, want 0: they have no place", got)
				}
				cancel()
				chain.Wait()
			})
		})
	}
	t.Run("on an idle chain it is sent ordered", func(t *testing.T) {
		inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
			time.Sleep(time.Hour)
			wantOnce(t, f, sendAll(ctx, f.client(nil), 1, 1, func(tx *Tx) { tx.Unordered = true }), 1)
		})
	})
}

func TestSimulate(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		c := f.client(nil)
		gas, err := c.Simulate(ctx, tenant.PublicKey(), Tx{Msgs: pay(1)})
		if err != nil || gas != 90_000 {
			t.Errorf("Simulate = %d, %v, want 90000", gas, err)
		}
		f.refuse = func(string) error { return akash.ErrDeploymentClosed }
		if _, err := c.Simulate(ctx, tenant.PublicKey(), Tx{Msgs: pay(1)}); !errors.Is(err, akash.ErrDeploymentClosed) || croft.KindOf(err) != croft.KindRefused {
			t.Errorf("Simulate = %v", err)
		}
	})
}
