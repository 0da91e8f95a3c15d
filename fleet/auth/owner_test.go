package auth_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-webauthn/webauthn/protocol/webauthncbor"

	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/auth/secret"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/db/dbtest"
)

func TestLinkSignsInOnceInTheBrowserThatAsked(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		must(t, w.RequestLink(w.ctx, c, " Ann@Example.org "))
		token := w.link("ann@example.org")
		if info, err := w.Link(w.ctx, c, token); err != nil || info.Email != "ann@example.org" || !info.SameBrowser {
			t.Fatalf("Link = %+v, %v", info, err)
		}
		g, err := w.RedeemLink(w.ctx, c, rights.Principal{}, token, false)
		must(t, err)
		if p := w.who(g.Cookie); p.Account != g.Principal.Account || p.Role != rights.RoleOwner || p.Stage != rights.StageFull || !strings.HasPrefix(p.Account, "own_") {
			t.Errorf("signed in as %+v", p)
		}
		if _, err := w.RedeemLink(w.ctx, c, rights.Principal{}, token, true); !errors.Is(err, auth.ErrGone) {
			t.Errorf("second use: %v", err)
		}
		if again := w.owner(c, "ann@example.org"); again.Principal.Account != g.Principal.Account {
			t.Error("the second sign-in made another account")
		}
	})
}

func TestLinkInAnotherBrowserWantsToBeConfirmed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		must(t, w.RequestLink(w.ctx, browser("192.0.2.1"), "ann@example.org"))
		token, other := w.link("ann@example.org"), browser("192.0.2.2")
		for _, c := range []auth.Client{other, {Address: other.Address}} {
			if _, err := w.RedeemLink(w.ctx, c, rights.Principal{}, token, false); !errors.Is(err, auth.ErrConfirm) {
				t.Errorf("without a confirmation: %v", err)
			}
		}
		if _, err := w.RedeemLink(w.ctx, other, rights.Principal{}, token, true); err != nil {
			t.Errorf("with one: %v", err)
		}
		must(t, w.RequestLink(w.ctx, other, "ann@example.org"))
		token = w.link("ann@example.org")
		time.Sleep(15 * time.Minute)
		if _, err := w.RedeemLink(w.ctx, other, rights.Principal{}, token, true); !errors.Is(err, auth.ErrGone) {
			t.Errorf("after a quarter of an hour: %v", err)
		}
	})
}

func TestMailsToOneAddressAreFew(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for range 10 {
			must(t, w.RequestLink(w.ctx, browser("192.0.2.1"), "ann@example.org")) // the answer stays the same
		}
		n := 0
		for w.mail("ann@example.org") != "" {
			n++
		}
		if n != 5 {
			t.Errorf("%d mails were sent, want 5", n)
		}
		time.Sleep(time.Minute)
		must(t, w.RequestLink(w.ctx, browser("192.0.2.1"), "ann@example.org"))
		w.link("ann@example.org")
	})
}

func TestAddressIsGivenOnlyToTheAccountThatAsked(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		ann, bob := w.owner(c, "ann@example.org"), w.owner(c, "bob@example.org")
		must(t, w.RequestEmail(w.ctx, c, ann.Principal, "new@example.org"))
		token := w.link("new@example.org")
		for _, p := range []rights.Principal{{}, bob.Principal} {
			if _, err := w.RedeemLink(w.ctx, c, p, token, true); err == nil {
				t.Errorf("account %q got the address that %q asked for", p.Account, ann.Principal.Account)
			}
		}
		if g, err := w.RedeemLink(w.ctx, c, ann.Principal, token, false); err != nil || g.Cookie != (secret.Text{}) {
			t.Fatalf("RedeemLink = %v, %v", g, err)
		}
		if a, err := w.Account(w.ctx, ann.Principal, ann.Principal.Account); err != nil || a.Email != "new@example.org" {
			t.Errorf("account = %+v, %v", a, err)
		}
		must(t, w.RequestEmail(w.ctx, c, ann.Principal, "bob@example.org"))
		if _, err := w.RedeemLink(w.ctx, c, ann.Principal, w.link("bob@example.org"), false); err == nil {
			t.Error("an address of another account was given away")
		}
		time.Sleep(auth.Fresh + time.Second)
		if err := w.RequestEmail(w.ctx, c, w.who(ann.Cookie), "x@example.org"); !errors.Is(err, auth.ErrStale) {
			t.Errorf("long after signing in: %v", err)
		}
	})
}

