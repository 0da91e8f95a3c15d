package frame

import (
	"fmt"
	"html/template"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template/parse"

	"github.com/pelletier/go-toml/v2"
)

// words is every text by its key: table and name with a dot between them.
type words map[string]string

// readWords reads TOML files. Keys are "table.name"; of a number of things there are
// two texts, "table.name.one" and "table.name.other".
func readWords(files ...[]byte) (words, error) {
	all := words{}
	for _, file := range files {
		var tree map[string]any
		if err := toml.Unmarshal(file, &tree); err != nil {
			return nil, fmt.Errorf("read words: %w", err)
		}
		if err := all.add("", tree); err != nil {
			return nil, fmt.Errorf("read words: %w", err)
		}
	}
	return all, nil
}

func (w words) add(prefix string, tree map[string]any) error {
	for name, value := range tree {
		key := prefix + name
		switch value := value.(type) {
		case string:
			if _, there := w[key]; there {
				return fmt.Errorf("there are two texts %s", key)
			}
			w[key] = value
		case map[string]any:
			if err := w.add(key+".", value); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is no text", key)
		}
	}
	return nil
}

var place = regexp.MustCompile(`\{[1-9]\}`)

// say is a text, with {1}, {2} … replaced by args. Without a text it is the key: a
// mistake that Check finds is no reason to show no page.
func (w words) say(key string, args ...any) string {
	text, ok := w[key]
	if !ok {
		return key
	}
	if len(args) == 0 {
		return text
	}
	return place.ReplaceAllStringFunc(text, func(p string) string {
		n, _ := strconv.Atoi(p[1:2])
		if n > len(args) {
			return p
		}
		return fmt.Sprint(args[n-1])
	})
}

// count is the text for a number of things; {1} is the number.
func (w words) count(key string, n int, args ...any) string {
	form := key + ".other"
	if n == 1 {
		form = key + ".one"
	}
	return w.say(form, append([]any{n}, args...)...)
}

// checkTemplate reports a key in a template that has no text.
func (w words) checkTemplate(t *template.Template) error {
	for _, one := range t.Templates() {
		if one.Tree == nil || one.Tree.Root == nil {
			continue
		}
		for _, use := range keysIn(one.Tree.Root) {
			if use.counted && (w[use.key+".one"] == "" || w[use.key+".other"] == "") || !use.counted && w[use.key] == "" {
				return fmt.Errorf("there are no words for %q", use.key)
			}
		}
	}
	return nil
}

type keyUse struct {
	key     string
	counted bool
}

// keysIn is the keys that stand as they are in calls of t and n. Keys that are put
// together at run time are not among them.
func keysIn(node parse.Node) (uses []keyUse) {
	pipe := func(p *parse.PipeNode) {
		if p != nil {
			uses = append(uses, keysIn(p)...)
		}
	}
	branch := func(b *parse.BranchNode) {
		pipe(b.Pipe)
		uses = append(uses, keysIn(b.List)...)
		if b.ElseList != nil {
			uses = append(uses, keysIn(b.ElseList)...)
		}
	}
	switch node := node.(type) {
	case *parse.ListNode:
		for _, n := range node.Nodes {
			uses = append(uses, keysIn(n)...)
		}
	case *parse.ActionNode:
		pipe(node.Pipe)
	case *parse.TemplateNode:
		pipe(node.Pipe)
	case *parse.IfNode:
		branch(&node.BranchNode)
	case *parse.RangeNode:
		branch(&node.BranchNode)
	case *parse.WithNode:
		branch(&node.BranchNode)
	case *parse.PipeNode:
		for _, c := range node.Cmds {
			uses = append(uses, keysIn(c)...)
		}
	case *parse.CommandNode:
		if name, ok := node.Args[0].(*parse.IdentifierNode); ok && len(node.Args) > 1 && (name.Ident == "t" || name.Ident == "n") {
			if key, ok := node.Args[1].(*parse.StringNode); ok {
				uses = append(uses, keyUse{key.Text, name.Ident == "n"})
			}
		}
		for _, arg := range node.Args {
			if p, ok := arg.(*parse.PipeNode); ok {
				pipe(p)
			}
		}
	}
	return uses
}

var quoted = regexp.MustCompile("[\"`]([a-z][a-z0-9_]*(?:\\.[a-z0-9_]+)*\\.?)[\"`]")

// Check is for a test of a part: what is wrong with its words. source is the folder
// of the package, whose Go files and templates are read. Every key of the part is to
// be used, in a template or as a text in a Go file ("boxes.title", or "event." for
// all that begin so), and all that looks like a key of one of its tables is to have
// words.
func Check(part Part, source fs.FS) (faults []string) {
	own, err := readWords(part.Words)
	if err != nil {
		return []string{err.Error()}
	}
	tables := map[string]bool{}
	for key := range own {
		table, _, _ := strings.Cut(key, ".")
		tables[table] = true
	}
	used := map[string]bool{}
	err = fs.WalkDir(source, ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && name != "." {
			if code, _ := fs.Glob(source, name+"/*.go"); len(code) > 0 { // the pattern is right
				return fs.SkipDir // another package
			}
		}
		if err != nil || e.IsDir() || strings.HasSuffix(name, "_test.go") || path.Ext(name) != ".go" && path.Ext(name) != ".html" {
			return err
		}
		raw, err := fs.ReadFile(source, name)
		if err != nil {
			return err
		}
		for _, found := range quoted.FindAllStringSubmatch(string(raw), -1) {
			used[found[1]] = true
		}
		return nil
	})
	if err != nil {
		return []string{err.Error()}
	}
	for _, key := range slices.Sorted(maps.Keys(own)) {
		isUsed := used[key]
		for at := len(key); at > 0 && !isUsed; {
			if at = strings.LastIndexByte(key[:at], '.'); at > 0 {
				rest := key[at+1:]
				isUsed = used[key[:at+1]] || (rest == "one" || rest == "other") && used[key[:at]]
			}
		}
		if !isUsed {
			faults = append(faults, "nothing says "+key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(used)) {
		table, _, dotted := strings.Cut(key, ".")
		if !dotted || !tables[table] || own[key] != "" || own[key+".one"] != "" {
			continue
		}
		if strings.HasSuffix(key, ".") && slices.ContainsFunc(slices.Collect(maps.Keys(own)), func(k string) bool { return strings.HasPrefix(k, key) }) {
			continue
		}
		faults = append(faults, "there are no words for "+key)
	}
	return faults
}

// Own is the frame as a part, for its own test.
func Own() Part { return Part{Templates: ownTemplates, Words: ownWords} }
