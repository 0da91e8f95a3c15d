package law

import (
	"fmt"
	"go/ast"
	"slices"
	"strings"
)

// The most lines a package may have, tests and generated files not counted.
const (
	maxRootLines    = 1500
	maxPackageLines = 2500
)

// emptyNames say nothing about what a package holds.
var emptyNames = []string{"util", "utils", "common", "helper", "helpers", "types", "models", "misc", "base"}

// doers are packages whose types in an interface mean that it does I/O.
var doers = []string{"context", "io", "fs", "os", "net", "http", "sql"}

// checkPackage holds one package against the rules every package obeys.
func checkPackage(p *Package) []Violation {
	var found []Violation
	if slices.Contains(emptyNames, p.Name) {
		found = append(found, Violation{p.Path, "package name " + p.Name + " is empty", "a package is named after what it holds"})
	}
	limit := maxPackageLines
	if p.Path == "." {
		limit = maxRootLines
	}
	if n := p.lines(); n > limit {
		found = append(found, Violation{p.Path, fmt.Sprintf("package has %d lines, more than %d", n, limit), "one centre that everything passes through spoils a repository: split it"})
	}
	found = append(found, checkComment(p)...)
	for _, f := range p.Files {
		found = append(found, checkInit(f)...)
		if p.Path == "." && !f.Test {
			found = append(found, checkRoot(f)...)
		}
	}
	return found
}

// lines counts what people wrote and ship.
func (p *Package) lines() int {
	n := 0
	for _, f := range p.Files {
		if !f.Test && !ast.IsGenerated(f.syntax) {
			n += f.lines
		}
	}
	return n
}

// checkComment wants one package comment, in a shipped file if there is one.
func checkComment(p *Package) []Violation {
	testOnly := !slices.ContainsFunc(p.Files, func(f *File) bool { return !f.Test })
	var carriers []string
	for _, f := range p.Files {
		if f.Test == testOnly && f.syntax.Doc.Text() != "" {
			carriers = append(carriers, f.Name)
			first := strings.TrimSuffix("Package "+p.Name, "_test")
			if p.Name != "main" && !strings.HasPrefix(f.syntax.Doc.Text(), first) {
				return []Violation{{f.Name, "package comment does not begin with \"" + first + "\"", "go doc and readers look for it"}}
			}
		}
	}
	if len(carriers) == 1 {
		return nil
	}
	rule := "package has no comment"
	if len(carriers) > 1 {
		rule = "package has a comment in each of " + strings.Join(carriers, ", ")
	}
	return []Violation{{p.Path, rule, "one file says what the package promises, and what it does not do"}}
}

func checkInit(f *File) []Violation {
	var found []Violation
	for _, decl := range f.syntax.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && !ast.IsGenerated(f.syntax) {
			found = append(found, Violation{f.at(fn.Pos()), "function init", "what happens at start is written in main, where a reader looks for it"})
		}
	}
	return found
}

// checkRoot keeps the root package a dictionary.
func checkRoot(f *File) []Violation {
	const why = "the root package is the dictionary all others share: standard library only, no I/O"
	var found []Violation
	for _, imp := range f.imports {
		if top, _, _ := strings.Cut(imp.path, "/"); strings.Contains(top, ".") {
			found = append(found, Violation{f.at(imp.pos), "the root package imports " + imp.path, why})
		}
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if it, ok := n.(*ast.InterfaceType); ok && doesIO(it) {
			found = append(found, Violation{f.at(it.Pos()), "interface that does I/O", why})
		}
		return true
	})
	return found
}

// doesIO reports whether a method of the interface mentions a type of a package
// that does I/O, or returns an error.
func doesIO(it *ast.InterfaceType) bool {
	does := false
	ast.Inspect(it, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			does = does || ok && slices.Contains(doers, pkg.Name)
		case *ast.FuncType:
			if n.Results == nil {
				return true
			}
			for _, field := range n.Results.List {
				result, ok := field.Type.(*ast.Ident)
				does = does || ok && result.Name == "error"
			}
		}
		return true
	})
	return does
}
