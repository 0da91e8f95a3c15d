// Protogen writes the Go code of the chain's messages, offline: all it reads
// lies in this repository and in the module cache.
//
// One contract, the .proto files in chain/api/proto, gives two codecs:
//
//   - chain/gogo: what cosmos-sdk's codec wants, by protoc-gen-gocosmos and
//     protoc-gen-grpc-gateway;
//   - chain/api: what everyone else uses, by protoc-gen-go. The same messages,
//     and the few of cosmos-sdk's that a client needs, cut down to fields and
//     comments and moved to proto packages of our own (croft.wire.…), because
//     two Go packages cannot register one proto package in one program.
//
// Run it with "make gen". It needs neither protoc nor buf.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// module is croft's path; generated packages lie below it.
const module = "github.com/croft-cloud/croft"

func main() {
	root := flag.String("root", "../..", "croft's root `folder`")
	flag.Parse()
	if err := run(context.Background(), *root); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root string) error {
	contract := filepath.Join(root, "chain/api/proto")
	files, err := protoFiles(contract)
	if err != nil {
		return err
	}
	roots, err := importRoots(ctx, root, contract)
	if err != nil {
		return err
	}
	compiler := protocompile.Compiler{
		Resolver:       &protocompile.SourceResolver{ImportPaths: roots},
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	linked, err := compiler.Compile(ctx, append(slices.Clone(files), wanted...)...)
	if err != nil {
		return err
	}
	set := closure(linked)
	if err := gogo(ctx, root, files, set); err != nil {
		return err
	}
	return light(ctx, root, set)
}

// protoFiles lists the contract's files, sorted, as import paths.
func protoFiles(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		files = append(files, filepath.ToSlash(rel))
		return err
	})
	return files, err
}

// importRoots are the folders that imports are searched in: ours, and those of
// the modules that croft's go.mod names.
func importRoots(ctx context.Context, root, contract string) ([]string, error) {
	roots := []string{contract}
	for _, m := range []struct {
		path string
		dirs []string
	}{
		{"github.com/cosmos/cosmos-sdk", []string{"proto"}},
		{"github.com/cosmos/gogoproto", []string{"", "protobuf"}},
		{"github.com/cosmos/cosmos-proto", []string{"proto"}},
		{"github.com/cometbft/cometbft", []string{"proto"}},
		{"github.com/grpc-ecosystem/grpc-gateway", []string{"third_party/googleapis"}},
	} {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", m.path)
		cmd.Dir, cmd.Stderr = root, os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("find module %s: %w", m.path, err)
		}
		for _, d := range m.dirs {
			roots = append(roots, filepath.Join(strings.TrimSpace(string(out)), d))
		}
	}
	return roots, nil
}

// closure is what the files import, themselves included, imports first.
func closure(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var set []*descriptorpb.FileDescriptorProto
	seen := make(map[string]bool)
	var visit func(f protoreflect.FileDescriptor)
	visit = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			visit(f.Imports().Get(i).FileDescriptor)
		}
		set = append(set, protodesc.ToFileDescriptorProto(f))
	}
	for _, f := range files {
		visit(f)
	}
	return set
}

// gogo generates chain/gogo. The plugin takes one Go package a call.
func gogo(ctx context.Context, root string, files []string, set []*descriptorpb.FileDescriptorProto) error {
	packages := make(map[string][]string) // go_package → files
	for _, f := range set {
		// What the gateways of providers speak, the chain does not: those files name
		// a package of chain/api.
		if slices.Contains(files, f.GetName()) && strings.HasPrefix(f.GetOptions().GetGoPackage(), module+"/chain/gogo/") {
			packages[f.GetOptions().GetGoPackage()] = append(packages[f.GetOptions().GetGoPackage()], f.GetName())
		}
	}
	if err := remove(filepath.Join(root, "chain/gogo/*/*.pb.go"), filepath.Join(root, "chain/gogo/*/*.pb.gw.go")); err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(packages)) {
		name := p[strings.LastIndexByte(p, '/')+1:]
		if err := comment(root, p, "Package "+name+" holds messages of the chain's contract as cosmos-sdk's codec wants them."); err != nil {
			return err
		}
		for plugin, parameter := range map[string]string{
			"protoc-gen-gocosmos":     "plugins=grpc,Mgoogle/protobuf/any.proto=github.com/cosmos/gogoproto/types/any",
			"protoc-gen-grpc-gateway": "logtostderr=true,allow_colon_final_segments=true",
		} {
			if err := generate(ctx, root, plugin, &pluginpb.CodeGeneratorRequest{
				FileToGenerate: packages[p], Parameter: &parameter, ProtoFile: set,
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// light generates chain/api.
func light(ctx context.Context, root string, set []*descriptorpb.FileDescriptorProto) error {
	set = lighten(set)
	if err := remove(filepath.Join(root, "chain/api/*/*.pb.go")); err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{ProtoFile: set}
	for _, f := range set {
		if strings.HasPrefix(f.GetPackage(), ours) {
			request.FileToGenerate = append(request.FileToGenerate, f.GetName())
			p := f.GetOptions().GetGoPackage()
			text := "Package " + p[strings.LastIndexByte(p, '/')+1:] + " holds the messages of " + strings.TrimPrefix(f.GetPackage(), ours) + " for clients."
			if err := comment(root, p, text); err != nil {
				return err
			}
		}
	}
	return generate(ctx, root, "protoc-gen-go", request)
}

// comment writes the comment of a generated package.
func comment(root, goPackage, text string) error {
	rel := strings.TrimPrefix(goPackage, module+"/")
	name := rel[strings.LastIndexByte(rel, '/')+1:]
	return write(root, rel+"/doc.pb.go", "// Code generated by protogen. DO NOT EDIT.\n\n// "+text+"\npackage "+name+"\n")
}

// write makes the file and the folders above it.
func write(root, rel, content string) error {
	path := filepath.Join(root, filepath.FromSlash(rel))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

// remove deletes what an earlier run wrote.
func remove(patterns ...string) error {
	for _, p := range patterns {
		old, err := filepath.Glob(p)
		if err != nil {
			return err
		}
		for _, f := range old {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// generate runs a plugin and writes what it answers below root.
func generate(ctx context.Context, root, plugin string, request *pluginpb.CodeGeneratorRequest) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("run %s: %w", plugin, err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return errors.New(response.GetError())
	}
	for _, f := range response.File {
		rel, ok := strings.CutPrefix(f.GetName(), module+"/")
		if !ok {
			return fmt.Errorf("%s writes %s, outside the module", plugin, f.GetName())
		}
		content := f.GetContent()
		if before, rest, ok := strings.Cut(content, "/*\nPackage "); ok { // doc.pb.go has the package's comment
			_, rest, _ = strings.Cut(rest, "*/\n")
			content = before + rest
		}
		if err := write(root, rel, content); err != nil {
			return err
		}
	}
	return nil
}
