//! What a filter is made of.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::wire::control::FilterRule;

/// The rules, and what they are applied to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FilterConfig {
    /// The coordinator's rules.
    pub rules: Vec<FilterRule>,
    /// The addresses of the peers that have a capability, for the capabilities the rules name as sources.
    pub capable: BTreeMap<String, Vec<IpAddr>>,
    /// This node's own addresses in the mesh.
    pub addresses: Vec<IpNet>,
    /// The networks this node carries for others, without the exit routes.
    pub subnets: Vec<IpNet>,
    /// Whether this node is an exit node.
    pub exit: bool,
    /// The networks of this machine's other interfaces: an exit node leads to the internet, not to them.
    pub machine: Vec<IpNet>,
    /// TCP ports of this node's own at which every peer may knock, whatever the rules say: who listens there judges for himself.
    pub doors: Vec<SocketAddr>,
    /// Whether nothing is let in but answers.
    pub shields_up: bool,
}
