//go:build integration

package uplink

import "testing"

func TestThousandKillsLoseAndDoubleNothing(t *testing.T) { killMany(t, 1000) }
