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

/// Single fields of a peer that changed, and that have a short form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Fields {
    pub(super) online: bool,
    pub(super) endpoints: bool,
    pub(super) derp: bool,
    pub(super) disco: bool,
    /// The node key's expiry, and the key itself.
    pub(super) expiry: bool,
    pub(super) key: bool,
}

/// What of the map besides the peers may have changed. Each of them makes clients rebuild what they have, so each is told alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The relays.
    Derp,
    /// Names and name servers.
    Dns,
    /// The node itself.
    Own,
}

/// A set of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Parts {
    pub(super) derp: bool,
    pub(super) dns: bool,
    pub(super) own: bool,
}

impl Parts {
    fn any(self) -> bool {
        self != Self::default()
    }
}

impl Fields {
    fn with(self, other: Self) -> Self {
        Self {
            online: self.online | other.online,
            endpoints: self.endpoints | other.endpoints,
            derp: self.derp | other.derp,
            disco: self.disco | other.disco,
            expiry: self.expiry | other.expiry,
            key: self.key | other.key,
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
    pub(super) parts: Parts,
    pub(super) peers: BTreeMap<NodeId, Change>,
    /// Users whose profile the stream has been told.
    pub(super) users: BTreeSet<UserId>,
    /// Users whose profile has changed since.
    pub(super) renamed: BTreeSet<UserId>,
    pub(super) ending: Option<Ending>,
}

impl Session {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            full: true,
            parts: Parts::default(),
            peers: BTreeMap::new(),
            users: BTreeSet::new(),
            renamed: BTreeSet::new(),
            ending: None,
        }
    }

    /// Whether there is anything to take.
    pub(super) fn ready(&self) -> bool {
        self.full || self.parts.any() || !self.peers.is_empty() || !self.renamed.is_empty() || self.ending.is_some()
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

    /// Notes a change of something besides the peers. Says, too, whether the stream has to be woken.
    pub(super) fn note_part(&mut self, part: Part) -> bool {
        let woke = !self.ready();
        match part {
            Part::Derp => self.parts.derp = true,
            Part::Dns => self.parts.dns = true,
            Part::Own => self.parts.own = true,
        }
        woke
    }

    /// Notes that a user's profile changed; of no interest to a stream that has not been told of the user.
    pub(super) fn note_user(&mut self, user: UserId) -> bool {
        let woke = !self.ready();
        self.users.remove(&user) && self.renamed.insert(user) && woke
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

    const NONE: Fields = Fields { online: false, endpoints: false, derp: false, disco: false, expiry: false, key: false };
    const ONLINE: Fields = Fields { online: true, ..NONE };
    const DISCO: Fields = Fields { disco: true, ..NONE };

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
