package cert_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/cosmos/gogoproto/jsonpb"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/croft-cloud/croft/chain/gogo/certv1"
	"github.com/croft-cloud/croft/chain/x/cert"

	"github.com/cosmos/cosmos-sdk/codec"
	codectypes "github.com/cosmos/cosmos-sdk/codec/types"
	"github.com/cosmos/cosmos-sdk/runtime"
	storetypes "github.com/cosmos/cosmos-sdk/store/v2/types"
	"github.com/cosmos/cosmos-sdk/testutil"
	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
)

var setPrefix = sync.OnceFunc(func() { sdk.GetConfig().SetBech32PrefixForAccount("akash", "akashpub") })

// who is an account address, the same one for the same name.
func who(name string) sdk.AccAddress {
	setPrefix()
	b := make([]byte, 20)
	copy(b, name)
	return b
}

type chain struct {
	ctx    sdk.Context
	keeper *cert.Keeper
	msgs   certv1.MsgServer
	query  certv1.QueryServer
}

func newChain(t testing.TB) *chain {
	t.Helper()
	setPrefix()
	keys := storetypes.NewKVStoreKeys(cert.StoreKey)
	k, err := cert.NewKeeper(codec.NewProtoCodec(codectypes.NewInterfaceRegistry()), runtime.NewKVStoreService(keys[cert.StoreKey]))
	if err != nil {
		t.Fatal(err)
	}
	return &chain{ctx: testutil.DefaultContextWithKeys(keys, nil, nil), keeper: k, msgs: cert.NewMsgServer(k), query: cert.NewQueryServer(k)}
}

// shape is what a certificate is made of; [shape.make] fills in what is usual.
type shape struct {
	owner, subject, issuer string
	serial                 *big.Int
	curve                  elliptic.Curve
	from, until            time.Time
	hosts                  []string
	foreign                bool // signed by another key than its own
}

func (s shape) make(t testing.TB) *certv1.MsgCreateCertificate {
	t.Helper()
	if s.subject == "" {
		s.subject = s.owner
	}
	if s.issuer == "" {
		s.issuer = s.subject
	}
	if s.serial == nil {
		s.serial = big.NewInt(1)
	}
	if s.curve == nil {
		s.curve = elliptic.P256()
	}
	if s.from.IsZero() {
		s.from, s.until = time.Unix(1_700_000_000, 0), time.Unix(1_731_536_000, 0)
	}
	key, err := ecdsa.GenerateKey(s.curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := key
	if s.foreign {
		if signer, err = ecdsa.GenerateKey(s.curve, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	version := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 6}, Value: "v0.0.1"}
	template := &x509.Certificate{
		SerialNumber:       s.serial,
		Subject:            pkix.Name{CommonName: s.subject, ExtraNames: []pkix.AttributeTypeAndValue{version}},
		NotBefore:          s.from,
		NotAfter:           s.until,
		KeyUsage:           x509.KeyUsageDataEncipherment | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:        []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:           s.hosts,
		SignatureAlgorithm: x509.ECDSAWithSHA256,
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: s.issuer}, PublicKey: signer.Public()}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &certv1.MsgCreateCertificate{
		Owner:  s.owner,
		Cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Pubkey: pem.EncodeToMemory(&pem.Block{Type: "EC PUBLIC KEY", Bytes: public}),
	}
}

