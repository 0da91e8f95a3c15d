package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cosmos/gogoproto/proto"
	gateway "github.com/grpc-ecosystem/grpc-gateway/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"

	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/runtime"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	"github.com/cosmos/cosmos-sdk/testutil"
	sdk "github.com/cosmos/cosmos-sdk/types"
	sdkerrors "github.com/cosmos/cosmos-sdk/types/errors"
	"github.com/cosmos/cosmos-sdk/types/query"
)

// akashPrefix makes addresses begin with akash1, as the chain's programs do.
var akashPrefix = sync.OnceFunc(func() {
	sdk.GetConfig().SetBech32PrefixForAccount("akash", "akashpub")
})

// protoCodec knows the module's messages.
var protoCodec = sync.OnceValue(func() codec.Codec {
	registry := codectypes.NewInterfaceRegistry()
	AppModule{}.RegisterInterfaces(registry)
	return codec.NewProtoCodec(registry)
})

// person is an account of the tests.
func person(name string) string {
	akashPrefix()
	return sdk.AccAddress(fmt.Sprintf("%-20s", name)).String()
}

// world is the module over a store in memory.
type world struct {
	ctx     sdk.Context
	k       *Keeper
	msgs    auditv1.MsgServer
	queries auditv1.QueryServer
}

func newWorld(t testing.TB) *world {
	key := storetypes.NewKVStoreKey(StoreKey)
	k, err := NewKeeper(protoCodec(), runtime.NewKVStoreService(key))
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		ctx: testutil.DefaultContextWithKeys(map[string]*storetypes.KVStoreKey{StoreKey: key}, nil, nil),
		k:   k, msgs: NewMsgServer(k), queries: NewQueryServer(k),
	}
}

// attributes are written "key=value key=value".
func attributes(text string) (list []attributesv1.Attribute) {
	for word := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(word, "=")
		list = append(list, attributesv1.Attribute{Key: key, Value: value})
	}
	return list
}

func (w *world) sign(owner, auditor, text string) error {
	_, err := w.msgs.SignProviderAttributes(w.ctx, &auditv1.MsgSignProviderAttributes{
		Owner: person(owner), Auditor: person(auditor), Attributes: attributes(text),
	})
	return err
}

func (w *world) delete(owner, auditor string, keys ...string) error {
	_, err := w.msgs.DeleteProviderAttributes(w.ctx, &auditv1.MsgDeleteProviderAttributes{
		Owner: person(owner), Auditor: person(auditor), Keys: keys,
	})
	return err
}

// signed says what an auditor signed about a provider.
func (w *world) signed(t testing.TB, owner, auditor string) string {
	t.Helper()
	o, a, err := parties(person(owner), person(auditor))
	succeeds(t, err)
	record, found, err := w.k.GetProviderByAuditor(w.ctx, o, a)
	succeeds(t, err)
	if found != (len(record.Attributes) > 0) {
		t.Errorf("found %v with %d attributes", found, len(record.Attributes))
	}
	var words []string
	for _, a := range record.Attributes {
		words = append(words, a.Key+"="+a.Value)
	}
	return strings.Join(words, " ")
}

func refused(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func succeeds(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMessages(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name string
		do   func() error
		want error
		left string // what x has signed about p
	}{
		{"signing stores the attributes by key", func() error { return w.sign("p", "x", "tier=community region=eu") }, nil, "region=eu tier=community"},
		{"signing again merges, and replaces the same keys", func() error { return w.sign("p", "x", "region=us host=box") }, nil, "host=box region=us tier=community"},
		{"another auditor's signature is another record", func() error { return w.sign("p", "y", "region=mars") }, nil, "host=box region=us tier=community"},
		{"signing nothing is refused", func() error { return w.sign("p", "x", "") }, sdkerrors.ErrInvalidRequest, "host=box region=us tier=community"},
		{"signing an invalid key is refused", func() error { return w.sign("p", "x", "re*=eu") }, sdkerrors.ErrInvalidRequest, "host=box region=us tier=community"},
		{"signing a key twice is refused", func() error { return w.sign("p", "x", "region=a region=b") }, sdkerrors.ErrInvalidRequest, "host=box region=us tier=community"},
		{"deleting an unsigned key is refused", func() error { return w.delete("p", "x", "host", "nothing") }, ErrAttributeNotFound, "host=box region=us tier=community"},
		{"deleting a key twice is refused", func() error { return w.delete("p", "x", "host", "host") }, sdkerrors.ErrInvalidRequest, "host=box region=us tier=community"},
		{"deleting keys leaves the others", func() error { return w.delete("p", "x", "tier", "host") }, nil, "region=us"},
		{"deleting the last key removes the record", func() error { return w.delete("p", "x", "region") }, nil, ""},
		{"deleting from no record is refused", func() error { return w.delete("p", "x") }, ErrProviderNotFound, ""},
		{"a removed record may be signed again", func() error { return w.sign("p", "x", "a1=b a2=b a3=b") }, nil, "a1=b a2=b a3=b"},
		{"deleting with no keys removes all", func() error { return w.delete("p", "x") }, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.do(); tc.want != nil {
				refused(t, err, tc.want)
			} else {
				succeeds(t, err)
			}
			if got := w.signed(t, "p", "x"); got != tc.left {
				t.Errorf("got %q, want %q", got, tc.left)
			}
			succeeds(t, w.k.Invariants(w.ctx))
		})
	}
	if got := w.signed(t, "p", "y"); got != "region=mars" {
		t.Errorf("the other auditor's is %q", got)
	}
	created, deleted := 0, 0
	for _, e := range w.ctx.EventManager().ABCIEvents() {
		switch e.Type {
		case "akash.audit.v1.EventTrustedAuditorCreated":
			created++
		case "akash.audit.v1.EventTrustedAuditorDeleted":
			deleted++
		}
		if len(e.Attributes) != 2 || e.Attributes[0].Key != "auditor" || e.Attributes[1].Key != "owner" || e.Attributes[1].Value != `"`+person("p")+`"` {
			t.Errorf("event has %v", e.Attributes)
		}
	}
	if created != 4 || deleted != 3 {
		t.Errorf("%d signatures and %d deletions are told, want 4 and 3", created, deleted)
	}
}

