//! Replies, read leniently: numbers may be strings, booleans may be 0, 1, "1" or JSON's own, absent may be null.
//!
//! Only what pvemesh uses is read, and everything optional may be missing: replies differ between versions, and an odd entry of a list is
//! passed over rather than failing the list.

mod guest;
mod host;
mod interface;
mod task;

use serde_json::{Map, Value};

use super::{Upid, Version};
pub(super) use guest::tag_list;
pub use guest::{
    ContainerConfig, ContainerStatus, GuestSummary, HaRule, ListedContainer, container_config, container_status, containers, guests,
    ha_rules,
};
pub(super) use host::definitions;
pub use host::{Bridge, Host, Storage, Volume, bridges, hosts, storages, volumes};
pub use interface::{GuestInterface, interfaces, ip_addresses};
pub use task::{TaskStatus, task_log, task_status};

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

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ident::Mac;

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
