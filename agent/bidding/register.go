package bidding

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/agent/offer"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/attributesv1"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/api/providerv1beta4"
	"github.com/croft-cloud/croft/chain/client"
	"github.com/croft-cloud/croft/chain/credential"
)

// Attribute is one fact about the box that tenants may ask for.
type Attribute struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// The secrets' names.
const (
	secretKey         = "account.words"
	secretCertificate = "gateway.pem"      // in use: certificate, public key, private key
	secretNext        = "gateway-next.pem" // made, and perhaps on the chain already
)

// keyRegistration is a registrar's transaction whose fate is not known.
const keyRegistration = "bidding/registration"

// clockSkew is how long before it is made a certificate is valid, for tenants
// whose clock is slow.
const clockSkew = time.Hour

// registered is the box as the chain knows it.
type registered struct {
	attributes []*attributesv1.Attribute
	serial     string
	expires    time.Time
}

// registrar keeps the provider's record and the gateway's certificate on the
// chain as they should be. One task at a time calls ensure.
type registrar struct {
	cfg         *Config
	me          account.Address
	certificate atomic.Pointer[tls.Certificate]
}

func newRegistrar(cfg *Config, me account.Address) (*registrar, error) {
	r := &registrar{cfg: cfg, me: me}
	if pair, err := r.load(secretCertificate); err == nil {
		return r, r.use(pair)
	} else if !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.Warn("certificate of the gateway is unreadable and will be replaced", "err", err)
	}
	return r, nil
}

// use gives the gateway a certificate.
func (r *registrar) use(p credential.Pair) error {
	c, err := p.TLS()
	if err != nil {
		return fmt.Errorf("use certificate of the gateway: %w", err)
	}
	r.certificate.Store(&c)
	return nil
}

// ensure brings the chain's record in line. Time is the chain's: the box's clock
// may be wrong.
func (r *registrar) ensure(ctx context.Context, f found) (registered, error) {
	if f.balance[feeDenom] == 0 && r.cfg.FeeGranter == "" {
		return registered{}, errors.New("the box's account has no money for fees yet")
	}
	if err := r.resume(ctx); err != nil {
		return registered{}, err
	}
	attributes, err := r.provider(ctx)
	if err != nil {
		return registered{}, err
	}
	pair, err := r.certify(ctx, f.status.Time)
	if err != nil {
		return registered{}, err
	}
	return registered{attributes: attributes, serial: pair.Certificate.Serial, expires: pair.Certificate.X509.NotAfter}, nil
}

