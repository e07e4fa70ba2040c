//! What doctor says of hosts, storages, hooks and the firewall: each is provoked, named with its fix, and gone once that was done.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::standin::Storage;
use crate::standin::cluster::Host;
use crate::world::{CREATE, Ran, World};

/// Two hosts, each with its own storages; an exit node on the first.
fn world() -> World {
    let world = World::with(|options| {
        options.storages.push(Storage { name: "own".to_owned(), kind: "dir".to_owned(), content: "snippets".to_owned() });
        options.others = vec![Host { storages: options.storages.clone(), ..Host::new("pve2") }];
    });
    world.init();
    world
}

fn findings(ran: &Ran) -> Vec<Value> {
    let all = ran.json()["findings"].as_array().unwrap().clone();
    // The API alone does not lead into guests.
    all.into_iter().filter(|finding| finding["code"] != "not-entered").collect()
}

fn nothing(world: &World) -> bool {
    let ran = world.run("doctor --json");
    ran.code == Some(0) && findings(&ran).is_empty()
}

/// The one finding there is.
#[track_caller]
fn only(world: &World, exit: i32, code: &str) -> Value {
    let ran = world.run("doctor --json");
    let [found] = findings(&ran).try_into().unwrap_or_else(|all| panic!("{code} alone: {all:#?}"));
    assert!(ran.code == Some(exit) && found["code"] == code, "{ran:?}");
    let shown = world.run("doctor");
    assert!(shown.out.contains(&format!("[{code}]")) && shown.out.contains(found["fix"].as_str().unwrap()), "{shown:?}");
    found
}

