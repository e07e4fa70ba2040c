//! Which rules and routes a configuration asks for, as values.
//!
//! ```text
//! 5210  fwmark 0x80000/0xff0000      lookup main          the node's own outside sockets never enter the tunnel
//! 5230  fwmark 0x80000/0xff0000      lookup default
//! 5250  fwmark 0x80000/0xff0000      unreachable
//! 5255  to 100.64.0.0/10 (or ULA)    lookup 52, no default routes      mesh addresses, even where the carrier uses 100.64.0.0/10
//! 5260  all                          lookup main, no default routes    LAN-first: what the machine reaches by itself it keeps; left out
//!                                                        while an exit node is to take the local networks too
//! 5270  all                          lookup 52            everything else the mesh offers
//! 32766 all                          lookup main          (the kernel's own)
//! ```
//!
//! Numbers and marks are those of stock nodes; 5255 and 5260 are ours (docs/decisions/lan-first-rules.md).

use std::net::IpAddr;

use ipnet::IpNet;

use super::RouterConfig;
use crate::ident::{CGNAT_V4, ULA_V6, is_mesh_address};

/// The routing table of mesh routes.
pub const TABLE: u32 = 52;
/// The mark on the node's own sockets towards the outside.
pub const BYPASS_MARK: u32 = 0x80000;
/// The mark on packets forwarded from the mesh.
pub const FORWARD_MARK: u32 = 0x40000;
/// The mark on packets forwarded into the mesh. Ours: stock nodes have none for these.
pub const LAN_MARK: u32 = 0x20000;
/// The bits of a packet's mark that belong to the mesh; the others are left as they are.
pub const MARK_MASK: u32 = 0x00ff_0000;
/// What our rules and routes carry as their origin (`ip route` prints it as `proto 52`), so that another program's are never taken for ours.
/// Above the kernel's own values (0 to 4), not in iproute2's list.
pub const ORIGIN: u8 = 52;
/// Routes in `main` up to this prefix length count as default routes for rule 5260: besides `/0` the halves that other VPNs set, and
/// `2000::/3`. Local networks start at /8.
pub const DEFAULT_LIKE: u32 = 7;

const LAN_FIRST: u32 = 5260;
const TABLE_DEFAULT: u32 = 253;
const TABLE_MAIN: u32 = 254;

/// The two address families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where a rule sends packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A routing table; with a length, its routes of at most that prefix length do not count.
    Lookup(u32, Option<u32>),
    /// Nowhere.
    Unreachable,
}

/// One policy rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its place; smaller comes first.
    pub priority: u32,
    /// Only packets with this mark (and mask).
    pub mark: Option<(u32, u32)>,
    /// Only packets to this prefix.
    pub to: Option<IpNet>,
    /// What then.
    pub target: Target,
}

/// What a route of table 52 does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Into the mesh.
    Mesh,
    /// Back to the next rule, so to the machine's own routes.
    Throw,
    /// Refused: the mesh would take this family but the interface cannot, and letting it pass beside the mesh would be a leak.
    Unreachable,
}

/// The rules of one family for a configuration, in order of priority, which is also the order to add them in: bypass first, so that the node's own
/// connections are never caught by its own routes.
pub fn rules(config: &RouterConfig, family: Family) -> Vec<Rule> {
    let all = Rule { priority: 0, mark: None, to: None, target: Target::Unreachable };
    let marked = Rule { mark: Some((BYPASS_MARK, MARK_MASK)), ..all };
    let mesh = match family {
        Family::V4 => IpNet::V4(CGNAT_V4),
        Family::V6 => IpNet::V6(ULA_V6),
    };
    let mut rules = vec![
        Rule { priority: 5210, target: Target::Lookup(TABLE_MAIN, None), ..marked },
        Rule { priority: 5230, target: Target::Lookup(TABLE_DEFAULT, None), ..marked },
        Rule { priority: 5250, target: Target::Unreachable, ..marked },
        Rule { priority: 5255, to: Some(mesh), target: Target::Lookup(TABLE, Some(0)), ..all },
        Rule { priority: LAN_FIRST, target: Target::Lookup(TABLE_MAIN, Some(DEFAULT_LIKE)), ..all },
        Rule { priority: 5270, target: Target::Lookup(TABLE, None), ..all },
    ];
    rules.retain(|rule| rule.priority != LAN_FIRST || config.lan_first);
    rules
}

/// The routes of table 52 for one family. A prefix asked for both ways stays local. `usable` is whether the interface takes the family.
pub fn routes(config: &RouterConfig, family: Family, usable: bool) -> Vec<(IpNet, Via)> {
    let mine = |net: &&IpNet| Family::of(net.addr()) == family;
    let mut wanted: Vec<(IpNet, Via)> = config.local_routes.iter().filter(mine).map(|net| (net.trunc(), Via::Throw)).collect();
    for net in config.routes.iter().filter(mine).map(IpNet::trunc) {
        if wanted.iter().any(|(other, _)| *other == net) {
            continue;
        }
        match (usable, net.prefix_len()) {
            (true, _) => wanted.push((net, Via::Mesh)),
            (false, 0) => wanted.push((net, Via::Unreachable)),
            (false, _) => {}
        }
    }
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

/// Whether packets of addresses outside the mesh come or go through the interface, so that a strict reverse-path check on the uplink
/// would drop the tunnel's own packets or forwarded ones.
pub fn carries_outside_traffic(config: &RouterConfig) -> bool {
    config.forward || config.routes.iter().any(|net| !is_mesh_address(net.addr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(routes: &[&str], local: &[&str]) -> RouterConfig {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        RouterConfig {
            interface: "pvemesh0".to_owned(),
            addresses: Vec::new(),
            routes: nets(routes),
            local_routes: nets(local),
            lan_first: true,
            forward: false,
            masquerade: false,
            lan_gateway: false,
            shields_up: false,
            mtu: 1280,
        }
    }

    #[test]
    fn rules_are_in_ascending_order_and_bypass_comes_first() {
        let config = config(&[], &[]);
        let taking_all = RouterConfig { lan_first: false, ..config.clone() };
        let priorities = |rules: &[Rule]| rules.iter().map(|rule| rule.priority).collect::<Vec<u32>>();
        for family in [Family::V4, Family::V6] {
            let rules = |config| rules(config, family);
            assert_eq!(priorities(&rules(&config)), [5210, 5230, 5250, 5255, 5260, 5270]);
            assert_eq!(priorities(&rules(&taking_all)), [5210, 5230, 5250, 5255, 5270]);
            assert!(rules(&config).iter().take(3).all(|rule| rule.mark.is_some()));
        }
    }

    #[test]
    fn a_prefix_asked_for_both_ways_stays_local() {
        let config = config(&["192.168.1.7/24", "10.0.0.0/8", "fd00::/64"], &["192.168.1.0/24"]);
        let wanted = routes(&config, Family::V4, true);
        assert_eq!(wanted, [("10.0.0.0/8".parse().unwrap(), Via::Mesh), ("192.168.1.0/24".parse().unwrap(), Via::Throw)]);
    }

    #[test]
    fn an_exit_route_the_interface_cannot_carry_is_refused_rather_than_leaked() {
        let config = config(&["0.0.0.0/0", "::/0", "fd7a:115c:a1e0::5/128"], &[]);
        assert_eq!(routes(&config, Family::V6, false), [("::/0".parse().unwrap(), Via::Unreachable)]);
        assert_eq!(routes(&config, Family::V6, true).len(), 2);
        assert!(carries_outside_traffic(&config));
    }
}
