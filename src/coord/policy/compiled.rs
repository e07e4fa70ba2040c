//! A policy applied to nodes, kept up to date node by node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::Policy;
use super::alias::Alias;
use super::attribute::Attributes;
use super::bits::Bits;
use super::filter;
use super::index::Index;
use super::member::{Member, Subject};
use super::rule::Rule;
use crate::ident::NodeId;
use crate::wire::control::FilterRule;

/// A policy applied to nodes.
#[derive(Debug)]
pub struct Compiled {
    pub(super) policy: Arc<Policy>,
    pub(super) sources: Index,
    pub(super) targets: Index,
    /// Rules with `autogroup:self` as a destination.
    pub(super) own_nodes: Bits,
    /// Rules with `via`.
    pub(super) via: Bits,
    /// Rules that open the internet through exit nodes.
    pub(super) internet: Bits,
    /// Rules in whose written sources all approved routes stand (`*`).
    pub(super) routed_sources: Bits,
    /// Rules made in reverse for capabilities.
    pub(super) companions: Bits,
    pub(super) attribute_index: Index,
    pub(super) attribute_sets: HashMap<Vec<usize>, Arc<Attributes>>,
    pub(super) members: BTreeMap<NodeId, Member>,
    /// The nodes without tags of each owner.
    pub(super) owned: HashMap<Arc<str>, BTreeSet<NodeId>>,
    /// The routers of each subnet route.
    pub(super) routers: BTreeMap<IpNet, BTreeSet<NodeId>>,
    pub(super) source_lists: filter::SourceLists,
    pub(super) open_filter: Arc<[FilterRule]>,
    pub(super) nothing: Arc<Attributes>,
}

impl Compiled {
    /// Applies a policy to nodes.
    pub fn new(policy: Arc<Policy>, subjects: impl IntoIterator<Item = Subject>) -> Self {
        let rules = &policy.rules;
        let numbered = |test: &dyn Fn(&Rule) -> bool| {
            let mut bits = Bits::new(rules.len());
            rules.iter().enumerate().filter(|(_, rule)| test(rule)).for_each(|(n, _)| bits.insert(n));
            bits
        };
        let has = |rule: &Rule, wanted: &dyn Fn(&Alias) -> bool| rule.targets.iter().any(|target| wanted(&target.alias));
        let opens_internet = |alias: &Alias| matches!(alias, Alias::Any | Alias::Internet);
        let mut compiled = Self {
            sources: Index::new(&policy.names, rules.iter().map(|rule| rule.sources.iter().collect())),
            targets: Index::new(&policy.names, rules.iter().map(|rule| rule.targets.iter().map(|target| &target.alias).collect())),
            own_nodes: numbered(&|rule| has(rule, &|alias| *alias == Alias::OwnNodes)),
            via: numbered(&|rule| !rule.via.is_empty()),
            internet: numbered(&|rule| rule.carries_traffic() && has(rule, &opens_internet)),
            routed_sources: numbered(&|rule| rule.sources.contains(&Alias::Any)),
            companions: numbered(&|rule| rule.companion),
            attribute_index: Index::new(&policy.names, policy.attributes.iter().map(|attribute| attribute.targets.iter().collect())),
            attribute_sets: HashMap::new(),
            members: BTreeMap::new(),
            owned: HashMap::new(),
            routers: BTreeMap::new(),
            source_lists: filter::SourceLists::new(rules),
            open_filter: filter::everything(),
            nothing: Arc::default(),
            policy,
        };
        for subject in subjects {
            let member = compiled.member(subject);
            compiled.link(&member);
            compiled.members.insert(member.subject.id, member);
        }
        compiled
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// Whether everything is allowed because there are no rules.
    pub fn is_open(&self) -> bool {
        self.policy.open
    }

    /// The nodes it is applied to.
    pub fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.members.values().map(|member| &member.subject)
    }

    /// What a node accepts. An empty list accepts nothing and is to be sent as such, never left out (which means "unchanged").
    pub fn filter(&self, id: NodeId) -> Arc<[FilterRule]> {
        if self.policy.open {
            return self.open_filter.clone();
        }
        match self.members.get(&id) {
            Some(member) => member.filter.get_or_init(|| self.build_filter(member)).clone(),
            None => Arc::from([]),
        }
    }

    /// The attributes a node is told about itself.
    pub fn attributes(&self, id: NodeId) -> Arc<Attributes> {
        self.members.get(&id).map_or_else(|| self.nothing.clone(), |member| member.attributes.clone())
    }

    /// The attributes of a node that its peers are told: only that it may be suggested as an exit node.
    pub fn peer_attributes(&self, id: NodeId) -> Attributes {
        let Some(member) = self.members.get(&id).filter(|member| member.subject.exit) else { return Attributes::new() };
        member
            .attributes
            .iter()
            .filter(|(name, _)| *name == "suggest-exit-node")
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// The nodes that see no other node. If these are all nodes, the policy locks everybody out.
    pub fn isolated(&self) -> Vec<NodeId> {
        if self.policy.open {
            return if self.members.len() == 1 { self.members.keys().copied().collect() } else { Vec::new() };
        }
        let rules = self.policy.rules.len();
        let (mut senders, mut receivers) = (vec![0_usize; rules], vec![0_usize; rules]);
        let count = |counts: &mut Vec<usize>, bits: &Bits| {
            for n in bits.iter() {
                if let Some(count) = counts.get_mut(n) {
                    *count += 1;
                }
            }
        };
        for member in self.members.values() {
            count(&mut senders, &member.source);
            count(&mut receivers, &member.target);
        }
        let others = |counts: &[usize], n: usize, own: bool| counts.get(n).is_some_and(|count| *count > usize::from(own));
        let linked = |member: &Member| {
            let out = member.source.iter().any(|n| others(&receivers, n, member.target.contains(n)));
            let back = member.target.iter().any(|n| others(&senders, n, member.source.contains(n)));
            out || back || self.meets_own_node(member)
        };
        self.members.values().filter(|member| !linked(member)).map(|member| member.subject.id).collect()
    }

    fn meets_own_node(&self, member: &Member) -> bool {
        let owned = member.owner.as_ref().and_then(|owner| self.owned.get(owner));
        !self.own_nodes.is_empty()
            && owned.is_some_and(|owned| {
                owned
                    .iter()
                    .filter(|id| **id != member.subject.id)
                    .any(|id| self.members.get(id).is_some_and(|other| self.meet(member.eye(), other)))
            })
    }

    /// Whether the policy leaves no two nodes that could reach each other: putting it in force would cut everybody off. With fewer than two
    /// nodes it is asked whether it could ever allow anything.
    pub fn locks_out(&self) -> bool {
        if self.members.len() < 2 {
            return self.policy.denies_everything();
        }
        self.isolated().len() == self.members.len()
    }
}