#[track_caller]
fn says(finding: &Value, field: &str, parts: &[&str]) {
    let text = finding[field].as_str().unwrap();
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {finding:#}");
}

#[test]
fn a_host_whose_clock_is_off_is_named_and_an_hour_is_an_hour() {
    let world = world();
    world.create("").succeeded();
    assert!(nothing(&world));
    world.standin.set_clock("pve2", 3600);
    let found = only(&world, 1, "clock");
    assert_eq!(found["subject"], "node pve2");
    says(&found, "what", &["s ahead of this machine's"]);
    says(&found, "fix", &["chronyc tracking"]);
    let seconds: i64 = found["what"].as_str().unwrap().split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!((3500..=3700).contains(&seconds), "{found}");
    world.standin.set_clock("pve2", -600);
    says(&only(&world, 1, "clock"), "what", &["s behind this machine's"]);
    // What no certificate minds is no finding.
    world.standin.set_clock("pve2", 30);
    assert!(nothing(&world));
}

#[test]
fn a_storage_that_is_too_full_for_images_is_named_and_a_guest_waits_for_room() {
    let world = world();
    world.standin.set_room("pve", "local", 10 << 20);
    let found = only(&world, 1, "template-storage-full");
    assert_eq!(found["subject"], "node pve");
    says(&found, "what", &["storage local has 10 MiB free"]);
    says(&found, "fix", &["pvesm list local"]);
    // The other host has room, and the guest would go there.
    let refused = world.create("--node pve");
    refused.failed(5, &["container templates", "local has 10 MiB", "pvesm list local"]);
    assert!(world.is_untouched(), "{refused:?}");
    world.standin.set_room("pve", "local", 1 << 40);
    assert!(nothing(&world));
    world.create("--node pve").succeeded();
}

fn set(world: &World, path: &str, parameters: &[(&str, &str)]) {
    world.call("PUT", path, parameters);
}

#[test]
fn a_firewall_that_lets_only_own_addresses_out_is_named_in_both_its_forms() {
    let world = world();
    world.create("--node pve").succeeded();
    world.standin.edit(101, |config| {
        let interface = format!("{},firewall=1", config.get("net0").unwrap().replace(",firewall=0", ""));
        config.set("net0", &interface);
    });
    says(&only(&world, 0, "firewall-on"), "what", &["net0"]);
    let place = "/nodes/pve/lxc/101/firewall";
    set(&world, &format!("{place}/options"), &[("enable", "1"), ("ipfilter", "1")]);
    // The cluster's own switch is off: it would be trouble.
    let found = only(&world, 0, "firewall-ipfilter");
    says(&found, "what", &["once the firewall is on"]);
    set(&world, "/cluster/firewall/options", &[("enable", "1")]);
    let found = only(&world, 1, "firewall-ipfilter");
    assert_eq!((&found["severity"], &found["subject"]), (&json!("fault"), &json!("101 (exit-1)")));
    says(&found, "fix", &["pvesh set /nodes/pve/lxc/101/firewall/options --ipfilter 0", "firewall=1 off net0"]);
    set(&world, &format!("{place}/options"), &[("ipfilter", "0")]);
    only(&world, 0, "firewall-on");
    // A set of addresses for the interface does the same; one for another does not.
    world.call("POST", &format!("{place}/ipset"), &[("name", "ipfilter-net1")]);
    only(&world, 0, "firewall-on");
    world.call("POST", &format!("{place}/ipset"), &[("name", "ipfilter-net0")]);
    let found = only(&world, 1, "firewall-ipfilter");
    says(&found, "fix", &["pvesh delete /nodes/pve/lxc/101/firewall/ipset/ipfilter-net0 --force 1"]);
    world.call("DELETE", &format!("{place}/ipset/ipfilter-net0?force=1"), &[]);
    only(&world, 0, "firewall-on");
}

fn script(world: &World, host: &str, storage: &str) -> PathBuf {
    let path = world.standin.storage_dir_on(host, storage).join("snippets/mine.sh");
    std::fs::write(&path, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_hookscript_that_another_host_lacks_is_named_and_the_guest_does_not_start_there_indeed() {
    let world = world();
    world.create("--node pve").succeeded();
    script(&world, "pve", "own");
    world.standin.edit(101, |config| config.set("hookscript", "own:snippets/mine.sh"));
    let found = only(&world, 1, "hookscript-missing");
    says(&found, "what", &["own:snippets/mine.sh is not on pve2"]);
    says(&found, "fix", &["copy the script there", "pct set 101 --delete hookscript"]);
    world.call("POST", "/nodes/pve/lxc/101/migrate", &[("target", "pve2"), ("restart", "1")]);
    let exits = world.standin.task_exits();
    assert!(!world.standin.is_running(101) && exits.last().unwrap().1.as_deref() == Some("migration problems"), "{exits:?}");
    assert!(world.standin.task_lines().iter().any(|line| line.contains("script 'own:snippets/mine.sh' does not exist")));
    script(&world, "pve2", "own");
    world.call("POST", "/nodes/pve2/lxc/101/status/start", &[]);
    assert!(world.standin.is_running(101) && nothing(&world));
}

/// Every storage called `local` holds scripts that Proxmox runs and does not list.
#[test]
fn a_hookscript_on_a_storage_that_does_not_list_it_is_looked_for_on_the_hosts_themselves() {
    let world = world();
    world.create("--node pve").succeeded();
    script(&world, "pve", "local");
    world.standin.edit(101, |config| config.set("hookscript", "local:snippets/mine.sh"));
    assert!(nothing(&world), "nobody has looked");
    // The way of `ssh root@HOST LINE`: each host has its own directory at the same place.
    let bin = world.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let (first, second) = (world.standin.storage_dir("local"), world.standin.storage_dir_on("pve2", "local"));
    let line = format!("echo \"$2\" | sed 's#{}#{}#g'", first.display(), second.display());
    let text = format!(
        "#!/bin/sh\nPATH=/usr/bin:/bin\nwhile [ $# -gt 2 ]; do shift; done\n[ \"$1\" = root@pve2 ] && exec sh -c \"$({line})\"\nexec sh -c \"$2\"\n"
    );
    std::fs::write(bin.join("ssh"), text).unwrap();
    std::fs::set_permissions(bin.join("ssh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let missing = || {
        let ran = run_with(&world, &bin, "doctor --json --ssh root@{node}");
        findings(&ran).iter().filter(|f| f["code"] == "hookscript-missing").map(|f| f["what"].to_string()).collect::<Vec<_>>()
    };
    let found = missing();
    assert!(found.len() == 1 && found[0].contains("is not on pve2"), "{found:?}");
    script(&world, "pve2", "local");
    assert_eq!(missing(), Vec::<String>::new());
}

fn run_with(world: &World, bin: &Path, words: &str) -> Ran {
    let mut command: Command = world.command(words);
    Ran::of(command.env("PATH", bin).output().unwrap())
}

/// The table of faults has them full midway; here they are from the start.
#[test]
fn with_every_template_storage_full_nothing_is_begun() {
    let world = World::new();
    world.init();
    world.standin.set_room("pve", "local", 1 << 20);
    let refused = world.run(CREATE);
    refused.failed(5, &["container templates", "local has 1 MiB", "pvesm list local"]);
    assert!(world.is_untouched() && world.standin.calls().writes().is_empty(), "{refused:?}");
}
