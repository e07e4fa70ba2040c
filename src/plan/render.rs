//! What is put into and written about a guest, rendered from `templates/`.
//!
//! Every template lists its variables in its first line. A variable that is used but not given, given but not listed, or listed but
//! not used is an error, so that a template and the values it gets cannot drift apart. Templates substitute and leave out what is
//! absent; they decide nothing. Every value is quoted as TOML (or as Markdown code) before it gets there, and what was rendered is
//! parsed again and compared with what was asked for.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::Serialize;
use tera::{Context, Tera};

use super::guest::{LOG, SETTINGS, Service};
use crate::ident::{NodeName, Vmid};
use crate::settings::{self, Guest};

const GUEST: &str = include_str!("../../templates/guest.toml");
const NODE: &str = include_str!("../../templates/node.toml");
const COORDINATOR: &str = include_str!("../../templates/coordinator.toml");
const RELAY: &str = include_str!("../../templates/relay.toml");
const NOTES: &str = include_str!("../../templates/notes.md");
const ENROLLED: &str = include_str!("../../templates/enrolled.md");
const SYSTEMD: &str = include_str!("../../templates/services/systemd.service");
const OPENRC: &str = include_str!("../../templates/services/openrc");
const RUNIT: &str = include_str!("../../templates/services/runit");
const SYSV: &str = include_str!("../../templates/services/sysv");

/// The bytes Proxmox takes as a guest's Notes (`description`, pve-container's schema).
pub const MAX_NOTES: usize = 8192;
/// Bytes left for addresses, the mark, and what people write themselves.
const ROOM_FOR_MORE: usize = 2048;

/// Why a template was not rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The first line of a template is not its list of variables.
    #[error("template {0}: the first line must list the variables")]
    Header(&'static str),
    /// The variables a template lists are not those it is given.
    #[error("template {template}: lists and values differ in `{names}`")]
    Variables {
        /// The template's file name.
        template: &'static str,
        /// The variables that stand on one side only.
        names: String,
    },
    /// A listed variable occurs nowhere, or another one does.
    #[error("template {template}: list and text differ in `{names}`")]
    Unused {
        /// The template's file name.
        template: &'static str,
        /// The variables that stand on one side only.
        names: String,
    },
    /// The template itself is wrong.
    #[error("template {template}: {reason}")]
    Template {
        /// The template's file name.
        template: &'static str,
        /// What the template engine says.
        reason: String,
    },
    /// A value cannot be written into a guest's configuration.
    #[error("setting `{0}` cannot be written as TOML")]
    Value(&'static str),
    /// What was rendered does not read back as what was asked for.
    #[error("the rendered configuration does not read back as the wanted one: {0}")]
    ReadBack(String),
    /// The text is longer than Proxmox takes.
    #[error("the notes have {0} bytes, Proxmox takes {MAX_NOTES}")]
    TooLong(usize),
}

/// What stands in a guest's Notes in the Proxmox panel. No secret may be in it: Notes are readable with `VM.Audit` and travel with backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes {
    /// The guest.
    pub vmid: Vmid,
    /// Its name in the mesh.
    pub name: NodeName,
    /// What it is, in words: `exit node`, `coordinator`.
    pub role: String,
    /// The URL of its coordinator.
    pub coordinator: String,
    /// The networks it offers to carry; both default routes stand for "the internet".
    pub offers: Vec<IpNet>,
    /// The pvemesh version that made it.
    pub version: String,
    /// What it was told, as [`told`](super::told) keeps it.
    pub told: Option<String>,
}

impl Notes {
    /// The notes of a guest that was told this.
    pub fn of(guest: &Guest, role: &str, version: &str) -> Self {
        let (mut coordinator, mut offers) = (String::new(), Vec::new());
        if let Some(relay) = &guest.relay {
            relay.verify_url.trim_end_matches("/verify").clone_into(&mut coordinator);
        }
        if let Some(node) = &guest.node {
            coordinator.clone_from(&node.login_server);
            if node.advertise_exit_node {
                offers.extend([IpNet::from(ipnet::Ipv4Net::default()), IpNet::from(ipnet::Ipv6Net::default())]);
            }
            offers.extend(&node.advertise_routes);
        }
        if let Some(own) = &guest.coordinator {
            coordinator.clone_from(&own.url);
        }
        Self {
            vmid: guest.vmid,
            name: guest.hostname.clone(),
            role: role.to_owned(),
            coordinator,
            offers,
            version: version.to_owned(),
            told: super::told::comment(guest),
        }
    }
}

/// Renders a guest's configuration as TOML. It may hold the join key, so it goes only where the guest's secrets go.
///
/// # Errors
///
/// When a template and its variables differ, or the result does not read back as `guest`.
pub fn guest(guest: &Guest) -> Result<String, RenderError> {
    let mut text = render("guest.toml", GUEST, &guest_values(guest)?)?;
    if let Some(node) = &guest.node {
        text.push('\n');
        text.push_str(&render("node.toml", NODE, &node_values(node)?)?);
    }
    if let Some(coordinator) = &guest.coordinator {
        text.push('\n');
        text.push_str(&render("coordinator.toml", COORDINATOR, &coordinator_values(coordinator)?)?);
    }
    if let Some(relay) = &guest.relay {
        text.push('\n');
        text.push_str(&render("relay.toml", RELAY, &relay_values(relay)?)?);
    }
    let read = Guest::from_toml(&text).map_err(|error| RenderError::ReadBack(error.to_string()))?;
    if read == *guest { Ok(text) } else { Err(RenderError::ReadBack("a value changed".to_owned())) }
}

