package deployment

import "cosmossdk.io/errors"

// The errors of the module. The codes are part of the wire contract: a client
// tells them apart by codespace and code, never by text.
var (
	ErrUnknownName         = errors.Register(ModuleName, 1, "deployment has no such name: check it")
	ErrInvalidRequest      = errors.Register(ModuleName, 2, "request is invalid")
	ErrDeploymentExists    = errors.Register(ModuleName, 3, "deployment exists: choose a dseq that this owner has not used")
	ErrDeploymentNotFound  = errors.Register(ModuleName, 4, "deployment is not found: check its id")
	ErrDeploymentClosed    = errors.Register(ModuleName, 5, "deployment is closed: create a new one")
	ErrNoOwnerAccount      = errors.Register(ModuleName, 6, "owner has no account: send it coins first")
	ErrInvalidGroups       = errors.Register(ModuleName, 7, "groups are invalid")
	ErrInvalidDeploymentID = errors.Register(ModuleName, 8, "deployment id is invalid")
	ErrEmptyHash           = errors.Register(ModuleName, 9, "hash is empty: give the SHA-256 of the manifest")
	ErrInvalidHash         = errors.Register(ModuleName, 10, "hash is invalid")
	ErrInternal            = errors.Register(ModuleName, 11, "deployment state is inconsistent: report this to the chain's operators")
	ErrInvalidDeployment   = errors.Register(ModuleName, 12, "deployment is invalid")
	ErrInvalidGroupID      = errors.Register(ModuleName, 13, "group id is invalid")
	ErrGroupNotFound       = errors.Register(ModuleName, 14, "group is not found: check its id")
	ErrGroupClosed         = errors.Register(ModuleName, 15, "group is closed: create a new deployment")
	ErrGroupOpen           = errors.Register(ModuleName, 16, "group is open already")
	ErrGroupPaused         = errors.Register(ModuleName, 17, "group is paused already")
	ErrGroupNotOpen        = errors.Register(ModuleName, 18, "group is not open")
	ErrInvalidGroupSpec    = errors.Register(ModuleName, 19, "group spec is invalid")
	ErrInvalidDeposit      = errors.Register(ModuleName, 20, "deposit is invalid")
	ErrInvalidIDPath       = errors.Register(ModuleName, 21, "id path is invalid: write owner/dseq")
	ErrInvalidParam        = errors.Register(ModuleName, 22, "parameter is invalid")
	ErrInvalidEscrowID     = errors.Register(ModuleName, 23, "escrow id is invalid")
	ErrInvalidPrice        = errors.Register(ModuleName, 24, "price is invalid")
	ErrDuplicateGroupName  = errors.Register(ModuleName, 25, "two groups have one name: name each differently")
	ErrInvalidReclamation  = errors.Register(ModuleName, 26, "reclamation is invalid")
)
