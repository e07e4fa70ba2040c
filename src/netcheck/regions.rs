//! The relays as a check sees them.

use std::net::IpAddr;

use crate::ident::RegionId;
use crate::wire::control::{DerpMap, DerpNode};
use crate::wire::stun;

/// Regions and servers of a map that are looked at; no map has as many.
const MAX_REGIONS: usize = 256;
const MAX_SERVERS: usize = 32;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address; an IPv4 address written as an IPv6 one is the former.
    pub fn of(ip: IpAddr) -> Self {
        if ip.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// How a server is reached in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At this address.
    At(IpAddr),
    /// Where its name resolves to.
    Named,
    /// Not at all.
    Nowhere,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name within the map.
    pub name: String,
    /// Its DNS name, or an address.
    pub host: String,
    /// The name or the hash its certificate is checked against; empty for the host name.
    pub certificate: String,
    /// Where it is in IPv4.
    pub v4: Place,
    /// Where it is in IPv6.
    pub v6: Place,
    /// The port of its STUN server, if it has one.
    pub stun: Option<u16>,
    /// The TCP port of the relay, unless it is for STUN only.
    pub relay: Option<u16>,
    /// Its certificate is not checked, and plain HTTP will do: for tests.
    pub insecure: bool,
    /// It answers plain HTTP on port 80, and tells whether a portal stands in the way.
    pub port80: bool,
}

impl Server {
    /// Where it is in a family.
    pub fn place(&self, family: Family) -> &Place {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// Relays that stand for one another.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Its number.
    pub id: RegionId,
    /// Its short name.
    pub code: String,
    /// Its name for people.
    pub name: String,
    /// It is nobody's first choice.
    pub avoid: bool,
    /// It is neither measured nor chosen.
    pub unmeasured: bool,
    /// Factor on its latency when the home is chosen.
    pub score: f64,
    /// Its relays, the first is tried first.
    pub servers: Vec<Server>,
}

/// The regions of a relay map that can be used, by number.
pub fn regions(map: &DerpMap) -> Vec<Region> {
    let scores = map.home_params.as_ref().and_then(|home| home.region_score.as_ref());
    let known = map.regions.iter().flatten().filter_map(|(number, region)| Some((RegionId::new(*number)?, region.as_ref()?)));
    known
        .take(MAX_REGIONS)
        .map(|(id, region)| Region {
            id,
            code: region.region_code.clone(),
            name: region.region_name.clone(),
            avoid: region.avoid,
            unmeasured: region.no_measure_no_home,
            // A factor that is none would make a region the best or the worst of all.
            score: scores.and_then(|s| s.get(&i32::from(id.0))).copied().filter(|s| s.is_finite() && *s > 0.0).unwrap_or(1.0),
            servers: region.nodes.iter().take(MAX_SERVERS).map(server).collect(),
        })
        .filter(|region| !region.servers.is_empty())
        .collect()
}

/// A relay of the map.
pub fn server(node: &DerpNode) -> Server {
    let place = |text: &str, family| match text {
        "" => node
            .host_name
            .parse::<IpAddr>()
            .map_or(Place::Named, |ip| if Family::of(ip) == family { Place::At(ip) } else { Place::Nowhere }),
        text => text.parse::<IpAddr>().ok().filter(|ip| Family::of(*ip) == family).map_or(Place::Nowhere, Place::At),
    };
    Server {
        name: node.name.clone(),
        host: node.host_name.clone(),
        certificate: node.cert_name.clone(),
        v4: place(&node.ipv4, Family::V4),
        v6: place(&node.ipv6, Family::V6),
        stun: match node.stun_port {
            0 => Some(stun::PORT),
            port => u16::try_from(port).ok(),
        },
        relay: (!node.stun_only).then_some(if node.derp_port == 0 { 443 } else { node.derp_port }),
        insecure: node.insecure_for_tests,
        port80: node.can_port80,
    }
}
