//go:build integration

package console_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/pquerna/otp/totp"

	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// chromium is a browser with a phone's screen and passkeys, and a fleet beside it.
type chromium struct {
	*world
	t   *testing.T
	ctx context.Context
	axe string

	mu   sync.Mutex
	seen []string // guarded by mu; what the server was told: URLs and Referers
}

func newChromium(t *testing.T) *chromium {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	b := &chromium{world: newWorld(t, fmt.Sprintf("http://localhost:%d", l.Addr().(*net.TCPAddr).Port)), t: t}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.seen = append(b.seen, r.URL.String(), r.Referer())
		b.mu.Unlock()
		b.handler.ServeHTTP(w, r)
	}))
	server.Listener.Close()
	server.Listener = l
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})

	zip := must(gzip.NewReader(must(os.Open("frame/testdata/axe-4.14.1.min.js.gz"))(t)))(t)
	b.axe = string(must(io.ReadAll(zip))(t))

	allocator, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.Flag("headless", "new"), chromedp.NoSandbox, chromedp.WindowSize(1280, 900))...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	b.ctx = ctx
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("a script failed: %s", e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			if e.Entry.Source != log.SourceNetwork && e.Entry.Level == log.LevelError {
				t.Errorf("the browser minds: %s", e.Entry.Text)
			}
		}
	})
	check(t, chromedp.Run(ctx)) // the browser lives as long as this context
	b.run(phone(), webauthn.Enable(), chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := webauthn.AddVirtualAuthenticator(&webauthn.VirtualAuthenticatorOptions{
			Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal, HasResidentKey: true,
			HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
		}).Do(ctx)
		return err
	}))
	return b
}

func screen(width, height int64, scale float64, mobile bool) chromedp.Action {
	return emulation.SetDeviceMetricsOverride(width, height, scale, mobile)
}

func phone() chromedp.Action { return screen(390, 844, 2, true) }

// js is what an expression yields, in the end.
func js[T any](b *chromium, expression string) (v T) {
	b.t.Helper()
	b.run(chromedp.Evaluate(expression, &v, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	return v
}

func (b *chromium) run(actions ...chromedp.Action) {
	b.t.Helper()
	for i, action := range actions {
		ctx, cancel := context.WithTimeout(b.ctx, patience)
		err := chromedp.Run(ctx, action)
		cancel()
		if err != nil {
			b.trouble(fmt.Errorf("step %d: %w", i+1, err))
		}
	}
}

// patience is how long something may take to be seen.
const patience = 30 * time.Second

func (b *chromium) trouble(err error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	var page string
	_ = chromedp.Run(ctx, chromedp.Evaluate(`location.pathname + "\n" + document.body.innerText`, &page)) // there may be none
	b.t.Fatalf("%v\nat %s\nlog:\n%s", err, page, b.logged)
}

// wait waits until something with the text can be seen.
func wait(text string) chromedp.Action {
	return chromedp.WaitVisible(fmt.Sprintf(`//main//*[contains(normalize-space(text()), "%s")]`, text), chromedp.BySearch)
}

// tap taps a button or link by its text.
func tap(text string) chromedp.Action {
	return chromedp.Click(fmt.Sprintf(`//*[self::button or self::a or self::summary][contains(normalize-space(.), "%s")]`, text), chromedp.BySearch, chromedp.NodeVisible)
}

// inspect looks at a page in light and dark: axe-core finds nothing, nothing is wider
// than the phone, no script failed; and takes pictures if somebody wants them.
func (b *chromium) inspect(name string) {
	b.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		b.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
		}), chromedp.Evaluate(b.axe+"; 0", nil))
		raw := js[string](b, `axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations.map(v => ({id: v.id, help: v.help, nodes: v.nodes.map(n => n.html + " " + n.failureSummary)}))))`)
		var violations []struct {
			ID, Help string
			Nodes    []string
		}
		check(b.t, json.Unmarshal([]byte(raw), &violations))
		for _, v := range violations {
			b.t.Errorf("%s, %s: %s: %s\n%s", name, scheme, v.ID, v.Help, strings.Join(v.Nodes, "\n"))
		}
		if wide := js[int](b, `document.documentElement.scrollWidth - innerWidth`); wide > 0 {
			b.t.Errorf("%s is %d pixels wider than a phone", name, wide)
		}
		b.picture(name + "-" + scheme)
	}
}

