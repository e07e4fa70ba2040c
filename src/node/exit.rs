//! Which peer carries this node's internet traffic.

use std::net::IpAddr;

use crate::coord::client::NetMap;
use crate::ident::NodeId;
use crate::wire::control::Node;

/// What became of the wish for an exit node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitNode {
    /// None is wanted.
    Unwanted,
    /// No peer answers to what was asked for. Internet traffic goes nowhere rather than past the tunnel.
    Missing,
    /// A peer does, but it does not carry internet traffic: it offers it and nobody approved, or it does not offer it.
    NotOffered(NodeId),
    /// This peer. It may be offline; traffic waits for it rather than leak.
    Chosen(NodeId),
}

/// Finds the peer that a text names: an address, a stable id, a full name or its first label.
///
/// A first label that several peers share names none of them.
pub fn find_exit_node(map: &NetMap, wanted: &str) -> ExitNode {
    let wanted = wanted.trim();
    if wanted.is_empty() {
        return ExitNode::Unwanted;
    }
    match find_peer(map, wanted) {
        None => ExitNode::Missing,
        Some(peer) if peer.routed().iter().any(|net| net.prefix_len() == 0) => ExitNode::Chosen(peer.id),
        Some(peer) => ExitNode::NotOffered(peer.id),
    }
}

fn find_peer<'a>(map: &'a NetMap, wanted: &str) -> Option<&'a Node> {
    if let Ok(address) = wanted.parse::<IpAddr>() {
        return map.peers.values().find(|peer| peer.addresses.iter().any(|net| net.addr() == address));
    }
    if let Some(peer) = map.peers.values().find(|peer| peer.stable_id.0 == wanted) {
        return Some(peer);
    }
    let name = wanted.trim_end_matches('.');
    if let Some(peer) = map.peers.values().find(|peer| peer.name.trim_end_matches('.').eq_ignore_ascii_case(name)) {
        return Some(peer);
    }
    let mut named = map.peers.values().filter(|peer| peer.short_name().eq_ignore_ascii_case(name));
    let first = named.next()?;
    named.next().is_none().then_some(first)
}
