//! The whole program in network namespaces: coordinator, exit node, laptop, and a web server behind the exit node.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rand_core::{RngCore as _, SeedableRng as _};

use super::world::{Machine, World, possible, text, wait_for};

#[test]
fn a_laptops_traffic_leaves_through_the_exit_node_and_down_undoes_everything() {
    if !possible() {
        return;
    }
    let world = World::new();
    let (exit_before, laptop_before) = (world.exit.traces(), world.laptop.traces());
    assert_eq!(world.seen_by_web(), None, "without the mesh there is no way");
    world.start_exit_node();
    let key = world.key(&[]);
    let out = world.laptop.up(&[
        "--login-server",
        "http://10.9.1.1:8080",
        "--auth-key-file",
        &key,
        "--hostname",
        "laptop",
        "--exit-node",
        "exit-1",
    ]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).starts_with("100."), "{}", text(&out.stdout));
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));

    let ping = world.laptop.node(&["--json", "ping", "-c", "1", "exit-1"]);
    let report: serde_json::Value = serde_json::from_slice(&ping.stdout).unwrap();
    assert_eq!((report["received"].as_u64(), report["via"].as_str()), (Some(1), Some("10.9.1.2:41641")), "{report}");

    for machine in [&world.laptop, &world.exit] {
        assert!(machine.node(&["down"]).status.success());
        wait_for("the node's end", || machine.status().is_none().then_some(()));
    }
    assert_eq!(world.exit.traces(), exit_before);
    assert_eq!(world.laptop.traces(), laptop_before);
    assert_eq!(world.seen_by_web(), None);
}

#[test]
fn a_killed_node_comes_back_as_itself_and_a_stopped_one_leaves_nothing() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    let before = world.exit.traces();
    let key = std::fs::read_to_string(world.key(&["--approve-exit-node"])).unwrap();
    let guest = format!(
        "vmid = 101\nhostname = \"exit-1\"\n[network]\nipv4 = \"dhcp\"\n[node]\nlogin_server = \"http://10.9.1.1:8080\"\nauth_key = \"{}\"\nadvertise_exit_node = true\n",
        key.trim()
    );
    let config = world.exit.path("guest.toml");
    std::fs::write(&config, guest).unwrap();
    let arguments = ["--guest-config", config.to_str().unwrap()];
    world.exit.run_node(&arguments);
    let first = world.exit.wait_until_running();
    assert!(!std::fs::read_to_string(&config).unwrap().contains(key.trim()), "the join key is dropped once it has served");
    let at_work = world.exit.traces();

    let mut child = world.exit.children.pop().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    world.exit.run_node(&arguments);
    let second = world.exit.wait_until_running();
    assert_eq!(second["TailscaleIPs"], first["TailscaleIPs"]);
    assert_eq!(second["Self"]["PublicKey"], first["Self"]["PublicKey"]);
    assert_eq!(world.exit.traces(), at_work, "nothing of the killed one is left twice");

    // A second one on the same files is refused, and does the first no harm.
    let state = world.exit.path("state");
    let other = world.exit.node(&["run", "--state-dir", state.to_str().unwrap()]);
    assert!(!other.status.success() && text(&other.stderr).contains("another node runs"), "{}", text(&other.stderr));
    assert!(world.exit.status().is_some());

    let mut child = world.exit.children.pop().unwrap();
    let begun = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(world.exit.traces(), before);
    assert!(!world.exit.path("node.sock").exists());
}

