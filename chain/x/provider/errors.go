package provider

import "cosmossdk.io/errors"

// The errors of the module. The codes are part of the wire contract: a client
// tells them apart by codespace and code, never by text.
var (
	ErrInvalidURI             = errors.Register(ModuleName, 1, "host_uri is invalid: write https://host, with a port if it is not 443 and without a path")
	ErrNotAbsoluteURI         = errors.Register(ModuleName, 2, "host_uri is not absolute: write https://host, with a port if it is not 443 and without a path")
	ErrProviderNotFound       = errors.Register(ModuleName, 3, "provider is not found: register it with MsgCreateProvider first")
	ErrProviderExists         = errors.Register(ModuleName, 4, "provider exists: change it with MsgUpdateProvider")
	ErrInvalidAddress         = errors.Register(ModuleName, 5, "address is invalid")
	ErrInvalidAttributes      = errors.Register(ModuleName, 6, "attributes are invalid")
	ErrIncompatibleAttributes = errors.Register(ModuleName, 7, "attributes do not fit the provider's leases")
	ErrInvalidInfo            = errors.Register(ModuleName, 8, "website is invalid: write a URL, or leave it empty")
	ErrInternal               = errors.Register(ModuleName, 9, "provider cannot do this")
)
