//! Disco keys, which are what packets name their sender by.

use std::collections::VecDeque;

use crate::ident::{DiscoPrivate, DiscoPublic, NodePublic};
use crate::wire::disco::{SharedKey, TxId};

/// Pings of one disco key that are remembered, so that one sent again by somebody else is noticed.
const REMEMBERED: usize = 64;

/// A disco key and the nodes that have it.
pub(super) struct Contact {
    key: Option<SharedKey>,
    pub(super) nodes: Vec<NodePublic>,
    seen: VecDeque<TxId>,
}

impl Contact {
    pub(super) fn new() -> Self {
        Self { key: None, nodes: Vec::new(), seen: VecDeque::new() }
    }

    pub(super) fn shared(&mut self, own: &DiscoPrivate, peer: &DiscoPublic) -> &SharedKey {
        self.key.get_or_insert_with(|| SharedKey::new(own, peer))
    }

    /// Whether a ping with this id has not been seen yet.
    pub(super) fn is_new(&mut self, tx: TxId) -> bool {
        if self.seen.contains(&tx) {
            return false;
        }
        if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(tx);
        true
    }
}
