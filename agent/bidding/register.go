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
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

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
	cfg *Config
	me  account.Address

	mu          sync.Mutex
	certificate *tls.Certificate // guarded by mu
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
	r.mu.Lock()
	defer r.mu.Unlock()
	r.certificate = &c
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
	var wanted []*attributesv1.Attribute
	for _, a := range r.cfg.Attributes() {
		wanted = append(wanted, &attributesv1.Attribute{Key: a.Key, Value: a.Value})
	}
	slices.SortFunc(wanted, func(a, b *attributesv1.Attribute) int {
		return cmp.Or(cmp.Compare(a.GetKey(), b.GetKey()), cmp.Compare(a.GetValue(), b.GetValue()))
	})
	if wanted == nil {
		wanted = []*attributesv1.Attribute{}
	}
	info := &providerv1beta4.Info{Email: r.cfg.Email, Website: r.cfg.Website}
	now, err := r.cfg.Chain.Provider(ctx, r.me)
	switch {
	case isNotFound(err):
		err = r.send(ctx, &providerv1beta4.MsgCreateProvider{Owner: string(r.me), HostUri: r.cfg.HostURI, Attributes: wanted, Info: info})
		if errors.Is(err, akash.ErrProviderExists) {
			err = nil // an earlier attempt; the next round compares it
		}
	case err == nil:
		has := slices.Clone(now.GetAttributes())
		slices.SortFunc(has, func(a, b *attributesv1.Attribute) int {
			return cmp.Or(cmp.Compare(a.GetKey(), b.GetKey()), cmp.Compare(a.GetValue(), b.GetValue()))
		})
		same := now.GetHostUri() == r.cfg.HostURI && now.GetInfo().GetEmail() == r.cfg.Email && now.GetInfo().GetWebsite() == r.cfg.Website &&
			slices.EqualFunc(has, wanted, func(a, b *attributesv1.Attribute) bool { return proto.Equal(a, b) })
		if !same {
			err = r.send(ctx, &providerv1beta4.MsgUpdateProvider{Owner: string(r.me), HostUri: r.cfg.HostURI, Attributes: wanted, Info: info})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("register provider: %w", err)
	}
	return wanted, nil
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
	if err != nil || !r.good(pair, now, state) {
		if pair, err = r.load(secretNext); err != nil || !r.good(pair, now, state) {
			if pair, err = credential.NewCertificate(credential.CertificateConfig{Owner: r.me, Hosts: r.cfg.Hosts, NotBefore: now.Add(-clockSkew)}); err != nil {
				return pair, fmt.Errorf("make certificate of the gateway: %w", err)
			}
			if err := r.cfg.Secrets.Write(secretNext, slices.Concat(pair.CertPEM, pair.PublicPEM, pair.KeyPEM)); err != nil {
				return pair, fmt.Errorf("keep certificate of the gateway: %w", err)
			}
			r.cfg.Log.Info("certificate of the gateway made", "serial", pair.Certificate.Serial)
		}
	}
	if state[pair.Certificate.Serial] != certv1.State_valid {
		if err := r.send(ctx, &certv1.MsgCreateCertificate{Owner: string(r.me), Cert: pair.CertPEM, Pubkey: pair.PublicPEM}); err != nil && !errors.Is(err, akash.ErrCertificateExists) {
			return pair, fmt.Errorf("publish certificate of the gateway: %w", err)
		}
	}
	if err := r.cfg.Secrets.Write(secretCertificate, slices.Concat(pair.CertPEM, pair.PublicPEM, pair.KeyPEM)); err != nil {
		return pair, fmt.Errorf("keep certificate of the gateway: %w", err)
	}
	if err := r.use(pair); err != nil {
		return pair, err
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
	var hosts []string
	hosts = append(hosts, x.DNSNames...)
	for _, ip := range x.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	wanted := slices.Clone(r.cfg.Hosts)
	slices.Sort(hosts)
	slices.Sort(wanted)
	return slices.Equal(hosts, wanted) && !x.NotBefore.After(now) && x.NotAfter.Sub(now) > x.NotAfter.Sub(x.NotBefore)/3
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
	return r.known(err)
}

// resume waits for the fate of a transaction of an earlier life. Whatever it is,
// what is on the chain is compared afterwards.
func (r *registrar) resume(ctx context.Context) error {
	var s client.Signed
	if there, err := r.cfg.Journal.Get(keyRegistration, &s); err != nil || !there {
		return r.cfg.Journal.Delete(keyRegistration)
	}
	_, err := r.cfg.Chain.Resume(ctx, s)
	if _, verdict := errors.AsType[*akash.TxError](err); verdict || errors.Is(err, client.ErrDead) {
		return r.cfg.Journal.Delete(keyRegistration)
	}
	if unsure, ok := errors.AsType[*client.UnconfirmedError](err); ok && unsure.Signed.TimeoutHeight > 0 {
		if status, err := r.cfg.Chain.Status(context.WithoutCancel(ctx)); err == nil && status.Height > unsure.Signed.TimeoutHeight+hopeless {
			return r.cfg.Journal.Delete(keyRegistration)
		}
	}
	return r.known(err)
}

// known forgets a transaction whose fate is known.
func (r *registrar) known(err error) error {
	_, verdict := errors.AsType[*akash.TxError](err)
	if err == nil || verdict || errors.Is(err, client.ErrDead) {
		if gone := r.cfg.Journal.Delete(keyRegistration); gone != nil {
			return errors.Join(err, gone)
		}
	}
	return err
}
