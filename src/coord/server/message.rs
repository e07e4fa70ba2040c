//! What a stream is told, made from the state of the moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::describe::shown_user;
use super::session::{Change, Ending, Fields, Parts, Session, SessionId};
use super::{Moment, NodeRecord, Server};
use crate::ident::NodeId;
use crate::time::Wall;
use crate::wire::control::{Debug as ClientDebug, DerpMap, MapResponse, PeerChange};

/// A message of the map stream. Peers are encoded once and shared by all streams they are sent to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    head: MapResponse,
    peers: Vec<Arc<str>>,
    changed: Vec<Arc<str>>,
}

impl Message {
    /// A message without peers.
    pub(super) fn of(head: MapResponse) -> Self {
        Self { head, ..Self::default() }
    }

    /// The JSON text.
    ///
    /// # Errors
    /// Never for messages made here; the stream should end if it does.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec(&self.head)?;
        json.pop();
        let mut first = json.len() == 1;
        for (name, nodes) in [("Peers", &self.peers), ("PeersChanged", &self.changed)] {
            // An empty list means "no peers" to one client and "unchanged" to another: it is never written.
            for (at, node) in nodes.iter().enumerate() {
                match (at, first) {
                    (0, true) => json.extend_from_slice(format!("\"{name}\":[").as_bytes()),
                    (0, false) => json.extend_from_slice(format!(",\"{name}\":[").as_bytes()),
                    _ => json.push(b','),
                }
                json.extend_from_slice(node.as_bytes());
                first = false;
            }
            if !nodes.is_empty() {
                json.push(b']');
            }
        }
        json.push(b'}');
        Ok(json)
    }
}

/// What a stream does next.
#[derive(Debug)]
pub enum Next {
    /// It ends.
    End,
    /// There is nothing to tell; an event comes when there is.
    Idle,
    /// It sends this and ends.
    Last(Message),
    /// It sends this and asks again.
    Message(Message),
}

impl Server {
    /// What a stream is to send now.
    pub fn next_message(&mut self, session: SessionId, at: Moment) -> Next {
        let Some(mut open) = self.sessions.remove(&session) else { return Next::End };
        let next = self.take(&mut open, at);
        self.sessions.insert(session, open);
        next
    }

    pub(super) fn take(&mut self, open: &mut Session, at: Moment) -> Next {
        match &open.ending {
            Some(Ending::Now) => return Next::End,
            Some(Ending::After(message)) => {
                let message = Message::clone(message);
                open.ending = Some(Ending::Now);
                return Next::Last(message);
            }
            None => {}
        }
        let Some(node) = self.registry.node(open.node).cloned() else { return Next::End };
        let expired = node.expired(at.wall);
        if expired {
            // Whoever is logged out sees itself and nobody else.
            open.peers.clear();
        }
        if !open.ready() {
            return Next::Idle;
        }
        let (pending, parts) = (std::mem::take(&mut open.peers), std::mem::take(&mut open.parts));
        let mut message = Message::default();
        let whole = std::mem::take(&mut open.full);
        if whole {
            open.users.clear();
            self.fill_whole(&mut message, &node, expired, at.wall);
        } else {
            self.fill_parts(&mut message.head, parts, &node, at.wall);
            self.fill_changes(&mut message, &pending, at.wall);
        }
        self.fill_users(&mut message.head, open, &node, pending.keys(), whole && !expired);
        if message == Message::default() {
            return Next::Idle;
        }
        message.head.control_time = Some(at.wall);
        Next::Message(message)
    }

    /// The complete map but for users: what the first message of a stream has to hold.
    fn fill_whole(&mut self, message: &mut Message, node: &NodeRecord, expired: bool, wall: Wall) {
        let head = &mut message.head;
        head.derp_map.clone_from(&self.settings.derp_map);
        head.dns_config = Some(self.dns_config());
        head.domain.clone_from(&self.settings.base_domain);
        head.collect_services = Some(false);
        head.packet_filters = BTreeMap::from([("base".to_owned(), Some(self.filter_of(node).to_vec()))]);
        head.debug = Some(ClientDebug { disable_log_tail: true, ..ClientDebug::default() });
        head.node = Some(self.own_node(node, wall));
        if !expired {
            let others: Vec<NodeId> = self.registry.nodes().map(|peer| peer.id).filter(|id| *id != node.id).collect();
            message.peers = others.into_iter().filter_map(|id| self.described(id, wall)).collect();
        }
    }

    fn fill_parts(&self, head: &mut MapResponse, parts: Parts, node: &NodeRecord, wall: Wall) {
        if parts.own {
            head.node = Some(self.own_node(node, wall));
        }
        if parts.dns {
            head.dns_config = Some(self.dns_config());
        }
        if parts.derp {
            // No relays any more: an absent map would mean "unchanged".
            let none = || DerpMap { regions: Some(BTreeMap::new()), ..DerpMap::default() };
            head.derp_map = Some(self.settings.derp_map.clone().unwrap_or_else(none));
        }
    }

    fn fill_changes(&mut self, message: &mut Message, pending: &BTreeMap<NodeId, Change>, wall: Wall) {
        for (id, change) in pending {
            match change {
                Change::Removed => message.head.peers_removed.push(*id),
                Change::Whole => message.changed.extend(self.described(*id, wall)),
                Change::Fields(fields) => match self.patch(*id, *fields, wall) {
                    Some(patch) => message.head.peers_changed_patch.push(patch),
                    None => message.changed.extend(self.described(*id, wall)),
                },
            }
        }
    }

    /// The short form of a change; `None` where it has none.
    fn patch(&self, id: NodeId, fields: Fields, wall: Wall) -> Option<PeerChange> {
        let node = self.registry.node(id)?;
        let mut patch = PeerChange { node_id: id, ..PeerChange::default() };
        if fields.derp {
            // Zero means "unchanged" in a patch, so that "none any more" needs the long form.
            patch.derp_region = (node.home_derp != 0).then_some(node.home_derp)?;
        }
        if fields.disco {
            patch.disco_key = (!node.disco.is_zero()).then_some(node.disco);
        }
        if fields.expiry {
            // "Never" cannot be said in a patch, and "expired" is a field of its own.
            patch.key_expiry = Some(node.key_expiry.filter(|expiry| *expiry > wall)?);
        }
        patch.key = fields.key.then_some(node.key);
        patch.endpoints = fields.endpoints.then(|| node.endpoints.clone());
        if fields.online {
            let online = self.presences.is_online(id);
            patch.online = Some(online);
            patch.last_seen = if online { None } else { node.last_seen };
        }
        Some(patch)
    }

    /// Profiles of the users a message refers to, as far as the stream has not been told them.
    fn fill_users<'a>(
        &self,
        head: &mut MapResponse,
        open: &mut Session,
        node: &NodeRecord,
        changed: impl Iterator<Item = &'a NodeId>,
        everyone: bool,
    ) {
        let mut users = std::mem::take(&mut open.renamed);
        users.insert(shown_user(node));
        if everyone {
            users.extend(self.registry.nodes().map(shown_user));
        } else {
            users.extend(changed.filter_map(|id| self.registry.node(*id)).map(shown_user));
        }
        head.user_profiles = users.difference(&open.users).map(|id| self.profile(*id)).collect();
        open.users.extend(users);
    }
}