func TestARecordIsBounded(t *testing.T) {
	w := newWorld(t)
	var words []string
	for i := range attributesv1.MaxAttributes {
		words = append(words, fmt.Sprintf("k%03d=v", i))
	}
	succeeds(t, w.sign("p", "x", strings.Join(words, " ")))
	succeeds(t, w.sign("p", "x", "k000=other"))
	refused(t, w.sign("p", "x", "one=more"), sdkerrors.ErrInvalidRequest)
}

func TestAddressesAreChecked(t *testing.T) {
	one, upper := attributes("region=eu"), strings.ToUpper(person("p"))
	for _, parties := range [][2]string{{"", person("x")}, {person("p"), ""}, {upper, person("x")}, {"nobody", "nobody"}} {
		refused(t, ValidateSignProviderAttributes(&auditv1.MsgSignProviderAttributes{Owner: parties[0], Auditor: parties[1], Attributes: one}), ErrInvalidAddress)
		refused(t, ValidateDeleteProviderAttributes(&auditv1.MsgDeleteProviderAttributes{Owner: parties[0], Auditor: parties[1]}), ErrInvalidAddress)
	}
}

// names says whose records an answer has, as provider-auditor.
func names(res *auditv1.QueryProvidersResponse) string {
	short := map[string]string{person("p"): "p", person("q"): "q", person("x"): "x", person("y"): "y"}
	var words []string
	for _, r := range res.Providers {
		words = append(words, short[r.Owner]+"-"+short[r.Auditor])
	}
	return strings.Join(words, " ")
}

