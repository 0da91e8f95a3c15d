package ocispec

import (
	"bufio"
	"bytes"
	"slices"
	"strconv"
	"strings"
)

const (
	// passwdBytes bounds /etc/passwd and /etc/group of an image.
	passwdBytes = 1 << 20
	// groupsMax bounds the groups of one user; Linux has 65,536, and nobody's
	// image a dozen.
	groupsMax = 64
	// idMax is the largest user or group id. Larger ones mean something else to
	// some kernels' interfaces (-1) or are negative.
	idMax = 1<<31 - 2
	// userLength bounds the user as an image names it.
	userLength = 256
)

// Identity is who a replica's first program runs as.
type Identity struct {
	User, Group uint32
	Groups      []uint32 // additional ones, without Group
	Home        string   // from /etc/passwd, or /
}

// account is a line of /etc/passwd, grouping one of /etc/group.
type account struct {
	name        string
	user, group uint32
	home        string
}

type grouping struct {
	name    string
	group   uint32
	members []string
}

// LookUpUser finds out who "user", "user:group" means: names from the image's
// files, or numbers. Empty is root. Names that are not in the files are an
// error; numbers need not be. Fails with [BadImage].
func LookUpUser(want string, passwd, group []byte) (Identity, error) {
	if len(want) > userLength {
		return Identity{}, Errorf(BadImage, "the image runs as a user of %d bytes: want at most %d", len(want), userLength)
	}
	userPart, groupPart, hasGroup := strings.Cut(want, ":")
	if userPart == "" {
		userPart = "0"
	}
	accounts, groupings := parsePasswd(passwd), parseGroup(group)

	who := Identity{Home: "/"}
	number, isNumber := parseID(userPart)
	at := slices.IndexFunc(accounts, func(a account) bool {
		return a.name == userPart || isNumber && a.user == number
	})
	switch {
	case at >= 0:
		who.User, who.Group, who.Home = accounts[at].user, accounts[at].group, accounts[at].home
	case isNumber:
		who.User = number
	default:
		return Identity{}, Errorf(BadImage, "the image runs as user %q, and has no such user", userPart)
	}
	if hasGroup && groupPart != "" {
		number, isNumber := parseID(groupPart)
		at := slices.IndexFunc(groupings, func(g grouping) bool {
			return g.name == groupPart || isNumber && g.group == number
		})
		switch {
		case at >= 0:
			who.Group = groupings[at].group
		case isNumber:
			who.Group = number
		default:
			return Identity{}, Errorf(BadImage, "the image runs as group %q, and has no such group", groupPart)
		}
		return who, nil // a group that was named stands alone, as with Docker
	}
	if at >= 0 {
		for _, g := range groupings {
			if g.group != who.Group && slices.Contains(g.members, accounts[at].name) && !slices.Contains(who.Groups, g.group) && len(who.Groups) < groupsMax {
				who.Groups = append(who.Groups, g.group)
			}
		}
	}
	return who, nil
}

func parseID(text string) (uint32, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n <= idMax
}

// parsePasswd reads name:password:uid:gid:comment:home:shell, and leaves out
// what is not of that form.
func parsePasswd(raw []byte) (all []account) {
	for fields := range colonLines(raw) {
		if len(fields) < 6 {
			continue
		}
		user, ok := parseID(fields[2])
		group, ok2 := parseID(fields[3])
		if !ok || !ok2 || fields[0] == "" {
			continue
		}
		home := fields[5]
		if !strings.HasPrefix(home, "/") || len(home) > pathLength {
			home = "/"
		}
		all = append(all, account{name: fields[0], user: user, group: group, home: home})
	}
	return all
}

// parseGroup reads name:password:gid:member,member.
func parseGroup(raw []byte) (all []grouping) {
	for fields := range colonLines(raw) {
		if len(fields) < 4 {
			continue
		}
		if group, ok := parseID(fields[2]); ok && fields[0] != "" {
			all = append(all, grouping{name: fields[0], group: group, members: strings.Split(fields[3], ",")})
		}
	}
	return all
}

func colonLines(raw []byte) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		lines := bufio.NewScanner(bytes.NewReader(raw))
		lines.Buffer(nil, passwdBytes+1)
		for lines.Scan() {
			line := strings.TrimSpace(lines.Text())
			if line == "" || line[0] == '#' {
				continue
			}
			if !yield(strings.Split(line, ":")) {
				return
			}
		}
	}
}
