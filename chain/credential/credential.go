// Package credential makes and checks what a tenant shows to a provider's
// gateway, and a provider to its tenants: certificates registered on the chain,
// and tokens signed by an account key. It is used by both sides.
//
// Certificates (x/cert). Each account may publish self-signed certificates; the
// chain, not a certificate authority, says which are valid. The TLS handshake
// proves that the peer holds the certificate's key; the peer's certificate names
// an account and a serial number; a query tells whether that pair is valid on
// the chain. [NewCertificate] makes a pair to publish, [PeerCertificate] checks
// everything about a peer's certificate that needs no chain.
//
// Tokens (JWT, AEP-64). The tenant signs claims with its account key ([Sign]);
// the gateway takes the public key of the claimed account from the chain
// ([Verifier]), and asks [Claims.Allows] about each request. A token is good for
// every provider it does not exclude, until it expires: it cannot be revoked, so
// keep [Lifetime] short.
//
//	token, err := credential.Sign(ctx, key, credential.FullAccess(time.Now()))
//	claims, err := verifier.Verify(ctx, token, time.Now())
//	if !claims.Allows(credential.Request{Provider: me, Scope: credential.ScopeLogs, Owner: …, DSeq: 7, …}) { … 403 }
//
// Two signature algorithms exist: ES256K, plain; and ES256KADR36, where a
// browser wallet wraps what it signs in a document that cannot be a transaction.
// Any other "alg", "none" above all, is refused by name before a key is asked
// for.
//
// The package does no I/O and keeps no state; time is a parameter.
package credential
