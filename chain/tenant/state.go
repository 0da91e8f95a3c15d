package tenant

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/client"
)

// Stage is how far a deployment has come. It is stored before what follows from
// it is done.
type Stage string

// The stages, in their usual order. From each, the deployment may also turn out
// to be closed, or be closed.
const (
	// Planned: the number is ours and the request is stored; the deployment may
	// be on the chain. Transitions to: Created, Failed.
	Planned Stage = "planned"
	// Created: the deployment is on the chain and its orders wait for bids.
	// Transitions to: Chosen, Leased, Updating, Failed.
	Created Stage = "created"
	// Chosen: the bids to accept are stored; the leases may be on the chain.
	// Transitions to: Leased; Created, when a bid is gone; Updating, Failed.
	Chosen Stage = "chosen"
	// Leased: there are leases, and some provider may lack the manifest.
	// Transitions to: Sent, Updating, Failed.
	Leased Stage = "leased"
	// Sent: each provider has taken the manifest.
	// Transitions to: Answering, Updating, Failed.
	Sent Stage = "sent"
	// Answering: the workload was seen to answer. Transitions to: Updating, Failed.
	Answering Stage = "answering"
	// Updating: a new manifest is stored and its hash may be on the chain.
	// Transitions to: Leased, Created, Failed.
	Updating Stage = "updating"
	// Failed: a lease is lost, or the deployment was never made; money may be
	// left in escrow. Transitions to: Created, Updating.
	Failed Stage = "failed"
	// Closing: the deployment is to be closed; it may be already.
	// Transitions to: Closed.
	Closing Stage = "closing"
	// Closed: the deployment is over and what was left of the deposit is back.
	Closed Stage = "closed"
)

// law lists every allowed transition. What is not in it is refused.
var law = map[Stage][]Stage{
	Planned:   {Created, Failed, Closing, Closed},
	Created:   {Chosen, Leased, Updating, Failed, Closing, Closed},
	Chosen:    {Leased, Created, Updating, Failed, Closing, Closed},
	Leased:    {Sent, Updating, Failed, Closing, Closed},
	Sent:      {Answering, Updating, Failed, Closing, Closed},
	Answering: {Updating, Failed, Closing, Closed},
	Updating:  {Leased, Created, Failed, Closing, Closed},
	Failed:    {Created, Updating, Closing, Closed},
	Closing:   {Closed},
	Closed:    {},
}

// MoveError reports a transition that is not in the table.
type MoveError struct{ From, To Stage }

func (e *MoveError) Error() string {
	return fmt.Sprintf("deployment is %s, cannot become %s", e.From, e.To)
}

// Next is to, if it may follow s. A stage may follow itself.
func (s Stage) Next(to Stage) (Stage, error) {
	if s == to || slices.Contains(law[s], to) {
		return to, nil
	}
	return s, &MoveError{From: s, To: to}
}

// Settled reports whether nothing is left to do for Deploy.
func (s Stage) Settled() bool { return s == Answering || s == Closed }

// Record is what is remembered of one deployment. It holds the manifest, and so
// whatever secrets the tenant wrote there: its file has mode 0600.
type Record struct {
	Version  int             `json:"version"` // of this form: 1
	Chain    string          `json:"chain"`   // chain id
	Owner    account.Address `json:"owner"`
	DSeq     uint64          `json:"dseq"`
	Stage    Stage           `json:"stage"`
	Reason   string          `json:"reason,omitempty"` // why it failed or was closed
	Name     string          `json:"name,omitempty"`   // what the tenant calls it; no meaning to anybody else
	Manifest json.RawMessage `json:"manifest,omitempty"`
	Hash     []byte          `json:"hash,omitempty"`    // of Manifest: 32 bytes
	Create   []byte          `json:"create,omitempty"`  // the encoded MsgCreateDeployment; none if made elsewhere
	Chosen   []Pick          `json:"chosen,omitempty"`  // bids to accept
	Leases   []LeaseRecord   `json:"leases,omitempty"`  // active ones
	URIs     []string        `json:"uris,omitempty"`    // where it answered last
	Update   *Revision       `json:"update,omitempty"`  // what an update puts in the place of Manifest and Hash
	Pending  *client.Signed  `json:"pending,omitempty"` // a transaction whose fate is not known
	Begun    time.Time       `json:"begun"`             // when it was planned
	Changed  time.Time       `json:"changed"`           // when this was written
}

// Pick is a bid that was chosen, and its price then.
type Pick struct {
	GSeq     uint32          `json:"gseq"`
	OSeq     uint32          `json:"oseq"`
	Provider account.Address `json:"provider"`
	Denom    string          `json:"denom"`
	Amount   string          `json:"amount"` // for each block, with eighteen decimals
}

// LeaseRecord is a lease and what its provider has.
type LeaseRecord struct {
	GSeq     uint32          `json:"gseq"`
	OSeq     uint32          `json:"oseq"`
	Provider account.Address `json:"provider"`
	Denom    string          `json:"denom"`
	Amount   string          `json:"amount"`         // for each block, with eighteen decimals
	Sent     bool            `json:"sent,omitempty"` // the provider took the manifest that stands in the record
}

// Revision is a manifest that replaces another.
type Revision struct {
	Manifest json.RawMessage `json:"manifest"`
	Hash     []byte          `json:"hash"`
}

// ID names the deployment.
func (r *Record) ID() akash.DeploymentID {
	return akash.DeploymentID{Owner: r.Owner, DSeq: r.DSeq}
}

// LeaseIDs names the leases.
func (r *Record) LeaseIDs() []akash.LeaseID {
	ids := make([]akash.LeaseID, len(r.Leases))
	for i, l := range r.Leases {
		ids[i] = l.ID(r.ID())
	}
	return ids
}

