//! Aliases: the names by which a policy speaks of nodes, users and networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::document::Field;
use super::error::{PolicyError, listed, quoted};

/// What an alias stands for. Literal networks stand for themselves only: an IPv4 address does not bring its node's IPv6 address along.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Alias {
    /// `*`.
    Any,
    /// `autogroup:danger-all`: any address at all.
    DangerAll,
    /// `autogroup:member`: nodes without tags.
    Member,
    /// `autogroup:tagged`: nodes with tags.
    Tagged,
    /// `autogroup:self`: the nodes without tags of whoever asks.
    OwnNodes,
    /// `autogroup:internet`: what is reached through an exit node.
    Internet,
    /// The nodes without tags of a user.
    User(Arc<str>),
    /// `user:*@domain`: the nodes without tags of the users of a domain.
    Domain(Arc<str>),
    /// The nodes without tags of a group's users.
    Group(Arc<str>),
    /// The nodes with a tag.
    Tag(Arc<str>),
    /// An address or network, written out or by a name of `hosts`.
    Net(IpNet),
}

/// Where an alias stands, which decides what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// `src` of a rule.
    Source,
    /// `dst` of a rule.
    Target,
    /// `target` of a node attribute.
    Attribute,
    /// Members of `autoApprovers`.
    Approver,
    /// Members of `tagOwners`.
    Owner,
    /// `src`, `accept` and `deny` of a test.
    Test,
}

/// The names that a policy defines.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Names {
    /// Logins by group.
    pub groups: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Networks by host name.
    pub hosts: BTreeMap<Arc<str>, IpNet>,
    /// Owners by tag.
    pub tags: BTreeMap<Arc<str>, Vec<Alias>>,
}

/// Automatic groups of the hosted service that depend on roles and sharing, which do not exist here.
const ROLES: [&str; 8] = ["admin", "auditor", "billing-admin", "it-admin", "network-admin", "owner", "shared", "nonroot"];

impl Place {
    fn autogroups(self) -> &'static [(&'static str, Alias)] {
        const MEMBER: (&str, Alias) = ("autogroup:member", Alias::Member);
        const TAGGED: (&str, Alias) = ("autogroup:tagged", Alias::Tagged);
        const OWN: (&str, Alias) = ("autogroup:self", Alias::OwnNodes);
        const INTERNET: (&str, Alias) = ("autogroup:internet", Alias::Internet);
        match self {
            Self::Source => &[MEMBER, TAGGED, ("autogroup:danger-all", Alias::DangerAll)],
            Self::Target => &[MEMBER, TAGGED, OWN, INTERNET],
            Self::Attribute | Self::Approver | Self::Test => &[MEMBER, TAGGED],
            Self::Owner => &[MEMBER],
        }
    }

    fn takes_nets(self) -> bool {
        !matches!(self, Self::Approver | Self::Owner)
    }

    fn takes_any(self) -> bool {
        matches!(self, Self::Source | Self::Target | Self::Attribute)
    }
}

/// A login as it is compared: local users are written `name@` in policies and `name` elsewhere.
pub(super) fn login(text: &str) -> &str {
    text.strip_suffix('@').unwrap_or(text)
}

/// The domain of a login; local users have none.
pub(super) fn domain_of(login: &str) -> Option<&str> {
    login.split_once('@').map(|(_, domain)| domain).filter(|domain| !domain.is_empty())
}

impl Names {
    /// Reads an alias.
    pub(super) fn alias(&self, field: &Field<'_>, text: &str, place: Place) -> Result<Alias, PolicyError> {
        if text == "*" {
            return if place.takes_any() { Ok(Alias::Any) } else { Err(field.error("`*` cannot stand here")) };
        }
        if text.starts_with("autogroup:") {
            return autogroup(field, text, place);
        }
        if text.starts_with("group:") {
            let defined = self.groups.get_key_value(text);
            return defined.map(|(name, _)| Alias::Group(name.clone())).ok_or_else(|| {
                field.error(format!("group {} is not in `groups` (defined: {})", quoted(text), listed(self.groups.keys())))
            });
        }
        if text.starts_with("tag:") {
            return self.tag(field, text).map(Alias::Tag);
        }
        for (prefix, what) in [("svc:", "services"), ("ipset:", "IP sets"), ("posture:", "device postures")] {
            if text.starts_with(prefix) {
                return Err(
                    field.error(format!("{}: {what} are a feature of the hosted service that pvemesh does not offer", quoted(text)))
                );
            }
        }
        if let Some(pattern) = text.strip_prefix("user:") {
            let domain = pattern.strip_prefix("*@").filter(|domain| !domain.is_empty() && !domain.contains(['*', '@', ' ']));
            let wrong = || field.error(format!("{}: a pattern of users is `user:*@example.com`", quoted(text)));
            return domain.map(|domain| Alias::Domain(domain.into())).ok_or_else(wrong);
        }
        if text.contains('@') {
            return user(field, text).map(Alias::User);
        }
        if let Some(net) = self.hosts.get(text) {
            return literal(field, *net, place);
        }
        if let Some(parsed) = net(text) {
            return literal(field, parsed.map_err(|what| field.error(what))?, place);
        }
        Err(field.error(format!(
            "{} is neither a name in `hosts` (defined: {}) nor an address, and users are written with an @ (`alice@`)",
            quoted(text),
            listed(self.hosts.keys())
        )))
    }

