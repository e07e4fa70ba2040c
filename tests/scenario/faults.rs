//! The demo as a test, and on the lab it leaves up, the faults of real life one after the other.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::stage::{Stage, said, until};

const HOME: &str = "203.0.113.10";
const CAFE: &str = "198.51.100.20";

#[test]
fn a_laptop_in_a_cafe_leaves_through_home_and_stays_so_through_faults() {
    let stage = match Stage::new() {
        Ok(stage) => stage,
        Err(why) => return println!("skipped: {why}"),
    };
    let result = tempfile::NamedTempFile::new().unwrap();
    let demo =
        stage.lab().args(["demo", "--no-lock", "--keep", "--binary"]).arg(&stage.pvemesh).arg("--result").arg(result.path()).output();
    let demo = demo.unwrap();
    println!("{}", said(&demo));
    assert!(demo.status.success(), "the demo failed");
    let figures: Value = serde_json::from_slice(&std::fs::read(result.path()).unwrap()).unwrap();
    assert_eq!((figures["web_before"].as_str(), figures["web_after"].as_str()), (Some(CAFE), Some(HOME)));
    for key in ["seconds_to_first_packet", "rtt_ms", "bare_rtt_ms", "tcp_ratio", "node_rss_kib", "binary_bytes", "image_bytes"] {
        assert!(figures[key].as_f64().unwrap() > 0.0, "{key}: {}", figures[key]);
    }
    traffic_goes_on_while_the_coordinator_restarts(&stage);
    a_killed_node_comes_back_as_itself_without_leftovers(&stage);
    a_container_stops_within_a_second(&stage);
    destroy_leaves_nothing(&stage);
}

fn traffic_goes_on_while_the_coordinator_restarts(stage: &Stage) {
    let addresses = stage.answer("laptop", "node ip");
    let mut ping = stage.lab();
    ping.args(["exec", "laptop", "--", "ping", "-q", "-i", "0.1", "-c", "80", "192.0.2.80"]).stdout(Stdio::piped());
    let ping = ping.spawn().unwrap();
    let restarted = stage.pvesh("create /nodes/pve/lxc/100/status/reboot --timeout 10");
    assert!(restarted.status.success(), "{}", said(&restarted));
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(" 0% packet loss"), "{text}");
    let answers = until(Duration::from_secs(20), || {
        stage.lab().args(["fetch", "laptop", "203.0.113.10:41641", "/key?v=130"]).output().unwrap().status.success()
    });
    assert!(answers, "the coordinator did not come back");
    assert_eq!(stage.answer("laptop", "node ip"), addresses, "the restart changed addresses");
}

/// The mesh node's process in the exit node's container.
fn node_process(word: &str) -> Option<i32> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_string_lossy().parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        (groups.contains("pvl-101") && line.contains(word)).then_some(pid)
    })
}

/// Policy rules, table 52 and packet filter of the exit node's container.
fn rules(pid: i32) -> Vec<String> {
    let ask = |words: &[&str]| {
        let output = std::process::Command::new("nsenter").args(["-t", &pid.to_string(), "-n"]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed =
        [ask(&["ip", "rule"]), ask(&["ip", "-6", "rule"]), ask(&["ip", "route", "show", "table", "52"]), ask(&["nft", "list", "ruleset"])];
    listed.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

fn a_killed_node_comes_back_as_itself_without_leftovers(stage: &Stage) {
    let exit_node = stage.answer("laptop", "node ip exit-1");
    let pid = node_process("node run").expect("the exit node runs");
    let before = rules(pid);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let again = until(Duration::from_secs(20), || node_process("node run").is_some_and(|p| p != pid));
    assert!(again, "the node was not started again");
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "no traffic after the node was killed");
    assert_eq!(stage.answer("laptop", "node ip exit-1"), exit_node, "the node came back as another");
    let new = node_process("node run").unwrap();
    assert!(until(Duration::from_secs(10), || rules(new) == before), "rules before {before:#?}, after {:#?}", rules(new));
}

fn a_container_stops_within_a_second(stage: &Stage) {
    let start = Instant::now();
    let stopped = stage.pvesh("create /nodes/pve/lxc/101/status/shutdown --timeout 10");
    let took = start.elapsed();
    assert!(stopped.status.success() && stopped.stderr.is_empty(), "{}", said(&stopped));
    // The time of the halt itself is below a second; the rest is for asking and hearing of it.
    assert!(took < Duration::from_millis(1500), "{took:?}");
    let started = stage.pvesh("create /nodes/pve/lxc/101/status/start");
    assert!(started.status.success() && started.stderr.is_empty(), "{}", said(&started));
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "no traffic after a restart of the container");
}

fn destroy_leaves_nothing(stage: &Stage) {
    let images = || std::fs::read_dir(stage.dir.join("pve/storage/local/template/cache")).unwrap().count();
    stage.answer("pve", "destroy 101 --yes");
    let listed = stage.pvesh("get /nodes/pve/lxc --output-format json");
    let guests: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let ids: Vec<_> = guests.as_array().unwrap().iter().map(|g| g["vmid"].as_u64().unwrap()).collect();
    assert_eq!(ids, [100]);
    assert!(!stage.dir.join("pve/containers/101").exists());
    assert!(!stage.pvemesh("laptop", "node ip exit-1").output().unwrap().status.success(), "exit-1 is still known");
    stage.answer("pve", "destroy 100 --yes");
    assert_eq!(images(), 0, "an image was left in the storage");
}
