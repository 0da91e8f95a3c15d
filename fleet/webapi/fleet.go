package webapi

import (
	"context"
	"net/http"
	"time"

	"github.com/croft-cloud/croft/fleet/alert"
	"github.com/croft-cloud/croft/fleet/auditlog"
	"github.com/croft-cloud/croft/fleet/auth"
	"github.com/croft-cloud/croft/fleet/auth/rights"
	"github.com/croft-cloud/croft/fleet/device"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
	"github.com/croft-cloud/croft/fleet/timeseries"
)

func (k *call) whoAmI() (fleetclient.WhoAmI, error) {
	return fleetclient.WhoAmI{
		Account: k.p.Account, Role: string(k.p.Role), Name: k.p.Name, Token: k.p.Token,
		Scopes: items(k.p.Scopes, rights.Permission.String),
	}, nil
}

// overviewLife is how old an overview may be: counting reads every box.
const overviewLife = 5 * time.Second

func (k *call) countFleet() (fleetclient.Overview, error) {
	k.mu.Lock()
	old, at := k.overview, k.counted
	k.mu.Unlock()
	if time.Since(at) < overviewLife {
		return old, nil
	}
	ctx := k.r.Context()
	counts, err := k.cfg.Devices.Overview(ctx)
	if err != nil {
		return fleetclient.Overview{}, err
	}
	firing, _, err := k.cfg.Alerts.List(ctx, alert.Actor{ID: k.p.Account, Staff: true}, alert.Query{Firing: true, Limit: 500})
	if err != nil {
		return fleetclient.Overview{}, err
	}
	now := fleetclient.Overview{Firing: len(firing), Counts: items(counts, func(c device.Count) fleetclient.Count {
		return fleetclient.Count{Board: c.Board, Release: c.Release, State: string(c.State), Online: c.Online, All: c.All}
	})}
	for _, c := range counts {
		if c.State != ownership.Retired {
			now.Total += c.All
			now.Online += c.Online
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.overview, k.counted = now, time.Now()
	return now, nil
}

func accountOf(a auth.Account) fleetclient.Account {
	return fleetclient.Account{ID: a.ID, Role: string(a.Role), Name: a.Name, Email: a.Email, Disabled: a.Disabled, Created: fleetapi.StampOf(a.Created)}
}

func (k *call) owners() (fleetclient.Page[fleetclient.Account], error) {
	found, next, err := k.cfg.Auth.Accounts(k.r.Context(), k.p, rights.RoleOwner, k.q.Get("q"), k.q.Get("cursor"), k.integer("limit"))
	return listOf(found, next, err, accountOf)
}

func (k *call) owner() (fleetclient.Account, error) {
	found, err := k.cfg.Auth.Account(k.r.Context(), k.p, k.r.PathValue("id"))
	if err == nil && found.Role.Staff() && found.ID != k.p.Account {
		err = errNothing // who is of the staff is for admins, elsewhere
	}
	if err != nil {
		return fleetclient.Account{}, err
	}
	return accountOf(found), nil
}

func (k *call) audit() (fleetclient.Page[fleetclient.AuditEntry], error) {
	found, next, err := k.cfg.AuditLog.Search(k.r.Context(), auditlog.Query{
		Actor: k.q.Get("actor"), Object: k.q.Get("object"), Action: k.q.Get("action"), Address: k.q.Get("address"),
		From: k.at("from"), Until: k.at("until"), Cursor: k.q.Get("cursor"), Limit: k.integer("limit"),
	})
	return listOf(found, next, err, func(n auditlog.Numbered) fleetclient.AuditEntry {
		return fleetclient.AuditEntry{
			Seq: n.Seq, ID: n.ID, At: fleetapi.StampOf(n.At), Actor: n.Actor, Role: n.Role, Address: n.Address,
			Action: n.Action, Kind: n.Kind, Object: n.Object, Before: n.Before, After: n.After,
		}
	})
}

func (k *call) describe() error {
	k.w.Header().Set("Content-Type", "application/json")
	_, _ = k.w.Write(k.document) // the client went away
	return nil
}

type scopeKey struct{}

// prometheus answers as Prometheus does, errors too.
func (k *call) prometheus() error {
	scope, err := k.scope(k.r.Context())
	if err != nil {
		return err
	}
	k.query.ServeHTTP(k.w, k.r.WithContext(context.WithValue(k.r.Context(), scopeKey{}, scope)))
	return nil
}

// scope is the boxes whose readings the caller may see.
func (k *call) scope(ctx context.Context) (timeseries.Scope, error) {
	actor := k.actor(telemetry)
	if actor.Staff {
		return timeseries.Scope{All: true}, nil
	}
	var scope timeseries.Scope
	for q := (device.Query{Limit: 500}); ; {
		boxes, next, err := k.cfg.Devices.List(ctx, actor, q)
		if err != nil {
			return scope, err
		}
		for _, b := range boxes {
			scope.Devices = append(scope.Devices, b.ID)
		}
		if next == "" {
			return scope, nil
		}
		q.Cursor = next
	}
}

func scopeOf(r *http.Request) (timeseries.Scope, error) {
	scope, _ := r.Context().Value(scopeKey{}).(timeseries.Scope) // without one: nothing
	return scope, nil
}
