package audit

import (
	"context"
	"slices"
	"strings"

	"github.com/croft-cloud/croft/chain/gogo/attributesv1"
	"github.com/croft-cloud/croft/chain/gogo/auditv1"

	"cosmossdk.io/errors"
)

type msgServer struct {
	k *Keeper
}

// NewMsgServer serves the module's messages.
func NewMsgServer(k *Keeper) auditv1.MsgServer {
	return msgServer{k}
}

// SignProviderAttributes adds attributes to what the signer has signed about a
// provider, and replaces those with the same keys.
func (s msgServer) SignProviderAttributes(ctx context.Context, msg *auditv1.MsgSignProviderAttributes) (*auditv1.MsgSignProviderAttributesResponse, error) {
	if err := ValidateSignProviderAttributes(msg); err != nil {
		return nil, err
	}
	owner, auditor, err := parties(msg.Owner, msg.Auditor)
	if err != nil {
		return nil, err
	}
	record, _, err := s.k.GetProviderByAuditor(ctx, owner, auditor)
	if err != nil {
		return nil, err
	}
	merged := merge(record.Attributes, msg.Attributes)
	if err := validateAttributes(merged); err != nil { // too many, in all
		return nil, err
	}
	if err := s.k.set(ctx, owner, auditor, merged); err != nil {
		return nil, err
	}
	if err := emit(ctx, &auditv1.EventTrustedAuditorCreated{Owner: msg.Owner, Auditor: msg.Auditor}); err != nil {
		return nil, err
	}
	return &auditv1.MsgSignProviderAttributesResponse{}, nil
}

// DeleteProviderAttributes takes back what the signer has signed about a
// provider: the named keys, or all if none is named.
func (s msgServer) DeleteProviderAttributes(ctx context.Context, msg *auditv1.MsgDeleteProviderAttributes) (*auditv1.MsgDeleteProviderAttributesResponse, error) {
	if err := ValidateDeleteProviderAttributes(msg); err != nil {
		return nil, err
	}
	owner, auditor, err := parties(msg.Owner, msg.Auditor)
	if err != nil {
		return nil, err
	}
	record, found, err := s.k.GetProviderByAuditor(ctx, owner, auditor)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errors.Wrapf(ErrProviderNotFound, "provider %s, auditor %s", msg.Owner, msg.Auditor)
	}
	left, err := without(record.Attributes, msg.Keys)
	if err != nil {
		return nil, err
	}
	if err := s.k.set(ctx, owner, auditor, left); err != nil {
		return nil, err
	}
	if err := emit(ctx, &auditv1.EventTrustedAuditorDeleted{Owner: msg.Owner, Auditor: msg.Auditor}); err != nil {
		return nil, err
	}
	return &auditv1.MsgDeleteProviderAttributesResponse{}, nil
}

// merge is the attributes of both lists by key, those of the second where both
// have one.
func merge(have, add []attributesv1.Attribute) []attributesv1.Attribute {
	merged := slices.Clone(add)
	slices.SortFunc(merged, byKey)
	for _, a := range have {
		i, found := slices.BinarySearchFunc(merged, a, byKey)
		if !found {
			merged = slices.Insert(merged, i, a)
		}
	}
	return merged
}

// without is what is left of sorted attributes after the keys are taken away;
// no keys are all.
func without(have []attributesv1.Attribute, keys []string) ([]attributesv1.Attribute, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	left := slices.Clone(have)
	for _, key := range keys {
		i, found := slices.BinarySearchFunc(left, attributesv1.Attribute{Key: key}, byKey)
		if !found {
			return nil, errors.Wrapf(ErrAttributeNotFound, "%.64q", key)
		}
		left = slices.Delete(left, i, i+1)
	}
	return left, nil
}

func byKey(a, b attributesv1.Attribute) int {
	return strings.Compare(a.Key, b.Key)
}
