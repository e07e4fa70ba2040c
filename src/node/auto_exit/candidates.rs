//! The exit nodes there are to choose from, and what is known of each.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::coord::client::NetMap;
use crate::ident::{NodeId, NodePublic};
use crate::time::{Time, Wall};

/// How many exit nodes are looked at: the first by the network map's order that are online.
pub const MAX_CANDIDATES: usize = 8;

/// A faster one has to win by this much, and by a third: what it is below that is noise.
const CLEAR: Duration = Duration::from_millis(10);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) key: NodePublic,
    /// It is connected to the coordinator, as the map has it.
    pub(super) online: bool,
    /// How long its answers took, the last time it was asked; `None` if it has not answered, or has died since.
    pub(super) latency: Option<Duration>,
    /// How many answers came in the check that runs, or ran last.
    pub(super) answers: u32,
    /// Since when it was clearly faster than the one in use in each round.
    pub(super) faster: Option<Time>,
    /// How often it has died while in use.
    pub(super) deaths: u32,
}

impl Candidate {
    fn new(key: NodePublic, online: bool) -> Self {
        Self { key, online, latency: None, answers: 0, faster: None, deaths: 0 }
    }

    /// An answer. Within a check the fastest counts: the first may have gone through a relay while a direct way was opening.
    pub(super) fn note_answer(&mut self, latency: Duration) {
        self.latency = Some(if self.answers == 0 { latency } else { self.latency.map_or(latency, |best| best.min(latency)) });
        self.answers = self.answers.saturating_add(1);
    }
}

/// Whether a latency is so much better than another that a change is worth the connections it breaks.
pub(super) fn is_clearly_better(new: Duration, old: Duration) -> bool {
    new + CLEAR <= old && new * 3 <= old * 2
}

/// All of them, by the map's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidates(BTreeMap<NodeId, Candidate>);

impl Candidates {
    /// Takes the map's. The one in use stays while it is offered, online or not. Whether one has come online.
    pub(super) fn set(&mut self, map: &NetMap, now: Wall, used: Option<NodeId>) -> bool {
        let now = map.control_time(now);
        let offered = map.peers.values().filter(|peer| {
            let usable = !peer.key.is_zero() && peer.key != map.node.key && !peer.has_expired(now);
            usable && peer.routed().iter().any(|net| net.prefix_len() == 0)
        });
        let (mut left, mut news) = (MAX_CANDIDATES, false);
        let mut before = std::mem::take(&mut self.0);
        for peer in offered {
            let online = peer.online != Some(false);
            let fits = online && left > 0;
            if !fits && used != Some(peer.id) {
                continue;
            }
            left -= usize::from(fits);
            let known = before.remove(&peer.id).filter(|candidate| candidate.key == peer.key);
            news |= online && known.as_ref().is_none_or(|candidate| !candidate.online);
            let candidate = known.unwrap_or_else(|| Candidate::new(peer.key, online));
            self.0.insert(peer.id, Candidate { online, ..candidate });
        }
        news
    }

    pub(super) fn find(&self, id: NodeId) -> Option<&Candidate> {
        self.0.get(&id)
    }

    pub(super) fn find_mut(&mut self, id: NodeId) -> Option<&mut Candidate> {
        self.0.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Candidate)> {
        self.0.iter().map(|(id, candidate)| (*id, candidate))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Candidate)> {
        self.0.iter_mut().map(|(id, candidate)| (*id, candidate))
    }

    /// The first that is online.
    pub(super) fn first(&self) -> Option<NodeId> {
        self.iter().find(|(_, candidate)| candidate.online).map(|(id, _)| id)
    }

    /// Whether exactly one is online.
    pub(super) fn is_single(&self) -> bool {
        self.iter().filter(|(_, candidate)| candidate.online).count() == 1
    }

    /// The fastest that is online, of those that are fit.
    pub(super) fn fastest(&self, fit: impl Fn(NodeId, &Candidate) -> bool) -> Option<NodeId> {
        let known = self.iter().filter(|(id, candidate)| candidate.online && fit(*id, candidate));
        known.filter_map(|(id, candidate)| Some((candidate.latency?, id))).min().map(|(_, id)| id)
    }
}
