//go:build integration

package simbox

import "testing"

func TestTwoThousandBoxesComeBackWithoutAStorm(t *testing.T) { comeBack(t, 2000) }
