//! The policy file: who may reach what, in the grammar of Tailscale's policies (HuJSON), and what follows from it for each node.
//!
//! A core without I/O, used by the coordinator:
//!
//! * [`Policy`] is a file that was read and checked ([`Policy::parse`]), or [`Policy::allow_all`], which holds without a file. It answers
//!   what needs no other nodes: may this owner claim that tag ([`Policy::may_tag`]), is this route approved without asking
//!   ([`Policy::auto_approves`]), which logins does it name ([`Policy::logins`]).
//! * [`Compiled`] is a policy applied to nodes ([`Subject`]), kept up to date node by node: [`Compiled::upsert`] and [`Compiled::remove`]
//!   say whom the change concerns ([`Affected`]). It answers [`Compiled::filter`] (what a node accepts), [`Compiled::sees`] (who is
//!   shown to whom), [`Compiled::routes_for`] (which routes of a router a viewer gets), [`Compiled::attributes`]; and, before a policy is
//!   put in force, [`Compiled::run_tests`] and [`Compiled::isolated`].
//!
//! How it scales: each rule has a number, and each node keeps two sets of them as bits, the rules it is a source of and the rules it is a
//! destination of. A change of one node costs work by the number of rules, plus a few words per node whose view may change; `sees` costs a
//! few words. A rule's sources are written out once for all nodes, as merged ranges, and a node's filter only when it is asked for. Without
//! rules ([`Compiled::is_open`]) everything is one answer.
//!
//! What it does not do: SSH rules, device postures, IP sets, services, address pools (refused by name); users and roles (a login is only
//! compared); which router of several carries a prefix (the caller says, see [`Compiled::routes_for`]).
//!
//! What it holds to: the policy only ever allows; a node with tags is nobody's and matches no user, group or `autogroup:member`; literal
//! addresses stand for themselves; an empty list of rules denies everything, no list allows everything. Source: Tailscale's policy
//! syntax reference, and the results the hosted service gives, which `tests/policy` compares.

mod alias;
mod attribute;
mod bits;
mod change;
mod compiled;
mod document;
mod error;
mod filter;
mod index;
mod member;
mod ranges;
mod rule;
mod sections;
mod service;
mod trial;
mod viewer;

use std::collections::BTreeSet;

use ipnet::IpNet;

pub use attribute::Attributes;
pub use change::{Affected, Touched};
pub use compiled::Compiled;
pub use document::MAX_BYTES;
pub use error::PolicyError;
pub use member::Subject;
pub use ranges::AddressSet;
pub use trial::TestFailure;
pub use viewer::Class;

use alias::{Alias, Names};
use attribute::Attribute;
use rule::Rule;
use trial::Trial;

/// A policy that was read and checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    /// No list of rules at all: everything is allowed.
    open: bool,
    names: Names,
    rules: Vec<Rule>,
    attributes: Vec<Attribute>,
    route_approvers: Vec<(IpNet, Vec<Alias>)>,
    exit_approvers: Vec<Alias>,
    trials: Vec<Trial>,
}

impl Policy {
    /// What holds without a policy file: every node may reach every other, nothing is approved by itself, no tag is defined.
    pub fn allow_all() -> Self {
        Self { open: true, ..Self::default() }
    }

    /// Reads a policy file.
    ///
    /// # Errors
    /// The first fault, with its place. Whatever the text, it is refused quickly and without panic.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        sections::read(text)
    }

    /// Whether everything is allowed because there are no rules.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether nothing at all is allowed.
    pub fn denies_everything(&self) -> bool {
        !self.open && self.rules.iter().all(|rule| rule.sources.is_empty() || rule.targets.is_empty())
    }

    /// The logins the policy names, without the `@` at the end of local ones. Those that do not exist are worth a warning.
    pub fn logins(&self) -> BTreeSet<&str> {
        let mut logins: BTreeSet<&str> = self.names.groups.values().flatten().map(AsRef::as_ref).collect();
        let lists = self.rules.iter().flat_map(|rule| rule.sources.iter().chain(rule.targets.iter().map(|target| &target.alias)));
        let attributes = self.attributes.iter().flat_map(|attribute| &attribute.targets);
        let approvers = self.route_approvers.iter().flat_map(|(_, aliases)| aliases).chain(&self.exit_approvers);
        for alias in lists.chain(attributes).chain(approvers).chain(self.names.tags.values().flatten()) {
            if let Alias::User(login) = alias {
                logins.insert(login);
            }
        }
        logins
    }

    /// The tags the policy defines.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.names.tags.keys().map(AsRef::as_ref)
    }

    /// Whether the owner of a node may give it a tag: it is, or is in, an owner of the tag, or of a tag that owns it; or the node has such
    /// a tag already. A node with tags has no owner for this purpose: pass `None`.
    pub fn may_tag(&self, login: Option<&str>, tags: &[String], tag: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![tag];
        while let Some(tag) = open.pop() {
            if !seen.insert(tag) {
                continue;
            }
            for owner in self.names.tags.get(tag).into_iter().flatten() {
                match owner {
                    Alias::Tag(tag) if tags.iter().any(|own| **own == **tag) => return true,
                    Alias::Tag(tag) => open.push(tag),
                    owner if self.names.owned_by(owner, login.map(alias::login)) => return true,
                    _ => {}
                }
            }
        }
        false
    }

    /// Whether a route that a node advertises is approved without asking anybody. The owner of a node with tags does not count.
    ///
    /// Both halves of the exit pair (`/0`) follow `exitNode`; other routes follow the entries of `routes` that contain them.
    pub fn auto_approves(&self, login: &str, tags: &[String], route: &IpNet) -> bool {
        let login = tags.is_empty().then(|| alias::login(login));
        let is_one = |aliases: &[Alias]| aliases.iter().any(|alias| self.names.is(alias, login, tags));
        if route.prefix_len() == 0 {
            return is_one(&self.exit_approvers);
        }
        self.route_approvers.iter().any(|(net, aliases)| net.contains(route) && is_one(aliases))
    }
}