// provider creates or updates the provider's record when it differs.
func (r *registrar) provider(ctx context.Context) ([]*attributesv1.Attribute, error) {
	wanted := &providerv1beta4.Provider{
		Owner: string(r.me), HostUri: r.cfg.HostURI, Attributes: []*attributesv1.Attribute{}, Info: &providerv1beta4.Info{Email: r.cfg.Email, Website: r.cfg.Website},
	}
	for _, a := range r.cfg.Attributes() {
		wanted.Attributes = append(wanted.Attributes, &attributesv1.Attribute{Key: a.Key, Value: a.Value})
	}
	slices.SortFunc(wanted.Attributes, offer.CompareAttributes)
	now, err := r.cfg.Chain.Provider(ctx, r.me)
	switch {
	case isNotFound(err):
		err = r.send(ctx, &providerv1beta4.MsgCreateProvider{Owner: wanted.Owner, HostUri: wanted.HostUri, Attributes: wanted.Attributes, Info: wanted.Info})
		if errors.Is(err, akash.ErrProviderExists) {
			err = nil // an earlier attempt; the next round compares it
		}
	case err == nil:
		slices.SortFunc(now.Attributes, offer.CompareAttributes)
		if now.GetHostUri() != wanted.HostUri || now.GetInfo().GetEmail() != r.cfg.Email || now.GetInfo().GetWebsite() != r.cfg.Website ||
			slices.CompareFunc(now.Attributes, wanted.Attributes, offer.CompareAttributes) != 0 {
			err = r.send(ctx, &providerv1beta4.MsgUpdateProvider{Owner: wanted.Owner, HostUri: wanted.HostUri, Attributes: wanted.Attributes, Info: wanted.Info})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("register provider: %w", err)
	}
	return wanted.Attributes, nil
}

// certify sees to it that the gateway's certificate is good, published, and the
// only one. A new one is in a file before it is published and in use before the
// old one is revoked: at no moment has the gateway none that the chain knows.
func (r *registrar) certify(ctx context.Context, now time.Time) (credential.Pair, error) {
	known, err := collect(r.cfg.Chain.Certificates(ctx, &certv1.CertificateFilter{Owner: string(r.me)}), maxScan)
	if err != nil {
		return credential.Pair{}, fmt.Errorf("ask for the box's certificates: %w", err)
	}
	state := map[string]certv1.State{}
	for _, c := range known {
		state[c.GetSerial()] = c.GetCertificate().GetState()
	}
	pair, err := r.load(secretCertificate)
	inUse := err == nil && r.good(pair, now, state)
	if !inUse {
		if pair, err = r.load(secretNext); err != nil || !r.good(pair, now, state) {
			if pair, err = credential.NewCertificate(credential.CertificateConfig{Owner: r.me, Hosts: r.cfg.Hosts, NotBefore: now.Add(-clockSkew)}); err != nil {
				return pair, fmt.Errorf("make certificate of the gateway: %w", err)
			}
			if err := r.keep(secretNext, pair); err != nil {
				return pair, err
			}
			r.cfg.Log.Info("certificate of the gateway made", "serial", pair.Certificate.Serial)
		}
	}
	if state[pair.Certificate.Serial] != certv1.State_valid {
		if err := r.send(ctx, &certv1.MsgCreateCertificate{Owner: string(r.me), Cert: pair.CertPEM, Pubkey: pair.PublicPEM}); err != nil && !errors.Is(err, akash.ErrCertificateExists) {
			return pair, fmt.Errorf("publish certificate of the gateway: %w", err)
		}
	}
	if !inUse {
		if err := cmp.Or(r.keep(secretCertificate, pair), r.use(pair)); err != nil {
			return pair, err
		}
	}
	for _, c := range known {
		if s := c.GetSerial(); s != pair.Certificate.Serial && state[s] == certv1.State_valid {
			if err := r.send(ctx, &certv1.MsgRevokeCertificate{Id: &certv1.ID{Owner: string(r.me), Serial: s}}); err != nil {
				if _, verdict := errors.AsType[*akash.TxError](err); !verdict {
					return pair, fmt.Errorf("revoke certificate %s: %w", s, err)
				}
				r.cfg.Log.Warn("certificate not revoked", "serial", s, "err", err)
			}
		}
	}
	return pair, nil
}

// good reports that a certificate may stay in use: for this account and these
// hosts, not revoked, and with more than a third of its life left.
func (r *registrar) good(p credential.Pair, now time.Time, state map[string]certv1.State) bool {
	x := p.Certificate.X509
	if x == nil || p.Certificate.Owner != r.me || state[p.Certificate.Serial] == certv1.State_revoked {
		return false
	}
	hosts := slices.Clone(x.DNSNames)
	for _, ip := range x.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	wanted := slices.Clone(r.cfg.Hosts)
	slices.Sort(hosts)
	slices.Sort(wanted)
	return slices.Equal(hosts, wanted) && !x.NotBefore.After(now) && x.NotAfter.Sub(now) > x.NotAfter.Sub(x.NotBefore)/3
}

// keep writes a pair to the secrets.
func (r *registrar) keep(name string, p credential.Pair) error {
	if err := r.cfg.Secrets.Write(name, slices.Concat(p.CertPEM, p.PublicPEM, p.KeyPEM)); err != nil {
		return fmt.Errorf("keep certificate of the gateway: %w", err)
	}
	return nil
}

// load reads a pair from the secrets.
func (r *registrar) load(name string) (credential.Pair, error) {
	raw, err := r.cfg.Secrets.Read(name)
	if err != nil {
		return credential.Pair{}, err
	}
	var p credential.Pair
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		text := pem.EncodeToMemory(block)
		switch {
		case block.Type == "CERTIFICATE":
			p.CertPEM = text
		case block.Type == "EC PUBLIC KEY":
			p.PublicPEM = text
		case bytes.HasSuffix([]byte(block.Type), []byte("PRIVATE KEY")):
			p.KeyPEM = text
		}
	}
	if p.Certificate, err = credential.ParseCertificate(p.CertPEM, p.PublicPEM); err != nil {
		return credential.Pair{}, fmt.Errorf("read %s: %w", name, err)
	}
	if _, err := p.TLS(); err != nil {
		return credential.Pair{}, fmt.Errorf("read %s: %w", name, err)
	}
	return p, nil
}

// send sends one message, written down before it leaves.
func (r *registrar) send(ctx context.Context, msg proto.Message) error {
	_, err := r.cfg.Chain.Send(ctx, r.cfg.Signer, client.Tx{
		Msgs: []proto.Message{msg}, FeeGranter: r.cfg.FeeGranter, Once: true,
		OnSigned: func(_ context.Context, s client.Signed) error { return r.cfg.Journal.Put(keyRegistration, s) },
	})
	if decided(err) {
		return errors.Join(err, r.cfg.Journal.Delete(keyRegistration))
	}
	return err
}

// decided reports that a transaction's fate is known.
func decided(err error) bool {
	_, verdict := errors.AsType[*akash.TxError](err)
	return err == nil || verdict || errors.Is(err, client.ErrDead)
}

// resume waits for the fate of a transaction of an earlier life. Whatever it is,
// what is on the chain is compared afterwards.
func (r *registrar) resume(ctx context.Context) error {
	var s client.Signed
	if there, err := r.cfg.Journal.Get(keyRegistration, &s); err != nil || !there {
		return r.cfg.Journal.Delete(keyRegistration)
	}
	waiting, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	_, err := r.cfg.Chain.Resume(waiting, s)
	if decided(err) || s.TimeoutHeight > 0 && heightIfUnsure(ctx, r.cfg, err) > s.TimeoutHeight+hopeless {
		return r.cfg.Journal.Delete(keyRegistration)
	}
	return err
}
