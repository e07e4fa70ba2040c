//! The administration messages of our coordinator: JSON, our own, not Tailscale's.
//!
//! The same requests are served on the coordinator's local socket and, for the machine keys it was told to trust, inside its control
//! protocol (`/machine/pvemesh/admin/v1/...`), so that a provisioner elsewhere needs no password and no plain-text token.
//!
//! | method, path | request | reply |
//! |---|---|---|
//! | `GET users`, `POST users` | -, [`CreateUser`] | `[User]`, [`User`] |
//! | `DELETE users/{id}` | - | `{}`; refused while the user has nodes |
//! | `GET keys`, `POST keys` | -, [`CreateKey`] | `[KeyInfo]`, [`CreatedKey`] |
//! | `DELETE keys/{id}` | - | `{}`; the key is revoked |
//! | `POST users/{id}/name` | [`RenameUser`] | [`User`] |
//! | `GET nodes`, `DELETE nodes/{id}` | - | `[NodeInfo]`, `{}` |
//! | `POST nodes/{id}/routes` | [`ApproveRoutes`] | [`NodeInfo`]; replaces the approved set |
//! | `POST nodes/{id}/name` | [`Rename`] | [`NodeInfo`] |
//! | `POST nodes/{id}/expire` | [`Expire`] | [`NodeInfo`] |
//! | `POST nodes/{id}/address` | [`SetAddress`] | [`NodeInfo`] |
//! | `POST nodes/{id}/tags` | [`SetTags`] | [`NodeInfo`]; replaces them, none at all gives the node back to its user |
//! | `POST nodes/{id}/drain` | [`Drain`] | [`NodeInfo`]; the node leaves, or is gone |
//! | `POST nodes/{id}/user` | [`MoveNode`] | [`NodeInfo`] |
//! | `GET registrations` | - | `[Registration]`: nodes that wait for approval |
//! | `POST registrations/{id}` | [`Approve`] | [`NodeInfo`] |
//! | `GET dns`, `POST dns` | -, [`DnsSettings`] | [`DnsSettings`]; replaces all of them |
//! | `GET relays`, `POST relays` | -, [`DerpRegion`](crate::wire::control::DerpRegion) | `[DerpRegion]`, `DerpRegion`; without a number it gets one |
//! | `DELETE relays/{number}` | - | `{}` |
//! | `GET policy`, `POST policy` | -, [`SetPolicy`] | [`PolicyText`], [`PolicyReport`] |
//! | `DELETE policy` | - | `{}`; everything is allowed then |
//! | `GET backup` | - | [`Backup`]; on the local socket only |
//! | `GET info` | - | [`CoordinatorInfo`] |
//!
//! Errors come with a 4xx or 5xx status and an [`AdminFailure`].

mod dns;
mod drain;
mod policy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use dns::{DnsSettings, NameServer};
pub use drain::Drain;
pub use policy::{Approval, PolicyReport, PolicyText, SetPolicy};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ident::{MachinePublic, NodeId, NodeName, NodePublic, Secret, UserId};
use crate::time::Wall;

/// The path prefix inside the control protocol.
pub const ADMIN_PREFIX: &str = "/machine/pvemesh/admin/v1/";

/// What the coordinator says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorInfo {
    /// Program version.
    pub version: String,
    /// The address clients are told.
    pub url: String,
    /// The DNS suffix of node names.
    pub base_domain: String,
    /// The Noise key that clients pin.
    pub server_key: MachinePublic,
    /// Nodes known.
    pub nodes: usize,
    /// Nodes with an open map stream.
    pub online: usize,
}

/// A new user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// The login name.
    pub name: String,
}

/// Renames a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameUser {
    /// The new login name.
    pub name: String,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Number.
    pub id: UserId,
    /// Login name.
    pub name: String,
    /// When it was made.
    pub created: Wall,
}

/// A new join key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateKey {
    /// Whose nodes join with it; made if it does not exist.
    pub user: String,
    /// May be used more than once.
    #[serde(default)]
    pub reusable: bool,
    /// Nodes that join with it vanish some time after they disconnect.
    #[serde(default)]
    pub ephemeral: bool,
    /// Seconds until it can no longer be used.
    pub expires_in_secs: u64,
    /// Tags given to nodes that join with it; tagged nodes do not expire.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Routes approved beforehand for nodes that join with it and advertise them; both `/0` make an exit node.
    #[serde(default)]
    pub approve_routes: Vec<IpNet>,
    /// Only a node with this host name may use the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_for: Option<NodeName>,
    /// The IPv4 address its node gets; kept free for it. For single-use keys only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

