//! The demo as a test, and on the lab it leaves up, the faults of real life one after the other.

use std::process::{Command, Stdio};
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
    let demo = stage.lab().args(["demo", "--keep", "--binary"]).arg(&stage.pvemesh).arg("--result").arg(result.path()).output();
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
    a_container_stops_promptly(&stage);
    a_node_waits_for_a_coordinator_that_is_not_up_yet(&stage);
    a_plain_node_gets_its_lan_address_by_dhcp(&stage);
    others_take_the_exit_nodes_place(&stage);
    destroy_leaves_nothing(&stage);
}

/// The home router forwards a port to one address, so who has it is to change.
const REACHABLE: &str = "--ip 192.168.50.101/24 --gw 192.168.50.1 --endpoint 203.0.113.10:41641";

fn others_take_the_exit_nodes_place(stage: &Stage) {
    let stopped = stage.pvesh("create /nodes/pve/lxc/101/status/shutdown --timeout 10");
    assert!(stopped.status.success(), "{}", said(&stopped));
    a_node_without_a_device_carries_the_laptops_traffic(stage);
    a_subnet_router_finds_the_network_it_stands_in(stage);
    let started = stage.pvesh("create /nodes/pve/lxc/101/status/start");
    assert!(started.status.success(), "{}", said(&started));
    stage.answer("laptop", "node set --exit-node exit-1");
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "no traffic through the first exit node again");
}

fn a_node_without_a_device_carries_the_laptops_traffic(stage: &Stage) {
    stage.answer("pve", &format!("create-exit-node 103 --name exit-3 --tun userspace {REACHABLE}"));
    let config = stage.pvesh("get /nodes/pve/lxc/103/config --output-format json");
    assert!(!said(&config).contains("/dev/net/tun"), "{}", said(&config));
    stage.answer("laptop", "node set --exit-node exit-3");
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "{}", stage.answer("laptop", "node status"));
    stage.answer("laptop", "node set --exit-node=");
    stage.answer("pve", "destroy 103 --yes");
}

fn a_subnet_router_finds_the_network_it_stands_in(stage: &Stage) {
    let host = ["exec", "laptop", "--", "ping", "-q", "-c", "1", "-W", "1", "192.168.50.1"];
    let reaches = || stage.lab().args(host).output().unwrap().status.success();
    stage.answer("laptop", "node set --accept-routes");
    assert!(!reaches(), "the laptop in the cafe reaches the LAN already");
    let made = stage.answer("pve", &format!("--json create-subnet-router 105 --name lan-5 --route auto {REACHABLE}"));
    let made: Value = serde_json::from_str(&made).unwrap();
    let route = made["choices"].as_array().unwrap().iter().find(|choice| choice["what"] == "route").cloned().unwrap_or_default();
    assert_eq!(route["value"], "192.168.50.0/24", "{made}");
    assert!(until(Duration::from_secs(30), reaches), "{}", stage.answer("laptop", "node status"));
    stage.answer("laptop", "node set --accept-routes=false");
    stage.answer("pve", "destroy 105 --yes");
}

fn traffic_goes_on_while_the_coordinator_restarts(stage: &Stage) {
    let addresses = stage.answer("laptop", "node ip");
    let mut ping = stage.lab();
    ping.args(["exec", "laptop", "--", "ping", "-q", "-i", "0.1", "-c", "80", "192.0.2.80"]).stdout(Stdio::piped());
    let ping = ping.spawn().unwrap();
    let before = process_number(stage);
    let restarted = stage.pvesh("create /nodes/pve/lxc/100/status/reboot --timeout 10");
    assert!(restarted.status.success() && restarted.stderr.is_empty(), "{}", said(&restarted));
    assert_ne!(process_number(stage), before, "the coordinator's container did not restart");
    let output = ping.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(" 0% packet loss"), "{text}");
    let answers = until(Duration::from_secs(20), || {
        stage.lab().args(["fetch", "laptop", "203.0.113.10:41641", "/key?v=130"]).output().unwrap().status.success()
    });
    assert!(answers, "the coordinator did not come back");
    assert_eq!(stage.answer("laptop", "node ip"), addresses, "the restart changed addresses");
}

