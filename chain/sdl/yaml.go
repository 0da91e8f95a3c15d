package sdl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// schema says which keys an SDL may have where. * stands for a name that the
// author chooses, [] for the items of a list.
var schema = map[string][]string{
	"":                                                            {"version", "include", "services", "profiles", "deployment", "endpoints", "reclamation"},
	"services.*":                                                  {"image", "command", "args", "env", "dependencies", "credentials", "params", "expose"},
	"services.*.dependencies[]":                                   {"service"},
	"services.*.credentials":                                      {"host", "email", "username", "password"},
	"services.*.params":                                           {"storage", "permissions", "tee"},
	"services.*.params.storage.*":                                 {"mount", "readOnly"},
	"services.*.params.permissions":                               {"read"},
	"services.*.expose[]":                                         {"port", "as", "proto", "to", "accept", "http_options"},
	"services.*.expose[].to[]":                                    {"service", "global", "ip"},
	"services.*.expose[].http_options":                            {"max_body_size", "read_timeout", "send_timeout", "next_tries", "next_timeout", "next_cases", "proxy_buffer_size"},
	"profiles":                                                    {"compute", "placement"},
	"profiles.compute.*":                                          {"resources"},
	"profiles.compute.*.resources":                                {"cpu", "memory", "storage", "gpu"},
	"profiles.compute.*.resources.cpu":                            {"units", "attributes"},
	"profiles.compute.*.resources.cpu.attributes":                 {"arch"},
	"profiles.compute.*.resources.memory":                         {"size"},
	"profiles.compute.*.resources.storage[]":                      {"name", "size", "attributes"},
	"profiles.compute.*.resources.storage[].attributes":           {"persistent", "class"},
	"profiles.compute.*.resources.gpu":                            {"units", "attributes"},
	"profiles.compute.*.resources.gpu.attributes":                 {"vendor"},
	"profiles.compute.*.resources.gpu.attributes.vendor":          {"nvidia"},
	"profiles.compute.*.resources.gpu.attributes.vendor.nvidia[]": {"model", "ram", "interface"},
	"profiles.placement.*":                                        {"attributes", "signedBy", "pricing"},
	"profiles.placement.*.signedBy":                               {"allOf", "anyOf"},
	"profiles.placement.*.pricing.*":                              {"denom", "amount"},
	"deployment.*.*":                                              {"profile", "count"},
	"endpoints.*":                                                 {"kind"},
	"reclamation":                                                 {"min_window"},
}

// Limits of what is read, far above any real SDL.
const (
	maxBytes = 1 << 20 // of the file
	maxNodes = 200_000 // visited, aliases followed
	maxDepth = 50
)

// field is a value in the file: where it stands, and which key leads to it.
type field struct {
	path  string     // services.web.expose[0].port
	shape string     // services.*.expose[].port
	key   *yaml.Node // of a mapping; the value itself for the items of a list
	node  *yaml.Node // the value, aliases followed
}

// reader walks the YAML nodes of an SDL and collects what is wrong with them.
type reader struct {
	errs  Errors
	nodes int // visited so far
}

func (r *reader) fail(n *yaml.Node, path, problem, fix string) {
	e := &Error{Line: 1, Column: 1, Path: path, Problem: problem, Fix: fix}
	if n != nil && n.Line > 0 {
		e.Line, e.Column = n.Line, max(n.Column, 1)
	}
	r.errs = append(r.errs, e)
}

// bad is a wrong value.
func (r *reader) bad(f field, problem, fix string) { r.fail(f.node, f.path, problem, fix) }

// badKey is a wrong key.
func (r *reader) badKey(f field, problem, fix string) { r.fail(f.key, f.path, problem, fix) }

// load parses the YAML. All aliases and merge keys below the root can be
// followed safely afterwards.
func (r *reader) load(data []byte) (root field, ok bool) {
	if len(data) > maxBytes {
		r.fail(nil, "", fmt.Sprintf("the file is larger than %d bytes", maxBytes), "name an SDL: real ones have a few thousand")
		return field{}, false
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		r.fail(nil, "", "the file is empty", "begin with version: \"2.0\"")
		return field{}, false
	case err != nil:
		r.errs = append(r.errs, syntaxError(err, data))
		return field{}, false
	}
	switch err := d.Decode(&more); {
	case err == nil:
		r.fail(&more, "", "the file holds more than one YAML document", "keep one SDL in one file, without --- lines")
		return field{}, false
	case !errors.Is(err, io.EOF):
		r.errs = append(r.errs, syntaxError(err, data))
		return field{}, false
	}
	if !r.measure(&doc, 0) {
		r.fail(nil, "", "the aliases of the file grow beyond all bounds", "write out what the aliases (*name) stand for")
		return field{}, false
	}
	node := doc.Content[0] // a document has one value
	return field{key: node, node: follow(node)}, true
}