/// A join key just made; the only time its text is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedKey {
    /// Number, for listing and revoking.
    pub id: i64,
    /// The key itself.
    pub key: Secret,
    /// When it stops working.
    pub expires: Wall,
}

/// A join key as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Number.
    pub id: i64,
    /// Its first characters, to recognise it.
    pub prefix: String,
    /// Whose nodes join with it.
    pub user: String,
    /// May be used more than once.
    pub reusable: bool,
    /// Its nodes vanish after they disconnect.
    pub ephemeral: bool,
    /// It has been used.
    pub used: bool,
    /// It was revoked.
    pub revoked: bool,
    /// Tags it gives.
    pub tags: Vec<String>,
    /// Routes approved for the nodes that join with it.
    #[serde(default)]
    pub approve_routes: Vec<IpNet>,
    /// The one host name it works for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_for: Option<NodeName>,
    /// The address its node gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// When it stops working.
    pub expires: Wall,
}

/// A node as the coordinator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Number.
    pub id: NodeId,
    /// Name within the mesh.
    pub name: NodeName,
    /// Name with the DNS suffix, no final dot.
    pub fqdn: String,
    /// Owner.
    pub user: String,
    /// Public node key.
    pub key: NodePublic,
    /// IPv4 and IPv6 address.
    pub addresses: Vec<IpAddr>,
    /// Has an open map stream.
    pub online: bool,
    /// When it was last connected; absent while online or if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Wall>,
    /// When its key expires; absent for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Wall>,
    /// Tags.
    pub tags: Vec<String>,
    /// What it offers to carry.
    pub advertised_routes: Vec<IpNet>,
    /// What an admin allowed it to carry.
    pub approved_routes: Vec<IpNet>,
    /// What it carries now: of several routers of one network this is one's alone. Exit routes are any online node's that may carry them.
    #[serde(default)]
    pub carried_routes: Vec<IpNet>,
    /// Operating system it reports.
    pub os: String,
    /// The client program's version it reports.
    #[serde(default)]
    pub client: String,
    /// Where its WireGuard socket may be reached.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// Its home relay's region; 0 for none.
    #[serde(default)]
    pub home_relay: i32,
    /// The installation's key.
    #[serde(default)]
    pub machine_key: MachinePublic,
    /// It is removed some time after it disconnects.
    #[serde(default)]
    pub ephemeral: bool,
    /// The number of the join key that let it in last; absent if an admin did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_key: Option<i64>,
    /// When it first joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Wall>,
}

/// Sets when a node's key expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expire {
    /// Seconds from now; absent, and without `never`: now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_secs: Option<u64>,
    /// Not at all, and not after the next login either.
    #[serde(default)]
    pub never: bool,
}

/// Gives a node another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAddress {
    /// The IPv4 address; the IPv6 address follows it.
    pub address: Ipv4Addr,
}

/// Replaces a node's tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTags {
    /// The whole new set.
    pub tags: Vec<String>,
}

/// Gives a node to another user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveNode {
    /// The login name of an existing user.
    pub user: String,
}

/// Replaces a node's approved routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveRoutes {
    /// The whole new set.
    pub routes: Vec<IpNet>,
}

/// Renames a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The new name.
    pub name: NodeName,
}

/// A node that asked to join without a join key and waits for someone's approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// What its login page and `pvemesh coordinator nodes register` call it.
    pub id: String,
    /// The host name it reports.
    pub hostname: String,
    /// The operating system it reports.
    pub os: String,
    /// Its machine key.
    pub machine_key: MachinePublic,
    /// The tags it claims; the user it is given to has to own them.
    #[serde(default)]
    pub tags: Vec<String>,
    /// When it asked.
    pub asked: Wall,
}

/// Approves a waiting registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Whose node it becomes; made if it does not exist.
    pub user: String,
}

/// The whole state, the server's key included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The file, base64.
    pub backup: Secret,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminFailure {
    /// What happened and what to do, one sentence.
    pub error: String,
}
