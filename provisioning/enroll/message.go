package enroll

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/croft-cloud/croft"
)

// Version of the messages. The fleet understands all that stand here; a box
// names its own in [Request]. Fields that are not known are ignored.
//
//	1  2026-11-21  enrol, renew, time
const Version = 1

// Paths on the fleet's device port.
const (
	PathEnroll = "/v1/enroll" // POST [Request] → [Reply], by [Proof]
	PathRenew  = "/v1/renew"  // POST [Renewal] → [Reply], by the present certificate
	PathTime   = "/v1/time"   // GET → [TimeReply]
)

// MaxMessage is the most bytes of a message.
const MaxMessage = 16 << 10

// Request asks for the first certificate.
type Request struct {
	Version      int           `json:"version"`
	CSR          []byte        `json:"csr"`                     // [NewCSR]
	Board        string        `json:"board"`                   // a name of firmware/boards
	Release      croft.Version `json:"release"`                 // which runs
	SerialNumber string        `json:"serial_number,omitempty"` // on the case; empty if the box knows none
	Voucher      string        `json:"voucher,omitempty"`       // of the factory, if there is one
	Claim        ClaimHash     `json:"claim,omitzero"`          // of the claim code on the box's screen
}

// Renewal asks for the next certificate.
type Renewal struct {
	CSR []byte `json:"csr"` // [NewCSR]
}

// Reply brings a certificate.
type Reply struct {
	Certificate string    `json:"certificate"` // PEM: the box's, then its issuer's; for [Trust.Accept]
	Brokers     []string  `json:"brokers"`     // tls://host:port
	Time        time.Time `json:"time"`        // the fleet's; for [Trust.Floor]
}

// TimeReply tells the fleet's time.
type TimeReply struct {
	Time time.Time `json:"time"` // for [Trust.Floor]
}

// NewReply tells a box its certificate.
func NewReply(issued *Issued, brokers []string, now time.Time) Reply {
	return Reply{Certificate: issued.Chain, Brokers: brokers, Time: wireTime(now)}
}

// NewTimeReply tells the time, to the millisecond.
func NewTimeReply(now time.Time) TimeReply { return TimeReply{Time: wireTime(now)} }

func wireTime(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// What fields look like. They end in pages and logs, so their alphabets are
// narrow.
var (
	serialForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$`)
	boardForm  = regexp.MustCompile(`^[0-9a-z][0-9a-z._-]{0,31}$`)
)

// CheckSerial is nil for what can be a serial number.
func CheckSerial(s string) error {
	if serialForm.MatchString(s) {
		return nil
	}
	return fmt.Errorf("serial number %.80q: want 1 to 64 of letters, digits, '.', '_' and '-', beginning with a letter or digit", s)
}

// ParseRequest reads and checks what a box sent. The CSR and the voucher are
// checked where they are used.
func ParseRequest(raw []byte) (*Request, error) {
	req, err := parse[Request](raw)
	if err != nil {
		return nil, err
	}
	serial := CheckSerial(req.SerialNumber)
	switch {
	case req.Version < 1:
		return nil, refuse(ReasonMessage, "read message: version %d: want 1 or more", req.Version)
	case !boardForm.MatchString(req.Board):
		return nil, refuse(ReasonMessage, "read message: board %.40q: want 1 to 32 of a-z, digits, '.', '_' and '-'", req.Board)
	case req.SerialNumber != "" && serial != nil:
		return nil, refuse(ReasonMessage, "read message: %v", serial)
	}
	if _, err := croft.ParseVersion(string(req.Release)); err != nil {
		return nil, refuse(ReasonMessage, "read message: release %.40q is no release", req.Release)
	}
	return req, nil
}

// ParseRenewal reads what a box sent.
func ParseRenewal(raw []byte) (*Renewal, error) { return parse[Renewal](raw) }

// ParseReply reads what the fleet sent. The certificate is checked by
// [Trust.Accept].
func ParseReply(raw []byte) (*Reply, error) { return parse[Reply](raw) }

// ParseTimeReply reads what the fleet sent.
func ParseTimeReply(raw []byte) (*TimeReply, error) { return parse[TimeReply](raw) }

// ParseRefusal reads why the fleet refused, as a *[croft.Error] over a
// *[Refusal].
func ParseRefusal(raw []byte) error {
	r, err := parse[Refusal](raw)
	if err != nil {
		return err
	}
	if r.Reason == "" {
		return refuse(ReasonMessage, "read message: the fleet's refusal has no reason")
	}
	return r.Explained()
}

func parse[M any](raw []byte) (*M, error) {
	if len(raw) > MaxMessage {
		return nil, refuse(ReasonMessage, "read message: it has %d bytes, more than %d", len(raw), MaxMessage)
	}
	var m M
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, refuse(ReasonMessage, "read message: %v", err)
	}
	return &m, nil
}
