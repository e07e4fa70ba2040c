//! The last network map: in memory, and on disk a little later.

use super::state::{State, Store};
use crate::coord::client::NetMap;

/// The map and whether the disk has it.
#[derive(Debug)]
pub(super) struct KeptMap {
    store: Store,
    map: Option<NetMap>,
    unsaved: bool,
}

impl KeptMap {
    /// The map of an earlier run, if it is this node's.
    pub(super) fn load(store: Store, state: &State) -> Self {
        let map = store.load_map().filter(|map| state.registered && map.node.key == state.node.public());
        Self { store, map, unsaved: false }
    }

    pub(super) fn get(&self) -> Option<&NetMap> {
        self.map.as_ref()
    }

    pub(super) fn set(&mut self, map: NetMap) {
        self.map = Some(map);
        self.unsaved = true;
    }

    pub(super) fn forget(&mut self) {
        self.map = None;
        self.unsaved = false;
        self.store.remove_map();
    }

    /// Stores it, if it is not stored yet: now and then rather than with each change.
    pub(super) fn save(&mut self) {
        if std::mem::take(&mut self.unsaved)
            && let Some(map) = &self.map
            && let Err(error) = self.store.save_map(map)
        {
            tracing::warn!(%error, "the map is not stored");
        }
    }
}
