//! What one message of the map stream changes. Absent means unchanged, throughout; where `null` and empty differ, an `Option` tells.
//!
//! | field | rule |
//! |---|---|
//! | `Node`, `DNSConfig`, `Domain` | replaced as a whole |
//! | `DERPMap` | in parts: absent parts stay, the regions are one part |
//! | `PacketFilter` | the part `base` of `PacketFilters` |
//! | `PacketFilters`, `DisplayMessages` | by name; `null` removes, `"*": null` removes all first |
//! | `UserProfiles` | added or replaced by id, never removed |
//! | `Health` | replaced; empty clears |
//! | `Peers` | not empty: replaces all, and no other change of peers in the message counts |
//! | `PeersRemoved`, `PeersChanged`, `PeerSeenChange`, `OnlineChange`, `PeersChangedPatch` | in this order; what names no peer is ignored |
//!
//! Everything else in a message is no matter of the map. `Debug` is not obeyed: no coordinator makes this program sleep or exit.

use std::collections::BTreeMap;

use super::NetMap;
use crate::ident::NodeId;
use crate::time::Wall;
use crate::wire::control::{DerpMap, MapResponse, Node, PeerChange};

pub(super) fn merge(map: &mut NetMap, message: MapResponse, now: Wall) {
    if let Some(node) = message.node {
        map.node = node;
    }
    if let Some(derp) = message.derp_map {
        merge_derp(&mut map.derp, derp);
    }
    if let Some(dns) = message.dns_config {
        map.dns = dns;
    }
    if !message.domain.is_empty() {
        map.domain = message.domain;
    }
    if let Some(rules) = message.packet_filter {
        map.filters.insert("base".to_owned(), rules);
    }
    merge_named(&mut map.filters, message.packet_filters);
    map.users.extend(message.user_profiles.into_iter().map(|user| (user.id, user)));
    if let Some(health) = message.health {
        map.health = health;
    }
    merge_named(&mut map.messages, message.display_messages);

    if !message.peers.is_empty() {
        let before = std::mem::take(&mut map.peers);
        map.peers = message.peers.into_iter().map(|peer| (peer.id, with_known_disco(peer, &before))).collect();
        return;
    }
    for id in &message.peers_removed {
        map.peers.remove(id);
    }
    for peer in message.peers_changed {
        map.peers.insert(peer.id, peer);
    }
    let Some(peers) = Some(&mut map.peers).filter(|peers| !peers.is_empty()) else { return };
    for (id, seen) in message.peer_seen_change {
        with(peers, id, |peer| peer.last_seen = seen.then_some(now));
    }
    for (id, online) in message.online_change {
        with(peers, id, |peer| peer.online = Some(online));
    }
    for patch in message.peers_changed_patch {
        with(peers, patch.node_id, |peer| merge_patch(peer, patch));
    }
}

fn with(peers: &mut BTreeMap<NodeId, Node>, id: NodeId, change: impl FnOnce(&mut Node)) {
    if let Some(peer) = peers.get_mut(&id) {
        change(peer);
    }
}

/// Named parts: a value replaces, no value removes, and `*` without value removes all before anything else.
fn merge_named<T>(parts: &mut BTreeMap<String, T>, mut changes: BTreeMap<String, Option<T>>) {
    if matches!(changes.get("*"), Some(None)) {
        parts.clear();
        changes.remove("*");
    }
    for (name, part) in changes {
        match part {
            Some(part) => drop(parts.insert(name, part)),
            None => drop(parts.remove(&name)),
        }
    }
}

/// A relay map as an update: absent parts stay; the regions are replaced as a whole, and one without value is no region.
fn merge_derp(derp: &mut DerpMap, update: DerpMap) {
    derp.omit_default_regions = update.omit_default_regions;
    if let Some(mut regions) = update.regions {
        regions.retain(|_, region| region.is_some());
        derp.regions = Some(regions);
    }
    if let Some(scores) = update.home_params.and_then(|home| home.region_score) {
        derp.home_params.get_or_insert_default().region_score = Some(scores);
    }
}

fn merge_patch(peer: &mut Node, patch: PeerChange) {
    if is_stale(peer, &patch) {
        return;
    }
    if patch.derp_region != 0 {
        peer.home_derp = patch.derp_region;
    }
    if patch.cap != 0 {
        peer.cap = patch.cap;
    }
    if let Some(caps) = patch.cap_map {
        peer.cap_map = caps;
    }
    if let Some(endpoints) = patch.endpoints {
        peer.endpoints = endpoints;
    }
    if let Some(key) = patch.key.filter(|key| !key.is_zero()) {
        peer.key = key;
    }
    if let Some(disco) = patch.disco_key.filter(|key| !key.is_zero()) {
        peer.disco_key = disco;
    }
    if patch.online.is_some() {
        peer.online = patch.online;
    }
    if patch.last_seen.is_some() {
        peer.last_seen = patch.last_seen;
    }
    if patch.key_expiry.is_some() {
        peer.key_expiry = patch.key_expiry;
    }
}

/// A patch that reports an old process's disco key after the peer has come back with a new one.
fn is_stale(peer: &Node, patch: &PeerChange) -> bool {
    let older = matches!((patch.last_seen, peer.last_seen), (Some(new), Some(held)) if new <= held);
    patch.disco_key.is_some() && patch.online == Some(false) && older
}

/// A peer from a full list. One that is offline, and was seen last before what is known of it, is described from before it changed its
/// disco key.
fn with_known_disco(mut peer: Node, before: &BTreeMap<NodeId, Node>) -> Node {
    if let Some(held) = before.get(&peer.id)
        && peer.online == Some(false)
        && matches!((peer.last_seen, held.last_seen), (Some(new), Some(held)) if new < held)
        && !held.disco_key.is_zero()
    {
        peer.disco_key = held.disco_key;
    }
    peer
}
