//! Backups of a coordinator, and what comes of them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use pvemesh::sys::admin::AdminClient;
use pvemesh::sys::coordinator::Coordinator;
use pvemesh::sys::store::backup;

use crate::net::*;

async fn pvemesh(arguments: Vec<std::ffi::OsString>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pvemesh"));
    command.arg("coordinator").args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The arguments of a command, with paths among them.
fn line(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<std::ffi::OsString> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn trap_34_a_backup_of_a_running_coordinator_brings_nodes_keys_and_its_own_key_back() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let node = server.joined(1, "alpha").await;
    let unused = server.key(|_| {}).await;
    let (key, nodes, dns) = (server.coordinator.server_key(), server.admin().nodes().await.unwrap(), server.admin().dns().await.unwrap());
    let file = server.dir.path().join("backup.sqlite");
    let made = pvemesh(line(&[&"backup", &file, &"--socket", &socket, &"--json"])).await;
    assert!(made.status.success(), "{}", said(&made).1);
    assert_eq!(mode(&file), 0o600);
    // What happens afterwards is not in it.
    server.joined(2, "later").await;
    drop(node);

    let elsewhere = tempfile::tempdir().unwrap();
    let state = elsewhere.path().join("state");
    let restored = pvemesh(line(&[&"restore", &file, &"--state-dir", &state, &"--json"])).await;
    assert!(restored.status.success(), "{}", said(&restored).1);
    let contents: serde_json::Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!((contents["nodes"].as_u64(), contents["server_key"].as_str()), (Some(1), Some(key.to_string().as_str())));
    for name in [backup::DATABASE, backup::KEY] {
        assert_eq!(mode(&state.join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&state), 0o700);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 2, "nothing else is left there");
    let database = std::fs::read(state.join(backup::DATABASE)).unwrap();
    assert!(!database.windows(8).any(|bytes| bytes == b"privkey:"), "the key is in its own file only");

    let coordinator = Coordinator::start(options(elsewhere.path())).await.unwrap();
    assert_eq!(coordinator.server_key(), key);
    let again = Running { dir: elsewhere, coordinator };
    let found = again.admin().nodes().await.unwrap();
    assert_eq!(found.iter().map(|n| (n.id, &n.name, n.key, &n.addresses)).collect::<Vec<_>>(), {
        nodes.iter().map(|n| (n.id, &n.name, n.key, &n.addresses)).collect::<Vec<_>>()
    });
    assert_eq!(again.admin().dns().await.unwrap(), dns);
    // The node comes back as itself, and the unused key still works.
    let node = Client::connect(&again.url(), 1).await;
    assert_eq!(node.register(None, "alpha").await.auth_url, "");
    assert_eq!(Client::connect(&again.url(), 3).await.register(Some(&unused), "gamma").await.error, "");
}

#[tokio::test]
async fn a_backup_overwrites_nothing_and_leaves_nothing_behind() {
    let server = Running::start().await;
    let socket = server.dir.path().join("run/coordinator.sock");
    let file = server.dir.path().join("precious");
    std::fs::write(&file, "something else").unwrap();
    let (code, text) = said(&pvemesh(line(&[&"backup", &file, &"--socket", &socket])).await);
    assert!(code == Some(5) && text.contains("never overwritten"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), b"something else");
    let names: Vec<_> = std::fs::read_dir(server.dir.path().join("state")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("partial")), "{names:?}");
}

#[tokio::test]
async fn the_servers_key_does_not_leave_through_the_control_protocol() {
    let server = Running::start().await;
    let admin = AdminClient::connect(&server.url(), None, &admin_key()).await.unwrap();
    admin.info().await.unwrap();
    let connection = pvemesh::sys::dial::ControlConnection::connect(&server.url(), &server.coordinator.server_key(), &admin_key()).await;
    let path = format!("{}backup", pvemesh::wire::admin::ADMIN_PREFIX);
    let answer = connection.unwrap().get_json::<serde_json::Value>(&path).await;
    let text = format!("{:?}", answer.unwrap_err());
    assert!(text.contains("403") && !text.contains("privkey"), "{text}");
}

#[tokio::test]
async fn a_running_coordinator_is_not_restored_over_and_a_stopped_one_only_by_force() {
    let server = Running::start().await;
    server.joined(1, "alpha").await;
    let state = server.dir.path().join("state");
    let file = server.dir.path().join("backup.sqlite");
    backup::save(&server.admin().backup().await.unwrap(), &file).unwrap();
    server.joined(2, "beta").await;
    let force = line(&[&"restore", &file, &"--state-dir", &state, &"--force"]);
    let (code, text) = said(&pvemesh(force.clone()).await);
    assert!(code == Some(5) && text.contains("in use") && text.contains("stop the coordinator first"), "{text}");
    assert_eq!(server.admin().nodes().await.unwrap().len(), 2);

    let Running { dir, coordinator } = server;
    coordinator.stop().await;
    let (code, text) = said(&pvemesh(line(&[&"restore", &file, &"--state-dir", &state])).await);
    assert!(code == Some(5) && text.contains("--force"), "{text}");
    // A backup of the stopped one: its files are read instead.
    let offline = dir.path().join("offline.sqlite");
    let socket = dir.path().join("run/coordinator.sock");
    let made = pvemesh(line(&[&"backup", &offline, &"--socket", &socket, &"--state-dir", &state])).await;
    assert!(made.status.success(), "{}", said(&made).1);
    assert!(pvemesh(force).await.status.success());
    assert!(state.join("coordinator.sqlite.old").is_file() && state.join("noise.key.old").is_file());
    let server = Running::start_in(dir).await;
    assert_eq!(server.admin().nodes().await.unwrap().len(), 1);
    server.coordinator.stop().await;
    let contents = backup::restore(&offline, &state, true).unwrap();
    assert_eq!(contents.nodes, 2, "the state of when it was stopped");
}

#[tokio::test]
async fn what_is_no_backup_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let running = Running::start().await;
    let whole = running.admin().backup().await.unwrap();
    let (garbage, cut, plain, missing) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"), dir.path().join("d"));
    std::fs::write(&garbage, "not a database").unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    // A copy of the database alone has no key in it.
    std::fs::write(&plain, &*whole).unwrap();
    rusqlite::Connection::open(&plain).unwrap().execute_batch("DROP TABLE backup").unwrap();
    for (file, reason) in
        [(&garbage, "no SQLite file"), (&cut, "not a usable backup"), (&plain, "no server key"), (&missing, "No such file")]
    {
        let error = backup::restore(file, &state, false).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(std::fs::read_dir(&state).map_or(0, Iterator::count), 0);
    }
    let nothing = backup::of_directory(&state).unwrap_err();
    assert!(nothing.to_string().contains("no coordinator's state"), "{nothing}");
}
