//! From what a node is to the numbers of the rules (or attributes) that name it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::alias::{Alias, Names, domain_of};
use super::bits::Bits;
use super::ranges::AddressSet;

/// Numbered lists of aliases, searchable by node.
#[derive(Debug, Default)]
pub(super) struct Index {
    len: usize,
    /// Lists with `*` or `autogroup:danger-all`.
    any: Bits,
    member: Bits,
    tagged: Bits,
    users: HashMap<Arc<str>, Bits>,
    domains: HashMap<Arc<str>, Bits>,
    groups: HashMap<Arc<str>, Bits>,
    tags: HashMap<Arc<str>, Bits>,
    /// The literal networks of a list.
    nets: Vec<(usize, AddressSet)>,
    /// The groups of a user, as far as a list names them.
    groups_of: HashMap<Arc<str>, Vec<Arc<str>>>,
}

impl Index {
    pub(super) fn new<'a>(names: &Names, lists: impl ExactSizeIterator<Item = Vec<&'a Alias>>) -> Self {
        let len = lists.len();
        let empty = || Bits::new(len);
        let mut index = Self { len, any: empty(), member: empty(), tagged: empty(), ..Self::default() };
        for (n, list) in lists.enumerate() {
            let mut nets = Vec::new();
            for alias in list {
                match alias {
                    Alias::Any | Alias::DangerAll => index.any.insert(n),
                    Alias::Member => index.member.insert(n),
                    Alias::Tagged => index.tagged.insert(n),
                    Alias::User(name) => index.users.entry(name.clone()).or_insert_with(empty).insert(n),
                    Alias::Domain(name) => index.domains.entry(name.clone()).or_insert_with(empty).insert(n),
                    Alias::Group(name) => index.groups.entry(name.clone()).or_insert_with(empty).insert(n),
                    Alias::Tag(name) => index.tags.entry(name.clone()).or_insert_with(empty).insert(n),
                    Alias::Net(net) => nets.push(*net),
                    // These depend on more than the node; whoever uses the index looks after them.
                    Alias::OwnNodes | Alias::Internet => {}
                }
            }
            if !nets.is_empty() {
                index.nets.push((n, AddressSet::of_nets(&nets)));
            }
        }
        for (group, users) in names.groups.iter().filter(|(group, _)| index.groups.contains_key(*group)) {
            for user in users {
                index.groups_of.entry(user.clone()).or_default().push(group.clone());
            }
        }
        index
    }

    /// The lists that name a node by its identity: its owner (`None` with tags) and its tags.
    pub(super) fn identity(&self, owner: Option<&str>, tags: &[String]) -> Bits {
        let mut found = Bits::new(self.len);
        if let Some(owner) = owner {
            found.add(&self.member);
            if let Some(bits) = self.users.get(owner) {
                found.add(bits);
            }
            if let Some(bits) = domain_of(owner).and_then(|domain| self.domains.get(domain)) {
                found.add(bits);
            }
            for bits in self.groups_of.get(owner).into_iter().flatten().filter_map(|group| self.groups.get(group)) {
                found.add(bits);
            }
        } else {
            found.add(&self.tagged);
        }
        for bits in tags.iter().filter_map(|tag| self.tags.get(tag.as_str())) {
            found.add(bits);
        }
        found
    }

    /// The lists with `*`.
    pub(super) fn any(&self) -> &Bits {
        &self.any
    }

    /// The lists with a literal network that contains one of the addresses.
    pub(super) fn addresses(&self, addresses: &[IpAddr]) -> Bits {
        self.literal(|set| addresses.iter().any(|address| set.contains(*address)))
    }

    /// The lists with a literal network that shares an address with this one.
    pub(super) fn overlapping(&self, net: &IpNet) -> Bits {
        self.literal(|set| set.overlaps(net))
    }

    fn literal(&self, matches: impl Fn(&AddressSet) -> bool) -> Bits {
        let mut found = Bits::new(self.len);
        for (n, set) in &self.nets {
            if matches(set) {
                found.insert(*n);
            }
        }
        found
    }
}
