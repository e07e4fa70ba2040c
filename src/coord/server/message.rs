//! What a stream is told, made from the state of the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::describe::shown_user;
use super::journal::{Change, Fields};
use super::piece::{Message, Piece, Shared, Text};
use super::session::{Ending, Parts, Session, SessionId};
use super::view::{Delta, View};
use super::{Moment, NodeRecord, Server};
use crate::ident::{NodeId, UserId};
use crate::time::Wall;
use crate::wire::control::{Debug as ClientDebug, DerpMap, MapResponse, PeerChange, UserProfile};

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
        open.looks();
        let next = self.take(&mut open, at);
        self.sessions.insert(session, open);
        next
    }

    pub(super) fn take(&mut self, open: &mut Session, at: Moment) -> Next {
        match open.ending.take() {
            Some(Ending::Now) => {
                open.ending = Some(Ending::Now);
                return Next::End;
            }
            Some(Ending::After(message)) => {
                open.ending = Some(Ending::Now);
                return Next::Last(*message);
            }
            None => {}
        }
        let Some(mut view) = self.views.remove(&open.view) else { return Next::End };
        let next = self.tell(&mut view, open, at.wall);
        self.views.insert(open.view, view);
        next
    }

    fn tell(&mut self, view: &mut View, open: &mut Session, wall: Wall) -> Next {
        let Some(expired) = self.registry.node(open.node).map(|node| node.expired(wall)) else { return Next::End };
        let from = std::mem::replace(&mut open.told, view.published());
        let parts = std::mem::take(&mut open.parts);
        if std::mem::take(&mut open.full) {
            return self.whole(view, open.node, wall).map_or(Next::End, Next::Message);
        }
        // Whoever is logged out sees itself and nobody else.
        let delta = (!expired && from < view.published()).then(|| {
            view.delta(from, |changes, users| {
                let (head, changed) = self.changes(changes, users, wall)?;
                Some(Arc::new(Shared::new(Text::Whole { head: Box::new(head), changed })))
            })
        });
        let message = match &delta {
            Some(delta) if !parts.any() && !delta.changes.contains_key(&open.node) => delta.message.clone().map(Message::shared),
            _ => self.for_one(delta.as_deref(), open.node, parts, wall),
        };
        message.map_or(Next::Idle, Next::Message)
    }

    /// The changes as one node is told them: without itself among its peers.
    fn for_one(&mut self, delta: Option<&Delta>, id: NodeId, parts: Parts, wall: Wall) -> Option<Message> {
        let mut changes = delta.map(|delta| delta.changes.clone()).unwrap_or_default();
        changes.remove(&id);
        let mut users = delta.map(|delta| delta.users.clone()).unwrap_or_default();
        let owner = self.registry.node(id).map(shown_user)?;
        if parts.own && !users.contains(&owner) {
            users.push(owner);
        }
        let told = self.changes(&changes, &users, wall);
        if told.is_none() && !parts.any() {
            return None;
        }
        let (mut head, changed) = told.unwrap_or_default();
        head.control_time = Some(wall);
        self.fill_parts(&mut head, parts, self.registry.node(id)?, wall);
        Some(Message::own(head, changed))
    }

    /// The complete map: what the first message of a stream has to hold.
    fn whole(&mut self, view: &mut View, id: NodeId, wall: Wall) -> Option<Message> {
        let node = self.registry.node(id)?;
        let expired = node.expired(wall);
        let mut users: BTreeSet<UserId> = BTreeSet::from([shown_user(node)]);
        if !expired {
            users.extend(view.users());
        }
        let head = MapResponse {
            control_time: Some(wall),
            node: Some(self.own_node(node, wall)),
            derp_map: self.settings.derp_map.clone(),
            dns_config: Some(self.dns_config()),
            domain: self.settings.base_domain.clone(),
            collect_services: Some(false),
            packet_filters: BTreeMap::from([("base".to_owned(), Some(self.filter_of(node).to_vec()))]),
            debug: Some(ClientDebug { disable_log_tail: true, ..ClientDebug::default() }),
            user_profiles: self.profiles(users),
            ..MapResponse::default()
        };
        let peers = if expired { Vec::new() } else { self.peers(view, id, wall) };
        Some(if peers.is_empty() { Message::own(head, Vec::new()) } else { Message::list(head, peers) })
    }

    /// The peers of a node: the leaves of its view, its own leaf without itself.
    fn peers(&mut self, view: &mut View, id: NodeId, wall: Wall) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for leaf in view.leaves.iter_mut() {
            let first = pieces.is_empty();
            if leaf.ids().binary_search(&id).is_err() {
                let encode = |ids: &[NodeId]| Shared::new(Text::Nodes { nodes: self.described_all(ids, wall), first });
                pieces.push(Piece::Shared(leaf.shared(first, encode)));
            } else {
                let others: Vec<NodeId> = leaf.ids().iter().copied().filter(|other| *other != id).collect();
                if !others.is_empty() {
                    pieces.push(Piece::nodes(self.described_all(&others, wall), first));
                }
            }
        }
        pieces
    }

    fn described_all(&mut self, ids: &[NodeId], wall: Wall) -> Vec<Arc<str>> {
        ids.iter().filter_map(|id| self.described(*id, wall)).collect()
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

    /// A message's head and changed nodes; none if nothing is left to say.
    fn changes(&mut self, changes: &BTreeMap<NodeId, Change>, users: &[UserId], wall: Wall) -> Option<(MapResponse, Vec<Arc<str>>)> {
        let mut head = MapResponse { control_time: Some(wall), ..MapResponse::default() };
        let mut changed = Vec::new();
        for (id, change) in changes {
            match change {
                Change::Removed => head.peers_removed.push(*id),
                Change::Whole => changed.extend(self.described(*id, wall)),
                Change::Fields(fields) => match self.patch(*id, *fields, wall) {
                    Some(patch) => head.peers_changed_patch.push(patch),
                    None => changed.extend(self.described(*id, wall)),
                },
            }
        }
        head.user_profiles = self.profiles(users.iter().copied());
        let nothing = head.peers_removed.is_empty() && head.peers_changed_patch.is_empty() && head.user_profiles.is_empty();
        (!nothing || !changed.is_empty()).then_some((head, changed))
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

    fn profiles(&self, users: impl IntoIterator<Item = UserId>) -> Vec<UserProfile> {
        users.into_iter().map(|id| self.profile(id)).collect()
    }
}
