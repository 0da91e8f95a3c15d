package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// auditBeat is how often the audit log is read as a whole.
const auditBeat = 24 * time.Hour

// mostHeads is how many ends of the log are remembered: a year of days.
const mostHeads = 366

// watchAudit reads the audit log every day, compares it with its earlier ends, which
// this replica keeps in a file, and says loudly when it was changed. Who puts an older
// database back takes entries off the end; the file shows that.
func (f *Fleet) watchAudit(ctx context.Context, file string) error {
	for {
		if err := f.verifyAudit(ctx, file); err != nil && ctx.Err() == nil {
			f.log.ErrorContext(ctx, "audit log is not as it was written", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(auditBeat):
		}
	}
}

func (f *Fleet) verifyAudit(ctx context.Context, file string) error {
	var heads []auditlog.Head
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, &heads)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read earlier ends of the audit log: %w", err)
	}
	if _, err := f.audit.Verify(ctx, heads...); err != nil {
		return err
	}
	head, err := f.audit.Head(ctx)
	if err != nil {
		return err
	}
	heads = append(heads, head)
	heads = heads[max(0, len(heads)-mostHeads):]
	if raw, err = json.Marshal(heads); err != nil {
		return err
	}
	return atomicfile.WriteFile(file, raw, 0o600)
}
