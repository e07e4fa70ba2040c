//! Access rules: `acls` and `grants` in one form.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::alias::{Alias, Names, Place};
use super::document::{Field, Member};
use super::error::{PolicyError, listed, quoted};
use super::service::{Service, check_ports, grant_service, ports, protocol};

/// Most rules in `acls` and in `grants`, each.
const MAX_RULES: usize = 4_000;
/// Most sources, destinations or services of one rule.
pub(super) const MAX_ENTRIES: usize = 5_000;
/// Most application capabilities of one grant, and most arguments of one.
const MAX_CAPS: usize = 100;

/// Application capabilities: name to arguments.
pub(super) type Caps = BTreeMap<String, Vec<serde_json::Value>>;

/// Who may reach what. `acls` and `grants` become the same thing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    /// Who.
    pub sources: Vec<Alias>,
    /// What; with all its services, which for `acls` differ by destination.
    pub targets: Vec<Target>,
    /// Capabilities the sources get on the destinations.
    pub caps: Option<Arc<Caps>>,
    /// Only through routers with one of these tags; empty for any.
    pub via: Vec<Arc<str>>,
    /// The reverse of another rule, made for a capability that needs both directions: it opens nothing.
    pub companion: bool,
}

/// A destination and the traffic it may get.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Target {
    /// What.
    pub alias: Alias,
    /// Protocols and ports; empty where only capabilities are given.
    pub services: Arc<[Service]>,
}

impl Rule {
    /// Whether any destination may get traffic.
    pub(super) fn carries_traffic(&self) -> bool {
        self.targets.iter().any(|target| !target.services.is_empty())
    }
}

/// Reads `acls`.
pub(super) fn acls(field: &Field<'_>, names: &Names, rules: &mut Vec<Rule>) -> Result<(), PolicyError> {
    for entry in field.list(MAX_RULES)? {
        rules.push(acl(&entry, names)?);
    }
    Ok(())
}

fn acl(entry: &Field<'_>, names: &Names) -> Result<Rule, PolicyError> {
    let (mut action, mut source, mut target, mut spoken) = (None, None, None, None);
    for member in entry.object(MAX_CAPS)? {
        match &*member.key {
            "action" => action = Some(member.value),
            "src" => source = Some(member.value),
            "dst" => target = Some(member.value),
            "proto" => spoken = Some(member.value),
            key if key.starts_with('#') => {}
            "srcPosture" => return Err(not_offered(&member, "device postures")),
            "users" | "ports" => {
                return Err(member.key_error(format!("{} is the old form; write `src` and `dst`", quoted(&member.key))));
            }
            _ => return Err(unknown(&member, &["action", "src", "dst", "proto"])),
        }
    }
    let action = action.ok_or_else(|| entry.error("`action` is missing; write `\"action\": \"accept\"`"))?;
    if action.string()? != "accept" {
        let what = format!("action {} does not exist; rules only allow: `accept`", quoted(action.string()?));
        return Err(action.error(what));
    }
    let protocol = match spoken {
        Some(field) if !field.string()?.is_empty() => Some(protocol(&field, field.string()?)?),
        _ => None,
    };
    let sources = sources(entry, source, names)?;
    let mut targets = Vec::new();
    for field in required(entry, target, "dst")?.list(MAX_ENTRIES)? {
        let (alias, ranges) = target_with_ports(&field, names, Place::Target)?;
        check_ports(&field, protocol, &ranges)?;
        own_nodes_fit(&field, &alias, &sources, true)?;
        targets.push(Target { alias, services: ranges.into_iter().map(|ports| Service { protocol, ports }).collect() });
    }
    Ok(Rule { sources, targets, caps: None, via: Vec::new(), companion: false })
}

/// Reads a destination with its ports behind the last colon.
pub(super) fn target_with_ports(
    field: &Field<'_>,
    names: &Names,
    place: Place,
) -> Result<(Alias, Vec<crate::wire::control::PortRange>), PolicyError> {
    let text = field.string()?;
    let Some((name, ports_text)) = text.rsplit_once(':') else {
        return Err(field.error(format!("{} has no ports; write `host:22`, `tag:web:80,443` or `*:*`", quoted(text))));
    };
    let ranges = ports(field, ports_text)?;
    Ok((names.alias(field, name, place)?, ranges))
}

