//! A cluster of two hosts with real containers: a node moves, another setting is handed over, and a declared fleet comes up.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::stage::{Stage, said, until};

const HOME: &str = "203.0.113.10";

#[test]
fn nodes_move_between_hosts_take_new_settings_and_come_in_fleets() {
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(why) => return println!("skipped: {why}"),
    };
    let demo = stage.lab().args(["demo", "--keep", "--quick", "--hosts", "2", "--binary"]).arg(&stage.pvemesh).output().unwrap();
    assert!(demo.status.success(), "{}", said(&demo));
    a_migrated_exit_node_carries_traffic_again(&stage);
    a_changed_setting_reaches_the_guest_which_stays_itself(&stage);
    a_declared_fleet_comes_up_and_is_left_alone_the_second_time(&stage);
    for id in ["101", "110", "111", "112", "100"] {
        stage.answer("pve", &format!("destroy {id} --yes"));
    }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn row(stage: &Stage, id: u32) -> Value {
    let all = value(&stage.answer("pve", "--json list"));
    all.as_array().unwrap().iter().find(|row| row["vmid"] == id).cloned().unwrap_or_else(|| panic!("{id} is not in {all}"))
}

fn a_migrated_exit_node_carries_traffic_again(stage: &Stage) {
    let before = stage.answer("laptop", "node ip");
    let from = row(stage, 101)["node"].as_str().unwrap().to_owned();
    let to = if from == "pve" { "pve2" } else { "pve" };
    let mut ping = stage.lab();
    ping.args(["exec", "laptop", "--", "ping", "-q", "-i", "0.1", "-c", "150", "192.0.2.80"]).stdout(Stdio::piped());
    let ping = ping.spawn().unwrap();
    let moved = stage.pvesh(&format!("create /nodes/{from}/lxc/101/migrate --target {to} --restart 1"));
    assert!(moved.status.success() && moved.stderr.is_empty(), "{}", said(&moved));
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let received: u32 = text.split(", ").nth(1).and_then(|part| part.split(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{text}"));
    let away = f64::from(150 - received) / 10.0;
    println!("migration: about {away} s without traffic, the stop and start of the container included");
    assert!(received >= 50, "the exit node did not come back within ten seconds: {text}");
    assert_eq!(row(stage, 101)["node"], to);
    assert_eq!((stage.web_page(), stage.answer("laptop", "node ip")), (HOME.to_owned(), before));
}

fn a_changed_setting_reaches_the_guest_which_stays_itself(stage: &Stage) {
    let addresses = row(stage, 101)["mesh_addresses"].clone();
    let changed = value(&stage.answer("pve", "--json create-exit-node 101 --dns 192.168.50.1 --memory 96"));
    let what: Vec<&str> = changed["differences"].as_array().unwrap().iter().filter_map(|d| d["what"].as_str()).collect();
    assert_eq!(what, ["memory", "address"], "{changed}");
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "{}", stage.answer("laptop", "node status"));
    assert_eq!(row(stage, 101)["mesh_addresses"], addresses);
    let again = value(&stage.answer("pve", "--json create-exit-node 101 --dns 192.168.50.1 --memory 96"));
    assert_eq!(again["changed"], false, "{again}");
    // Another name: in Proxmox, at the coordinator, and in the guest.
    stage.answer("pve", "create-exit-node 101 --name way-out");
    let renamed = row(stage, 101);
    assert_eq!((&renamed["name"], &renamed["mesh_addresses"]), (&"way-out".into(), &addresses), "{renamed}");
    assert!(stage.answer("laptop", "node status").contains("way-out"), "the laptop has not heard of it");
}

fn a_declared_fleet_comes_up_and_is_left_alone_the_second_time(stage: &Stage) {
    let file = stage.dir.join("admin/fleet.toml");
    std::fs::write(&file, "[[guest]]\nid = 101\nrole = \"exit-node\"\n[[guest]]\nid = \"110-112\"\nrole = \"node\"\n").unwrap();
    let apply = format!("--json apply {}", file.display());
    let begun = Instant::now();
    let report = value(&stage.answer("pve", &apply));
    println!("three nodes in real containers: {:.1} s, {} calls", begun.elapsed().as_secs_f64(), report["calls"]);
    let outcomes: Vec<_> = report["guests"].as_array().unwrap().iter().map(|row| row["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["unchanged", "created", "created", "created"], "{report}");
    let online = |id: u32| row(stage, id)["online"] == true;
    assert!(until(Duration::from_secs(20), || (110..=112).all(online)));
    let again = value(&stage.answer("pve", &apply));
    assert_eq!(again["calls"], 5, "{again}");
}
