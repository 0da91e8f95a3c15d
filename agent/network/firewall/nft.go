package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	mdnetlink "github.com/mdlayher/netlink"
)

const (
	answerLimit = 30 * time.Second // the library waits for one answer a message; a failed commit gives only one
	sendBuffer  = 8 << 20          // bytes: a transaction is one datagram
)

func openTables() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		// More than the system's limit needs CAP_NET_ADMIN, which we have anyway.
		if err := errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer)); err != nil {
			return err
		}
		return c.SetDeadline(time.Now().Add(answerLimit))
	}))
}

func ourTable() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

func (s set) kernel(t *nftables.Table) *nftables.Set {
	k := &nftables.Set{Table: t, Name: s.name, KeyType: s.key[0], Interval: s.interval, Dynamic: s.dynamic}
	if len(s.key) > 1 {
		k.KeyType, k.Concatenation = nftables.MustConcatSetType(s.key...), true
	}
	if s.value != nil {
		k.IsMap, k.DataType = true, *s.value
	}
	if s.dynamic {
		k.Size = dynamicSize
	}
	return k
}

func addElements(c *nftables.Conn, k *nftables.Set, list []element) error {
	for some := range slices.Chunk(list, elementsAtOne) {
		out := make([]nftables.SetElement, len(some))
		for i, e := range some {
			out[i] = nftables.SetElement{Key: e.key, Val: e.value, IntervalEnd: e.end}
		}
		if err := c.SetAddElements(k, out); err != nil {
			return fmt.Errorf("set %s: %w", k.Name, err)
		}
	}
	return nil
}

// Replace puts want in the place of our table, whatever is there, in one
// transaction.
func Replace(want *Ruleset) error {
	c, err := openTables()
	if err != nil {
		return err
	}
	t := ourTable()
	c.AddTable(t) // so that deleting never fails
	c.DelTable(t)
	c.AddTable(t)
	for _, s := range want.sets {
		k := s.kernel(t)
		if err := c.AddSet(k, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
		if err := addElements(c, k, s.elements); err != nil {
			return err
		}
	}
	chains := map[string]*nftables.Chain{}
	for _, ch := range want.chains {
		k := &nftables.Chain{Name: ch.name, Table: t}
		if b := ch.base; b != nil {
			k.Type, k.Hooknum, k.Priority, k.Policy = b.kind, b.hook, new(b.at), &b.policy
		}
		chains[ch.name] = c.AddChain(k)
	}
	for _, ch := range want.chains {
		for i, r := range ch.rules {
			c.AddRule(&nftables.Rule{
				Table: t, Chain: chains[ch.name], Exprs: r.exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, want.mark(ch, i)),
			})
		}
	}
	return c.Flush()
}

// SameStructure says whether the kernel has our table with exactly our chains,
// rules and sets; elements are not looked at.
func SameStructure(want *Ruleset) (bool, error) {
	c, err := openTables()
	if err != nil {
		return false, err
	}
	t := ourTable()
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	if at := slices.IndexFunc(tables, func(x *nftables.Table) bool { return x.Name == TableName }); at < 0 || tables[at].Flags != 0 {
		return false, nil // flags: a dormant table stands and does nothing
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, err
	}
	have := map[string]*nftables.Chain{}
	for _, x := range all {
		if x.Table.Name == TableName {
			have[x.Name] = x
		}
	}
	if len(have) != len(want.chains) {
		return false, nil
	}
	for _, ch := range want.chains {
		x := have[ch.name]
		if x == nil || (x.Hooknum == nil) != (ch.base == nil) {
			return false, nil
		}
		if b := ch.base; b != nil && (*x.Hooknum != *b.hook || x.Priority == nil || *x.Priority != b.at || x.Policy == nil || *x.Policy != b.policy || x.Type != b.kind) {
			return false, nil
		}
		rules, err := c.GetRules(t, x)
		if err != nil {
			return false, err
		}
		if len(rules) != len(ch.rules) {
			return false, nil
		}
		for i, r := range rules {
			if comment, _ := userdata.GetString(r.UserData, userdata.TypeComment); comment != want.mark(ch, i) {
				return false, nil
			}
		}
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return false, err
	}
	for _, s := range want.sets {
		if !slices.ContainsFunc(sets, func(k *nftables.Set) bool { return k.Name == s.name }) {
			return false, nil
		}
	}
	return len(sets) == len(want.sets), nil
}

