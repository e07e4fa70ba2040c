//! A node as the coordinator describes it to others, and changes of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Hostinfo, is_false, is_zero, or_default, parsed, parsed_option, time_or_none};
use crate::ident::{DiscoPublic, MachinePublic, NodeId, NodePublic, StableId, UserId};
use crate::time::Wall;

/// A node of the network map.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    /// Number; never used again for another node.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Opaque id that preferences refer to.
    #[serde(rename = "StableID")]
    pub stable_id: StableId,
    /// Fully qualified name with its final dot.
    pub name: String,
    /// Owner.
    pub user: UserId,
    /// Who shared it with us; 0 for nobody.
    #[serde(skip_serializing_if = "is_zero")]
    pub sharer: UserId,
    /// Public node key.
    #[serde(deserialize_with = "or_default")]
    pub key: NodePublic,
    /// When the key expires; absent for never.
    #[serde(deserialize_with = "time_or_none", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Wall>,
    /// Public machine key; zero if not told.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub machine: MachinePublic,
    /// Public disco key; zero if not told.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    pub disco_key: DiscoPublic,
    /// Its own addresses: one IPv4 /32 and one IPv6 /128, in this order.
    #[serde(deserialize_with = "parsed")]
    pub addresses: Vec<IpNet>,
    /// What may be routed to it; absent means `addresses`.
    #[serde(rename = "AllowedIPs", deserialize_with = "parsed_option", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// The subnet routes it is the chosen router of.
    #[serde(deserialize_with = "parsed", skip_serializing_if = "Vec::is_empty")]
    pub primary_routes: Vec<IpNet>,
    /// Where its WireGuard socket may be reached.
    #[serde(deserialize_with = "parsed", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// The home relay in the old notation, `127.3.3.40:<region>`; read only if `home_derp` is 0.
    #[serde(rename = "DERP", skip_serializing_if = "is_zero")]
    pub legacy_derp: String,
    /// The home relay's region; 0 if unknown.
    #[serde(rename = "HomeDERP", skip_serializing_if = "is_zero")]
    pub home_derp: i32,
    /// What it says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// When it was made.
    #[serde(deserialize_with = "time_or_none", skip_serializing_if = "Option::is_none")]
    pub created: Option<Wall>,
    /// Its capability version; 0 if not told.
    #[serde(skip_serializing_if = "is_zero")]
    pub cap: u32,
    /// Tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// When it was last connected; only while offline.
    #[serde(deserialize_with = "time_or_none", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Wall>,
    /// Whether it is connected to the coordinator; absent if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// It may take part.
    pub machine_authorized: bool,
    /// Attributes in the old form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Attributes: name to arguments.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Vec<serde_json::Value>>,
    /// Its key has expired.
    #[serde(skip_serializing_if = "is_false")]
    pub expired: bool,
    /// A plain WireGuard peer without disco.
    #[serde(skip_serializing_if = "is_false")]
    pub is_wire_guard_only: bool,
    /// It may not open connections to us.
    #[serde(skip_serializing_if = "is_false")]
    pub is_jailed: bool,
}

impl Node {
    /// What may be routed to the node.
    pub fn routed(&self) -> &[IpNet] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }

    /// Whether its key has expired.
    pub fn has_expired(&self, now: Wall) -> bool {
        self.expired || self.key_expiry.is_some_and(|expiry| expiry <= now)
    }

    /// The region of its home relay, whichever way it is told; 0 if unknown.
    pub fn home_region(&self) -> i32 {
        match self.home_derp {
            0 => self.legacy_derp.strip_prefix("127.3.3.40:").and_then(|region| region.parse().ok()).unwrap_or(0),
            region => region,
        }
    }

    /// The first label of its name.
    pub fn short_name(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// A change of one peer; absent fields are unchanged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerChange {
    /// Which peer.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// New home relay; 0 for unchanged.
    #[serde(rename = "DERPRegion", skip_serializing_if = "is_zero")]
    pub derp_region: i32,
    /// New capability version; 0 for unchanged.
    #[serde(skip_serializing_if = "is_zero")]
    pub cap: u32,
    /// New attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<BTreeMap<String, Vec<serde_json::Value>>>,
    /// New endpoints; an empty list means it has none now.
    #[serde(deserialize_with = "parsed_option", skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// New node key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<NodePublic>,
    /// New disco key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    /// Now online or offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// New time of last connection.
    #[serde(deserialize_with = "time_or_none", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Wall>,
    /// New expiry of the key.
    #[serde(deserialize_with = "time_or_none", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Wall>,
}
