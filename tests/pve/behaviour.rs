//! What the recordings do not show as one request and one reply: connections, uploads, tasks, locks, releases, injected faults.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Answer, call, connect, encode, log_in, send, token};
use crate::recorded_host;
use crate::standin::faults::Fault;
use crate::standin::lxc::until;
use crate::standin::{Options, Standin, Version};

fn pairs(params: &[(&str, &str)]) -> Vec<(String, String)> {
    params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn create(standin: &Standin, root: &str, id: u32, more: &[(&str, &str)]) -> Answer {
    let id = id.to_string();
    let template = "local:vztmpl/busybox-tiny_1.0_amd64.tar.gz";
    let mut params = pairs(&[("vmid", &id), ("ostemplate", template), ("rootfs", "local:0.1"), ("unprivileged", "1")]);
    params.extend(pairs(more));
    call(standin, root, "POST", "/nodes/vm/lxc", &params)
}

fn exit_of(standin: &Standin, root: &str, answer: &Answer) -> String {
    let path = format!("/nodes/vm/tasks/{}/status", answer.data().as_str().unwrap_or_else(|| panic!("no task: {answer:?}")));
    let mut exit = Value::Null;
    assert!(until(Duration::from_secs(20), || {
        exit = call(standin, root, "GET", &path, &[]).data()["exitstatus"].clone();
        exit.is_string()
    }));
    exit.as_str().unwrap().to_owned()
}

fn raw(standin: &Standin, text: &str) -> Answer {
    send(&mut connect(standin), text.as_bytes()).expect("a reply")
}

fn host() -> (tempfile::TempDir, Standin, String) {
    let dir = tempfile::tempdir().unwrap();
    let standin = recorded_host(dir.path());
    let root = log_in(&standin, "secret");
    (dir, standin, root)
}

#[test]
fn a_connection_is_kept_after_success_and_closed_after_an_error() {
    let (_dir, standin, _) = host();
    let mut connection = connect(&standin);
    let good = format!("GET /api2/json/version HTTP/1.1\r\n{}\r\n", token("root@pam!tb"));
    let bad = format!("GET /api2/json/nosuch HTTP/1.1\r\n{}\r\n", token("root@pam!tb"));
    assert_eq!(send(&mut connection, good.as_bytes()).unwrap().status, 200);
    let kept = send(&mut connection, good.as_bytes()).unwrap();
    assert_eq!((kept.status, kept.headers["connection"].as_str()), (200, "Keep-Alive"));
    let refused = send(&mut connection, bad.as_bytes()).unwrap();
    assert_eq!((refused.status, refused.headers["connection"].as_str()), (501, "close"));
    assert!(send(&mut connection, good.as_bytes()).is_none());
}

#[test]
fn what_the_daemon_cannot_read_it_refuses_as_a_real_one() {
    let (_dir, standin, _) = host();
    let auth = token("root@pam!tb");
    let chunked = raw(&standin, &format!("POST /api2/json/nodes/vm/lxc HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
    assert_eq!((chunked.status, chunked.reason.as_str()), (501, "chunked transfer encoding not supported"));
    let body = raw(&standin, &format!("DELETE /api2/json/nodes/vm/lxc/101 HTTP/1.1\r\n{auth}Content-Length: 7\r\n\r\nforce=1"));
    assert_eq!((body.status, body.reason.as_str()), (501, "Unexpected content for method 'DELETE'"));
    let large = raw(&standin, &format!("PUT /api2/json/nodes/vm/lxc/101/config HTTP/1.1\r\n{auth}Content-Length: 600000\r\n\r\n"));
    assert_eq!((large.status, large.reason.as_str()), (501, "for data too large"));
    let kind =
        raw(&standin, &format!("POST /api2/json/nodes/vm/lxc HTTP/1.1\r\n{auth}Content-Type: text/plain\r\nContent-Length: 1\r\n\r\nx"));
    assert_eq!((kind.status, kind.reason.as_str()), (506, "upload 'Content-Type 'text/plain' not implemented"));
    let patch = raw(&standin, &format!("PATCH /api2/json/nodes/vm/lxc HTTP/1.1\r\n{auth}\r\n"));
    assert_eq!((patch.status, patch.reason.as_str(), patch.body.as_str()), (501, "method 'PATCH' not available", ""));
}

#[test]
fn json_bodies_are_checked_like_forms() {
    let (_dir, standin, _) = host();
    let post = |body: &str| {
        let kind = "Content-Type: application/json\r\n";
        let head = format!("POST /api2/json/nodes/vm/lxc HTTP/1.1\r\n{}{kind}", token("root@pam!tb"));
        raw(&standin, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
    };
    let wrong = post(r#"{"vmid":"abc"}"#);
    let reasons =
        json!({ "vmid": "type check ('integer') failed - got 'abc'", "ostemplate": "property is missing and it is not optional" });
    assert_eq!((wrong.status, &wrong.json()["errors"]), (400, &reasons));
    let broken = post(r#"{"vmid":"#);
    let start = "malformed JSON string, neither tag, array, object, number, string or atom, at character offset 8";
    assert!(broken.status == 500 && broken.reason.starts_with(start), "{broken:?}");
}

#[test]
fn a_ticket_writes_only_with_its_csrf_token_and_until_it_expires() {
    let (_dir, standin, root) = host();
    let cookie = root.lines().next().unwrap().to_owned() + "\r\n";
    let refused = call(&standin, &cookie, "POST", "/nodes/vm/lxc", &[]);
    let words = "Permission denied - invalid csrf token";
    assert_eq!((refused.status, refused.reason.as_str(), refused.body.as_str()), (401, words, ""));
    assert_eq!(call(&standin, &cookie, "GET", "/version", &[]).status, 200);
    let wrong = call(&standin, "", "POST", "/access/ticket", &pairs(&[("username", "root@pam"), ("password", "wrong")]));
    assert_eq!((wrong.status, wrong.json()["message"].as_str()), (401, Some("authentication failure\n")));
    standin.access(|access| access.expire_tickets());
    let expired = call(&standin, &root, "GET", "/version", &[]);
    assert_eq!((expired.status, expired.reason.as_str(), expired.body.as_str()), (401, "Authentication failed!", ""));
}

fn upload(standin: &Standin, credentials: &str, parts: &[(&str, Option<&str>, &str)]) -> Answer {
    let mut body = String::new();
    for (name, file, data) in parts {
        let file = file.map(|f| format!("; filename=\"{f}\"")).unwrap_or_default();
        body += &format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{data}\r\n");
    }
    body += "--edge--\r\n";
    let kind = "Content-Type: multipart/form-data; boundary=edge\r\n";
    let head = format!("POST /api2/json/nodes/vm/storage/local/upload HTTP/1.1\r\n{credentials}{kind}");
    raw(standin, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn an_upload_keeps_the_order_of_its_parts_and_is_checked() {
    let (_dir, standin, root) = host();
    let file = ("filename", Some("a b.tar.gz"), "bytes");
    let done = upload(&standin, &root, &[("content", None, "vztmpl"), file]);
    assert_eq!(exit_of(&standin, &root, &done), "OK");
    assert_eq!(std::fs::read(standin.storage_dir("local").join("template/cache/a_b.tar.gz")).unwrap(), b"bytes");
    let swapped = upload(&standin, &root, &[file, ("content", None, "vztmpl")]);
    assert_eq!(swapped.json()["errors"]["content"], "property is missing and it is not optional");
    let snippet = upload(&standin, &root, &[("content", None, "snippets"), file]);
    assert_eq!(snippet.json()["errors"]["content"], "value 'snippets' does not have a value in the enumeration 'iso, vztmpl, import'");
    let name = upload(&standin, &root, &[("content", None, "vztmpl"), ("filename", Some("a.zip"), "bytes")]);
    assert_eq!(name.json()["errors"]["filename"], "wrong file extension");
    let sum = [("content", None, "vztmpl"), ("checksum-algorithm", None, "sha256"), ("checksum", None, "00"), file];
    let exit = exit_of(&standin, &root, &upload(&standin, &root, &sum));
    assert!(exit.starts_with("checksum mismatch: got '") && exit.ends_with("' != expect '00'"), "{exit}");
    let refused = upload(&standin, &token("root@pam!priv"), &[("content", None, "vztmpl"), file]);
    let words = "Permission check failed (/storage/local, Datastore.AllocateTemplate)";
    assert_eq!((refused.status, refused.reason.as_str(), refused.body.as_str()), (403, words, ""));
}

#[test]
fn a_task_runs_after_its_call_returned_and_its_guest_is_locked_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let standin = Standin::start(Options { task_delay: Duration::from_millis(300), ..Options::new(dir.path()) }).unwrap();
    let root = log_in(&standin, "secret");
    std::fs::write(standin.storage_dir("local").join("template/cache/t.tar.gz"), "").unwrap();
    let params = pairs(&[("vmid", "132"), ("ostemplate", "local:vztmpl/t.tar.gz"), ("rootfs", "local-lvm:1")]);
    let upid = call(&standin, &root, "POST", "/nodes/pve/lxc", &params).data();
    let upid = upid.as_str().unwrap();
    let encoded: String = form_urlencoded::byte_serialize(upid.as_bytes()).collect();
    let status = call(&standin, &root, "GET", &format!("/nodes/pve/tasks/{encoded}/status"), &[]).data();
    assert_eq!((&status["status"], status.get("exitstatus")), (&json!("running"), None));
    let config = call(&standin, &root, "GET", "/nodes/pve/lxc/132/config", &[]).data();
    assert_eq!(config.as_object().unwrap().keys().collect::<Vec<_>>(), ["digest", "lock"]);
    assert_eq!(call(&standin, &root, "GET", "/nodes/pve/lxc/132/status/current", &[]).data()["lock"], "create");
    assert_eq!(call(&standin, &root, "DELETE", &format!("/nodes/pve/tasks/{upid}"), &[]).data(), Value::Null);
    assert!(standin.settle(Duration::from_secs(10)));
    let status = call(&standin, &root, "GET", &format!("/nodes/pve/tasks/{upid}/status"), &[]).data();
    assert!(status["exitstatus"].as_str().unwrap().ends_with("received interrupt"), "{status}");
    assert_eq!(standin.guests(), [0; 0]);
    let log = call(&standin, &root, "GET", &format!("/nodes/pve/tasks/{upid}/log"), &[]).json();
    let last = log["data"].as_array().unwrap().last().unwrap()["t"].as_str().unwrap().to_owned();
    assert!(last.starts_with("TASK ERROR: unable to create CT 132 - "), "{last}");
}

#[test]
fn of_two_creates_of_one_id_one_wins() {
    let (_dir, standin, root) = host();
    for _ in 0..8 {
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| create(&standin, &root, 130, &[]))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 200);
        assert_eq!((won.len(), lost.len()), (1, 1), "{answers:?}");
        assert!(lost[0].reason.ends_with("CT 130 already exists on node 'vm'"), "{lost:?}");
        assert_eq!(exit_of(&standin, &root, won[0]), "OK");
        let gone = call(&standin, &root, "DELETE", "/nodes/vm/lxc/130", &[]);
        assert_eq!(exit_of(&standin, &root, &gone), "OK");
    }
}

#[test]
fn env_is_kept_hidden_and_waits_for_the_next_start_of_a_running_guest() {
    let (_dir, standin, root) = host();
    let made = create(&standin, &root, 140, &[("env", "A=1\0B=two words")]);
    assert_eq!(exit_of(&standin, &root, &made), "OK");
    let config = |who: &str| call(&standin, who, "GET", "/nodes/vm/lxc/140/config", &[]).data();
    assert_eq!(config(&root)["env"], "A=1\0B=two words");
    standin.access(|access| access.grant("/vms", "root@pam!priv", "VM.Audit"));
    assert_eq!(config(&token("root@pam!priv")).get("env"), None);
    let started = call(&standin, &root, "POST", "/nodes/vm/lxc/140/status/start", &[]);
    assert_eq!(exit_of(&standin, &root, &started), "OK");
    let set = |params: &[(&str, &str)]| call(&standin, &root, "PUT", "/nodes/vm/lxc/140/config", &pairs(params));
    assert_eq!(set(&[("delete", "env")]).status, 200);
    assert_eq!(standin.config(140).unwrap().environment(), ["A=1", "B=two words"]);
    assert_eq!(config(&root).get("env"), None, "what is pending shows as if in force");
    let stopped = call(&standin, &root, "POST", "/nodes/vm/lxc/140/status/stop", &[]);
    assert_eq!(exit_of(&standin, &root, &stopped), "OK");
    assert!(standin.config(140).unwrap().environment().is_empty());
    assert_eq!(set(&[]).reason, "no options specified");
}

#[test]
fn an_older_release_lacks_what_came_later() {
    for (version, refused) in [(Version(9, 1), &[][..]), (Version(8, 4), &["env"]), (Version(8, 0), &["dev0", "env"])] {
        let dir = tempfile::tempdir().unwrap();
        let standin = Standin::start(Options { version, ..Options::new(dir.path()) }).unwrap();
        let root = log_in(&standin, "secret");
        let params = pairs(&[
            ("vmid", "101"),
            ("env", "A=1"),
            ("storage", "local-lvm"),
            ("dev0", "/dev/null"),
            ("ostemplate", "nosuch:vztmpl/x.tar.gz"),
        ]);
        let answer = call(&standin, &root, "POST", "/nodes/pve/lxc", &params);
        let named: Vec<_> = answer.json()["errors"].as_object().map(|e| e.keys().cloned().collect()).unwrap_or_default();
        let large =
            format!("PUT /api2/json/nodes/pve/lxc/101/config HTTP/1.1\r\n{root}Content-Length: 100000\r\n\r\n{}", "x".repeat(100_000));
        let taken = raw(&standin, &large);
        assert_eq!(taken.reason == "for data too large", version < Version::V8_4, "{version:?}: {taken:?}");
        assert_eq!(named, refused, "{version:?}: {answer:?}");
        assert_eq!(answer.json().get("message").is_some(), version >= Version::V8_4, "{version:?}");
    }
}

#[test]
fn the_configuration_lock_is_held_while_a_hook_runs() {
    let (_dir, standin, root) = host();
    let flag = standin.storage_dir("local").join("go");
    let script = standin.storage_dir("local").join("snippets/wait.sh");
    let lines = format!("#!/bin/sh\n[ $2 = pre-start ] || exit 0\nwhile [ ! -e {} ]; do sleep 0.05; done\n", flag.display());
    std::fs::write(&script, lines).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(exit_of(&standin, &root, &create(&standin, &root, 150, &[("hookscript", "local:snippets/wait.sh")])), "OK");
    let started = call(&standin, &root, "POST", "/nodes/vm/lxc/150/status/start", &[]);
    let memory = pairs(&[("memory", "256")]);
    std::thread::scope(|scope| {
        let set = scope.spawn(|| call(&standin, &root, "PUT", "/nodes/vm/lxc/150/config", &memory).status);
        assert!(!until(Duration::from_millis(300), || set.is_finished()), "the change did not wait for the hook");
        std::fs::write(&flag, "").unwrap();
        assert_eq!(set.join().unwrap(), 200);
    });
    assert_eq!(exit_of(&standin, &root, &started), "OK");
}

#[test]
fn injected_faults_happen_once_where_they_are_told_to() {
    let (_dir, standin, root) = host();
    let request = format!("GET /api2/json/version HTTP/1.1\r\n{}\r\n", token("root@pam!tb"));
    standin.faults().on("GET", "/version", 2, Fault::DropBefore);
    standin.faults().on("POST", "/nodes/vm/lxc", 1, Fault::DropAfter);
    assert!(send(&mut connect(&standin), request.as_bytes()).is_some());
    assert!(send(&mut connect(&standin), request.as_bytes()).is_none());
    assert!(send(&mut connect(&standin), request.as_bytes()).is_some());
    let form = encode(&pairs(&[("vmid", "160"), ("ostemplate", "local:vztmpl/busybox-tiny_1.0_amd64.tar.gz"), ("rootfs", "local:1")]));
    let post = format!("POST /api2/json/nodes/vm/lxc HTTP/1.1\r\n{root}Content-Length: {}\r\n\r\n{form}", form.len());
    assert!(send(&mut connect(&standin), post.as_bytes()).is_none());
    assert_eq!(standin.guests(), [160], "the dropped call was carried out");
    standin.settle(Duration::from_secs(10));
    standin.faults().on("POST", "/start", 1, Fault::TaskFails("startup for container '160' failed".to_owned()));
    let started = call(&standin, &root, "POST", "/nodes/vm/lxc/160/status/start", &[]);
    assert_eq!(exit_of(&standin, &root, &started), "startup for container '160' failed");
    standin.faults().on("GET", "/version", 1, Fault::Answer(596, "Connection timed out".to_owned()));
    let proxied = call(&standin, &root, "GET", "/version", &[]);
    assert_eq!((proxied.status, proxied.reason.as_str(), proxied.body.as_str()), (596, "Connection timed out", ""));
    standin.faults().on("GET", "/version", 1, Fault::Slow(Duration::from_millis(200)));
    let start = Instant::now();
    call(&standin, &root, "GET", "/version", &[]);
    assert!(start.elapsed() >= Duration::from_millis(200) && standin.faults().is_empty());
}