    /// Whether an alias stands for the nodes of an owner (`None`: a node with tags).
    pub(super) fn owned_by(&self, alias: &Alias, owner: Option<&str>) -> bool {
        let Some(owner) = owner else { return false };
        match alias {
            Alias::Member => true,
            Alias::User(user) => **user == *owner,
            Alias::Domain(domain) => domain_of(owner) == Some(domain),
            Alias::Group(group) => self.groups.get(group).is_some_and(|users| users.contains(owner)),
            _ => false,
        }
    }

    /// Whether an alias stands for a node by its identity: owner (`None` with tags) and tags. Addresses are not looked at.
    pub(super) fn is(&self, alias: &Alias, owner: Option<&str>, tags: &[String]) -> bool {
        match alias {
            Alias::Tagged => !tags.is_empty(),
            Alias::Tag(tag) => tags.iter().any(|own| **own == **tag),
            alias => self.owned_by(alias, owner),
        }
    }

    /// Reads a tag that `tagOwners` defines.
    pub(super) fn tag(&self, field: &Field<'_>, text: &str) -> Result<Arc<str>, PolicyError> {
        let defined = self.tags.get_key_value(text).map(|(name, _)| name.clone());
        defined.ok_or_else(|| field.error(format!("tag {} is not in `tagOwners` (defined: {})", quoted(text), listed(self.tags.keys()))))
    }
}

fn literal(field: &Field<'_>, net: IpNet, place: Place) -> Result<Alias, PolicyError> {
    if !place.takes_nets() {
        return Err(field.error("a host or address cannot stand here"));
    }
    if place == Place::Target && net.prefix_len() == 0 {
        return Err(field.error(format!("{net} cannot be a destination: write `*` for everything, or `autogroup:internet`")));
    }
    Ok(Alias::Net(net))
}

fn autogroup(field: &Field<'_>, text: &str, place: Place) -> Result<Alias, PolicyError> {
    let allowed = place.autogroups();
    if let Some((_, alias)) = allowed.iter().find(|(name, _)| *name == text) {
        return Ok(alias.clone());
    }
    let names = listed(allowed.iter().map(|(name, _)| name));
    let known = ["member", "tagged", "self", "internet", "danger-all"];
    let name = text.strip_prefix("autogroup:").unwrap_or_default();
    Err(field.error(if known.contains(&name) {
        format!("{} cannot stand here (allowed: {names})", quoted(text))
    } else if ROLES.contains(&name) {
        format!("{}: pvemesh has no roles and no sharing, so this group does not exist (allowed: {names})", quoted(text))
    } else {
        format!("there is no {} (allowed: {names})", quoted(text))
    }))
}

/// Reads a user: `alice@` or `alice@example.com`. Whether the user exists is not asked: it may be made later.
pub(super) fn user(field: &Field<'_>, text: &str) -> Result<Arc<str>, PolicyError> {
    let mut parts = text.split('@');
    let (local, domain) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == ':';
    if local.is_empty() || parts.next().is_some() || local == "*" || text.chars().any(bad) || domain.starts_with('.') {
        return Err(field.error(format!("{} is not a user; write `alice@` or `alice@example.com`", quoted(text))));
    }
    Ok(login(text).into())
}

/// Reads an address or network; `None` if the text is neither, an error if it is one with a fault.
pub(super) fn net(text: &str) -> Option<Result<IpNet, String>> {
    let text = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(IpNet::from(address)));
    }
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length = length.parse::<u8>().ok().filter(|length| digits && *length <= most);
    let Some(net) = length.and_then(|length| IpNet::new(address, length).ok()) else {
        return Some(Err(format!("{}: the length of a network of this family is 0 to {most}", quoted(text))));
    };
    if net.trunc() != net {
        // Clients drop entries with host bits, so that the rule would silently not hold.
        return Some(Err(format!("{} has bits set behind its prefix; write {}", quoted(text), net.trunc())));
    }
    Some(Ok(net))
}

/// The name of a group, tag or host: its prefix and something printable behind it.
pub(super) fn defined_name(text: &str, prefix: &str) -> Option<Arc<str>> {
    let name = text.strip_prefix(prefix)?;
    let starts = prefix != "tag:" || name.starts_with(|c: char| c.is_ascii_alphabetic());
    let chars = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.') || (c == '@' && prefix == "group:"));
    (!name.is_empty() && name.chars().count() <= 100 && starts && chars).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_24_a_network_with_host_bits_is_refused_and_the_right_one_named() {
        assert!(net("10.0.0.1/8").unwrap().unwrap_err().contains("10.0.0.0/8"));
        assert!(net("fd00::1/64").unwrap().is_err());
    }

    #[test]
    fn addresses_and_networks_are_told_from_names() {
        assert_eq!(net("10.0.0.1").unwrap().unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(net("[fd00::]/64"), None);
        assert_eq!(net("[fd00::1]").unwrap().unwrap().to_string(), "fd00::1/128");
        assert!(net("10.0.0.0/33").unwrap().is_err() && net("10.0.0.0/08").unwrap().is_err() && net("10.0.0.0/").unwrap().is_err());
        assert_eq!(net("webserver"), None);
        assert_eq!(net("10.0.0"), None);
    }

    #[test]
    fn names_have_a_form() {
        for (text, prefix, good) in [
            ("tag:web-1", "tag:", true),
            ("tag:1web", "tag:", false),
            ("tag:", "tag:", false),
            ("group:dev.ops", "group:", true),
            ("group:a b", "group:", false),
            ("groups:x", "group:", false),
        ] {
            assert_eq!(defined_name(text, prefix).is_some(), good, "{text}");
        }
    }
}
