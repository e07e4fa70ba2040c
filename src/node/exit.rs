//! Which peer carries this node's internet traffic.

use std::net::IpAddr;

use super::AutoChoice;
use crate::coord::client::NetMap;
use crate::ident::NodeId;
use crate::wire::control::Node;

/// What became of the wish for an exit node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitNode {
    /// None is wanted.
    Unwanted,
    /// No peer answers to what was asked for, or none is chosen yet where the choice is ours. Internet traffic goes nowhere rather than past the tunnel.
    Missing,
    /// A peer does, but it does not carry internet traffic: it offers it and nobody approved, or it does not offer it.
    NotOffered(NodeId),
    /// This peer. It may be offline; traffic waits for it rather than leak.
    Chosen(NodeId),
}

/// Whether a wish for an exit node leaves the choice to the node. A node of that name is wished for by its full name.
pub fn is_auto(wanted: &str) -> bool {
    let wanted = wanted.trim();
    ["auto", "auto:any"].iter().any(|word| wanted.eq_ignore_ascii_case(word))
}

/// Finds the peer that a text names: an address, a stable id, a full name or its first label; or the one that was chosen, if the text
/// leaves that to the node.
///
/// A first label that several peers share names none of them.
pub fn find_exit_node(map: &NetMap, wanted: &str, choice: Option<AutoChoice>) -> ExitNode {
    let wanted = wanted.trim();
    if wanted.is_empty() {
        return ExitNode::Unwanted;
    }
    let peer = if is_auto(wanted) { choice.and_then(|choice| map.peers.get(&choice.id)) } else { find_peer(map, wanted) };
    match peer {
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
