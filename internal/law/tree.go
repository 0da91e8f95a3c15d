package law

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Tree is the module as the law sees it.
type Tree struct {
	module  string
	own     map[string]*Package // by path inside the module
	imports map[string][]string // import path → what its shipped files import; foreign packages too
}

// Package is one package of the module, its tests included.
type Package struct {
	Path  string // inside the module; "." is the root
	Name  string
	Files []*File
}

// File is one Go file, whatever its build tags.
type File struct {
	Name string // path inside the module
	Test bool   // named _test.go

	lines   int
	syntax  *ast.File
	fset    *token.FileSet
	imports []imported
}

type imported struct {
	path string
	pos  token.Pos
}

// NewTree is an empty tree of the module with that path.
func NewTree(module string) *Tree {
	return &Tree{module: module, own: make(map[string]*Package), imports: make(map[string][]string)}
}

// AddFile adds a Go file of the module; name is its path inside the module.
func (t *Tree) AddFile(name string, src []byte) error {
	f := &File{Name: name, Test: strings.HasSuffix(name, "_test.go"), lines: bytes.Count(src, []byte("\n")), fset: token.NewFileSet()}
	var err error
	if f.syntax, err = parser.ParseFile(f.fset, name, src, parser.ParseComments|parser.SkipObjectResolution); err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	dir := path.Dir(name)
	p := t.own[dir]
	if p == nil {
		p = &Package{Path: dir}
		t.own[dir] = p
	}
	if !f.Test || p.Name == "" {
		p.Name = f.syntax.Name.Name
	}
	for _, spec := range f.syntax.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return fmt.Errorf("read imports of %s: %w", name, err)
		}
		f.imports = append(f.imports, imported{to, spec.Pos()})
		if !f.Test {
			t.AddImports(t.abs(dir), to)
		}
	}
	p.Files = append(p.Files, f)
	return nil
}

// AddImports says what the shipped files of a package import; foreign packages
// are known by this alone.
func (t *Tree) AddImports(importPath string, to ...string) {
	for _, imp := range to {
		if !slices.Contains(t.imports[importPath], imp) {
			t.imports[importPath] = append(t.imports[importPath], imp)
		}
	}
}

// abs is the import path of an own package.
func (t *Tree) abs(rel string) string {
	if rel == "." {
		return t.module
	}
	return t.module + "/" + rel
}

// rel is the path inside the module of an import path; false if it is foreign.
func (t *Tree) rel(importPath string) (string, bool) {
	if importPath == t.module {
		return ".", true
	}
	return strings.CutPrefix(importPath, t.module+"/")
}

// way is the shortest chain of imports from a package to one that is banned;
// nil if there is none. The package itself does not count.
func (t *Tree) way(from string, banned func(importPath string) bool) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		for _, next := range t.imports[queue[0]] {
			if _, seen := before[next]; seen {
				continue
			}
			before[next] = queue[0]
			if !banned(next) {
				queue = append(queue, next)
				continue
			}
			var way []string
			for at := next; at != ""; at = before[at] {
				way = append(way, at)
			}
			slices.Reverse(way)
			return way
		}
	}
	return nil
}

// at is a position as file:line.
func (f *File) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", f.Name, f.fset.Position(pos).Line)
}
