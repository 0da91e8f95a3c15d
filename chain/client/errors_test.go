package client

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft"
)

func TestQueryErrorsAreForPeople(t *testing.T) {
	c := &Client{}
	for _, tc := range []struct {
		name, method string
		err          error
		kind         croft.Kind
		want         string
	}{
		{"a query is named by what it asks for", "/akash.deployment.v1beta4.Query/Deployment", status.Error(codes.NotFound, "deployment not found"), croft.KindNotFound, "query deployment: deployment not found; "},
		{"a long name is words", "/cosmos.bank.v1beta1.Query/AllBalances", status.Error(codes.InvalidArgument, "empty address"), croft.KindUsage, "query all balances: empty address; "},
		{"sending is no query", "/cosmos.tx.v1beta1.Service/BroadcastTx", status.Error(codes.Internal, "broken\nstack"), croft.KindOther, "send transaction to node: broken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := c.queryError(t.Context(), tc.method, tc.err)
			if got := err.Error(); croft.KindOf(err) != tc.kind || !strings.HasPrefix(got, tc.want) || strings.Contains(got, "rpc error") {
				t.Errorf("got %q, %v", croft.KindOf(err), err)
			}
			if status.Code(err) != status.Code(tc.err) {
				t.Errorf("code = %s, want %s", status.Code(err), status.Code(tc.err))
			}
		})
	}
}

func TestATransactionThatNoNodeTakesIsRefusedAtOnce(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, ctx context.Context, f *fakeChain) {
		c := f.client(nil)
		begin := time.Now()
		tx := Tx{Msgs: pay(1), Memo: strings.Repeat("x", maxTxBytes)}
		_, err := c.Send(ctx, tenant, tx)
		if croft.KindOf(err) != croft.KindInvalid || !strings.Contains(err.Error(), "split its messages") {
			t.Errorf("send = %q, %v", croft.KindOf(err), err)
		}
		tx.Gas, tx.Unordered = 1_000_000, true
		if _, err := c.Send(ctx, tenant, tx); croft.KindOf(err) != croft.KindInvalid {
			t.Errorf("send unordered = %q, %v", croft.KindOf(err), err)
		}
		if took := time.Since(begin); took > 0 || len(f.seen) > 0 {
			t.Errorf("it took %s, and the node saw %d transactions", took, len(f.seen))
		}
	})
}
