// Package rights says who may do what to whose things, in one table.
//
//	p := rights.FromContext(r.Context())
//	if !rights.Allowed(p, rights.Rename, rights.Object{Resource: rights.Device, Owner: box.Owner}) { … }
//
// It knows nothing of how people sign in (package auth), does no I/O, and is for
// every part of the fleet to import.
package rights

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
)

// Role is what somebody is to the fleet.
type Role string

// The roles. All but owners are staff.
const (
	RoleOwner    Role = "owner"    // has boxes
	RoleSupport  Role = "support"  // helps owners; cannot touch a box's software or anybody's money
	RoleOperator Role = "operator" // runs the fleet
	RoleAdmin    Role = "admin"    // decides who is staff
)

// Roles is every role, the weakest first.
func Roles() []Role { return []Role{RoleOwner, RoleSupport, RoleOperator, RoleAdmin} }

// Staff reports whether r works for the fleet.
func (r Role) Staff() bool { return r == RoleSupport || r == RoleOperator || r == RoleAdmin }

// Resource is a kind of thing somebody may do something to.
type Resource string

// Action is what is done to it.
type Action string

// Permission is one line of the table.
type Permission struct {
	Resource Resource
	Action   Action
}

// String is the permission as it stands in scopes: "device:read".
func (p Permission) String() string { return string(p.Resource) + ":" + string(p.Action) }

// ParsePermission accepts the text of exactly the permissions in the table.
func ParsePermission(s string) (Permission, error) {
	resource, action, _ := strings.Cut(s, ":")
	p := Permission{Resource(resource), Action(action)}
	if _, ok := table[p]; !ok {
		return Permission{}, usage("%.60q is no permission", s)
	}
	return p, nil
}

// Whose says whose things a permission covers.
type Whose string

// What a permission covers.
const (
	None Whose = ""    // nothing
	Own  Whose = "own" // what has the account itself as its owner
	All  Whose = "all" // everybody's, and what is nobody's
)

// The resources and actions.
const (
	Device    Resource = "device"    // a box: its page, events, log, name, owner
	Claim     Resource = "claim"     // a claim in somebody's name
	Job       Resource = "job"       // what a box is asked to do once
	Group     Resource = "group"     // boxes by label query
	Telemetry Resource = "telemetry" // readings and charts
	Alert     Resource = "alert"     // rules, and who is told
	Serial    Resource = "serial"    // imported serial numbers and vouchers
	Rollout   Resource = "rollout"   // which release goes to whom
	Payout    Resource = "payout"    // rewards and their transfer
	Lease     Resource = "lease"     // what tenants rent on a box
	Fleet     Resource = "fleet"     // overview of all boxes, health of the service
	Webhook   Resource = "webhook"   // where the fleet calls
	Person    Resource = "account"   // somebody's account
	Staff     Resource = "staff"     // who is staff, in which role
	Session   Resource = "session"   // where somebody is signed in
	Token     Resource = "token"     // API tokens
	AuditLog  Resource = "audit"     // the audit log

	Read     Action = "read"
	Write    Action = "write"    // make, change, delete
	Rename   Action = "rename"   // of a box
	Transfer Action = "transfer" // of a box, to another owner
	Release  Action = "release"  // of a box, to nobody
	Retire   Action = "retire"   // of a box, for good; shut out its certificates
	Label    Action = "label"    // of a box: labels, interval, release
	Window   Action = "window"   // of a box: when it may be updated
	Bundle   Action = "bundle"   // of a box: collect and read a support bundle
	Start    Action = "start"    // of a job, and take it back
	Create   Action = "create"
	Pay      Action = "pay"     // fix and sign a payout
	Disable  Action = "disable" // of an account: shut out or let in again
)

