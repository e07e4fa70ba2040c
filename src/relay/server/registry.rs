//! Who is connected, who watches, and which relay of the region has whom.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::mailbox::Mailbox;
use crate::ident::NodePublic;
use crate::wire::derp::{Frame, GoneReason, PresentFlags};

/// Receivers of a client's packets that are remembered, to be told when it leaves.
const MAX_SENT_TO: usize = 4096;

/// One connection's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(super) u64);

/// Where packets for a key go.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// To a client here.
    Local(Arc<Mailbox>),
    /// To another relay of the region.
    Forward(Arc<Mailbox>),
    /// Nowhere.
    Unknown,
}

/// All connections with one key: clones of a machine, or an old connection that is not noticed dead yet.
#[derive(Debug, Default)]
struct Local {
    /// The oldest first.
    connections: Vec<(ConnectionId, Arc<Mailbox>)>,
    address: Option<SocketAddr>,
    flags: PresentFlags,
    /// Who got packets from it here.
    sent_to: HashSet<NodePublic>,
}

impl Local {
    fn activate(&self, chosen: ConnectionId) {
        for (id, mailbox) in &self.connections {
            mailbox.active.store(*id == chosen, Ordering::Relaxed);
        }
    }

    fn active(&self) -> Option<&Arc<Mailbox>> {
        self.connections.iter().map(|(_, mailbox)| mailbox).find(|mailbox| mailbox.is_active())
    }

    fn tell(&self, frame: &Frame<'_>) {
        self.connections.iter().for_each(|(_, mailbox)| mailbox.tell(frame.to_bytes()));
    }
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    locals: HashMap<NodePublic, Local>,
    watchers: HashMap<ConnectionId, Arc<Mailbox>>,
    /// The earliest first.
    forwarders: HashMap<NodePublic, Vec<(ConnectionId, Arc<Mailbox>)>>,
}

impl Registry {
    /// How many keys are connected.
    pub(super) fn len(&self) -> usize {
        self.locals.len()
    }

    fn tell_watchers(&self, frame: &Frame<'_>) {
        self.watchers.values().for_each(|mailbox| mailbox.tell(frame.to_bytes()));
    }

    /// Lets a connection in; packets for its key go to it from now on.
    pub(super) fn join(
        &mut self,
        key: NodePublic,
        id: ConnectionId,
        mailbox: Arc<Mailbox>,
        address: Option<SocketAddr>,
        flags: PresentFlags,
    ) {
        let local = self.locals.entry(key).or_default();
        local.connections.push((id, mailbox));
        (local.address, local.flags) = (address, flags);
        local.activate(id);
        if local.connections.len() == 1 {
            self.tell_watchers(&Frame::PeerPresent { key, address, flags });
        }
    }

    /// Takes a connection out. Another one with the key takes over; with the last, who had packets from it is told.
    pub(super) fn leave(&mut self, key: NodePublic, id: ConnectionId) {
        self.watchers.remove(&id);
        let Some(local) = self.locals.get_mut(&key) else { return };
        local.connections.retain(|(other, _)| *other != id);
        if let Some((last, _)) = local.connections.last() {
            if local.active().is_none() {
                local.activate(*last);
            }
            return;
        }
        let gone = Frame::PeerGone { key, reason: GoneReason::Disconnected };
        if let Some(local) = self.locals.remove(&key) {
            local.sent_to.iter().filter_map(|peer| self.locals.get(peer)).for_each(|peer| peer.tell(&gone));
        }
        self.tell_watchers(&gone);
    }

    /// Of several connections with a key, this one is in use.
    pub(super) fn activate(&mut self, key: &NodePublic, id: ConnectionId) {
        if let Some(local) = self.locals.get(key) {
            local.activate(id);
        }
    }

    /// Where packets for a key go; a client's own are noted so that the receiver can be told when it leaves.
    pub(super) fn route(&mut self, from: Option<&NodePublic>, to: &NodePublic) -> Target {
        let Some(target) = self.locals.get(to).and_then(Local::active).cloned() else {
            let relay = self.forwarders.get(to).and_then(|relays| relays.first());
            return relay.map_or(Target::Unknown, |(_, mailbox)| Target::Forward(mailbox.clone()));
        };
        let full = from.and_then(|key| self.locals.get(key)).is_some_and(|local| local.sent_to.len() >= MAX_SENT_TO);
        if full && let Some(mut local) = from.and_then(|key| self.locals.remove_entry(key)) {
            local.1.sent_to.retain(|peer| self.locals.contains_key(peer));
            self.locals.insert(local.0, local.1);
        }
        if let Some(local) = from.and_then(|key| self.locals.get_mut(key))
            && local.sent_to.len() < MAX_SENT_TO
        {
            local.sent_to.insert(*to);
        }
        Target::Local(target)
    }

    /// A relay wants to know who is connected. The room is made for `most` clients.
    pub(super) fn watch(&mut self, id: ConnectionId, mailbox: &Arc<Mailbox>, most: usize) {
        mailbox.widen(most.saturating_mul(2));
        for (key, local) in &self.locals {
            mailbox.tell(Frame::PeerPresent { key: *key, address: local.address, flags: local.flags }.to_bytes());
        }
        self.watchers.insert(id, mailbox.clone());
    }

    pub(super) fn add_forwarder(&mut self, key: NodePublic, id: ConnectionId, mailbox: &Arc<Mailbox>) {
        let relays = self.forwarders.entry(key).or_default();
        if relays.iter().all(|(known, _)| *known != id) {
            relays.push((id, mailbox.clone()));
        }
    }

    pub(super) fn remove_forwarder(&mut self, key: &NodePublic, id: ConnectionId) {
        if let Some(relays) = self.forwarders.get_mut(key) {
            relays.retain(|(known, _)| *known != id);
            if relays.is_empty() {
                self.forwarders.remove(key);
            }
        }
    }

    pub(super) fn remove_link(&mut self, id: ConnectionId) {
        self.forwarders.retain(|_, relays| {
            relays.retain(|(known, _)| *known != id);
            !relays.is_empty()
        });
    }

    /// The connections of one key, or of all.
    pub(super) fn mailboxes<'a>(&'a self, key: Option<&'a NodePublic>) -> impl Iterator<Item = (&'a NodePublic, &'a Arc<Mailbox>)> {
        let chosen = self.locals.iter().filter(move |(known, _)| key.is_none_or(|key| key == *known));
        chosen.flat_map(|(key, local)| local.connections.iter().map(move |(_, mailbox)| (key, mailbox)))
    }
}
