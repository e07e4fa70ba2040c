//! What changed, in order, written once for all streams that hear of it.
//!
//! A stream does not queue changes: it remembers a position in the journal. What it has not been told is what stands behind that
//! position, so that a reader that stalls costs nothing more, and no change is ever skipped. Each node stands in the journal once, with
//! the position of its latest change of each kind: the journal does not grow with the number of changes.

use std::collections::{BTreeMap, BTreeSet};

use crate::ident::NodeId;

/// Removed nodes remembered for streams that have not heard of them; beyond it the streams furthest behind have to start anew.
pub const MAX_REMOVED: usize = 4096;

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
    pub(super) fn then(self, later: Self) -> Self {
        match (self, later) {
            (_, Self::Removed) => Self::Removed,
            (Self::Fields(a), Self::Fields(b)) => Self::Fields(a.with(b)),
            _ => Self::Whole,
        }
    }
}

/// A place in a journal: everything up to it has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Position(u64);

/// Where a node's latest changes stand, by kind; the start for none.
#[derive(Debug, Clone, Copy, Default)]
struct Latest {
    any: Position,
    whole: Position,
    online: Position,
    endpoints: Position,
    derp: Position,
    disco: Position,
    expiry: Position,
    key: Position,
    removed: bool,
}

/// The changes that some stream may not have been told.
#[derive(Debug, Default)]
pub(super) struct Journal {
    head: Position,
    /// Streams further back than this cannot be told everything any more.
    floor: Position,
    order: BTreeMap<Position, NodeId>,
    nodes: BTreeMap<NodeId, Latest>,
    removed: BTreeSet<Position>,
}

impl Journal {
    /// The position of the latest change.
    pub(super) fn head(&self) -> Position {
        self.head
    }

    /// Moves on for a change of something else than a node; gives its position.
    pub(super) fn step(&mut self) -> Position {
        self.head.0 += 1;
        self.head
    }

    /// Writes a change down.
    pub(super) fn note(&mut self, id: NodeId, change: Change) {
        let head = self.step();
        let latest = self.nodes.entry(id).or_default();
        self.order.remove(&latest.any);
        self.removed.remove(&latest.any);
        latest.any = head;
        latest.removed = change == Change::Removed;
        match change {
            Change::Whole => latest.whole = head,
            Change::Removed => drop(self.removed.insert(head)),
            Change::Fields(fields) => {
                for (changed, at) in [
                    (fields.online, &mut latest.online),
                    (fields.endpoints, &mut latest.endpoints),
                    (fields.derp, &mut latest.derp),
                    (fields.disco, &mut latest.disco),
                    (fields.expiry, &mut latest.expiry),
                    (fields.key, &mut latest.key),
                ] {
                    if changed {
                        *at = head;
                    }
                }
            }
        }
        self.order.insert(head, id);
        if self.removed.len() > MAX_REMOVED
            && let Some(oldest) = self.removed.pop_first()
        {
            self.floor = oldest;
            if let Some(id) = self.order.remove(&oldest) {
                self.nodes.remove(&id);
            }
        }
    }

    /// Whether a stream at a position can be told everything it missed.
    pub(super) fn reaches(&self, from: Position) -> bool {
        from >= self.floor
    }

