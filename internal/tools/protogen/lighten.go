package main

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// ours begins the proto packages of the light messages.
const ours = "croft.wire."

// wanted are the files of others that light messages are made from.
var wanted = []string{
	"cosmos/auth/v1beta1/query.proto",
	"cosmos/authz/v1beta1/tx.proto",
	"cosmos/bank/v1beta1/query.proto",
	"cosmos/bank/v1beta1/tx.proto",
	"cosmos/base/tendermint/v1beta1/query.proto",
	"cosmos/crypto/secp256k1/keys.proto",
	"cosmos/feegrant/v1beta1/tx.proto",
	"cosmos/tx/v1beta1/service.proto",
}

// foreign are the messages of others that clients use; what they consist of
// comes with them. Of the akash packages all is kept but genesis.
var foreign = []string{
	"cosmos.auth.v1beta1.BaseAccount",
	"cosmos.auth.v1beta1.ModuleAccount",
	"cosmos.auth.v1beta1.QueryAccountRequest",
	"cosmos.auth.v1beta1.QueryAccountResponse",
	"cosmos.auth.v1beta1.QueryAccountInfoRequest",
	"cosmos.auth.v1beta1.QueryAccountInfoResponse",
	"cosmos.authz.v1beta1.GenericAuthorization",
	"cosmos.authz.v1beta1.MsgGrant",
	"cosmos.authz.v1beta1.MsgRevoke",
	"cosmos.authz.v1beta1.MsgExec",
	"cosmos.bank.v1beta1.MsgSend",
	"cosmos.bank.v1beta1.MsgMultiSend",
	"cosmos.bank.v1beta1.QueryAllBalancesRequest",
	"cosmos.bank.v1beta1.QueryAllBalancesResponse",
	"cosmos.bank.v1beta1.QueryBalanceRequest",
	"cosmos.bank.v1beta1.QueryBalanceResponse",
	"cosmos.base.tendermint.v1beta1.GetSyncingRequest",
	"cosmos.base.tendermint.v1beta1.GetSyncingResponse",
	"cosmos.base.tendermint.v1beta1.GetNodeInfoRequest",
	"cosmos.crypto.secp256k1.PubKey",
	"cosmos.feegrant.v1beta1.BasicAllowance",
	"cosmos.feegrant.v1beta1.PeriodicAllowance",
	"cosmos.feegrant.v1beta1.AllowedMsgAllowance",
	"cosmos.feegrant.v1beta1.MsgGrantAllowance",
	"cosmos.feegrant.v1beta1.MsgRevokeAllowance",
	"cosmos.tx.v1beta1.BroadcastTxRequest",
	"cosmos.tx.v1beta1.BroadcastTxResponse",
	"cosmos.tx.v1beta1.GetTxRequest",
	"cosmos.tx.v1beta1.GetTxResponse",
	"cosmos.tx.v1beta1.SignDoc",
	"cosmos.tx.v1beta1.SimulateRequest",
	"cosmos.tx.v1beta1.SimulateResponse",
	"cosmos.tx.v1beta1.Tx",
	"cosmos.tx.v1beta1.TxRaw",
}

// lighten makes one file of each proto package, of its wanted messages and
// enums alone, under a name of our own. Services and options fall away: gRPC
// needs a path, and the options speak to cosmos-sdk's generator.
func lighten(set []*descriptorpb.FileDescriptorProto) []*descriptorpb.FileDescriptorProto {
	keep := reachable(set)
	merged := make(map[string]*descriptorpb.FileDescriptorProto)
	var order []string // of packages; imports come first already
	for _, f := range set {
		if strings.HasPrefix(f.GetPackage(), "google.protobuf") {
			continue
		}
		if f.GetPackage() == "" || !slices.ContainsFunc(names(f), func(n string) bool { return keep[n] }) {
			continue
		}
		m, ok := merged[f.GetPackage()]
		if !ok {
			m = &descriptorpb.FileDescriptorProto{
				Name:    proto.String(fileOf(f.GetPackage())),
				Package: proto.String(ours + f.GetPackage()),
				Syntax:  proto.String("proto3"),
				Options: &descriptorpb.FileOptions{
					GoPackage: proto.String(module + "/chain/api/" + goPackage(f.GetPackage())),
				},
				SourceCodeInfo: &descriptorpb.SourceCodeInfo{},
			}
			merged[f.GetPackage()] = m
			order = append(order, f.GetPackage())
		}
		add(m, f, keep)
	}
	var light []*descriptorpb.FileDescriptorProto
	for _, f := range set {
		if strings.HasPrefix(f.GetPackage(), "google.protobuf") {
			light = append(light, f)
		}
	}
	// A package may import one that was seen after it: sort by need.
	done := make(map[string]bool)
	var visit func(pkg string)
	visit = func(pkg string) {
		if done[pkg] {
			return
		}
		done[pkg] = true
		m := merged[pkg]
		imports := make(map[string]bool)
		for _, t := range m.MessageType {
			eachRef(t, func(ref *string) {
				name := strings.TrimPrefix(*ref, ".")
				if strings.HasPrefix(name, "google.protobuf.") {
					imports[wellKnown[name]] = true
					return
				}
				other := packageOf(name, order)
				if other != pkg {
					visit(other)
					imports[fileOf(other)] = true
				}
				*ref = "." + ours + name
			})
		}
		for i := range imports {
			m.Dependency = append(m.Dependency, i)
		}
		slices.Sort(m.Dependency)
		light = append(light, m)
	}
	for _, pkg := range order {
		visit(pkg)
	}
	return light
}