// measure visits every node as often as the aliases make it appear. It is false
// for a file that would grow beyond all bounds.
func (r *reader) measure(n *yaml.Node, depth int) bool {
	r.nodes++
	if r.nodes > maxNodes || depth > maxDepth {
		return false
	}
	if n.Kind == yaml.AliasNode {
		return r.measure(n.Alias, depth+1)
	}
	return !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return !r.measure(c, depth+1) })
}

var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

func syntaxError(err error, data []byte) *Error {
	e := &Error{Line: 1, Column: 1, Problem: "not YAML: " + err.Error(), Fix: "check indentation, quotes and brackets around this line"}
	if m := syntaxLine.FindStringSubmatch(err.Error()); m != nil {
		e.Problem = "not YAML: " + m[2]
		if line, err := strconv.Atoi(m[1]); err == nil {
			e.Line = max(line, 1)
		}
	}
	lines := bytes.Split(data, []byte("\n"))
	if e.Line <= len(lines) && bytes.HasPrefix(bytes.TrimLeft(lines[e.Line-1], " "), []byte("\t")) {
		e.Fix = "indent with spaces, not with tabs"
	}
	return e
}

func follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// what names the form of a value to a person.
func what(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a map"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "empty"
	}
	return strconv.Quote(n.Value)
}

// entries are the keys and values of a map whose keys the author chooses, in
// the order of the file; none if f is not a map. A key of a merged map (<<)
// counts only where the map itself has none.
func (r *reader) entries(f field) []field {
	if f.node.Kind != yaml.MappingNode {
		r.bad(f, "must be a map, is "+what(f.node), "write keys and values on lines of their own, indented")
		return nil
	}
	var own, merged []field
	at := map[string]int{}
	for i := 0; i+1 < len(f.node.Content); i += 2 {
		key, value := f.node.Content[i], follow(f.node.Content[i+1])
		if key.ShortTag() == "!!merge" {
			merged = append(merged, r.merged(f, value)...)
			continue
		}
		key = follow(key)
		if key.Kind != yaml.ScalarNode || isNull(key) || key.Value == "" {
			r.fail(key, f.path, "a key must be a word, is "+what(key), "write a word and a colon")
			continue
		}
		if first, twice := at[key.Value]; twice {
			r.fail(key, join(f.path, key.Value), fmt.Sprintf("is here twice; line %d has it too", own[first].key.Line), "remove one of them")
			continue
		}
		at[key.Value] = len(own)
		own = append(own, field{path: join(f.path, key.Value), shape: join(f.shape, "*"), key: key, node: value})
	}
	for _, m := range merged {
		if _, overridden := at[m.key.Value]; !overridden {
			at[m.key.Value] = len(own)
			own = append(own, m)
		}
	}
	return own
}

