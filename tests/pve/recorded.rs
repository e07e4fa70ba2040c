//! Every recorded request is sent again, and the replies are compared.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::Value;

use crate::client::{Answer, call, log_in, token};
use crate::standin::Standin;
use crate::standin::guest_config::Config;
use crate::standin::lxc::until;

/// Recorded with something the stand-in has no words for, or not sent as a form; those sent otherwise are in `behaviour`.
const SENT_OTHERWISE: [&str; 12] = [
    "upload no permission",
    "upload snippets (not allowed)",
    "JSON body create with bad types",
    "broken JSON body",
    "status of a running task",
    "CT config during create",
    "CT status during create",
    "abort task",
    "status of the aborted task",
    "log of the aborted task",
    "ticket without CSRF on write",
    "wrong method",
];

fn recordings(part: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../fixtures/pve/observed-9.1.json")).unwrap();
    let cases = all[part].as_array().unwrap().clone();
    cases.into_iter().filter(|c| !SENT_OTHERWISE.contains(&c["title"].as_str().unwrap())).collect()
}

fn credentials(case: &Value, root: &str) -> String {
    let bad = "Authorization: PVEAPIToken=";
    match (case["as"].as_str().unwrap(), case["title"].as_str().unwrap()) {
        ("None", _) => String::new(),
        ("root", _) => root.to_owned(),
        ("tb", _) => token("root@pam!tb"),
        ("padm", _) => token("root@pam!padm"),
        ("priv", _) => token("root@pam!priv"),
        (_, "bad token secret") => format!("{bad}root@pam!tb=00000000-0000-0000-0000-000000000000\r\n"),
        (_, "unknown token id") => token("root@pam!nosuch"),
        (_, "unknown user") => token("nobody@pam!tb"),
        (_, "malformed token") => format!("{bad}rubbish\r\n"),
        (user, _) => token(&format!("{user}@pve!tok")),
    }
}

fn send(standin: &Standin, case: &Value, root: &str) -> Answer {
    let path = case["path"].as_str().unwrap();
    let params: Vec<_> = case["params"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned()))
        .collect();
    call(standin, &credentials(case, root), case["method"].as_str().unwrap(), path, &params)
}

fn task_end(standin: &Standin, root: &str, upid: &str) -> Value {
    let mut status = Value::Null;
    let done = until(Duration::from_secs(20), || {
        status = call(standin, root, "GET", &format!("/nodes/vm/tasks/{upid}/status"), &[]).data();
        status["status"] == "stopped"
    });
    assert!(done, "{upid} did not end: {status}");
    status
}

/// Keys the stand-in does not play: figures of load.
fn played(key: &str) -> bool {
    !key.starts_with("pressure")
}

fn missing_keys(recorded: &Value, ours: &Value) -> Vec<String> {
    match (recorded, ours) {
        (Value::Object(r), Value::Object(o)) => {
            let absent = r.keys().filter(|k| played(k) && !o.contains_key(*k)).cloned();
            absent.chain(r.iter().filter_map(|(k, v)| Some((v, o.get(k)?))).flat_map(|(a, b)| missing_keys(a, b))).collect()
        }
        (Value::Array(r), Value::Array(o)) if !r.is_empty() => {
            if o.is_empty() {
                vec!["(no rows)".to_owned()]
            } else {
                missing_keys(&r[0], &o[0])
            }
        }
        _ => Vec::new(),
    }
}

