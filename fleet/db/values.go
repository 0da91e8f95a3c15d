package db

import "time"

// Scan reads the columns of one row.
type Scan func(...any) error

// All reads every row that a query finds; one turns a row into a value.
func All[T any](tx *Tx, one func(Scan) (T, error), query string, args ...any) (list []T, err error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		v, err := one(rows.Scan)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// Micros is a time as tables hold it: microseconds, 0 for none.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Instant is the time that [Micros] wrote.
func Instant(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// Bit is a truth as tables hold it.
func Bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
