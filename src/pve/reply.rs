//! Replies, read leniently: numbers may be strings, booleans may be 0, 1, "1" or JSON's own, absent may be null.
//!
//! Only what pvemesh uses is read, and everything optional may be missing: replies differ between versions, and an odd entry of a list is
//! passed over rather than failing the list.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::machine::StorageDefinition;
use super::{HostName, StorageId, Upid, Version, VolumeId};
use crate::ident::{Mac, Vmid};

/// A reply that cannot be what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the reply to a request for {wanted} was not understood: {got}")]
pub struct ReplyError {
    wanted: &'static str,
    got: String,
}

fn not(wanted: &'static str, value: &Value) -> ReplyError {
    ReplyError { wanted, got: super::name::shown(&value.to_string()) }
}

fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn number(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::Number(number) => number.as_u64().or_else(|| number.as_f64().filter(|f| *f >= 0.0).map(|f| f as u64)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(yes) => Some(u64::from(*yes)),
        _ => None,
    }
}

fn flag(value: Option<&Value>, absent: bool) -> bool {
    match value {
        None | Some(Value::Null) => absent,
        Some(Value::Bool(yes)) => *yes,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !matches!(text.as_str(), "" | "0" | "false" | "no" | "off"),
        Some(_) => absent,
    }
}

fn parsed<T: std::str::FromStr>(value: Option<&Value>) -> Option<T> {
    text(value)?.parse().ok()
}

fn list<T>(value: &Value, wanted: &'static str, item: impl Fn(&Map<String, Value>) -> Option<T>) -> Result<Vec<T>, ReplyError> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => Ok(items.iter().filter_map(Value::as_object).filter_map(item).collect()),
        other => Err(not(wanted, other)),
    }
}

/// Reads the id of the task that a request started.
///
/// # Errors
/// If the reply is no task id.
pub fn upid(value: &Value) -> Result<Upid, ReplyError> {
    value.as_str().and_then(|text| text.trim().parse().ok()).ok_or_else(|| not("a task", value))
}

/// Reads `GET /version` and `GET /nodes/N/version`.
///
/// # Errors
/// If there is no version in it.
pub fn version(value: &Value) -> Result<Version, ReplyError> {
    let field = |name| text(value.get(name)).and_then(|text| text.parse::<Version>().ok());
    field("version").max(field("release")).ok_or_else(|| not("the version", value))
}

/// A machine of the cluster, from `GET /nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Whether the cluster sees it.
    pub online: bool,
}

/// Reads `GET /nodes`.
///
/// # Errors
/// If it is no list.
pub fn hosts(value: &Value) -> Result<Vec<Host>, ReplyError> {
    list(value, "the nodes", |item| {
        Some(Host { name: parsed(item.get("node"))?, online: text(item.get("status")).is_none_or(|status| status == "online") })
    })
}

/// A storage as one host sees it, from `GET /nodes/N/storage`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its name.
    pub name: StorageId,
    /// What it may hold, as in `rootdir`, `vztmpl`.
    pub content: Vec<String>,
    /// Reachable and enabled.
    pub usable: bool,
    /// The same storage on several hosts.
    pub shared: bool,
    /// Free bytes, where known.
    pub available: Option<u64>,
}

impl Storage {
    /// Whether it may hold this kind of content.
    pub fn holds(&self, content: &str) -> bool {
        self.content.iter().any(|c| c == content)
    }
}

/// Reads `GET /nodes/N/storage`.
///
/// # Errors
/// If it is no list.
pub fn storages(value: &Value) -> Result<Vec<Storage>, ReplyError> {
    list(value, "the storages", |item| {
        Some(Storage {
            name: parsed(item.get("storage"))?,
            content: text(item.get("content"))?.split(',').map(|c| c.trim().to_owned()).collect(),
            usable: flag(item.get("active"), true) && flag(item.get("enabled"), true),
            shared: flag(item.get("shared"), false),
            available: number(item.get("avail")),
        })
    })
}