// table is who may do what to whose things. What is not in it nobody may do.
var table = map[Permission][4]Whose{ // owner, support, operator, admin
	{Device, Read}:     {Own, All, All, All},
	{Device, Rename}:   {Own, All, All, All},
	{Device, Window}:   {Own, None, All, All},
	{Device, Transfer}: {Own, None, None, None},
	{Device, Release}:  {Own, None, None, None},
	{Device, Label}:    {None, None, All, All},
	{Device, Retire}:   {None, None, All, All},
	{Device, Bundle}:   {None, All, All, All},
	{Claim, Create}:    {Own, None, None, None},
	{Job, Read}:        {Own, All, All, All},
	{Job, Start}:       {Own, All, All, All},
	{Group, Read}:      {None, All, All, All},
	{Group, Write}:     {None, None, All, All},
	{Telemetry, Read}:  {Own, All, All, All},
	{Alert, Read}:      {Own, All, All, All},
	{Alert, Write}:     {None, None, All, All},
	{Serial, Read}:     {None, All, All, All},
	{Serial, Write}:    {None, None, All, All},
	{Rollout, Read}:    {None, All, All, All},
	{Rollout, Write}:   {None, None, All, All},
	{Payout, Read}:     {Own, All, All, All},
	{Payout, Write}:    {Own, None, None, None}, // the address one's rewards go to
	{Payout, Pay}:      {None, None, None, All},
	{Lease, Read}:      {Own, All, All, All},
	{Fleet, Read}:      {None, All, All, All},
	{Fleet, Write}:     {None, None, None, All},
	{Webhook, Read}:    {None, None, All, All},
	{Webhook, Write}:   {None, None, All, All},
	{Person, Read}:     {Own, All, All, All},
	{Person, Write}:    {Own, Own, Own, Own},
	{Person, Disable}:  {None, None, All, All},
	{Staff, Read}:      {None, None, None, All},
	{Staff, Write}:     {None, None, None, All},
	{Session, Read}:    {Own, Own, Own, All},
	{Session, Write}:   {Own, Own, Own, All},
	{Token, Read}:      {Own, Own, Own, All},
	{Token, Write}:     {Own, Own, Own, All},
	{AuditLog, Read}:   {None, None, All, All},
}

// Permissions is every line of the table, sorted.
func Permissions() []Permission {
	var all []Permission
	for p := range table {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Permission) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// Grants is whose things a role may do this to.
func (r Role) Grants(p Permission) Whose {
	if i := slices.Index(Roles(), r); i >= 0 {
		return table[p][i]
	}
	return None
}

// Object is a thing somebody wants to do something to.
type Object struct {
	Resource Resource
	Owner    string // account it belongs to; empty: nobody's
}

// Allowed reports whether p may do the action to the object. Everything that
// decides about rights asks here.
func Allowed(p Principal, action Action, on Object) bool {
	switch Reach(p, on.Resource, action) {
	case All:
		return true
	case Own:
		return on.Owner == p.Account
	case None:
	}
	return false
}

// Reach is whose things p may do the action to, for lists: with [Own] a list
// holds what has p.Account as its owner.
func Reach(p Principal, resource Resource, action Action) Whose {
	permission := Permission{resource, action}
	if p.Account == "" || p.Stage != StageFull || (p.Token != "" && !slices.Contains(p.Scopes, permission)) {
		return None
	}
	return p.Role.Grants(permission)
}

// ParseScopes reads permissions with spaces between them, sorted and once each.
func ParseScopes(text string) ([]Permission, error) {
	var scopes []Permission
	for word := range strings.FieldsSeq(text) {
		p, err := ParsePermission(word)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(scopes, p) {
			scopes = append(scopes, p)
		}
	}
	slices.SortFunc(scopes, func(a, b Permission) int { return strings.Compare(a.String(), b.String()) })
	return scopes, nil
}

// FormatScopes is what ParseScopes reads.
func FormatScopes(scopes []Permission) string { return strings.Trim(fmt.Sprint(scopes), "[]") }

// Stage is how far a sign-in has come.
type Stage string

// The stages.
const (
	StageFull   Stage = "full"   // signed in
	StageTOTP   Stage = "totp"   // the password was right; the code is missing. Transitions to: full
	StageEnroll Stage = "enroll" // has to set up TOTP first. Transitions to: full
)

// Principal is who asks: a session or a token of an account. The zero value is
// nobody, who is allowed nothing.
type Principal struct {
	Account string
	Role    Role
	Name    string
	Session string       // ses_…; empty for a token
	Token   string       // tok_…; empty for a session
	Scopes  []Permission // of the token
	Stage   Stage
	Proved  time.Time // when the session last showed who it is
}

type principalKey struct{}

// NewContext is a context in which p asks.
func NewContext(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// FromContext is who asks; nobody if that was never found out.
func FromContext(ctx context.Context) Principal {
	p, _ := ctx.Value(principalKey{}).(Principal)
	return p
}

func usage(format string, args ...any) error {
	return &croft.Error{Kind: croft.KindUsage, Err: fmt.Errorf(format, args...)}
}