/// Compares one reply; what differs.
fn differences(standin: &Standin, root: &str, case: &Value, answer: &Answer) -> Vec<String> {
    let mut found = Vec::new();
    let mut same = |what: &str, recorded: &Value, ours: &Value| {
        if recorded != ours {
            found.push(format!("{what}: recorded {recorded}, here {ours}"));
        }
    };
    same("status", &case["status"], &answer.status.into());
    same("reason", &case["reason"], &answer.reason.clone().into());
    let (recorded, ours) = (&case["body"], &answer.json());
    if recorded.is_null() {
        same("body", &"".into(), &answer.body.clone().into());
    } else if answer.status >= 400 {
        ["message", "errors", "data"].iter().for_each(|key| same(key, &recorded[key], &ours[key]));
    } else if case.get("exitstatus").is_some() {
        let status = task_end(standin, root, ours["data"].as_str().unwrap_or_default());
        let local = standin.storage_dir("local").display().to_string();
        let exit = case["exitstatus"].as_str().unwrap().replace("/var/lib/vz", &local);
        same("exit status", &exit.into(), &status["exitstatus"]);
        same("task type", &case["type"], &status["type"]);
    } else {
        let missing = missing_keys(&recorded["data"], &ours["data"]);
        same("missing keys", &Value::Array(Vec::new()), &Value::from(missing));
    }
    found.into_iter().map(|text| format!("{} [{}]: {text}", case["title"], case["as"])).collect()
}

fn guest(hostname: &str, more: &[(&str, &str)]) -> Config {
    let mut config = Config::default();
    let plain = [
        ("hostname", hostname),
        ("memory", "128"),
        ("swap", "0"),
        ("unprivileged", "1"),
        ("rootfs", "local:101/vm-101-disk-0.raw,size=102M"),
    ];
    plain.iter().chain(more).for_each(|(key, value)| config.set(key, value));
    config
}

#[test]
fn refusals_are_worded_as_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let standin = crate::recorded_host(dir.path());
    let root = log_in(&standin, "secret");
    standin.add_guest(101, guest("ct101", &[]));
    standin.add_guest(102, guest("deb", &[]));
    call(&standin, &root, "POST", "/nodes/vm/lxc/102/status/start", &[]);
    assert!(until(Duration::from_secs(5), || standin.is_running(102)));
    let mut found = Vec::new();
    let cases = recordings("errors");
    for case in &cases {
        let answer = send(&standin, case, &root);
        found.extend(differences(&standin, &root, case, &answer));
        standin.settle(Duration::from_secs(10));
        for id in standin.guests().into_iter().filter(|id| *id > 102) {
            call(&standin, &root, "DELETE", &format!("/nodes/vm/lxc/{id}"), &[("force".to_owned(), "1".to_owned())]);
            standin.settle(Duration::from_secs(10));
        }
    }
    assert!(found.is_empty(), "{} of {} differ:\n{}", found.len(), cases.len(), found.join("\n"));
    assert!(cases.len() > 60, "only {} recordings", cases.len());
}

#[test]
fn the_life_of_containers_goes_as_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let standin = crate::recorded_host(dir.path());
    let root = log_in(&standin, "secret");
    let scripts = [
        ("fail.sh", "echo phase $2 out\necho phase $2 err >&2\nexit 3\n", 0o755),
        ("failpost.sh", "[ $2 != post-start ] || exit 4\n", 0o755),
        ("hook.sh", "echo \"hook says: vmid=$1 phase=$2\"\n", 0o755),
        ("noexec.sh", "exit 0\n", 0o644),
    ];
    for (name, lines, mode) in scripts {
        let path = standin.storage_dir("local").join("snippets").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{lines}")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    standin.add_guest(101, guest("ct101", &[]));
    standin.add_guest(102, guest("deb", &[("tags", "b a"), ("hookscript", "local:snippets/hook.sh")]));
    call(&standin, &root, "POST", "/nodes/vm/lxc/102/status/start", &[]);
    assert!(until(Duration::from_secs(5), || standin.is_running(102)));
    let mut found = Vec::new();
    for case in &recordings("lifecycle") {
        match case["title"].as_str().unwrap() {
            "start locked" => standin.set_lock(131, Some("backup")),
            "destroy" if case["path"] == "/nodes/vm/lxc/130" => standin.add_guest(130, guest("ct130", &[])),
            "destroy" => standin.guests().into_iter().for_each(|id| standin.set_lock(id, None)),
            _ => {}
        }
        let answer = send(&standin, case, &root);
        found.extend(differences(&standin, &root, case, &answer));
        standin.settle(Duration::from_secs(10));
    }
    assert!(found.is_empty(), "{} differ:\n{}", found.len(), found.join("\n"));
}
