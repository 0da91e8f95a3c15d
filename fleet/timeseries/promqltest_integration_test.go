//go:build integration

package timeseries

import (
	"context"
	"testing"

	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/storage"
)

// asStorage gives Prometheus' own test language write access to the database
// below a store, and reads through the store.
type asStorage struct {
	*Store
}

func (a asStorage) Querier(mint, maxt int64) (storage.Querier, error) {
	return a.querier(nil, mint, maxt)
}

func (a asStorage) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	return a.raw.ChunkQuerier(mint, maxt)
}

func (a asStorage) Appender(ctx context.Context) storage.Appender { return a.raw.Appender(ctx) }

func (a asStorage) AppenderV2(ctx context.Context) storage.AppenderV2 { return a.raw.AppenderV2(ctx) }

func (a asStorage) StartTime() (int64, error) { return a.raw.StartTime() }

// TestTheStorePassesPrometheusOwnSuite runs all scripts Prometheus tests itself
// with, its reads going through the store.
func TestTheStorePassesPrometheusOwnSuite(t *testing.T) {
	t.Parallel()
	promqltest.RunBuiltinTestsWithStorage(t, promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery), func(tb testing.TB) storage.Storage {
		return asStorage{open(tb, Config{})}
	})
}
