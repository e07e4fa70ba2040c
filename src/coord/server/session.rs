//! Open map streams: what each still has to be told.
//!
//! A stream does not queue messages. It remembers a position in its view's journal; the message is made from the state of the moment
//! when the stream is ready for it. So changes coalesce, a slow reader costs nothing more, and no delta is ever skipped. A reader so
//! slow that the journal has forgotten removed peers it was not told of is ended; it comes back to a full map.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::journal::{Change, Position};
use super::piece::Message;
use super::view::ViewId;
use crate::ident::{NodeId, UserId};
use crate::wire::control::FilterRule;

/// A map stream. Numbers are never reused, so that the end of an old stream cannot be taken for that of a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(super) u64);

/// What of the map besides the peers may have changed. Each of them makes clients rebuild what they have, so each is told alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The relays.
    Derp,
    /// Names and name servers.
    Dns,
    /// What the node accepts from others.
    Filter,
    /// The node itself.
    Own,
}

/// A set of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Parts {
    pub(super) derp: bool,
    pub(super) dns: bool,
    pub(super) filter: bool,
    pub(super) own: bool,
}

impl Parts {
    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

/// The difference between two views.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Moved {
    pub(super) changes: BTreeMap<NodeId, Change>,
    /// Users that came into sight.
    pub(super) users: Vec<UserId>,
}

impl Moved {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// This difference followed by another.
    pub(super) fn then(&self, later: &Self) -> Self {
        let mut both = self.clone();
        for (id, change) in &later.changes {
            both.changes.entry(*id).and_modify(|earlier| *earlier = earlier.then(*change)).or_insert(*change);
        }
        both.users.extend(later.users.iter().filter(|user| !self.users.contains(user)));
        both
    }
}

/// Why and how a stream ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// At once: superseded, or it did not read.
    Now,
    /// After this message.
    After(Box<Message>),
}

/// One stream.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: NodeId,
    /// What its node sees.
    pub(super) view: ViewId,
    /// Everything up to here has been told.
    pub(super) told: Position,
    /// The complete map is due; it contains everything.
    pub(super) full: bool,
    pub(super) parts: Parts,
    /// What is due because the stream went over to another view.
    pub(super) moved: Option<Arc<Moved>>,
    /// The filter it has been told.
    pub(super) filter: Option<Arc<[FilterRule]>>,
    pub(super) ending: Option<Ending>,
    /// It has been woken and has not looked yet.
    woken: bool,
}

impl Session {
    pub(super) fn new(node: NodeId, view: ViewId) -> Self {
        Self {
            node,
            view,
            told: Position::default(),
            full: true,
            parts: Parts::default(),
            moved: None,
            filter: None,
            ending: None,
            woken: false,
        }
    }

    /// Notes a change of something besides the peers. Nobody is woken: it is told with everything else that has changed.
    pub(super) fn note_part(&mut self, part: Part) {
        match part {
            Part::Derp => self.parts.derp = true,
            Part::Dns => self.parts.dns = true,
            Part::Filter => self.parts.filter = true,
            Part::Own => self.parts.own = true,
        }
    }

    /// Notes the difference between the view it followed and the one it follows now.
    pub(super) fn note_moved(&mut self, moved: Arc<Moved>) {
        self.moved = Some(match self.moved.take() {
            Some(earlier) => Arc::new(earlier.then(&moved)),
            None => moved,
        });
    }

    /// Whether anything is due besides the changes of its view.
    pub(super) fn due(&self) -> bool {
        self.parts.any() || self.moved.is_some() || self.ending.is_some()
    }

    /// Says whether the stream has to be woken: it does not know yet that there is something to take.
    pub(super) fn wake(&mut self) -> bool {
        !std::mem::replace(&mut self.woken, true)
    }

    /// The stream looks for something to take.
    pub(super) fn looks(&mut self) {
        self.woken = false;
    }

    /// Whether its position in the journal counts: the complete map needs none.
    pub(super) fn follows(&self) -> bool {
        !self.full && self.ending.is_none()
    }
}
