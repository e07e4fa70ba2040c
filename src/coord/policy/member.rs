//! A node and the rules it takes part in.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use super::alias;
use super::attribute::Attributes;
use super::bits::Bits;
use super::compiled::Compiled;
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

/// A route of a node and the rules it takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RouteBits {
    pub net: IpNet,
    pub sources: Bits,
    pub targets: Bits,
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
    pub source: Bits,
    /// Rules it is a destination of in any way.
    pub target: Bits,
    pub routes: Vec<RouteBits>,
    /// Rules that let it be used as an exit node.
    pub exit: Bits,
    pub attributes: Arc<Attributes>,
    pub filter: OnceLock<Arc<[FilterRule]>>,
}

impl Member {
    /// Whether the two accept the same, as long as the sources are the same.
    pub(super) fn accepts_like(&self, other: &Self) -> bool {
        self.owner == other.owner
            && self.target == other.target
            && self.routes == other.routes
            && self.subject.tags == other.subject.tags
            && (self.subject.v4, self.subject.v6, self.subject.exit) == (other.subject.v4, other.subject.v6, other.subject.exit)
    }

    /// Whether others would see no difference between the two.
    pub(super) fn looks_like(&self, other: &Self) -> bool {
        self.owner == other.owner
            && self.source == other.source
            && self.own_source == other.own_source
            && self.target == other.target
            && self.routes == other.routes
            && self.exit == other.exit
            && (self.subject.v4, self.subject.v6, self.subject.exit) == (other.subject.v4, other.subject.v6, other.subject.exit)
    }
}

impl Compiled {
    /// Finds the rules a node takes part in.
    pub(super) fn member(&mut self, subject: Subject) -> Member {
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
}
