//! The map request and the messages of the map stream.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{DerpMap, DnsConfig, FilterRule, Hostinfo, Node, PeerChange, bounded, is_false, is_zero, or_default, parsed, time_or_none};
use crate::ident::{DiscoPublic, NodeId, NodePublic, UserId};
use crate::time::Wall;

/// Asks for the network map, or reports a change.
///
/// `stream` without `omit_peers` is the long poll; `omit_peers` without `stream` is a lite update, whose answer is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapRequest {
    /// Capability version of the client.
    pub version: u32,
    /// `zstd` or empty.
    #[serde(skip_serializing_if = "is_zero")]
    pub compress: String,
    /// Keep-alive messages are wanted.
    #[serde(skip_serializing_if = "is_false")]
    pub keep_alive: bool,
    /// The node asking.
    #[serde(deserialize_with = "or_default")]
    pub node_key: NodePublic,
    /// Its disco key; zero means unchanged.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub disco_key: DiscoPublic,
    /// Go on for ever with changes.
    pub stream: bool,
    /// What the node says of itself; absent means unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// Where its WireGuard socket may be reached.
    #[serde(deserialize_with = "parsed", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// Beside each endpoint how it was found: 1 local, 2 STUN, 3 port mapping, 4 STUN with the local port, 5 configured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoint_types: Vec<u8>,
    /// The answer is not wanted.
    #[serde(skip_serializing_if = "is_false")]
    pub omit_peers: bool,
    /// Answer without changing state.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Tailnet-lock head.
    #[serde(rename = "TKAHead", skip_serializing_if = "is_zero")]
    pub tka_head: String,
    /// What the client thinks is wrong with itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub debug_flags: Vec<String>,
}

/// A message of the map stream. The first one is complete; in later ones absent means unchanged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapResponse {
    /// Only shows that the stream lives.
    #[serde(skip_serializing_if = "is_false")]
    pub keep_alive: bool,
    /// Something the node should answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_request: Option<PingRequest>,
    /// A page to open.
    #[serde(rename = "PopBrowserURL", skip_serializing_if = "is_zero")]
    pub pop_browser_url: String,
    /// The node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// Relays; partial as an update.
    #[serde(rename = "DERPMap", skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// All peers, in order of id. Not empty: every other change of peers in the message is ignored. Empty says nothing.
    #[serde(deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Node>,
    /// New peers and replaced ones, in order of id.
    #[serde(deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed: Vec<Node>,
    /// Peers that are gone; done before anything else.
    #[serde(deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub peers_removed: Vec<NodeId>,
    /// Changes of single fields; done after everything else.
    #[serde(deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed_patch: Vec<PeerChange>,
    /// Peers seen just now (true) or never (false).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// Peers now online or offline.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub online_change: BTreeMap<NodeId, bool>,
    /// Names.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// The network's name for people.
    #[serde(skip_serializing_if = "is_zero")]
    pub domain: String,
    /// Whether the client should report its listening ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collect_services: Option<bool>,
    /// The filter in the old form: `base` of `packet_filters`. Empty blocks everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Named parts of the filter; no value deletes a part, `*` without value deletes all first.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub packet_filters: BTreeMap<String, Option<Vec<FilterRule>>>,
    /// Users that nodes refer to.
    #[serde(deserialize_with = "bounded", skip_serializing_if = "Vec::is_empty")]
    pub user_profiles: Vec<UserProfile>,
    /// What the coordinator thinks is wrong with the node, in the old form; empty clears.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Vec<String>>,
    /// What the coordinator wants the user to read; no value removes, `*` without value removes all first.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub display_messages: BTreeMap<String, Option<DisplayMessage>>,
    /// Who may log in by SSH.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<serde_json::Value>,
    /// The coordinator's clock.
    #[serde(deserialize_with = "time_or_none", skip_serializing_if = "Option::is_none")]
    pub control_time: Option<Wall>,
    /// Instructions to the client program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<Debug>,
}

