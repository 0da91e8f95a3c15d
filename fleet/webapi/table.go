package webapi

import (
	"net/http"
	"slices"

	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

const telemetryTag = "telemetry"

// Parameters that many lists have.
var (
	limit    = Param{Name: "limit", Type: "integer", About: "how many, 1 to 500; default 50"}
	cursor   = Param{Name: "cursor", Type: "string", About: "next of the page before"}
	selector = Param{Name: "selector", Type: "string", About: `labels, as Kubernetes writes them: "site=lab,gpu,!broken,tier in (a,b)"`}
)

func page(more ...Param) []Param { return append(more, cursor, limit) }

func text(name, about string) Param { return Param{Name: name, Type: "string", About: about} }

// Routes is every route.
func Routes() []Route {
	table := slices.Concat(deviceRoutes(), ownershipRoutes(), jobRoutes(), alertRoutes(), receiverRoutes(), fleetRoutes())
	for i := range table {
		table[i].Pattern = fleetclient.Prefix + table[i].Pattern
	}
	return table
}

func (r Route) with(a action) Route {
	r.In, r.Out, r.do = a.in, a.out, a.do
	return r
}

// Permissions that more than one route needs.
var (
	readDevice  = may(rights.Device, rights.Read)
	retire      = may(rights.Device, rights.Retire)
	transfer    = may(rights.Device, rights.Transfer)
	claims      = may(rights.Claim, rights.Create)
	bundle      = may(rights.Device, rights.Bundle)
	startJob    = may(rights.Job, rights.Start)
	readJob     = may(rights.Job, rights.Read)
	readAlert   = may(rights.Alert, rights.Read)
	writeAlert  = may(rights.Alert, rights.Write)
	readHook    = may(rights.Webhook, rights.Read)
	writeHook   = may(rights.Webhook, rights.Write)
	readGroup   = may(rights.Group, rights.Read)
	writeGroup  = may(rights.Group, rights.Write)
	readPerson  = may(rights.Person, rights.Read)
	writePerson = may(rights.Person, rights.Write)
	telemetry   = may(rights.Telemetry, rights.Read)
)

func deviceRoutes() []Route {
	return tagged("devices", []Route{
		Route{Method: http.MethodGet, Pattern: "/devices", Summary: "List boxes", Need: need(readDevice), Params: page(
			selector, text("state", "of the claim: unclaimed, claiming, claimed, transferring, accepting, released or retired"),
			Param{Name: "online", Type: "boolean", About: "those that are, or are not"}, text("release", "that they run"), text("board", "hardware model"),
			text("owner", "account; staff only"), text("sort", "id (default), name or seen (longest silent first)"),
		)}.with(answers((*call).listDevices)),
		Route{Method: http.MethodGet, Pattern: "/search", Summary: "Find boxes by one line of text", Need: need(readDevice), Params: []Param{
			{Name: "q", Type: "string", Required: true, About: "beginning of an id, short name, serial number, address or word of a name; for staff also an owner's e-mail address or a claim code"},
		}}.with(answers((*call).search)),
		Route{Method: http.MethodGet, Pattern: "/devices/{device}", Summary: "Read a box, with what it says about itself", Need: need(readDevice)}.with(answers((*call).getDevice)),
		Route{Method: http.MethodPatch, Pattern: "/devices/{device}", Summary: "Change a box's name, labels or interval of readings; labels are merged, null takes one away", Need: need(may(rights.Device, rights.Rename), may(rights.Device, rights.Label))}.with(takes((*call).changeDevice)),
		Route{Method: http.MethodGet, Pattern: "/devices/{device}/events", Summary: "Read a box's timeline, newest first", Need: need(readDevice), Params: page()}.with(answers((*call).events)),
		Route{Method: http.MethodGet, Pattern: "/devices/{device}/log", Summary: "Read lines of a box's log, oldest first", Need: need(readDevice), Params: []Param{
			{Name: "after", Type: "integer", About: "number of a line; without one, the newest lines"}, limit,
		}}.with(answers((*call).logLines)),
		{Method: http.MethodGet, Pattern: "/devices/watch", Summary: "Watch boxes: a stream of changes, first how things are; at most 1,000 boxes", Need: need(readDevice), Params: []Param{selector}, Produces: "text/event-stream", stream: (*call).watchDevices},
		{Method: http.MethodGet, Pattern: "/devices/{device}/watch", Summary: "Watch a box: a stream of changes, first how it is", Need: need(readDevice), Produces: "text/event-stream", stream: (*call).watchDevice},
	})
}

func ownershipRoutes() []Route {
	return tagged("ownership", []Route{
		Route{Method: http.MethodPost, Pattern: "/claims", Summary: "Find the box of a claim code, and keep it for ten minutes", Need: need(claims)}.with(takes((*call).startClaim)),
		Route{Method: http.MethodPost, Pattern: "/claims/{device}/confirm", Summary: "Make the box one's own", Need: need(claims)}.with(answers((*call).confirmClaim)),
		Route{Method: http.MethodDelete, Pattern: "/claims/{device}", Summary: "Let go of a box that was found", Need: need(claims)}.with(done((*call).undoClaim)),
		Route{Method: http.MethodPost, Pattern: "/devices/{device}/transfer", Summary: "Make the code with which somebody else can claim the box, once", Need: need(transfer), secret: true}.with(answers((*call).offerTransfer)),
		Route{Method: http.MethodDelete, Pattern: "/devices/{device}/transfer", Summary: "Take that code back", Need: need(transfer)}.with(done((*call).withdrawTransfer)),
		Route{Method: http.MethodPost, Pattern: "/devices/{device}/release", Summary: "Give a box up: it is nobody's then", Need: need(may(rights.Device, rights.Release))}.with(done((*call).release)),
		Route{Method: http.MethodPost, Pattern: "/devices/{device}/retire", Summary: "Take a box out of the fleet for good", Need: need(retire)}.with(done((*call).retire)),
		Route{Method: http.MethodPost, Pattern: "/devices/{device}/revoke", Summary: "Make a box's certificates worthless; it enrols again", Need: need(retire)}.with(done((*call).revoke)),
		Route{Method: http.MethodPost, Pattern: "/devices/{device}/free-voucher", Summary: "Let another key come with the voucher of a retired box", Need: need(may(rights.Serial, rights.Write)), Everything: true}.with(done((*call).freeVoucher)),
		Route{Method: http.MethodPost, Pattern: "/serials", Summary: "Import serial numbers, as croft factory writes them: CSV with serial_number, voucher and claim", Need: need(may(rights.Serial, rights.Write)), Everything: true, Accepts: "text/csv"}.with(answers((*call).importSerials)),
		Route{Method: http.MethodGet, Pattern: "/groups", Summary: "List groups of boxes", Need: need(readGroup), Everything: true}.with(answers((*call).groups)),
		Route{Method: http.MethodPost, Pattern: "/groups", Summary: "Make a group", Need: need(writeGroup), Everything: true}.with(takes((*call).addGroup)),
		Route{Method: http.MethodPut, Pattern: "/groups/{id}", Summary: "Change a group", Need: need(writeGroup), Everything: true}.with(takes((*call).changeGroup)),
		Route{Method: http.MethodDelete, Pattern: "/groups/{id}", Summary: "Delete a group; its boxes stay", Need: need(writeGroup), Everything: true}.with(done((*call).deleteGroup)),
	})
}

func jobRoutes() []Route {
	return tagged("jobs", []Route{
		Route{Method: http.MethodPost, Pattern: "/jobs", Summary: "Ask a box: reboot, bundle, benchmark or locate", Need: need(startJob, bundle), keyed: true}.with(takes((*call).startJob)),
		Route{Method: http.MethodPost, Pattern: "/jobs/bulk", Summary: "Ask all boxes that a selector matches; the idempotency key is required", Need: need(startJob, bundle), Everything: true, keyed: true}.with(takes((*call).startJobs)),
		Route{Method: http.MethodGet, Pattern: "/jobs", Summary: "List jobs, newest first; one of device, bulk and pending is needed", Need: need(readJob), Params: page(
			text("device", "id of a box"), text("bulk", "jobs ordered together"), Param{Name: "pending", Type: "boolean", About: "those that are not ended"},
		)}.with(answers((*call).listJobs)),
		Route{Method: http.MethodGet, Pattern: "/jobs/{id}", Summary: "Read a job", Need: need(readJob)}.with(answers((*call).getJob)),
		Route{Method: http.MethodGet, Pattern: "/jobs/{id}/history", Summary: "Read what the box said about a job", Need: need(readJob)}.with(answers((*call).history)),
		Route{Method: http.MethodPost, Pattern: "/jobs/{id}/cancel", Summary: "Take a job back", Need: need(startJob)}.with(answers((*call).cancelJob)),
		Route{Method: http.MethodPost, Pattern: "/devices/{device}/bundles", Summary: "Ask a box for a support bundle", Need: need(bundle), keyed: true}.with(answers((*call).startBundle)),
		Route{Method: http.MethodGet, Pattern: "/devices/{device}/bundles", Summary: "List a box's support bundles, newest first", Need: need(bundle)}.with(answers((*call).listBundles)),
		{Method: http.MethodGet, Pattern: "/bundles/{id}", Summary: "Download a support bundle", Need: need(bundle), Produces: "application/octet-stream", stream: (*call).openBundle},
	})
}

func alertRoutes() []Route {
	return tagged("alerts", []Route{
		Route{Method: http.MethodGet, Pattern: "/alerts", Summary: "List alerts, newest first", Need: need(readAlert), Params: page(
			Param{Name: "firing", Type: "boolean", About: "only those that fire"}, text("device", "id of a box"), text("rule", "id of a rule"),
		)}.with(answers((*call).listAlerts)),
		Route{Method: http.MethodPost, Pattern: "/alerts/{id}/ack", Summary: "Take an alert on", Need: need(writeAlert), Everything: true}.with(takes((*call).ack)),
		Route{Method: http.MethodGet, Pattern: "/rules", Summary: "List alert rules, the built-in ones first", Need: need(readAlert), Everything: true}.with(answers((*call).rules)),
		Route{Method: http.MethodPost, Pattern: "/rules", Summary: "Make an alert rule", Need: need(writeAlert), Everything: true}.with(takes((*call).addRule)),
		Route{Method: http.MethodPut, Pattern: "/rules/{id}", Summary: "Change an alert rule, or a built-in one", Need: need(writeAlert), Everything: true}.with(takes((*call).changeRule)),
		Route{Method: http.MethodDelete, Pattern: "/rules/{id}", Summary: "Delete an alert rule, or bring a built-in one back as it was", Need: need(writeAlert), Everything: true}.with(done((*call).deleteRule)),
		Route{Method: http.MethodGet, Pattern: "/silences", Summary: "List silences that last", Need: need(readAlert), Everything: true}.with(answers((*call).silences)),
		Route{Method: http.MethodPost, Pattern: "/silences", Summary: "Hold alerts back for a time", Need: need(writeAlert), Everything: true}.with(takes((*call).addSilence)),
		Route{Method: http.MethodDelete, Pattern: "/silences/{id}", Summary: "End a silence", Need: need(writeAlert), Everything: true}.with(done((*call).endSilence)),
		Route{Method: http.MethodGet, Pattern: "/quiet-hours", Summary: "Read when one is left in peace", Need: need(readPerson)}.with(answers((*call).quietHours)),
		Route{Method: http.MethodPut, Pattern: "/quiet-hours", Summary: "Say when one is left in peace", Need: need(writePerson)}.with(takes((*call).setQuietHours)),
	})
}

func receiverRoutes() []Route {
	return tagged("receivers", []Route{
		Route{Method: http.MethodGet, Pattern: "/receivers", Summary: "List who is told of alerts: webhooks and e-mail addresses", Need: need(readHook), Everything: true}.with(answers((*call).receivers)),
		Route{Method: http.MethodPost, Pattern: "/receivers", Summary: "Make a receiver; the secret that signs a webhook's messages is told this once", Need: need(writeHook), Everything: true, secret: true}.with(takes((*call).addReceiver)),
		Route{Method: http.MethodPatch, Pattern: "/receivers/{id}", Summary: "Change a receiver's name, severity or selector", Need: need(writeHook), Everything: true}.with(takes((*call).changeReceiver)),
		Route{Method: http.MethodDelete, Pattern: "/receivers/{id}", Summary: "Delete a receiver", Need: need(writeHook), Everything: true}.with(done((*call).deleteReceiver)),
		Route{Method: http.MethodPost, Pattern: "/receivers/{id}/test", Summary: "Send a receiver a message without alerts", Need: need(writeHook), Everything: true}.with(done((*call).tryReceiver)),
		Route{Method: http.MethodGet, Pattern: "/receivers/{id}/messages", Summary: "List what a receiver was told, newest first", Need: need(readHook), Everything: true, Params: page()}.with(answers((*call).messages)),
	})
}

func fleetRoutes() []Route {
	prometheus := func(method, path, summary string) Route {
		return Route{Method: method, Pattern: "/prometheus/api/v1/" + path, Summary: summary, Tag: telemetryTag, Need: need(telemetry), Produces: "application/json", stream: (*call).prometheus}
	}
	return append(tagged("fleet", []Route{
		Route{Method: http.MethodGet, Pattern: "/whoami", Summary: "Read who the caller is"}.with(answers((*call).whoAmI)),
		Route{Method: http.MethodGet, Pattern: "/overview", Summary: "Read the fleet in numbers", Need: need(may(rights.Fleet, rights.Read)), Everything: true}.with(answers((*call).countFleet)),
		Route{Method: http.MethodGet, Pattern: "/owners", Summary: "List owners", Need: need(readPerson), Everything: true, Params: page(text("q", "beginning of an e-mail address or name"))}.with(answers((*call).owners)),
		Route{Method: http.MethodGet, Pattern: "/owners/{id}", Summary: "Read an owner's account", Need: need(readPerson)}.with(answers((*call).owner)),
		Route{Method: http.MethodGet, Pattern: "/audit", Summary: "List who changed what, newest first", Need: need(may(rights.AuditLog, rights.Read)), Everything: true, Params: page(
			text("actor", "account"), text("object", "id of what was changed"), text("action", "a word, or with a dot at the end all that begin so"), text("address", "of the client"),
			Param{Name: "from", Type: "date-time", About: "not before"}, Param{Name: "until", Type: "date-time", About: "before"},
		)}.with(answers((*call).audit)),
		{Method: http.MethodGet, Pattern: "/openapi.json", Summary: "Read this document", Public: true, Produces: "application/json", stream: (*call).describe},
	}),
		prometheus(http.MethodGet, "{what...}", "Ask as in the Prometheus HTTP API: query, query_range, series, labels, label/NAME/values, metadata"),
		prometheus(http.MethodPost, "{what...}", "Ask with a form"),
	)
}

func tagged(tag string, routes []Route) []Route {
	for i := range routes {
		routes[i].Tag = tag
	}
	return routes
}
