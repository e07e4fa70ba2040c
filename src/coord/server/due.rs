//! What is due for which node, and when: at most one moment each.

use std::collections::{BTreeMap, BTreeSet};

use crate::ident::NodeId;
use crate::time::{Deadline, Time};

/// Moments by node.
#[derive(Debug, Default)]
pub(super) struct Due {
    at: BTreeMap<NodeId, Time>,
    order: BTreeSet<(Time, NodeId)>,
}

impl Due {
    /// Sets a node's moment, instead of one set before.
    pub(super) fn set(&mut self, id: NodeId, at: Time) {
        self.clear(id);
        self.at.insert(id, at);
        self.order.insert((at, id));
    }

    /// Nothing is due for the node any more. Says whether something was.
    pub(super) fn clear(&mut self, id: NodeId) -> bool {
        let Some(at) = self.at.remove(&id) else { return false };
        self.order.remove(&(at, id))
    }

    /// Whether something is due for the node, now or later.
    pub(super) fn awaits(&self, id: NodeId) -> bool {
        self.at.contains_key(&id)
    }

    /// Takes out one node whose moment has come.
    pub(super) fn pop(&mut self, now: Time) -> Option<NodeId> {
        let &(at, id) = self.order.first()?;
        (at <= now && self.clear(id)).then_some(id)
    }

    /// The earliest moment.
    pub(super) fn next(&self, why: &'static str) -> Option<Deadline> {
        self.order.first().map(|(at, _)| Deadline { at: *at, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn second(n: u64) -> Time {
        Time::from_start(Duration::from_secs(n))
    }

    #[test]
    fn a_node_has_one_moment_and_the_earliest_comes_first() {
        let mut due = Due::default();
        due.set(NodeId(1), second(5));
        due.set(NodeId(2), second(3));
        due.set(NodeId(1), second(2));
        assert_eq!(due.next("x").map(|deadline| deadline.at), Some(second(2)));
        assert_eq!((due.pop(second(1)), due.pop(second(2)), due.pop(second(2))), (None, Some(NodeId(1)), None));
        assert!(due.clear(NodeId(2)) && !due.clear(NodeId(2)) && !due.awaits(NodeId(2)));
        assert_eq!((due.pop(second(9)), due.next("x")), (None, None));
    }
}