// Sync gives all sets that differ from want their elements, in one
// transaction. With had, the kernel is taken to hold that; without, it is read.
// It reports whether anything differed.
func Sync(want, had *Ruleset) (bool, error) {
	c, err := openTables()
	if err != nil {
		return false, err
	}
	t := ourTable()
	changed := false
	for i, s := range want.sets {
		if s.dynamic {
			continue
		}
		k := s.kernel(t)
		var old []element
		if had != nil {
			old = had.sets[i].elements
		} else if old, err = readElements(c, s, k); err != nil {
			return false, err
		}
		if sameElements(old, s.elements) {
			continue
		}
		changed = true
		c.FlushSet(k)
		if err := addElements(c, k, s.elements); err != nil {
			return false, err
		}
	}
	if !changed {
		return false, nil
	}
	return true, c.Flush()
}

func readElements(c *nftables.Conn, s set, k *nftables.Set) ([]element, error) {
	raw, err := c.GetSetElements(k)
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", s.name, err)
	}
	list := make([]element, 0, len(raw))
	for _, e := range raw {
		// The kernel's first interval may begin with an end at zero: it means nothing.
		if e.IntervalEnd && len(bytes.Trim(e.Key, "\x00")) == 0 {
			continue
		}
		list = append(list, element{key: e.Key, value: e.Val, end: e.IntervalEnd})
	}
	return sortElements(list), nil
}

// DropLink removes what the kernel remembers of a link that is gone.
func DropLink(name string) error {
	c, err := openTables()
	if err != nil {
		return err
	}
	t := ourTable()
	key := ifnameKey(name)
	found := false
	for _, set := range dynamicSets() {
		k := &nftables.Set{Table: t, Name: set, KeyType: nftables.TypeIFName}
		raw, err := c.GetSetElements(k)
		if err != nil {
			return fmt.Errorf("read set %s: %w", set, err)
		}
		if !slices.ContainsFunc(raw, func(e nftables.SetElement) bool { return bytes.Equal(e.Key, key) }) {
			continue
		}
		found = true
		if err := c.SetDeleteElements(k, []nftables.SetElement{{Key: key}}); err != nil {
			return err
		}
	}
	if !found {
		return nil
	}
	return c.Flush()
}

// ReadDenied reads all counters of dropped packets, by link.
func ReadDenied() (map[string]Denied, error) {
	c, err := openTables()
	if err != nil {
		return nil, err
	}
	all := map[string]Denied{}
	for _, name := range counterSets() {
		raw, err := c.GetSetElements(&nftables.Set{Table: ourTable(), Name: name, KeyType: nftables.TypeIFName})
		if err != nil {
			return nil, fmt.Errorf("read set %s: %w", name, err)
		}
		for _, e := range raw {
			if e.Counter == nil {
				continue
			}
			link := string(bytes.TrimRight(e.Key, "\x00"))
			d := all[link]
			*d.field(name) = e.Counter.Packets
			all[link] = d
		}
	}
	return all, nil
}

// Since is what came after before, by reason; a counter that is smaller has
// started again with the table.
func (d Denied) Since(before Denied) (grown Denied) {
	for _, name := range counterSets() {
		now, then := *d.field(name), *before.field(name)
		if now >= then {
			now -= then
		}
		*grown.field(name) = now
	}
	return grown
}

// Plus is the sum of both, by reason.
func (d Denied) Plus(o Denied) Denied {
	for _, name := range counterSets() {
		*d.field(name) += *o.field(name)
	}
	return d
}

func (d *Denied) field(set string) *uint64 {
	switch set {
	case countSpoofed:
		return &d.Spoofed
	case countPrivate:
		return &d.Private
	case countBox:
		return &d.Box
	case countInside:
		return &d.Inside
	case countMail:
		return &d.Mail
	}
	return &d.Rate
}