/// The first process of the coordinator's container, as the host counts.
fn process_number(stage: &Stage) -> u64 {
    let status = stage.pvesh("get /nodes/pve/lxc/100/status/current --output-format json");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    status["pid"].as_u64().expect("it runs")
}

/// A process of a container, by its command line.
fn node_process(container: &str, word: &str) -> Option<i32> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_string_lossy().parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        (groups.contains(container) && line.contains(word)).then_some(pid)
    })
}

/// Policy rules, table 52 and packet filter of the exit node's container.
fn rules(pid: i32) -> Vec<String> {
    let ask = |words: &[&str]| {
        let output = Command::new("nsenter").args(["-t", &pid.to_string(), "-n"]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed =
        [ask(&["ip", "rule"]), ask(&["ip", "-6", "rule"]), ask(&["ip", "route", "show", "table", "52"]), ask(&["nft", "list", "ruleset"])];
    listed.iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

fn a_killed_node_comes_back_as_itself_without_leftovers(stage: &Stage) {
    let exit_node = stage.answer("laptop", "node ip exit-1");
    let pid = node_process("pvl-101", "node run").expect("the exit node runs");
    let before = rules(pid);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let again = until(Duration::from_secs(20), || node_process("pvl-101", "node run").is_some_and(|p| p != pid));
    assert!(again, "the node was not started again");
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "no traffic after the node was killed");
    assert_eq!(stage.answer("laptop", "node ip exit-1"), exit_node, "the node came back as another");
    let new = node_process("pvl-101", "node run").unwrap();
    assert!(until(Duration::from_secs(10), || rules(new) == before), "rules before {before:#?}, after {:#?}", rules(new));
}

fn a_container_stops_promptly(stage: &Stage) {
    let start = Instant::now();
    let stopped = stage.pvesh("create /nodes/pve/lxc/101/status/shutdown --timeout 10");
    let took = start.elapsed();
    assert!(stopped.status.success() && stopped.stderr.is_empty(), "{}", said(&stopped));
    // The time of the halt itself is below a second; the rest is for asking and hearing of it.
    assert!(took < Duration::from_secs(8), "{took:?}");
    let started = stage.pvesh("create /nodes/pve/lxc/101/status/start");
    assert!(started.status.success() && started.stderr.is_empty(), "{}", said(&started));
    assert!(until(Duration::from_secs(30), || stage.web_page() == HOME), "no traffic after a restart of the container");
}

fn a_node_waits_for_a_coordinator_that_is_not_up_yet(stage: &Stage) {
    let key = stage.answer("pve", "keys create --only-for late");
    let file = stage.dir.join("late.key");
    std::fs::write(&file, key).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let stopped = stage.pvesh("create /nodes/pve/lxc/100/status/shutdown --timeout 10");
    assert!(stopped.status.success() && stopped.stderr.is_empty(), "{}", said(&stopped));
    let up = format!("node up --login-server http://203.0.113.10:41641 --auth-key-file {} --hostname late", file.display());
    let mut up = stage.pvemesh("inet", &up).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(until(Duration::from_secs(10), || stage.dir.join("inet/node.sock").exists()), "the late node did not start");
    assert_eq!(stage.web_page(), HOME, "traffic stopped with the coordinator");
    let started = stage.pvesh("create /nodes/pve/lxc/100/status/start");
    assert!(started.status.success() && started.stderr.is_empty(), "{}", said(&started));
    let joined = until(Duration::from_secs(60), || stage.pvemesh("pve", "keys list").output().unwrap().status.success());
    assert!(joined, "the coordinator did not come back");
    let mut address = String::new();
    let joined = until(Duration::from_secs(60), || {
        let output = stage.pvemesh("inet", "node ip -4").output().unwrap();
        address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && address.starts_with("100.")
    });
    let _ = up.wait();
    assert!(joined, "the late node did not join: {}", said(&stage.pvemesh("inet", "node status").output().unwrap()));
    stage.answer("inet", "node logout");
}

fn a_plain_node_gets_its_lan_address_by_dhcp(stage: &Stage) {
    stage.answer("pve", "create-node 102 --name plain");
    let listed = stage.pvesh("get /nodes/pve/lxc/102/interfaces --output-format json");
    let interfaces: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let eth0 = interfaces.as_array().unwrap().iter().find(|i| i["name"] == "eth0").expect("eth0").clone();
    assert!(eth0["inet"].as_str().unwrap().starts_with("192.168.50.1"), "{eth0}");
    let leases = std::fs::read_to_string(stage.dir.join("leases")).unwrap();
    assert!(leases.contains(eth0["inet"].as_str().unwrap().split('/').next().unwrap()), "{leases}");
    let exit_node = stage.answer("laptop", "node ip -4 exit-1");
    let inside = node_process("pvl-102", "node run").expect("the node runs").to_string();
    let ping = ["-t", inside.as_str(), "-n", "ping", "-q", "-c", "1", "-W", "2", exit_node.as_str()];
    let reached = until(Duration::from_secs(20), || Command::new("nsenter").args(ping).output().unwrap().status.success());
    assert!(reached, "it cannot reach the exit node: {}", said(&stage.pvemesh("laptop", "node status").output().unwrap()));
    a_relay_in_a_container_is_found_by_all_nodes_and_goes_with_it(stage, inside.parse().unwrap());
    stage.answer("pve", "destroy 102 --yes");
}

/// `node` is the process of a node on the same LAN.
fn a_relay_in_a_container_is_found_by_all_nodes_and_goes_with_it(stage: &Stage, node: i32) {
    stage.answer("pve", "create-relay 104 --name relay-104");
    let socket = format!("/proc/{node}/root/run/pvemesh/node.sock");
    let netcheck = || -> Value {
        let output = Command::new(&stage.pvemesh).args(["--json", "node", "--socket", &socket, "netcheck"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    let region = |report: &Value| {
        let codes = report["RegionCode"].as_object().cloned().unwrap_or_default();
        codes.into_iter().find(|(_, code)| *code == "relay-104").map(|(number, _)| number)
    };
    let answered = until(Duration::from_secs(30), || {
        let report = netcheck();
        region(&report).is_some_and(|number| report["RegionLatency"][number.as_str()].as_u64().is_some_and(|latency| latency > 0))
    });
    let report = netcheck();
    assert!(answered, "the relay does not answer: {report}");
    let number = region(&report).unwrap();
    assert!(report["RelayTrouble"][number.as_str()].is_null(), "{report}");
    // Its processes: one keeps the other.
    assert!(node_process("pvl-104", "relay serve").is_some(), "no relay runs in the container");
    stage.answer("pve", "destroy 104 --yes");
    assert!(until(Duration::from_secs(10), || region(&netcheck()).is_none()), "the relay is still in the map: {}", netcheck());
    assert!(!stage.dir.join("pve/containers/104").exists());
}

fn destroy_leaves_nothing(stage: &Stage) {
    let images = || std::fs::read_dir(stage.dir.join("pve/storage/local/template/cache")).unwrap().count();
    stage.answer("pve", "destroy 101 --yes");
    let listed = stage.pvesh("get /nodes/pve/lxc --output-format json");
    let guests: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let ids: Vec<_> = guests.as_array().unwrap().iter().map(|g| g["vmid"].as_u64().unwrap()).collect();
    assert_eq!(ids, [100]);
    assert!(!stage.dir.join("pve/containers/101").exists());
    let forgotten = until(Duration::from_secs(10), || !stage.pvemesh("laptop", "node ip exit-1").output().unwrap().status.success());
    assert!(forgotten, "exit-1 is still known: {}", stage.answer("laptop", "node status"));
    stage.answer("pve", "destroy 100 --yes");
    assert_eq!(images(), 0, "an image was left in the storage");
}
