//! What a filter is made of.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::wire::control::FilterRule;

/// Which packets a machine forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwards {
    /// Those of IPv4.
    pub v4: bool,
    /// Those of IPv6.
    pub v6: bool,
}

impl Default for Forwards {
    /// Both.
    fn default() -> Self {
        Self { v4: true, v6: true }
    }
}

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
    /// Whether this machine forwards packets; what it carries for others does not arrive otherwise.
    pub forwards: Forwards,
    /// Whether nothing is let in but answers.
    pub shields_up: bool,
}
