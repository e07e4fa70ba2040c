//! Who sees whom: the policy in force, and the views of its classes of viewers.
//!
//! Without a policy everyone sees everything: there is one view, and nothing here costs anything. With one, nodes are sorted into
//! classes whose members are shown the same; each class with an open stream has a view. A change of a node is noted in the views that
//! show it, and one that brings it into sight or out of sight of a class is a whole node or a removal there. When a node changes class,
//! or the policy does, its stream goes over to another view and is told the difference of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::describe::shown_user;
use super::journal::{Change, Position};
use super::record::PolicyRecord;
use super::session::{Moved, Part, Session};
use super::view::{View, ViewId};
use super::{NodeRecord, Server, is_exit};
use crate::coord::policy::{Affected, Class, Compiled, Policy, PolicyError, Subject, Touched};
use crate::ident::NodeId;
use crate::wire::control::FilterRule;

/// With this many routes approved for a node, none is approved without asking any more.
const MAX_APPROVED: usize = 1024;

/// So many changes are told as such, however few nodes are left to see: telling everything makes a client rebuild all it has.
const FEW: usize = 32;

/// For whom a view is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Audience {
    /// Those who see all nodes and all their routes.
    Everyone,
    /// A class of viewers.
    Class(Class),
    /// Those who see nobody.
    Nobody,
}

/// The policy in force.
#[derive(Debug)]
pub(super) struct Sight {
    compiled: Compiled,
    record: Option<PolicyRecord>,
}

impl Default for Sight {
    fn default() -> Self {
        Self { compiled: Compiled::new(Arc::new(Policy::allow_all()), []), record: None }
    }
}

impl Sight {
    /// A stored policy, before any nodes are known.
    pub(super) fn load(record: Option<PolicyRecord>) -> Result<Self, PolicyError> {
        let policy = record.as_ref().map_or_else(|| Ok(Policy::allow_all()), |record| Policy::parse(&record.text))?;
        Ok(Self { compiled: Compiled::new(Arc::new(policy), []), record })
    }

    /// A policy applied to nodes.
    pub(super) fn new(policy: Policy, record: PolicyRecord, subjects: impl IntoIterator<Item = Subject>) -> Self {
        Self { compiled: Compiled::new(Arc::new(policy), subjects), record: Some(record) }
    }

    /// Whether there is no policy. Then nodes are not even kept.
    fn is_absent(&self) -> bool {
        self.record.is_none()
    }

    pub(super) fn record(&self) -> Option<&PolicyRecord> {
        self.record.as_ref()
    }

    pub(super) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    pub(super) fn policy(&self) -> &Policy {
        self.compiled.policy()
    }

    pub(super) fn audience(&self, id: NodeId) -> Audience {
        if self.compiled.is_open() { Audience::Everyone } else { self.compiled.class(id).map_or(Audience::Nobody, Audience::Class) }
    }

    /// Whether a node is shown to an audience; a viewer leaves itself out.
    pub(super) fn shows(&self, audience: &Audience, id: NodeId) -> bool {
        match audience {
            Audience::Everyone => true,
            Audience::Class(class) => self.compiled.shows(class, id),
            Audience::Nobody => false,
        }
    }

    pub(super) fn filter(&self, id: NodeId) -> Arc<[FilterRule]> {
        self.compiled.filter(id)
    }
}

impl Server {
    /// A node as the policy sees it.
    fn subject(&self, node: &NodeRecord) -> Subject {
        Subject {
            id: node.id,
            login: self.login(node).to_owned(),
            tags: node.tags.clone(),
            v4: node.v4,
            v6: node.v6,
            routes: node.effective_routes().filter(|net| !is_exit(net)).collect(),
            exit: node.effective_routes().any(|net| is_exit(&net)),
        }
    }

    /// The login of a node's owner.
    fn login(&self, node: &NodeRecord) -> &str {
        self.registry.user(node.user).map_or("", |user| &user.name)
    }

