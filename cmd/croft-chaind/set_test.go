//go:build integration

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// process is one croft-chaind.
type process struct {
	t    *testing.T
	home string
	rpc  string
	p2p  string
	cmd  *exec.Cmd
	args []string
	log  *buffer
	done chan struct{}
}

// buffer collects output of a process.
type buffer struct {
	mu  sync.Mutex
	all bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all.String()
}

func chaind(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "croft-chaind", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("croft-chaind %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newProcess(t *testing.T, home string, args ...string) *process {
	t.Helper()
	p := &process{t: t, home: home, rpc: freePort(t), p2p: freePort(t)}
	p.args = append([]string{"start", "--home", home, "--rpc", p.rpc, "--grpc", "127.0.0.1:0", "--rest", "127.0.0.1:0"}, args...)
	return p
}

func (p *process) start() {
	p.t.Helper()
	p.log, p.done = &buffer{}, make(chan struct{})
	p.cmd = exec.Command("croft-chaind", p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, done := p.cmd, p.done
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	p.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if p.t.Failed() {
			p.t.Logf("%s:\n%.8000s", p.home, p.log)
		}
	})
}

// kill is kill -9.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	<-p.done
}

type syncInfo struct {
	Height     int64 `json:"latest_block_height,string"`
	Earliest   int64 `json:"earliest_block_height,string"`
	CatchingUp bool  `json:"catching_up"`
}

func (p *process) ask(path string, result any) error {
	raw, err := fetch(p.t.Context(), "http://"+p.rpc+"/"+path)
	if err != nil {
		return err
	}
	var answer struct {
		Result json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	return json.Unmarshal(answer.Result, result)
}

func (p *process) status() (syncInfo, error) {
	var s struct {
		SyncInfo syncInfo `json:"sync_info"`
	}
	err := p.ask("status", &s)
	return s.SyncInfo, err
}

// waitHeight waits until the node has that block and is in consensus.
func (p *process) waitHeight(height int64) syncInfo {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 90*time.Second)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	var last syncInfo
	for {
		select {
		case <-ctx.Done():
			p.t.Fatalf("%s stands at %+v, waited for %d", p.home, last, height)
		case <-p.done:
			p.t.Fatalf("%s ended: %v", p.home, p.cmd.ProcessState)
		case <-ticker.C:
		}
		s, err := p.status()
		if err != nil {
			continue
		}
		if last = s; s.Height >= height && !s.CatchingUp {
			return s
		}
	}
}

// appHash is the hash of the state before that block.
func (p *process) appHash(height int64) string {
	p.t.Helper()
	var h struct {
		Header struct {
			AppHash string `json:"app_hash"`
		} `json:"header"`
	}
	if err := p.ask(fmt.Sprintf("header?height=%d", height), &h); err != nil || h.Header.AppHash == "" {
		p.t.Fatalf("%s: app hash at %d: %q, %v", p.home, height, h.Header.AppHash, err)
	}
	return h.Header.AppHash
}

func sameHash(t *testing.T, height int64, all ...*process) {
	t.Helper()
	want := all[0].appHash(height)
	for _, p := range all[1:] {
		if got := p.appHash(height); got != want {
			t.Errorf("at %d %s has app hash %s, %s has %s", height, p.home, got, all[0].home, want)
		}
	}
}

// newSet makes a set of validators, not started yet.
func newSet(t *testing.T, n int, args ...string) (set []*process, genesis, peers string) {
	t.Helper()
	dir := t.TempDir()
	var files []string
	for i := range n {
		home := filepath.Join(dir, fmt.Sprintf("validator%d", i))
		p := newProcess(t, home, args...)
		chaind(t, "init", "--home", home, "--moniker", filepath.Base(home), "--p2p", p.p2p, "--address", p.p2p)
		files = append(files, filepath.Join(home, "validator.json"))
		set = append(set, p)
	}
	genesis = filepath.Join(dir, "genesis.json")
	out := chaind(t, append([]string{"genesis", "--chain-id", "croft-set", "--evidence-blocks", "50", "--out", genesis}, files...)...)
	_, peers, _ = strings.Cut(strings.TrimSpace(out), "peers ")
	for _, p := range set {
		chaind(t, "join", "--home", p.home, "--genesis", genesis, "--peers", peers)
	}
	return set, genesis, peers
}

func TestFourValidatorsLoseOneAndANewNodeIsRestoredByStateSync(t *testing.T) {
	set, _, peers := newSet(t, 4, "--block-time", "300ms", "--snapshot-interval", "10", "--min-gas-price", "0uakt")
	for _, p := range set {
		p.start()
	}
	for _, p := range set {
		p.waitHeight(3)
	}

	lost := set[3]
	lost.kill()
	at := set[0].waitHeight(3).Height
	for _, p := range set[:3] {
		p.waitHeight(at + 25)
	}
	sameHash(t, at+20, set[:3]...)

	fresh := newProcess(t, filepath.Join(t.TempDir(), "fresh"), "--block-time", "300ms", "--snapshot-interval", "10")
	chaind(t, "join", "--home", fresh.home, "--genesis", "http://"+set[0].rpc, "--p2p", fresh.p2p, "--peers", peers,
		"--state-sync", "http://"+set[0].rpc+",http://"+set[1].rpc)
	fresh.start()
	s := fresh.waitHeight(at + 25)
	if s.Earliest <= 1 {
		t.Errorf("the fresh node has all blocks from %d: it was not restored from a snapshot", s.Earliest)
	}

	lost.start()
	height := lost.waitHeight(at + 30).Height
	for _, p := range set[:3] {
		p.waitHeight(height)
	}
	fresh.waitHeight(height)
	sameHash(t, height, append(set, fresh)...)
}

func TestStandstillIsMetByOneRestartAndThenByAnExit(t *testing.T) {
	set, _, _ := newSet(t, 2, "--block-time", "200ms", "--stall-after", "10s", "--peers-only")
	for _, p := range set {
		p.start()
	}
	set[0].waitHeight(2)
	set[1].kill()
	select {
	case <-set[0].done:
	case <-time.After(90 * time.Second):
		t.Fatal("the node of a chain that stands still goes on")
	}
	if code := set[0].cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code is %d, want 1", code)
	}
	log := set[0].log.String()
	if n := strings.Count(log, "starting again after standstill"); n != 1 {
		t.Errorf("the node started itself again %d times, want once", n)
	}
	if !strings.Contains(log, "goroutine ") || !strings.Contains(log, "the chain stands still at height") {
		t.Errorf("the log does not say what stood still")
	}
}

func TestLocalChainSurvivesKill(t *testing.T) {
	p := newProcess(t, filepath.Join(t.TempDir(), "local"), "--block-time", "200ms")
	p.start()
	p.waitHeight(3)
	file := filepath.Join(p.home, "accounts.json")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var accounts map[string]struct{ Mnemonic string }
	if err := json.Unmarshal(before, &accounts); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		height := p.waitHeight(3).Height
		hash := p.appHash(height)
		p.kill()
		for name, a := range accounts {
			if a.Mnemonic == "" || strings.Contains(p.log.String(), a.Mnemonic) {
				t.Errorf("the mnemonic of %s is missing or in the log", name)
			}
		}
		p.start()
		p.waitHeight(height + 2)
		if got := p.appHash(height); got != hash {
			t.Errorf("app hash at %d was %s, is %s", height, hash, got)
		}
	}
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) || info.Mode().Perm() != 0o600 {
		t.Errorf("accounts changed, or are readable by others: %v", info.Mode())
	}
}