func TestAddressesThatAreNone(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for _, bad := range []string{
			"", "ann", "ann@", "@example.org", "Ann <ann@example.org>", "ann@example.org\r\nBcc: eve@example.org", "a b@example.org", `"a"@example.org`,
			strings.Repeat("a", 300) + "@example.org", "ann@example.org\x00",
		} {
			if err := w.RequestLink(w.ctx, browser("192.0.2.1"), bad); err == nil {
				t.Errorf("%q was accepted", bad)
			}
		}
		c := browser("192.0.2.1")
		g := w.owner(c, "o'hara%_@example.org")
		for text, want := range map[string]int{"o'hara": 1, "o'hara%_@example.org": 1, "%": 0, "_": 0, "' OR 1=1 --": 0, "": 0} {
			if ids, err := w.FindOwners(w.ctx, text); err != nil || len(ids) != want {
				t.Errorf("FindOwners(%q) = %v, %v", text, ids, err)
			}
		}
		if err := w.SetName(w.ctx, c, g.Principal, "<b>'; DROP TABLE auth_accounts; --"); err != nil {
			t.Error(err)
		}
		if a, err := w.Account(w.ctx, g.Principal, g.Principal.Account); err != nil || a.Name != "<b>'; DROP TABLE auth_accounts; --" {
			t.Errorf("account = %+v, %v", a, err)
		}
	})
}

// token is a software authenticator: ES256, no attestation.
type token struct {
	origin string
	id     []byte
	key    *ecdsa.PrivateKey
	user   []byte
	count  uint32
	flags  byte
}

func newToken() *token {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	id := make([]byte, 20)
	_, _ = rand.Read(id)
	return &token{origin: origin, id: id, key: key, count: 1, flags: 1 | 4} // present, verified
}

type options struct {
	PublicKey struct {
		Challenge string `json:"challenge"`
		RPID      string `json:"rpId"`
		RP        struct {
			ID string `json:"id"`
		} `json:"rp"`
		User struct {
			ID string `json:"id"`
		} `json:"user"`
	} `json:"publicKey"`
}

func read(t *testing.T, c auth.Challenge) (o options) {
	t.Helper()
	text, err := json.Marshal(c.Options)
	must(t, err)
	must(t, json.Unmarshal(text, &o))
	return o
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (k *token) clientData(kind, challenge string) []byte {
	text, _ := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": k.origin, "crossOrigin": false})
	return text
}

func (k *token) authData(rp string, flags byte) []byte {
	sum := sha256.Sum256([]byte(rp))
	return binary.BigEndian.AppendUint32(append(sum[:], flags), k.count)
}

// create answers navigator.credentials.create.
func (k *token) create(t *testing.T, c auth.Challenge) []byte {
	t.Helper()
	o := read(t, c)
	var err error
	k.user, err = base64.RawURLEncoding.DecodeString(o.PublicKey.User.ID)
	must(t, err)
	point, err := k.key.PublicKey.Bytes()
	must(t, err)
	public, err := webauthncbor.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]})
	must(t, err)
	data := append(k.authData(o.PublicKey.RP.ID, k.flags|0x40), make([]byte, 16)...)
	data = append(append(binary.BigEndian.AppendUint16(data, uint16(len(k.id))), k.id...), public...)
	object, err := webauthncbor.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": data})
	must(t, err)
	text, err := json.Marshal(map[string]any{
		"id": b64(k.id), "rawId": b64(k.id), "type": "public-key",
		"response": map[string]any{"clientDataJSON": b64(k.clientData("webauthn.create", o.PublicKey.Challenge)), "attestationObject": b64(object)},
	})
	must(t, err)
	return text
}