/// Renders a guest's Notes as Markdown.
///
/// # Errors
///
/// When the template and its variables differ, or the text is longer than [`MAX_NOTES`].
pub fn notes(notes: &Notes) -> Result<String, RenderError> {
    noted("notes.md", NOTES, notes)
}

/// Renders our part of the Notes of a container that is somebody else's.
///
/// # Errors
///
/// As [`notes`].
pub fn enrolled(notes: &Notes) -> Result<String, RenderError> {
    noted("enrolled.md", ENROLLED, notes)
}

/// Renders the file that describes the node's service to a service manager; nothing for our own init.
///
/// # Errors
///
/// When the template and its variables differ.
pub fn service(service: Service, program: &str) -> Result<Option<String>, RenderError> {
    let file = service.file().map_or("", |(path, _)| path);
    let value = |name, text: &str| (name, text.to_owned());
    let (program, settings, log) = (value("program", program), value("settings", SETTINGS), value("log", LOG));
    let rendered = match service {
        Service::Appliance => return Ok(None),
        Service::Systemd => render("services/systemd.service", SYSTEMD, &[program, settings]),
        Service::Openrc => render("services/openrc", OPENRC, &[program, settings, log]),
        Service::Runit => render("services/runit", RUNIT, &[program, settings, log]),
        Service::Sysv | Service::Rcs => render("services/sysv", SYSV, &[program, settings, log, value("file", file)]),
    };
    rendered.map(Some)
}

fn noted(name: &'static str, template: &'static str, notes: &Notes) -> Result<String, RenderError> {
    let internet = notes.offers.iter().any(|net| net.prefix_len() == 0);
    let mut offers: Vec<String> = notes.offers.iter().filter(|net| net.prefix_len() > 0).map(|net| code(&net.to_string())).collect();
    if internet {
        offers.insert(0, "the internet".to_owned());
    }
    let values = [
        ("role", plain(&notes.role)),
        ("name", notes.name.to_string()),
        ("vmid", notes.vmid.to_string()),
        ("coordinator", code(&notes.coordinator)),
        ("offers", if offers.is_empty() { "nothing".to_owned() } else { offers.join(", ") }),
        ("version", plain(&notes.version)),
    ];
    let mut text = render(name, template, &values)?;
    // Without it a later change cannot be told from what was asked for first; the notes are of use all the same.
    if let Some(told) = notes.told.as_ref().filter(|told| text.len() + told.len() + ROOM_FOR_MORE <= MAX_NOTES) {
        text.push('\n');
        text.push_str(told);
        text.push('\n');
    }
    if text.len() > MAX_NOTES { Err(RenderError::TooLong(text.len())) } else { Ok(text) }
}

type Values = Vec<(&'static str, String)>;

fn guest_values(guest: &Guest) -> Result<Values, RenderError> {
    let network = &guest.network;
    Ok(vec![
        literal("vmid", &guest.vmid)?,
        literal("hostname", &guest.hostname)?,
        literal("interface", &network.interface)?,
        literal("ipv4", &network.ipv4)?,
        optional("gateway4", network.gateway4.as_ref())?,
        literal("ipv6", &network.ipv6)?,
        optional("gateway6", network.gateway6.as_ref())?,
        literal("nameservers", &network.nameservers)?,
    ])
}

fn node_values(node: &settings::Node) -> Result<Values, RenderError> {
    Ok(vec![
        literal("login_server", &node.login_server)?,
        optional("server_key", node.server_key.as_ref())?,
        optional("auth_key", node.auth_key.as_ref())?,
        literal("port", &node.port)?,
        literal("endpoints", &node.endpoints)?,
        literal("advertise_exit_node", &node.advertise_exit_node)?,
        literal("advertise_routes", &node.advertise_routes)?,
        literal("accept_routes", &node.accept_routes)?,
        optional("accept_dns", (!node.accept_dns).then_some(&false))?,
        optional("snat_subnet_routes", (!node.snat_subnet_routes).then_some(&false))?,
        optional("userspace", node.userspace.then_some(&true))?,
        optional("lan_gateway", node.lan_gateway.then_some(&true))?,
    ])
}

fn coordinator_values(coordinator: &settings::Coordinator) -> Result<Values, RenderError> {
    Ok(vec![
        literal("url", &coordinator.url)?,
        literal("listen", &coordinator.listen)?,
        literal("admin_keys", &coordinator.admin_keys)?,
        literal("base_domain", &coordinator.base_domain)?,
        optional("front", (coordinator.front != settings::Front::default()).then_some(&coordinator.front))?,
        optional("relay", (coordinator.relay != settings::EmbeddedRelay::default()).then_some(&coordinator.relay))?,
    ])
}

fn relay_values(relay: &settings::Relay) -> Result<Values, RenderError> {
    Ok(vec![
        literal("hostname", &relay.hostname)?,
        literal("verify_url", &relay.verify_url)?,
        literal("listen", &relay.listen)?,
        literal("stun", &relay.stun)?,
    ])
}

/// A value as it stands in TOML, quoted and escaped.
fn literal(name: &'static str, value: &impl Serialize) -> Result<(&'static str, String), RenderError> {
    let value = toml::Value::try_from(value).map_err(|_| RenderError::Value(name))?;
    Ok((name, value.to_string()))
}

/// An optional value; the empty text is what a template's `if` takes as absent.
fn optional(name: &'static str, value: Option<&impl Serialize>) -> Result<(&'static str, String), RenderError> {
    value.map_or(Ok((name, String::new())), |value| literal(name, value))
}

/// A text as Markdown code: nothing in it is markup. Control characters and back-ticks, which would end it, and the bar, which would
/// end a table's cell, are left out.
fn code(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !c.is_control() && !matches!(c, '`' | '|')).collect();
    format!("`{kept}`")
}

