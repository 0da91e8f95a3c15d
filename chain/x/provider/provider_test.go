package provider

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
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
	"github.com/croft-cloud/croft/chain/gogo/providerv1beta4"

	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/runtime"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	"github.com/cosmos/cosmos-sdk/testutil"
	sdk "github.com/cosmos/cosmos-sdk/types"
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
	msgs    providerv1beta4.MsgServer
	queries providerv1beta4.QueryServer
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

func (w *world) create(p providerv1beta4.Provider) error {
	msg := providerv1beta4.MsgCreateProvider(p)
	_, err := w.msgs.CreateProvider(w.ctx, &msg)
	return err
}

func (w *world) update(p providerv1beta4.Provider) error {
	msg := providerv1beta4.MsgUpdateProvider(p)
	_, err := w.msgs.UpdateProvider(w.ctx, &msg)
	return err
}

func (w *world) delete(owner string) error {
	_, err := w.msgs.DeleteProvider(w.ctx, &providerv1beta4.MsgDeleteProvider{Owner: owner})
	return err
}

func box(name string) providerv1beta4.Provider {
	return providerv1beta4.Provider{
		Owner:      person(name),
		HostURI:    "https://box.example.com:8443",
		Attributes: []attributesv1.Attribute{{Key: "region", Value: "eu-west"}, {Key: "capabilities/storage/1/class", Value: "beta3"}},
		Info:       providerv1beta4.Info{Email: "me@example.com", Website: "https://example.com/boxes?x=1"},
	}
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
	told := func(w *world) []string {
		var words []string
		for _, e := range w.ctx.EventManager().ABCIEvents() {
			words = append(words, fmt.Sprint(e.Type, e.Attributes[0].Key, e.Attributes[0].Value))
		}
		return words
	}
	t.Run("creating stores the provider and tells so", func(t *testing.T) {
		w := newWorld(t)
		succeeds(t, w.create(box("a")))
		owner, err := sdk.AccAddressFromBech32(person("a"))
		succeeds(t, err)
		got, found, err := w.k.Get(w.ctx, owner)
		if err != nil || !found || !reflect.DeepEqual(got, box("a")) {
			t.Errorf("got %v, %v, %v", got, found, err)
		}
		want := []string{`akash.provider.v1beta4.EventProviderCreatedowner"` + person("a") + `"`}
		if !slices.Equal(told(w), want) {
			t.Errorf("got %q, want %q", told(w), want)
		}
	})
	t.Run("an account is one provider", func(t *testing.T) {
		w := newWorld(t)
		succeeds(t, w.create(box("a")))
		refused(t, w.create(box("a")), ErrProviderExists)
	})
	t.Run("an update replaces all and tells so", func(t *testing.T) {
		w := newWorld(t)
		succeeds(t, w.create(box("a")))
		p := providerv1beta4.Provider{Owner: person("a"), HostURI: "https://new.example.com"}
		succeeds(t, w.update(p))
		res, err := w.queries.Provider(w.ctx, &providerv1beta4.QueryProviderRequest{Owner: person("a")})
		succeeds(t, err)
		if !reflect.DeepEqual(res.Provider, p) {
			t.Errorf("got %v", res.Provider)
		}
		if got := told(w); len(got) != 2 || !strings.HasPrefix(got[1], "akash.provider.v1beta4.EventProviderUpdated") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("an update of an unknown provider is refused", func(t *testing.T) {
		refused(t, newWorld(t).update(box("a")), ErrProviderNotFound)
	})
	t.Run("a delete answers an error and deletes nothing", func(t *testing.T) {
		w := newWorld(t)
		refused(t, w.delete(person("a")), ErrProviderNotFound)
		refused(t, w.delete("nobody"), ErrInvalidAddress)
		succeeds(t, w.create(box("a")))
		refused(t, w.delete(person("a")), ErrInternal)
		if got := told(w); len(got) != 1 {
			t.Errorf("told %q", got)
		}
		succeeds(t, w.update(box("a")))
	})
}

func TestValidateProvider(t *testing.T) {
	uri := func(text string) func(*providerv1beta4.Provider) {
		return func(p *providerv1beta4.Provider) { p.HostURI = text }
	}
	keyed := func(keys ...string) func(*providerv1beta4.Provider) {
		return func(p *providerv1beta4.Provider) {
			p.Attributes = nil
			for _, key := range keys {
				p.Attributes = append(p.Attributes, attributesv1.Attribute{Key: key, Value: "x"})
			}
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*providerv1beta4.Provider)
		want   error // nil is accepted
	}{
		{"a URI with a port is accepted", uri("https://box.example.com:8443"), nil},
		{"a URI without a port is accepted", uri("https://box.example.com"), nil},
		{"a URI of an IPv6 address is accepted", uri("https://[2001:db8::1]:8443"), nil},
		{"a URI is there", uri(""), ErrNotAbsoluteURI},
		{"a URI is absolute", uri("box.example.com/x"), ErrNotAbsoluteURI},
		{"a URI is https", uri("http://box.example.com"), ErrInvalidURI},
		{"a URI is no opaque one", uri("https:box.example.com"), ErrInvalidURI},
		{"a URI has a host", uri("https://"), ErrInvalidURI},
		{"a URI has a host before its port", uri("https://:8443"), ErrInvalidURI},
		{"a URI has no path", uri("https://box.example.com/gateway"), ErrInvalidURI},
		{"a URI does not end in a slash", uri("https://box.example.com/"), ErrInvalidURI},
		{"a URI has no query", uri("https://box.example.com?x"), ErrInvalidURI},
		{"a URI has no fragment", uri("https://box.example.com#x"), ErrInvalidURI},
		{"a URI has no user", uri("https://me@box.example.com"), ErrInvalidURI},
		{"a URI's port is one", uri("https://box.example.com:65536"), ErrInvalidURI},
		{"a URI parses", uri("https://box example.com"), ErrInvalidURI},
		{"a URI is bounded", uri("https://" + strings.Repeat("x", MaxTextBytes)), ErrInvalidURI},
		{"a website may be missing", func(p *providerv1beta4.Provider) { p.Info.Website = "" }, nil},
		{"a website parses as a URL", func(p *providerv1beta4.Provider) { p.Info.Website = "https://exa mple.com" }, ErrInvalidInfo},
		{"a website is bounded", func(p *providerv1beta4.Provider) { p.Info.Website = strings.Repeat("x", MaxTextBytes+1) }, ErrInvalidInfo},
		{"an email address is bounded", func(p *providerv1beta4.Provider) { p.Info.Email = strings.Repeat("x", MaxTextBytes+1) }, ErrInvalidInfo},
		{"no attributes are fine", keyed(), nil},
		{"attribute keys are valid", keyed("1region"), ErrInvalidAttributes},
		{"a provider's keys have no star", keyed("region*"), ErrInvalidAttributes},
		{"attribute keys are there once", keyed("region", "region"), ErrInvalidAttributes},
		{"the owner is an address", func(p *providerv1beta4.Provider) { p.Owner = "akash1x" }, ErrInvalidAddress},
		{"the owner is not in upper case", func(p *providerv1beta4.Provider) { p.Owner = strings.ToUpper(p.Owner) }, ErrInvalidAddress},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := box("a")
			tc.change(&p)
			if err := ValidateProvider(p); tc.want != nil {
				refused(t, err, tc.want)
			} else {
				succeeds(t, err)
			}
		})
	}
}