// get answers navigator.credentials.get.
func (k *token) get(t *testing.T, c auth.Challenge) []byte {
	t.Helper()
	o := read(t, c)
	client, data := k.clientData("webauthn.get", o.PublicKey.Challenge), k.authData(o.PublicKey.RPID, k.flags)
	inner := sha256.Sum256(client)
	sum := sha256.Sum256(append(bytes.Clone(data), inner[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, k.key, sum[:])
	must(t, err)
	text, err := json.Marshal(map[string]any{
		"id": b64(k.id), "rawId": b64(k.id), "type": "public-key",
		"response": map[string]any{
			"clientDataJSON": b64(client), "authenticatorData": b64(data), "signature": b64(signature), "userHandle": b64(k.user),
		},
	})
	must(t, err)
	return text
}

func (w *world) register(c auth.Client, p rights.Principal, k *token) (auth.Grant, error) {
	w.t.Helper()
	ch, err := w.BeginPasskey(w.ctx, c, p, "Ann")
	must(w.t, err)
	return w.FinishPasskey(w.ctx, c, p, ch.Ceremony, "phone", k.create(w.t, ch))
}

func (w *world) login(c auth.Client, k *token) (auth.Grant, error) {
	w.t.Helper()
	ch, err := w.BeginPasskeyLogin(w.ctx, c)
	must(w.t, err)
	return w.FinishPasskeyLogin(w.ctx, c, ch.Ceremony, k.get(w.t, ch))
}

func TestPasskeyMakesAnAccountAndSignsIn(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c, k := browser("192.0.2.1"), newToken()
		g, err := w.register(c, rights.Principal{}, k)
		must(t, err)
		if w.who(g.Cookie).Name != "Ann" {
			t.Errorf("signed in as %+v", w.who(g.Cookie))
		}
		k.count++
		in, err := w.login(browser("192.0.2.9"), k)
		must(t, err)
		if in.Principal.Account != g.Principal.Account || in.Cookie == g.Cookie {
			t.Error("the sign-in is of another account, or has the old cookie")
		}

		second := newToken()
		if _, err := w.register(c, in.Principal, second); err != nil {
			t.Fatal(err)
		}
		if list, err := w.Passkeys(w.ctx, in.Principal); err != nil || len(list) != 2 {
			t.Errorf("Passkeys = %v, %v", list, err)
		}
		second.count++
		if by2, err := w.login(c, second); err != nil || by2.Principal.Account != g.Principal.Account {
			t.Errorf("sign-in by the second passkey: %v", err)
		}
		must(t, w.RemovePasskey(w.ctx, c, in.Principal, b64(k.id)))
		k.count++
		if _, err := w.login(c, k); err == nil {
			t.Error("a removed passkey signs in")
		}
		if err := w.RemovePasskey(w.ctx, c, in.Principal, b64(second.id)); err == nil {
			t.Error("the only way in was removed")
		}
	})
}

func TestPasskeyAnswersThatAreRefused(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c, k := browser("192.0.2.1"), newToken()
		g, err := w.register(c, rights.Principal{}, k)
		must(t, err)
		begin := func() auth.Challenge {
			ch, err := w.BeginPasskeyLogin(w.ctx, c)
			must(t, err)
			k.count++
			return ch
		}
		finish := func(c auth.Client, ch auth.Challenge, answer []byte) error {
			_, err := w.FinishPasskeyLogin(w.ctx, c, ch.Ceremony, answer)
			return err
		}
		ch := begin()
		answer := k.get(t, ch)
		if finish(browser("192.0.2.1"), ch, answer) == nil {
			t.Error("an answer from another browser than began signed in")
		}
		must(t, finish(c, ch, answer))
		if finish(c, ch, answer) == nil {
			t.Error("an answer signed in twice")
		}
		if finish(c, begin(), answer) == nil {
			t.Error("the answer to another challenge signed in")
		}
		for name, change := range map[string]func(k *token){
			"another site":             func(k *token) { k.origin = "https://f1eet.example.org" },
			"another key":              func(k *token) { k.key = newToken().key },
			"another user":             func(k *token) { k.user = []byte("own_00000000000000000000000000") },
			"nobody present":           func(k *token) { k.flags = 4 },
			"nobody verified":          func(k *token) { k.flags = 1 },
			"a counter that went back": func(k *token) { k.count = 1 },
		} {
			ch, bad := begin(), *k
			change(&bad)
			if finish(c, ch, bad.get(t, ch)) == nil {
				t.Errorf("%s: signed in", name)
			}
		}
		if !strings.Contains(w.ledger(), "passkey.cloned") {
			t.Error("the copy was not recorded")
		}
		if list, err := w.Passkeys(w.ctx, g.Principal); err != nil || len(list) != 1 || !list[0].Cloned {
			t.Errorf("Passkeys = %+v, %v", list, err)
		}
		ch = begin()
		time.Sleep(6 * time.Minute)
		if finish(c, ch, k.get(t, ch)) == nil {
			t.Error("an answer after five minutes signed in")
		}
		for _, junk := range []string{"", "{}", "null", `{"id":"x"}`, strings.Repeat("[", 1000)} {
			if finish(c, begin(), []byte(junk)) == nil {
				t.Errorf("%.20q signed in", junk)
			}
		}
	})
}

