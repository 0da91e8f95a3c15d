// Package comet speaks a CometBFT node's JSON-RPC without linking CometBFT: calls
// over HTTP, and a websocket that tells of new blocks.
//
// Each call is one attempt and each subscription one connection: what to do when
// they fail is the caller's. A [*Error] means that the node has answered; any
// other error, that nobody knows whether the call arrived. Nothing is kept
// between calls.
package comet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// maxAnswerBytes bounds one answer of a node. A full block with its events
// stays far below.
const maxAnswerBytes = 64 << 20

// Node is one node's JSON-RPC address and the way there. Its fields do not change
// after it is made.
type Node struct {
	URL  *url.URL
	HTTP *http.Client // HTTP/1.1: a websocket needs it
}

// Error is the node's refusal of a call: it was reached, and answered.
type Error struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Data    string `json:"data"`
}

func (e *Error) Error() string {
	if e.Data == "" {
		return fmt.Sprintf("%s (%d)", e.Message, e.Code)
	}
	return fmt.Sprintf("%s (%d): %s", e.Message, e.Code, e.Data)
}

// Call makes one call, with no second attempt, and decodes its result into out.
func (n Node) Call(ctx context.Context, method string, params, out any) error {
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	if err != nil {
		return fmt.Errorf("encode call: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.HTTP.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(raw) > maxAnswerBytes {
		return fmt.Errorf("answer is larger than %d bytes", maxAnswerBytes)
	}
	var answer struct {
		Result json.RawMessage `json:"result"`
		Error  *Error          `json:"error"`
	}
	// CometBFT answers its own errors with status 500 and a body; a proxy's
	// error page is no JSON.
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Error == nil && answer.Result == nil {
		return fmt.Errorf("node answers HTTP %s and no JSON-RPC", resp.Status)
	}
	if answer.Error != nil {
		return answer.Error
	}
	if err := json.Unmarshal(answer.Result, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// Number is an integer that JSON carries as a string (CometBFT: 64 bits) or as a
// number.
type Number int64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *Number) UnmarshalJSON(raw []byte) error {
	v, err := strconv.ParseInt(string(bytes.Trim(raw, `"`)), 10, 64)
	if err != nil {
		return fmt.Errorf("number %.40s: want an integer of 64 bits", raw)
	}
	*n = Number(v)
	return nil
}

// ParseURL reads the address of a node: http, https, or tcp, which is how
// CometBFT spells http.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("RPC address: %w", err)
	}
	if u.Scheme == "tcp" {
		u.Scheme = "http"
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("RPC address %q: want http:// or https:// and a host", s)
	}
	return u, nil
}

// maxMessageBytes bounds one websocket message; a header with its events is far
// smaller.
const maxMessageBytes = 8 << 20

// Subscribe calls block with the height of each new block, until the connection
// breaks or ctx ends; before that, once, with 0 when the subscription was asked
// for. Connecting may take up to timeout. It always returns an error.
func (n Node) Subscribe(ctx context.Context, timeout time.Duration, block func(height int64)) error {
	u := *n.URL
	u.Path += "/websocket"
	dialing, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, _, err := websocket.Dial(dialing, u.String(), &websocket.DialOptions{HTTPClient: n.HTTP}) //nolint:bodyclose // the library owns the body
	if err != nil {
		return err
	}
	defer conn.CloseNow() //nolint:errcheck // it is over either way
	conn.SetReadLimit(maxMessageBytes)
	call := []byte(`{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"query":"tm.event='NewBlockHeader'"}}`)
	if err := conn.Write(dialing, websocket.MessageText, call); err != nil {
		return err
	}
	block(0)
	for {
		_, raw, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		if height, ok := newHeight(raw); ok {
			block(height)
		}
	}
}

// newHeight reads the height of a NewBlockHeader message.
func newHeight(raw []byte) (int64, bool) {
	var message struct {
		Result struct {
			Data struct {
				Value struct {
					Header struct {
						Height Number `json:"height"`
					} `json:"header"`
				} `json:"value"`
			} `json:"data"`
		} `json:"result"`
	}
	if err := json.Unmarshal(raw, &message); err != nil {
		return 0, false
	}
	height := int64(message.Result.Data.Value.Header.Height)
	return height, height > 0
}
