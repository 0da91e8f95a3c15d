// Package law is croft's import law: which packages exist, on which floor each
// stands, what none of them may reach, and who may import a heavy library. The
// law is one readable text, [Text]; its test runs it over the whole module and
// also holds the module list of each program against its golden deps.txt.
//
// Besides the text, every package obeys: a name used once and not on the list
// of empty names, at most 2,500 lines (the root package 1,500), a package
// comment in exactly one file, no init function. The root package imports the
// standard library only and declares no interface that does I/O.
//
// The package does not read the module itself: its test does, with go list.
// Run that test with -count=1, because the test cache does not notice a new
// import in another package. Whether a package is too small to stand alone is
// left to the reader.
package law

import (
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Law is a parsed text.
type Law struct {
	floors []floor
	never  []ban
	twins  [][]string // patterns; names may repeat from one to another
	doors  []door
	lists  map[string][]string // by the word that stands for them
}

type floor struct {
	level   int
	pattern string
}

type ban struct {
	from, to, except []string
	why              string
}

type door struct {
	library string
	open    []string
	why     string
}

// Parse reads a text in the form of [Text].
func Parse(text string) (*Law, error) {
	l := Law{lists: make(map[string][]string)}
	section := ""
	for i, line := range strings.Split(text, "\n") {
		if strings.TrimSpace(line) == "" {
			continue
		}
		var err error
		switch {
		case !strings.HasPrefix(line, " "):
			section, _, _ = strings.Cut(line, ":")
			if !slices.Contains([]string{"floors", "never", "twins", "doors"}, section) {
				err = fmt.Errorf("section %q is not known", section)
			}
		case section == "floors":
			err = l.parseFloor(strings.Fields(line))
		case strings.Contains(line, " = "):
			word, list, _ := strings.Cut(line, " = ")
			l.lists[strings.TrimSpace(word)] = strings.Fields(list)
		case section == "never":
			err = l.parseBan(line)
		case section == "twins":
			err = l.parseTwins(line)
		case section == "doors":
			err = l.parseDoor(line)
		default:
			err = fmt.Errorf("line stands outside a section")
		}
		if err != nil {
			return nil, fmt.Errorf("parse law, line %d: %w", i+1, err)
		}
	}
	return &l, nil
}

func (l *Law) parseFloor(words []string) error {
	if len(words) < 3 {
		return fmt.Errorf("want floor, package and what it holds, got %q", words)
	}
	level, err := strconv.Atoi(words[0])
	if err != nil {
		return fmt.Errorf("read floor of %s: %w", words[1], err)
	}
	if slices.ContainsFunc(l.floors, func(f floor) bool { return f.pattern == words[1] }) {
		return fmt.Errorf("package %s stands on two floors", words[1])
	}
	l.floors = append(l.floors, floor{level: level, pattern: words[1]})
	return nil
}

func (l *Law) parseBan(line string) error {
	rule, why, ok := strings.Cut(line, "#")
	from, to, hasTo := strings.Cut(rule, " reaches ")
	to, except, _ := strings.Cut(to, " except ")
	b := ban{l.patterns(from), l.patterns(to), l.patterns(except), strings.TrimSpace(why)}
	if !ok || !hasTo || len(b.from) == 0 || len(b.to) == 0 || b.why == "" {
		return fmt.Errorf("want PACKAGES reaches PACKAGES [except PACKAGES] # WHY, got %q", line)
	}
	l.never = append(l.never, b)
	return nil
}

func (l *Law) parseDoor(line string) error {
	rule, why, ok := strings.Cut(line, "#")
	library, open, hasOpen := strings.Cut(rule, " opens to ")
	d := door{strings.TrimSpace(library), l.patterns(open), strings.TrimSpace(why)}
	if !ok || !hasOpen || d.library == "" || len(d.open) == 0 || d.why == "" {
		return fmt.Errorf("want LIBRARY opens to PACKAGES # WHY, got %q", line)
	}
	l.doors = append(l.doors, d)
	return nil
}

func (l *Law) parseTwins(line string) error {
	rule, why, ok := strings.Cut(line, "#")
	t := l.patterns(rule)
	if !ok || len(t) < 2 || strings.TrimSpace(why) == "" {
		return fmt.Errorf("want PACKAGES PACKAGES # WHY, got %q", line)
	}
	l.twins = append(l.twins, t)
	return nil
}

// areTwins tells whether two packages may share their name.
func (l *Law) areTwins(a, b string) bool {
	return slices.ContainsFunc(l.twins, func(t []string) bool {
		of := func(path string) int { return slices.IndexFunc(t, func(p string) bool { return matches(p, path) }) }
		return of(a) >= 0 && of(b) >= 0 && of(a) != of(b)
	})
}

// patterns splits a list of patterns and puts in the lists it names.
func (l *Law) patterns(words string) []string {
	var all []string
	for w := range strings.FieldsSeq(words) {
		if list, ok := l.lists[w]; ok {
			all = append(all, list...)
		} else {
			all = append(all, w)
		}
	}
	return all
}

// Violation is one breach of the law.
type Violation struct {
	Where string // package, or file with its line
	Rule  string // what was found against which rule
	Why   string // why the rule exists
}

func (v Violation) String() string { return v.Where + ": " + v.Rule + " (" + v.Why + ")" }

// Check holds the tree against the law and lists every breach, in the order of
// the packages' paths.
func (l *Law) Check(t *Tree) []Violation {
	var found []Violation
	named := make(map[string]string) // package name → path of the first that has it
	for _, path := range slices.Sorted(maps.Keys(t.own)) {
		p := t.own[path]
		level, ok := l.level(path)
		if !ok {
			found = append(found, Violation{path, "package is not in the table", "the table in internal/law is the plan of the house; add the package there first"})
			continue
		}
		found = append(found, l.checkImports(t, p, level)...)
		found = append(found, l.checkReach(t, p)...)
		found = append(found, checkPackage(p)...)
		if p.Name == "main" {
			continue
		}
		if first, ok := named[p.Name]; ok && !l.areTwins(first, path) {
			found = append(found, Violation{path, fmt.Sprintf("package name %s is also that of %s", p.Name, first), "a name used twice needs an alias wherever both are imported"})
		}
		named[p.Name] = path
	}
	return found
}

// level is the floor of an own package; an exact line beats a pattern.
func (l *Law) level(path string) (int, bool) {
	for _, f := range l.floors {
		if f.pattern == path {
			return f.level, true
		}
	}
	for _, f := range l.floors {
		if matches(f.pattern, path) {
			return f.level, true
		}
	}
	return 0, false
}

// checkImports looks at what the files of p import directly: floors and doors.
func (l *Law) checkImports(t *Tree, p *Package, level int) []Violation {
	var found []Violation
	for _, f := range p.Files {
		for _, imp := range f.imports {
			where := f.at(imp.pos)
			if rel, ok := t.rel(imp.path); ok && rel != p.Path {
				// What a generated file imports, its contract decides.
				lower, known := l.level(rel)
				sibling := lower == level && !ast.IsGenerated(f.syntax)
				if !f.Test && known && (lower > level || sibling) {
					found = append(found, Violation{where, fmt.Sprintf("%s (floor %d) imports %s (floor %d)", p.Path, level, rel, lower), "a package imports lower floors only; declare the small interface needed and let the whole pass the part in"})
				}
			}
			for _, d := range l.doors {
				if l.covers(t, d.library, imp.path) && !d.opensTo(p, f) {
					found = append(found, Violation{where, fmt.Sprintf("%s imports %s, which opens to %s only", p.Path, imp.path, strings.Join(d.open, ", ")), d.why})
				}
			}
		}
	}
	return found
}

func (d door) opensTo(p *Package, f *File) bool {
	return slices.ContainsFunc(d.open, func(pattern string) bool {
		if pattern == "tests" {
			return f.Test
		}
		return matches(pattern, p.Path)
	}) || matches(d.library, p.Path)
}

// checkReach follows the imports of the shipped files of p, foreign packages
// included, and reports the first way to each thing banned for p.
func (l *Law) checkReach(t *Tree, p *Package) []Violation {
	var found []Violation
	for _, b := range l.never {
		if !slices.ContainsFunc(b.from, func(pattern string) bool { return matches(pattern, p.Path) }) {
			continue
		}
		banned := func(path string) bool {
			hit := func(pattern string) bool { return l.covers(t, pattern, path) }
			return slices.ContainsFunc(b.to, hit) && !slices.ContainsFunc(b.except, hit)
		}
		if way := t.way(t.abs(p.Path), banned); way != nil {
			found = append(found, Violation{p.Path, "reaches " + way[len(way)-1] + " by way of " + strings.Join(way, " → "), b.why})
		}
	}
	return found
}

// covers reports whether the pattern of a ban or door means the import path.
// A pattern is of this module if the table of floors knows its first word.
func (l *Law) covers(t *Tree, pattern, importPath string) bool {
	top, _, _ := strings.Cut(pattern, "/")
	own := top == "." || slices.ContainsFunc(l.floors, func(f floor) bool {
		return f.pattern == top || strings.HasPrefix(f.pattern, top+"/")
	})
	rel, isOwn := t.rel(importPath)
	if own || isOwn {
		return own && isOwn && matches(pattern, rel)
	}
	return importPath == pattern || strings.HasPrefix(importPath, pattern+"/")
}

// matches reports whether the pattern means the own package at path.
func matches(pattern, path string) bool {
	if pattern == "./..." || pattern == path {
		return true
	}
	if top, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == top || strings.HasPrefix(path, top+"/")
	}
	if top, ok := strings.CutSuffix(pattern, "/*"); ok {
		rest, below := strings.CutPrefix(path, top+"/")
		return below && !strings.Contains(rest, "/")
	}
	return false
}