func TestPasskeyIsAddedOnlyByTheAccountThatBegan(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		ann, bob, k := w.owner(c, "ann@example.org"), w.owner(c, "bob@example.org"), newToken()
		ch, err := w.BeginPasskey(w.ctx, c, ann.Principal, "")
		must(t, err)
		if _, err := w.FinishPasskey(w.ctx, c, bob.Principal, ch.Ceremony, "", k.create(t, ch)); err == nil {
			t.Error("another account got the passkey")
		}
		if _, err := w.FinishPasskey(w.ctx, c, rights.Principal{}, ch.Ceremony, "", k.create(t, ch)); err == nil {
			t.Error("nobody got the passkey")
		}
		time.Sleep(auth.Fresh + time.Second)
		if _, err := w.BeginPasskey(w.ctx, c, w.who(ann.Cookie), ""); !errors.Is(err, auth.ErrStale) {
			t.Errorf("long after signing in: %v", err)
		}
	})
}

func TestSessionsEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		ann := w.owner(c, "ann@example.org")
		for range 5 { // used each 29 days it lives
			time.Sleep(29 * 24 * time.Hour)
			if w.who(ann.Cookie).Account == "" {
				t.Fatal("a session in use ended early")
			}
		}
		other := w.owner(c, "ann@example.org")
		time.Sleep(29 * 24 * time.Hour)
		if w.who(other.Cookie).Account == "" {
			t.Fatal("a session in use ended early")
		}
		time.Sleep(7 * 24 * time.Hour)
		if p := w.who(ann.Cookie); p.Account != "" {
			t.Error("a session lives for more than 180 days")
		}
		time.Sleep(30 * 24 * time.Hour)
		if w.who(other.Cookie).Account != "" {
			t.Error("a session that was not used for 30 days lives")
		}
		one, two := w.owner(c, "ann@example.org"), w.owner(browser("2001:db8::1"), "ann@example.org")
		bob := w.owner(c, "bob@example.org")
		list, err := w.Sessions(w.ctx, one.Principal, one.Principal.Account)
		if err != nil || len(list) != 2 {
			t.Fatalf("Sessions = %+v, %v", list, err)
		}
		if err := w.EndSession(w.ctx, c, bob.Principal, one.Principal.Account, two.Principal.Session); !errors.Is(err, auth.ErrForbidden) {
			t.Errorf("a stranger ends a session: %v", err)
		}
		if err := w.EndSession(w.ctx, c, bob.Principal, bob.Principal.Account, two.Principal.Session); err == nil {
			t.Error("a stranger's session is taken for one's own")
		}
		must(t, w.EndSession(w.ctx, c, one.Principal, one.Principal.Account, ""))
		if w.who(one.Cookie).Account == "" || w.who(two.Cookie).Account != "" || w.who(bob.Cookie).Account == "" {
			t.Error("ending all others ended the wrong ones")
		}
		if w.who(secret.Random()).Account != "" || w.who(secret.Text{}).Account != "" {
			t.Error("a cookie nobody has is somebody's")
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		ann := w.owner(c, "ann@example.org")
		for _, bad := range []string{"", "device:label", "device:fly", "staff:write", "device", "*"} {
			if _, _, err := w.CreateToken(w.ctx, c, ann.Principal, "x", bad, time.Hour); err == nil {
				t.Errorf("an owner got a token for %q", bad)
			}
		}
		token, info, err := w.CreateToken(w.ctx, c, ann.Principal, "grafana", "telemetry:read device:read device:read", 24*time.Hour)
		must(t, err)
		if info.Scopes != "device:read telemetry:read" {
			t.Errorf("scopes = %q", info.Scopes)
		}
		by := func() rights.Principal {
			p, err := w.ByToken(w.ctx, token)
			must(t, err)
			return p
		}
		mine, other := rights.Object{Resource: rights.Device, Owner: ann.Principal.Account}, rights.Object{Resource: rights.Device, Owner: "own_x"}
		if p := by(); !rights.Allowed(p, rights.Read, mine) || rights.Allowed(p, rights.Read, other) || rights.Allowed(p, rights.Rename, mine) {
			t.Error("the token may not what it should, or more")
		}
		if _, _, err := w.CreateToken(w.ctx, c, by(), "more", "device:read", time.Hour); err == nil {
			t.Error("a token made a token")
		}
		time.Sleep(time.Hour)
		by()
		if list, err := w.Tokens(w.ctx, w.who(ann.Cookie), ann.Principal.Account); err != nil || len(list) != 1 || time.Since(list[0].Used) > time.Minute {
			t.Errorf("Tokens = %+v, %v", list, err)
		}
		time.Sleep(23 * time.Hour)
		if by().Account != "" {
			t.Error("an expired token works")
		}
		again := w.owner(c, "ann@example.org")
		token, info, err = w.CreateToken(w.ctx, c, again.Principal, "x", "device:read", time.Hour)
		must(t, err)
		bob := w.owner(c, "bob@example.org")
		if err := w.EndToken(w.ctx, c, bob.Principal, bob.Principal.Account, info.ID); err == nil {
			t.Error("a stranger ended a token")
		}
		must(t, w.EndToken(w.ctx, c, again.Principal, again.Principal.Account, info.ID))
		if by().Account != "" {
			t.Error("an ended token works")
		}
	})
}