    /// The nodes that changed behind a position, in the order of their changes.
    pub(super) fn changed(&self, from: Position) -> impl Iterator<Item = NodeId> + '_ {
        self.order.range((std::ops::Bound::Excluded(from), std::ops::Bound::Unbounded)).map(|(_, id)| *id)
    }

    /// What happened to each node behind a position, all of it taken together, by node.
    pub(super) fn since(&self, from: Position) -> BTreeMap<NodeId, Change> {
        let change = |id: NodeId| {
            let latest = self.nodes.get(&id)?;
            let behind = |at: Position| at > from;
            Some(if latest.removed {
                Change::Removed
            } else if behind(latest.whole) {
                Change::Whole
            } else {
                Change::Fields(Fields {
                    online: behind(latest.online),
                    endpoints: behind(latest.endpoints),
                    derp: behind(latest.derp),
                    disco: behind(latest.disco),
                    expiry: behind(latest.expiry),
                    key: behind(latest.key),
                })
            })
        };
        self.changed(from).filter_map(|id| change(id).map(|change| (id, change))).collect()
    }

    /// Forgets what every stream has been told.
    pub(super) fn forget(&mut self, told_to_all: Position) {
        while let Some(entry) = self.order.first_entry()
            && *entry.key() <= told_to_all
        {
            let (at, id) = entry.remove_entry();
            self.removed.remove(&at);
            self.nodes.remove(&id);
        }
        self.floor = self.floor.max(told_to_all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Fields = Fields { online: false, endpoints: false, derp: false, disco: false, expiry: false, key: false };
    const ONLINE: Fields = Fields { online: true, ..NONE };
    const DISCO: Fields = Fields { disco: true, ..NONE };
    const NODE: NodeId = NodeId(2);

    fn taken(journal: &Journal, from: Position) -> Option<Change> {
        journal.since(from).get(&NODE).copied()
    }

    #[test]
    fn changes_of_one_node_coalesce_behind_each_position() {
        let mut journal = Journal::default();
        let start = journal.head();
        assert_eq!(taken(&journal, start), None);
        journal.note(NODE, Change::Fields(ONLINE));
        let middle = journal.head();
        journal.note(NODE, Change::Fields(DISCO));
        assert_eq!(taken(&journal, start), Some(Change::Fields(Fields { disco: true, ..ONLINE })));
        assert_eq!(taken(&journal, middle), Some(Change::Fields(DISCO)));
        journal.note(NODE, Change::Whole);
        let whole = journal.head();
        journal.note(NODE, Change::Fields(DISCO));
        assert_eq!((taken(&journal, start), taken(&journal, whole)), (Some(Change::Whole), Some(Change::Fields(DISCO))));
        journal.note(NODE, Change::Removed);
        assert_eq!((taken(&journal, start), taken(&journal, whole)), (Some(Change::Removed), Some(Change::Removed)));
        assert_eq!(taken(&journal, journal.head()), None);
        // It may come into sight again: whatever was held of it is old.
        journal.note(NODE, Change::Whole);
        assert_eq!((taken(&journal, start), taken(&journal, whole)), (Some(Change::Whole), Some(Change::Whole)));
    }

    #[test]
    fn what_all_have_been_told_is_forgotten_and_nothing_else() {
        let mut journal = Journal::default();
        for id in 1..=3 {
            journal.note(NodeId(id), Change::Removed);
        }
        let (start, two) = (Position::default(), Position(2));
        journal.forget(two);
        assert_eq!(journal.since(two).into_keys().collect::<Vec<_>>(), [NodeId(3)]);
        assert!(journal.reaches(two) && !journal.reaches(start));
        assert_eq!((journal.nodes.len(), journal.order.len(), journal.removed.len()), (1, 1, 1));
    }

    #[test]
    fn neither_many_changes_nor_many_removed_nodes_make_it_grow() {
        let mut journal = Journal::default();
        for _ in 0..10_000 {
            journal.note(NODE, Change::Fields(ONLINE));
        }
        assert_eq!((journal.nodes.len(), journal.order.len()), (1, 1));
        let before = journal.head();
        for id in 0..2 * MAX_REMOVED as i64 {
            journal.note(NodeId(10 + id), Change::Whole);
            journal.note(NodeId(10 + id), Change::Removed);
        }
        assert!(journal.nodes.len() <= MAX_REMOVED + 1 && journal.order.len() == journal.nodes.len());
        assert!(!journal.reaches(before), "a stream that far back would miss some");
        assert!(journal.reaches(journal.head()));
    }
}