func TestQueries(t *testing.T) {
	w := newWorld(t)
	res, err := w.queries.AllProvidersAttributes(w.ctx, &auditv1.QueryAllProvidersAttributesRequest{})
	succeeds(t, err)
	bz, err := protoCodec().MarshalJSON(res)
	succeeds(t, err)
	if got, want := string(bz), `{"providers":[],"pagination":{"next_key":null,"total":"0"}}`; got != want {
		t.Errorf("nothing signed is %s, want %s", got, want)
	}
	for _, pair := range []string{"px", "py", "qx"} {
		succeeds(t, w.sign(pair[:1], pair[1:], "region=eu"))
	}
	for _, tc := range []struct {
		name string
		ask  func(page *query.PageRequest) (*auditv1.QueryProvidersResponse, error)
		want string
	}{
		{"all records are listed", func(page *query.PageRequest) (*auditv1.QueryProvidersResponse, error) {
			return w.queries.AllProvidersAttributes(w.ctx, &auditv1.QueryAllProvidersAttributesRequest{Pagination: page})
		}, "p-x p-y q-x"},
		{"a provider's records are listed", func(page *query.PageRequest) (*auditv1.QueryProvidersResponse, error) {
			return w.queries.ProviderAttributes(w.ctx, &auditv1.QueryProviderAttributesRequest{Owner: person("p"), Pagination: page})
		}, "p-x p-y"},
		{"an auditor's records are listed", func(page *query.PageRequest) (*auditv1.QueryProvidersResponse, error) {
			return w.queries.AuditorAttributes(w.ctx, &auditv1.QueryAuditorAttributesRequest{Auditor: person("x"), Pagination: page})
		}, "p-x q-x"},
		{"an unknown provider's list is empty", func(page *query.PageRequest) (*auditv1.QueryProvidersResponse, error) {
			return w.queries.ProviderAttributes(w.ctx, &auditv1.QueryProviderAttributesRequest{Owner: person("z"), Pagination: page})
		}, ""},
		{"an unknown auditor's list is empty", func(page *query.PageRequest) (*auditv1.QueryProvidersResponse, error) {
			return w.queries.AuditorAttributes(w.ctx, &auditv1.QueryAuditorAttributesRequest{Auditor: person("z"), Pagination: page})
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, err := tc.ask(nil)
			succeeds(t, err)
			if got := names(res); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			var paged []string
			for page := (&query.PageRequest{Limit: 1}); ; {
				res, err := tc.ask(page)
				succeeds(t, err)
				paged = append(paged, names(res))
				if page.Key = res.Pagination.NextKey; len(page.Key) == 0 {
					break
				}
			}
			if got := strings.Join(paged, " "); got != tc.want {
				t.Errorf("page by page %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("one auditor's record of one provider is found", func(t *testing.T) {
		res, err := w.queries.ProviderAuditorAttributes(w.ctx, &auditv1.QueryProviderAuditorRequest{Owner: person("p"), Auditor: person("y")})
		succeeds(t, err)
		if got := names(res); got != "p-y" {
			t.Errorf("got %q", got)
		}
		_, err = w.queries.ProviderAuditorAttributes(w.ctx, &auditv1.QueryProviderAuditorRequest{Owner: person("q"), Auditor: person("y")})
		if status.Code(err) != codes.NotFound {
			t.Errorf("got %v", err)
		}
	})
}

// restMarshaler writes answers as the chain's REST server does.
type restMarshaler struct {
	gateway.JSONBuiltin
}

func (m *restMarshaler) Marshal(v any) ([]byte, error) {
	if msg, ok := v.(proto.Message); ok {
		return protoCodec().MarshalJSON(msg)
	}
	return m.JSONBuiltin.Marshal(v)
}

func TestREST(t *testing.T) {
	w := newWorld(t)
	for _, pair := range []string{"px", "py", "qx"} {
		succeeds(t, w.sign(pair[:1], pair[1:], "region=eu"))
	}
	mux := gateway.NewServeMux(gateway.WithMarshalerOption(gateway.MIMEWildcard, &restMarshaler{}))
	succeeds(t, auditv1.RegisterQueryHandlerServer(t.Context(), mux, w.queries))
	for path, want := range map[string]string{
		"/akash/audit/v1/audit/attributes/list":                               "p-x p-y q-x",
		"/akash/audit/v1/audit/attributes/" + person("p") + "/list":           "p-x p-y",
		"/akash/audit/v1/audit/attributes/" + person("y") + "/" + person("p"): "p-y",
		"/akash/provider/v1/auditor/" + person("x") + "/list":                 "p-x q-x",
	} {
		req := httptest.NewRequestWithContext(context.WithValue(t.Context(), sdk.SdkContextKey, w.ctx), http.MethodGet, path, nil)
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, req)
		var res auditv1.QueryProvidersResponse
		if err := protoCodec().UnmarshalJSON(rec.Body.Bytes(), &res); err != nil || names(&res) != want {
			t.Errorf("%s: got %q (%v) in %s, want %q", path, names(&res), err, rec.Body, want)
		}
	}
}

func TestGenesisRefusesWhatNoChainHas(t *testing.T) {
	record := func(text string) auditv1.AuditedProvider {
		return auditv1.AuditedProvider{Owner: person("p"), Auditor: person("x"), Attributes: attributes(text)}
	}
	for name, state := range map[string][]auditv1.AuditedProvider{
		"an empty record":        {record("")},
		"an unsorted record":     {record("b1=1 a1=1")},
		"a record twice":         {record("a1=1"), record("a1=1")},
		"a record of nobody":     {{Attributes: attributes("a1=1")}},
		"a record with bad keys": {record("1=1")},
	} {
		w := newWorld(t)
		if err := w.k.InitGenesis(w.ctx, &auditv1.GenesisState{Providers: state}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// The records are those of a map of maps that does the same.
func TestAnySequenceOfMessagesKeepsTheInvariants(t *testing.T) {
	keys := []string{"aa", "bb", "cc"}
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		model := map[[2]string]map[string]string{}
		draw := func() [2]string {
			return [2]string{
				rapid.SampledFrom([]string{"p", "q"}).Draw(r, "owner"),
				rapid.SampledFrom([]string{"x", "y"}).Draw(r, "auditor"),
			}
		}
		some := func() []string {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 0, 3, rapid.ID[string]).Draw(r, "keys")
		}
		r.Repeat(map[string]func(*rapid.T){
			"sign": func(r *rapid.T) {
				who, chosen := draw(), some()
				value := rapid.SampledFrom([]string{"1", "2"}).Draw(r, "value")
				var text string
				for _, key := range chosen {
					text += " " + key + "=" + value
				}
				if ok := w.sign(who[0], who[1], text) == nil; ok != (len(chosen) > 0) {
					r.Fatalf("signing %q: %v", text, ok)
				}
				for _, key := range chosen {
					if model[who] == nil {
						model[who] = map[string]string{}
					}
					model[who][key] = value
				}
			},
			"delete": func(r *rapid.T) {
				who, chosen := draw(), some()
				want := model[who] != nil
				for _, key := range chosen {
					if _, ok := model[who][key]; !ok {
						want = false
					}
				}
				if ok := w.delete(who[0], who[1], chosen...) == nil; ok != want {
					r.Fatalf("deleting %q: %v, want %v", chosen, ok, want)
				}
				if !want {
					return
				}
				for _, key := range chosen {
					delete(model[who], key)
				}
				if len(chosen) == 0 || len(model[who]) == 0 {
					delete(model, who)
				}
			},
			"": func(r *rapid.T) {
				if err := w.k.Invariants(w.ctx); err != nil {
					r.Fatal(err)
				}
				for who, want := range model {
					var words []string
					for _, key := range slices.Sorted(maps.Keys(want)) {
						words = append(words, key+"="+want[key])
					}
					if got, want := w.signed(t, who[0], who[1]), strings.Join(words, " "); got != want {
						r.Fatalf("%v: got %q, want %q", who, got, want)
					}
				}
			},
		})
		cdc := protoCodec()
		exported := NewAppModule(cdc, w.k).ExportGenesis(w.ctx, cdc)
		next := newWorld(t)
		n := NewAppModule(cdc, next.k)
		if err := n.ValidateGenesis(cdc, nil, exported); err != nil {
			r.Fatal(err)
		}
		n.InitGenesis(next.ctx, cdc, exported)
		if again := n.ExportGenesis(next.ctx, cdc); !bytes.Equal(again, exported) {
			r.Fatalf("got  %s\nwant %s", again, exported)
		}
		if err := next.k.Invariants(next.ctx); err != nil {
			r.Fatal(err)
		}
	})
}

// FuzzSignAttributes decodes a message and checks that judging it does not
// panic, and that one that passes is stored as a record that genesis accepts.
func FuzzSignAttributes(f *testing.F) {
	seed := auditv1.MsgSignProviderAttributes{Owner: person("p"), Auditor: person("x"), Attributes: attributes("region=eu tier=a")}
	wire, err := seed.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var msg auditv1.MsgSignProviderAttributes
		if msg.Unmarshal(wire) != nil || ValidateSignProviderAttributes(&msg) != nil {
			return
		}
		merged := merge(attributes("aa=1 zz=1"), msg.Attributes)
		record := auditv1.AuditedProvider{Owner: msg.Owner, Auditor: msg.Auditor, Attributes: merged}
		if err := validateRecord(record); err != nil && len(merged) <= attributesv1.MaxAttributes {
			t.Fatal(err)
		}
	})
}