// ID names the lease of a deployment.
func (l LeaseRecord) ID(of akash.DeploymentID) akash.LeaseID {
	return akash.LeaseID{
		OrderID:  akash.OrderID{GroupID: akash.GroupID{DeploymentID: of, GSeq: l.GSeq}, OSeq: l.OSeq},
		Provider: l.Provider,
	}
}

// Price is what the lease costs for each block.
func (l LeaseRecord) Price() (akash.Price, error) {
	amount, err := akash.ParseDec(l.Amount)
	return akash.Price{Denom: l.Denom, Amount: amount}, err
}

func (r *Record) check() error {
	if r.Version != recordVersion {
		return fmt.Errorf("record has version %d, this program knows %d", r.Version, recordVersion)
	}
	if _, ok := law[r.Stage]; !ok {
		return fmt.Errorf("stage %q is unknown", r.Stage)
	}
	if _, err := account.ParseAddress(string(r.Owner)); err != nil {
		return err
	}
	if r.DSeq == 0 {
		return errors.New("dseq is missing")
	}
	return nil
}

const recordVersion = 1

// Store remembers deployments in a folder: one file each, replaced whole, so
// that after a crash either the old record or the new one is there.
//
//	FOLDER/CHAIN/OWNER/DSEQ.json
//	FOLDER/CHAIN/OWNER/client.pem   the client certificate and its key, if any
type Store struct {
	dir   string
	saved func(*Record) // tests only: called after each save
}

// OpenStore makes the folder (mode 0700) if it is not there.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open deployments folder: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Load reads the record of a deployment. None is [croft.KindNotFound].
func (s *Store) Load(chain string, id akash.DeploymentID) (*Record, error) {
	path, err := s.path(chain, id.Owner, fileName(id.DSeq))
	if err != nil {
		return nil, err
	}
	r, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &croft.Error{
			Kind: croft.KindNotFound, Err: fmt.Errorf("deployment %s is not remembered here", id),
			Remedy: "look at its number, and at the folder of deployments",
		}
	}
	if err != nil {
		return nil, err
	}
	if r.Chain != chain || r.ID() != id {
		return nil, damaged(path, fmt.Errorf("it is about %s on %s", r.ID(), r.Chain))
	}
	return r, nil
}

// List reads all records of an owner on a chain, the oldest number first.
func (s *Store) List(chain string, owner account.Address) ([]*Record, error) {
	dir, err := s.path(chain, owner, "")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	var records []*Record
	for _, e := range entries {
		number, ok := strings.CutSuffix(e.Name(), ".json")
		dseq, err := strconv.ParseUint(number, 10, 64)
		if !ok || err != nil {
			continue
		}
		r, err := s.Load(chain, akash.DeploymentID{Owner: owner, DSeq: dseq})
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b *Record) int { return cmp.Compare(a.DSeq, b.DSeq) })
	return records, nil
}

// Forget removes a record. It does nothing to the deployment.
func (s *Store) Forget(chain string, id akash.DeploymentID) error {
	path, err := s.path(chain, id.Owner, fileName(id.DSeq))
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget deployment: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// save writes r. It is durable when save returns nil.
func (s *Store) save(r *Record) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("remember deployment %s: %w", r.ID(), err)
	}
	raw, err := json.Marshal(r) // without indent, which would change the bytes of the manifest
	if err != nil {
		return fmt.Errorf("remember deployment %s: %w", r.ID(), err)
	}
	path, err := s.path(r.Chain, r.Owner, fileName(r.DSeq))
	if err != nil {
		return err
	}
	if err := replace(path, append(raw, '\n')); err != nil {
		return fmt.Errorf("remember deployment %s: %w", r.ID(), err)
	}
	if s.saved != nil {
		s.saved(r)
	}
	return nil
}

// lock keeps other processes, and other calls in this one, off a deployment
// until the function it returns is called. The kernel takes it back when the
// process ends, however it ends.
func (s *Store) lock(chain string, id akash.DeploymentID) (unlock func(), err error) {
	path, err := s.path(chain, id.Owner, "."+strconv.FormatUint(id.DSeq, 10)+".lock")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("lock deployment %s: %w", id, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock deployment %s: %w", id, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &croft.Error{
			Kind: croft.KindRefused, Err: fmt.Errorf("deployment %s is being worked on by another call: %w", id, err),
			Remedy: "wait for it to end, or end it",
		}
	}
	return func() { f.Close() }, nil
}

var chainForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func fileName(dseq uint64) string { return strconv.FormatUint(dseq, 10) + ".json" }

func (s *Store) path(chain string, owner account.Address, name string) (string, error) {
	if !chainForm.MatchString(chain) {
		return "", fmt.Errorf("chain id %q cannot name a folder", chain)
	}
	if _, err := account.ParseAddress(string(owner)); err != nil {
		return "", err
	}
	return filepath.Join(s.dir, chain, string(owner), name), nil
}

// maxRecordBytes bounds a record: a manifest twice, and little else.
const maxRecordBytes = 16 << 20

func read(path string) (*Record, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxRecordBytes {
		return nil, damaged(path, errors.New("it is too large"))
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, damaged(path, err)
	}
	if err := r.check(); err != nil {
		return nil, damaged(path, err)
	}
	return &r, nil
}

func damaged(path string, err error) error {
	return &croft.Error{
		Kind: croft.KindInvalid, Err: fmt.Errorf("read %s: %w", path, err),
		Remedy: "move the file away; the chain still knows the deployment, its manifest can be fetched from the provider",
	}
}

// replace puts content in the place of the file at path, durably.
func replace(path string, content []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a leftover is hidden and unread
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
