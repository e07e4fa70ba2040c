//! The network as a node knows it: the messages of one map stream, merged.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::ident::{NodeId, UserId};
use crate::time::Wall;
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
    /// A page the coordinator wants the user to see; empty if none.
    #[serde(default)]
    pub page: String,
    /// How far the coordinator's clock is ahead of this machine's, in seconds; less than a minute counts as nothing. Not kept: after a
    /// restart the clock may have been set.
    #[serde(skip)]
    pub clock_skew_secs: i64,
}

impl NetMap {
    /// The time by the coordinator's clock, which is the one that expiries are meant by.
    pub fn control_time(&self, now: Wall) -> Wall {
        now.checked_add(SignedDuration::from_secs(self.clock_skew_secs)).unwrap_or(now)
    }

    /// Whether this node's own key has expired.
    pub fn has_expired(&self, now: Wall) -> bool {
        self.node.has_expired(self.control_time(now))
    }

    /// The suffix of the nodes' names, without a dot at either end: what is behind the first label of this node's own name.
    pub fn suffix(&self) -> &str {
        self.node.name.trim_end_matches('.').split_once('.').map_or("", |(_, suffix)| suffix)
    }
}