func TestNothingSecretIsStoredOrLogged(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		root := w.admin()
		c := browser("192.0.2.1")
		must(t, w.RequestLink(w.ctx, c, "ann@example.org"))
		link := w.link("ann@example.org")
		g, err := w.RedeemLink(w.ctx, c, rights.Principal{}, link, false)
		must(t, err)
		must(t, w.RequestLink(w.ctx, c, "ann@example.org"))
		open := w.link("ann@example.org")
		token, _, err := w.CreateToken(w.ctx, c, g.Principal, "x", "device:read", time.Hour)
		must(t, err)
		ch, err := w.BeginPasskeyLogin(w.ctx, c)
		must(t, err)
		if _, err := w.PasswordLogin(w.ctx, c, root.email, secret.New("a wrong password indeed")); err == nil {
			t.Fatal("a wrong password was right")
		}
		secrets := []string{
			goodPass, "a wrong password indeed", root.totp, w.code(root), root.Cookie.Reveal(), g.Cookie.Reveal(), link.Reveal(), open.Reveal(),
			token.Reveal(), ch.Ceremony.Reveal(), c.Browser.Reveal(), string(key),
		}
		for _, code := range root.Recovery {
			secrets = append(secrets, code.Reveal(), strings.ReplaceAll(code.Reveal(), "-", ""))
		}
		all := w.log.String() + w.ledger()
		for _, table := range []string{"accounts", "passkeys", "passwords", "totp", "recovery", "identities", "links", "ceremonies", "sessions", "tokens", "browsers", "pace"} {
			all += w.dump("SELECT * FROM auth_" + table)
		}
		for _, s := range secrets {
			if strings.Contains(all, s) {
				t.Errorf("%q stands in a table or log", s)
			}
		}
		for _, want := range []string{"account.create", "session.begin", "token.create", "totp.set"} {
			if !strings.Contains(w.ledger(), want) {
				t.Errorf("%s was not recorded", want)
			}
		}
	})
}

func TestWhatIsUsedOnceIsUsedOnceOnManyReplicas(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		root := w.admin()
		time.Sleep(time.Minute) // another code
		half, err := w.PasswordLogin(w.ctx, root.c, root.email, secret.New(goodPass))
		must(t, err)
		code := w.code(root)
		must(t, w.RequestLink(w.ctx, c, "ann@example.org"))
		link := w.link("ann@example.org")
		for name, use := range map[string]func(*auth.Service) error{
			"link": func(s *auth.Service) error {
				_, err := s.RedeemLink(w.ctx, c, rights.Principal{}, link, false)
				return err
			},
			"code": func(s *auth.Service) error {
				_, err := s.SecondFactor(w.ctx, root.c, half.Principal, code)
				return err
			},
		} {
			results := make(chan error)
			for range 4 {
				s := w.replica()
				go func() { results <- use(s) }()
			}
			right := 0
			for range 4 {
				if err := <-results; err == nil {
					right++
				}
			}
			if right != 1 {
				t.Errorf("a %s was used %d times", name, right)
			}
		}
	})
}

