//! Changes of single nodes, and whom they concern.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::bits::Bits;
use super::compiled::Compiled;
use super::member::{Member, Subject};
use crate::ident::NodeId;

/// Some nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Touched {
    /// None.
    #[default]
    Nobody,
    /// These.
    Some(BTreeSet<NodeId>),
    /// All but the changed node itself.
    Everybody,
}

/// Whom a change of one node concerns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Affected {
    /// The nodes whose filter is another now. May name the changed node itself.
    pub filters: Touched,
    /// The nodes that saw the changed node before or see it now, if anything about that may be different: ask [`Compiled::sees`] and
    /// [`Compiled::routes_for`] again, in both directions. Never the changed node itself.
    pub peers: Touched,
    /// Other routers of the changed node's prefixes whose use may be different now because rules with `via` choose among them: ask
    /// [`Compiled::routes_for`] again for all their peers.
    pub rivals: BTreeSet<NodeId>,
}

impl Compiled {
    /// Adds or changes a node.
    pub fn upsert(&mut self, subject: Subject) -> Affected {
        if self.members.get(&subject.id).is_some_and(|old| old.subject == subject) {
            return Affected::default();
        }
        let id = subject.id;
        let member = self.member(subject);
        let old = self.members.remove(&id);
        self.replace(id, old, Some(member))
    }

    /// Takes a node away.
    pub fn remove(&mut self, id: NodeId) -> Affected {
        match self.members.remove(&id) {
            Some(old) => self.replace(id, Some(old), None),
            None => Affected::default(),
        }
    }

    /// Puts `new` in the place of `old`, which is taken out of `members` already.
    fn replace(&mut self, id: NodeId, old: Option<Member>, mut new: Option<Member>) -> Affected {
        let prefixes = |member: &Option<Member>| -> BTreeSet<IpNet> {
            member.iter().flat_map(|member| member.routes.iter().map(|route| route.net)).collect()
        };
        let rivals = if self.via.is_empty() { BTreeSet::new() } else { self.rivals(id, prefixes(&old).union(&prefixes(&new))) };
        if let Some(old) = &old {
            self.unlink(old);
        }
        let (gone, come) = (prefixes(&old), prefixes(&new));
        let routes_differ = gone.symmetric_difference(&come).any(|net| !self.routers.contains_key(net));
        if let Some(new) = &new {
            self.link(new);
        }
        let peers = self.changed_peers(old.as_ref(), new.as_ref());
        let affected = Affected { filters: self.changed_filters(old.as_ref(), new.as_mut(), routes_differ), peers, rivals };
        if let Some(new) = new {
            self.members.insert(id, new);
        }
        affected
    }

    fn rivals<'a>(&self, id: NodeId, prefixes: impl Iterator<Item = &'a IpNet>) -> BTreeSet<NodeId> {
        prefixes.filter_map(|net| self.routers.get(net)).flatten().copied().filter(|router| *router != id).collect()
    }

    /// Forgets the filters that a change makes stale, and says whose they are.
    fn changed_filters(&mut self, old: Option<&Member>, new: Option<&mut Member>, routes_differ: bool) -> Touched {
        if self.policy.open {
            return Touched::Nobody;
        }
        let stale = self.stale_sources(old, new.as_deref(), routes_differ);
        self.source_lists.forget(&stale);
        let mut touched = BTreeSet::new();
        if !stale.is_empty() {
            for (other, member) in self.members.iter_mut().filter(|(_, member)| member.target.meets(&stale)) {
                member.filter.take();
                touched.insert(*other);
            }
        }
        // Rules about one's own nodes have the owner's other nodes as sources.
        let own = |member: Option<&Member>| {
            let takes_part = |member: &&Member| member.owner.is_some() && member.own_source.meets(&self.own_nodes);
            let about = |member: &Member| (member.owner.clone(), member.subject.v4, member.subject.v6, member.own_source.clone());
            member.filter(takes_part).map(about)
        };
        let (own_before, own_after) = (own(old), own(new.as_deref()));
        let own_differ = own_before != own_after;
        if own_differ {
            let owners: BTreeSet<Arc<str>> = [own_before, own_after].into_iter().flatten().filter_map(|(owner, ..)| owner).collect();
            self.source_lists.forget_own(&owners);
            for other in owners.iter().filter_map(|owner| self.owned.get(owner)).flatten() {
                if let Some(member) = self.members.get_mut(other) {
                    member.filter.take();
                    touched.insert(*other);
                }
            }
        }
        if let Some(new) = new {
            match old {
                Some(old) if old.accepts_like(new) && !new.target.meets(&stale) && !own_differ => {
                    new.filter = old.filter.clone();
                }
                _ => {
                    touched.insert(new.subject.id);
                }
            }
        }
        if touched.is_empty() { Touched::Nobody } else { Touched::Some(touched) }
    }

    /// The rules whose written sources a change of a node makes stale.
    fn stale_sources(&self, old: Option<&Member>, new: Option<&Member>, routes_differ: bool) -> Bits {
        let addresses = |member: Option<&Member>| member.map(|member| (member.subject.v4, member.subject.v6));
        let named =
            |member: Option<&Member>| member.map_or_else(|| Bits::new(self.policy.rules.len()), |member| member.named_source.clone());
        let mut stale = named(old).difference(&named(new));
        if addresses(old) != addresses(new) {
            stale.add(&named(old));
            stale.add(&named(new));
        }
        if routes_differ {
            stale.add(&self.routed_sources);
        }
        stale
    }

    fn changed_peers(&self, old: Option<&Member>, new: Option<&Member>) -> Touched {
        if self.policy.open {
            return if self.members.is_empty() { Touched::Nobody } else { Touched::Everybody };
        }
        if let (Some(old), Some(new)) = (old, new)
            && old.looks_like(new)
        {
            return Touched::Nobody;
        }
        let seen = |member: Option<&Member>, other| member.is_some_and(|member| self.meet(member.eye(), other));
        let touched: BTreeSet<NodeId> =
            self.members.values().filter(|other| seen(old, other) || seen(new, other)).map(|other| other.subject.id).collect();
        if touched.is_empty() { Touched::Nobody } else { Touched::Some(touched) }
    }

    pub(super) fn link(&mut self, member: &Member) {
        let id = member.subject.id;
        if let Some(owner) = &member.owner {
            self.owned.entry(owner.clone()).or_default().insert(id);
        }
        for route in &member.routes {
            self.routers.entry(route.net).or_default().insert(id);
        }
    }

    fn unlink(&mut self, member: &Member) {
        let id = member.subject.id;
        if let Some(owner) = &member.owner
            && let Some(owned) = self.owned.get_mut(owner)
        {
            owned.remove(&id);
            if owned.is_empty() {
                self.owned.remove(owner);
            }
        }
        for route in &member.routes {
            if let Some(routers) = self.routers.get_mut(&route.net) {
                routers.remove(&id);
                if routers.is_empty() {
                    self.routers.remove(&route.net);
                }
            }
        }
    }
}