func TestCreateCertificate(t *testing.T) {
	tenant := who("tenant").String()
	other := shape{owner: tenant}.make(t)
	edPub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edDER, err := x509.MarshalPKIXPublicKey(edPub)
	if err != nil {
		t.Fatal(err)
	}
	reblock := func(text []byte, kind string) []byte {
		block, _ := pem.Decode(text)
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: block.Bytes})
	}
	none := func(*certv1.MsgCreateCertificate) {}
	for _, tc := range []struct {
		name   string
		shape  shape
		change func(*certv1.MsgCreateCertificate)
		want   error
	}{
		{"a client's certificate is accepted", shape{}, none, nil},
		{"a server's certificate with host names is accepted", shape{hosts: []string{"provider.example.com", "*.example.com"}}, none, nil},
		{"an expired certificate is accepted, for its dates are the reader's to check", shape{from: time.Unix(1, 0), until: time.Unix(2, 0)}, none, nil},
		{"a serial number of 20 bytes is accepted", shape{serial: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(1))}, none, nil},
		{"an owner that is no address is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Owner = "akash1" }, cert.ErrInvalidAddress},
		{"another's address as subject is refused", shape{subject: who("x").String()}, none, cert.ErrInvalidCertificateValue},
		{"another's address as issuer is refused", shape{issuer: who("x").String()}, none, cert.ErrInvalidCertificateValue},
		{"a signature by another key is refused", shape{foreign: true}, none, cert.ErrInvalidCertificateValue},
		{"another curve is refused", shape{curve: elliptic.P384()}, none, cert.ErrInvalidKeySize},
		{"another's public key is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Pubkey = other.Pubkey }, cert.ErrInvalidPubkeyValue},
		{"a public key of another kind is refused", shape{}, func(m *certv1.MsgCreateCertificate) {
			m.Pubkey = pem.EncodeToMemory(&pem.Block{Type: "EC PUBLIC KEY", Bytes: edDER})
		}, cert.ErrInvalidPubkeyValue},
		{"no certificate is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Cert = nil }, cert.ErrInvalidCertificateValue},
		{"no public key is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Pubkey = nil }, cert.ErrInvalidPubkeyValue},
		{"a certificate block of another type is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Cert = reblock(m.Cert, "X509") }, cert.ErrInvalidCertificateValue},
		{"a key block of another type is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Pubkey = reblock(m.Pubkey, "PUBLIC KEY") }, cert.ErrInvalidPubkeyValue},
		{"a certificate in DER is refused", shape{}, func(m *certv1.MsgCreateCertificate) {
			block, _ := pem.Decode(m.Cert)
			m.Cert = block.Bytes
		}, cert.ErrInvalidCertificateValue},
		{"text after the block is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Cert = append(m.Cert, "more"...) }, cert.ErrInvalidCertificateValue},
		{"text before the block is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Cert = append([]byte("more\n"), m.Cert...) }, cert.ErrInvalidCertificateValue},
		{"a second block is refused", shape{}, func(m *certv1.MsgCreateCertificate) { m.Cert = append(m.Cert, m.Cert...) }, cert.ErrInvalidCertificateValue},
		{"a damaged block before the good one is refused", shape{}, func(m *certv1.MsgCreateCertificate) {
			m.Cert = append([]byte("-----BEGIN CERTIFICATE-----\n???\n"), m.Cert...)
		}, cert.ErrInvalidCertificateValue},
		{"headers in the block are refused", shape{}, func(m *certv1.MsgCreateCertificate) {
			block, _ := pem.Decode(m.Cert)
			block.Headers = map[string]string{"a": "b"}
			m.Cert = pem.EncodeToMemory(block)
		}, cert.ErrInvalidCertificateValue},
		{"a large certificate is refused before it is parsed", shape{}, func(m *certv1.MsgCreateCertificate) {
			m.Cert = bytes.Repeat([]byte("x"), cert.MaxCertificateSize+1)
		}, cert.ErrInvalidCertificateValue},
		{"a large public key is refused before it is parsed", shape{}, func(m *certv1.MsgCreateCertificate) {
			m.Pubkey = bytes.Repeat([]byte("x"), cert.MaxPubkeySize+1)
		}, cert.ErrInvalidPubkeyValue},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			tc.shape.owner = tenant
			m := tc.shape.make(t)
			tc.change(m)
			_, err := c.msgs.CreateCertificate(c.ctx, m)
			if !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
			if err := cert.ValidateCreateCertificate(m); !errors.Is(err, tc.want) {
				t.Errorf("Validate: error is %v, want %v", err, tc.want)
			}
			if err := c.keeper.Invariants(c.ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRevokeCertificate(t *testing.T) {
	c := newChain(t)
	tenant := who("tenant").String()
	m := shape{owner: tenant, serial: big.NewInt(77)}.make(t)
	if _, err := c.msgs.CreateCertificate(c.ctx, m); err != nil {
		t.Fatal(err)
	}
	revoke := func(owner, serial string) error {
		_, err := c.msgs.RevokeCertificate(c.ctx, &certv1.MsgRevokeCertificate{ID: certv1.ID{Owner: owner, Serial: serial}})
		return err
	}
	for _, tc := range []struct {
		name, owner, serial string
		want                error
	}{
		{"an unknown serial number is not found", tenant, "78", cert.ErrCertificateNotFound},
		{"another's certificate is not found", who("x").String(), "77", cert.ErrCertificateNotFound},
		{"a serial number in hex is refused", tenant, "0x4d", cert.ErrInvalidSerialNumber},
		{"a serial number with a leading zero is refused", tenant, "077", cert.ErrInvalidSerialNumber},
		{"a serial number below zero is refused", tenant, "-77", cert.ErrInvalidSerialNumber},
		{"an empty serial number is refused", tenant, "", cert.ErrInvalidSerialNumber},
		{"a long serial number is refused", tenant, string(bytes.Repeat([]byte("9"), 4000)), cert.ErrInvalidSerialNumber},
		{"an owner that is no address is refused", "x", "77", cert.ErrInvalidAddress},
		{"a valid certificate is revoked", tenant, "77", nil},
		{"a revoked certificate is not revoked again", tenant, "77", cert.ErrCertificateAlreadyRevoked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := revoke(tc.owner, tc.serial); !errors.Is(err, tc.want) {
				t.Errorf("error is %v, want %v", err, tc.want)
			}
		})
	}
	t.Run("a serial number is used once, revoked or not", func(t *testing.T) {
		if _, err := c.msgs.CreateCertificate(c.ctx, m); !errors.Is(err, cert.ErrCertificateExists) {
			t.Errorf("error is %v, want %v", err, cert.ErrCertificateExists)
		}
	})
	if err := c.keeper.Invariants(c.ctx); err != nil {
		t.Error(err)
	}
}

func TestQueryCertificates(t *testing.T) {
	c := newChain(t)
	tenant, other := who("tenant").String(), who("other").String()
	sample := map[string]*certv1.MsgCreateCertificate{}
	for _, owner := range []string{tenant, other} {
		for serial := range int64(3) {
			m := shape{owner: owner, serial: big.NewInt(serial + 1)}.make(t)
			sample[fmt.Sprintf("%s/%d", owner, serial+1)] = m
			if _, err := c.msgs.CreateCertificate(c.ctx, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.keeper.Revoke(c.ctx, who("tenant"), "2"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		filter certv1.CertificateFilter
		page   *query.PageRequest
		want   int
	}{
		{"no filter selects all", certv1.CertificateFilter{}, nil, 6},
		{"the owner selects", certv1.CertificateFilter{Owner: tenant}, nil, 3},
		{"the state selects", certv1.CertificateFilter{State: "valid"}, nil, 5},
		{"owner and state select", certv1.CertificateFilter{Owner: tenant, State: "revoked"}, nil, 1},
		{"the serial number selects", certv1.CertificateFilter{Serial: "2"}, nil, 2},
		{"serial number and state select", certv1.CertificateFilter{Serial: "2", State: "valid"}, nil, 1},
		{"owner and serial number select one", certv1.CertificateFilter{Owner: tenant, Serial: "2"}, nil, 1},
		{"all three select", certv1.CertificateFilter{Owner: tenant, Serial: "2", State: "revoked"}, nil, 1},
		{"a list of nothing is empty", certv1.CertificateFilter{Owner: tenant, Serial: "2", State: "valid"}, nil, 0},
		{"an unknown owner has an empty list", certv1.CertificateFilter{Owner: who("x").String()}, nil, 0},
		{"a limit is kept", certv1.CertificateFilter{}, &query.PageRequest{Limit: 2}, 2},
		{"an offset skips within a state", certv1.CertificateFilter{State: "valid"}, &query.PageRequest{Offset: 3}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, err := c.query.Certificates(c.ctx, &certv1.QueryCertificatesRequest{Filter: tc.filter, Pagination: tc.page})
			if err != nil {
				t.Fatal(err)
			}
			if got := len(resp.Certificates); got != tc.want {
				t.Errorf("%d certificates, want %d", got, tc.want)
			}
		})
	}
	for _, tc := range []struct {
		name   string
		filter certv1.CertificateFilter
		page   *query.PageRequest
	}{
		{"an unknown state is refused", certv1.CertificateFilter{State: "expired"}, nil},
		{"an owner that is no address is refused", certv1.CertificateFilter{Owner: "x"}, nil},
		{"a serial number in hex is refused", certv1.CertificateFilter{Serial: "ff"}, nil},
		{"an offset without a state is refused", certv1.CertificateFilter{Owner: tenant}, &query.PageRequest{Offset: 1}},
		{"an offset and a key are refused", certv1.CertificateFilter{State: "valid"}, &query.PageRequest{Offset: 1, Key: []byte("x")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := c.query.Certificates(c.ctx, &certv1.QueryCertificatesRequest{Filter: tc.filter, Pagination: tc.page})
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("error is %v", err)
			}
		})
	}
	t.Run("pages go on at the key of the one before", func(t *testing.T) {
		for _, filter := range []certv1.CertificateFilter{{}, {State: "valid"}, {Owner: other}, {Owner: other, State: "valid"}, {Serial: "1"}} {
			whole, err := c.query.Certificates(c.ctx, &certv1.QueryCertificatesRequest{Filter: filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []certv1.CertificateResponse
			page := &query.PageRequest{Limit: 1}
			for {
				resp, err := c.query.Certificates(c.ctx, &certv1.QueryCertificatesRequest{Filter: filter, Pagination: page})
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, resp.Certificates...)
				if len(resp.Pagination.NextKey) == 0 {
					break
				}
				page = &query.PageRequest{Limit: 1, Key: resp.Pagination.NextKey}
			}
			if diff := cmp.Diff(whole.Certificates, got); diff != "" {
				t.Errorf("filter %+v: pages differ from the whole (-want +got):\n%s", filter, diff)
			}
		}
	})
	t.Run("the JSON is as observed", func(t *testing.T) {
		m := sample[tenant+"/1"]
		resp, err := c.query.Certificates(c.ctx, &certv1.QueryCertificatesRequest{Filter: certv1.CertificateFilter{Owner: tenant, Serial: "1"}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := (&jsonpb.Marshaler{OrigName: true, EmitDefaults: true}).MarshalToString(resp)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`{"certificates":[{"certificate":{"state":"valid","cert":"%s","pubkey":"%s"},"serial":"1"}],"pagination":{"next_key":null,"total":"1"}}`,
			base64.StdEncoding.EncodeToString(m.Cert), base64.StdEncoding.EncodeToString(m.Pubkey))
		if got != want {
			t.Errorf("JSON is %s, want %s", got, want)
		}
	})
	t.Run("an exported state is imported as it was", func(t *testing.T) {
		state, err := c.keeper.ExportGenesis(c.ctx)
		if err != nil {
			t.Fatal(err)
		}
		d := newChain(t)
		if err := d.keeper.InitGenesis(d.ctx, state); err != nil {
			t.Fatal(err)
		}
		again, err := d.keeper.ExportGenesis(d.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(state, again); diff != "" {
			t.Errorf("exported states differ (-want +got):\n%s", diff)
		}
		state.Certificates = append(state.Certificates, state.Certificates[0])
		if err := cert.ValidateGenesis(state); !errors.Is(err, cert.ErrCertificateExists) {
			t.Errorf("a certificate twice: error is %v", err)
		}
	})
	if err := c.keeper.Invariants(c.ctx); err != nil {
		t.Error(err)
	}
}

func FuzzCreateCertificate(f *testing.F) {
	owner := who("tenant").String()
	good := shape{owner: owner}.make(f)
	f.Add(owner, good.Cert, good.Pubkey)
	f.Add("", []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, owner string, certificate, pubkey []byte) {
		m := &certv1.MsgCreateCertificate{Owner: owner, Cert: certificate, Pubkey: pubkey}
		if cert.ValidateCreateCertificate(m) != nil {
			return
		}
		c := newChain(t)
		if _, err := c.msgs.CreateCertificate(c.ctx, m); err != nil {
			t.Errorf("valid, but refused: %v", err)
		}
		if err := c.keeper.Invariants(c.ctx); err != nil {
			t.Error(err)
		}
	})
}

func FuzzRevokeCertificate(f *testing.F) {
	f.Add(who("tenant").String(), "7")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, owner, serial string) {
		m := &certv1.MsgRevokeCertificate{ID: certv1.ID{Owner: owner, Serial: serial}}
		if cert.ValidateRevokeCertificate(m) != nil {
			return
		}
		c := newChain(t)
		if _, err := c.msgs.RevokeCertificate(c.ctx, m); !errors.Is(err, cert.ErrCertificateNotFound) {
			t.Errorf("revoking what is not there: %v", err)
		}
	})
}