#[test]
fn traffic_goes_on_while_the_coordinator_is_away_and_after_a_restart_of_the_node() {
    if !possible() {
        return;
    }
    let mut world = World::new();
    world.start_exit_node();
    let key = world.key(&[]);
    let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--exit-node", "exit-1"];
    assert!(world.laptop.up(&up).status.success());
    let mut coordinator = world.coordinator.children.pop().unwrap();
    coordinator.kill().unwrap();
    coordinator.wait().unwrap();
    wait_for("the loss of the coordinator", || world.laptop.status().filter(|s| s["CoordinatorOnline"] == false));
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));

    assert!(world.laptop.node(&["down"]).status.success());
    wait_for("the node's end", || world.laptop.status().is_none().then_some(()));
    let out = world.laptop.up(&["--timeout", "5s"]);
    assert!(out.status.success(), "the last map is enough: {}", text(&out.stderr));
    assert_eq!(world.seen_by_web().as_deref(), Some("203.0.113.2"));

    // One can leave a mesh whose coordinator is gone for good.
    let out = world.laptop.node(&["logout"]);
    assert!(out.status.success() && text(&out.stderr).contains("could not be told"), "{}", text(&out.stderr));
    assert_eq!(world.laptop.status().unwrap()["BackendState"], "NoState");
    assert!(!world.laptop.sh("ip route show table all").contains("pvemesh0"));
}

#[test]
fn what_cannot_be_had_is_taken_back() {
    if !possible() {
        return;
    }
    let world = World::new();
    let before = world.laptop.traces();
    let wrong = world.laptop.path("wrong");
    std::fs::write(&wrong, "hskey-auth-000000000000-wrong").unwrap();
    let out = world.laptop.up(&["--login-server", "http://10.9.1.1:8080", "--auth-key-file", wrong.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    wait_for("the end of what `up` started", || world.laptop.status().is_none().then_some(()));
    assert_eq!(world.laptop.traces(), before);

    let key = world.key(&[]);
    let join = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--exit-node", "nobody", "--timeout", "1s"];
    let out = world.laptop.up(&join);
    assert_eq!(out.status.code(), Some(5), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("nobody"));
    assert!(!world.laptop.sh("ip route show table 52").contains("default"), "traffic is not held back for a node that does not exist");

    let out = world.laptop.node(&["set", "--advertise-routes", "10.9.2.7/24"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("10.9.2.0/24"));
}

#[test]
fn a_coordinator_that_is_not_there_is_named_and_waited_for() {
    if !possible() {
        return;
    }
    let laptop = Machine::new("l");
    let key = laptop.path("key");
    std::fs::write(&key, "hskey-auth-000000000000-x").unwrap();
    let up = ["--login-server", "http://127.0.0.1:9", "--auth-key-file", key.to_str().unwrap(), "--timeout", "1s"];
    let out = laptop.up(&up);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("127.0.0.1:9"), "{}", text(&out.stderr));
    assert_eq!(laptop.status().unwrap()["BackendState"], "Starting");
}

/// Resident memory of a process, KiB.
fn resident(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sends 64 KiB that begin like a request or like nothing, and reads what comes back for a moment.
fn throw(socket: &Path, seed: u64) {
    let mut bytes =
        [&b""[..], b"GET /status HTTP/1.1\r\n", b"POST /up HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"][seed as usize % 3].to_vec();
    let mut random = vec![0; 64 * 1024];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut random);
    bytes.extend(random);
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let _ = stream.write_all(&bytes);
    let _ = stream.read(&mut [0; 4096]);
}

#[test]
fn garbage_on_the_local_sockets_neither_stops_nor_grows_the_programs() {
    if !possible() {
        return;
    }
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut world = World::new();
    world.exit.run_node(&[]);
    wait_for("the node's socket", || world.exit.status());
    for (machine, socket) in [(&world.exit, "node.sock"), (&world.coordinator, "c.sock")] {
        let (socket, child) = (machine.path(socket), machine.children.last().unwrap());
        // Half a request each, held open throughout.
        let half_open: Vec<_> = (0..20)
            .map(|_| {
                let mut stream = UnixStream::connect(&socket).unwrap();
                stream.write_all(b"GET /status HT").unwrap();
                stream
            })
            .collect();
        let rounds: Vec<_> = (0..5)
            .map(|round| {
                (0..30).for_each(|n| throw(&socket, seed + round * 100 + n));
                resident(child)
            })
            .collect();
        assert!(rounds[4] < rounds[1] + 4096, "resident KiB after each round: {rounds:?}");
        drop(half_open);
    }
    // Both still serve.
    world.start_exit_node();
}
