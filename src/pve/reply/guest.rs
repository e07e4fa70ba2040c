//! Guests: which there are, how they are configured, how they stand.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{ReplyError, flag, list, not, number, parsed, text};
use crate::ident::Vmid;
use crate::pve::HostName;

/// A guest of the cluster, from `GET /cluster/resources?type=vm`. Values may be some ten seconds old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSummary {
    /// Its number.
    pub vmid: Vmid,
    /// Where it is.
    pub host: HostName,
    /// A container, not a virtual machine.
    pub container: bool,
    /// Its name.
    pub name: String,
    /// Running.
    pub running: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// It is under high availability.
    pub managed: bool,
}

fn tags(value: Option<&Value>) -> Vec<String> {
    tag_list(&text(value).unwrap_or_default())
}

/// The tags in a text as Proxmox keeps them.
pub(in crate::pve) fn tag_list(text: &str) -> Vec<String> {
    text.split([';', ',', ' ']).filter(|tag| !tag.is_empty()).map(ToOwned::to_owned).collect()
}

/// Reads `GET /cluster/resources?type=vm`.
///
/// # Errors
/// If it is no list.
pub fn guests(value: &Value) -> Result<Vec<GuestSummary>, ReplyError> {
    list(value, "the guests", |item| {
        Some(GuestSummary {
            vmid: parsed(item.get("vmid"))?,
            host: parsed(item.get("node"))?,
            container: text(item.get("type")).as_deref() == Some("lxc"),
            name: text(item.get("name")).unwrap_or_default(),
            running: text(item.get("status")).as_deref() == Some("running"),
            tags: tags(item.get("tags")),
            managed: text(item.get("hastate")).is_some(),
        })
    })
}

/// A rule of the high availability manager about resources that are to be together or apart, from `GET /cluster/ha/rules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaRule {
    /// Its name.
    pub name: String,
    /// The resources it names, as in `ct:101`.
    pub resources: Vec<String>,
    /// It keeps them apart, and is in force.
    pub apart: bool,
}

/// Reads `GET /cluster/ha/rules`.
///
/// # Errors
/// If it is no list.
pub fn ha_rules(value: &Value) -> Result<Vec<HaRule>, ReplyError> {
    list(value, "the rules of high availability", |item| {
        Some(HaRule {
            name: text(item.get("rule"))?,
            resources: tags(item.get("resources")),
            apart: text(item.get("affinity")).as_deref() == Some("negative") && !flag(item.get("disable"), false),
        })
    })
}

/// A container in its host's own list, from `GET /nodes/N/lxc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedContainer {
    /// Its number.
    pub vmid: Vmid,
    /// Its tags; none while it is being created.
    pub tags: Vec<String>,
    /// The lock it carries.
    pub lock: Option<String>,
}

/// Reads `GET /nodes/N/lxc`.
///
/// # Errors
/// If it is no list.
pub fn containers(value: &Value) -> Result<Vec<ListedContainer>, ReplyError> {
    list(value, "the containers", |item| {
        Some(ListedContainer { vmid: parsed(item.get("vmid"))?, tags: tags(item.get("tags")), lock: text(item.get("lock")) })
    })
}

/// A container's configuration, from `GET /nodes/N/lxc/ID/config`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    /// Host name.
    pub hostname: Option<String>,
    /// Notes.
    pub description: String,
    /// Tags.
    pub tags: Vec<String>,
    /// The lock it carries, as in `create` or `backup`.
    pub lock: Option<String>,
    /// Every other plain value by key.
    pub values: BTreeMap<String, String>,
    /// Lines of LXC's own, which no call can set.
    pub raw: Vec<(String, String)>,
    /// What a change may name so that it is refused if somebody else made one meanwhile.
    pub digest: Option<String>,
}

/// Reads `GET /nodes/N/lxc/ID/config`.
///
/// # Errors
/// If it is no object.
pub fn container_config(value: &Value) -> Result<ContainerConfig, ReplyError> {
    let map = value.as_object().ok_or_else(|| not("a container's configuration", value))?;
    Ok(ContainerConfig {
        hostname: text(map.get("hostname")),
        description: text(map.get("description")).unwrap_or_default(),
        tags: tags(map.get("tags")),
        lock: text(map.get("lock")),
        values: map.iter().filter_map(|(key, value)| Some((key.clone(), text(Some(value))?))).collect(),
        raw: map
            .get("lxc")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|pair| Some((text(pair.get(0))?, text(pair.get(1))?)))
            .collect(),
        digest: text(map.get("digest")),
    })
}

/// A guest's state, from `GET /nodes/N/lxc/ID/status/current`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Its init runs (or is about to).
    pub running: bool,
    /// Its first process, as its host counts.
    pub pid: Option<u32>,
    /// The lock it carries.
    pub lock: Option<String>,
    /// Seconds since its start.
    pub uptime_secs: u64,
    /// Memory in use, bytes.
    pub memory: u64,
    /// Memory allowed, bytes.
    pub max_memory: u64,
}

/// Reads `GET /nodes/N/lxc/ID/status/current`.
///
/// # Errors
/// If there is no state in it.
pub fn container_status(value: &Value) -> Result<ContainerStatus, ReplyError> {
    let status = text(value.get("status")).ok_or_else(|| not("a container's state", value))?;
    Ok(ContainerStatus {
        running: status == "running",
        pid: number(value.get("pid")).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0),
        lock: text(value.get("lock")),
        uptime_secs: number(value.get("uptime")).unwrap_or(0),
        memory: number(value.get("mem")).unwrap_or(0),
        max_memory: number(value.get("maxmem")).unwrap_or(0),
    })
}
