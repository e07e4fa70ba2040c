//! Open map streams: what each still has to be told.
//!
//! A stream does not queue messages. It remembers per peer *what kind of change* it has not been told yet; the message is made from the
//! state of the moment when the stream is ready for it. So changes coalesce, a slow reader costs a few bytes a peer, and no delta is
//! ever skipped. A reader so slow that [`MAX_PENDING`] peers changed without its taking anything is ended; it comes back to a full map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::message::Message;
use crate::ident::{NodeId, UserId};

/// Peers with untold changes one stream may have; beyond it the stream is ended.
pub const MAX_PENDING: usize = 4096;

/// A map stream. Numbers are never reused, so that the end of an old stream cannot be taken for that of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(super) u64);

/// Single fields of a peer that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fields {
    pub(super) online: bool,
    pub(super) endpoints: bool,
    pub(super) derp: bool,
    pub(super) disco: bool,
}

impl Fields {
    fn with(self, other: Self) -> Self {
        Self {
            online: self.online | other.online,
            endpoints: self.endpoints | other.endpoints,
            derp: self.derp | other.derp,
            disco: self.disco | other.disco,
        }
    }

    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

/// What kind of change of a peer a stream has not been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Some fields.
    Fields(Fields),
    /// It is gone.
    Removed,
    /// It is new, or something changed that has no short form.
    Whole,
}

impl Change {
    /// This change followed by another.
    fn then(self, later: Self) -> Self {
        match (self, later) {
            (_, Self::Removed) => Self::Removed,
            (Self::Fields(a), Self::Fields(b)) => Self::Fields(a.with(b)),
            _ => Self::Whole,
        }
    }
}

/// Why and how a stream ends.
#[derive(Debug, Clone)]
pub(super) enum Ending {
    /// At once: superseded, or it did not read.
    Now,
    /// After this message.
    After(Arc<Message>),
}

/// One stream.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: NodeId,
    /// The complete map is due; it contains everything pending.
    pub(super) full: bool,
    /// The node itself changed.
    pub(super) own: bool,
    pub(super) peers: BTreeMap<NodeId, Change>,
    /// Users whose profile the stream has been told.
    pub(super) users: BTreeSet<UserId>,
    pub(super) ending: Option<Ending>,
}

impl Session {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, full: true, own: false, peers: BTreeMap::new(), users: BTreeSet::new(), ending: None }
    }

    /// Whether there is anything to take.
    pub(super) fn ready(&self) -> bool {
        self.full || self.own || !self.peers.is_empty() || self.ending.is_some()
    }

    /// Notes a change of a peer. Says whether the stream has to be woken: it had nothing to take before.
    pub(super) fn note(&mut self, peer: NodeId, change: Change) -> bool {
        let woke = !self.ready();
        if self.full || self.ending.is_some() {
            return woke;
        }
        self.peers.entry(peer).and_modify(|pending| *pending = pending.then(change)).or_insert(change);
        if self.peers.len() > MAX_PENDING {
            self.peers.clear();
            self.ending = Some(Ending::Now);
        }
        woke
    }

    /// Notes that the node itself changed.
    pub(super) fn note_own(&mut self) -> bool {
        let woke = !self.ready();
        self.own = true;
        woke
    }

    pub(super) fn end(&mut self, ending: Ending) -> bool {
        let woke = !self.ready();
        self.ending = Some(ending);
        woke
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONLINE: Fields = Fields { online: true, endpoints: false, derp: false, disco: false };
    const DISCO: Fields = Fields { online: false, endpoints: false, derp: false, disco: true };

    #[test]
    fn changes_of_one_peer_coalesce() {
        let mut session = Session::new(NodeId(1));
        session.full = false;
        assert!(session.note(NodeId(2), Change::Fields(ONLINE)));
        assert!(!session.note(NodeId(2), Change::Fields(DISCO)));
        assert_eq!(session.peers.get(&NodeId(2)), Some(&Change::Fields(ONLINE.with(DISCO))));
        session.note(NodeId(2), Change::Whole);
        session.note(NodeId(2), Change::Fields(DISCO));
        assert_eq!(session.peers.get(&NodeId(2)), Some(&Change::Whole));
        session.note(NodeId(2), Change::Removed);
        assert_eq!(session.peers.get(&NodeId(2)), Some(&Change::Removed));
    }

    #[test]
    fn a_reader_that_takes_nothing_is_ended_and_never_skips_a_change() {
        let mut session = Session::new(NodeId(1));
        session.full = false;
        for id in 0..=MAX_PENDING {
            assert!(session.ending.is_none());
            session.note(NodeId(id as i64), Change::Whole);
        }
        assert!(matches!(session.ending, Some(Ending::Now)) && session.peers.is_empty());
    }
}
