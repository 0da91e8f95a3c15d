package enroll

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/croft-cloud/croft"
)

// Voucher is a factory's word that a box is one of the operator's. Its text is
//
//	croft1.PAYLOAD.SIGNATURE
//
// in unpadded base64url: a JSON object, and the factory key's Ed25519 signature
// of "croft voucher 1", a line feed and that object. There is exactly one text
// for each voucher and signature.
type Voucher struct {
	ID           string         // 26 characters; good for one device key, see [Register.BindVoucher]
	SerialNumber string         // of the box, as on its case; may be empty
	Device       croft.DeviceID // the only device key it is for; empty: any
	Claim        ClaimHash      // of the sticker's secret of 80 bits, never of a short code; zero: there is no sticker
	Until        time.Time      // whole seconds
}

// MaxVoucher is the most characters of a voucher's text.
const MaxVoucher = 1024

const (
	voucherPrefix = "croft1."
	voucherDomain = "croft voucher 1\n"
	anyDevice     = "any"
)

var voucherIDForm = regexp.MustCompile(`^[A-Z2-7]{26}$`)

// payload is a voucher's JSON; the order of its fields is the wire's.
type payload struct {
	ID     string    `json:"id"`
	Serial string    `json:"serial,omitempty"`
	Device string    `json:"device"`
	Claim  ClaimHash `json:"claim,omitzero"`
	Until  int64     `json:"until"`
}

// NewFactoryKey draws a key that signs vouchers. Its PEM is secret; the public
// PEM is what the fleet knows it by.
func NewFactoryKey() (secret, public []byte, err error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("draw factory key: %w", err)
	}
	secret, err = keyPEM(key)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("write factory key: %w", err)
	}
	return secret, pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: der}), nil
}

const pemPublicKey = "PUBLIC KEY"

// ParseFactoryKey reads the secret PEM of [NewFactoryKey].
func ParseFactoryKey(text []byte) (ed25519.PrivateKey, error) {
	return parseKey[ed25519.PrivateKey](text, pemPrivateKey, x509.ParsePKCS8PrivateKey)
}

// ParseFactoryPublic reads the public PEM of [NewFactoryKey].
func ParseFactoryPublic(text []byte) (ed25519.PublicKey, error) {
	return parseKey[ed25519.PublicKey](text, pemPublicKey, x509.ParsePKIXPublicKey)
}

func parseKey[K any](text []byte, kind string, parse func([]byte) (any, error)) (K, error) {
	var none K
	block, rest := pem.Decode(text)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return none, badFactoryKey(fmt.Errorf("want one %s in PEM", kind))
	}
	parsed, err := parse(block.Bytes)
	if err != nil {
		return none, badFactoryKey(err)
	}
	key, ok := parsed.(K)
	if !ok {
		return none, badFactoryKey(errors.New("it is not Ed25519"))
	}
	return key, nil
}

func badFactoryKey(err error) error {
	return &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("read factory key: %w", err), Remedy: "restore it from its backup"}
}

// NewVoucherID draws an ID.
func NewVoucherID() string { return rand.Text() }

// Sign is the text of a voucher, signed by the factory key, which must be
// Ed25519.
func (v Voucher) Sign(key crypto.Signer) (string, error) {
	raw, err := v.payload()
	if err != nil {
		return "", err
	}
	if _, ok := key.Public().(ed25519.PublicKey); !ok {
		return "", errors.New("sign voucher: factory key is not Ed25519")
	}
	signature, err := key.Sign(rand.Reader, append([]byte(voucherDomain), raw...), crypto.Hash(0))
	if err != nil {
		return "", fmt.Errorf("sign voucher: %w", err)
	}
	text := voucherPrefix + encoding.EncodeToString(raw) + "." + encoding.EncodeToString(signature)
	if len(text) > MaxVoucher {
		return "", fmt.Errorf("sign voucher: it has %d characters, more than %d", len(text), MaxVoucher)
	}
	return text, nil
}

// payload checks a voucher and writes it.
func (v Voucher) payload() ([]byte, error) {
	p := payload{ID: v.ID, Serial: v.SerialNumber, Device: string(v.Device), Claim: v.Claim, Until: v.Until.Unix()}
	if p.Device == "" {
		p.Device = anyDevice
	} else if _, err := croft.ParseDeviceID(p.Device); err != nil {
		return nil, fmt.Errorf("write voucher: %w", err)
	}
	serial := CheckSerial(p.Serial)
	switch {
	case !voucherIDForm.MatchString(p.ID):
		return nil, fmt.Errorf("write voucher: ID %.40q: want 26 characters of A-Z and 2-7", p.ID)
	case p.Serial != "" && serial != nil:
		return nil, fmt.Errorf("write voucher: %w", serial)
	case p.Until <= 0:
		return nil, errors.New("write voucher: its end is missing")
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write voucher: %w", err)
	}
	return raw, nil
}

// ParseVoucher reads the text of a voucher that one of the factory keys signed.
// Whether it is over, for this box or used, [Policy.Admit] asks.
func ParseVoucher(text string, factory []ed25519.PublicKey) (*Voucher, error) {
	v, err := parseVoucher(text, factory)
	if err != nil {
		return nil, refuse(ReasonVoucherInvalid, "read voucher: %v", err)
	}
	return v, nil
}

func parseVoucher(text string, factory []ed25519.PublicKey) (*Voucher, error) {
	if len(text) > MaxVoucher {
		return nil, fmt.Errorf("it has %d characters, more than %d", len(text), MaxVoucher)
	}
	body, ok := strings.CutPrefix(text, voucherPrefix)
	if !ok {
		return nil, fmt.Errorf("it does not begin with %s", voucherPrefix)
	}
	first, second, _ := strings.Cut(body, ".")
	if strings.ContainsAny(body, "\r\n") { // which base64 would skip
		return nil, errors.New("there is a line break in it")
	}
	raw, err := encoding.DecodeString(first)
	if err != nil {
		return nil, errors.New("its first part is not base64")
	}
	signature, err := encoding.DecodeString(second)
	if err != nil {
		return nil, errors.New("its second part is not base64")
	}
	signed := append([]byte(voucherDomain), raw...)
	if !signedByAny(factory, signed, signature) {
		return nil, errors.New("no factory key of this fleet signed it")
	}
	var p payload
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("what the factory signed is no voucher: %w", err)
	}
	v := &Voucher{ID: p.ID, SerialNumber: p.Serial, Device: croft.DeviceID(p.Device), Claim: p.Claim, Until: time.Unix(p.Until, 0).UTC()}
	if p.Device == anyDevice {
		v.Device = ""
	}
	again, err := v.payload()
	if err != nil {
		return nil, fmt.Errorf("what the factory signed is no voucher: %w", err)
	}
	if !bytes.Equal(again, raw) {
		return nil, errors.New("what the factory signed is written in another way than ours")
	}
	return v, nil
}

func signedByAny(keys []ed25519.PublicKey, signed, signature []byte) bool {
	for _, key := range keys {
		if len(key) == ed25519.PublicKeySize && ed25519.Verify(key, signed, signature) {
			return true
		}
	}
	return false
}
