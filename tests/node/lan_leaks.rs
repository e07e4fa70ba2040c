//! A named exit node: while it is lost or exchanged, nothing goes past the tunnel. A counter on the laptop's own uplink watches.

use std::time::{Duration, Instant};

use super::auto::{Exits, SEEN, kill};
use super::world::{Machine, possible, text, wait_for};

/// Counts what leaves the laptop by its uplink for the web server's address, whoever sends it and whatever comes of it.
fn watch(laptop: &Machine) {
    laptop.sh("nft 'add table inet leak; add chain inet leak out { type filter hook postrouting priority 300; };
               add rule inet leak out oifname eth0 ip daddr 192.0.2.80 counter'");
}

fn leaked(laptop: &Machine) -> u64 {
    let rules = laptop.sh("nft list table inet leak");
    rules.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap()
}

fn set_exit(laptop: &Machine, name: &str) {
    let out = laptop.node(&["set", "--exit-node", name]);
    assert!(out.status.success(), "{name}: {}", text(&out.stderr));
}

/// Tries for this long; nobody answers.
fn held_back(exits: &Exits, long: Duration) {
    let start = Instant::now();
    while start.elapsed() < long {
        assert_eq!(exits.world.seen_by_web(), None);
    }
}

#[test]
fn nothing_passes_a_named_exit_node_that_is_killed_or_exchanged_for_another() {
    if !possible() {
        return;
    }
    let mut exits = Exits::new();
    exits.laptop_up_with("exit-1");
    let reached = |exits: &Exits, number: usize| (exits.world.seen_by_web()? == SEEN[number]).then_some(());
    wait_for("the first", || reached(&exits, 0));
    watch(&exits.world.laptop);
    let past = exits.leaked();
    let browsing = exits.browse();

    // To and fro, without a pause and with one.
    for round in 0..5 {
        for (number, name) in [(1, "exit-2"), (0, "exit-1")] {
            set_exit(&exits.world.laptop, name);
            if round < 3 {
                wait_for(name, || reached(&exits, number));
            }
        }
    }
    println!("past the tunnel during 10 exchanges: {}", leaked(&exits.world.laptop));

    // It dies: all waits, though the other could.
    kill(exits.exit(0));
    wait_for("the news", || exits.world.laptop.status().filter(|status| status["ExitNodeStatus"]["Online"] == false));
    held_back(&exits, Duration::from_secs(4));
    // The other carries when it is named; a dead one that is named holds back, and carries once it is there.
    set_exit(&exits.world.laptop, "exit-2");
    wait_for("the second", || reached(&exits, 1));
    set_exit(&exits.world.laptop, "exit-1");
    held_back(&exits, Duration::from_secs(4));
    exits.exit(0).run_node(&[]);
    wait_for("its return", || reached(&exits, 0));
    let seen = browsing.end();
    println!("{} answers, past the tunnel in all: {}", seen.len(), leaked(&exits.world.laptop));
    assert!(seen.iter().all(|(_, who)| SEEN.contains(&who.as_str())), "{seen:?}");
    assert_eq!((leaked(&exits.world.laptop), exits.leaked()), (0, past));

    // The counter does count.
    set_exit(&exits.world.laptop, "");
    wait_for("no exit node", || (exits.world.seen_by_web()? == "10.9.2.2").then_some(()));
    assert!(leaked(&exits.world.laptop) > 0);
}

/// What is guaranteed is what the kernel holds: the interface dies with its process, and the routes into it with the interface. The rules
/// stay, but lead nowhere, so traffic takes the machine's own way until a node runs again; then it is held back, exit node or not.
#[test]
fn a_killed_nodes_rules_stay_without_routes_and_from_its_return_on_nothing_passes_the_tunnel() {
    if !possible() {
        return;
    }
    let mut exits = Exits::new();
    exits.world.laptop.run_node(&[]);
    wait_for("the node's socket", || exits.world.laptop.status());
    exits.laptop_up_with("exit-1");
    wait_for("the exit node", || (exits.world.seen_by_web()? == SEEN[0]).then_some(()));
    watch(&exits.world.laptop);
    let rules = |exits: &Exits| exits.world.laptop.sh("ip rule; ip -6 rule");
    let (before, browsing) = (rules(&exits), exits.browse());
    assert_eq!(leaked(&exits.world.laptop), 0);

    kill(&mut exits.world.laptop);
    assert_eq!(rules(&exits), before);
    let table = exits.world.laptop.sh("ip route show table 52; ip -6 route show table 52");
    assert!(!table.contains("default") && !table.contains("pvemesh0"), "{table}");
    wait_for("the machine's own way", || (exits.world.seen_by_web()? == "10.9.2.2").then_some(()));

    // It comes back by itself to what was asked of it, though the exit node is dead by then.
    kill(exits.exit(0));
    let started = Instant::now();
    exits.world.laptop.run_node(&[]);
    let holds = || exits.world.laptop.sh("ip route show table 52").contains("default dev pvemesh0");
    wait_for("the way into the tunnel", || holds().then_some(()));
    let past = leaked(&exits.world.laptop);
    println!("from its start until traffic is held back: {:?}; {past} packets went past since the kill", started.elapsed());
    held_back(&exits, Duration::from_secs(3));
    exits.world.laptop.wait_until_running();
    exits.exit(0).run_node(&[]);
    wait_for("the exit node's return", || (exits.world.seen_by_web()? == SEEN[0]).then_some(()));
    assert_eq!(leaked(&exits.world.laptop), past);
    assert_eq!(rules(&exits), before);
    browsing.end();
}