// FuzzDeleteAttributes does so with deletions.
func FuzzDeleteAttributes(f *testing.F) {
	seed := auditv1.MsgDeleteProviderAttributes{Owner: person("p"), Auditor: person("x"), Keys: []string{"aa"}}
	wire, err := seed.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Fuzz(func(t *testing.T, wire []byte) {
		var msg auditv1.MsgDeleteProviderAttributes
		if msg.Unmarshal(wire) != nil || ValidateDeleteProviderAttributes(&msg) != nil {
			return
		}
		left, err := without(attributes("aa=1 bb=1 cc=1"), msg.Keys)
		if want := 3 - len(msg.Keys); err == nil && len(msg.Keys) > 0 && len(left) != want {
			t.Fatalf("%d are left, want %d", len(left), want)
		}
	})
}

func TestAPageHasALimit(t *testing.T) {
	for _, tc := range []struct {
		name      string
		ask, want uint64
	}{
		{"none is a page of the usual size", 0, pageSize},
		{"what is asked for is given", 7, 7},
		{"more than the module allows is cut", 1 << 40, maxPage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			page, err := pageOf(&query.PageRequest{Limit: tc.ask})
			if err != nil {
				t.Fatal(err)
			}
			if page.Limit != tc.want {
				t.Errorf("limit is %d, want %d", page.Limit, tc.want)
			}
		})
	}
}
