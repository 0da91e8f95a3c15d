package gateway

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/croft-cloud/croft/agent/crowd"
	"github.com/croft-cloud/croft/chain/api/providerv1"
)

// Limits of gRPC. All it serves is public; credentials are not looked at.
const (
	maxCalls           = 16               // at once, of one connection
	maxCallStreams     = 128              // the hosted console and its like hold one each
	maxCallStreamsEach = 8                // of one address, reflection included
	maxCallBytes       = 64 << 10         // a request
	statusEvery        = 5 * time.Second  // how often a stream looks for changes
	statusAtLeast      = 60 * time.Second // and tells what did not change
	statusConnIdle     = 15 * time.Minute
	statusKeepAlive    = time.Minute
	statusKeepTimeout  = 20 * time.Second
)

// serviceName is Akash's; the messages are registered in this program under
// names of our own (see chain/api).
const serviceName = "akash.provider.v1.ProviderRPC"

// statusServer is what grpc wants of a handler.
type statusServer interface {
	getStatus(context.Context) (*providerv1.Status, error)
	streamStatus(grpc.ServerStream) error
}

var serviceDesc = grpc.ServiceDesc{
	ServiceName: serviceName,
	HandlerType: (*statusServer)(nil),
	Methods: []grpc.MethodDesc{
		{MethodName: "GetStatus", Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			in := &emptypb.Empty{}
			if err := decode(in); err != nil {
				return nil, err
			}
			handle := func(ctx context.Context, _ any) (any, error) { return srv.(statusServer).getStatus(ctx) }
			return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + serviceName + "/GetStatus"}, handle)
		}},
		{MethodName: "BidScreening", Handler: func(any, context.Context, func(any) error, grpc.UnaryServerInterceptor) (any, error) {
			return nil, status.Error(codes.Unimplemented, "bid screening is not offered; put an order on the chain")
		}},
	},
	Streams: []grpc.StreamDesc{{
		StreamName: "StreamStatus", ServerStreams: true,
		Handler: func(srv any, stream grpc.ServerStream) error {
			if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
				return err
			}
			return srv.(statusServer).streamStatus(stream)
		},
	}},
	Metadata: "akash/provider/v1.proto",
}

// statuses serves the provider's status.
type statuses struct {
	g    *Gateway
	stop context.Context // of Run
}

func (s *statuses) getStatus(ctx context.Context) (*providerv1.Status, error) {
	p, err := s.g.provided(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.g.log.Warn("status failed", "error", err)
		}
		return nil, status.Error(codes.Unavailable, "the status is not known just now")
	}
	return s.g.statusMessage(p), nil
}

func (s *statuses) streamStatus(stream grpc.ServerStream) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	var last *providerv1.Status
	var sent time.Time
	for {
		next, err := s.getStatus(stream.Context())
		if err != nil {
			return err
		}
		if last == nil || !sameStatus(last, next) || time.Since(sent) >= statusAtLeast {
			if err := stream.SendMsg(next); err != nil {
				return err
			}
			last, sent = next, time.Now()
		}
		select {
		case <-tick.C:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.stop.Done():
			return status.Error(codes.Unavailable, errStopping.Error())
		}
	}
}

// sameStatus compares but for the time.
func sameStatus(a, b *providerv1.Status) bool {
	b = proto.CloneOf(b)
	b.Timestamp = a.Timestamp
	return proto.Equal(a, b)
}

// paced is a stream of which each message counts as a request: reflection answers
// as many on one stream as a client sends.
type paced struct {
	grpc.ServerStream
	allowed func(context.Context) error
}

func (p *paced) RecvMsg(m any) error {
	if err := p.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return p.allowed(p.Context())
}

func clientOfContext(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return crowd.ClientOf(p.Addr.String())
	}
	return ""
}

