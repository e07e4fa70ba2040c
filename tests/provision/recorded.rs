//! Every refusal recorded from a real Proxmox VE is understood, wherever its text stands.

use pvemesh::pve::{ApiError, ErrorKind};
use serde_json::Value;

const RECORDED: &str = include_str!("../fixtures/pve/observed-9.1.json");

/// What each recorded text means to us. The part before a `:` of a wrong parameter names it.
const MEANINGS: [(&str, ErrorKind); 37] = [
    ("No ticket", ErrorKind::Authentication),
    ("Authentication failed!", ErrorKind::Authentication),
    ("Permission denied - invalid csrf token", ErrorKind::Csrf),
    ("Method 'GET /nodes/vm/nosuch' not implemented", ErrorKind::NotSupported),
    ("Method 'POST /version' not implemented", ErrorKind::NotSupported),
    ("method 'PATCH' not available", ErrorKind::NotSupported),
    ("hostname lookup 'nosuchnode' failed", ErrorKind::NoSuchHost),
    ("storage 'nosuch' does not exist", ErrorKind::NoSuchStorage),
    ("storage: No such storage.", ErrorKind::NoSuchStorage),
    ("Only root can pass arbitrary filesystem paths.", ErrorKind::RootOnly),
    ("CT 101 already exists on node 'vm'", ErrorKind::VmidInUse),
    ("vmid: VM 101 already exists", ErrorKind::VmidInUse),
    ("Permission check failed (configuring device passthrough is only allowed for root@pam)", ErrorKind::RootOnly),
    ("Permission check failed (changing the hookscript is only allowed for root@pam)", ErrorKind::RootOnly),
    ("Permission check failed (changing feature flags", ErrorKind::RootOnly),
    ("Permission check failed (mount point type bind is only allowed for root@pam)", ErrorKind::RootOnly),
    ("Permission check failed (/", ErrorKind::Denied),
    ("Permission check failed", ErrorKind::Denied),
    ("Device /dev/nosuchdev does not exist", ErrorKind::NoSuchDevice),
    ("script 'local:snippets/nosuch.sh' does not exist", ErrorKind::NoSuchScript),
    ("script 'local:snippets/noexec.sh' is not executable", ErrorKind::NoSuchScript),
    ("Configuration file 'nodes/vm/lxc/", ErrorKind::NoSuchGuest),
    ("CT 999 not running", ErrorKind::NotRunning),
    ("CT 101 not running", ErrorKind::NotRunning),
    ("CT 123 not running", ErrorKind::NotRunning),
    ("VM 123 not running", ErrorKind::NotRunning),
    ("CT 102 already running", ErrorKind::AlreadyRunning),
    ("CT 123 already running", ErrorKind::AlreadyRunning),
    ("unable to destroy CT 102 - container is running", ErrorKind::AlreadyRunning),
    ("unable to destroy CT 123 - container is running", ErrorKind::AlreadyRunning),
    ("upid: unable to parse worker upid", ErrorKind::NoSuchTask),
    ("upid: no such task", ErrorKind::NoSuchTask),
    ("malformed JSON string", ErrorKind::Other),
    ("CT is locked (backup)", ErrorKind::Locked),
    ("detected modified configuration", ErrorKind::Modified),
    ("net1: unable to hotplug net1: bridge 'vmbr88' does not exist", ErrorKind::NoSuchBridge),
    ("unable to create CT 130 - CT 130 already exists on node 'vm'", ErrorKind::VmidInUse),
];

fn replies() -> Vec<Value> {
    let all: Value = serde_json::from_str(RECORDED).unwrap();
    ["errors", "lifecycle"].iter().flat_map(|part| all[part].as_array().unwrap().clone()).collect()
}

/// The meaning of a reply by the table: by its wrong parameter if it names one, else by its text. A wrong parameter not in the table is
/// just that.
fn meaning(reply: &Value) -> ErrorKind {
    if let Some(errors) = reply["body"]["errors"].as_object() {
        let texts = errors.iter().map(|(name, why)| format!("{name}: {}", why.as_str().unwrap()));
        let known = texts.filter_map(|text| MEANINGS.iter().find(|(start, _)| text.starts_with(start))).next();
        return known.map_or(ErrorKind::Parameter, |(_, kind)| *kind);
    }
    let text = reply["reason"].as_str().unwrap();
    let found = MEANINGS.iter().filter(|(start, _)| text.starts_with(start)).max_by_key(|(start, _)| start.len());
    found.unwrap_or_else(|| panic!("no meaning for {text}")).1
}

#[test]
fn every_recorded_refusal_is_understood_from_the_reply_as_it_came() {
    let mut seen = 0;
    for reply in replies().iter().filter(|r| r["status"] != 200) {
        let status = u16::try_from(reply["status"].as_u64().unwrap()).unwrap();
        let body = match &reply["body"] {
            Value::Null => Vec::new(),
            Value::String(text) => text.clone().into_bytes(),
            json => json.to_string().into_bytes(),
        };
        let error = ApiError::read(status, reply["reason"].as_str(), &body);
        assert_eq!(error.kind(), meaning(reply), "{reply}");
        assert!(!error.to_string().contains('\n'), "{error}");
        seen += 1;
    }
    assert!(seen >= 80, "only {seen} refusals in the recording");
}

#[test]
fn the_reason_phrase_alone_is_enough_as_before_8_4() {
    for reply in replies().iter().filter(|r| r["status"] != 200 && r["body"]["errors"].is_null()) {
        let status = u16::try_from(reply["status"].as_u64().unwrap()).unwrap();
        let error = ApiError::read(status, reply["reason"].as_str(), br#"{"data":null}"#);
        assert_eq!(error.kind(), meaning(reply), "{reply}");
    }
}

#[test]
fn the_end_of_a_failed_task_is_understood() {
    let ends: Vec<(String, String)> = replies()
        .iter()
        .filter_map(|r| Some((r["title"].as_str()?.to_owned(), r["exitstatus"].as_str()?.to_owned())))
        .filter(|(_, end)| end != "OK")
        .collect();
    let kind_of = |part: &str| ends.iter().find(|(_, end)| end.contains(part)).map(|(_, end)| ErrorKind::of(end));
    assert_eq!(kind_of("volume 'local:vztmpl/nosuch"), Some(ErrorKind::NoSuchVolume), "{ends:?}");
    assert_eq!(kind_of("bridge 'vmbr77'"), Some(ErrorKind::NoSuchBridge));
    assert_eq!(kind_of("CT is locked (backup)"), Some(ErrorKind::Locked));
    assert_eq!(kind_of("Configuration file"), Some(ErrorKind::NoSuchGuest));
}
