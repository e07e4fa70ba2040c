//! Network-wide parts of the map: relays, names, packet filter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{is_false, is_zero};

/// The relays. As an update it is partial: absent parts are unchanged, a region without value is removed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpMap {
    /// Regions by number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeMap<i32, Option<DerpRegion>>>,
    /// Informational only.
    #[serde(rename = "omitDefaultRegions", skip_serializing_if = "is_false")]
    pub omit_default_regions: bool,
    /// How the home relay is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_params: Option<HomeParams>,
}

/// Weights for the choice of the home relay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HomeParams {
    /// Factor on the latency of a region; above 1 makes it less wanted. Absent is unchanged, empty resets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_score: Option<BTreeMap<i32, f64>>,
}

/// Relays that are meshed with each other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpRegion {
    /// Number; 900 to 999 are for private ones.
    #[serde(rename = "RegionID")]
    pub region_id: i32,
    /// Short name.
    pub region_code: String,
    /// Name for people.
    pub region_name: String,
    /// Do not choose it.
    #[serde(skip_serializing_if = "is_false")]
    pub avoid: bool,
    /// Neither measure it nor make it the home.
    #[serde(skip_serializing_if = "is_false")]
    pub no_measure_no_home: bool,
    /// Its relays, the first is tried first.
    pub nodes: Vec<DerpNode>,
}

/// One relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpNode {
    /// Unique name.
    pub name: String,
    /// The region it is in.
    #[serde(rename = "RegionID")]
    pub region_id: i32,
    /// DNS name.
    pub host_name: String,
    /// The name its certificate is checked against; `sha256-raw:` and hex pins one. Empty: the host name.
    #[serde(skip_serializing_if = "is_zero")]
    pub cert_name: String,
    /// IPv4 address; `none` forbids IPv4; empty asks DNS.
    #[serde(rename = "IPv4", skip_serializing_if = "is_zero")]
    pub ipv4: String,
    /// IPv6 address; `none` forbids IPv6; empty asks DNS.
    #[serde(rename = "IPv6", skip_serializing_if = "is_zero")]
    pub ipv6: String,
    /// 0 means 3478, -1 means no STUN.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_zero")]
    pub stun_port: i32,
    /// It relays nothing.
    #[serde(rename = "STUNOnly", skip_serializing_if = "is_false")]
    pub stun_only: bool,
    /// 0 means 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_zero")]
    pub derp_port: u16,
    /// Its certificate is not checked.
    #[serde(skip_serializing_if = "is_false")]
    pub insecure_for_tests: bool,
    /// It answers plain HTTP on port 80.
    #[serde(skip_serializing_if = "is_false")]
    pub can_port80: bool,
}

/// How names are resolved; replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    /// Name servers for everything; they replace the system's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<Resolver>,
    /// Name servers by suffix; an empty list means the node itself answers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    /// Used only where the system cannot split.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search list; the first is the suffix of the nodes' names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// The system's resolver is pointed at 100.100.100.100.
    #[serde(skip_serializing_if = "is_false")]
    pub proxied: bool,
    /// The old form of `resolvers`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Names the node may get certificates for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cert_domains: Vec<String>,
    /// Further records the node answers itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_records: Vec<DnsRecord>,
    /// Names an exit node does not resolve for others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exit_node_filtered_set: Vec<String>,
}

/// A name server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resolver {
    /// An address, address and port, or an `https://` URL.
    pub addr: String,
    /// Addresses of the URL's host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bootstrap_resolution: Vec<String>,
    /// Keep using it while an exit node is in use.
    #[serde(skip_serializing_if = "is_false")]
    pub use_with_exit_node: bool,
}

/// A DNS record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsRecord {
    /// Owner name.
    pub name: String,
    /// `A`, `AAAA`, or empty for whichever the value is.
    #[serde(skip_serializing_if = "is_zero")]
    pub r#type: String,
    /// Address.
    pub value: String,
}

/// What a node accepts from others: traffic (`dst_ports`) or capabilities (`cap_grant`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterRule {
    /// Address, network, `a-b`, `*` or `cap:<name>`.
    #[serde(rename = "SrcIPs")]
    pub src_ips: Vec<String>,
    /// Where to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dst_ports: Vec<NetPortRange>,
    /// IP protocol numbers; empty means TCP, UDP and ICMP.
    #[serde(rename = "IPProto", skip_serializing_if = "Vec::is_empty")]
    pub ip_proto: Vec<i32>,
    /// Capabilities granted to the sources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_grant: Vec<CapGrant>,
}

/// A destination.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetPortRange {
    /// Address, network, `a-b` or `*`.
    #[serde(rename = "IP")]
    pub ip: String,
    /// Ports.
    pub ports: PortRange,
}

/// Ports, both ends included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortRange {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
}

/// Capabilities of the sources on some addresses of this node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CapGrant {
    /// Networks.
    pub dsts: Vec<String>,
    /// Capabilities without arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// Capabilities with arguments.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Vec<serde_json::Value>>,
}
