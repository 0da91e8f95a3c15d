//go:build integration

package staff_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/bundle"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/job"
)

// patience is how long something may take to be seen.
const patience = 30 * time.Second

// chromium is a browser with a phone's screen, in which somebody is signed in.
type chromium struct {
	*world
	t   *testing.T
	ctx context.Context
	axe string

	order, job string // of fill: an order to many, and the page of one of its jobs
}

func newChromium(t *testing.T) *chromium {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	b := &chromium{t: t, world: newWorld(t, fmt.Sprintf("http://localhost:%d", l.Addr().(*net.TCPAddr).Port))}
	server := httptest.NewUnstartedServer(b.h)
	check(t, server.Listener.Close())
	server.Listener = l
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	live, stop := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- b.frame.Run(live) }()
	go func() { ended <- b.devices.Run(live) }()
	t.Cleanup(func() {
		stop()
		check(t, <-ended)
		check(t, <-ended)
	})
	zip := must(gzip.NewReader(must(os.Open("../frame/testdata/axe-4.14.1.min.js.gz"))(t)))(t)
	b.axe = string(must(io.ReadAll(zip))(t))
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox)...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	b.ctx = ctx
	check(t, chromedp.Run(ctx)) // the browser lives as long as this context
	b.run(chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile))
	b.signIn(rights.RoleAdmin)
	return b
}

func (b *chromium) signIn(role rights.Role) {
	b.run(chromedp.ActionFunc(func(ctx context.Context) error {
		return network.SetCookie("__Host-croft_session", b.cookies[role]).WithURL(b.origin + "/").WithPath("/").WithSecure(true).WithHTTPOnly(true).Do(ctx)
	}))
}

func (b *chromium) run(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		var page string
		after, done := context.WithTimeout(b.ctx, 5*time.Second)
		defer done()
		_ = chromedp.Run(after, chromedp.Evaluate(`location.pathname + "\n" + document.body.innerText`, &page))
		b.t.Fatalf("%v\nat %s", err, page)
	}
}

func (b *chromium) open(path string) {
	b.run(chromedp.Navigate(b.origin+path), chromedp.WaitVisible("main"))
}

// wait waits until the page has a text.
func wait(text string) chromedp.Action {
	return chromedp.WaitVisible(fmt.Sprintf(`//main//*[contains(normalize-space(text()), "%s")]`, text), chromedp.BySearch)
}

// charted waits until charts were drawn.
func charted() chromedp.Action {
	return chromedp.Poll(`[...document.querySelectorAll("[data-chart]")].every(c => c.classList.contains("ready"))`, nil)
}

// awaited has the browser wait for what an expression promises.
func awaited(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }

