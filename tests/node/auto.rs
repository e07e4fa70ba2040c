//! `--exit-node auto`: the node chooses an exit node, leaves it when it dies, and nothing leaks past the tunnel meanwhile.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::world::{Machine, WEB, World, possible, text, wait_for};

/// The longest time until another exit node carries the traffic.
const LIMIT: Duration = Duration::from_secs(3);
/// A busy test machine may be late without anything being wrong; what is measured is printed.
const SLACK: Duration = Duration::from_secs(4);

/// The addresses that the web server sees of the two exit nodes, and of the laptop when it goes past them.
pub(crate) const SEEN: [&str; 2] = ["203.0.113.2", "203.0.113.6"];

/// Two exit nodes, each with a cable to the web server, which the laptop would also reach without a tunnel.
pub(crate) struct Exits {
    pub(crate) world: World,
    second: Machine,
}

impl Exits {
    pub(crate) fn new() -> Self {
        let mut world = World::new();
        let mut second = Machine::new("y");
        world.coordinator.cable("home2", "10.9.3.1/24", &second, "eth0", "10.9.3.2/24");
        second.sh("ip route add default via 10.9.3.1");
        second.cable("eth1", "203.0.113.6/30", &world.web, "eth2", "203.0.113.5/30");
        second.sh("ip route add 192.0.2.80 via 203.0.113.5");
        // The way past the tunnel is open, so that a leak would be seen.
        world.coordinator.cable("net", "203.0.113.10/30", &world.web, "eth3", "203.0.113.9/30");
        world.coordinator.sh("ip route add 192.0.2.80 via 203.0.113.9");
        world.web.sh("ip route add 10.9.2.0/24 via 203.0.113.10");
        world.coordinator.sh("nft 'add table ip watch; add chain ip watch past { type filter hook prerouting priority -300; };
                  add rule ip watch past iifname cafe ip daddr 192.0.2.80 counter'");
        for exit in [&mut world.exit, &mut second] {
            exit.run_node(&[]);
            wait_for("the node's socket", || exit.path("node.sock").exists().then_some(()));
        }
        let exits = Self { world, second };
        exits.join(&exits.world.exit, "exit-1");
        exits.join(&exits.second, "exit-2");
        assert_eq!(exits.world.seen_by_web().as_deref(), Some("10.9.2.2"), "without a tunnel");
        assert!(exits.leaked() > 0);
        exits
    }

    /// How many packets of the laptop have gone past the tunnel so far, whether they were answered or not.
    pub(crate) fn leaked(&self) -> u64 {
        let rules = self.world.coordinator.sh("nft list chain ip watch past");
        let count = rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        count.unwrap().parse().unwrap()
    }

    fn join(&self, exit: &Machine, name: &str) {
        let key = self.world.key(&["--approve-exit-node"]);
        let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", name, "--advertise-exit-node"];
        let out = exit.up(&up);
        assert!(out.status.success(), "{name}: {}", text(&out.stderr));
        exit.wait_until_running();
    }

    fn laptop_up(&self) {
        self.laptop_up_with("auto");
    }

    pub(crate) fn laptop_up_with(&self, exit: &str) {
        let key = self.world.key(&[]);
        let up = ["--login-server", "http://10.9.1.1:8080", "--auth-key-file", &key, "--hostname", "laptop", "--exit-node", exit];
        let out = self.world.laptop.up(&up);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// The exit node in use, 0 or 1, as the status has it.
    fn chosen(&self) -> Option<(usize, Value)> {
        let status = self.world.laptop.status()?;
        let exit = &status["ExitNodeStatus"];
        let peer = status["Peer"].as_object()?.values().find(|peer| peer["ID"] == exit["ID"])?;
        let number = ["exit-1.", "exit-2."].iter().position(|name| peer["DNSName"].as_str().is_some_and(|dns| dns.starts_with(name)))?;
        Some((number, exit.clone()))
    }

    pub(crate) fn exit(&mut self, number: usize) -> &mut Machine {
        if number == 0 { &mut self.world.exit } else { &mut self.second }
    }

    /// The laptop opens connections without pause until told to stop; the result is whom the web server saw, and when.
    pub(crate) fn browse(&self) -> Browsing {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let seen = self.world.laptop.inside(move || {
            let address: SocketAddr = WEB.parse().unwrap();
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) else { continue };
                stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                let mut who = String::new();
                if stream.read_to_string(&mut who).is_ok() && !who.is_empty() {
                    seen.push((Instant::now(), who));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            seen
        });
        Browsing { stop, seen }
    }

    /// An exit node dies under traffic.
    fn takes_over(&mut self, dies: impl FnOnce(&mut Machine), comes_back: impl FnOnce(&mut Machine)) {
        self.laptop_up();
        let (first, exit) = self.chosen().unwrap();
        assert!(exit["Auto"] == true && exit["Answers"] == true && exit["Reason"] != "", "{exit}");
        let other = 1 - first;
        let shown = text(&self.world.laptop.node(&["status"]).stdout);
        assert!(shown.contains(&format!("Exit node exit-{}, chosen automatically", first + 1)), "{shown}");
        assert_eq!(self.world.seen_by_web().as_deref(), Some(SEEN[first]));

        let (browsing, past) = (self.browse(), self.leaked());
        std::thread::sleep(Duration::from_millis(500));
        let died = Instant::now();
        dies(self.exit(first));
        let (_, exit) = wait_for("the other exit node", || self.chosen().filter(|(number, _)| *number == other));
        assert_eq!(exit["Reason"], format!("exit-{} stopped answering", first + 1));
        std::thread::sleep(Duration::from_millis(1500));
        let seen = browsing.end();
        assert!(seen.iter().all(|(_, who)| SEEN.contains(&who.as_str())), "something went past the tunnel: {seen:?}");
        let after = seen.iter().find(|(_, who)| who == SEEN[other]).expect("the other exit node carries nothing").0.duration_since(died);
        println!("from the death of exit-{} to the first answer through the other: {after:?}", first + 1);
        assert!(after < LIMIT + SLACK, "{after:?}");

        // Its return changes nothing.
        let browsing = self.browse();
        comes_back(self.exit(first));
        let exit = self.exit(first);
        wait_for("its return", || exit.status().filter(|status| status["CoordinatorOnline"] == true));
        std::thread::sleep(Duration::from_secs(3));
        let seen = browsing.end();
        assert!(seen.len() > 10 && seen.iter().all(|(_, who)| who == SEEN[other]), "{seen:?}");
        assert_eq!((self.chosen().unwrap().0, self.leaked()), (other, past));
    }
}

pub(crate) struct Browsing {
    stop: Arc<AtomicBool>,
    seen: JoinHandle<Vec<(Instant, String)>>,
}

impl Browsing {
    pub(crate) fn end(self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::Relaxed);
        self.seen.join().unwrap()
    }
}

pub(crate) fn kill(machine: &mut Machine) {
    let mut child = machine.children.pop().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_exit_node_is_replaced_within_seconds_and_gets_nothing_back() {
    if !possible() {
        return;
    }
    Exits::new().takes_over(kill, |exit| exit.run_node(&[]));
}

#[test]
fn an_exit_node_that_dies_without_a_word_is_replaced_within_seconds() {
    if !possible() {
        return;
    }
    let cut = |exit: &mut Machine| {
        exit.sh("nft 'add table ip dead; add chain ip dead in { type filter hook input priority -300; iifname eth0 drop; };
                  add chain ip dead out { type filter hook output priority -300; oifname eth0 drop; }'");
    };
    Exits::new().takes_over(cut, |exit| drop(exit.sh("nft delete table ip dead")));
}

#[test]
fn when_all_exit_nodes_are_dead_traffic_waits_and_goes_on_with_the_first_that_is_back() {
    if !possible() {
        return;
    }
    let mut exits = Exits::new();
    exits.laptop_up();
    let (browsing, past) = (exits.browse(), exits.leaked());
    kill(exits.exit(0));
    kill(exits.exit(1));
    let health = |exits: &Exits| exits.world.laptop.status().map(|status| status["Health"].to_string()).unwrap_or_default();
    wait_for("the news", || health(&exits).contains("no exit node answers").then_some(()));
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(2) {
        assert_eq!(exits.world.seen_by_web(), None);
    }
    let back = Instant::now();
    exits.exit(1).run_node(&[]);
    wait_for("the one that is back", || (exits.world.seen_by_web()? == SEEN[1]).then_some(()));
    println!("from its start to traffic through the one that is back: {:?}", back.elapsed());
    let seen = browsing.end();
    assert!(seen.iter().all(|(_, who)| SEEN.contains(&who.as_str())), "something went past the tunnel: {seen:?}");
    assert_eq!(exits.leaked(), past);
    assert!(!health(&exits).contains("no exit node answers"));

    // Another wish, and none: the way past is open again.
    assert!(exits.world.laptop.node(&["set", "--exit-node", "exit-2"]).status.success());
    assert!(exits.chosen().is_some_and(|(number, exit)| number == 1 && exit["Auto"].is_null()));
    assert!(exits.world.laptop.node(&["set", "--exit-node", ""]).status.success());
    wait_for("no exit node", || (exits.world.seen_by_web()? == "10.9.2.2").then_some(()));
}
