//! What the coordinator keeps: the values that outlive the process, and the changes to them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::join_key::Digest;
use crate::ident::{DiscoPublic, MachinePublic, NodeId, NodeName, NodePublic, StableId, UserId};
use crate::time::Wall;
use crate::wire::admin::DnsSettings;
use crate::wire::control::{DerpRegion, Hostinfo};

/// A user: whoever owns nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Number, never reused.
    pub id: UserId,
    /// Login name, unique.
    pub name: String,
    /// When it was made.
    pub created: Wall,
}

/// A join key. Only the digest of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinKeyRecord {
    /// Number, never reused.
    pub id: i64,
    /// The part of the key's text that names it; not secret.
    pub prefix: String,
    /// SHA-256 of the secret part.
    pub digest: Digest,
    /// Whose nodes join with it.
    pub user: UserId,
    /// Works more than once.
    pub reusable: bool,
    /// Its nodes vanish some time after they disconnect.
    pub ephemeral: bool,
    /// A node has joined with it.
    pub used: bool,
    /// An admin withdrew it.
    pub revoked: bool,
    /// Tags its nodes get.
    pub tags: Vec<String>,
    /// Routes its nodes may carry without further approval.
    pub approve_routes: BTreeSet<IpNet>,
    /// The only host name it works for.
    pub only_for: Option<NodeName>,
    /// The IPv4 address its node gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// When it was made.
    pub created: Wall,
    /// When it stops working.
    pub expires: Wall,
}

impl JoinKeyRecord {
    /// Whether a node can still join with it.
    pub fn usable(&self, wall: Wall) -> bool {
        !self.revoked && self.expires > wall && (self.reusable || !self.used)
    }
}

/// A node as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Number, never reused.
    pub id: NodeId,
    /// Opaque id that clients keep in their preferences.
    pub stable_id: StableId,
    /// The installation's key, proven by each control connection.
    pub machine: MachinePublic,
    /// The WireGuard key of now.
    pub key: NodePublic,
    /// The path-probe key of the running process; zero until told.
    pub disco: DiscoPublic,
    /// Owner; also that of a tagged node, though clients are not told then.
    pub user: UserId,
    /// Name within the mesh, unique.
    pub name: NodeName,
    /// An admin chose the name: the host name no longer changes it.
    pub renamed: bool,
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
    /// Where its WireGuard socket may be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Its capability version.
    pub version: u32,
    /// Its home relay's region; 0 for none.
    pub home_derp: i32,
    /// What it reports of itself, without network measurements.
    pub hostinfo: Hostinfo,
    /// Routes it offers to carry.
    pub advertised: BTreeSet<IpNet>,
    /// Routes an admin or its join key lets it carry; survives that it stops advertising them.
    pub approved: BTreeSet<IpNet>,
    /// Tags; a tagged node does not expire.
    pub tags: Vec<String>,
    /// An admin chose the tags: a login no longer changes them.
    #[serde(default)]
    pub tags_chosen: bool,
    /// It is removed some time after it disconnects.
    pub ephemeral: bool,
    /// The join key that let it in last; none if an admin did.
    #[serde(default)]
    pub join_key: Option<i64>,
    /// When it first joined.
    pub created: Wall,
    /// When it was last seen connecting or disconnecting.
    pub last_seen: Option<Wall>,
    /// When its node key expires; `None` for never.
    pub key_expiry: Option<Wall>,
    /// An admin decided that its keys do not expire: a login does not change that.
    #[serde(default)]
    pub never_expires: bool,
    /// It counted as online when this was written. After a restart it is given time to come back.
    pub connected: bool,
}

impl NodeRecord {
    /// Whether the node key has expired.
    pub fn expired(&self, wall: Wall) -> bool {
        self.key_expiry.is_some_and(|expiry| expiry <= wall)
    }

    /// The routes both advertised and approved; a single machine may be approved alone, within an advertised network.
    pub fn effective_routes(&self) -> impl Iterator<Item = IpNet> + '_ {
        let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let within = move |net: &IpNet| single(net) && self.advertised.iter().any(|whole| whole.prefix_len() > 0 && whole.contains(net));
        self.approved.iter().filter(move |net| self.advertised.contains(net) || within(net)).copied()
    }
}

/// The policy in force, as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The file's text, comments and all.
    pub text: String,
    /// When it was set.
    pub set: Wall,
}

/// The last numbers given out. Kept, so that no number is ever given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Of users.
    pub user: i64,
    /// Of join keys.
    pub key: i64,
    /// Of nodes.
    pub node: i64,
    /// Of address slots; addresses of deleted nodes come round again only when all others are used.
    pub slot: u32,
}

/// Everything stored.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// The users.
    pub users: Vec<UserRecord>,
    /// The join keys.
    pub keys: Vec<JoinKeyRecord>,
    /// The nodes.
    pub nodes: Vec<NodeRecord>,
    /// The counters.
    pub counters: Counters,
    /// How names are resolved.
    pub dns: DnsSettings,
    /// Relays that an admin added.
    pub relays: Vec<DerpRegion>,
    /// The policy in force; none allows everything.
    pub policy: Option<PolicyRecord>,
}

/// One change to what is stored; each replaces the record of the same number.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The counters.
    Counters(Counters),
    /// How names are resolved.
    Dns(Box<DnsSettings>),
    /// A join key.
    Key(JoinKeyRecord),
    /// A node.
    Node(Box<NodeRecord>),
    /// The policy; none that there is none any more.
    Policy(Option<Box<PolicyRecord>>),
    /// A relay's region.
    Relay(Box<DerpRegion>),
    /// A relay's region is gone.
    RemoveRelay(i32),
    /// A join key is gone.
    RemoveKey(i64),
    /// A node is gone.
    RemoveNode(NodeId),
    /// A user is gone.
    RemoveUser(UserId),
    /// A user.
    User(UserRecord),
}
