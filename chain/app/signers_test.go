package app_test

import (
	"strings"
	"testing"

	"github.com/croft-cloud/croft/chain/app"
	"github.com/croft-cloud/croft/chain/chaintest"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1"
	"github.com/croft-cloud/croft/chain/gogo/deploymentv1beta4"
)

func TestEveryCustomSignerPathNamesAMessageOfTheChain(t *testing.T) {
	a := chaintest.NewApp(t, chaintest.Config{})
	for _, name := range app.SignerMessages() {
		if _, err := a.InterfaceRegistry().Resolve("/" + name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheOwnerInAnIDSignsForIt(t *testing.T) {
	a := chaintest.NewApp(t, chaintest.Config{})
	msg := &deploymentv1beta4.MsgCloseDeployment{ID: deploymentv1.DeploymentID{Owner: tenant.Address(), DSeq: 7}}
	for _, tc := range []struct {
		name   string
		signer chaintest.Account
		amino  bool
		want   string
	}{
		{"the owner's message is heard", tenant, false, "deployment/4"},
		{"so it is in amino JSON", tenant, true, "deployment/4"},
		{"another's is refused", provider, false, "sdk/8"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := a.NextBlock(a.Sign(tc.signer, chaintest.TxConfig{Amino: tc.amino}, msg))[0]
			if err := r.Err(); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("answer is %v, want %s", err, tc.want)
			}
		})
	}
}
