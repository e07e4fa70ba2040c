//! The peer API: what a node offers other nodes by HTTP on its own mesh addresses. Of what stock clients know, that is answering name
//! questions for those who use this node as their exit.
//!
//! Here is where it listens, who may ask what, and how a peer's is found; `sys::names` serves and asks.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::coord::client::NetMap;
use crate::filter::Filter;
use crate::wire::control::{Node, Service};

const V4: &str = "peerapi4";
const V6: &str = "peerapi6";
/// Its "port" is the version of what is offered.
const DNS: &str = "peerapi-dns-proxy";
const DNS_VERSION: u16 = 1;
/// Clients from this capability version on all offer it, whatever they say.
const ALWAYS_SINCE: u32 = 26;
/// Ports that are tried before any.
const TRIES: u8 = 5;
/// Where the questions go.
pub const DNS_PATH: &str = "/dns-query";
/// Whoever may ask these may ask us to ask for him: they stand for every name server of the internet.
const ANY_SERVER: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0))];

/// The ports to try for an address, in this order: the same at each start, so that what peers know of us stays right.
pub fn ports(ip: IpAddr) -> impl Iterator<Item = u16> {
    let (a, b, c) = match ip {
        IpAddr::V4(v4) => {
            let [_, a, b, c] = v4.octets();
            (a, b, c)
        }
        IpAddr::V6(v6) => {
            let [.., a, b, c] = v6.octets();
            (a, b, c)
        }
    };
    (0..TRIES).map(move |n| {
        let [low, high, ..] = crc32fast::hash(&[a.wrapping_add(n), b, c]).to_le_bytes();
        0x8000 | u16::from_le_bytes([low, high])
    })
}

/// What is told of these listeners.
pub fn services(listeners: &[SocketAddr]) -> Vec<Service> {
    let service = |proto: &str, port| Service { proto: proto.to_owned(), port, description: String::new() };
    let mut services: Vec<Service> = listeners.iter().map(|at| service(if at.is_ipv4() { V4 } else { V6 }, at.port())).collect();
    if !services.is_empty() {
        services.push(service(DNS, DNS_VERSION));
    }
    services
}

/// Where a peer answers name questions, as a URL; `None` if it does not.
pub fn dns_url(own: &Node, peer: &Node) -> Option<String> {
    let services = &peer.hostinfo.as_ref()?.services;
    if peer.cap < ALWAYS_SINCE && !services.iter().any(|service| service.proto == DNS && service.port >= DNS_VERSION) {
        return None;
    }
    address(own, peer).map(|at| format!("http://{at}{DNS_PATH}"))
}

/// Where a peer's peer API listens, by what the peer tells; `None` if it has none that this node can reach.
pub fn address(own: &Node, peer: &Node) -> Option<SocketAddr> {
    let services = &peer.hostinfo.as_ref()?.services;
    let own_families = |v4: bool| own.addresses.iter().any(|net| net.addr().is_ipv4() == v4);
    let at = |proto: &str, v4: bool| {
        let port = services.iter().find(|service| service.proto == proto && service.port != 0)?.port;
        let ip = peer.addresses.iter().map(ipnet::IpNet::addr).find(|ip| ip.is_ipv4() == v4)?;
        own_families(v4).then(|| SocketAddr::new(ip, port))
    };
    at(V4, true).or_else(|| at(V6, false))
}

/// Who may be a caller at all, and whether he may have names resolved: nodes of the same user, and those that policy lets ask name servers in
/// the internet through us.
pub fn callers(map: &NetMap, filter: &Filter) -> HashMap<IpAddr, bool> {
    let same_user = |peer: &Node| peer.tags.is_empty() && map.node.tags.is_empty() && peer.user == map.node.user;
    let asks = |ip: IpAddr| ANY_SERVER.iter().any(|server| server.is_ipv4() == ip.is_ipv4() && filter.allows_datagram(ip, *server, 53));
    let addresses = |peer: &Node| peer.addresses.iter().map(ipnet::IpNet::addr).collect::<Vec<_>>();
    let all = map.peers.values().map(|peer| (same_user(peer), addresses(peer)));
    all.flat_map(|(same, ips)| ips.into_iter().map(move |ip| (ip, same))).map(|(ip, same)| (ip, same || asks(ip))).collect()
}

