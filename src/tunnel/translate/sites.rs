//! Which networks of which sites are carried here, and what nobody reaches through them.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::{MIN_MTU, Refusal};
use crate::ident::Via;

/// The IPv6 header with TCP's, without options.
const TCP_V6_HEADERS: u16 = 60;

/// What translation goes by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SitesConfig {
    /// The prefixes this node carries, all of sites; none if it translates nothing.
    pub routes: Vec<Ipv6Net>,
    /// This node's own IPv6 address: errors from where no carried prefix reaches come from it.
    pub own: Option<Ipv6Addr>,
    /// Addresses that are reached through no site: this node's own and the other nodes' in the mesh, broadcast ones.
    pub kept_out: Vec<Ipv4Addr>,
}

/// The sites behind this node.
#[derive(Debug, Clone)]
pub struct Sites {
    routes: Vec<Ipv6Net>,
    pub(super) own: Option<Ipv6Addr>,
    kept_out: HashSet<Ipv4Addr>,
    pub(super) mtu: u16,
}

impl Sites {
    /// The sites of a configuration; `None` if there are none. `mtu` is the tunnel's, in bytes.
    pub fn new(config: &SitesConfig, mtu: u16) -> Option<Self> {
        let routes: Vec<Ipv6Net> = config.routes.iter().copied().filter(|net| Via::of(*net).is_some()).collect();
        let kept_out = config.kept_out.iter().copied().collect();
        (!routes.is_empty()).then_some(Self { routes, own: config.own, kept_out, mtu: mtu.max(MIN_MTU) })
    }

    /// Whether an address belongs to a machine at a site behind this node.
    pub fn contain(&self, address: Ipv6Addr) -> bool {
        self.routes.iter().any(|net| net.contains(&address))
    }

    /// Where a packet goes, if that is a machine at a site behind this node.
    pub fn destination(&self, packet: &[u8]) -> Option<Ipv6Addr> {
        packet.first().filter(|first| **first >> 4 == 6)?;
        let destination = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
        self.contain(destination).then_some(destination)
    }

    /// The site, and the machine's address there.
    pub(super) fn machine(&self, address: Ipv6Addr) -> Result<(u32, Ipv4Addr), Refusal> {
        let machine = Via::parts(address).filter(|_| self.contain(address));
        machine.filter(|(_, v4)| is_someone(*v4) && !self.kept_out.contains(v4)).ok_or(Refusal::Forbidden)
    }

    /// The largest segment that fits the tunnel as IPv6.
    pub(super) fn segment_size(&self) -> u16 {
        self.mtu - TCP_V6_HEADERS
    }
}

/// Whether one machine on a network may have the address: not "this network", loopback, link-local, multicast, reserved or broadcast (RFC
/// 6890).
fn is_someone(v4: Ipv4Addr) -> bool {
    let [first, ..] = v4.octets();
    first != 0 && first < 224 && !v4.is_loopback() && !v4.is_link_local()
}
