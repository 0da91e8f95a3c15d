package outside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// FleetConfig is copied by NewFleet.
type FleetConfig struct {
	Dir     string // required; the fleet's own folder, made if it is not there
	Program string // required; croft-fleet, see [Build]

	Web, Device, Broker uint16 // ports on 127.0.0.1; default: free ones

	Origin  string   // what browsers call it; default http://localhost:WEB
	Brokers []string // where boxes find the broker; default its own, for this machine and virtual ones on it
	Args    []string // further ones for croft-fleet
}

// Fleet is the service that looks after boxes, run by the real croft-fleet as a
// child process. Its addresses are fixed from the beginning. It takes every box. Its
// methods may be called from any goroutine.
type Fleet struct {
	cfg  FleetConfig
	home string
	log  string

	mu     sync.Mutex
	daemon *child          // guarded by mu; nil while stopped
	since  int64           // guarded by mu; where the log of this start begins
	join   *joinfile.Fleet // guarded by mu; nil before the first Start
}

// NewFleet chooses ports and starts nothing.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare fleet: %w", err)
	}
	if err := choosePorts(&cfg.Web, &cfg.Device, &cfg.Broker); err != nil {
		return nil, fmt.Errorf("prepare fleet: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare fleet: %w", err)
	}
	if cfg.Origin == "" {
		cfg.Origin = fmt.Sprintf("http://localhost:%d", cfg.Web)
	}
	if len(cfg.Brokers) == 0 {
		cfg.Brokers = []string{"tls://" + loopback(cfg.Broker), "tls://" + at(string(FromGuest), cfg.Broker)} // where one is not there, it refuses at once
	}
	return &Fleet{cfg: cfg, home: filepath.Join(dir, "home"), log: filepath.Join(dir, "croft-fleet.log")}, nil
}

// Console is what browsers on this machine call the fleet. They take localhost for
// safe without TLS.
func (f *Fleet) Console() string { return f.cfg.Origin }

// Web is where it listens for people, host:port.
func (f *Fleet) Web() string { return loopback(f.cfg.Web) }

// Device is where it listens for boxes that enrol, host:port.
func (f *Fleet) Device() string { return loopback(f.cfg.Device) }

// Home is the fleet's folder.
func (f *Fleet) Home() string { return f.home }

// Log is the file with what croft-fleet has said.
func (f *Fleet) Log() string { return f.log }

// AdminURL is where the first admin signs up, once; an error when there was one at
// the last Start.
func (f *Fleet) AdminURL() (string, error) {
	raw, err := os.ReadFile(f.log)
	if err != nil {
		return "", fmt.Errorf("read the fleet's log: %w", err)
	}
	f.mu.Lock()
	since := f.since
	f.mu.Unlock()
	for line := range strings.Lines(string(raw[min(since, int64(len(raw))):])) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, f.Console()+"/login/link?token=") {
			return line, nil
		}
	}
	return "", errors.New("the fleet has not said where its first admin signs up")
}

// Join is what a box must be told of the fleet, at the address under which the box
// sees this machine; nil before the first Start.
func (f *Fleet) Join(machine View) *joinfile.Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.join == nil {
		return nil
	}
	join := *f.join
	join.URL = "https://" + at(string(machine), f.cfg.Device)
	return &join
}

// readJoin reads what the fleet has written down for boxes.
func (f *Fleet) readJoin() error {
	raw, err := os.ReadFile(filepath.Join(f.home, "join.json"))
	if err != nil {
		return fmt.Errorf("read what boxes are told of the fleet: %w", err)
	}
	var file struct {
		Fleet *joinfile.Fleet `json:"fleet"`
	}
	if err := json.Unmarshal(raw, &file); err != nil || file.Fleet == nil {
		return fmt.Errorf("read what boxes are told of the fleet: %w", errors.Join(err, errors.New("it is not there")))
	}
	f.join = file.Fleet
	return nil
}

// Start runs the fleet and returns when it answers. It goes on where it was stopped or
// killed.
func (f *Fleet) Start(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.daemon != nil {
		select {
		case <-f.daemon.done: // it ended by itself
		default:
			return nil
		}
	}
	log, err := os.OpenFile(f.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start fleet: %w", err)
	}
	defer log.Close() // the child has a descriptor of its own
	if f.since, err = log.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("start fleet: %w", err)
	}
	args := []string{
		"--dir", f.home, "--origin", f.Console(), "--listen", loopback(f.cfg.Web), "--first-use", "open",
		"--device-listen", loopback(f.cfg.Device), "--broker-listen", loopback(f.cfg.Broker),
		"--host", string(FromGuest) + "," + string(FromHost) + ",localhost",
		"--tell-broker", strings.Join(f.cfg.Brokers, ","),
	}
	cmd := exec.Command(f.cfg.Program, append(args, f.cfg.Args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	daemon, err := startChild(cmd)
	if err != nil {
		return fmt.Errorf("start fleet: %w", err)
	}
	if err := errors.Join(f.awaitAnswer(ctx, daemon), f.readJoin()); err != nil {
		daemon.kill()
		return fmt.Errorf("start fleet: %w: %s", err, lastOf(f.log))
	}
	f.daemon = daemon
	return nil
}

// awaitAnswer waits until the fleet is ready.
func (f *Fleet) awaitAnswer(ctx context.Context, daemon *child) error {
	doer := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.Web()+"/healthz", nil)
		if err != nil {
			return err
		}
		if resp, err := doer.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-daemon.done:
			return fmt.Errorf("croft-fleet ended: %w", errors.Join(daemon.err, errors.New("it never answered")))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Stop ends the fleet as an operator does. Stopping what is stopped is no error.
func (f *Fleet) Stop() error {
	return f.end(func(d *child) error { return d.stop(stopGrace) })
}

// Kill ends the fleet at once, as a crash does.
func (f *Fleet) Kill() {
	_ = f.end(func(d *child) error { d.kill(); return nil }) // it returns what the function returns
}

func (f *Fleet) end(how func(*child) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.daemon == nil {
		return nil
	}
	defer func() { f.daemon = nil }()
	if err := how(f.daemon); err != nil {
		return fmt.Errorf("stop fleet: %w", err)
	}
	return nil
}
