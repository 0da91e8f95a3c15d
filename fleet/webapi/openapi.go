package webapi

import (
	"cmp"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"strings"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/fleet/device/ownership"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/fleet/fleetclient"
)

// object is an object of JSON.
type object = map[string]any

var inPath = regexp.MustCompile(`\{([a-z]+)(\.\.\.)?\}`)

// openAPI is the OpenAPI document of the routes.
func openAPI(routes []Route) object {
	s := schemas{}
	problem := s.of(reflect.TypeFor[fleetclient.Problem]())
	paths := object{}
	for _, r := range routes {
		path := inPath.ReplaceAllString(r.Pattern, "{$1}")
		if paths[path] == nil {
			paths[path] = object{}
		}
		paths[path].(object)[strings.ToLower(r.Method)] = s.operation(r)
	}
	return object{
		"openapi": "3.0.3",
		"info": object{
			"title": "Croft fleet", "version": "1",
			"description": "Boxes, their owners, jobs, alerts and readings. Lists are pages: ask for the next one with cursor. " +
				"Errors are problem documents (RFC 9457). Unknown fields and parameters are refused.",
		},
		"security": []any{object{"token": []string{}}},
		"paths":    paths,
		"components": object{
			"schemas":         s.defined(),
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "description": "an API token, made in the console"}},
			"responses": object{"Problem": object{
				"description": "It was refused, or failed.", "content": object{fleetclient.ProblemType: object{"schema": problem}},
			}},
		},
	}
}

// schemas are the schemas of named types, by name.
type schemas map[string]object

func (s schemas) defined() object {
	out := object{}
	for name, schema := range s {
		out[name] = schema
	}
	return out
}

func (s schemas) operation(r Route) object {
	var scopes []string
	for _, n := range r.Need {
		scopes = append(scopes, n.String())
	}
	about := "For everybody."
	switch {
	case len(scopes) > 0:
		about = "Needs " + strings.Join(scopes, " or ")
		if r.Everything {
			about += ", and that for everybody's things"
		}
		about += "."
	case !r.Public:
		about = "For whoever is signed in."
	}
	var params []any
	for _, m := range inPath.FindAllStringSubmatch(r.Pattern, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, p := range r.Params {
		schema := object{"type": p.Type}
		if p.Type == "date-time" {
			schema = object{"type": "string", "format": "date-time"}
		}
		params = append(params, object{"name": p.Name, "in": "query", "required": p.Required, "description": p.About, "schema": schema})
	}
	if r.Method == http.MethodPost && r.stream == nil {
		params = append(params, object{
			"name": fleetclient.IdempotencyHeader, "in": "header", "schema": object{"type": "string", "maxLength": 128},
			"description": "sent again within 24 hours with the same key, the request does nothing twice",
		})
	}
	ok := object{"description": "It was done."}
	status := "204"
	if r.Out != nil || r.Produces != "" {
		schema := object{}
		if r.Out != nil {
			schema = s.of(r.Out)
		} else if r.Produces != "application/json" {
			schema = object{"type": "string", "format": "binary"}
		}
		status, ok = "200", object{"description": "It is here.", "content": object{cmp.Or(r.Produces, "application/json"): object{"schema": schema}}}
	}
	out := object{
		"operationId": operationID(r), "summary": r.Summary, "description": about, "tags": []string{r.Tag},
		"responses": object{status: ok, "default": object{"$ref": "#/components/responses/Problem"}},
	}
	if len(params) > 0 {
		out["parameters"] = params
	}
	if r.Public {
		out["security"] = []any{}
	}
	switch {
	case r.In != nil:
		out["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": s.of(r.In)}}}
	case r.Accepts != "":
		out["requestBody"] = object{"required": true, "content": object{r.Accepts: object{"schema": object{"type": "string"}}}}
	}
	return out
}

// operationID is a name for generated clients: get_devices_device_log.
func operationID(r Route) string {
	path := strings.TrimPrefix(r.Pattern, fleetclient.Prefix)
	return strings.ToLower(r.Method) + strings.TrimRight(regexp.MustCompile(`[^a-zA-Z]+`).ReplaceAllString(path, "_"), "_")
}

func texts[T ~string](all ...T) object {
	var words []any
	for _, one := range all {
		words = append(words, string(one))
	}
	return object{"type": "string", "enum": words}
}

// fixed are the schemas of types whose JSON is not what their Go form says, or
// which have a few values only.
var fixed = map[reflect.Type]object{
	reflect.TypeFor[fleetapi.Stamp]():       {"type": "string", "format": "date-time", "nullable": true},
	reflect.TypeFor[fleetclient.Duration](): {"type": "string", "description": "a time span such as 10s or 1h30m"},
	reflect.TypeFor[croft.DeviceID]():       {"type": "string", "pattern": "^[a-z2-7]{32}$"},
	reflect.TypeFor[fleetapi.JobState]():    texts(fleetapi.JobStates()...),
	reflect.TypeFor[fleetapi.Severity]():    texts(fleetapi.SeverityInfo, fleetapi.SeverityWarning, fleetapi.SeverityError, fleetapi.SeverityCritical),
}

// of is the schema of a type: a reference if it has a name.
func (s schemas) of(t reflect.Type) object {
	if schema, ok := fixed[t]; ok {
		return schema
	}
	switch t.Kind() {
	case reflect.Pointer:
		if t.Elem().Kind() == reflect.Struct {
			return s.of(t.Elem())
		}
		out := object{"nullable": true}
		maps.Copy(out, s.of(t.Elem()))
		return out
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer", "format": "int64"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Struct:
		name := t.Name()
		if page, ok := strings.CutPrefix(name, "Page["); ok {
			name = strings.TrimSuffix(page[strings.LastIndex(page, ".")+1:], "]") + "Page"
		}
		if s[name] == nil {
			s[name] = object{} // a type may hold itself
			s[name] = s.fields(t)
		}
		return object{"$ref": "#/components/schemas/" + name}
	default:
		panic("no schema for " + t.String()) // a mistake in the table: New fails its first test
	}
}

func (s schemas) fields(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		schema := s.of(f.Type)
		if t == reflect.TypeFor[fleetclient.Claim]() && name == "state" {
			schema = texts(ownership.States()...)
		}
		properties[name] = schema
		if options == "" && f.Type.Kind() != reflect.Pointer {
			required = append(required, name)
		}
	}
	out := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}