    /// All nodes as a policy sees them.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        self.registry.nodes().map(|node| self.subject(node)).collect()
    }

    /// Applies the stored policy to the stored nodes.
    pub(super) fn restore_sight(&mut self) {
        if !self.sight.is_absent() {
            for subject in self.subjects() {
                self.sight.compiled.upsert(subject);
            }
        }
    }

    /// The routes of a node that an audience is told, beside the node's own addresses.
    pub(super) fn routes_shown(&self, sight: &Sight, audience: &Audience, node: &NodeRecord) -> Vec<IpNet> {
        match audience {
            Audience::Everyone => self.primaries.of(node.id).chain(node.effective_routes().filter(is_exit)).collect(),
            Audience::Class(class) => sight.compiled.routes_shown(
                class,
                node.id,
                |net| self.primaries.carrier(net),
                |id| self.presences.carrying(id).is_some() && self.registry.node(id).is_some(),
            ),
            Audience::Nobody => Vec::new(),
        }
    }

    /// A node is new, or something about it changed that the policy may look at. Says whether anything follows from it; then the views
    /// have to be told of the node as a whole.
    pub(super) fn regard(&mut self, id: NodeId) -> bool {
        if self.sight.is_absent() {
            return false;
        }
        let Some(subject) = self.registry.node(id).map(|node| self.subject(node)) else { return false };
        let before = self.sight.compiled.attributes(id);
        let affected = self.sight.compiled.upsert(subject);
        if affected == Affected::default() {
            return false;
        }
        self.follow(affected);
        if before != self.sight.compiled.attributes(id) {
            self.tell_part(id, Part::Own);
        }
        self.change_audience(id);
        true
    }

    /// A node is gone.
    pub(super) fn disregard(&mut self, id: NodeId) {
        if !self.sight.is_absent() {
            let affected = self.sight.compiled.remove(id);
            self.follow(affected);
        }
    }

    /// What a change of one node means for others.
    fn follow(&mut self, affected: Affected) {
        match affected.filters {
            Touched::Nobody => {}
            Touched::Some(ids) => ids.into_iter().for_each(|id| self.tell_part(id, Part::Filter)),
            Touched::Everybody => self.tell_part_to_all(Part::Filter),
        }
        for rival in affected.rivals {
            self.tell_peers(rival, Change::Whole);
        }
    }

    /// Where rules choose among the routers of a prefix, a router that comes or goes may change the choice.
    pub(super) fn tell_rivals(&mut self, id: NodeId) {
        if !self.sight.compiled.steers_routes() {
            return;
        }
        let Some(node) = self.registry.node(id) else { return };
        let routes: BTreeSet<IpNet> = node.effective_routes().collect();
        let shares = |other: &&NodeRecord| other.effective_routes().any(|net| routes.contains(&net));
        let rivals: Vec<NodeId> = self.registry.nodes().filter(shares).map(|node| node.id).collect();
        for rival in rivals {
            self.tell_peers(rival, Change::Whole);
        }
    }

    /// Approves the routes that the policy approves for a node without asking. It only ever adds.
    pub(super) fn auto_approve(&self, node: &mut NodeRecord) {
        let routes = self.auto_approved(&self.sight, node);
        node.approved.extend(routes);
    }

    /// The routes of a node that a policy approves without asking, and that are not approved yet.
    pub(super) fn auto_approved(&self, sight: &Sight, node: &NodeRecord) -> Vec<IpNet> {
        let login = self.login(node);
        let open = node.advertised.difference(&node.approved).filter(|route| sight.policy().auto_approves(login, &node.tags, route));
        open.copied().take(MAX_APPROVED.saturating_sub(node.approved.len())).collect()
    }

    /// The view for a node; made if nobody had one like it.
    pub(super) fn view_of(&mut self, id: NodeId) -> ViewId {
        let audience = self.sight.audience(id);
        if let Some(view) = self.view_ids.get(&audience) {
            return *view;
        }
        self.last_view += 1;
        let (view_id, mut view) = (ViewId(self.last_view), View::new(audience.clone()));
        for node in self.registry.nodes().filter(|node| self.sight.shows(&audience, node.id)) {
            view.show(node.id, shown_user(node));
        }
        self.views.insert(view_id, view);
        self.view_ids.insert(audience, view_id);
        view_id
    }

    /// Forgets the views that no stream uses.
    pub(super) fn drop_idle_views(&mut self) {
        let used: BTreeSet<ViewId> = self.sessions.values().map(|open| open.view).collect();
        self.views.retain(|id, _| used.contains(id));
        self.view_ids.retain(|_, id| used.contains(id));
    }

    /// A node may belong to another class now: its streams go over to that one's view.
    fn change_audience(&mut self, id: NodeId) {
        let streams: Vec<_> =
            self.sessions.iter().filter(|(_, open)| open.node == id).map(|(session, open)| (*session, open.view)).collect();
        for (session, from) in streams {
            let to = self.view_of(id);
            if from != to
                && let Some(mut open) = self.sessions.remove(&session)
            {
                let anew = self.go_over(&mut open, to, None, &mut BTreeMap::new());
                self.sessions.insert(session, open);
                if anew {
                    self.wake(session);
                }
            }
        }
    }

    /// Puts another policy in force, or none. Streams go over to the views of their new classes.
    pub(super) fn change_sight(&mut self, sight: Sight) {
        let before = std::mem::replace(&mut self.sight, sight);
        self.descriptions.clear();
        self.view_ids.clear();
        let mut differences = BTreeMap::new();
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for session in sessions {
            let Some(node) = self.sessions.get(&session).map(|open| open.node) else { continue };
            let to = self.view_of(node);
            let Some(mut open) = self.sessions.remove(&session) else { continue };
            let anew = self.go_over(&mut open, to, Some(&before), &mut differences);
            open.note_part(Part::Filter);
            if before.compiled.attributes(open.node) != self.sight.compiled.attributes(open.node) {
                open.note_part(Part::Own);
            }
            self.sessions.insert(session, open);
            if anew {
                self.wake(session);
            }
        }
        self.drop_idle_views();
        self.untold |= !self.sessions.is_empty();
    }

    /// Moves a stream to another view and notes what it has to be told of the difference. `before` is what was in force when it was
    /// told last, if that is not what is now. Says whether it has to be told everything anew.
    fn go_over(
        &mut self,
        open: &mut Session,
        to: ViewId,
        before: Option<&Sight>,
        known: &mut BTreeMap<(ViewId, Position, ViewId), Arc<Moved>>,
    ) -> bool {
        let (Some(old), Some(new)) = (self.views.get(&open.view), self.views.get(&to)) else { return false };
        let key = (open.view, open.told, to);
        let moved = match known.get(&key) {
            Some(moved) => moved.clone(),
            None => {
                let moved = Arc::new(self.difference(old, open.told, new, before.unwrap_or(&self.sight)));
                known.insert(key, moved.clone());
                moved
            }
        };
        // With much more to change than there is to see, the whole list is shorter; but a list of nobody cannot be told.
        let shown = new.leaves.len() - usize::from(new.leaves.contains(open.node));
        // A profile that the old view was about to tell, and that only matters to the node itself in the new one.
        let owner = self.registry.node(open.node).map(shown_user);
        if owner.is_some_and(|owner| !new.knows(owner) && old.knows(owner) && !old.has_told(owner, open.told)) {
            open.note_part(Part::Own);
        }
        let anew = shown > 0 && moved.changes.len() > shown + FEW && !open.full;
        (open.view, open.told) = (to, new.published());
        if anew {
            open.full = true;
        } else if !open.full && !moved.is_empty() {
            open.note_moved(moved);
            self.untold = true;
        }
        anew
    }

    /// What a stream that was told everything of one view up to a position has to be told to know another one.
    fn difference(&self, old: &View, told: Position, new: &View, before: &Sight) -> Moved {
        let pending = old.since(told);
        let mut known: BTreeSet<NodeId> = old.leaves.ids().collect();
        known.extend(pending.iter().filter(|(_, change)| **change == Change::Removed).map(|(id, _)| *id));
        let mut changes: BTreeMap<NodeId, Change> = pending;
        for id in &known {
            if !new.leaves.contains(*id) {
                changes.insert(*id, Change::Removed);
            } else if changes.get(id) == Some(&Change::Removed) || self.looks_different(*id, old, before, new) {
                changes.insert(*id, Change::Whole);
            }
        }
        changes.extend(new.leaves.ids().filter(|id| !known.contains(id)).map(|id| (id, Change::Whole)));
        let users = new.users().filter(|user| !old.has_told(*user, told)).collect();
        Moved { changes, users }
    }

    /// Whether a node that both views show is described differently in them: by its routes, or by what the policy says of it.
    fn looks_different(&self, id: NodeId, old: &View, before: &Sight, new: &View) -> bool {
        let Some(node) = self.registry.node(id).filter(|node| !node.advertised.is_empty()) else { return false };
        self.routes_shown(before, old.audience(), node) != self.routes_shown(&self.sight, new.audience(), node)
            || before.compiled.peer_attributes(id) != self.sight.compiled.peer_attributes(id)
    }
}
