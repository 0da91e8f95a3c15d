package gateway_test

import (
	"context"
	"crypto/tls"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/croft-cloud/croft/chain/api/providerv1"
)

func (w *world) grpcClient(t *testing.T) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(w.grpc.String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const rpc = "/akash.provider.v1.ProviderRPC/"

func TestGetStatus(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	var s providerv1.Status
	if err := w.grpcClient(t).Invoke(t.Context(), rpc+"GetStatus", &emptypb.Empty{}, &s); err != nil {
		t.Fatal(err)
	}
	node := s.GetCluster().GetInventory().GetCluster().GetNodes()[0].GetResources()
	for what, got := range map[string][2]string{
		"cores":           {node.GetCpu().GetQuantity().GetAllocatable().GetString_(), "8"},
		"cores in use":    {node.GetCpu().GetQuantity().GetAllocated().GetString_(), "500m"},
		"memory in use":   {node.GetMemory().GetQuantity().GetAllocated().GetString_(), "40"},
		"GPU":             {node.GetGpu().GetInfo()[0].GetName(), "rtx4090"},
		"leased memory":   {s.GetCluster().GetInventory().GetReservations().GetActive().GetResources().GetMemory().GetString_(), "536870912"},
		"leased storage":  {s.GetCluster().GetInventory().GetReservations().GetActive().GetResources().GetStorage()["beta3"].GetString_(), "5"},
		"class of disks":  {s.GetCluster().GetInventory().GetCluster().GetStorage()[0].GetInfo().GetClass(), "beta3"},
		"public hostname": {s.GetPublicHostnames()[0], host},
	} {
		if got[0] != got[1] {
			t.Errorf("%s = %q, want %q", what, got[0], got[1])
		}
	}
	if s.GetCluster().GetLeases().GetActive() != 1 || s.GetBidEngine().GetOrders() != 2 || s.GetManifest().GetDeployments() != 1 || !s.GetTimestamp().IsValid() {
		t.Errorf("status = %v", &s)
	}
}

func TestBidScreeningIsNotOffered(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	err := w.grpcClient(t).Invoke(t.Context(), rpc+"BidScreening", &providerv1.BidScreeningRequest{}, &providerv1.BidScreeningResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("BidScreening = %v", err)
	}
}

func (w *world) statusStream(t *testing.T, c *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	s, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, rpc+"StreamStatus")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStreamStatusEndsWhenTheGatewayStops(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	s := w.statusStream(t, w.grpcClient(t))
	var first providerv1.Status
	if err := s.RecvMsg(&first); err != nil || first.GetCluster().GetLeases().GetActive() != 1 {
		t.Fatalf("first status = %v, %v", &first, err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); w.stop() }()
	if err := s.RecvMsg(&first); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	<-stopped
}

func TestStatusStreamsOfOneClientAreBounded(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	c := w.grpcClient(t)
	var m providerv1.Status
	for range 8 {
		if err := w.statusStream(t, c).RecvMsg(&m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.statusStream(t, c).RecvMsg(&m); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the ninth stream = %v", err)
	}
}

// A tool that knows nothing but reflection finds the service under Akash's name,
// and can read what it answers.
func TestReflection(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	c := w.grpcClient(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := reflectionv1.NewServerReflectionClient(c).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	var services []string
	for _, one := range ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		services = append(services, one.GetName())
	}
	if !slices.Contains(services, "akash.provider.v1.ProviderRPC") {
		t.Errorf("services = %v", services)
	}
	set := &descriptorpb.FileDescriptorSet{}
	resp := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "akash.provider.v1.ProviderRPC"}})
	for _, raw := range resp.GetFileDescriptorResponse().GetFileDescriptorProto() {
		f := &descriptorpb.FileDescriptorProto{}
		if err := proto.Unmarshal(raw, f); err != nil {
			t.Fatal(err)
		}
		set.File = append(set.File, f)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	d, err := files.FindDescriptorByName("akash.provider.v1.ProviderRPC")
	if err != nil {
		t.Fatal(err)
	}
	method := d.(protoreflect.ServiceDescriptor).Methods().ByName("GetStatus")
	out := dynamicpb.NewMessage(method.Output())
	if err := c.Invoke(t.Context(), rpc+"GetStatus", dynamicpb.NewMessage(method.Input()), out); err != nil {
		t.Fatal(err)
	}
	if got := out.Get(method.Output().Fields().ByName("public_hostnames")).List().Get(0).String(); got != host {
		t.Errorf("public_hostnames = %q", got)
	}
	if quantity := method.Output().Fields().ByName("cluster").Message().FullName(); quantity != "akash.provider.v1.ClusterStatus" {
		t.Errorf("a message is called %s", quantity)
	}
}

func TestReflectionOnOneStreamIsBounded(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil, nil)
	s, err := reflectionv1.NewServerReflectionClient(w.grpcClient(t)).ServerReflectionInfo(t.Context())
	for range 2000 { // the burst is 200, and 20 come in a second
		if err == nil {
			err = s.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
		}
		if err == nil {
			_, err = s.Recv()
		}
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("2000 questions on one stream = %v", err)
	}
}