// merged are the entries of the map, or list of maps, behind a << key.
func (r *reader) merged(f field, value *yaml.Node) []field {
	if value.Kind != yaml.SequenceNode {
		f.node = value
		return r.entries(f)
	}
	var all []field
	for _, item := range value.Content {
		f.node = follow(item)
		all = append(all, r.entries(f)...)
	}
	return all
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// object is a map whose keys the schema gives.
type object struct {
	field
	fields map[string]field
}

// object reads f as the map that the schema describes. Unknown keys are
// reported.
func (r *reader) object(f field) object {
	known := schema[f.shape]
	o := object{field: f, fields: map[string]field{}}
	for _, e := range r.entries(f) {
		name := e.key.Value
		if !slices.Contains(known, name) {
			fix := "the keys here are " + list(known)
			if near := nearest(name, known); near != "" {
				fix = "write " + near
			}
			r.badKey(e, "unknown key", fix)
			continue
		}
		e.shape = join(f.shape, name)
		o.fields[name] = e
	}
	return o
}

// get is the value of a key. A key without a value counts as absent.
func (o object) get(name string) (field, bool) {
	f, ok := o.fields[name]
	return f, ok && !isNull(f.node)
}

// need is get for a key that must be there; example is what to write for it.
func (r *reader) need(o object, name, example string) (field, bool) {
	if f, ok := o.get(name); ok {
		return f, true
	}
	if o.node.Kind == yaml.MappingNode { // else that has been said
		at := o.key
		if f, ok := o.fields[name]; ok {
			at = f.key
		}
		r.fail(at, join(o.path, name), "is missing", "write "+example)
	}
	return field{}, false
}

// items are the values of a list; none if f is not one.
func (r *reader) items(f field) []field {
	if f.node.Kind != yaml.SequenceNode {
		r.bad(f, "must be a list, is "+what(f.node), "write each item on a line of its own, after a dash")
		return nil
	}
	all := make([]field, len(f.node.Content))
	for i, n := range f.node.Content {
		all[i] = field{path: fmt.Sprintf("%s[%d]", f.path, i), shape: f.shape + "[]", key: n, node: follow(n)}
	}
	return all
}

// text is a scalar as it is written, numbers and true and false too.
func (r *reader) text(f field) (string, bool) {
	if f.node.Kind != yaml.ScalarNode || isNull(f.node) {
		r.bad(f, "must be text, is "+what(f.node), `write one value; "" for none; in quotes if it begins with [ or {`)
		return "", false
	}
	switch tag := f.node.ShortTag(); tag {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
	default:
		r.bad(f, "must be text, has the tag "+tag, "remove the tag")
		return "", false
	}
	return f.node.Value, true
}

// word is text of at least one letter.
func (r *reader) word(f field) (string, bool) {
	s, ok := r.text(f)
	if ok && strings.TrimSpace(s) == "" {
		r.bad(f, "is empty", "write a value")
		return "", false
	}
	return s, ok
}

// oneOf is a word of those allowed.
func (r *reader) oneOf(f field, allowed ...string) (string, bool) {
	s, ok := r.text(f)
	if ok && !slices.Contains(allowed, s) {
		r.bad(f, fmt.Sprintf("%q is not known", s), "write "+list(allowed))
		return "", false
	}
	return s, ok
}

// texts is the list of text that a key may have; nil when there is none, or
// nothing in it.
func (r *reader) texts(o object, name string) []string { return r.textsOf(o, name) }

// textsOf is texts of which each is one of those allowed, if any are named.
func (r *reader) textsOf(o object, name string, allowed ...string) []string {
	var all []string
	if f, ok := o.get(name); ok {
		for _, item := range r.items(f) {
			s, ok := r.text(item)
			if ok && allowed != nil {
				s, _ = r.oneOf(item, allowed...)
			}
			all = append(all, s)
		}
	}
	return all
}

// number is a whole number from low to high.
func (r *reader) number(f field, low, high uint32) (uint32, bool) {
	text, ok := r.text(f)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 32)
	switch {
	case !integerForm.MatchString(text):
		r.bad(f, fmt.Sprintf("%q is not a whole number", text), numberFix(low, high))
		return 0, false
	case err != nil || uint32(n) < low || uint32(n) > high:
		r.bad(f, text+" is out of range", numberFix(low, high))
		return 0, false
	case f.node.ShortTag() == "!!str":
		r.bad(f, fmt.Sprintf("must be a number, is the text %q", text), "write "+text+" without quotes")
		return 0, false
	}
	return uint32(n), true
}

func numberFix(low, high uint32) string {
	if high == math.MaxUint32 {
		return fmt.Sprintf("write a whole number, at least %d", low)
	}
	return fmt.Sprintf("write a whole number from %d to %d", low, high)
}

// truth is true or false, or one of YAML's older words for them.
func (r *reader) truth(f field) (value, ok bool) {
	if text, isText := r.text(f); isText && f.node.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) == 0 {
		if value, ok = truths[strings.ToLower(text)]; ok {
			return value, true
		}
		r.bad(f, fmt.Sprintf("%q is neither true nor false", text), "write true or false")
	} else if isText {
		r.bad(f, fmt.Sprintf("must be true or false, is the text %q", text), "write true or false, without quotes")
	}
	return false, false
}

var truths = map[string]bool{"true": true, "on": true, "yes": true, "false": false, "off": false, "no": false}

// list is "a, b or c".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