func (g *Gateway) runGRPC(ctx context.Context) error {
	files, err := publicFiles()
	if err != nil {
		return err
	}
	streams := crowd.NewQuota(maxCallStreams, maxCallStreamsEach)
	allowed := func(ctx context.Context) error {
		if !g.clients.Allow(clientOfContext(ctx)) {
			return status.Error(codes.ResourceExhausted, "too many requests from this address")
		}
		return nil
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(g.tlsConfig("h2"))),
		grpc.ConnectionTimeout(headerTimeout),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.MaxRecvMsgSize(maxCallBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: statusConnIdle, Time: statusKeepAlive, Timeout: statusKeepTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if err := allowed(ctx); err != nil {
				return nil, err
			}
			return handle(ctx, in)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			if err := allowed(stream.Context()); err != nil {
				return err
			}
			// Counted before anything is read: a client may never send its request.
			client := clientOfContext(stream.Context())
			if !streams.Take(client) {
				return status.Error(codes.ResourceExhausted, "too many streams are open")
			}
			defer streams.Give(client)
			return handle(srv, &paced{stream, allowed})
		}),
	)
	server.RegisterService(&serviceDesc, &statuses{g: g, stop: ctx})
	options := reflection.ServerOptions{Services: server, DescriptorResolver: files, ExtensionResolver: &protoregistry.Types{}}
	reflectionv1.RegisterServerReflectionServer(server, reflection.NewServerV1(options))
	reflectionv1alpha.RegisterServerReflectionServer(server, reflection.NewServer(options))

	served := make(chan error, 1)
	go func() {
		served <- server.Serve(crowd.Listen(g.cfg.GRPC, crowd.NewQuota(maxConnections, maxConnectionsPerClient)))
	}()
	select {
	case err := <-served:
		server.Stop()
		return fmt.Errorf("serve gRPC: %w", err)
	case <-ctx.Done():
		late := time.AfterFunc(grace, server.Stop) // reflection streams end with their clients only
		server.GracefulStop()
		late.Stop()
		<-served //nolint:errcheck // it was told to stop
		return nil
	}
}

// publicFiles describes the service as Akash names it, for reflection: the
// messages of chain/api without the name that sets them apart in this program,
// and the service, which chain/api leaves out.
func publicFiles() (*protoregistry.Files, error) {
	const ours, oursFile = "croft.wire.", "croft/wire/"
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var visit func(protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			visit(f.Imports().Get(i).FileDescriptor)
		}
		d := protodesc.ToFileDescriptorProto(f)
		set.File = append(set.File, d)
		d.Name = new(strings.TrimPrefix(d.GetName(), oursFile))
		d.Package = new(strings.TrimPrefix(d.GetPackage(), ours))
		for i, path := range d.Dependency {
			d.Dependency[i] = strings.TrimPrefix(path, oursFile)
		}
		for _, m := range d.MessageType {
			rename(m, func(name string) string { return strings.Replace(name, "."+ours, ".", 1) })
		}
	}
	visit(emptypb.File_google_protobuf_empty_proto)
	visit((&providerv1.Status{}).ProtoReflect().Descriptor().ParentFile())

	provider := set.File[len(set.File)-1]
	empty := emptypb.File_google_protobuf_empty_proto
	provider.Dependency = append(provider.Dependency, empty.Path())
	in, out := "."+string((&emptypb.Empty{}).ProtoReflect().Descriptor().FullName()), "."+provider.GetPackage()+"."
	method := func(name, in, out string, stream bool) *descriptorpb.MethodDescriptorProto {
		return &descriptorpb.MethodDescriptorProto{
			Name: new(name), InputType: new(in), OutputType: new(out), ServerStreaming: new(stream),
		}
	}
	provider.Service = []*descriptorpb.ServiceDescriptorProto{{
		Name: new("ProviderRPC"),
		Method: []*descriptorpb.MethodDescriptorProto{
			method("GetStatus", in, out+"Status", false),
			method("StreamStatus", in, out+"Status", true),
			method("BidScreening", out+"BidScreeningRequest", out+"BidScreeningResponse", false),
		},
	}}
	for _, f := range []protoreflect.FileDescriptor{reflectionv1.File_grpc_reflection_v1_reflection_proto, reflectionv1alpha.File_grpc_reflection_v1alpha_reflection_proto} {
		visit(f)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, fmt.Errorf("describe gRPC service: %w", err)
	}
	return files, nil
}

// rename gives each type a message refers to another name.
func rename(m *descriptorpb.DescriptorProto, to func(string) string) {
	for _, f := range m.Field {
		if f.TypeName != nil {
			f.TypeName = new(to(f.GetTypeName()))
		}
	}
	for _, n := range m.NestedType {
		rename(n, to)
	}
}
