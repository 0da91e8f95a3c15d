package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	croft "github.com/croft-cloud/croft"
)

const maxAllowed = 64 // addresses that fetchers may reach though they are not public

// levelOf is how far below the root of cgroup v2 the group at path is.
func levelOf(root, path string) (int, error) {
	below, err := filepath.Rel(root, path)
	if err != nil || !filepath.IsAbs(path) || below == "." || !filepath.IsLocal(below) {
		return 0, fmt.Errorf("cgroup %q: want a path below %s", path, root)
	}
	return 1 + strings.Count(below, string(filepath.Separator)), nil
}

// groupAt is the inode number of the cgroup at path, by which the kernel knows
// it; a group made anew has a new one.
func groupAt(path string) (uint64, error) {
	var kind unix.Statfs_t
	if err := unix.Statfs(path, &kind); err != nil {
		return 0, err
	}
	if kind.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, errors.New("not a group of cgroup v2")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

func checkAllowed(list []netip.AddrPort) error {
	if len(list) > maxAllowed {
		return fmt.Errorf("allow %d addresses: more than %d", len(list), maxAllowed)
	}
	for _, a := range list {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() {
			return fmt.Errorf("allow %v: want an address and a port", a)
		}
	}
	return nil
}

// followFetchersTurned reads which of the fetchers' cgroups exist and which name
// servers the box has. Missing are the groups that do not exist.
func (n *Network) followFetchersTurned() (missing error) {
	if len(n.cfg.Fetchers) == 0 {
		return nil
	}
	var groups []uint64
	for _, path := range n.cfg.Fetchers {
		group, err := groupAt(path)
		if err != nil {
			missing = errors.Join(missing, fmt.Errorf("find cgroup %s: %w", path, err))
			continue
		}
		groups = append(groups, group)
	}
	raw, err := os.ReadFile(n.cfg.ResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(raw) > resolvConfSize {
		n.log.Warn("the box's name servers not read", "error", err)
		raw = nil
	}
	var resolvers []netip.Addr
	for _, server := range parseServers(raw) {
		resolvers = append(resolvers, netip.MustParseAddrPort(server).Addr())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fetch.Groups, n.fetch.Resolvers = groups, resolvers
	return missing
}

// GuardFetchers makes sure that the rules hold for [Config.Fetchers] as their
// cgroups are now: made since the last check, or made anew. It is called before
// each download that a tenant causes, and that is not begun when it fails.
func (n *Network) GuardFetchers(ctx context.Context) error {
	return n.change(ctx, func() error {
		if err := n.followFetchersTurned(); err != nil {
			return &croft.Error{Kind: croft.KindMissing, Err: fmt.Errorf("guard downloads: %w", err), Remedy: "start the program that downloads in its cgroup"}
		}
		if err := n.ensureRulesTurned(false); err != nil {
			return fmt.Errorf("guard downloads: %w", err)
		}
		return nil
	})
}

// SetAllowed names what fetchers may reach by TCP though it is not public, in
// place of what was named before, [Config.Allowed] included. It holds at once,
// for connections that are open as well, and is not kept across restarts.
func (n *Network) SetAllowed(ctx context.Context, list []netip.AddrPort) error {
	if err := checkAllowed(list); err != nil {
		return err
	}
	list = slices.Clone(list)
	return n.change(ctx, func() error {
		n.mu.Lock()
		n.fetch.Allowed = list
		n.mu.Unlock()
		if err := n.ensureRulesTurned(false); err != nil {
			return fmt.Errorf("allow addresses: %w", err)
		}
		return nil
	})
}
