package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"math/big"

	"github.com/croft-cloud/croft/chain/gogo/certv1"

	sdk "github.com/cosmos/cosmos-sdk/types"
)

const (
	// MaxCertificateSize bounds the PEM text of a certificate, in bytes. One
	// with a few host names takes a tenth of it.
	MaxCertificateSize = 8 << 10
	// MaxPubkeySize bounds the PEM text of a public key, in bytes.
	MaxPubkeySize = 1 << 10

	certificateBlock = "CERTIFICATE"
	pubkeyBlock      = "EC PUBLIC KEY" // holding PKIX, not SEC 1, whatever its name says

	maxSerialBytes = 20 // RFC 5280
)

// ValidateCreateCertificate checks the message by itself, without the state.
func ValidateCreateCertificate(msg *certv1.MsgCreateCertificate) error {
	if err := validateAddress(msg.Owner); err != nil {
		return err
	}
	_, err := parse(msg.Owner, msg.Cert, msg.Pubkey)
	return err
}

// ValidateRevokeCertificate checks the message by itself, without the state.
func ValidateRevokeCertificate(msg *certv1.MsgRevokeCertificate) error {
	if err := validateAddress(msg.ID.Owner); err != nil {
		return err
	}
	return validateSerial(msg.ID.Serial)
}

// parse reads a certificate that the owner signed for itself with the key, and
// returns its serial number in decimal. Everything is refused that is not
// exactly that: text around the PEM block, headers in it, another signer.
//
// Validity in time is not looked at: a certificate may be published before it
// begins, and stays when it has expired. Who trusts one looks at its dates.
//
// What crypto/x509 accepts is part of consensus here, so the validators of a
// chain run builds of the same Go version.
func parse(owner string, cert, pubkey []byte) (serial string, err error) {
	if len(cert) == 0 {
		return "", ErrInvalidCertificateValue.Wrap("certificate is missing")
	}
	if len(cert) > MaxCertificateSize {
		return "", ErrInvalidCertificateValue.Wrapf("%d bytes are more than %d", len(cert), MaxCertificateSize)
	}
	if len(pubkey) == 0 {
		return "", ErrInvalidPubkeyValue.Wrap("public key is missing")
	}
	if len(pubkey) > MaxPubkeySize {
		return "", ErrInvalidPubkeyValue.Wrapf("%d bytes are more than %d", len(pubkey), MaxPubkeySize)
	}
	der, ok := onlyBlock(certificateBlock, cert)
	if !ok {
		return "", ErrInvalidCertificateValue.Wrapf("text is not one PEM block of the type %q", certificateBlock)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return "", ErrInvalidCertificateValue.Wrap(err.Error())
	}
	der, ok = onlyBlock(pubkeyBlock, pubkey)
	if !ok {
		return "", ErrInvalidPubkeyValue.Wrapf("text is not one PEM block of the type %q", pubkeyBlock)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return "", ErrInvalidPubkeyValue.Wrap(err.Error())
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return "", ErrInvalidPubkeyValue.Wrapf("key is %T, not ECDSA", public)
	}
	if key.Curve != elliptic.P256() {
		return "", ErrInvalidKeySize.Wrapf("key has %d bits", key.Params().BitSize)
	}
	if !key.Equal(parsed.PublicKey) {
		return "", ErrInvalidPubkeyValue.Wrap("key is not the certificate's")
	}
	if parsed.Subject.CommonName != owner {
		return "", ErrInvalidCertificateValue.Wrap("subject's common name is not the owner's address")
	}
	if parsed.Issuer.CommonName != owner {
		return "", ErrInvalidCertificateValue.Wrap("issuer's common name is not the owner's address")
	}
	if parsed.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return "", ErrInvalidCertificateValue.Wrapf("signature is %s, not %s", parsed.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	if err := parsed.CheckSignature(parsed.SignatureAlgorithm, parsed.RawTBSCertificate, parsed.Signature); err != nil {
		return "", ErrInvalidCertificateValue.Wrap("signature is not made with the certificate's own key")
	}
	serial = parsed.SerialNumber.String()
	if err := validateSerial(serial); err != nil {
		return "", err
	}
	return serial, nil
}

// onlyBlock decodes text that is one PEM block of the type and nothing else.
func onlyBlock(kind string, text []byte) (der []byte, ok bool) {
	if !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return nil, false
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != kind || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 {
		return nil, false
	}
	// A damaged block before the good one is skipped by the decoder.
	if bytes.Count(text, []byte("-----BEGIN ")) != 1 {
		return nil, false
	}
	return block.Bytes, true
}

// validateSerial checks a serial number in the only spelling it has.
func validateSerial(serial string) error {
	const longest = 49 // digits of 2^160
	if len(serial) > longest {
		return ErrInvalidSerialNumber.Wrapf("%d digits", len(serial))
	}
	n, ok := new(big.Int).SetString(serial, 10)
	if !ok || n.Sign() <= 0 || n.String() != serial || len(n.Bytes()) > maxSerialBytes {
		return ErrInvalidSerialNumber.Wrapf("%q", serial)
	}
	return nil
}

// validateAddress checks an account address in the only spelling it has.
func validateAddress(text string) error {
	addr, err := sdk.AccAddressFromBech32(text)
	if err != nil {
		return ErrInvalidAddress.Wrap(err.Error())
	}
	if addr.String() != text {
		return ErrInvalidAddress.Wrap("it is not written in lower case")
	}
	return nil
}