/// Reads `GET /storage`.
pub(super) fn definitions(value: &Value) -> Result<Vec<StorageDefinition>, ReplyError> {
    list(value, "the storages", |item| {
        let kind = text(item.get("type")).unwrap_or_default();
        let networked = matches!(kind.as_str(), "nfs" | "cifs" | "cephfs" | "glusterfs");
        Some(StorageDefinition {
            name: parsed(item.get("storage"))?,
            path: text(item.get("path")).map(Into::into),
            content: text(item.get("content")).unwrap_or_default().split(',').map(|c| c.trim().to_owned()).collect(),
            shared: flag(item.get("shared"), networked),
            limited: text(item.get("nodes")).is_some_and(|nodes| !nodes.is_empty()),
            enabled: !flag(item.get("disable"), false),
            kind,
        })
    })
}

/// A bridge of a host, from `GET /nodes/N/network?type=any_bridge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Up.
    pub active: bool,
    /// The host's own address on it, with prefix length.
    pub address: Option<ipnet::IpNet>,
    /// The host's default gateway lies behind it.
    pub has_gateway: bool,
}

/// Reads `GET /nodes/N/network`.
///
/// # Errors
/// If it is no list.
pub fn bridges(value: &Value) -> Result<Vec<Bridge>, ReplyError> {
    list(value, "the bridges", |item| {
        Some(Bridge {
            name: text(item.get("iface"))?,
            active: flag(item.get("active"), false),
            address: parsed(item.get("cidr")),
            has_gateway: text(item.get("gateway")).is_some(),
        })
    })
}

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
    let all = text(value).unwrap_or_default();
    all.split([';', ',', ' ']).filter(|tag| !tag.is_empty()).map(ToOwned::to_owned).collect()
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

/// A volume on a storage, from `GET /nodes/N/storage/S/content`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its size in bytes, where known.
    pub size: Option<u64>,
}

/// Reads `GET /nodes/N/storage/S/content`; volumes with names that pvemesh would never give are passed over.
///
/// # Errors
/// If it is no list.
pub fn volumes(value: &Value) -> Result<Vec<Volume>, ReplyError> {
    list(value, "the content of a storage", |item| Some(Volume { id: parsed(item.get("volid"))?, size: number(item.get("size")) }))
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

/// An interface inside a running container, from `GET /nodes/N/lxc/ID/interfaces`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInterface {
    /// Its name inside the guest.
    pub name: String,
    /// Its hardware address, if it was told.
    pub mac: Option<Mac>,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<ipnet::IpNet>,
}

/// Reads `GET /nodes/N/lxc/ID/interfaces`; empty while the container is not running.
///
/// # Errors
/// If it is no list.
pub fn interfaces(value: &Value) -> Result<Vec<GuestInterface>, ReplyError> {
    list(value, "a container's interfaces", |item| {
        let mut addresses: Vec<ipnet::IpNet> = ["inet", "inet6"].into_iter().filter_map(|key| parsed(item.get(key))).collect();
        for entry in item.get("ip-addresses").and_then(Value::as_array).into_iter().flatten() {
            let address: Option<std::net::IpAddr> = parsed(entry.get("ip-address"));
            let prefix = number(entry.get("prefix")).and_then(|n| u8::try_from(n).ok());
            if let Some(net) = address.zip(prefix).and_then(|(a, p)| ipnet::IpNet::new(a, p).ok())
                && !addresses.contains(&net)
            {
                addresses.push(net);
            }
        }
        let mac = ["hwaddr", "hardware-address"].into_iter().find_map(|key| parsed(item.get(key)));
        Some(GuestInterface { name: text(item.get("name"))?, mac, addresses })
    })
}

/// Reads what `ip -json address` prints; for hosts whose API does not tell a container's interfaces (before 8.1).
///
/// # Errors
/// If it is no list.
pub fn ip_addresses(value: &Value) -> Result<Vec<GuestInterface>, ReplyError> {
    list(value, "the addresses of interfaces", |item| {
        let entries = item.get("addr_info").and_then(Value::as_array).into_iter().flatten();
        let addresses = entries.filter_map(|entry| {
            let prefix = number(entry.get("prefixlen")).and_then(|n| u8::try_from(n).ok())?;
            ipnet::IpNet::new(parsed(entry.get("local"))?, prefix).ok()
        });
        Some(GuestInterface { name: text(item.get("ifname"))?, mac: parsed(item.get("address")), addresses: addresses.collect() })
    })
}