// picture writes what the phone shows, and a desk's screen too.
func (b *chromium) picture(name string) {
	b.t.Helper()
	to := os.Getenv("CROFT_SCREENSHOTS")
	if to == "" {
		return
	}
	check(b.t, os.MkdirAll(to, 0o755))
	var small, large []byte
	b.run(chromedp.FullScreenshot(&small, 100), screen(1200, 850, 1, false), chromedp.FullScreenshot(&large, 100), phone())
	check(b.t, os.WriteFile(filepath.Join(to, name+"-phone.png"), small, 0o644))
	check(b.t, os.WriteFile(filepath.Join(to, name+"-desk.png"), large, 0o644))
}

// charted waits until the charts were drawn.
func charted() chromedp.Action {
	return chromedp.Poll(`[...document.querySelectorAll("[data-chart]")].every(c => c.classList.contains("ready"))`, nil)
}

func TestNewcomerClaimsInThreeActions(t *testing.T) {
	b := newChromium(t)
	id := b.box(t, 1)

	b.run(chromedp.Navigate(b.origin+"/claim#"+codeOf(1)), wait("make the box yours")) // 1: scan
	b.inspect("claim-newcomer")
	b.run(tap("Create my passkey"), wait("This is mine")) // 2: make a passkey
	b.inspect("claim-found")
	b.run(tap("This is mine"), wait("The box is yours.")) // 3: it is mine
	if at := js[string](b, "location.href"); at != b.origin+"/boxes/"+string(id) {
		t.Errorf("he is at %s", at)
	}
	b.inspect("box-new")

	// Nobody saw the code, and the phone has forgotten it.
	kept := js[string](b, `JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + location.href`)
	b.mu.Lock()
	told := strings.Join(b.seen, "\n")
	b.mu.Unlock()
	for what, text := range map[string]string{"the phone": kept, "the server's addresses": told, "the log": b.logged.String()} {
		if strings.Contains(text, codeOf(1)) {
			t.Errorf("the code is in %s: %s", what, text)
		}
	}

	// The next one is two: scan, "This is mine".
	b.box(t, 2)
	b.run(chromedp.Navigate(b.origin+"/claim#"+codeOf(2)), wait("This is mine"), tap("This is mine"), wait("The box is yours."))

	// Signed out and back in with the passkey.
	b.run(chromedp.Click(".out button", chromedp.ByQuery), wait("You are signed out."))
	b.inspect("sign-in")
	b.run(tap("Sign in with a passkey"), wait("My boxes"))
}

func TestPagesAreForEverybody(t *testing.T) {
	b := newChromium(t)
	b.run(chromedp.Navigate(b.origin+"/login"), tap("Create a passkey"), wait("No box yet"))
	b.inspect("boxes-none")
	me := b.me()
	id := b.own(t, me, 1)
	for n := 2; n <= 4; n++ {
		b.own(t, me, n)
	}
	b.age(t, id)
	b.measure(t, id)
	b.pay(t, id, "uact", 61_000_000, 64_214_999, 12_345_678)
	b.age(t, idOf(4))
	b.pay(t, idOf(4), "uact", 61_000_000, 61_000_000, 4_000_000)
	b.say(t, idOf(2), &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: 1})
	b.fires(t, me, idOf(3), "The fan of Attic turns slowly.", "Its fan turns slowly.")
	for n, kind := range []string{"agent_started", "boot_confirmed", "lease_won", "lease_ended", "kernel_panicked"} {
		severity := fleetapi.SeverityInfo
		if kind == "kernel_panicked" {
			severity = fleetapi.SeverityWarning
		}
		b.say(t, id, &fleetapi.Event{Origin: fleetapi.Origin{Journal: 7, Seq: uint64(n + 1)}, At: time.Now(), Synced: true, Kind: kind, Severity: severity})
	}
	path := "/boxes/" + string(id)
	b.run(chromedp.Navigate(b.origin+path), fill("#name", "Kitchen"), tap("Save"), wait("The name was changed."), charted())
	b.inspect("box-said")
	b.run(chromedp.Navigate(b.origin+path), charted())
	b.inspect("box")

	for name, page := range map[string][2]string{
		"boxes": {"/boxes", "My boxes"}, "events": {path + "/events", "What happened to"}, "chart-table": {path + "/chart/network", "Time"},
		"hand-over": {path + "/hand-over", "Make the code"}, "give-up": {path + "/give-up", "Yes, give it up"}, "claim": {"/claim", "Find my box"},
		"account": {"/account", "Quiet hours"}, "not-found": {"/boxes/nothing", "There is nothing here"}, "sign-in-again": {"/login?then=/account", "Show that it is you"},
		"restart": {path + "/restart", "Restart now"}, "link-gone": {"/login/link?token=x", "This link was used before"},
	} {
		b.run(chromedp.Navigate(b.origin+page[0]), wait(page[1]))
		b.inspect(name)
	}
	b.run(chromedp.Navigate(b.origin+path), tap("Where is it?"), wait("whose light blinks"), tap("Restart"), wait("away for two or three minutes"), tap("Restart now"), wait("restarts in a moment"))
	b.inspect("box-restarting")
	b.run(chromedp.Navigate(b.origin+path+"/hand-over"), tap("Make the code"), wait("Let the new owner scan this"))
	b.inspect("hand-over-code")
	b.run(chromedp.Navigate(b.origin+"/claim"), fill("#code", "ZZZZ-ZZZZ"), tap("Find my box"), wait("has this code"), wait("show that you are next to it"))
	b.inspect("claim-wrong")
	b.run(chromedp.Navigate(b.origin+"/account"), tap("Make a token"), fill("#token-name", "my script"),
		chromedp.Click(`input[value="device:read"]`, chromedp.ByQuery), tap("Make the token"), wait("Your new token"))
	b.inspect("token")
}