/// Reads `grants`.
pub(super) fn grants(field: &Field<'_>, names: &Names, rules: &mut Vec<Rule>) -> Result<(), PolicyError> {
    for entry in field.list(MAX_RULES)? {
        let rule = grant(&entry, names)?;
        let companions = companions(&rule);
        rules.push(rule);
        rules.extend(companions);
    }
    Ok(())
}

fn grant(entry: &Field<'_>, names: &Names) -> Result<Rule, PolicyError> {
    let (mut source, mut target, mut ip, mut app, mut through) = (None, None, None, None, None);
    for member in entry.object(MAX_CAPS)? {
        match &*member.key {
            "src" => source = Some(member.value),
            "dst" => target = Some(member.value),
            "ip" => ip = Some(member.value),
            "app" => app = Some(member.value),
            "via" => through = Some(member.value),
            key if key.starts_with('#') => {}
            "srcPosture" => return Err(not_offered(&member, "device postures")),
            _ => return Err(unknown(&member, &["src", "dst", "ip", "app", "via"])),
        }
    }
    let sources = sources(entry, source, names)?;
    let mut services = Vec::new();
    for field in ip.map_or_else(|| Ok(Vec::new()), |field| field.list(MAX_ENTRIES))? {
        services.extend(grant_service(&field, field.string()?)?);
    }
    let services: Arc<[Service]> = services.into();
    let caps = app.map(|field| caps(&field)).transpose()?.filter(|caps| !caps.is_empty());
    if services.is_empty() && caps.is_none() {
        return Err(entry.error("the grant gives nothing: `ip` (such as `[\"tcp:443\"]`, `[\"*\"]`) and `app` are both empty"));
    }
    let via = tags(through.as_ref(), names)?;
    let mut targets = Vec::new();
    for field in required(entry, target, "dst")?.list(MAX_ENTRIES)? {
        let alias = names.alias(&field, field.string()?, Place::Target)?;
        own_nodes_fit(&field, &alias, &sources, false)?;
        if !via.is_empty() && !matches!(alias, Alias::Net(_) | Alias::Internet) {
            return Err(field.error("with `via` a destination is a network, a host of `hosts`, or `autogroup:internet`"));
        }
        if caps.is_some() && alias == Alias::Internet {
            return Err(field.error("capabilities (`app`) cannot be given on autogroup:internet"));
        }
        targets.push(Target { alias, services: services.clone() });
    }
    Ok(Rule { sources, targets, caps: caps.map(Arc::new), via, companion: false })
}

fn tags(field: Option<&Field<'_>>, names: &Names) -> Result<Vec<Arc<str>>, PolicyError> {
    let Some(field) = field else { return Ok(Vec::new()) };
    let mut tags = Vec::new();
    for entry in field.list(MAX_ENTRIES)? {
        let text = entry.string()?;
        if !text.starts_with("tag:") {
            return Err(entry.error(format!("{}: `via` takes tags only", quoted(text))));
        }
        tags.push(names.tag(&entry, text)?);
    }
    if tags.is_empty() {
        return Err(field.error("`via` names no tag; leave it out to allow any router"));
    }
    Ok(tags)
}

fn sources(entry: &Field<'_>, field: Option<Field<'_>>, names: &Names) -> Result<Vec<Alias>, PolicyError> {
    let mut sources = Vec::new();
    for field in required(entry, field, "src")?.list(MAX_ENTRIES)? {
        sources.push(names.alias(&field, field.string()?, Place::Source)?);
    }
    sources.sort();
    sources.dedup();
    Ok(sources)
}

fn required<'a>(entry: &Field<'_>, field: Option<Field<'a>>, key: &str) -> Result<Field<'a>, PolicyError> {
    field.ok_or_else(|| entry.error(format!("`{key}` is missing")))
}

