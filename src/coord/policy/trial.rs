//! The `tests` section: what a policy promises about itself.
//!
//! A test speaks of users, tags and addresses, not of the nodes there are: it comes out the same before the first node has joined. Only an
//! address is looked up, because rules may name its node by owner or tag.

use std::net::IpAddr;

use ipnet::IpNet;

use super::alias::{Alias, Names, Place};
use super::compiled::Compiled;
use super::document::Field;
use super::error::{PolicyError, quoted};
use super::filter::{INTERNET, MESH};
use super::ranges::AddressSet;
use super::rule::{MAX_ENTRIES, Rule, not_offered, target_with_ports, unknown};
use super::service::protocol;

/// Most tests.
const MAX_TESTS: usize = 1_000;
/// TCP and UDP: what a test without a protocol is about.
const TCP_UDP: [u8; 2] = [6, 17];

/// A test of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trial {
    source: Alias,
    source_text: String,
    protocol: Option<u8>,
    expected: Vec<Expected>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    text: String,
    target: Alias,
    port: u16,
    allowed: bool,
}

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tests[{test}]: {from} to {to} should be {}, but is {}", said(*.wanted), said(!.wanted))]
pub struct TestFailure {
    /// Which test, from 0.
    pub test: usize,
    /// Who, as written; escaped and bounded.
    pub from: String,
    /// What, with its port, as written; escaped and bounded.
    pub to: String,
    /// Whether the test wants it allowed.
    pub wanted: bool,
}

