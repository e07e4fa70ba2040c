//! What a class of viewers is shown: the nodes they see, and the journal of what changed about those.
//!
//! Viewers that see the same nodes share a view, and with it every encoded byte: the list of peers (all but the viewer's own leaf) and
//! the changes from one telling to the next. Telling happens in steps: [`View::publish`] draws the line up to which everyone is told,
//! so that streams that keep up all want the same text.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::journal::{Change, Journal, Position};
use super::leaves::Leaves;
use super::piece::Shared;
use super::sight::Audience;
use crate::ident::{NodeId, UserId};

/// A view's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ViewId(pub(super) u64);

/// The changes between two positions.
#[derive(Debug)]
pub(super) struct Delta {
    pub(super) changes: BTreeMap<NodeId, Change>,
    /// Users that came into sight.
    pub(super) users: Vec<UserId>,
    /// The message; none if there is nothing to say.
    pub(super) message: Option<Arc<Shared>>,
}

/// A user whose nodes are seen.
#[derive(Debug, Default)]
struct Seen {
    nodes: usize,
    /// Where in the journal it came into sight, or its profile last changed. Clients keep profiles for ever.
    since: Position,
}

/// One class of viewers' sight.
#[derive(Debug)]
pub(super) struct View {
    audience: Audience,
    pub(super) leaves: Leaves,
    journal: Journal,
    published: Position,
    owners: BTreeMap<NodeId, UserId>,
    users: BTreeMap<UserId, Seen>,
    /// What streams at a position are told now.
    deltas: BTreeMap<Position, Arc<Delta>>,
}

impl View {
    /// A view that shows nothing yet.
    pub(super) fn new(audience: Audience) -> Self {
        Self {
            audience,
            leaves: Leaves::default(),
            journal: Journal::default(),
            published: Position::default(),
            owners: BTreeMap::new(),
            users: BTreeMap::new(),
            deltas: BTreeMap::new(),
        }
    }

    /// Whose view it is.
    pub(super) fn audience(&self) -> &Audience {
        &self.audience
    }

    /// Shows a node without telling anyone: it has been there all along.
    pub(super) fn show(&mut self, id: NodeId, owner: UserId) {
        self.leaves.insert(id);
        self.own(id, Some(owner));
    }

    /// Who owns a node from now on.
    fn own(&mut self, id: NodeId, owner: Option<UserId>) {
        let before = match owner {
            Some(owner) => self.owners.insert(id, owner),
            None => self.owners.remove(&id),
        };
        if before == owner {
            return;
        }
        if let Some(user) = before
            && let Some(seen) = self.users.get_mut(&user)
        {
            seen.nodes -= 1;
            if seen.nodes == 0 {
                self.users.remove(&user);
            }
        }
        if let Some(owner) = owner {
            self.users.entry(owner).or_insert_with(|| Seen { nodes: 0, since: self.journal.head() }).nodes += 1;
        }
    }

    /// Notes a change of a node; says whether anyone is to hear of it. A node that is not seen comes into sight by [`Change::Whole`].
    pub(super) fn note(&mut self, id: NodeId, owner: Option<UserId>, change: Change) -> bool {
        if change != Change::Whole && !self.leaves.contains(id) {
            return false;
        }
        self.journal.note(id, change);
        match change {
            Change::Whole => {
                self.leaves.insert(id);
                self.own(id, owner);
            }
            Change::Removed => {
                self.leaves.remove(id);
                self.own(id, None);
            }
            Change::Fields(_) => {}
        }
        true
    }

    /// A user's profile has changed; says whether anyone is to hear of it.
    pub(super) fn note_user(&mut self, user: UserId) -> bool {
        let Some(seen) = self.users.get_mut(&user) else { return false };
        seen.since = self.journal.step();
        true
    }

    /// From now on everyone is told what has been noted up to now. Says whether there is news.
    pub(super) fn publish(&mut self) -> bool {
        let news = self.journal.head() > self.published;
        if news {
            for id in self.journal.changed(self.published) {
                self.leaves.touch(id);
            }
            self.published = self.journal.head();
            self.deltas.clear();
        }
        news
    }

    /// Up to where streams are told.
    pub(super) fn published(&self) -> Position {
        self.published
    }

    pub(super) fn reaches(&self, from: Position) -> bool {
        self.journal.reaches(from)
    }

    /// Forgets changes that every stream has been told.
    pub(super) fn forget(&mut self, told_to_all: Position) {
        self.journal.forget(told_to_all.min(self.published));
    }

    /// What has been noted behind a position, told or not.
    pub(super) fn since(&self, from: Position) -> BTreeMap<NodeId, Change> {
        self.journal.since(from)
    }

    /// Whether some node of a user is shown.
    pub(super) fn knows(&self, user: UserId) -> bool {
        self.users.contains_key(&user)
    }

    /// Whether a stream at a position has been told a user's profile as it is.
    pub(super) fn has_told(&self, user: UserId, position: Position) -> bool {
        self.users.get(&user).is_some_and(|seen| seen.since <= position)
    }

    pub(super) fn users(&self) -> impl Iterator<Item = UserId> + '_ {
        self.users.keys().copied()
    }

    /// What a stream at a position is told now; `write` makes the message where it has not been made yet.
    pub(super) fn delta(
        &mut self,
        from: Position,
        write: impl FnOnce(&BTreeMap<NodeId, Change>, &[UserId]) -> Option<Arc<Shared>>,
    ) -> Arc<Delta> {
        if let Some(delta) = self.deltas.get(&from) {
            return delta.clone();
        }
        let changes = self.journal.since(from);
        let users: Vec<UserId> = self.users.iter().filter(|(_, seen)| seen.since > from).map(|(user, _)| *user).collect();
        let message = write(&changes, &users);
        let delta = Arc::new(Delta { changes, users, message });
        self.deltas.insert(from, delta.clone());
        delta
    }
}
