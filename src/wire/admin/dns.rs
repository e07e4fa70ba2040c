//! How names are resolved in the mesh, as an admin sets it and as the coordinator keeps it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Names and name servers of the whole mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsSettings {
    /// Nodes answer for each other's names (MagicDNS).
    pub magic: bool,
    /// Name servers for everything else.
    pub nameservers: Vec<NameServer>,
    /// They replace what each system has; otherwise they are used only where a system cannot keep its own beside the mesh's names.
    pub override_local: bool,
    /// Name servers by domain; none: the nodes answer themselves, from `records`.
    pub split: BTreeMap<String, Vec<NameServer>>,
    /// Domains searched for short names, after the mesh's own.
    pub search: Vec<String>,
    /// Further names, by name.
    pub records: BTreeMap<String, Vec<IpAddr>>,
    /// Names that stand for a node or for one of `records`, whatever its addresses are: by the full name, the node's short name or the record's.
    /// Clients are told addresses, for they know no other kind of record.
    pub aliases: BTreeMap<String, String>,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            magic: true,
            nameservers: Vec::new(),
            override_local: false,
            split: BTreeMap::new(),
            search: Vec::new(),
            records: BTreeMap::new(),
            aliases: BTreeMap::new(),
        }
    }
}

/// A name server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameServer {
    /// An address, address and port, or an `https://` URL.
    pub address: String,
    /// It stays in use while a node sends its internet traffic through an exit node, which otherwise resolves names for it.
    #[serde(default)]
    pub with_exit_node: bool,
}
