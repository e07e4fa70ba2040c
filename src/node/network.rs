//! What `node netcheck` and `node ping` show, with the field names of `tailscale netcheck --format=json` where both have the thing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ident::RegionId;
use crate::netcheck::Report;
use crate::portmap::{Ports, Services};
use crate::wire::control::NetInfo;

/// The network around the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkReport {
    /// UDP reaches the internet.
    #[serde(rename = "UDP")]
    pub udp: bool,
    /// IPv4 reaches the internet by UDP.
    #[serde(rename = "IPv4")]
    pub v4: bool,
    /// IPv6 does.
    #[serde(rename = "IPv6")]
    pub v6: bool,
    /// The system has IPv6 at all.
    #[serde(rename = "OSHasIPv6")]
    pub os_has_v6: bool,
    /// The NAT gives each destination another port; absent if that is not known.
    #[serde(rename = "MappingVariesByDestIP")]
    pub mapping_varies: Option<bool>,
    /// The router speaks UPnP; absent if that is not known.
    #[serde(rename = "UPnP")]
    pub upnp: Option<bool>,
    /// The router speaks NAT-PMP.
    #[serde(rename = "PMP")]
    pub pmp: Option<bool>,
    /// The router speaks PCP.
    #[serde(rename = "PCP")]
    pub pcp: Option<bool>,
    /// A portal stands in the way; absent if that is not known, which it is not while UDP passes.
    pub captive_portal: Option<bool>,
    /// The port that the router has mapped, with its address, and by what; empty if none. Ours.
    pub mapped_port: String,
    /// Where we are seen in IPv4; empty if nowhere.
    #[serde(rename = "GlobalV4")]
    pub global_v4: String,
    /// Where we are seen in IPv6.
    #[serde(rename = "GlobalV6")]
    pub global_v6: String,
    /// The home relay's region; 0 for none.
    #[serde(rename = "PreferredDERP")]
    pub home: u16,
    /// Nanoseconds to each region that answered lately.
    pub region_latency: BTreeMap<u16, u64>,
    /// Nanoseconds by IPv4.
    #[serde(rename = "RegionV4Latency")]
    pub v4_latency: BTreeMap<u16, u64>,
    /// Nanoseconds by IPv6.
    #[serde(rename = "RegionV6Latency")]
    pub v6_latency: BTreeMap<u16, u64>,
    /// The regions' short names; ours.
    pub region_code: BTreeMap<u16, String>,
    /// What is wrong with the connections to relays, by region; ours.
    pub relay_trouble: BTreeMap<u16, String>,
}

fn nanoseconds(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

impl NetworkReport {
    /// From the last check and what is known of the regions: number, short name, how far at best lately.
    pub fn new(report: Option<&Report>, regions: &[(RegionId, String, Option<Duration>)], home: Option<RegionId>) -> Self {
        let empty = Report::default();
        let report = report.unwrap_or(&empty);
        let shown = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        let by = |of: fn(&crate::netcheck::Latency) -> Option<Duration>| {
            report.latencies.iter().filter_map(|(id, latency)| Some((id.0, nanoseconds(of(latency)?)))).collect()
        };
        Self {
            udp: report.udp,
            v4: report.v4.is_some(),
            v6: report.v6.is_some(),
            os_has_v6: report.os_has_v6,
            mapping_varies: report.mapping_varies,
            upnp: None,
            pmp: None,
            pcp: None,
            captive_portal: None,
            mapped_port: String::new(),
            global_v4: shown(report.v4),
            global_v6: shown(report.v6),
            home: home.map_or(0, |id| id.0),
            region_latency: regions.iter().filter_map(|(id, _, latency)| Some((id.0, nanoseconds((*latency)?)))).collect(),
            v4_latency: by(|latency| latency.v4),
            v6_latency: by(|latency| latency.v6),
            region_code: regions.iter().map(|(id, code, _)| (id.0, code.clone())).collect(),
            relay_trouble: BTreeMap::new(),
        }
    }
}

impl NetworkReport {
    /// With what is known of the router's ports.
    #[must_use]
    pub fn with_ports(self, ports: &Ports) -> Self {
        let of = |which: fn(&Services) -> bool| ports.services.as_ref().map(which);
        let mapped = ports.mapping.map(|mapping| format!("{} by {}", mapping.external, mapping.protocol.name()));
        Self { upnp: of(|s| s.upnp), pmp: of(|s| s.pmp), pcp: of(|s| s.pcp), mapped_port: mapped.unwrap_or_default(), ..self }
    }
}

/// What one ping has found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PingReply {
    /// `direct` or `relay`; empty where the answer does not say.
    pub path: String,
    /// The address, or the relay region's short name; for a request to the peer API, its URL.
    pub via: String,
    /// Round trip in milliseconds.
    pub latency_ms: f64,
    /// The port of the node's peer API, where the answer tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_api_port: Option<u16>,
}

/// The network's description for the coordinator: the one it has, unless something but latencies has changed. Those differ each time,
/// and peers have no use for them.
pub fn worth_telling(known: NetInfo, now: NetInfo) -> NetInfo {
    let latencies_aside = NetInfo { derp_latency: known.derp_latency.clone(), ..now.clone() };
    if latencies_aside == known { known } else { now }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_latency_alone_is_not_told() {
        let info =
            |home, latency| NetInfo { preferred_derp: home, derp_latency: [("1-v4".to_owned(), latency)].into(), ..NetInfo::default() };
        assert_eq!(worth_telling(info(1, 0.1), info(1, 0.2)), info(1, 0.1));
        assert_eq!(worth_telling(info(1, 0.1), info(2, 0.2)), info(2, 0.2));
    }
}
