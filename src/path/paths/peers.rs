//! Who the peers are, and by which disco keys they are known.

use std::collections::BTreeMap;

use super::Paths;
use crate::ident::{DiscoPublic, NodePublic};
use crate::path::contacts::Contact;
use crate::path::peer::PeerPaths;
use crate::path::{Event, Peer};
use crate::time::{Deadline, Time};

/// A peer's state and when it is due.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) paths: PeerPaths,
    pub(super) due: Option<Deadline>,
    /// The disco key the map has, and one the peer has told since, by a live session.
    listed: Option<DiscoPublic>,
    told: Option<DiscoPublic>,
}

impl Paths {
    /// Replaces the peers. What was learned of those that stay is kept.
    pub fn set_peers(&mut self, now: Time, peers: &[Peer]) {
        let wanted: BTreeMap<NodePublic, &Peer> = peers.iter().map(|peer| (peer.key, peer)).collect();
        self.peers.retain(|key, entry| {
            let keep = wanted.contains_key(key);
            if let (false, Some(due)) = (keep, entry.due) {
                self.due.remove(&(due, *key));
            }
            keep
        });
        for (key, peer) in &wanted {
            let listed = self.usable(peer.disco);
            let entry = self.peers.entry(*key).or_default();
            // A map that has not heard of it yet does not take back what the peer itself has told.
            if entry.listed != listed {
                (entry.listed, entry.told) = (listed, None);
            }
        }
        self.index();
        self.forget_spreading();
        for (key, peer) in wanted {
            let disco = self.peers.get(&key).and_then(|entry| entry.told.or(entry.listed));
            let restarted = self.with(now, key, |paths, draw| {
                let restarted = paths.set_disco(disco, draw);
                paths.list(now, &peer.addresses, peer.home, draw);
                restarted
            });
            if restarted == Some(true) {
                self.events.push_back(Event::Restarted(key));
            }
        }
    }

    /// Sorts the peers by their disco keys.
    fn index(&mut self) {
        let mut nodes: BTreeMap<DiscoPublic, Vec<NodePublic>> = BTreeMap::new();
        for (key, entry) in &self.peers {
            if let Some(disco) = entry.told.or(entry.listed) {
                nodes.entry(disco).or_default().push(*key);
            }
        }
        self.contacts.retain(|disco, _| nodes.contains_key(disco));
        for (disco, mut nodes) in nodes {
            nodes.sort_unstable();
            self.contacts.entry(disco).or_insert_with(Contact::new).nodes = nodes;
        }
    }

    /// A peer has told its disco key inside the tunnel. Its session is as new as the key, so nothing of it is dropped.
    pub fn told_disco(&mut self, now: Time, key: &NodePublic, disco: DiscoPublic) {
        let Some(disco) = self.usable(Some(disco)) else { return };
        let Some(entry) = self.peers.get_mut(key).filter(|entry| entry.paths.disco() != Some(disco)) else { return };
        entry.told = Some(disco);
        self.index();
        self.with(now, *key, |paths, draw| paths.set_disco(Some(disco), draw));
    }

    fn usable(&self, disco: Option<DiscoPublic>) -> Option<DiscoPublic> {
        disco.filter(|key| !key.is_zero() && *key != self.public)
    }
}
