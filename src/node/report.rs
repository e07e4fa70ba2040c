//! What the node reports of itself: who it is, what it offers, where it may be reached.

use std::net::{IpAddr, SocketAddr};

use super::{Prefs, peer_api};
use crate::ident::{NodeName, is_mesh_address};
use crate::wire::control::{Hostinfo, NetInfo};

/// More endpoints than this are not reported; peers try each of them.
const MAX_ENDPOINTS: usize = 16;
/// Nor more of those that STUN servers have seen: a hard NAT makes many, and none is of much use.
const MAX_SEEN: usize = 6;

/// What the system says of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// What it calls itself.
    pub hostname: String,
    /// Kernel release.
    pub os_version: String,
    /// CPU architecture.
    pub architecture: String,
    /// It is a container.
    pub container: bool,
    /// It has no TUN: packets of the mesh end in the process.
    pub userspace: bool,
}

/// How an endpoint is known, with the protocol's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EndpointKind {
    /// An address of a local interface.
    Local = 1,
    /// Where a STUN server has seen the node.
    Stun = 2,
    /// A port of the home router's that was asked for.
    PortMapped = 3,
    /// The address a STUN server has seen, with the node's own port: behind a NAT that gives each destination another port, the router
    /// may still have been told to pass that port on.
    StunLocalPort = 4,
    /// Set by the user.
    Explicit = 5,
}

/// Where the node's WireGuard socket may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub address: SocketAddr,
    /// How it is known.
    pub kind: EndpointKind,
}

/// The node's description of itself.
pub fn hostinfo(prefs: &Prefs, machine: &Machine, network: NetInfo, peer_api: &[SocketAddr]) -> Hostinfo {
    let hostname = prefs.hostname.clone().unwrap_or_else(|| NodeName::sanitised(&machine.hostname));
    Hostinfo {
        ipn_version: format!("pvemesh-{}", env!("CARGO_PKG_VERSION")),
        os: "linux".to_owned(),
        os_version: machine.os_version.clone(),
        machine: machine.architecture.clone(),
        container: Some(machine.container),
        userspace: Some(machine.userspace),
        userspace_router: Some(machine.userspace),
        hostname: hostname.as_str().to_owned(),
        routable_ips: prefs.offered(),
        request_tags: prefs.advertise_tags.iter().cloned().map(String::from).collect(),
        shields_up: prefs.shields_up,
        net_info: Some(network),
        services: peer_api::services(peer_api),
        ..Default::default()
    }
}

/// Where the node's socket is, by different witnesses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Whereabouts<'a> {
    /// What the user says.
    pub explicit: &'a [SocketAddr],
    /// Where STUN servers have seen it, the newest first.
    pub seen: &'a [SocketAddr],
    /// A port that the home router has mapped.
    pub mapped: Option<SocketAddr>,
    /// Its NAT gives each destination another port.
    pub hard_nat: bool,
    /// Addresses of local interfaces.
    pub local: &'a [IpAddr],
    /// Its own port.
    pub port: u16,
}

/// Where the node may be reached: what the user set first, then a port the router has mapped, then where others have seen it, then the addresses of local interfaces with the
/// socket's port.
///
/// Left out are addresses of the mesh itself, loopback, link-local, multicast and unspecified ones.
pub fn endpoints(known: Whereabouts<'_>) -> Vec<Endpoint> {
    let Whereabouts { explicit, seen, mapped, hard_nat, local, port } = known;
    let explicit = explicit.iter().map(|address| Endpoint { address: *address, kind: EndpointKind::Explicit });
    let mapped = mapped.map(|address| Endpoint { address, kind: EndpointKind::PortMapped });
    let newest = seen.iter().find(|address| hard_nat && address.is_ipv4());
    let own_port = newest.map(|a| Endpoint { address: SocketAddr::new(a.ip(), port), kind: EndpointKind::StunLocalPort });
    let seen = seen.iter().take(MAX_SEEN).map(|address| Endpoint { address: *address, kind: EndpointKind::Stun });
    let local = local.iter().map(|ip| Endpoint { address: SocketAddr::new(*ip, port), kind: EndpointKind::Local });
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for endpoint in explicit.chain(mapped).chain(seen).chain(own_port).chain(local) {
        let known = endpoints.iter().any(|e| e.address == endpoint.address);
        if !known && is_reachable(endpoint.address) && endpoints.len() < MAX_ENDPOINTS {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// Whether packets to an address could reach another machine outside the mesh.
pub(super) fn is_reachable(address: SocketAddr) -> bool {
    let ip = address.ip();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    address.port() != 0 && !link_local && !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified() && !is_mesh_address(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_endpoints_come_first_and_useless_ones_are_left_out() {
        let explicit = ["198.51.100.7:41641".parse().unwrap(), "192.168.1.5:7".parse().unwrap()];
        let local: Vec<IpAddr> =
            ["192.168.1.5", "100.64.0.9", "fd7a:115c:a1e0::9", "127.0.0.1", "::1", "fe80::1", "169.254.1.1", "2001:db8::5", "192.168.1.5"]
                .map(|a| a.parse().unwrap())
                .to_vec();
        let seen = ["203.0.113.9:1024".parse().unwrap(), "203.0.113.9:7".parse().unwrap()];
        for (hard_nat, own_port) in [(false, None), (true, Some(("203.0.113.9:9", 4)))] {
            let mapped = "203.0.113.9:4500".parse().ok();
            let known = Whereabouts { explicit: &explicit, seen: &seen, mapped, hard_nat, local: &local, port: 9 };
            let reported: Vec<(String, u8)> = endpoints(known).iter().map(|e| (e.address.to_string(), e.kind as u8)).collect();
            let first =
                [("198.51.100.7:41641", 5), ("192.168.1.5:7", 5), ("203.0.113.9:4500", 3), ("203.0.113.9:1024", 2), ("203.0.113.9:7", 2)];
            let last = [("192.168.1.5:9", 1), ("[2001:db8::5]:9", 1)];
            let expected: Vec<_> = first.into_iter().chain(own_port).chain(last).map(|(a, k)| (a.to_owned(), k)).collect();
            assert_eq!(reported, expected);
        }
    }

    #[test]
    fn endpoints_are_bounded() {
        let local: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        assert_eq!(endpoints(Whereabouts { local: &local, port: 1, ..Whereabouts::default() }).len(), MAX_ENDPOINTS);
    }

    #[test]
    fn a_host_without_a_usable_name_still_has_one() {
        let machine = Machine { hostname: "日本".to_owned(), ..Default::default() };
        assert_eq!(hostinfo(&Prefs::default(), &machine, NetInfo::default(), &[]).hostname, "node");
    }
}