// wellKnown tells where the few google.protobuf messages in use are declared.
var wellKnown = map[string]string{
	"google.protobuf.Any":       "google/protobuf/any.proto",
	"google.protobuf.Duration":  "google/protobuf/duration.proto",
	"google.protobuf.Timestamp": "google/protobuf/timestamp.proto",
}

// fileOf names the one file of a light package.
func fileOf(pkg string) string { return "croft/wire/" + strings.ReplaceAll(pkg, ".", "/") + ".proto" }

// goPackage joins what tells a proto package apart: akash.market.v1beta5 is
// marketv1beta5, akash.base.deposit.v1 depositv1, cosmos.base.v1beta1 basev1beta1.
func goPackage(pkg string) string {
	parts := strings.Split(pkg, ".")
	if parts[0] == "akash" || parts[0] == "cosmos" {
		parts = parts[1:]
	}
	if parts[0] == "base" && len(parts) > 2 {
		parts = parts[1:]
	}
	if parts[len(parts)-1] == "secp256k1" {
		return "secp256k1v1"
	}
	if parts[0] == "k8s" {
		return "quantityv1"
	}
	return strings.Join(parts, "")
}

// packageOf finds the package that declares a type, which may be nested.
func packageOf(name string, packages []string) string {
	best := ""
	for _, p := range packages {
		if strings.HasPrefix(name, p+".") && len(p) > len(best) {
			best = p
		}
	}
	return best
}

// names are the top-level types of a file, with their package.
func names(f *descriptorpb.FileDescriptorProto) []string {
	var all []string
	for _, m := range f.MessageType {
		all = append(all, f.GetPackage()+"."+m.GetName())
	}
	for _, e := range f.EnumType {
		all = append(all, f.GetPackage()+"."+e.GetName())
	}
	return all
}

// reachable names the top-level types to keep.
func reachable(set []*descriptorpb.FileDescriptorProto) map[string]bool {
	needs := make(map[string][]string) // top-level type → types it refers to
	for _, f := range set {
		for _, n := range names(f) {
			needs[n] = nil
		}
	}
	top := func(name string) string {
		for name != "" {
			if _, ok := needs[name]; ok {
				return name
			}
			name = name[:max(0, strings.LastIndexByte(name, '.'))]
		}
		return ""
	}
	var todo []string
	for _, f := range set {
		for _, m := range f.MessageType {
			n := f.GetPackage() + "." + m.GetName()
			eachRef(m, func(ref *string) { needs[n] = append(needs[n], strings.TrimPrefix(*ref, ".")) })
			if strings.HasPrefix(n, "akash.") && !strings.HasPrefix(m.GetName(), "Genesis") {
				todo = append(todo, n)
			}
		}
	}
	todo = append(todo, foreign...)
	keep := make(map[string]bool)
	for len(todo) > 0 {
		n := top(todo[len(todo)-1])
		todo = todo[:len(todo)-1]
		if n == "" || keep[n] {
			continue
		}
		keep[n] = true
		todo = append(todo, needs[n]...)
	}
	return keep
}

// eachRef calls do with the type name of each field, nested messages included.
func eachRef(m *descriptorpb.DescriptorProto, do func(ref *string)) {
	for _, f := range m.Field {
		if f.TypeName != nil {
			do(f.TypeName)
		}
	}
	for _, n := range m.NestedType {
		eachRef(n, do)
	}
}

// add copies the kept types of f to m, with their comments. The path of a
// comment begins with the kind of a type (4 message, 5 enum) and its place.
func add(m, f *descriptorpb.FileDescriptorProto, keep map[string]bool) {
	moved := map[[2]int32]int32{}
	for i, t := range f.MessageType {
		if keep[f.GetPackage()+"."+t.GetName()] {
			moved[[2]int32{4, int32(i)}] = int32(len(m.MessageType))
			m.MessageType = append(m.MessageType, bare(t))
		}
	}
	for i, e := range f.EnumType {
		if keep[f.GetPackage()+"."+e.GetName()] {
			moved[[2]int32{5, int32(i)}] = int32(len(m.EnumType))
			m.EnumType = append(m.EnumType, bareEnum(e))
		}
	}
	for _, l := range f.GetSourceCodeInfo().GetLocation() {
		if len(l.Path) < 2 || l.LeadingComments == nil {
			continue
		}
		at, ok := moved[[2]int32{l.Path[0], l.Path[1]}]
		if !ok {
			continue
		}
		l = proto.CloneOf(l)
		l.Path[1] = at
		l.TrailingComments, l.LeadingDetachedComments = nil, nil
		m.SourceCodeInfo.Location = append(m.SourceCodeInfo.Location, l)
	}
}

// bare is a copy without options, but for what changes the wire or the Go type
// of a map.
func bare(m *descriptorpb.DescriptorProto) *descriptorpb.DescriptorProto {
	m = proto.CloneOf(m)
	if m.GetOptions().GetMapEntry() {
		m.Options = &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)}
	} else {
		m.Options = nil
	}
	for _, f := range m.Field {
		f.Options = nil
	}
	for _, o := range m.OneofDecl {
		o.Options = nil
	}
	for i, n := range m.NestedType {
		m.NestedType[i] = bare(n)
	}
	for i, e := range m.EnumType {
		m.EnumType[i] = bareEnum(e)
	}
	return m
}

func bareEnum(e *descriptorpb.EnumDescriptorProto) *descriptorpb.EnumDescriptorProto {
	e = proto.CloneOf(e)
	e.Options = nil
	for _, v := range e.Value {
		v.Options = nil
	}
	return e
}
