package audit

import "cosmossdk.io/errors"

// The errors of the module. The codes are part of the wire contract: a client
// tells them apart by codespace and code, never by text.
var (
	ErrProviderNotFound  = errors.Register(ModuleName, 1, "auditor has signed nothing about the provider: check both addresses")
	ErrInvalidAddress    = errors.Register(ModuleName, 2, "address is invalid")
	ErrAttributeNotFound = errors.Register(ModuleName, 3, "attribute is not signed: check its key")
)
