package cert

import (
	"context"

	"github.com/croft-cloud/croft/chain/gogo/certv1"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"cosmossdk.io/collections"

	sdk "github.com/cosmos/cosmos-sdk/types"
	"github.com/cosmos/cosmos-sdk/types/query"
)

// maxPage is how many certificates one answer holds. Who asks for more gets so
// many and the key of the next page.
const maxPage = 1000

type msgServer struct {
	keeper *Keeper
}

// NewMsgServer returns the message service of the module.
func NewMsgServer(k *Keeper) certv1.MsgServer { return msgServer{keeper: k} }

// CreateCertificate publishes a certificate of the signer.
func (s msgServer) CreateCertificate(ctx context.Context, msg *certv1.MsgCreateCertificate) (*certv1.MsgCreateCertificateResponse, error) {
	if err := validateAddress(msg.Owner); err != nil { // Create checks the rest
		return nil, err
	}
	owner, err := sdk.AccAddressFromBech32(msg.Owner)
	if err != nil {
		return nil, ErrInvalidAddress.Wrap(err.Error())
	}
	if _, err := s.keeper.Create(ctx, owner, msg.Cert, msg.Pubkey); err != nil {
		return nil, err
	}
	return &certv1.MsgCreateCertificateResponse{}, nil
}

// RevokeCertificate takes a certificate of the signer back.
func (s msgServer) RevokeCertificate(ctx context.Context, msg *certv1.MsgRevokeCertificate) (*certv1.MsgRevokeCertificateResponse, error) {
	if err := ValidateRevokeCertificate(msg); err != nil {
		return nil, err
	}
	owner, err := sdk.AccAddressFromBech32(msg.ID.Owner)
	if err != nil {
		return nil, ErrInvalidAddress.Wrap(err.Error())
	}
	if err := s.keeper.Revoke(ctx, owner, msg.ID.Serial); err != nil {
		return nil, err
	}
	return &certv1.MsgRevokeCertificateResponse{}, nil
}

type queryServer struct {
	keeper *Keeper
}

// NewQueryServer returns the query service of the module.
func NewQueryServer(k *Keeper) certv1.QueryServer { return queryServer{keeper: k} }

// Certificates lists what the filter selects; what is empty in it selects all.
// Each combination is answered from an index that holds little else.
func (s queryServer) Certificates(ctx context.Context, req *certv1.QueryCertificatesRequest) (*certv1.QueryCertificatesResponse, error) {
	if req == nil {
		return nil, status.Error(codes.InvalidArgument, "request is empty")
	}
	want, err := readFilter(req.Filter)
	if err != nil {
		return nil, err
	}
	var ask query.PageRequest
	if req.Pagination != nil {
		ask = *req.Pagination
	}
	ask.Limit = min(ask.Limit, maxPage)
	if ask.Offset > 0 && len(ask.Key) > 0 {
		return nil, status.Error(codes.InvalidArgument, "pagination has both an offset and a key: give one of them")
	}
	if ask.Offset > 0 && want.state == certv1.StateInvalid {
		return nil, status.Error(codes.InvalidArgument, "offset needs a state: valid or revoked")
	}
	found, page, err := s.list(ctx, want, &ask)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "list certificates: %s", err)
	}
	return &certv1.QueryCertificatesResponse{Certificates: found, Pagination: page}, nil
}

// filter is a filter that was read. What is zero selects all.
type filter struct {
	owner  sdk.AccAddress
	serial string
	state  certv1.State
}

func readFilter(f certv1.CertificateFilter) (filter, error) {
	want := filter{serial: f.Serial}
	if f.Owner != "" {
		if err := validateAddress(f.Owner); err != nil {
			return filter{}, status.Errorf(codes.InvalidArgument, "owner: %s", err)
		}
		owner, err := sdk.AccAddressFromBech32(f.Owner)
		if err != nil {
			return filter{}, status.Errorf(codes.InvalidArgument, "owner: %s", err)
		}
		want.owner = owner
	}
	if f.Serial != "" {
		if err := validateSerial(f.Serial); err != nil {
			return filter{}, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	if f.State != "" {
		value, ok := certv1.State_value[f.State]
		if !ok || value == int32(certv1.StateInvalid) {
			return filter{}, status.Errorf(codes.InvalidArgument, "state %.32q is unknown: valid or revoked", f.State)
		}
		want.state = certv1.State(value)
	}
	return want, nil
}

func (s queryServer) list(ctx context.Context, want filter, ask *query.PageRequest) ([]certv1.CertificateResponse, *query.PageResponse, error) {
	certificates := s.keeper.certificates
	show := func(key certKey, c certv1.Certificate) (certv1.CertificateResponse, error) {
		return certv1.CertificateResponse{Certificate: c, Serial: key.K2()}, nil
	}
	look := func(key certKey) (certv1.CertificateResponse, error) {
		c, err := certificates.Get(ctx, key)
		if err != nil {
			return certv1.CertificateResponse{}, err
		}
		return show(key, c)
	}
	switch {
	case want.owner != nil && want.serial != "":
		c, ok, err := s.keeper.Get(ctx, want.owner, want.serial)
		if err != nil || !ok || (want.state != certv1.StateInvalid && c.State != want.state) || ask.Offset > 0 || len(ask.Key) > 0 {
			return nil, &query.PageResponse{}, err
		}
		one, err := show(collections.Join(want.owner, want.serial), c)
		return []certv1.CertificateResponse{one}, &query.PageResponse{Total: 1}, err
	case want.serial != "":
		prefix := collections.PairPrefix[string, certKey](want.serial)
		return query.CollectionFilteredPaginate(ctx, certificates.Indexes.serial, ask,
			func(key collections.Pair[string, certKey], _ collections.NoValue) (bool, error) {
				if want.state == certv1.StateInvalid {
					return true, nil
				}
				c, err := certificates.Get(ctx, key.K2())
				return c.State == want.state, err
			},
			func(key collections.Pair[string, certKey], _ collections.NoValue) (certv1.CertificateResponse, error) {
				return look(key.K2())
			},
			func(o *query.CollectionsPaginateOptions[collections.Pair[string, certKey]]) { o.Prefix = &prefix })
	case want.state != certv1.StateInvalid:
		prefix := collections.PairPrefix[int32, certKey](int32(want.state))
		if want.owner != nil {
			prefix = collections.Join(int32(want.state), collections.PairPrefix[sdk.AccAddress, string](want.owner))
		}
		return query.CollectionPaginate(ctx, certificates.Indexes.state, ask,
			func(key collections.Pair[int32, certKey], _ collections.NoValue) (certv1.CertificateResponse, error) {
				return look(key.K2())
			},
			func(o *query.CollectionsPaginateOptions[collections.Pair[int32, certKey]]) { o.Prefix = &prefix })
	case want.owner != nil:
		return query.CollectionPaginate(ctx, certificates, ask, show, query.WithCollectionPaginationPairPrefix[sdk.AccAddress, string](want.owner))
	default:
		return query.CollectionPaginate(ctx, certificates, ask, show)
	}
}
