//! A policy applied to nodes, kept up to date node by node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::Policy;
use super::alias::{self, Alias};
use super::attribute::Attributes;
use super::bits::Bits;
use super::filter;
use super::index::Index;
use super::rule::Rule;
use crate::ident::NodeId;
use crate::wire::control::FilterRule;

/// A node as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Which.
    pub id: NodeId,
    /// Its owner's login. Of a node with tags it is kept, but does not count.
    pub login: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// Its addresses.
    pub v6: Ipv6Addr,
    /// The subnet routes it advertises and may carry, whether or not it is the chosen router now. Exit routes (`/0`) are ignored here.
    pub routes: Vec<IpNet>,
    /// It advertises to be an exit node, and may be one.
    pub exit: bool,
}

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

/// A route of a node and the rules it takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RouteBits {
    pub net: IpNet,
    sources: Bits,
    targets: Bits,
}

/// A node and the rules it takes part in.
#[derive(Debug)]
pub(super) struct Member {
    pub subject: Subject,
    /// The login that owns it; `None` with tags.
    pub owner: Option<Arc<str>>,
    /// Rules it is a source of by identity: its addresses stand in their sources.
    pub named_source: Bits,
    /// Rules it is a source of, by identity or address.
    pub own_source: Bits,
    /// The same, or by a route.
    source: Bits,
    /// Rules it is a destination of in any way.
    pub target: Bits,
    pub routes: Vec<RouteBits>,
    /// Rules that let it be used as an exit node.
    exit: Bits,
    attributes: Arc<Attributes>,
    pub filter: OnceLock<Arc<[FilterRule]>>,
}

/// What of a node decides which nodes, and which of their routes, it is shown. Nodes of one class are shown the same, each without itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    source: Bits,
    own_source: Bits,
    target: Bits,
    /// Only where rules about one's own nodes make it count.
    owner: Option<Arc<str>>,
}

/// The same, borrowed from a class or a node.
#[derive(Debug, Clone, Copy)]
struct Eye<'a> {
    source: &'a Bits,
    own_source: &'a Bits,
    target: &'a Bits,
    owner: Option<&'a Arc<str>>,
}

impl Class {
    fn eye(&self) -> Eye<'_> {
        Eye { source: &self.source, own_source: &self.own_source, target: &self.target, owner: self.owner.as_ref() }
    }
}

impl Member {
    fn eye(&self) -> Eye<'_> {
        Eye { source: &self.source, own_source: &self.own_source, target: &self.target, owner: self.owner.as_ref() }
    }
}

/// A policy applied to nodes.
#[derive(Debug)]
pub struct Compiled {
    pub(super) policy: Arc<Policy>,
    sources: Index,
    targets: Index,
    /// Rules with `autogroup:self` as a destination.
    own_nodes: Bits,
    /// Rules with `via`.
    via: Bits,
    /// Rules that open the internet through exit nodes.
    internet: Bits,
    /// Rules in whose written sources all approved routes stand (`*`).
    routed_sources: Bits,
    /// Rules made in reverse for capabilities.
    companions: Bits,
    attribute_index: Index,
    attribute_sets: HashMap<Vec<usize>, Arc<Attributes>>,
    pub(super) members: BTreeMap<NodeId, Member>,
    /// The nodes without tags of each owner.
    pub(super) owned: HashMap<Arc<str>, BTreeSet<NodeId>>,
    /// The routers of each subnet route.
    pub(super) routers: BTreeMap<IpNet, BTreeSet<NodeId>>,
    pub(super) classes: filter::Classes,
    open_filter: Arc<[FilterRule]>,
    nothing: Arc<Attributes>,
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
            classes: filter::Classes::new(rules),
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
        self.classes.forget(&stale);
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

