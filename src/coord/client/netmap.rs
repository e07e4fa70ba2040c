//! The network as a node knows it: the messages of one map stream, merged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ident::{NodeId, UserId};
use crate::wire::control::{DerpMap, DisplayMessage, DnsConfig, FilterRule, Node, UserProfile};

/// The network map.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetMap {
    /// This node.
    pub node: Node,
    /// The others.
    pub peers: BTreeMap<NodeId, Node>,
    /// The relays; every region has a value.
    pub derp: DerpMap,
    /// Names.
    pub dns: DnsConfig,
    /// The network's name for people.
    pub domain: String,
    /// The packet filter's parts by name. Nothing in it means nothing may come in.
    pub filters: BTreeMap<String, Vec<FilterRule>>,
    /// Who owns nodes.
    pub users: BTreeMap<UserId, UserProfile>,
    /// What the coordinator thinks is wrong with this node.
    pub health: Vec<String>,
    /// What the coordinator wants the user to read.
    pub messages: BTreeMap<String, DisplayMessage>,
}