fn said(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// Reads `tests`.
pub(super) fn read(field: &Field<'_>, names: &Names) -> Result<Vec<Trial>, PolicyError> {
    field.list(MAX_TESTS)?.iter().map(|entry| one(entry, names)).collect()
}

fn one(entry: &Field<'_>, names: &Names) -> Result<Trial, PolicyError> {
    let (mut source, mut spoken) = (None, None);
    let mut expected = Vec::new();
    for member in entry.object(100)? {
        match &*member.key {
            "src" => source = Some(member.value),
            "proto" => spoken = Some(member.value),
            "accept" | "deny" => {
                for field in member.value.list(MAX_ENTRIES)? {
                    expected.push(expectation(&field, names, member.key == "accept")?);
                }
            }
            "srcPostureAttrs" => return Err(not_offered(&member, "device postures")),
            key if key.starts_with('#') => {}
            _ => return Err(unknown(&member, &["src", "proto", "accept", "deny"])),
        }
    }
    let source = source.ok_or_else(|| entry.error("`src` is missing"))?;
    if expected.is_empty() {
        return Err(entry.error("the test expects nothing: `accept` and `deny` are both empty"));
    }
    let protocol = match spoken {
        Some(field) if !field.string()?.is_empty() => Some(protocol(&field, field.string()?)?),
        _ => None,
    };
    let text = source.string()?;
    let alias = names.alias(&source, text, Place::Test)?;
    one_address(&source, &alias, text)?;
    Ok(Trial { source: alias, source_text: quoted(text), protocol, expected })
}

fn expectation(field: &Field<'_>, names: &Names, allowed: bool) -> Result<Expected, PolicyError> {
    let (target, ports) = target_with_ports(field, names, Place::Test)?;
    let text = field.string()?;
    one_address(field, &target, text)?;
    let port = match ports.as_slice() {
        [one] if one.first == one.last => one.first,
        _ => return Err(field.error("a test names one port, such as `tag:web:443`")),
    };
    Ok(Expected { text: quoted(text), target, port, allowed })
}

fn one_address(field: &Field<'_>, alias: &Alias, text: &str) -> Result<(), PolicyError> {
    match alias {
        Alias::Net(net) if net.prefix_len() != net.max_prefix_len() || text.contains('/') => {
            Err(field.error(format!("{} is a network; a test names one address of it", quoted(text))))
        }
        _ => Ok(()),
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Default)]
struct End {
    owner: Option<String>,
    tags: Vec<String>,
    address: Option<IpAddr>,
}

impl Compiled {
    /// Runs the policy's own tests.
    ///
    /// # Errors
    /// The tests that failed.
    pub fn run_tests(&self) -> Result<(), Vec<TestFailure>> {
        let mut failures = Vec::new();
        for (test, trial) in self.policy.trials.iter().enumerate() {
            let sources = self.ends(&trial.source);
            for expected in &trial.expected {
                let targets = self.ends(&expected.target);
                let mut pairs = sources.iter().flat_map(|from| targets.iter().map(move |to| (from, to)));
                let allowed = |(from, to): (&End, &End)| self.allows(from, to, trial.protocol, expected.port);
                let holds =
                    if expected.allowed { !sources.is_empty() && !targets.is_empty() && pairs.all(allowed) } else { !pairs.any(allowed) };
                if !holds {
                    failures.push(TestFailure {
                        test,
                        from: trial.source_text.clone(),
                        to: expected.text.clone(),
                        wanted: expected.allowed,
                    });
                }
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }

    /// What an alias of a test stands for.
    fn ends(&self, alias: &Alias) -> Vec<End> {
        let owner = |login: &str| End { owner: Some(login.to_owned()), ..End::default() };
        let tagged = |tag: &str| End { tags: vec![tag.to_owned()], ..End::default() };
        let names = &self.policy.names;
        match alias {
            Alias::User(login) => vec![owner(login)],
            // Those the policy names, and one it does not: no login has an empty name.
            Alias::Domain(domain) => {
                let named = self.policy.logins().into_iter().filter(|login| names.owned_by(alias, Some(login))).map(owner);
                named.chain([owner(&format!("@{domain}"))]).collect()
            }
            Alias::Group(group) => names.groups.get(group).into_iter().flatten().map(|login| owner(login)).collect(),
            Alias::Tag(tag) => vec![tagged(tag)],
            // Likewise.
            Alias::Member => self.policy.logins().into_iter().chain([""]).map(owner).collect(),
            Alias::Tagged => names.tags.keys().map(|tag| tagged(tag)).collect(),
            Alias::Net(net) => vec![self.end_at(net)],
            _ => Vec::new(),
        }
    }

    fn end_at(&self, net: &IpNet) -> End {
        let address = net.addr();
        let holder = self.members.values().find(|member| address == member.subject.v4 || address == member.subject.v6);
        holder.map_or_else(
            || End { address: Some(address), ..End::default() },
            |member| End { owner: member.owner.as_deref().map(str::to_owned), tags: member.subject.tags.clone(), address: Some(address) },
        )
    }

    fn allows(&self, from: &End, to: &End, protocol: Option<u8>, port: u16) -> bool {
        let covered = |rule: &Rule| {
            rule.targets.iter().filter(|target| self.is_target(&target.alias, from, to)).any(|target| {
                let spoken = protocol.as_ref().map_or(&TCP_UDP[..], std::slice::from_ref);
                target.services.iter().any(|service| spoken.iter().any(|protocol| service.covers(*protocol, port)))
            })
        };
        let from_source = |rule: &Rule| rule.sources.iter().any(|alias| self.is_source(alias, from));
        self.policy.open || self.policy.rules.iter().any(|rule| from_source(rule) && covered(rule))
    }

    fn is_source(&self, alias: &Alias, end: &End) -> bool {
        match (alias, end.address) {
            (Alias::DangerAll, _) | (Alias::Any, None) => true,
            (Alias::Any, Some(address)) => {
                AddressSet::of(MESH.iter().copied()).contains(address) || self.routers.keys().any(|net| net.contains(&address))
            }
            (Alias::Net(net), address) => address.is_some_and(|address| net.contains(&address)),
            _ => self.policy.names.is(alias, end.owner.as_deref(), &end.tags),
        }
    }

    fn is_target(&self, alias: &Alias, from: &End, to: &End) -> bool {
        match alias {
            Alias::Any => true,
            Alias::Net(net) => to.address.is_some_and(|address| net.contains(&address)),
            Alias::Internet => to.address.is_some_and(|address| INTERNET.contains(address)),
            Alias::OwnNodes => from.owner.is_some() && from.owner == to.owner,
            _ => self.policy.names.is(alias, to.owner.as_deref(), &to.tags),
        }
    }
}