func TestQueries(t *testing.T) {
	w := newWorld(t)
	t.Run("no provider is an empty list", func(t *testing.T) {
		res, err := w.queries.Providers(w.ctx, &providerv1beta4.QueryProvidersRequest{})
		succeeds(t, err)
		bz, err := protoCodec().MarshalJSON(res)
		succeeds(t, err)
		if got, want := string(bz), `{"providers":[],"pagination":{"next_key":null,"total":"0"}}`; got != want {
			t.Errorf("got %s", got)
		}
	})
	t.Run("an unknown provider is not found", func(t *testing.T) {
		_, err := w.queries.Provider(w.ctx, &providerv1beta4.QueryProviderRequest{Owner: person("a")})
		if status.Code(err) != codes.NotFound {
			t.Errorf("got %v", err)
		}
		_, err = w.queries.Provider(w.ctx, &providerv1beta4.QueryProviderRequest{})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("got %v", err)
		}
	})
	for i := range 105 {
		succeeds(t, w.create(box(fmt.Sprintf("p%03d", i))))
	}
	t.Run("a page has 100 providers and keys lead on", func(t *testing.T) {
		res, err := w.queries.Providers(w.ctx, &providerv1beta4.QueryProvidersRequest{})
		succeeds(t, err)
		if len(res.Providers) != 100 {
			t.Fatalf("%d providers", len(res.Providers))
		}
		res, err = w.queries.Providers(w.ctx, &providerv1beta4.QueryProvidersRequest{Pagination: &query.PageRequest{Key: res.Pagination.NextKey}})
		succeeds(t, err)
		if len(res.Providers) != 5 || res.Providers[0].Owner != person("p100") || res.Pagination.NextKey != nil {
			t.Errorf("%d providers, next %x", len(res.Providers), res.Pagination.NextKey)
		}
	})
	t.Run("an answer has the contract's names", func(t *testing.T) {
		res, err := w.queries.Provider(w.ctx, &providerv1beta4.QueryProviderRequest{Owner: person("p000")})
		succeeds(t, err)
		bz, err := protoCodec().MarshalJSON(res)
		succeeds(t, err)
		want := `{"provider":{"owner":"` + person("p000") + `","host_uri":"https://box.example.com:8443",` +
			`"attributes":[{"key":"region","value":"eu-west"},{"key":"capabilities/storage/1/class","value":"beta3"}],` +
			`"info":{"email":"me@example.com","website":"https://example.com/boxes?x=1"}}}`
		if got := string(bz); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
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
	succeeds(t, w.create(box("a")))
	mux := gateway.NewServeMux(gateway.WithMarshalerOption(gateway.MIMEWildcard, &restMarshaler{}))
	succeeds(t, providerv1beta4.RegisterQueryHandlerServer(t.Context(), mux, w.queries))
	for path, want := range map[string]string{
		"/akash/provider/v1beta4/providers":                `200 {"providers":[{"owner":"` + person("a"),
		"/akash/provider/v1beta4/providers/" + person("a"): `200 {"provider":{"owner":"` + person("a"),
		"/akash/provider/v1beta4/providers/" + person("b"): "404 ",
	} {
		req := httptest.NewRequestWithContext(context.WithValue(t.Context(), sdk.SdkContextKey, w.ctx), http.MethodGet, path, nil)
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, req)
		if got := fmt.Sprint(rec.Code, " ", rec.Body.String()); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

func TestGenesisRefusesWhatNoChainHas(t *testing.T) {
	w := newWorld(t)
	bad := box("a")
	bad.HostURI = ""
	refused(t, w.k.InitGenesis(w.ctx, &providerv1beta4.GenesisState{Providers: []providerv1beta4.Provider{bad}}), ErrNotAbsoluteURI)
	refused(t, w.k.InitGenesis(w.ctx, &providerv1beta4.GenesisState{Providers: []providerv1beta4.Provider{box("a"), box("a")}}), ErrProviderExists)
}

func TestAnySequenceOfMessagesKeepsTheInvariants(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t)
		known := map[string]bool{}
		draw := func() providerv1beta4.Provider {
			p := box(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "owner"))
			p.HostURI = rapid.SampledFrom([]string{"https://a.example", "https://b.example:1", "http://c.example"}).Draw(r, "uri")
			return p
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				p := draw()
				if ok, want := w.create(p) == nil, ValidateProvider(p) == nil && !known[p.Owner]; ok != want {
					r.Fatalf("created %v, want %v", ok, want)
				} else if ok {
					known[p.Owner] = true
				}
			},
			"update": func(r *rapid.T) {
				p := draw()
				if ok, want := w.update(p) == nil, ValidateProvider(p) == nil && known[p.Owner]; ok != want {
					r.Fatalf("updated %v, want %v", ok, want)
				}
			},
			"delete": func(r *rapid.T) {
				if w.delete(draw().Owner) == nil {
					r.Fatal("deleted")
				}
			},
			"": func(r *rapid.T) {
				if err := w.k.Invariants(w.ctx); err != nil {
					r.Fatal(err)
				}
			},
		})
		cdc := protoCodec()
		m := NewAppModule(cdc, w.k)
		exported := m.ExportGenesis(w.ctx, cdc)
		next := newWorld(t)
		n := NewAppModule(cdc, next.k)
		if err := n.ValidateGenesis(cdc, nil, exported); err != nil {
			r.Fatal(err)
		}
		n.InitGenesis(next.ctx, cdc, exported)
		if again := n.ExportGenesis(next.ctx, cdc); !bytes.Equal(again, exported) {
			r.Fatalf("got  %s\nwant %s", again, exported)
		}
	})
}

// FuzzValidateProvider decodes a record and checks that judging it does not
// panic, and that one that passes does so after it is stored and read.
func FuzzValidateProvider(f *testing.F) {
	p := box("a")
	wire, err := p.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wire)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var p, again providerv1beta4.Provider
		if p.Unmarshal(wire) != nil || ValidateProvider(p) != nil {
			return
		}
		bz, err := p.Marshal()
		succeeds(t, err)
		succeeds(t, again.Unmarshal(bz))
		succeeds(t, ValidateProvider(again))
	})
}
