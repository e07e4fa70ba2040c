//! Which destinations are this node's at all.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{FilterConfig, Forwards};
use crate::ident::{PrefixMap, is_quad100};

const fn v4(a: u8, b: u8, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), length))
}

const fn v6(first: u16, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length))
}

/// What an exit node does not lead to: private, shared, link-local and multicast space (RFC 1918, 6598, 3927, 5771, 4193, 4291).
const NOT_INTERNET: [IpNet; 9] = [
    v4(10, 0, 8),
    v4(172, 16, 12),
    v4(192, 168, 16),
    v4(100, 64, 10),
    v4(169, 254, 16),
    v4(224, 0, 4),
    v6(0xfc00, 7),
    v6(0xfe80, 10),
    v6(0xff00, 8),
];

/// Where cloud providers answer questions about a machine: the one link-local address that a subnet router may lead to.
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

#[derive(Debug)]
pub(super) struct Scope {
    addresses: HashSet<IpAddr>,
    subnets: PrefixMap<()>,
    /// What an exit node does not lead to; `None` if this is none.
    exit_without: Option<PrefixMap<()>>,
    forwards: Forwards,
}

impl Scope {
    pub(super) fn new(config: &FilterConfig) -> Self {
        let set = |nets: &mut dyn Iterator<Item = IpNet>| {
            let mut map = PrefixMap::default();
            for net in nets {
                map.insert(net, ());
            }
            map
        };
        let without = NOT_INTERNET.iter().chain(&config.machine).copied();
        Self {
            addresses: config.addresses.iter().map(IpNet::addr).collect(),
            subnets: set(&mut config.subnets.iter().copied().filter(|net| net.prefix_len() != 0)),
            exit_without: config.exit.then(|| set(&mut without.into_iter())),
            forwards: config.forwards,
        }
    }

    /// Whether what is let in for this destination gets there.
    pub(super) fn leads_to(&self, destination: IpAddr) -> bool {
        let forwards = if destination.is_ipv4() { self.forwards.v4 } else { self.forwards.v6 };
        forwards || self.addresses.contains(&destination)
    }

    pub(super) fn contains(&self, destination: IpAddr) -> bool {
        // This machine's programs' alone, whatever network it lies in.
        if is_quad100(destination) {
            return false;
        }
        if self.addresses.contains(&destination) {
            return true;
        }
        let link_local = match destination {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if destination.is_multicast() || (link_local && destination != METADATA) {
            return false;
        }
        self.subnets.find(destination).is_some() || self.exit_without.as_ref().is_some_and(|without| without.find(destination).is_none())
    }
}