/// Whether a request is one of a program's, not of a web page that a browser here or there has open: those name another host, or where
/// they come from.
pub fn is_a_programs(host: Option<&str>, own: SocketAddr, has_origin: bool) -> bool {
    let named = host.is_some_and(|host| host == "peer" || host.parse::<SocketAddr>() == Ok(own));
    named && !has_origin
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::FilterConfig;
    use crate::wire::control::json::from_slice;

    #[test]
    fn ports_are_those_of_stock_clients() {
        for (ip, expected) in [
            ("100.64.0.1", [58436, 36467, 45098]),
            ("100.101.102.103", [59395, 54874, 48237]),
            ("fd7a:115c:a1e0::1", [59780, 33715, 48618]),
        ] {
            assert_eq!(ports(ip.parse().unwrap()).take(3).collect::<Vec<_>>(), expected, "{ip}");
        }
    }

    fn map() -> NetMap {
        let json = r#"{"Node":{"ID":1,"Name":"exit.mesh.test.","User":1,"Addresses":["100.64.0.1/32","fd7a:115c:a1e0::1/128"]},
            "Peers":[
              {"ID":2,"Name":"own.","User":1,"Addresses":["100.64.0.2/32"],"Hostinfo":{"Services":[{"Proto":"peerapi4","Port":4711}]},"Cap":130},
              {"ID":3,"Name":"guest.","User":2,"Addresses":["100.64.0.3/32","fd7a:115c:a1e0::3/128"],
               "Hostinfo":{"Services":[{"Proto":"peerapi6","Port":4712},{"Proto":"peerapi-dns-proxy","Port":1}]}},
              {"ID":4,"Name":"stranger.","User":3,"Addresses":["100.64.0.4/32"],"Hostinfo":{"Services":[{"Proto":"peerapi4","Port":4713}]}},
              {"ID":5,"Name":"tagged.","User":1,"Tags":["tag:web"],"Addresses":["100.64.0.5/32"]}],
            "PacketFilter":[{"SrcIPs":["100.64.0.3","fd7a:115c:a1e0::3"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]},
                            {"SrcIPs":["100.64.0.4"],"DstPorts":[{"IP":"100.64.0.1","Ports":{"First":0,"Last":65535}}]}]}"#;
        let mut session = crate::coord::client::MapSession::default();
        session.apply(from_slice(json.as_bytes()).unwrap(), crate::time::Wall::UNIX_EPOCH).unwrap();
        session.netmap().unwrap().clone()
    }

    #[test]
    fn who_may_use_the_internet_through_us_may_have_names_resolved_and_so_may_the_same_users_nodes() {
        let map = map();
        let rules = map.filters.values().flatten().cloned().collect();
        let filter = Filter::new(&FilterConfig { rules, exit: true, ..FilterConfig::default() });
        let callers = callers(&map, &filter);
        let may = |ip: &str| callers.get(&ip.parse::<IpAddr>().unwrap()).copied();
        assert_eq!([may("100.64.0.2"), may("100.64.0.3"), may("fd7a:115c:a1e0::3")], [Some(true); 3]);
        assert_eq!([may("100.64.0.4"), may("100.64.0.5"), may("100.64.0.9")], [Some(false), Some(false), None]);
    }

    #[test]
    fn a_peer_that_answers_names_is_found_by_what_it_tells() {
        let map = map();
        let url = |n: i64| dns_url(&map.node, map.peers.values().find(|peer| peer.id.0 == n).unwrap());
        assert_eq!(url(2).as_deref(), Some("http://100.64.0.2:4711/dns-query"));
        assert_eq!(url(3).as_deref(), Some("http://[fd7a:115c:a1e0::3]:4712/dns-query"));
        assert_eq!((url(4), url(5)), (None, None));
        let listeners = ["100.64.0.1:58436".parse().unwrap(), "[fd7a:115c:a1e0::1]:59780".parse().unwrap()];
        let told: Vec<_> = services(&listeners).into_iter().map(|service| (service.proto, service.port)).collect();
        assert_eq!(told, [(V4.to_owned(), 58436), (V6.to_owned(), 59780), (DNS.to_owned(), 1)]);
        assert!(services(&[]).is_empty());
    }

    #[test]
    fn a_browser_is_no_peer() {
        let own = "100.64.0.1:58436".parse().unwrap();
        assert!(is_a_programs(Some("100.64.0.1:58436"), own, false) && is_a_programs(Some("peer"), own, false));
        assert!(!is_a_programs(Some("evil.example"), own, false) && !is_a_programs(None, own, false));
        assert!(!is_a_programs(Some("peer"), own, true));
    }
}
