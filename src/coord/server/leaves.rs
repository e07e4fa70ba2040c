//! The nodes a view shows, in order of number, cut into leaves of some dozens: a leaf is encoded once for all viewers, and a change
//! costs the encoding of one leaf.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::piece::Shared;
use crate::ident::NodeId;

/// A leaf with more nodes is split.
const MOST: usize = 96;
/// A leaf with fewer nodes is joined with its neighbour, if both fit into one.
const FEWEST: usize = 24;

/// Some nodes that follow each other.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    ids: Vec<NodeId>,
    /// The encoded nodes, for the first leaf of a list and for later ones; made when needed.
    encoded: [Option<Arc<Shared>>; 2],
}

impl Leaf {
    pub(super) fn ids(&self) -> &[NodeId] {
        &self.ids
    }

    /// The leaf's place in messages; the nodes are encoded by `make` if they are not yet.
    pub(super) fn shared(&mut self, first: bool, make: impl FnOnce(&[NodeId]) -> Shared) -> Arc<Shared> {
        let [later, at_start] = &mut self.encoded;
        let slot = if first { at_start } else { later };
        slot.get_or_insert_with(|| Arc::new(make(&self.ids))).clone()
    }
}

/// The leaves, by the number of their first node.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    leaves: BTreeMap<NodeId, Leaf>,
}

impl Leaves {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Leaf> {
        self.leaves.values_mut()
    }

    /// All nodes, in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.leaves.values().flat_map(|leaf| leaf.ids.iter().copied())
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.leaves.values().map(|leaf| leaf.ids.len()).sum()
    }

    pub(super) fn contains(&self, id: NodeId) -> bool {
        self.leaves.range(..=id).next_back().is_some_and(|(_, leaf)| leaf.ids.binary_search(&id).is_ok())
    }

    /// Adds a node; nothing if it is there.
    pub(super) fn insert(&mut self, id: NodeId) {
        let first = self.leaves.range(..=id).next_back().or_else(|| self.leaves.first_key_value()).map(|(first, _)| *first);
        let mut leaf = first.and_then(|first| self.leaves.remove(&first)).unwrap_or_default();
        if let Err(at) = leaf.ids.binary_search(&id) {
            leaf.ids.insert(at, id);
            leaf.encoded = [None, None];
            if leaf.ids.len() > MOST {
                // New nodes have the highest numbers: a full leaf is left nearly full, so that it rests.
                let at_end = leaf.ids.last() == Some(&id);
                let upper = leaf.ids.split_off(if at_end { MOST * 3 / 4 } else { MOST / 2 });
                self.put(Leaf { ids: upper, encoded: [None, None] });
            }
        }
        self.put(leaf);
    }

    /// Takes a node out; nothing if it is not there.
    pub(super) fn remove(&mut self, id: NodeId) {
        let Some(first) = self.leaves.range(..=id).next_back().map(|(first, _)| *first) else { return };
        let Some(mut leaf) = self.leaves.remove(&first) else { return };
        if let Ok(at) = leaf.ids.binary_search(&id) {
            leaf.ids.remove(at);
            leaf.encoded = [None, None];
            let after = self.leaves.range(first..).next().map(|(next, neighbour)| (*next, neighbour.ids.len()));
            if let Some((next, count)) = after
                && leaf.ids.len() < FEWEST
                && leaf.ids.len() + count <= MOST
                && let Some(neighbour) = self.leaves.remove(&next)
            {
                leaf.ids.extend(neighbour.ids);
            }
        }
        self.put(leaf);
    }

    /// A node changed: its leaf has to be encoded again.
    pub(super) fn touch(&mut self, id: NodeId) {
        if let Some((_, leaf)) = self.leaves.range_mut(..=id).next_back() {
            leaf.encoded = [None, None];
        }
    }

    fn put(&mut self, leaf: Leaf) {
        if let Some(first) = leaf.ids.first() {
            self.leaves.insert(*first, leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_core::{RngCore as _, SeedableRng as _};

    use super::*;

    #[test]
    fn leaves_hold_what_was_put_in_and_stay_within_their_sizes() {
        let seed = 20_260_802;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let (mut leaves, mut model) = (Leaves::default(), BTreeSet::new());
        for step in 0..20_000u32 {
            // Grows, shrinks to little, grows again.
            let growing = step / 5_000 % 2 == 0;
            let id = NodeId(i64::from(rng.next_u32() % 3_000));
            if growing || rng.next_u32() % 8 == 0 {
                leaves.insert(id);
                model.insert(id);
            } else {
                leaves.remove(id);
                model.remove(&id);
            }
            assert_eq!(leaves.contains(id), model.contains(&id), "seed {seed}, step {step}");
            if step % 500 == 0 {
                assert!(leaves.leaves.values().flat_map(|leaf| &leaf.ids).eq(&model), "seed {seed}, step {step}");
                assert!(leaves.leaves.iter().all(|(first, leaf)| leaf.ids.first() == Some(first) && leaf.ids.len() <= MOST));
                assert!(leaves.leaves.len() <= 2 + model.len() / (FEWEST / 2), "{} leaves for {}", leaves.leaves.len(), model.len());
            }
        }
    }

    #[test]
    fn a_change_costs_one_leaf() {
        let mut leaves = Leaves::default();
        for id in 1..=500 {
            leaves.insert(NodeId(id));
        }
        let encode = |leaves: &mut Leaves| {
            let mut made = 0;
            for leaf in leaves.iter_mut() {
                leaf.shared(false, |_| {
                    made += 1;
                    Shared::new(super::super::piece::Text::Nodes { nodes: Vec::new(), first: false })
                });
            }
            made
        };
        assert!(encode(&mut leaves) > 4);
        assert_eq!(encode(&mut leaves), 0);
        leaves.touch(NodeId(250));
        assert_eq!(encode(&mut leaves), 1);
        leaves.remove(NodeId(10));
        assert_eq!(encode(&mut leaves), 1);
    }
}
