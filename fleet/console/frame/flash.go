package frame

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
)

const saidCookie = "__Host-croft_said"

// Tone says how something is meant. It is shown by a sign and a word's place too,
// never by colour alone.
type Tone string

// The tones.
const (
	Good  Tone = "good"
	Note  Tone = "note"
	Warn  Tone = "warn"
	Bad   Tone = "bad"
	Quiet Tone = "quiet"
)

// Said is the line at the top of a page about what was just done.
type Said struct {
	Tone Tone   `json:"t"`
	Text string `json:"s"`
}

// Then goes to a page, where text is said. It is the end of a form.
func (f *Frame) Then(w http.ResponseWriter, r *http.Request, to string, tone Tone, text string) error {
	if to = LocalPath(to); to == "" {
		to = "/"
	}
	if text != "" {
		raw, _ := json.Marshal(Said{tone, cut(text, 600)}) // texts always marshal
		http.SetCookie(w, &http.Cookie{
			Name: saidCookie, Value: base64.RawURLEncoding.EncodeToString(raw), Path: "/", MaxAge: 120, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		})
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}

// said is what Then left, once.
func (f *Frame) said(w http.ResponseWriter, r *http.Request) *Said {
	cookie, err := r.Cookie(saidCookie)
	if err != nil || r.Header.Get("HX-Request") != "" { // a part of a page is not where it is read
		return nil
	}
	http.SetCookie(w, &http.Cookie{Name: saidCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	raw, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	var s Said
	if err != nil || json.Unmarshal(raw, &s) != nil || s.Text == "" {
		return nil
	}
	return &s
}

// Sentence is an error as people read it: what went wrong and what to do. Of errors
// that nobody wrote for people it is empty.
func Sentence(err error) string {
	var text string
	if e, ok := errors.AsType[*croft.Error](err); ok {
		text = begin(e.Err.Error())
		if e.Remedy != "" {
			text += " " + begin(e.Remedy)
		}
	}
	return text
}

// begin makes a sentence of words.
func begin(s string) string {
	if s == "" {
		return ""
	}
	first, n := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(first)) + s[n:]
	if !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "?") && !strings.HasSuffix(s, "!") {
		s += "."
	}
	return s
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}

func notFound(err error) error { return &croft.Error{Kind: croft.KindNotFound, Err: err} }

const keptCookie = "__Host-croft_kept_"

// Keep has the browser keep a secret for ten minutes, sealed, for the same account:
// what one page made and the next try of its form needs.
func (f *Frame) Keep(w http.ResponseWriter, r *http.Request, name, value string) {
	account := rights.FromContext(r.Context()).Account
	http.SetCookie(w, &http.Cookie{
		Name: keptCookie + name, Value: base64.RawURLEncoding.EncodeToString(f.keys.Encrypt(account+" "+name, secret.New(value))),
		Path: "/", MaxAge: 600, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// Kept is what Keep had the browser keep; empty if there is nothing.
func (f *Frame) Kept(r *http.Request, name string) string {
	cookie, err := r.Cookie(keptCookie + name)
	if err != nil {
		return ""
	}
	raw, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return ""
	}
	text, err := f.keys.Decrypt(rights.FromContext(r.Context()).Account+" "+name, raw)
	if err != nil {
		return ""
	}
	return text.Reveal()
}