/// `autogroup:self` compares owners, so its sources must have some. `acls` may also say `*`.
fn own_nodes_fit(field: &Field<'_>, alias: &Alias, sources: &[Alias], any: bool) -> Result<(), PolicyError> {
    let fits = |source: &Alias| match source {
        Alias::User(_) | Alias::Domain(_) | Alias::Group(_) | Alias::Member => true,
        Alias::Any => any,
        _ => false,
    };
    if *alias == Alias::OwnNodes && !sources.iter().all(fits) {
        let or_any = if any { ", `*`" } else { "" };
        return Err(field.error(format!("autogroup:self needs sources that have owners: users, groups, autogroup:member{or_any}")));
    }
    Ok(())
}

fn caps(field: &Field<'_>) -> Result<Caps, PolicyError> {
    /// What the hosted service lets policies give of its own namespace; the rest is given by the coordinator alone.
    const OWN: [&str; 5] = ["drive", "kubernetes", "relay", "tsidp", "webui"];
    let mut caps = Caps::new();
    for member in field.object(MAX_CAPS)? {
        let name = &*member.key;
        let form = name.split_once('/').is_some_and(|(domain, path)| {
            domain.contains('.') && !path.is_empty() && !name.contains("://") && name.chars().all(|c| c.is_ascii_graphic())
        });
        if !form || name.len() > 200 {
            return Err(member.key_error(format!("capability {} has not the form domain/path", quoted(name))));
        }
        let own = name.strip_prefix("tailscale.com/").map(|path| path.strip_prefix("cap/").unwrap_or_default());
        if own.is_some_and(|name| !OWN.contains(&name)) {
            return Err(member.key_error(format!(
                "capability {} is not given by policies (of tailscale.com/cap/ they may give: {})",
                quoted(name),
                listed(OWN)
            )));
        }
        let arguments = member.value.list(MAX_CAPS)?.iter().map(Field::json).collect::<Result<_, _>>()?;
        caps.insert(name.to_owned(), arguments);
    }
    Ok(caps)
}

/// The rules in the other direction that some capabilities need: who uses a shared drive or a relay is also to be known to its owner.
fn companions(rule: &Rule) -> Vec<Rule> {
    const PAIRS: [(&str, &str); 2] =
        [("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"), ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target")];
    let given = |name: &str| rule.caps.as_ref().is_some_and(|caps| caps.contains_key(name));
    let caps: Caps = PAIRS.into_iter().filter(|(name, _)| given(name)).map(|(_, reverse)| (reverse.to_owned(), Vec::new())).collect();
    if caps.is_empty() || !rule.via.is_empty() {
        return Vec::new();
    }
    let caps = Arc::new(caps);
    let target = |alias: &Alias| {
        let alias = if *alias == Alias::DangerAll { Alias::Any } else { alias.clone() };
        Target { alias, services: Arc::from([]) }
    };
    let make = |mut sources: Vec<Alias>, targets: Vec<Target>| {
        sources.sort();
        sources.dedup();
        Rule { sources, targets, caps: Some(caps.clone()), via: Vec::new(), companion: true }
    };
    let others: Vec<Alias> = rule.targets.iter().map(|target| target.alias.clone()).filter(|alias| *alias != Alias::OwnNodes).collect();
    let mut made = Vec::new();
    if others.len() < rule.targets.len() {
        made.push(make(rule.sources.clone(), vec![target(&Alias::OwnNodes)]));
    }
    if !others.is_empty() {
        made.push(make(others, rule.sources.iter().map(target).collect()));
    }
    made
}

/// An error for a key that does not exist.
pub(super) fn unknown(member: &Member<'_>, allowed: &[&str]) -> PolicyError {
    member.key_error(format!("there is no key {} here (allowed: {})", quoted(&member.key), listed(allowed)))
}

/// An error for a key of the hosted service whose feature does not exist here.
pub(super) fn not_offered(member: &Member<'_>, what: &str) -> PolicyError {
    member.key_error(format!(
        "{}: {what} are a feature of the hosted service that pvemesh does not offer; remove the key",
        quoted(&member.key)
    ))
}
