package sdl_test

import (
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/api/basev1beta1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/api/depositv1"
	"github.com/croft-cloud/croft/chain/sdl"
)

// smallest is the SDL the vectors were made with; corpus_test.go finds it, too.
const smallest = "testdata/valid/smallest.yaml"

const (
	smallestManifest = `[{"name":"home","services":[{"args":null,"command":null,"count":1,"credentials":null,"env":null,"expose":[{"endpointSequenceNumber":0,"externalPort":80,"global":true,"hosts":["demo.example.com"],"httpOptions":{"maxBodySize":1048576,"nextCases":["error","timeout"],"nextTimeout":0,"nextTries":3,"readTimeout":60000,"sendTimeout":60000},"ip":"","port":80,"proto":"TCP","service":""}],"image":"nginx:1.27","name":"web","resources":{"cpu":{"units":{"val":"500"}},"endpoints":[{"sequence_number":0}],"gpu":{"units":{"val":"0"}},"id":1,"memory":{"size":{"val":"536870912"}},"storage":[{"name":"default","size":{"val":"1073741824"}}]}}]}]`
	smallestHash     = "7bfa8fd4bd34b51538a0fcf1d44bcd7948d73325e2f4d755f3ed4a7ca3f48e0f"
	smallestBase64   = "e/qP1L00tRU4oPzx1EvNeUjXMyXi9NdV8+1KfKP0jg8="
	escapedHash      = "bd5067196175a927d80ec233b47d28722fb5b0688307470cb106a04d6bf59dbd"
	createDeployment = "0a300a2c616b6173683171717171717171717171717171717171717171717171717171717171717171716763706a387110" +
		"07127e0a04686f6d6512150a0012110a06726567696f6e120765752d776573741a5f0a3c080112070a050a033530301a0d" +
		"0a0b0a0935333638373039313222170a0764656661756c74120c0a0a313037333734313832342a050a030a0130320010011a" +
		"1d0a047561637412153130303030303030303030303030303030303030301a207bfa8fd4bd34b51538a0fcf1d44bcd7948" +
		"d73325e2f4d755f3ed4a7ca3f48e0f22150a0f0a04756163741207353030303030302a020201"
)

func parseFile(t *testing.T, name string) *sdl.SDL {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	file, err := sdl.Parse(data)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return file
}

// TestVectors holds the package against what the real clients made.
func TestVectors(t *testing.T) {
	file := parseFile(t, smallest)
	if got := string(file.Manifest().JSON()); got != smallestManifest {
		t.Errorf("manifest:\n%s\nwant:\n%s", got, smallestManifest)
	}
	hash := file.Hash()
	if got := hex.EncodeToString(hash[:]); got != smallestHash {
		t.Errorf("hash %s, want %s", got, smallestHash)
	}
	if got := base64.StdEncoding.EncodeToString(hash[:]); got != smallestBase64 {
		t.Errorf("hash %s, want %s", got, smallestBase64)
	}
	msg := &deploymentv1beta4.MsgCreateDeployment{
		Id:     &deploymentv1.DeploymentID{Owner: "akash1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqgcpj8q", Dseq: 7},
		Groups: file.Groups(),
		Hash:   hash[:],
		Deposit: &depositv1.Deposit{
			Amount:  &basev1beta1.Coin{Denom: "uact", Amount: "5000000"},
			Sources: []depositv1.Source{depositv1.Source_grant, depositv1.Source_balance},
		},
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(raw); got != createDeployment {
		t.Errorf("MsgCreateDeployment:\n%s\nwant:\n%s", got, createDeployment)
	}
}

func TestEscapingIsThatOfGo(t *testing.T) {
	data, err := os.ReadFile(smallest)
	if err != nil {
		t.Fatal(err)
	}
	file, err := sdl.Parse([]byte(strings.Replace(string(data), "    expose:", "    args: [\"a<b&c>\", \"é\"]\n    expose:", 1)))
	if err != nil {
		t.Fatal(err)
	}
	hash := file.Hash()
	if got := hex.EncodeToString(hash[:]); got != escapedHash {
		t.Errorf("hash %s, want %s\n%s", got, escapedHash, file.Manifest().JSON())
	}
}

// TestTheArticlesFile is about the deploy.yml that many a tenant begins with.
func TestTheArticlesFile(t *testing.T) {
	file := parseFile(t, filepath.Join("testdata", "valid", "deploy.yaml"))
	if err := sdl.Check(file.Manifest(), file.Groups()); err != nil {
		t.Error(err)
	}
	if got := file.Groups()[0].GetResources()[0].GetPrice().GetAmount(); got != "1000000000000000000000" {
		t.Errorf("price %s, want 1000 with eighteen zeros behind it", got)
	}
}
