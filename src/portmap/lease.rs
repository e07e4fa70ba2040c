//! What a mapping is good for, and for how long.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::LIFETIME;
use crate::ident::CGNAT_V4;

/// A mapping is renewed no more often than this, whatever lifetime the router gives.
const SHORTEST: Duration = Duration::from_secs(30);

/// Which of the three a router speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// NAT-PMP.
    Pmp,
    /// PCP.
    Pcp,
    /// UPnP.
    Upnp,
}

impl Protocol {
    /// Its name as people know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pmp => "NAT-PMP",
            Self::Pcp => "PCP",
            Self::Upnp => "UPnP",
        }
    }
}

/// What a router has shown that it speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Services {
    /// NAT-PMP.
    pub pmp: bool,
    /// PCP.
    pub pcp: bool,
    /// UPnP.
    pub upnp: bool,
}

impl Services {
    /// What to ask for a mapping by, the cheapest first: one datagram each way, two, or a conversation in XML.
    pub fn in_order(self) -> impl Iterator<Item = Protocol> {
        let all = [(self.pmp, Protocol::Pmp), (self.pcp, Protocol::Pcp), (self.upnp, Protocol::Upnp)];
        all.into_iter().filter_map(|(there, protocol)| there.then_some(protocol))
    }
}

/// A port of the router's that leads to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// By what it was asked for.
    pub protocol: Protocol,
    /// Where it is reached from outside.
    pub external: SocketAddrV4,
    /// How long it holds unless it is renewed.
    pub lifetime: Duration,
}

impl Mapping {
    /// Whether others can be told of it. A private address may still be of use: behind a second NAT those between the two reach it.
    pub fn is_usable(&self) -> bool {
        let ip = *self.external.ip();
        let useless = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || ip.is_link_local();
        !useless && self.external.port() != 0 && !self.lifetime.is_zero()
    }
}

/// What the router offers, and what it has given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    /// What it speaks; `None` until it has been asked.
    pub services: Option<Services>,
    /// The port in use.
    pub mapping: Option<Mapping>,
}

/// When a mapping is renewed: at half of its life. 0 is for UPnP's permanent ones, which are looked after like all others, because a
/// router that starts again forgets them.
pub fn renew_after(lifetime: Duration) -> Duration {
    if lifetime.is_zero() { LIFETIME / 2 } else { (lifetime / 2).clamp(SHORTEST, LIFETIME / 2) }
}

/// Whether a machine with this address may have use for a mapping: it is behind a NAT.
pub fn is_worth_asking(own: Ipv4Addr, gateway: Ipv4Addr) -> bool {
    let inside = |ip: Ipv4Addr| ip.is_private() || CGNAT_V4.contains(&ip);
    inside(own) && !gateway.is_unspecified() && !gateway.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(external: &str, lifetime: u64) -> Mapping {
        Mapping { protocol: Protocol::Pcp, external: external.parse().unwrap(), lifetime: Duration::from_secs(lifetime) }
    }

    #[test]
    fn a_mapping_that_leads_nowhere_is_of_no_use() {
        assert!(mapping("203.0.113.7:4500", 7200).is_usable());
        assert!(mapping("10.0.0.7:4500", 7200).is_usable(), "behind two NATs");
        for (external, lifetime) in [
            ("0.0.0.0:4500", 1),
            ("127.0.0.1:4500", 1),
            ("203.0.113.7:0", 1),
            ("203.0.113.7:4500", 0),
            ("224.0.0.1:9", 1),
            ("169.254.0.9:9", 1),
        ] {
            assert!(!mapping(external, lifetime).is_usable(), "{external}");
        }
    }

    #[test]
    fn renewals_come_at_half_life_within_bounds() {
        for (lifetime, after) in [(7200, 3600), (600, 300), (0, 3600), (1, 30), (u64::from(u32::MAX), 3600)] {
            assert_eq!(renew_after(Duration::from_secs(lifetime)), Duration::from_secs(after), "{lifetime}");
        }
    }

    #[test]
    fn only_machines_behind_a_nat_ask() {
        let router = Ipv4Addr::new(192, 168, 1, 1);
        assert!(is_worth_asking(Ipv4Addr::new(192, 168, 1, 2), router) && is_worth_asking(Ipv4Addr::new(100, 127, 0, 2), router));
        assert!(
            !is_worth_asking(Ipv4Addr::new(203, 0, 113, 2), router) && !is_worth_asking(Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::UNSPECIFIED)
        );
    }

    #[test]
    fn the_cheapest_protocol_comes_first() {
        let all = Services { pmp: true, pcp: true, upnp: true };
        assert_eq!(all.in_order().collect::<Vec<_>>(), [Protocol::Pmp, Protocol::Pcp, Protocol::Upnp]);
        assert_eq!(Services { upnp: true, ..Services::default() }.in_order().collect::<Vec<_>>(), [Protocol::Upnp]);
    }
}
