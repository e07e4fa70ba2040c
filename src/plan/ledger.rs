//! What this machine remembers of guests: what a guest's own notes cannot hold, because a snapshot takes the notes back, too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::mark::RunId;
use crate::ident::{Mac, NodeId, NodeName, Vmid};
use crate::pve::HostName;

/// The guests known here. No secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Guests that pvemesh made.
    #[serde(default)]
    pub guests: BTreeMap<Vmid, Kept>,
    /// Guests of the admin's that have a name in the mesh.
    #[serde(default)]
    pub attached: BTreeMap<Vmid, Attached>,
}

/// A guest that pvemesh made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Its name in the mesh.
    pub name: NodeName,
    /// Its role's name.
    pub role: String,
    /// The run that made it.
    pub run: RunId,
    /// Where it was seen last.
    pub host: HostName,
    /// The hardware address of its first interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Its generation when it was seen last.
    #[serde(default)]
    pub generation: u64,
    /// Its node at the known coordinator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The snapshot that its state of now comes from; another one means that one was made, or gone back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
}

/// A guest without a client that has a name in the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// Its name.
    pub name: NodeName,
    /// A container, not a virtual machine.
    pub container: bool,
    /// The hardware addresses of its interfaces.
    pub macs: Vec<Mac>,
    /// It is to be reached through a subnet router.
    #[serde(default)]
    pub route: bool,
    /// Its whole name in the mesh, as long as it is told there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Its addresses as they were told last.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// What was approved for it, and on which routers.
    #[serde(default)]
    pub approved: Vec<(NodeId, IpNet)>,
}