/// How a task stands, from `GET /nodes/N/tasks/UPID/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskStatus {
    /// It runs.
    Running,
    /// It ended well.
    Done,
    /// It ended well but complained; the log has the lines.
    DoneWithWarnings,
    /// It failed with this text.
    Failed(String),
}

/// Reads `GET /nodes/N/tasks/UPID/status`.
///
/// # Errors
/// If there is no state in it.
pub fn task_status(value: &Value) -> Result<TaskStatus, ReplyError> {
    match text(value.get("status")).as_deref() {
        Some("running") => Ok(TaskStatus::Running),
        Some("stopped") => Ok(match text(value.get("exitstatus")).as_deref() {
            Some("OK") => TaskStatus::Done,
            Some(end) if end.starts_with("WARNINGS") => TaskStatus::DoneWithWarnings,
            Some(end) => TaskStatus::Failed(end.trim().to_owned()),
            None => TaskStatus::Failed("it ended without saying how".to_owned()),
        }),
        _ => Err(not("a task's state", value)),
    }
}

/// Reads `GET /nodes/N/tasks/UPID/log`: the lines with their numbers, counted from 1.
///
/// # Errors
/// If it is no list.
pub fn task_log(value: &Value) -> Result<Vec<(u64, String)>, ReplyError> {
    list(value, "a task's log", |item| Some((number(item.get("n"))?, text(item.get("t")).unwrap_or_default())))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_flags_come_in_many_forms() {
        let guests = guests(&json!([
            {"vmid": 101, "node": "pve", "type": "lxc", "status": "running", "name": "exit-1", "tags": "exit-node;pvemesh"},
            {"vmid": "102", "node": "pve", "type": "qemu", "status": "stopped"},
            {"vmid": null, "node": "pve"}, "odd", {"vmid": 7, "node": "pve"}
        ]))
        .unwrap();
        assert_eq!(guests.iter().map(|g| u32::from(g.vmid)).collect::<Vec<_>>(), [101, 102]);
        assert_eq!(guests[0].tags, ["exit-node", "pvemesh"]);
        assert!(!guests[1].container);
        for (active, usable) in
            [(json!(1), true), (json!("1"), true), (json!(true), true), (json!(0), false), (json!("0"), false), (json!(false), false)]
        {
            let storages =
                storages(&json!([{"storage": "local", "content": "rootdir,vztmpl", "active": active, "avail": "78483701760"}])).unwrap();
            assert_eq!((storages[0].usable, storages[0].available), (usable, Some(78_483_701_760)));
        }
    }

    #[test]
    fn the_recorded_interfaces_are_read() {
        let value = json!([{"hardware-address":"bc:24:11:18:63:05","inet":"10.99.0.102/24","name":"eth0","inet6":"fe80::be24:11ff:fe18:6305/64",
            "ip-addresses":[{"prefix":"24","ip-address-type":"inet","ip-address":"10.99.0.102"},{"ip-address":"fd00::1","ip-address-type":"inet6","prefix":64}]}]);
        let interfaces = interfaces(&value).unwrap();
        assert_eq!(interfaces[0].addresses.len(), 3);
        assert_eq!(interfaces[0].mac, Some(Mac::from_bytes([0xbc, 0x24, 0x11, 0x18, 0x63, 0x05])));
        assert_eq!(super::interfaces(&Value::Null).unwrap(), []);
    }

    #[test]
    fn tasks_end_in_three_ways() {
        let end = |exit: &str| task_status(&json!({"status": "stopped", "exitstatus": exit})).unwrap();
        assert_eq!(end("OK"), TaskStatus::Done);
        assert_eq!(end("WARNINGS: 1"), TaskStatus::DoneWithWarnings);
        assert_eq!(end("bridge 'vmbr77' does not exist"), TaskStatus::Failed("bridge 'vmbr77' does not exist".to_owned()));
        assert_eq!(task_status(&json!({"status": "running"})).unwrap(), TaskStatus::Running);
        assert!(task_status(&json!({})).is_err());
    }

    #[test]
    fn the_version_is_the_finer_of_the_two() {
        assert_eq!(version(&json!({"version": "9.1.9", "release": "9.1"})).unwrap(), Version::new(9, 1, 9));
        assert!(version(&json!({"version": "x"})).is_err());
    }
}