func TestPageShowsAChangeWithoutBeingAsked(t *testing.T) {
	b := newChromium(t)
	b.run(chromedp.Navigate(b.origin+"/login"), tap("Create a passkey"), wait("No box yet"))
	me := b.me()
	id := b.own(t, me, 1)
	b.run(chromedp.Navigate(b.origin+"/boxes"), wait("Online"))
	b.say(t, id, &fleetapi.State{Presence: fleetapi.Lost, Journal: 7, Epoch: 1})
	b.run(wait("Offline"))
	b.say(t, id, &fleetapi.Hello{Journal: 7, Epoch: 2, Version: 1, At: time.Now(), Synced: true, BootID: "c", Release: "1.4.0", Slot: "a", Board: "uefi-x86"},
		&fleetapi.State{Presence: fleetapi.Online, Journal: 7, Epoch: 2})
	b.run(wait("Online"))
}

func TestStaffPagesOfTheWayIn(t *testing.T) {
	b := newChromium(t)
	token := must(b.auth.Bootstrap(t.Context()))(t).Reveal()
	if _, after, ok := strings.Cut(token, "token="); ok {
		token = after
	}
	b.run(chromedp.Navigate(b.origin+"/login/link?token="+token), wait("The first administrator"))
	b.inspect("bootstrap")
	b.run(fill("#name", "Root"), fill("#email", "root@example.org"),
		fill("#password", "a field of 7 sheep"), tap("Make my account"), wait("Add a second lock"))
	shared := js[string](b, `document.querySelector("[data-copy]").dataset.copy`)
	b.inspect("enroll")
	b.run(fill("#code", must(totp.GenerateCode(shared, time.Now()))(t)), tap("Done, lock it"), wait("Your recovery codes"))
	b.inspect("recovery")
	b.run(chromedp.Navigate(b.origin+"/account"), wait("Account"))
	b.inspect("account-staff")
	b.run(chromedp.Click(".out button", chromedp.ByQuery), wait("You are signed out."), tap("I work for this fleet"))
	b.inspect("sign-in-staff")
	b.run(fill("#staff-email", "root@example.org"), fill("#password", "a field of 7 sheep"),
		chromedp.Submit("#password", chromedp.ByQuery), wait("Your code"))
	b.inspect("code")
	b.run(chromedp.Navigate(b.origin+"/login/sent"), wait("Look into your mailbox"))
	b.inspect("sent")
}

// fill writes into a field.
func fill(field, text string) chromedp.Action {
	return chromedp.SetValue(field, text, chromedp.ByQuery)
}

// me is the account of who is signed in.
func (b *chromium) me() string {
	b.t.Helper()
	return js[string](b, `fetch("/auth/me", {headers: {Accept: "application/json"}}).then(r => r.json()).then(m => m.data.account)`)
}
