//! What a stream is told, made from the state of the moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::describe::shown_user;
use super::journal::{Change, Fields};
use super::piece::{Message, Piece, Shared, Text};
use super::session::{Ending, Moved, Parts, Session, SessionId};
use super::sight::Audience;
use super::view::View;
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
        let moved = open.moved.take();
        if std::mem::take(&mut open.full) {
            return self.whole(view, open, wall).map_or(Next::End, Next::Message);
        }
        // Whoever is logged out sees itself and nobody else.
        let delta = (!expired && from < view.published()).then(|| {
            let audience = view.audience().clone();
            view.delta(from, |changes, users| {
                let (head, changed) = self.changes(changes, users, &audience, wall)?;
                Some(Arc::new(Shared::new(Text::Whole { head: Box::new(head), changed })))
            })
        });
        let moved = moved.filter(|_| !expired);
        let message = match &delta {
            Some(delta) if !parts.any() && moved.is_none() && !delta.changes.contains_key(&open.node) => {
                delta.message.clone().map(Message::shared)
            }
            _ => {
                let mut due = moved.map(|moved| Moved::clone(&moved)).unwrap_or_default();
                if let Some(delta) = &delta {
                    due = due.then(&Moved { changes: delta.changes.clone(), users: delta.users.clone() });
                }
                self.for_one(due, open, parts, view.audience(), wall)
            }
        };
        message.map_or(Next::Idle, Next::Message)
    }

    /// The changes as one node is told them: without itself among its peers.
    fn for_one(&mut self, due: Moved, open: &mut Session, parts: Parts, audience: &Audience, wall: Wall) -> Option<Message> {
        let Moved { mut changes, mut users } = due;
        changes.remove(&open.node);
        let owner = self.registry.node(open.node).map(shown_user)?;
        if parts.own && !users.contains(&owner) {
            users.push(owner);
        }
        let (mut head, changed) = self.changes(&changes, &users, audience, wall).unwrap_or_default();
        self.fill_parts(&mut head, parts, self.registry.node(open.node)?, wall);
        if parts.filter {
            self.fill_filter(&mut head, open);
        }
        head.control_time = None;
        if changed.is_empty() && head == MapResponse::default() {
            return None;
        }
        head.control_time = Some(wall);
        Some(Message::own(head, changed))
    }

    /// The filter, if the stream has not been told exactly this one.
    fn fill_filter(&self, head: &mut MapResponse, open: &mut Session) {
        let filter = self.sight.filter(open.node);
        if open.filter.as_ref() != Some(&filter) {
            head.packet_filters.insert("base".to_owned(), Some(filter.to_vec()));
            open.filter = Some(filter);
        }
    }

    /// The complete map: what the first message of a stream has to hold.
    fn whole(&mut self, view: &mut View, open: &mut Session, wall: Wall) -> Option<Message> {
        let node = self.registry.node(open.node)?;
        let expired = node.expired(wall);
        let mut users: BTreeSet<UserId> = BTreeSet::from([shown_user(node)]);
        if !expired {
            users.extend(view.users());
        }
        let mut head = MapResponse {
            control_time: Some(wall),
            node: Some(self.own_node(node, wall)),
            derp_map: self.derp_map(),
            dns_config: Some(self.dns_config()),
            domain: self.settings.base_domain.clone(),
            collect_services: Some(false),
            debug: Some(ClientDebug { disable_log_tail: true, ..ClientDebug::default() }),
            user_profiles: self.profiles(users),
            ..MapResponse::default()
        };
        open.filter = None;
        self.fill_filter(&mut head, open);
        let peers = if expired { Vec::new() } else { self.peers(view, open.node, wall) };
        Some(if peers.is_empty() { Message::own(head, Vec::new()) } else { Message::list(head, peers) })
    }

    /// The peers of a node: the leaves of its view, its own leaf without itself.
    fn peers(&mut self, view: &mut View, id: NodeId, wall: Wall) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let audience = view.audience().clone();
        for leaf in view.leaves.iter_mut() {
            let first = pieces.is_empty();
            if leaf.ids().binary_search(&id).is_err() {
                let encode = |ids: &[NodeId]| Shared::new(Text::Nodes { nodes: self.described_all(ids, &audience, wall), first });
                pieces.push(Piece::Shared(leaf.shared(first, encode)));
            } else {
                let others: Vec<NodeId> = leaf.ids().iter().copied().filter(|other| *other != id).collect();
                if !others.is_empty() {
                    pieces.push(Piece::nodes(self.described_all(&others, &audience, wall), first));
                }
            }
        }
        pieces
    }

    fn described_all(&mut self, ids: &[NodeId], audience: &Audience, wall: Wall) -> Vec<Arc<str>> {
        ids.iter().filter_map(|id| self.described(*id, audience, wall)).collect()
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
            head.derp_map = Some(self.derp_map().unwrap_or_else(none));
        }
    }

    /// A message's head and changed nodes; none if nothing is left to say.
    fn changes(
        &mut self,
        changes: &BTreeMap<NodeId, Change>,
        users: &[UserId],
        audience: &Audience,
        wall: Wall,
    ) -> Option<(MapResponse, Vec<Arc<str>>)> {
        let mut head = MapResponse { control_time: Some(wall), ..MapResponse::default() };
        let mut changed = Vec::new();
        for (id, change) in changes {
            match change {
                Change::Removed => head.peers_removed.push(*id),
                Change::Whole => changed.extend(self.described(*id, audience, wall)),
                Change::Fields(fields) => match self.patch(*id, *fields, wall) {
                    Some(patch) => head.peers_changed_patch.push(patch),
                    None => changed.extend(self.described(*id, audience, wall)),
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