/// Something a node should answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingRequest {
    /// Where the answer goes.
    #[serde(rename = "URL")]
    pub url: String,
    /// The answer goes through the control connection.
    #[serde(rename = "URLIsNoise", skip_serializing_if = "is_false")]
    pub url_is_noise: bool,
    /// Write a line to the log.
    #[serde(skip_serializing_if = "is_false")]
    pub log: bool,
    /// Empty: send `HEAD`. `c2n`: answer the request in `payload`. Otherwise kinds of ping, with commas.
    #[serde(skip_serializing_if = "is_zero")]
    pub types: String,
    /// Whom to ping.
    #[serde(rename = "IP", skip_serializing_if = "is_zero")]
    pub ip: String,
    /// An HTTP/1 request, base64.
    #[serde(skip_serializing_if = "is_zero")]
    pub payload: String,
}

/// How a node is pinged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PingKind {
    /// By the probes of the path, outside the tunnel.
    #[default]
    #[serde(rename = "disco")]
    Disco,
    /// Inside the tunnel, answered by the node's mesh program.
    #[serde(rename = "TSMP")]
    Tsmp,
    /// Inside the tunnel, answered by the node's system.
    #[serde(rename = "ICMP")]
    Icmp,
    /// By a request to the node's peer API, inside the tunnel.
    #[serde(rename = "peerapi")]
    PeerApi,
}

impl PingKind {
    const NAMED: [(&'static str, Self); 4] =
        [("disco", Self::Disco), ("TSMP", Self::Tsmp), ("ICMP", Self::Icmp), ("peerapi", Self::PeerApi)];

    /// The kinds in a list with commas, as in [`PingRequest::types`], each once; what is not known is left out.
    pub fn list(text: &str) -> Vec<Self> {
        let named = |kind: &(&'static str, Self)| text.split(',').any(|name| name == kind.0);
        Self::NAMED.into_iter().filter(named).map(|(_, kind)| kind).collect()
    }
}

/// What came of a ping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingResponse {
    /// How it was done.
    #[serde(rename = "Type")]
    pub kind: PingKind,
    /// Whom, as it was asked.
    #[serde(rename = "IP", skip_serializing_if = "is_zero")]
    pub ip: String,
    /// The address of the node that this means.
    #[serde(rename = "NodeIP", skip_serializing_if = "is_zero")]
    pub node_ip: String,
    /// Its name.
    #[serde(skip_serializing_if = "is_zero")]
    pub node_name: String,
    /// Why nothing came of it; empty if something did.
    #[serde(skip_serializing_if = "is_zero")]
    pub err: String,
    /// There and back, in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub latency_seconds: f64,
    /// The address the answer came from, if it came directly.
    #[serde(skip_serializing_if = "is_zero")]
    pub endpoint: String,
    /// The region of the relay it came through.
    #[serde(rename = "DERPRegionID", skip_serializing_if = "is_zero")]
    pub relay: i32,
    /// That region's short name.
    #[serde(rename = "DERPRegionCode", skip_serializing_if = "is_zero")]
    pub relay_code: String,
    /// The port of the node's peer API, where the answer tells it.
    #[serde(rename = "PeerAPIPort", skip_serializing_if = "is_zero")]
    pub peer_api_port: u16,
    /// The address is the asked node's own; nothing was sent.
    #[serde(rename = "IsLocalIP", skip_serializing_if = "is_false")]
    pub is_local: bool,
}

/// A user as shown to people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UserProfile {
    /// Number.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Login name.
    pub login_name: String,
    /// Name shown to people.
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", skip_serializing_if = "is_zero")]
    pub profile_pic_url: String,
}

/// Something the user should read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisplayMessage {
    /// Heading.
    pub title: String,
    /// Body.
    pub text: String,
    /// `high`, `medium`, `low`.
    pub severity: String,
    /// Traffic is affected.
    #[serde(skip_serializing_if = "is_false")]
    pub impacts_connectivity: bool,
    /// What the user may do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_action: Option<MessageAction>,
}

/// Where a message leads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MessageAction {
    /// The page.
    #[serde(rename = "URL")]
    pub url: String,
    /// What it is for.
    pub label: String,
}

/// Instructions to the client program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Debug {
    /// Wait before reading on.
    #[serde(skip_serializing_if = "is_zero")]
    pub sleep_seconds: f64,
    /// Do not upload logs. (This program has no such thing.)
    #[serde(skip_serializing_if = "is_false")]
    pub disable_log_tail: bool,
}
