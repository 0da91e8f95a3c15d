package blueprint

import (
	"testing"

	"github.com/croft-cloud/croft/chain/akash"
)

func TestAutomaticHostIsTheOneOfAkash(t *testing.T) {
	id := akash.LeaseID{OrderID: akash.OrderID{GroupID: akash.GroupID{DeploymentID: akash.DeploymentID{Owner: "akash19rl4cm2hmr8afy4kldpxz3fka4jguq0a3mq6x0", DSeq: 7}, GSeq: 1}, OSeq: 1}, Provider: "akash1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq7cdc78"}
	// UUIDv5 of the DNS name space, computed with Python's uuid module.
	const want = "e3a00u7mdpe1j74j48o0en76rs.ingress.example"
	if got := AutomaticHost("ingress.example", id, "web"); got != want {
		t.Errorf("host %s, want %s", got, want)
	}
}