    fn link(&mut self, member: &Member) {
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

    /// Finds the rules a node takes part in.
    fn member(&mut self, subject: Subject) -> Member {
        let owner = subject.tags.is_empty().then(|| alias::login(&subject.login));
        let addresses = [IpAddr::V4(subject.v4), IpAddr::V6(subject.v6)];
        let named_source = self.sources.identity(owner, &subject.tags);
        let mut own_source = named_source.clone();
        own_source.add(self.sources.any());
        own_source.add(&self.sources.addresses(&addresses));
        let mut target = self.targets.identity(owner, &subject.tags);
        target.add(self.targets.any());
        target.add(&self.targets.addresses(&addresses));
        // With `via`, only what lies behind the node counts.
        target.remove(&self.via);
        let steered = self.steered_to(&subject.tags);
        let mut exit = Bits::new(self.policy.rules.len());
        if subject.exit {
            exit.add(&self.internet);
            exit.remove(&self.via_without(&steered));
        }
        target.add(&exit);
        let mut source = own_source.clone();
        let nets: BTreeSet<IpNet> = subject.routes.iter().map(IpNet::trunc).filter(|net| net.prefix_len() > 0).collect();
        let routes: Vec<RouteBits> = nets.into_iter().map(|net| self.route(net, &steered)).collect();
        for route in &routes {
            source.add(&route.sources);
            target.add(&route.targets);
        }
        let attributes = self.attributes_of(owner, &subject.tags, &addresses);
        let owner = owner.map(Arc::from);
        Member { subject, owner, named_source, own_source, source, target, routes, exit, attributes, filter: OnceLock::new() }
    }

    fn route(&self, net: IpNet, steered: &Bits) -> RouteBits {
        let mut sources = self.sources.overlapping(&net);
        sources.add(self.sources.any());
        let mut targets = self.targets.overlapping(&net);
        targets.add(self.targets.any());
        targets.remove(&self.via_without(steered));
        sources.remove(&self.companions);
        targets.remove(&self.companions);
        RouteBits { net, sources, targets }
    }

    /// The rules with `via` that lead through a node with these tags.
    fn steered_to(&self, tags: &[String]) -> Bits {
        let mut steered = Bits::new(self.policy.rules.len());
        for n in self.via.iter() {
            let through = self.policy.rules.get(n).is_some_and(|rule| rule.via.iter().any(|via| tags.iter().any(|tag| **tag == **via)));
            if through {
                steered.insert(n);
            }
        }
        steered
    }

    fn via_without(&self, steered: &Bits) -> Bits {
        let mut other = self.via.clone();
        other.remove(steered);
        other
    }

    fn attributes_of(&mut self, owner: Option<&str>, tags: &[String], addresses: &[IpAddr]) -> Arc<Attributes> {
        if self.policy.attributes.is_empty() {
            return self.nothing.clone();
        }
        let mut found = self.attribute_index.identity(owner, tags);
        found.add(self.attribute_index.any());
        found.add(&self.attribute_index.addresses(addresses));
        let key: Vec<usize> = found.iter().collect();
        let policy = &self.policy;
        let merge = |key: &Vec<usize>| {
            let mut merged = Attributes::new();
            for attribute in key.iter().filter_map(|n| policy.attributes.get(*n)) {
                for (name, arguments) in &attribute.given {
                    let all = merged.entry(name.clone()).or_default();
                    all.extend(arguments.iter().filter(|argument| !all.contains(argument)).cloned().collect::<Vec<_>>());
                }
            }
            Arc::new(merged)
        };
        self.attribute_sets.entry(key).or_insert_with_key(merge).clone()
    }

    /// Whether two nodes may be in contact, in either direction.
    fn meet(&self, a: Eye<'_>, b: &Member) -> bool {
        if a.source.meets(&b.target) || b.source.meets(a.target) {
            return true;
        }
        let own = a.owner.is_some() && a.owner == b.owner.as_ref();
        own && (a.own_source.meets(&self.own_nodes) || b.own_source.meets(&self.own_nodes))
    }

    /// Whether `peer` is shown to `viewer`. Symmetric; a node does not see itself; unknown nodes are not seen.
    pub fn sees(&self, viewer: NodeId, peer: NodeId) -> bool {
        if viewer == peer {
            return false;
        }
        match (self.members.get(&viewer), self.members.get(&peer)) {
            (Some(a), Some(b)) => self.policy.open || self.meet(a.eye(), b),
            _ => false,
        }
    }

    /// The class of viewers that a node belongs to; `None` if it is not known.
    pub fn class(&self, id: NodeId) -> Option<Class> {
        let member = self.members.get(&id)?;
        if self.policy.open {
            let none = || Bits::new(0);
            return Some(Class { source: none(), own_source: none(), target: none(), owner: None });
        }
        let owner = member.owner.clone().filter(|_| !self.own_nodes.is_empty());
        let (source, own_source, target) = (member.source.clone(), member.own_source.clone(), member.target.clone());
        Some(Class { source, own_source, target, owner })
    }

    /// Whether a node is shown to a class of viewers; a viewer leaves itself out.
    pub fn shows(&self, class: &Class, peer: NodeId) -> bool {
        self.members.get(&peer).is_some_and(|peer| self.policy.open || self.meet(class.eye(), peer))
    }

    /// Which routes of `router` are told to `viewer`, beside the router's own addresses: subnet routes, and the exit pair.
    ///
    /// A prefix is told for one router at most: the one that `carrier` names, or, where rules with `via` choose for this viewer, that one if
    /// it is among the chosen and else the chosen one with the lowest number that is `online`. Routes of a node that the viewer does not see
    /// are not told; the caller need not ask for them.
    pub fn routes_for(
        &self,
        viewer: NodeId,
        router: NodeId,
        carrier: impl Fn(&IpNet) -> Option<NodeId>,
        online: impl Fn(NodeId) -> bool,
    ) -> Vec<IpNet> {
        self.members.get(&viewer).map(|from| self.routes_seen(from.eye(), router, carrier, online)).unwrap_or_default()
    }

    /// The same for a class of viewers.
    pub fn routes_shown(
        &self,
        class: &Class,
        router: NodeId,
        carrier: impl Fn(&IpNet) -> Option<NodeId>,
        online: impl Fn(NodeId) -> bool,
    ) -> Vec<IpNet> {
        self.routes_seen(class.eye(), router, carrier, online)
    }

    fn routes_seen(
        &self,
        from: Eye<'_>,
        router: NodeId,
        carrier: impl Fn(&IpNet) -> Option<NodeId>,
        online: impl Fn(NodeId) -> bool,
    ) -> Vec<IpNet> {
        let Some(to) = self.members.get(&router) else { return Vec::new() };
        let carried = |route: &RouteBits| {
            let carrier = carrier(&route.net);
            if self.policy.open || self.plainly(from, route) {
                return carrier == Some(router);
            }
            let chosen = |id: &NodeId| self.members.get(id).is_some_and(|member| self.steers(from, member, &route.net));
            if !chosen(&router) {
                return false;
            }
            let routers = || self.routers.get(&route.net).into_iter().flatten().copied().filter(|id| online(*id) && chosen(id));
            let first = carrier.filter(|id| routers().any(|other| other == *id)).or_else(|| routers().next());
            first == Some(router)
        };
        let mut nets: Vec<IpNet> = to.routes.iter().filter(|route| carried(route)).map(|route| route.net).collect();
        if to.subject.exit && (self.policy.open || from.own_source.meets(&to.exit)) {
            nets.extend([IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]);
        }
        nets
    }

    /// Whether a rule without `via` links a viewer and a route, in either direction.
    fn plainly(&self, viewer: Eye<'_>, route: &RouteBits) -> bool {
        viewer.source.meets_without(&route.targets, &self.via) || viewer.target.meets(&route.sources)
    }

    /// Whether a rule with `via` leads a viewer through a router to a prefix.
    fn steers(&self, viewer: Eye<'_>, router: &Member, net: &IpNet) -> bool {
        let route = router.routes.iter().find(|route| route.net == *net);
        route.is_some_and(|route| viewer.source.meets(&route.targets))
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

    /// Whether rules choose among several routers of a prefix (`via`).
    pub fn steers_routes(&self) -> bool {
        !self.via.is_empty()
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

impl Member {
    /// Whether the two accept the same, as long as the sources are the same.
    fn accepts_like(&self, other: &Self) -> bool {
        self.owner == other.owner
            && self.target == other.target
            && self.routes == other.routes
            && self.subject.tags == other.subject.tags
            && (self.subject.v4, self.subject.v6, self.subject.exit) == (other.subject.v4, other.subject.v6, other.subject.exit)
    }

    /// Whether others would see no difference between the two.
    fn looks_like(&self, other: &Self) -> bool {
        self.owner == other.owner
            && self.source == other.source
            && self.own_source == other.own_source
            && self.target == other.target
            && self.routes == other.routes
            && self.exit == other.exit
            && (self.subject.v4, self.subject.v6, self.subject.exit) == (other.subject.v4, other.subject.v6, other.subject.exit)
    }
}
