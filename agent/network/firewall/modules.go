package firewall

// Modules are the kernel modules of the table; agent/network.Modules explains.
func Modules() []string {
	return []string{
		"nf_conntrack",         // ct state
		"nf_conntrack_netlink", // ending connections that are no longer allowed
		"nf_tables",            // the table, with sets, meta, payload, cmp, bitwise, dynset and counter inside
		"nft_ct",               // ct state in rules
		"nft_limit",            // rates
		"nf_conncount",         // below nft_connlimit
		"nft_connlimit",        // connections at once
		"nf_nat",               // below nft_chain_nat
		"nft_chain_nat",        // chains of type nat
		"nft_masq",             // masquerade, IPv4 and IPv6
		"nf_reject_ipv4",       // below nft_reject_inet
		"nf_reject_ipv6",       // below nft_reject_inet
		"nft_reject",           // below nft_reject_inet
		"nft_reject_inet",      // what the box's own programs are refused
		"nf_socket_ipv4",       // below nft_socket
		"nf_socket_ipv6",       // below nft_socket
		"nft_socket",           // cgroups of the box's own sockets
	}
}
