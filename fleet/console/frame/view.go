package frame

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/fleet/auth/authhttp"
	"github.com/croft-cloud/croft/fleet/auth/rights"
)

//go:embed templates/*.html
var ownTemplates embed.FS

//go:embed words/en.toml
var ownWords []byte

// Part is a package with pages.
type Part struct {
	// Templates has files NAME.html anywhere: those that define "main" are pages,
	// what else they define, pages of the part can use by name. The frame's own
	// are there too: see its templates/parts.html.
	Templates fs.FS

	Words []byte // TOML: tables of texts; no key is also one of the frame's
	Style []byte // CSS that only this part's pages need, after the frame's; nil: none
	Nav   []Link // shown to whom they are for, in this order, on every page of every part
}

// Link is an entry of the navigation.
type Link struct {
	Path string // of the page, as in Page.Nav
	Key  string // of its words
	For  func(rights.Principal) bool
}

// Views is the pages of one part.
type Views struct {
	frame *Frame
	words words
	pages map[string]*template.Template
	style string // URL; empty: none
}

// Page is one page, to be shown once.
type Page struct {
	Template string // name of the file without ".html"
	Title    string // in words; of the browser's tab
	Nav      string // path of the entry of the navigation it belongs to
	Data     any
	Status   int  // default 200
	Bare     bool // without navigation: for those who are not signed in

	// Live says what the page shows: topics of the database ("alert"), or things in
	// them ("device:ID"). When one changes, elements with the attribute data-live
	// (and an id of their own) are fetched anew.
	Live []string
}

// View is the dot of a template.
type View struct {
	Page
	Data      any
	Fleet     string // its name
	Principal rights.Principal
	Full      bool // signed in, and this page has the navigation
	Links     []Link
	Said      *Said         // what the form before yielded; nil: there was none
	Hidden    template.HTML // goes into every form
	Style     string        // URL of the part's own CSS; empty: none
	LiveURL   string        // empty: nothing is live
	Here      string        // path of this page
}

// Can reports whether the reader may do something to a thing of an owner.
func (v *View) Can(resource rights.Resource, action rights.Action, owner string) bool {
	return rights.Allowed(v.Principal, action, rights.Object{Resource: resource, Owner: owner})
}

// Views reads a part. Everything that can be wrong with its templates is an error
// here, but for what their data has not.
func (f *Frame) Views(part Part) (*Views, error) {
	v := &Views{frame: f, pages: map[string]*template.Template{}}
	var err error
	if v.words, err = readWords(ownWords, part.Words); err != nil {
		return nil, err
	}
	base := template.New("").Funcs(f.funcs(v.words)).Option("missingkey=error")
	if base, err = base.ParseFS(ownTemplates, "templates/parts.html", "templates/layout.html"); err != nil {
		return nil, fmt.Errorf("read templates of the frame: %w", err)
	}
	var shared []string
	pages := map[string]string{}
	read := func(files fs.FS) error {
		return fs.WalkDir(files, ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || path.Ext(name) != ".html" {
				return err
			}
			raw, err := fs.ReadFile(files, name)
			if err != nil {
				return err
			}
			if text, id := string(raw), strings.TrimSuffix(path.Base(name), ".html"); strings.Contains(text, `{{define "main"}}`) {
				pages[id] = text
			} else if id != "parts" && id != "layout" {
				shared = append(shared, text)
			}
			return nil
		})
	}
	err = read(ownTemplates)
	if err == nil && part.Templates != nil {
		err = read(part.Templates)
	}
	for _, text := range shared {
		if err == nil {
			_, err = base.Parse(text)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read templates: %w", err)
	}
	for id, text := range pages {
		page, err := base.Clone()
		if err == nil {
			_, err = page.Parse(text)
		}
		if err == nil {
			err = v.words.checkTemplate(page)
		}
		if err != nil {
			return nil, fmt.Errorf("read template %s: %w", id, err)
		}
		v.pages[id] = page
	}
	if part.Style != nil {
		v.style = f.assets.add("part.css", part.Style)
	}
	f.addNav(part.Nav, v.words)
	return v, nil
}

// Say is a text in words.
func (v *Views) Say(key string, args ...any) string { return v.words.say(key, args...) }

// Has reports whether there are words for a key: of kinds that boxes make up.
func (v *Views) Has(key string) bool { _, ok := v.words[key]; return ok }

// Show writes a page. It writes nothing if it returns an error.
func (v *Views) Show(w http.ResponseWriter, r *http.Request, page Page) error {
	t, ok := v.pages[page.Template]
	if !ok {
		return fmt.Errorf("show page: there is no template %q", page.Template)
	}
	p := rights.FromContext(r.Context())
	view := &View{
		Page: page, Data: page.Data, Fleet: v.frame.cfg.Name, Principal: p, Style: v.style,
		Hidden: v.frame.hidden(w, r), Here: r.URL.Path, Said: v.frame.said(w, r),
	}
	if view.Full = !page.Bare && p.Account != "" && p.Stage == rights.StageFull; view.Full {
		view.Links = v.frame.linksFor(p)
	}
	if len(page.Live) > 0 && p.Account != "" {
		view.LiveURL = v.frame.liveURL(p, page.Live)
	}
	var out bytes.Buffer
	if err := t.ExecuteTemplate(&out, "layout", view); err != nil {
		return fmt.Errorf("show page %s: %w", page.Template, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if page.Status != 0 {
		w.WriteHeader(page.Status)
	}
	_, _ = out.WriteTo(w) // the browser went away
	return nil
}

// hidden is the fields of every form: its token, and the page it stands in.
func (f *Frame) hidden(w http.ResponseWriter, r *http.Request) template.HTML {
	from := r.URL.RequestURI()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		from = LocalPath(r.PostFormValue("from")) // a page that answers a form
	}
	return template.HTML(fmt.Sprintf(`<input type="hidden" name="%s" value="%s"><input type="hidden" name="from" value="%s">`,
		authhttp.FormField, template.HTMLEscapeString(f.door.FormToken(w, r)), template.HTMLEscapeString(from)))
}

// addNav adds entries, with their words found.
func (f *Frame) addNav(links []Link, words words) {
	f.nav.Lock()
	defer f.nav.Unlock()
	for _, l := range links {
		l.Key = words.say(l.Key)
		f.nav.links = append(f.nav.links, l)
	}
}

// linksFor is the entries for a principal; their Key is words.
func (f *Frame) linksFor(p rights.Principal) []Link {
	f.nav.Lock()
	defer f.nav.Unlock()
	return slices.DeleteFunc(slices.Clone(f.nav.links), func(l Link) bool { return l.For != nil && !l.For(p) })
}

var errNoPage = notFound(errors.New("there is no such page"))
