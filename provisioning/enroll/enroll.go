// Package enroll is how a device key becomes a device certificate: what the box
// and the fleet tell each other, and what each checks before it believes.
//
// It is functions and small types over crypto/x509. It has no HTTP, no SQL and
// no clock of its own but the one of TLS; what must be stored, the caller stores.
//
// # Parties and keys
//
//   - The box has one device key for life (agent/identity). Its [croft.DeviceID]
//     is the hash of that key, and the only name anybody gives it.
//   - The fleet has an [Authority]: a root key (20 years), which signs nothing
//     but issuing keys, and an issuing key (5 years, the next one is made in the
//     last year), which signs certificates of boxes and servers (90 days each).
//     Boxes pin roots and never an issuing key: servers and boxes send theirs
//     along. So an issuing key can be replaced on any day without telling a box.
//   - The fleet has a [ClaimKey], with which stored claim secrets are hashed.
//   - The operator may have a factory key, which signs a [Voucher] per box. The
//     fleet knows its public half.
//
// # Messages
//
// All of them travel by TLS 1.3 to the fleet's device port, and nothing on the
// way may end that TLS.
//
//	box                                         fleet
//	 proof of the key (TLS client certificate)
//	 Request: CSR, board, release, serial  ──►  Gate.Judge: candidate, not revoked
//	          number, voucher, claim hash       Policy.Admit: may this box come in?
//	                                            Authority.IssueDevice
//	 Trust.Accept                          ◄──  Reply: certificate, brokers, time
//	   ... at a third of its life (When) ...
//	 Renewal: CSR, by present certificate  ──►  Gate.Judge: device or expired
//	 Trust.Accept                          ◄──  Reply
//
// The proof is a certificate that the device key signs for itself ([Proof]). It
// has no dates worth reading: TLS 1.3 makes the box sign each handshake, so what
// was recorded in one cannot be used in another. The fleet takes one thing from
// a CSR, the key, and only if the handshake proved the same key; a CSR copied
// from another box is worth nothing. A certificate that expired less than
// [RenewGrace] ago may still renew, so a box may lie in a drawer. Later, its
// device key still is its name: it enrols again as it did first. A revoked
// device or certificate may do neither, ever.
//
// # Clocks
//
// A box often starts in 1970. While it does not know the time, it verifies the
// fleet's certificate at an instant inside that certificate's validity: name,
// key usage and pinned root count, dates do not. What the fleet then tells as
// its time becomes a floor ([Trust.Floor]). Once the clock is known, dates count
// ([Trust.Check] judges a connection again). The fleet takes a box's certificate
// for good also before it begins: its own replica may be the one that is late.
//
// # What a thief gets
//
//	device key (a box)        that box, until it is revoked; no other
//	device certificate        nothing: it is public
//	CSR or proof, recorded    nothing: each handshake is signed anew
//	voucher                   one place in the fleet for a key of the thief's, if the
//	                          voucher is for any key and its box has not come yet; not
//	                          the claim secret
//	factory key               places in the fleet, until its public half is taken out
//	server's key              to play the fleet to boxes until its certificate expires (90
//	                          days); to boxes that do not know the time until their
//	                          floor is past that; no certificate for anybody
//	issuing key               servers that boxes believe, and boxes of new names (a name
//	                          is a key's hash: no box that exists), for up to 5 years.
//	                          Revoking its certificate shuts out those boxes; nothing
//	                          but its end or another root shuts out the servers
//	root key                  the fleet; every box must be given another root. Keep it
//	                          offline: [Authority.PEM] is without it
//	stored claim hashes       nothing without the claim key
//	claim key                 nothing without the hashes; with them, the 40 bits of each
//	                          claim code of a box that is not claimed yet
//
// None of these lets anybody ship code to boxes: releases have keys of their own.
package enroll

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	randv2 "math/rand/v2"
	"time"

	"github.com/croft-cloud/croft"
)

const day = 24 * time.Hour

// Lives of certificates.
const (
	RootLife    = 20 * 365 * day
	IssuingLife = 5 * 365 * day
	LeafLife    = 90 * day  // of boxes and servers
	RenewGrace  = 365 * day // how long after its end a box's certificate may still renew
	Backdate    = time.Hour // certificates begin so much earlier, for clocks that are a little late
)

// MaxCSR is the most bytes a CSR has.
const MaxCSR = 2 << 10

const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY"
)

// CertID names a certificate: its serial number, in hexadecimal. (In croft's
// words a serial number is the one on the case.)
type CertID string

// CertIDOf is the ID of a certificate.
func CertIDOf(cert *x509.Certificate) CertID { return CertID(cert.SerialNumber.Text(16)) }

