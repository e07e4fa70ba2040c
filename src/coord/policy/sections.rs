//! The sections of a policy file.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use super::Policy;
use super::alias::{self, Alias, Names, Place};
use super::attribute::{self, Attribute};
use super::document::{Field, Member, with_root};
use super::error::{PolicyError, quoted};
use super::rule::{self, MAX_ENTRIES, not_offered, unknown};
use super::trial;

/// Most groups, hosts, tags or approved prefixes.
const MAX_NAMES: usize = 10_000;

const SECTIONS: [&str; 9] =
    ["groups", "hosts", "tagOwners", "acls", "grants", "nodeAttrs", "autoApprovers", "tests", "randomizeClientPort"];

/// Sections of the hosted service that do not exist here, and what they are.
const ELSEWHERE: [(&str, &str); 10] = [
    ("ssh", "SSH rules"),
    ("sshTests", "tests of SSH rules"),
    ("postures", "device postures"),
    ("defaultSrcPosture", "device postures"),
    ("ipsets", "IP sets"),
    ("derpMap", "relay maps in the policy (relays are set on the coordinator)"),
    ("disableIPv4", "meshes without IPv4"),
    ("OneCGNATRoute", "choices of the clients' route layout"),
    ("extraDNSRecords", "DNS records in the policy (they are set on the coordinator)"),
    ("services", "services"),
];

/// Reads a policy file.
pub(super) fn read(text: &str) -> Result<Policy, PolicyError> {
    with_root(text, |root| {
        let members = root.object(100)?;
        for member in &members {
            if let Some((_, what)) = ELSEWHERE.iter().find(|(key, _)| member.key.eq_ignore_ascii_case(key)) {
                return Err(not_offered(member, what));
            }
            if let Some(right) = SECTIONS.iter().find(|key| member.key.eq_ignore_ascii_case(key) && **key != member.key) {
                return Err(member.key_error(format!("write {} as `{right}`", quoted(&member.key))));
            }
            if !SECTIONS.contains(&&*member.key) {
                return Err(unknown(member, &SECTIONS));
            }
        }
        let section = |key: &str| members.iter().find(|member| member.key == key).map(|member| &member.value);
        policy(section)
    })
}

fn policy<'a, 'f: 'a>(section: impl Fn(&str) -> Option<&'a Field<'f>>) -> Result<Policy, PolicyError> {
    let mut names = Names::default();
    if let Some(field) = section("groups") {
        groups(field, &mut names)?;
    }
    if let Some(field) = section("hosts") {
        hosts(field, &mut names)?;
    }
    if let Some(field) = section("tagOwners") {
        tag_owners(field, &mut names)?;
    }
    let mut policy = Policy { open: section("acls").is_none() && section("grants").is_none(), ..Policy::default() };
    if let Some(field) = section("acls") {
        rule::acls(field, &names, &mut policy.rules)?;
    }
    if let Some(field) = section("grants") {
        rule::grants(field, &names, &mut policy.rules)?;
    }
    if let Some(field) = section("nodeAttrs") {
        policy.attributes = attribute::read(field, &names)?;
    }
    if let Some(field) = section("randomizeClientPort")
        && field.boolean()?
    {
        policy.attributes.push(Attribute::everywhere("randomize-client-port"));
    }
    if let Some(field) = section("autoApprovers") {
        approvers(field, &names, &mut policy)?;
    }
    if let Some(field) = section("tests") {
        policy.trials = trial::read(field, &names)?;
    }
    policy.names = names;
    Ok(policy)
}

fn groups(field: &Field<'_>, names: &mut Names) -> Result<(), PolicyError> {
    for member in field.object(MAX_NAMES)? {
        let name = name(&member, "group:", "a group")?;
        let mut users = BTreeSet::new();
        for entry in member.value.list(MAX_ENTRIES)? {
            let text = entry.string()?;
            if !text.contains('@') || text.starts_with("group:") || text.starts_with("tag:") || text.starts_with("autogroup:") {
                return Err(entry.error(format!("{}: a group's members are users only, such as `alice@`", quoted(text))));
            }
            users.insert(alias::user(&entry, text)?);
        }
        names.groups.insert(name, users);
    }
    Ok(())
}

fn hosts(field: &Field<'_>, names: &mut Names) -> Result<(), PolicyError> {
    for member in field.object(MAX_NAMES)? {
        let name = name(&member, "", "a host")?;
        if alias::net(&name).is_some() {
            return Err(member.key_error(format!("{} is an address; the name of a host must not look like one", quoted(&name))));
        }
        let text = member.value.string()?;
        let net = alias::net(text).unwrap_or_else(|| Err(format!("{} is not an address or network", quoted(text))));
        names.hosts.insert(name, net.map_err(|what| member.value.error(what))?);
    }
    Ok(())
}

fn tag_owners(field: &Field<'_>, names: &mut Names) -> Result<(), PolicyError> {
    let members = field.object(MAX_NAMES)?;
    // Tags may own tags, also those that stand further down.
    for member in &members {
        names.tags.insert(name(member, "tag:", "a tag")?, Vec::new());
    }
    let mut owners: Vec<(Arc<str>, Vec<Alias>)> = Vec::new();
    for member in &members {
        let mut list = Vec::new();
        for entry in member.value.list(MAX_ENTRIES)? {
            list.push(names.alias(&entry, entry.string()?, Place::Owner)?);
        }
        owners.push((Arc::from(&*member.key), list));
    }
    names.tags.extend(owners);
    Ok(())
}

fn name(member: &Member<'_>, prefix: &str, what: &str) -> Result<Arc<str>, PolicyError> {
    alias::defined_name(&member.key, prefix).ok_or_else(|| {
        let letter = if prefix == "tag:" { ", the first a letter" } else { "" };
        member.key_error(format!(
            "{} is not the name of {what}; write `{prefix}name`, of letters, digits, `-`, `_` and `.`{letter}, at most 100",
            quoted(&member.key)
        ))
    })
}

fn approvers(field: &Field<'_>, names: &Names, policy: &mut Policy) -> Result<(), PolicyError> {
    let aliases = |field: &Field<'_>| -> Result<Vec<Alias>, PolicyError> {
        field.list(MAX_ENTRIES)?.iter().map(|entry| names.alias(entry, entry.string()?, Place::Approver)).collect()
    };
    for member in field.object(100)? {
        match &*member.key {
            "routes" => {
                for route in member.value.object(MAX_NAMES)? {
                    let net = alias::net(&route.key).unwrap_or_else(|| Err(format!("{} is not a network", quoted(&route.key))));
                    let net: IpNet = net.map_err(|what| route.key_error(what))?;
                    policy.route_approvers.push((net, aliases(&route.value)?));
                }
            }
            "exitNode" => policy.exit_approvers = aliases(&member.value)?,
            "services" => return Err(not_offered(&member, "services")),
            _ => return Err(unknown(&member, &["routes", "exitNode"])),
        }
    }
    Ok(())
}