// TestOnEveryEngine does what the engines may do differently, on two replicas.
func TestOnEveryEngine(t *testing.T) {
	for _, engine := range dbtest.Engines() {
		t.Run(string(engine), func(t *testing.T) {
			w := newWorld(t, dbtest.URL(t, engine), nil)
			w.mails.arrived = make(chan struct{}, 10)
			w.settle = func() { <-w.mails.arrived }
			c, k := browser("192.0.2.1"), newToken()
			root := w.admin()
			op := w.staff(root, "op@example.org", rights.RoleOperator)
			must(t, w.SetRole(w.ctx, root.c, root.Principal, op.Principal.Account, rights.RoleSupport))
			if w.who(op.Cookie).Account != "" {
				t.Error("another role did not end the session")
			}
			if _, err := w.Invite(w.ctx, root.c, root.Principal, "op@example.org", rights.RoleAdmin); err == nil {
				t.Error("staff was invited again")
			}
			g, err := w.register(c, rights.Principal{}, k)
			must(t, err)
			k.count++
			in, err := w.login(c, k)
			must(t, err)
			token, _, err := w.CreateToken(w.ctx, c, in.Principal, "x", "device:read", time.Hour)
			must(t, err)
			if p, err := w.ByToken(w.ctx, token); err != nil || p.Account != g.Principal.Account {
				t.Errorf("ByToken = %+v, %v", p, err)
			}
			must(t, w.RequestLink(w.ctx, c, "ann@example.org"))
			link, code := w.link("ann@example.org"), root.Recovery[0].Reveal()
			half, err := w.PasswordLogin(w.ctx, root.c, root.email, secret.New(goodPass))
			must(t, err)
			for name, use := range map[string]func(*auth.Service) error{
				"link": func(s *auth.Service) error {
					_, err := s.RedeemLink(w.ctx, c, rights.Principal{}, link, false)
					return err
				},
				"recovery code": func(s *auth.Service) error {
					_, err := s.SecondFactor(w.ctx, root.c, half.Principal, code)
					return err
				},
			} {
				results := make(chan error)
				for range 6 {
					s := w.replica()
					go func() { results <- use(s) }()
				}
				right := 0
				for range 6 {
					if err := <-results; err == nil {
						right++
					}
				}
				if right != 1 {
					t.Errorf("a %s was used %d times", name, right)
				}
			}
			if list, err := w.Sessions(w.ctx, in.Principal, in.Principal.Account); err != nil || len(list) != 2 {
				t.Errorf("Sessions = %+v, %v", list, err)
			}
			if ids, err := w.FindOwners(w.ctx, "ANN@"); err != nil || len(ids) != 1 {
				t.Errorf("FindOwners = %v, %v", ids, err)
			}
			if list, next, err := w.Accounts(w.ctx, root.Principal, "", "", "", 2); err != nil || len(list) != 2 || next == "" {
				t.Errorf("Accounts = %v, %q, %v", list, next, err)
			}
			must(t, w.EndSession(w.ctx, c, in.Principal, in.Principal.Account, ""))
			if w.who(g.Cookie).Account != "" || w.who(in.Cookie).Account == "" {
				t.Error("ending all others ended the wrong ones")
			}
		})
	}
}

func TestChangesAreUndoneWhenTheyCannotBeRecorded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		c := browser("192.0.2.1")
		g := w.owner(c, "ann@example.org")
		w.cfg.Auditor = refuser{}
		if err := w.replica().SetName(context.WithoutCancel(w.ctx), c, g.Principal, "Ann"); err == nil {
			t.Error("a change that was not recorded was reported as done")
		}
		if a, err := w.Account(w.ctx, g.Principal, g.Principal.Account); err != nil || a.Name != "" {
			t.Errorf("account = %+v, %v", a, err)
		}
	})
}

type refuser struct{}

func (refuser) Record(*db.Tx, auth.Entry) error { return errors.New("the log is full") }