// DeviceOf names the device of a public key, which must be ECDSA P-256.
func DeviceOf(public crypto.PublicKey) (croft.DeviceID, error) {
	key, ok := public.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return "", errors.New("device key is not ECDSA P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("read device key: %w", err)
	}
	return croft.DeviceIDFromDigest(sha256.Sum256(der)), nil
}

// named is the device whose key a certificate or CSR is for, if that is also
// what it is called.
func named(subject pkix.Name, public crypto.PublicKey) (croft.DeviceID, error) {
	device, err := DeviceOf(public)
	if err != nil {
		return "", err
	}
	if subject.CommonName != string(device) {
		return "", fmt.Errorf("its name is %.64q, its key's is %s", subject.CommonName, device)
	}
	return device, nil
}

// Proof is the certificate with which a box shows its device key before it has
// one of the fleet's. It never expires and is the same for life but for its
// signature.
func Proof(key crypto.Signer) (*tls.Certificate, error) {
	device, err := DeviceOf(key.Public())
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: string(device)},
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280: no end
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign proof of device key: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read proof of device key: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// NewCSR asks for a certificate for the device key: PKCS #10, DER.
func NewCSR(key crypto.Signer) ([]byte, error) {
	device, err := DeviceOf(key.Public())
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: string(device)},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate request: %w", err)
	}
	return csr, nil
}

// readCSR takes from a CSR what is ever taken from one: its key, and whose that
// is. Whatever else it asks for is not looked at.
func readCSR(der []byte) (croft.DeviceID, crypto.PublicKey, error) {
	if len(der) > MaxCSR {
		return "", nil, refuse(ReasonCSR, "certificate request has %d bytes, more than %d", len(der), MaxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return "", nil, refuse(ReasonCSR, "read certificate request: %v", err)
	}
	device, err := named(csr.Subject, csr.PublicKey)
	if err != nil {
		return "", nil, refuse(ReasonCSR, "read certificate request: %v", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return "", nil, refuse(ReasonCSR, "certificate request is not signed by its key: %v", err)
	}
	return device, csr.PublicKey, nil
}

// When is the instant at which to renew a certificate: a third of its life after
// it began, and up to a thirtieth more, so that boxes enrolled in one hour do
// not renew in one. The same seed, say of the device ID, gives the same instant.
//
// It is never before now: what is overdue is due now. A caller that then fails
// waits by its own back-off.
func When(cert *x509.Certificate, now time.Time, seed uint64) time.Time {
	life := cert.NotAfter.Sub(cert.NotBefore)
	share := randv2.New(randv2.NewPCG(seed, uint64(cert.NotBefore.Unix()))).Float64()
	due := cert.NotBefore.Add(life/3 + time.Duration(share*float64(life/30)))
	if due.Before(now) {
		return now
	}
	return due
}

// ParseRoots reads the fleet's roots, as pinned by boxes: PEM, one or more. It
// refuses certificates that are not roots, for whoever pins one that expires in
// five years has a fleet that stops in five years.
func ParseRoots(text []byte) ([]*x509.Certificate, error) {
	roots, err := parseCertificates(text)
	if err != nil {
		return nil, badRoots(err)
	}
	if len(roots) == 0 {
		return nil, badRoots(errors.New("there is no certificate in them"))
	}
	for _, root := range roots {
		if !isRoot(root) {
			return nil, badRoots(fmt.Errorf("%.64q is not the certificate of a root", root.Subject.CommonName))
		}
	}
	return roots, nil
}

func badRoots(err error) error {
	return &croft.Error{
		Kind:   croft.KindInvalid,
		Err:    fmt.Errorf("read the fleet's roots: %w", err),
		Remedy: "ask the fleet's operator for its root certificate",
	}
}

func isRoot(cert *x509.Certificate) bool { return cert.IsCA && cert.CheckSignatureFrom(cert) == nil }

// parseCertificates reads text that holds certificates in PEM and nothing else.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	err := eachPEM(text, func(block *pem.Block) error {
		if block.Type != pemCertificate {
			return fmt.Errorf("there is a %.64q, want only certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("parse certificate: %w", err)
		}
		certs = append(certs, cert)
		return nil
	})
	return certs, err
}

// maxPEM is the most bytes of PEM that are looked at.
const maxPEM = 64 << 10

func eachPEM(text []byte, visit func(*pem.Block) error) error {
	if len(text) > maxPEM {
		return fmt.Errorf("there are %d bytes, more than %d", len(text), maxPEM)
	}
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil
		}
		if err := visit(block); err != nil {
			return err
		}
		text = rest
	}
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool
}

// maxChain is the most certificates a peer may send: its own, an issuing one, a
// root, and one to spare.
const maxChain = 4
