//! What a node says of itself and of the network it is in.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{is_false, is_zero, parsed};

/// What a node says of itself. Fields that this program neither fills nor reads are passed on as they came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(missing_docs, reason = "the names of the wire say what an inventory holds; those with a meaning to us are documented")]
pub struct Hostinfo {
    /// The client program's version.
    #[serde(rename = "IPNVersion", skip_serializing_if = "is_zero")]
    pub ipn_version: String,
    #[serde(rename = "FrontendLogID", skip_serializing_if = "is_zero")]
    pub frontend_log_id: String,
    #[serde(rename = "BackendLogID", skip_serializing_if = "is_zero")]
    pub backend_log_id: String,
    /// `linux`, `windows`, `macOS`, `iOS`, `android` ...
    #[serde(rename = "OS", skip_serializing_if = "is_zero")]
    pub os: String,
    #[serde(rename = "OSVersion", skip_serializing_if = "is_zero")]
    pub os_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    pub env: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub distro: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub distro_version: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub distro_code_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub app: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desktop: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    pub package: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub device_model: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub push_device_token: String,
    /// What the host calls itself; the coordinator makes the node's name of it.
    #[serde(skip_serializing_if = "is_zero")]
    pub hostname: String,
    #[serde(skip_serializing_if = "is_false")]
    pub shields_up: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub sharee_node: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub no_logs_no_support: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub wire_ingress: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub ingress_enabled: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub allows_update: bool,
    /// CPU architecture as `uname` has it.
    #[serde(skip_serializing_if = "is_zero")]
    pub machine: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub go_arch: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub go_arch_var: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub go_version: String,
    /// The networks it offers to carry; both `/0` make an exit node.
    #[serde(rename = "RoutableIPs", deserialize_with = "parsed", skip_serializing_if = "Vec::is_empty")]
    pub routable_ips: Vec<IpNet>,
    /// The tags it claims.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_tags: Vec<String>,
    #[serde(rename = "WoLMACs", skip_serializing_if = "Vec::is_empty")]
    pub wol_macs: Vec<String>,
    /// Services it runs, its own peer API among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// The network it is in; on updates absent means unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_info: Option<NetInfo>,
    #[serde(rename = "sshHostKeys", skip_serializing_if = "Vec::is_empty")]
    pub ssh_host_keys: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub cloud: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace_router: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_connector: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    pub services_hash: String,
    #[serde(rename = "ExitNodeID", skip_serializing_if = "is_zero")]
    pub exit_node_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<serde_json::Value>,
    #[serde(rename = "TPM", skip_serializing_if = "Option::is_none")]
    pub tpm: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_encrypted: Option<bool>,
    #[serde(skip_serializing_if = "is_false")]
    pub peer_relay: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub remote_config: bool,
}

/// A service of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, `peerapi6`, `peerapi-dns-proxy`.
    pub proto: String,
    /// Port.
    pub port: u16,
    /// Program or purpose.
    #[serde(skip_serializing_if = "is_zero")]
    pub description: String,
}

/// The network a node is in; absent means unknown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetInfo {
    /// The NAT gives each destination another port.
    #[serde(rename = "MappingVariesByDestIP", skip_serializing_if = "Option::is_none")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// IPv6 reaches the internet.
    #[serde(rename = "WorkingIPv6", skip_serializing_if = "Option::is_none")]
    pub working_ipv6: Option<bool>,
    /// The system has IPv6 at all.
    #[serde(rename = "OSHasIPv6", skip_serializing_if = "Option::is_none")]
    pub os_has_ipv6: Option<bool>,
    /// UDP reaches the internet.
    #[serde(rename = "WorkingUDP", skip_serializing_if = "Option::is_none")]
    pub working_udp: Option<bool>,
    /// ICMP reaches the internet.
    #[serde(rename = "WorkingICMPv4", skip_serializing_if = "Option::is_none")]
    pub working_icmpv4: Option<bool>,
    /// A port mapping is in place.
    #[serde(skip_serializing_if = "is_false")]
    pub have_port_map: bool,
    /// The router speaks UPnP.
    #[serde(rename = "UPnP", skip_serializing_if = "Option::is_none")]
    pub upnp: Option<bool>,
    /// The router speaks NAT-PMP.
    #[serde(rename = "PMP", skip_serializing_if = "Option::is_none")]
    pub pmp: Option<bool>,
    /// The router speaks PCP.
    #[serde(rename = "PCP", skip_serializing_if = "Option::is_none")]
    pub pcp: Option<bool>,
    /// The home relay's region; 0 for none.
    #[serde(rename = "PreferredDERP", skip_serializing_if = "is_zero")]
    pub preferred_derp: i32,
    /// `wired`, `wifi`, `mobile`.
    #[serde(skip_serializing_if = "is_zero")]
    pub link_type: String,
    /// Seconds to the relays, by `<region>-v4` and `<region>-v6`.
    #[serde(rename = "DERPLatency", skip_serializing_if = "BTreeMap::is_empty")]
    pub derp_latency: BTreeMap<String, f64>,
    /// How packets are filtered and translated on the host.
    #[serde(skip_serializing_if = "is_zero")]
    pub firewall_mode: String,
}