/// A text of letters, digits and harmless punctuation.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '.' | '-' | '+' | ',')).collect()
}

fn render(name: &'static str, template: &str, values: &[(&'static str, String)]) -> Result<String, RenderError> {
    let listed = listed_variables(name, template)?;
    let given: BTreeSet<&str> = values.iter().map(|(name, _)| *name).collect();
    if let Some(names) = difference(&listed, &given) {
        return Err(RenderError::Variables { template: name, names });
    }
    if let Some(names) = difference(&listed, &used_variables(template)) {
        return Err(RenderError::Unused { template: name, names });
    }
    let mut context = Context::new();
    for (name, value) in values {
        context.insert(*name, value);
    }
    // The engine's own escaping is for HTML; every value is already quoted for where it goes.
    let (_, body) = template.split_once('\n').unwrap_or_default();
    Tera::one_off(body, &context, false).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        RenderError::Template { template: name, reason: cause }
    })
}

fn difference(one: &BTreeSet<&str>, other: &BTreeSet<&str>) -> Option<String> {
    let names: Vec<&str> = one.symmetric_difference(other).copied().collect();
    (!names.is_empty()).then(|| names.join(" "))
}

fn listed_variables<'t>(name: &'static str, template: &'t str) -> Result<BTreeSet<&'t str>, RenderError> {
    let first = template.lines().next().unwrap_or_default();
    let list = first.strip_prefix("{# variables:").and_then(|rest| rest.strip_suffix("#}"));
    list.map(|list| list.split_whitespace().collect()).ok_or(RenderError::Header(name))
}

/// The names in `{{ name }}` and `{% if name %}`; other statements give their words too, which are then in no list and so refused.
fn used_variables(template: &str) -> BTreeSet<&str> {
    let mut used = BTreeSet::new();
    for (open, close) in [("{{", "}}"), ("{%", "%}")] {
        for part in template.split(open).skip(1) {
            let inside = part.split(close).next().unwrap_or_default();
            used.extend(inside.split_whitespace().filter(|word| !matches!(*word, "if" | "endif")));
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "{# variables: a b #}\n";

    fn values(names: &[&'static str]) -> Values {
        names.iter().map(|name| (*name, format!("<{name}>"))).collect()
    }

    #[test]
    fn unknown_unused_and_unlisted_variables_are_errors() {
        let text = |body: &str| format!("{LIST}{body}");
        assert_eq!(render("t", &text("{{ a }}{{ b }}"), &values(&["a", "b"])).unwrap(), "<a><b>");
        let error = |body: &str, given: &[&'static str]| render("t", &text(body), &values(given)).unwrap_err().to_string();
        assert_eq!(error("{{ a }}{{ b }}", &["a"]), "template t: lists and values differ in `b`");
        assert_eq!(error("{{ a }}{{ b }}", &["a", "b", "c"]), "template t: lists and values differ in `c`");
        assert_eq!(error("{{ a }}", &["a", "b"]), "template t: list and text differ in `b`");
        assert_eq!(error("{{ a }}{{ b }}{{ c }}", &["a", "b"]), "template t: list and text differ in `c`");
        assert_eq!(error("{{ a }}{% if b %}{{ c }}{% endif %}", &["a", "b"]), "template t: list and text differ in `c`");
        assert!(matches!(render("t", "{{ a }}", &values(&["a"])), Err(RenderError::Header("t"))));
        assert!(matches!(render("t", &text("{{ a }}{{ b }}{% if a %}"), &values(&["a", "b"])), Err(RenderError::Template { .. })));
    }

    #[test]
    fn a_value_is_never_read_as_a_template() {
        let given = vec![("a", "{{ b }}".to_owned()), ("b", "secret".to_owned())];
        assert_eq!(render("t", &format!("{LIST}{{{{ a }}}}|{{{{ b }}}}"), &given).unwrap(), "{{ b }}|secret");
    }
}