// inspect looks at a page in light and dark: axe-core finds nothing, and nothing is
// wider than the phone; and takes pictures if somebody wants them.
func (b *chromium) inspect(name string) {
	b.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		var raw string
		var wide int
		b.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}),
			chromedp.Evaluate(b.axe, nil),
			chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations.map(v => ({ID: v.id, Help: v.help, Nodes: v.nodes.map(n => n.html + " " + n.failureSummary)}))))`, &raw, awaited),
			chromedp.Evaluate(`document.documentElement.scrollWidth - innerWidth`, &wide))
		var violations []struct {
			ID, Help string
			Nodes    []string
		}
		check(b.t, json.Unmarshal([]byte(raw), &violations))
		for _, v := range violations {
			b.t.Errorf("%s, %s: %s: %s\n%s", name, scheme, v.ID, v.Help, strings.Join(v.Nodes, "\n"))
		}
		if wide > 0 {
			b.t.Errorf("%s is %d pixels wider than a phone", name, wide)
		}
		b.picture(name + "-" + scheme)
	}
}

func (b *chromium) picture(name string) {
	to := os.Getenv("CROFT_SCREENSHOTS")
	if to == "" {
		return
	}
	check(b.t, os.MkdirAll(to, 0o755))
	var small, large []byte
	b.run(chromedp.FullScreenshot(&small, 100), chromedp.EmulateViewport(1200, 850), chromedp.FullScreenshot(&large, 100),
		chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile))
	check(b.t, os.WriteFile(filepath.Join(to, "staff-"+name+"-phone.png"), small, 0o644))
	check(b.t, os.WriteFile(filepath.Join(to, "staff-"+name+"-desk.png"), large, 0o644))
}

func TestPagesAreForEverybody(t *testing.T) {
	b := newChromium(t)
	id := b.fill()
	path := "/fleet/boxes/" + string(id)
	b.open(path)
	b.run(charted())
	b.inspect("box")
	for _, page := range [][2]string{
		{"overview", "/fleet"},
		{"boxes", "/fleet/boxes"},
		{"boxes-filtered", "/fleet/boxes?online=no&sort=seen"},
		{"boxes-none", "/fleet/boxes?selector=nowhere"},
		{"search", "/fleet/search?q=CR-00"},
		{"box-offline", "/fleet/boxes/" + string(idOf(2))},
		{"box-well", "/fleet/boxes/" + string(idOf(4))},
		{"bulk-jobs", "/fleet/bulk/jobs?selector=region=north"},
		{"bulk-labels", "/fleet/bulk/labels"},
		{"result", "/fleet/bulk/result?" + url.Values{"bulk": {b.order}}.Encode()},
		{"job", b.job},
		{"events", path + "/events"},
		{"log", path + "/log"},
		{"jobs", path + "/jobs"},
		{"chart-table", path + "/chart/cpu"},
		{"retire", path + "/retire"},
		{"alerts", "/fleet/alerts"},
		{"silences", "/fleet/alerts/silences"},
		{"rules", "/fleet/alerts/rules"},
		{"rule", "/fleet/alerts/rule?id=region_offline"},
		{"receivers", "/fleet/alerts/receivers"},
		{"people", "/fleet/people"},
		{"person", "/fleet/people/" + b.ids[rights.RoleSupport]},
		{"audit", "/fleet/audit"},
		{"serials", "/fleet/serials"},
		{"groups", "/fleet/groups"},
		{"not-there", "/fleet/people/own_00000000000000000000000000"},
	} {
		b.open(page[1])
		b.inspect(page[0])
	}
	b.signIn(rights.RoleSupport)
	b.open(path)
	b.run(charted())
	b.inspect("box-support")
}

func TestPagesShowChangesWithoutBeingAsked(t *testing.T) {
	b := newChromium(t)
	id := b.box(1)
	b.open("/fleet/boxes/" + string(id))
	b.run(wait("Nothing is wrong with this box."))
	b.lose(id)
	b.run(wait("Offline since"))
	order := must(b.jobs.Queue(t.Context(), job.Actor(boss), job.Order{Device: id, Kind: fleetapi.KindBundle}))(t)
	b.open("/fleet/boxes/" + string(id))
	b.run(wait("The box is collecting one"))
	must(b.jobs.Receive(t.Context(), []job.Status{{Device: id, At: time.Now(), Status: &fleetapi.JobStatus{
		Origin: fleetapi.Origin{Journal: 7, Seq: 9}, At: time.Now(), Job: order.ID, State: fleetapi.Succeeded, Version: 1, Detail: "Collected.",
	}}}))(t)
	b.run(wait("Collected."))
}

// fill makes a fleet worth looking at, and returns a box with a lot to say.
func (b *chromium) fill() (id croft.DeviceID) {
	t := b.t
	regions := []string{"north", "south", "west"}
	for n := 1; n <= 14; n++ {
		one := b.box(n)
		check(t, b.devices.SetLabels(t.Context(), boss, one, map[string]string{"region": regions[n%3], "site": fmt.Sprintf("home-%d", n)}))
		if n > 2 {
			b.measure(one, 10, 45)
		}
	}
	b.enrol(20, 20*24*time.Hour)
	id = idOf(1)
	b.measure(id, 175, 84)
	b.lose(idOf(2))
	check(t, b.devices.SetName(t.Context(), boss, id, "Kitchen shelf"))
	for n, e := range []fleetapi.Event{
		{Kind: "agent_started", Severity: fleetapi.SeverityInfo, Fields: fleetapi.Labels(map[string]string{"boot": "1f3c", "sentence": "The box has started."})},
		{Kind: "lease_won", Severity: fleetapi.SeverityInfo, Fields: fleetapi.Labels(map[string]string{"lease": "84021/1/1"})},
		{Kind: "disk_slow", Severity: fleetapi.SeverityWarning, Fields: fleetapi.Labels(map[string]string{"sentence": "The disk answers slowly.", "milliseconds": "920"})},
		{Kind: "perm_lost", Severity: fleetapi.SeverityError, Fields: fleetapi.Labels(map[string]string{"sentence": "A file could not be written."})},
	} {
		e.Origin, e.At, e.Synced = fleetapi.Origin{Journal: 7, Seq: uint64(n + 1)}, time.Now().Add(time.Duration(n-40)*time.Minute), n != 2
		b.say(id, &e)
	}
	var lines []fleetapi.LogLine
	for n := range 30 {
		lines = append(lines, fleetapi.LogLine{At: time.Now().Add(time.Duration(n) * time.Second), Level: []string{"info", "info", "warn", "error"}[n%4], Text: fmt.Sprintf("lease settled lease=84021/%d/1 took=12ms", n)})
	}
	b.say(id, &fleetapi.LogLines{Lines: lines})
	for _, kind := range []fleetapi.JobKind{fleetapi.KindReboot, fleetapi.KindLocate, fleetapi.KindBundle} {
		must(b.jobs.Queue(t.Context(), job.Actor{ID: b.ids[rights.RoleSupport], Staff: true}, job.Order{Device: id, Kind: kind}))(t)
	}
	b.bundles["bun_1"] = bundle.Info{ID: "bun_1", Device: id, Size: 183_000, Entries: 14, Created: time.Now().Add(-time.Hour), Expires: time.Now().Add(29 * 24 * time.Hour)}
	must(b.devices.SaveGroup(t.Context(), boss, device.Group{Name: "The north", Selector: "region=north"}))(t)
	must(b.alerts.AddSilence(t.Context(), alert.Actor(boss), alert.Silence{Selector: "site=home-9", Why: "The owner is moving house.", Until: time.Now().Add(time.Hour)}))(t)
	_, _, err := b.alerts.AddReceiver(t.Context(), alert.Actor(boss), alert.Receiver{Name: "Night shift", Kind: alert.Webhook, Address: "http://127.0.0.1:1/hook", Severity: fleetapi.SeverityError})
	check(t, err)
	b.order = must(b.jobs.QueueBulk(t.Context(), job.Actor(boss), job.Bulk{Selector: "region=west", Kind: fleetapi.KindBenchmark, Key: "k"}))(t).ID
	west, _, err := b.jobs.List(t.Context(), job.Actor(boss), job.Query{Bulk: b.order})
	check(t, err)
	for n, state := range []fleetapi.JobState{fleetapi.Succeeded, fleetapi.Failed, fleetapi.InProgress} {
		must(b.jobs.Receive(t.Context(), []job.Status{{Device: west[n].Device, At: time.Now(), Status: &fleetapi.JobStatus{
			Origin: fleetapi.Origin{Journal: 9, Seq: 1}, At: time.Now(), Job: west[n].ID, State: state, Version: 1, Detail: "As far as that.", Results: fleetapi.Labels(map[string]string{"score": "812"}),
		}}}))(t)
	}
	b.job = "/fleet/boxes/" + string(west[0].Device) + "/jobs/" + west[0].ID
	b.fire()
	return id
}
