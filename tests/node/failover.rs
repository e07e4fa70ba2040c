//! Two routers for one network: the second takes over when the first dies, with a word or without, and keeps what it has.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::world::{Machine, World, possible, text, wait_for};

/// The longest time without an answer.
const LIMIT: Duration = Duration::from_secs(2);
/// A busy test machine may be late without anything being wrong; what is measured is printed.
const SLACK: Duration = Duration::from_secs(2);

const LAN: &str = "192.168.60.0/24";
const DEVICE: &str = "192.168.60.80:7";

/// A network with a device that runs nothing of ours and answers every datagram, reached by two routers.
struct Lan {
    world: World,
    second: Machine,
    _device: Machine,
}

impl Lan {
    fn new() -> Self {
        let mut world = World::new();
        let (mut second, device) = (Machine::new("y"), Machine::new("d"));
        world.coordinator.cable("home2", "10.9.3.1/24", &second, "eth0", "10.9.3.2/24");
        second.sh("ip route add default via 10.9.3.1");
        device.sh("ip addr add 192.168.60.80/32 dev lo");
        world.exit.cable("lan", "192.168.51.1/24", &device, "p1", "192.168.51.2/24");
        second.cable("lan", "192.168.52.1/24", &device, "p2", "192.168.52.2/24");
        world.exit.sh("ip route add 192.168.60.0/24 via 192.168.51.2");
        second.sh("ip route add 192.168.60.0/24 via 192.168.52.2");
        device.inside(|| {
            let socket = UdpSocket::bind(DEVICE).unwrap();
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        for router in [&mut world.exit, &mut second] {
            router.run_node(&[]);
            wait_for("the node's socket", || router.path("node.sock").exists().then_some(()));
        }
        let lan = Self { world, second, _device: device };
        lan.join(&lan.world.exit, "first");
        lan.join(&lan.second, "second");
        let key = lan.world.key(&[]);
        let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop", "--accept-routes"];
        let out = lan.world.laptop.up(&up);
        assert!(out.status.success(), "{}", text(&out.stderr));
        lan
    }

    fn join(&self, router: &Machine, name: &str) {
        let key = self.world.key(&["--approve-routes", LAN]);
        let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", name, "--advertise-routes", LAN];
        let out = router.up(&up);
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
        router.wait_until_running();
    }

    /// Whether the coordinator has a router's connection; the router may not know yet that it has not.
    fn is_online(&self, name: &str) -> bool {
        let listed = self.world.admin(&["nodes", "list"]);
        listed["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|node| node["name"] == name && node["online"] == true))
    }

    /// Whose the network is, as the coordinator tells it.
    fn carrier(&self) -> Option<String> {
        let nodes = self.world.admin(&["routes", "list"]);
        let row = nodes.as_array()?.iter().find(|row| row["carried"] == true)?;
        row["name"].as_str().map(str::to_owned)
    }

    /// The laptop asks the device without pause until told to stop; the result is when answers came.
    fn ask(&self) -> Asking {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let answers = self.world.laptop.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            let (mut answers, mut buffer) = (Vec::new(), [0; 8]);
            while !stopped.load(Ordering::Relaxed) {
                // Without a route for a moment, sending may fail.
                let _ = socket.send_to(b"question", DEVICE);
                if socket.recv(&mut buffer).is_ok() {
                    answers.push(Instant::now());
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            answers
        });
        Asking { stop, answers }
    }
}

struct Asking {
    stop: Arc<AtomicBool>,
    answers: JoinHandle<Vec<Instant>>,
}

impl Asking {
    /// Ends it; the longest time between two answers, and the time since the last.
    fn longest_pause(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = self.answers.join().unwrap();
        assert!(answers.len() > 1, "{} answers", answers.len());
        answers.push(Instant::now());
        answers.windows(2).map(|two| two[1].duration_since(two[0])).max().unwrap_or_default()
    }
}

fn takes_over(dies: impl FnOnce(&mut Lan), comes_back: impl FnOnce(&mut Lan)) {
    let mut lan = Lan::new();
    wait_for("the first router carries the network", || (lan.carrier()? == "first").then_some(()));
    let asking = lan.ask();
    std::thread::sleep(Duration::from_millis(500));
    dies(&mut lan);
    wait_for("the second router carries the network", || (lan.carrier()? == "second").then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    let pause = asking.longest_pause();
    println!("the longest pause at the death of the first router: {pause:?}");
    assert!(pause < LIMIT + SLACK, "{pause:?}");

    let asking = lan.ask();
    comes_back(&mut lan);
    wait_for("the first router is back", || lan.world.exit.status().filter(|status| status["CoordinatorOnline"] == true));
    wait_for("the coordinator knows that", || lan.is_online("first").then_some(()));
    std::thread::sleep(Duration::from_secs(2));
    let pause = asking.longest_pause();
    println!("the longest pause at its return: {pause:?}");
    assert_eq!(lan.carrier().as_deref(), Some("second"), "who has it keeps it");
    assert!(pause < Duration::from_millis(500), "{pause:?}");
}

/// Lets a router neither hear nor say anything any more.
fn cut(router: &Machine) {
    router.sh("nft 'add table ip dead; add chain ip dead in { type filter hook input priority -300; iifname eth0 drop; };
               add chain ip dead out { type filter hook output priority -300; oifname eth0 drop; }'");
}

#[test]
fn a_killed_router_is_replaced_within_two_seconds_and_gets_nothing_back() {
    if !possible() {
        return;
    }
    let kill = |lan: &mut Lan| {
        let mut child = lan.world.exit.children.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    };
    takes_over(kill, |lan| lan.world.exit.run_node(&[]));
}

#[test]
fn a_router_that_dies_without_a_word_is_replaced_within_two_seconds_and_gets_nothing_back() {
    if !possible() {
        return;
    }
    takes_over(|lan| cut(&lan.world.exit), |lan| drop(lan.world.exit.sh("nft delete table ip dead")));
}

/// The distribution behind the two tests above, of as many deaths as PVEMESH_RUNS says of each kind; both routers die in turn. It asserts nothing
/// about time: `make bench-failover` runs it and keeps its figures.
#[test]
#[ignore = "a measurement of some minutes"]
fn distribution_of_failover_times() {
    if !possible() {
        return;
    }
    let runs = std::env::var("PVEMESH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    let mut lan = Lan::new();
    let mut figures = serde_json::Map::new();
    for (what, silent) in [("killed", false), ("silent", true)] {
        let mut pauses: Vec<f64> = (0..runs).map(|_| lan.pause_at_a_death(silent).as_secs_f64()).collect();
        pauses.sort_by(f64::total_cmp);
        let at = |part: f64| pauses[((pauses.len() - 1) as f64 * part).round() as usize];
        let row = [("min", at(0.0)), ("p50", at(0.5)), ("p95", at(0.95)), ("max", at(1.0))];
        println!("{what}, {runs} deaths, seconds without an answer: {row:.3?}");
        let mut row: serde_json::Map<_, _> = row.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        row.insert("runs".to_owned(), runs.into());
        figures.insert(what.to_owned(), row.into());
    }
    if let Some(path) = std::env::var_os("PVEMESH_RESULT") {
        std::fs::write(path, serde_json::to_string_pretty(&figures).unwrap()).unwrap();
    }
}

impl Lan {
    /// Lets the router die that carries the network, and brings it back; the longest time without an answer.
    fn pause_at_a_death(&mut self, silent: bool) -> Duration {
        let carrier = wait_for("somebody carries the network", || self.carrier());
        let first = carrier == "first";
        // The other one is to be there when it is needed.
        wait_for("both are online", || (self.is_online("first") && self.is_online("second")).then_some(()));
        let asking = self.ask();
        std::thread::sleep(Duration::from_millis(500));
        let router = if first { &mut self.world.exit } else { &mut self.second };
        if silent {
            cut(router);
        } else {
            let mut child = router.children.pop().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        }
        wait_for("the other router carries the network", || (self.carrier()? != carrier).then_some(()));
        std::thread::sleep(Duration::from_secs(1));
        let pause = asking.longest_pause();
        println!("{carrier} died: {:.3} s", pause.as_secs_f64());
        // Its connection is gone before its node is called offline; without this it would pass for being back.
        wait_for("it is offline", || (!self.is_online(&carrier)).then_some(()));
        let router = if first { &mut self.world.exit } else { &mut self.second };
        if silent {
            router.sh("nft delete table ip dead");
        } else {
            router.run_node(&[]);
        }
        wait_for("it is back", || router.status().filter(|status| status["CoordinatorOnline"] == true));
        pause
    }
}
