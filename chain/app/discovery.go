package app

import (
	"context"

	"github.com/grpc-ecosystem/grpc-gateway/runtime"

	"github.com/cosmos/cosmos-sdk/client"

	"github.com/croft-cloud/croft/chain/gogo/discoveryv1"
)

// nodeVersion is the version of Akash's node whose wire format this chain
// serves. Clients compare it; the program's own version is in ABCI's info.
const nodeVersion = "v2.1.0"

// apiModules are the modules and the service versions that this chain serves,
// under each of the client API versions it speaks.
var apiModules = []discoveryv1.ModuleVersion{
	{Module: "audit", Version: "v1"},
	{Module: "cert", Version: "v1"},
	{Module: "deployment", Version: "v1beta4"},
	{Module: "escrow", Version: "v1"},
	{Module: "market", Version: "v1beta5"},
	{Module: "provider", Version: "v1beta4"},
}

// discovery answers the question that Akash's clients ask before all others:
// which versions of the API does this node speak.
type discovery struct{ chainID string }

func (d discovery) info() *discoveryv1.Akash {
	return &discoveryv1.Akash{
		ClientInfo: discoveryv1.ClientInfo{ApiVersion: "v1beta3"},
		SupportedVersions: []discoveryv1.VersionInfo{
			{ApiVersion: "v1beta4", Modules: apiModules},
			{ApiVersion: "v1beta3", Modules: apiModules},
		},
		ChainId:     d.chainID,
		NodeVersion: nodeVersion,
	}
}

// GetInfo implements akash.discovery.v1.Discovery.
func (d discovery) GetInfo(context.Context, *discoveryv1.GetInfoRequest) (*discoveryv1.GetInfoResponse, error) {
	return &discoveryv1.GetInfoResponse{Info: d.info()}, nil
}

// rpcInfo is the answer of the JSON-RPC method "akash". Unlike generated JSON
// it shows every field, as the real node does.
type rpcInfo struct {
	ClientInfo struct {
		APIVersion string `json:"api_version"`
	} `json:"client_info"`
	SupportedVersions []rpcVersion `json:"supported_versions"`
	ChainID           string       `json:"chain_id"`
	NodeVersion       string       `json:"node_version"`
	MinClientVersion  string       `json:"min_client_version"`
}

type rpcVersion struct {
	APIVersion string                      `json:"api_version"`
	Modules    []discoveryv1.ModuleVersion `json:"modules"`
	Features   []string                    `json:"features"`
}

func (d discovery) rpcInfo() *rpcInfo {
	info := d.info()
	out := &rpcInfo{ChainID: info.ChainId, NodeVersion: info.NodeVersion, MinClientVersion: info.MinClientVersion}
	out.ClientInfo.APIVersion = info.ClientInfo.ApiVersion
	for _, v := range info.SupportedVersions {
		out.SupportedVersions = append(out.SupportedVersions, rpcVersion{APIVersion: v.ApiVersion, Modules: v.Modules, Features: v.Features})
	}
	return out
}

func (a *App) registerDiscovery() {
	discoveryv1.RegisterDiscoveryServer(a.GRPCQueryRouter(), discovery{chainID: a.options.ChainID})
}

func (a *App) registerDiscoveryRoutes(ctx client.Context, mux *runtime.ServeMux) {
	if err := discoveryv1.RegisterDiscoveryHandlerClient(context.Background(), mux, discoveryv1.NewDiscoveryClient(ctx)); err != nil {
		panic(err) // it has no path to fail
	}
}
