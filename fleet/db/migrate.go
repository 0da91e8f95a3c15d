package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/croft-cloud/croft"
)

var ownerForm = regexp.MustCompile(`^[a-z][a-z0-9]{0,30}$`)

// migration brings one context's tables up to date, in a pool nobody else
// migrates.
type migration func(ctx context.Context, dialect goose.Dialect, pool *sql.DB) error

func newMigration(owner string, files fs.FS, log *slog.Logger) (migration, error) {
	if !ownerForm.MatchString(owner) {
		return nil, &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("migrate %q: want an owner of 1 to 31 small letters and digits", owner)}
	}
	return func(ctx context.Context, dialect goose.Dialect, pool *sql.DB) error {
		begin := time.Now()
		p, err := goose.NewProvider(dialect, pool, files,
			goose.WithTableName(owner+"_migrations"),
			goose.WithDisableGlobalRegistry(true),
			goose.WithLogger(goose.NopLogger()))
		if errors.Is(err, goose.ErrNoMigrations) {
			return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf("migrate %s: no file is named like 0001_name.sql", owner)}
		}
		if err != nil {
			return fmt.Errorf("migrate %s: %w", owner, err)
		}
		has, knows, err := p.GetVersions(ctx)
		if err != nil {
			return fmt.Errorf("migrate %s: read its version: %w", owner, err)
		}
		if has > knows {
			return &croft.Error{
				Kind:   croft.KindRefused,
				Err:    fmt.Errorf("the database holds version %d of the %s tables, and this program knows them up to version %d", has, owner, knows),
				Remedy: "start the release that wrote it, or a newer one",
			}
		}
		done, err := p.Up(ctx)
		if err != nil {
			return fmt.Errorf("migrate %s: %w", owner, err)
		}
		if len(done) > 0 {
			log.Info("schema migrated", "owner", owner, "from", has, "to", knows, "took", time.Since(begin))
		}
		return nil
	}, nil
}
