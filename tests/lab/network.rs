//! Wires, addresses, routers.
//!
//! ```text
//!  laptop 10.20.0.5 -- cafe 198.51.100.20 --.
//!                                            inet (web server 192.0.2.80)
//!  pve 192.168.50.2 -- home 203.0.113.10  --'
//! ```
//!
//! All addresses are from the ranges set aside for documentation, or private.

use std::io::Write as _;
use std::process::Stdio;

use crate::namespaces::{CAFE, HOME, INET, LAPTOP, PVE, inside};
use crate::run::{Done, quietly};

/// The home's address on the internet.
pub const HOME_ADDRESS: &str = "203.0.113.10";
/// The cafe's address on the internet.
pub const CAFE_ADDRESS: &str = "198.51.100.20";
/// The web server.
pub const WEB_ADDRESS: &str = "192.0.2.80";
/// The web server's IPv6 address.
pub const WEB_ADDRESS6: &str = "2001:db8:80::80";
/// The one port number that the home's router forwards: TCP to the coordinator, UDP to the exit node.
pub const FORWARDED_PORT: u16 = 41641;

/// Both ends of a wire: namespace, interface, addresses.
struct Wire {
    ends: [(&'static str, &'static str, &'static [&'static str]); 2],
}

const WIRES: [Wire; 3] = [
    Wire { ends: [(INET, "home0", &["203.0.113.1/24", "2001:db8:1::1/64"]), (HOME, "wan0", &["203.0.113.10/24", "2001:db8:1::10/64"])] },
    Wire { ends: [(INET, "cafe0", &["198.51.100.1/24", "2001:db8:2::1/64"]), (CAFE, "wan0", &["198.51.100.20/24", "2001:db8:2::20/64"])] },
    Wire { ends: [(CAFE, "lan0", &["10.20.0.1/24", "2001:db8:20::1/64"]), (LAPTOP, "eth0", &["10.20.0.5/24", "2001:db8:20::5/64"])] },
];

/// Routes by namespace.
const ROUTES: [(&str, &str); 10] = [
    (HOME, "default via 203.0.113.1"),
    (HOME, "default via 2001:db8:1::1"),
    (CAFE, "default via 198.51.100.1"),
    (CAFE, "default via 2001:db8:2::1"),
    (LAPTOP, "default via 10.20.0.1"),
    (LAPTOP, "default via 2001:db8:20::1"),
    (PVE, "default via 192.168.50.1"),
    (PVE, "default via 2001:db8:50::1"),
    (INET, "2001:db8:50::/64 via 2001:db8:1::10"),
    (INET, "2001:db8:20::/64 via 2001:db8:2::20"),
];

/// The home's router: masquerade, one forwarded port number, hairpin for the LAN's own use of it; IPv6 is routed, unasked traffic is not let in.
const HOME_RULES: &str = "table inet pvl {
  chain forwarded {
    type nat hook prerouting priority dstnat;
    ip daddr 203.0.113.10 tcp dport 41641 dnat ip to 192.168.50.100:8080
    ip daddr 203.0.113.10 udp dport 41641 dnat ip to 192.168.50.101:41641
  }
  chain masqueraded {
    type nat hook postrouting priority srcnat;
    ip saddr 192.168.50.0/24 oifname wan0 masquerade
    ip saddr 192.168.50.0/24 oifname lan0 ct status dnat masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct status dnat accept
    iifname lan0 accept
    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } accept
  }
}
";

/// The cafe's router: masquerade, nothing let in.
const CAFE_RULES: &str = "table inet pvl {
  chain masqueraded {
    type nat hook postrouting priority srcnat;
    ip saddr 10.20.0.0/24 oifname wan0 masquerade
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname lan0 accept
  }
}
";

fn address(namespace: &str, interface: &str, addresses: &[&str]) -> Done {
    for cidr in addresses {
        let nodad = if cidr.contains(':') { "nodad" } else { "" };
        quietly(&format!("ip -n {namespace} addr add {cidr} dev {interface} {nodad}"))?;
    }
    quietly(&format!("ip -n {namespace} link set {interface} up")).map(drop)
}

fn nftables(namespace: &str, rules: &str) -> Done {
    let started = inside(namespace, "nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|e| format!("nft: {e}"))?;
    let fed = child.stdin.take().map(|mut stdin| stdin.write_all(rules.as_bytes()));
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    if output.status.success() && matches!(fed, Some(Ok(()))) {
        return Ok(());
    }
    Err(format!("nftables in {namespace}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn forwarding(namespace: &str) -> Done {
    let both = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    crate::run::output(inside(namespace, "sh").args(["-c", both]), "turn forwarding on").map(drop)
}

/// Makes everything within the namespaces, which exist and are empty.
pub fn make() -> Done {
    for Wire { ends: [(a, a_name, a_addresses), (b, b_name, b_addresses)] } in WIRES {
        quietly(&format!("ip link add {a_name} netns {a} type veth peer name {b_name} netns {b}"))?;
        address(a, a_name, a_addresses)?;
        address(b, b_name, b_addresses)?;
    }
    quietly(&format!("ip -n {PVE} link add vmbr0 type bridge"))?;
    quietly(&format!("ip link add lan0 netns {HOME} type veth peer name nic0 netns {PVE}"))?;
    quietly(&format!("ip -n {PVE} link set nic0 master vmbr0"))?;
    quietly(&format!("ip -n {PVE} link set nic0 up"))?;
    address(HOME, "lan0", &["192.168.50.1/24", "2001:db8:50::1/64"])?;
    address(PVE, "vmbr0", &["192.168.50.2/24", "2001:db8:50::2/64"])?;
    address(INET, "lo", &[&format!("{WEB_ADDRESS}/32"), &format!("{WEB_ADDRESS6}/128")])?;
    for namespace in [INET, HOME, CAFE] {
        forwarding(namespace)?;
    }
    for (namespace, route) in ROUTES {
        let family = if route.contains("::") { "-6" } else { "-4" };
        quietly(&format!("ip -n {namespace} {family} route add {route}"))?;
    }
    nftables(HOME, HOME_RULES)?;
    nftables(CAFE, CAFE_RULES)
}
