package cert

import "cosmossdk.io/errors"

// The errors of the module. The codes are part of the wire contract: a client
// tells them apart by codespace and code, never by text.
var (
	ErrCertificateNotFound       = errors.Register(ModuleName, 1, "certificate is not found: check its owner and serial number")
	ErrInvalidAddress            = errors.Register(ModuleName, 2, "address is invalid")
	ErrCertificateExists         = errors.Register(ModuleName, 3, "certificate exists: make one with another serial number")
	ErrCertificateAlreadyRevoked = errors.Register(ModuleName, 4, "certificate is revoked already")
	ErrInvalidSerialNumber       = errors.Register(ModuleName, 5, "serial number is invalid: write it in decimal, above zero, at most 20 bytes of it")
	ErrInvalidCertificateValue   = errors.Register(ModuleName, 6, "certificate is invalid")
	ErrInvalidPubkeyValue        = errors.Register(ModuleName, 7, "public key is invalid")
	ErrInvalidState              = errors.Register(ModuleName, 8, "certificate state is invalid: valid or revoked")
	ErrInvalidKeySize            = errors.Register(ModuleName, 9, "key is not on the curve P-256: make one that is")
)
