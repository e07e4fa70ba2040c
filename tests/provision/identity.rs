//! Clones, restored backups, rolled-back snapshots and destroyed guests, with nodes that really hold keys.

use std::process::Command;

use serde_json::{Value, json};

use crate::estate::Estate;

/// A node's public keys, at the coordinator.
fn keys(node: &Value) -> (String, String) {
    let text = |field: &str| node[field].as_str().unwrap().to_owned();
    (text("key"), text("machine_key"))
}

fn clone(estate: &Estate, from: u32, to: u32) {
    estate.call("POST", &format!("/nodes/{}/lxc/{from}/clone", estate.node_name()), &[("newid", &to.to_string()), ("full", "1")]);
}

fn copy(from: std::path::PathBuf, to: std::path::PathBuf) {
    let _ = std::fs::remove_dir_all(&to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_clone_gets_keys_and_a_name_of_its_own_and_the_original_keeps_its_own() {
    let estate = Estate::remote("pve");
    estate.create(101);
    estate.at_rest();
    let original = keys(&estate.wait_online("exit-1"));
    estate.stop(101);
    clone(&estate, 101, 102);
    estate.start(101);
    estate.wait_online("exit-1");
    estate.start(102);
    let shown = estate.world.run("sync --dry-run --json").succeeded().json();
    let calls = shown["changes"].to_string();
    assert!(calls.contains("copy of guest 101") && calls.contains("only_for=exit-2") && !calls.contains("pvmkey"), "{calls}");
    assert!(estate.node("exit-2").is_none(), "nothing was changed");
    let done = estate.world.run("sync --json");
    let report = done.succeeded().json();
    assert!(report["changed"] == true && !done.out.contains("pvmkey") && !done.err.contains("pvmkey"), "{done:?}");
    let clone = estate.wait_online("exit-2");
    assert!(keys(&clone).0 != original.0 && keys(&clone).1 != original.1);
    assert_ne!(clone["addresses"], estate.node("exit-1").unwrap()["addresses"]);
    estate.world.wait("the original is back under its own keys", || {
        estate.node("exit-1").is_some_and(|n| n["online"] == true && keys(&n) == original)
    });
    let config = estate.world.standin.config(102).unwrap();
    assert_eq!(config.get("hostname"), Some("exit-2"));
    assert!(estate.notes(102).contains("vmid=102 role=exit-node name=exit-2"), "{}", estate.notes(102));
    // The key is in no configuration: what was there is taken back.
    assert!(config.show(false, true).get("env").is_none(), "{:?}", config.show(false, true));
    estate.at_rest();
}

#[test]
fn a_refused_clone_has_no_keys_at_all() {
    let estate = Estate::remote("pve");
    std::fs::write(
        estate.world.path("config/config.toml"),
        std::fs::read_to_string(estate.world.path("config/config.toml")).unwrap() + "\n[guests]\nclones = \"refuse\"\n",
    )
    .unwrap();
    estate.create(101);
    estate.at_rest();
    estate.stop(101);
    clone(&estate, 101, 102);
    estate.start(102);
    estate.sync();
    let state = estate.world.path("host/containers/102/rootfs/var/lib/pvemesh/node/state.json");
    estate.world.wait("its keys are gone", || !state.exists());
    let again = estate.sync();
    assert_eq!(again["changed"], json!(false));
    assert!(again["notes"].to_string().contains("stays out of the mesh"), "{again}");
}

#[test]
fn a_rolled_back_guest_gets_new_keys_and_keeps_name_and_address() {
    let estate = Estate::remote("pve");
    estate.create(101);
    estate.at_rest();
    let before = estate.wait_online("exit-1");
    let rootfs = estate.world.path("host/containers/101/rootfs");
    // The snapshot: disk and notes of now.
    estate.stop(101);
    copy(rootfs.clone(), estate.world.path("snapshot"));
    let notes = estate.notes(101);
    estate.start(101);
    estate.wait_online("exit-1");
    // What the hook starts after a start.
    estate.world.run("hook 101 settle").succeeded();
    assert!(estate.notes(101).contains(" gen=1 ") && !notes.contains(" gen="), "{}", estate.notes(101));
    estate.stop(101);
    copy(estate.world.path("snapshot"), rootfs);
    estate.call("PUT", "/nodes/pve/lxc/101/config", &[("description", &notes)]);
    estate.start(101);
    let report = estate.sync();
    assert!(report["changes"].to_string().contains("earlier state"), "{report}");
    let after = estate.wait_online("exit-1");
    assert_ne!(keys(&after).1, keys(&before).1, "keys of the past are not used again");
    assert_eq!(after["addresses"], before["addresses"]);
    estate.at_rest();
}

#[test]
fn a_destroyed_guest_takes_its_node_along_and_one_restored_from_its_backup_gets_its_place_back() {
    let estate = Estate::remote("pve");
    estate.create(101);
    estate.at_rest();
    let before = estate.wait_online("exit-1");
    let (rootfs, config) = (estate.world.path("host/containers/101/rootfs"), estate.world.standin.config(101).unwrap());
    estate.stop(101);
    copy(rootfs.clone(), estate.world.path("backup"));
    estate.call("DELETE", "/nodes/pve/lxc/101?purge=1", &[]);
    let report = estate.sync();
    assert!(report["changes"].to_string().contains("guest 101 is gone"), "{report}");
    assert!(estate.node("exit-1").is_none());
    assert_eq!(estate.sync()["changed"], json!(false));

    std::fs::create_dir_all(rootfs.parent().unwrap()).unwrap();
    copy(estate.world.path("backup"), rootfs);
    estate.world.standin.add_guest(101, config);
    estate.start(101);
    let report = estate.sync();
    assert!(report["changes"].to_string().contains("restored after its node had been removed"), "{report}");
    let after = estate.wait_online("exit-1");
    assert_ne!(keys(&after).1, keys(&before).1);
    assert_eq!(after["addresses"], before["addresses"]);
    estate.at_rest();
}

/// Scripts in the place of Proxmox's tools: `pvesh` speaks to the stand-in, `pct push` writes into a guest's files. What they are called with
/// is logged.
fn tools(estate: &Estate, lab: &std::path::Path) -> std::path::PathBuf {
    let (bin, log) = (estate.world.path("bin"), estate.world.path("arguments"));
    std::fs::create_dir_all(&bin).unwrap();
    let pvesh = format!("exec {} pvesh --socket {} -- \"$@\"", lab.display(), estate.world.standin.socket().display());
    let pct = format!("[ \"$1\" = push ] && exec cp \"$3\" {}/containers/\"$2\"/rootfs\"$4\"", estate.world.path("host").display());
    for (name, body) in [("pvesh", pvesh), ("pct", pct)] {
        let text = format!("#!/bin/sh\nPATH=/usr/bin:/bin\necho \"{name} $*\" >> {}\n{body}\n", log.display());
        std::fs::write(bin.join(name), text).unwrap();
        std::fs::set_permissions(bin.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    bin
}

#[test]
fn on_the_host_itself_a_running_clone_is_given_its_identity_without_a_restart_and_no_key_in_an_argument() {
    let Some(lab) = crate::join::lab().filter(|_| rustix::process::geteuid().is_root()) else {
        println!("skipped: the example pvemesh-lab is not built, or this is not root");
        return;
    };
    let name = rustix::system::uname().nodename().to_string_lossy().split('.').next().unwrap().to_owned();
    let estate = Estate::remote(&name);
    estate.create(101);
    estate.at_rest();
    let original = keys(&estate.wait_online("exit-1"));
    estate.stop(101);
    clone(&estate, 101, 102);
    estate.start(102);
    let pid = estate.guests.node_pid(102);
    // From here on as root on the host: no credentials.
    crate::estate::host_files(&estate.world);
    let config = estate.world.path("config/config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.split_once("[coordinator]").map(|(_, rest)| format!("[coordinator]{rest}")).unwrap()).unwrap();
    let bin = tools(&estate, &lab);
    let run = |words: &str| {
        let output = estate.world.command(words).env("PATH", &bin).output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let report = run("sync --json");
    assert!(report["changes"].to_string().contains("copy of guest 101"), "{report}");
    let clone = estate.wait_online("exit-2");
    assert!(keys(&clone).0 != original.0 && keys(&clone).1 != original.1);
    assert_eq!(estate.guests.node_pid(102), pid, "the same process goes on with other keys");
    let said = std::fs::read_to_string(estate.world.path("arguments")).unwrap();
    assert!(said.contains("pct push 102") && !said.contains("pvmkey"), "{said}");
    let left: Vec<_> =
        std::fs::read_dir(estate.world.path("config")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.starts_with("renewal")), "{left:?}");
    assert_eq!(run("sync --json")["changed"], json!(false));
}
