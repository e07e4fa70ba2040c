//! Who is known: users, join keys and nodes with their indexes, numbers, names and addresses, and what of it still has to be stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::record::{Counters, JoinKeyRecord, NodeRecord, Snapshot, UserRecord, Write};
use crate::ident::{AddressPlan, MachinePublic, NodeId, NodeName, NodePublic, UserId};
use crate::time::Wall;

/// Slots of 100.64.0.0/10.
const MAX_SLOT: u32 = 1 << 22;

/// Why stored state cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Two nodes share what only one may have.
    #[error("the stored nodes {0} and {1} have the same {2}; remove one of them from the database")]
    Duplicate(NodeId, NodeId, &'static str),
    /// The policy does not read, which another version of the program accepted.
    #[error("the stored policy does not read ({0}): start the version of pvemesh that accepted it, and set one that both accept")]
    Policy(#[from] crate::coord::policy::PolicyError),
    /// A node's owner is missing.
    #[error("the stored node {0} belongs to user {1}, which does not exist; restore the database from a backup")]
    NoUser(NodeId, UserId),
}

/// What is to be written, by record: the newest state of each.
#[derive(Debug, Default)]
struct Unsaved {
    counters: bool,
    users: BTreeSet<UserId>,
    keys: BTreeSet<i64>,
    nodes: BTreeSet<NodeId>,
}

/// Users, join keys, nodes.
#[derive(Debug)]
pub(super) struct Registry {
    plan: AddressPlan,
    counters: Counters,
    users: BTreeMap<UserId, UserRecord>,
    keys: BTreeMap<i64, JoinKeyRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    by_node_key: BTreeMap<NodePublic, NodeId>,
    by_name: BTreeMap<NodeName, NodeId>,
    by_address: BTreeMap<Ipv4Addr, NodeId>,
    by_machine: BTreeSet<(MachinePublic, NodeId)>,
    unsaved: Unsaved,
}

impl Registry {
    pub(super) fn load(plan: AddressPlan, snapshot: Snapshot) -> Result<Self, LoadError> {
        let mut counters = snapshot.counters;
        let mut registry = Self {
            plan,
            counters,
            users: snapshot.users.into_iter().map(|user| (user.id, user)).collect(),
            keys: snapshot.keys.into_iter().map(|key| (key.id, key)).collect(),
            nodes: BTreeMap::new(),
            by_node_key: BTreeMap::new(),
            by_name: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_machine: BTreeSet::new(),
            unsaved: Unsaved::default(),
        };
        for node in snapshot.nodes {
            if !registry.users.contains_key(&node.user) {
                return Err(LoadError::NoUser(node.id, node.user));
            }
            for (other, what) in [
                (registry.by_node_key.get(&node.key), "node key"),
                (registry.by_name.get(&node.name), "name"),
                (registry.by_address.get(&node.v4), "address"),
            ] {
                if let Some(other) = other {
                    return Err(LoadError::Duplicate(*other, node.id, what));
                }
            }
            counters.node = counters.node.max(node.id.0);
            registry.index(&node);
            registry.nodes.insert(node.id, node);
        }
        counters.user = counters.user.max(registry.users.keys().last().map_or(0, |id| id.0));
        counters.key = counters.key.max(registry.keys.keys().last().copied().unwrap_or(0));
        registry.counters = counters;
        Ok(registry)
    }

    /// The changes since the last call, users first, so that a node's owner is stored no later than the node.
    pub(super) fn take_writes(&mut self) -> Vec<Write> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let mut writes = Vec::new();
        if unsaved.counters {
            writes.push(Write::Counters(self.counters));
        }
        writes.extend(unsaved.users.iter().map(|id| self.users.get(id).map_or(Write::RemoveUser(*id), |user| Write::User(user.clone()))));
        writes.extend(unsaved.keys.iter().map(|id| self.keys.get(id).map_or(Write::RemoveKey(*id), |key| Write::Key(key.clone()))));
        writes.extend(
            unsaved.nodes.iter().map(|id| self.nodes.get(id).map_or(Write::RemoveNode(*id), |node| Write::Node(Box::new(node.clone())))),
        );
        writes
    }

    pub(super) fn users(&self) -> impl Iterator<Item = &UserRecord> {
        self.users.values()
    }

    pub(super) fn user(&self, id: UserId) -> Option<&UserRecord> {
        self.users.get(&id)
    }

    pub(super) fn user_named(&self, name: &str) -> Option<&UserRecord> {
        self.users.values().find(|user| user.name == name)
    }

    pub(super) fn add_user(&mut self, name: &str, created: Wall) -> UserRecord {
        self.counters.user += 1;
        let user = UserRecord { id: UserId(self.counters.user), name: name.to_owned(), created };
        self.users.insert(user.id, user.clone());
        self.unsaved.counters = true;
        self.unsaved.users.insert(user.id);
        user
    }

    pub(super) fn rename_user(&mut self, id: UserId, name: &str) -> Option<UserRecord> {
        let user = self.users.get_mut(&id)?;
        name.clone_into(&mut user.name);
        self.unsaved.users.insert(id);
        Some(user.clone())
    }

    /// Removes a user and its join keys. The caller has made sure that no node is left.
    pub(super) fn remove_user(&mut self, id: UserId) {
        let keys: Vec<i64> = self.keys.values().filter(|key| key.user == id).map(|key| key.id).collect();
        for key in keys {
            self.remove_key(key);
        }
        if self.users.remove(&id).is_some() {
            self.unsaved.users.insert(id);
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &JoinKeyRecord> {
        self.keys.values()
    }

    pub(super) fn key(&self, id: i64) -> Option<&JoinKeyRecord> {
        self.keys.get(&id)
    }

    pub(super) fn key_named(&self, prefix: &str) -> Option<&JoinKeyRecord> {
        self.keys.values().find(|key| key.prefix == prefix)
    }

    /// Adds a key; its number is given here.
    pub(super) fn add_key(&mut self, mut key: JoinKeyRecord) -> i64 {
        self.counters.key += 1;
        key.id = self.counters.key;
        let id = key.id;
        self.keys.insert(id, key);
        self.unsaved.counters = true;
        self.unsaved.keys.insert(id);
        id
    }

    pub(super) fn change_key(&mut self, id: i64, change: impl FnOnce(&mut JoinKeyRecord)) -> bool {
        let Some(key) = self.keys.get_mut(&id) else { return false };
        change(key);
        self.unsaved.keys.insert(id);
        true
    }

    pub(super) fn remove_key(&mut self, id: i64) {
        if self.keys.remove(&id).is_some() {
            self.unsaved.keys.insert(id);
        }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id)
    }

    pub(super) fn node_with_key(&self, key: &NodePublic) -> Option<&NodeRecord> {
        self.by_node_key.get(key).and_then(|id| self.nodes.get(id))
    }

    /// A machine's node of one owner. The same machine under another owner is another node.
    pub(super) fn node_of(&self, machine: &MachinePublic, owner: UserId) -> Option<&NodeRecord> {
        self.nodes_of_machine(machine).find(|node| node.user == owner)
    }

    pub(super) fn nodes_of_machine(&self, machine: &MachinePublic) -> impl Iterator<Item = &NodeRecord> {
        let range = (*machine, NodeId(i64::MIN))..=(*machine, NodeId(i64::MAX));
        self.by_machine.range(range).filter_map(|(_, id)| self.nodes.get(id))
    }

    pub(super) fn next_node_id(&mut self) -> NodeId {
        self.counters.node += 1;
        self.unsaved.counters = true;
        NodeId(self.counters.node)
    }

    pub(super) fn add_node(&mut self, node: NodeRecord) {
        self.unsaved.nodes.insert(node.id);
        self.index(&node);
        self.nodes.insert(node.id, node);
    }

    /// Changes a node. Its number stays as it is.
    pub(super) fn change_node(&mut self, id: NodeId, change: impl FnOnce(&mut NodeRecord)) -> bool {
        let Some(mut node) = self.nodes.remove(&id) else { return false };
        self.unindex(&node);
        change(&mut node);
        self.index(&node);
        self.nodes.insert(id, node);
        self.unsaved.nodes.insert(id);
        true
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Option<NodeRecord> {
        let node = self.nodes.remove(&id)?;
        self.unindex(&node);
        self.unsaved.nodes.insert(id);
        Some(node)
    }

    /// The wanted name, or with the first free `-1`, `-2` ... if another node has it, or it is `taken` otherwise.
    pub(super) fn free_name(&self, wanted: &NodeName, holder: Option<NodeId>, taken: impl Fn(&NodeName) -> bool) -> NodeName {
        let free = |name: &NodeName| self.by_name.get(name).map_or_else(|| !taken(name), |id| Some(*id) == holder);
        if free(wanted) {
            return wanted.clone();
        }
        (1..=u32::MAX).map(|n| wanted.with_suffix(n)).find(free).unwrap_or_else(|| wanted.clone())
    }

    pub(super) fn name_holder(&self, name: &NodeName) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn address_holder(&self, v4: Ipv4Addr) -> Option<&NodeRecord> {
        self.by_address.get(&v4).and_then(|id| self.nodes.get(id))
    }

    /// The join key that keeps an address free for its node: as long as it can still be used.
    pub(super) fn reserving_key(&self, wall: Wall, v4: Ipv4Addr) -> Option<&JoinKeyRecord> {
        self.keys.values().find(|key| key.address == Some(v4) && key.usable(wall))
    }

    /// The next free pair of addresses; `None` when all are in use.
    pub(super) fn next_addresses(&mut self, wall: Wall) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let reserved: BTreeSet<Ipv4Addr> = self.keys.values().filter(|key| key.usable(wall)).filter_map(|key| key.address).collect();
        let after = self.counters.slot.min(MAX_SLOT);
        let slots = (after.saturating_add(1)..MAX_SLOT).chain(1..=after);
        for slot in slots {
            let Some(pair) = self.plan.pair(slot) else { continue };
            if !self.by_address.contains_key(&pair.0) && !reserved.contains(&pair.0) {
                self.counters.slot = slot;
                self.unsaved.counters = true;
                return Some(pair);
            }
        }
        None
    }

    fn index(&mut self, node: &NodeRecord) {
        self.by_node_key.insert(node.key, node.id);
        self.by_name.insert(node.name.clone(), node.id);
        self.by_address.insert(node.v4, node.id);
        self.by_machine.insert((node.machine, node.id));
    }

    fn unindex(&mut self, node: &NodeRecord) {
        self.by_node_key.remove(&node.key);
        self.by_name.remove(&node.name);
        self.by_address.remove(&node.v4);
        self.by_machine.remove(&(node.machine, node.id));
    }
}
