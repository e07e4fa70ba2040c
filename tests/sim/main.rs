//! Cores on a simulated network: seeded, so that what fails once fails again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    reason = "test code"
)]

mod crowd;
mod guessing;
mod many;
mod nat;
mod network;
mod relayed;
mod weather;

use std::time::Duration;

use network::{Network, Wire, address};
use pvemesh::path::Path;
use pvemesh::time::Time;

const SEEDS: std::ops::Range<u64> = 0..40;
/// For what takes long.
const FEW_SEEDS: std::ops::Range<u64> = 0..8;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const LAN: Wire = Wire { prefix: "192.168.", latency: Duration::from_micros(200), jitter: Duration::from_micros(300), lost: 0 };
const WAN: Wire = Wire { prefix: "203.0.113.", latency: Duration::from_millis(15), jitter: Duration::from_millis(10), lost: 0 };
const V6: Wire = Wire { prefix: "[2001:db8:", latency: Duration::from_millis(15), jitter: Duration::from_millis(10), lost: 0 };

const A: [&str; 2] = ["192.168.1.1:41641", "203.0.113.1:41641"];
const B: [&str; 2] = ["192.168.1.2:41641", "203.0.113.2:41641"];

fn lossy(wire: Wire, lost: u32) -> Wire {
    Wire { lost, ..wire }
}

fn direct(text: &str) -> Option<Path> {
    Some(Path::Direct(address(text)))
}

fn on_lan(network: &Network) -> bool {
    network.hosts[0].best() == direct(B[0]) && network.hosts[1].best() == direct(A[0])
}

fn both_talk(network: &mut Network, talk: bool) {
    network.hosts.iter_mut().for_each(|host| host.talks = talk);
}

/// Two nodes that both send, and have settled.
fn settled(seed: u64, wires: &[Wire]) -> Network {
    let mut network = Network::new(seed, wires, [&A, &B]);
    both_talk(&mut network, true);
    network.run(s(10));
    network
}

#[test]
fn both_ends_settle_on_the_better_way_whatever_is_lost() {
    for (lost, limit) in [(0, ms(60)), (100, s(8)), (300, s(200))] {
        let mut slowest = Duration::ZERO;
        for seed in SEEDS {
            let mut network = Network::new(seed, &[lossy(LAN, lost), lossy(WAN, lost)], [&A, &B]);
            both_talk(&mut network, true);
            let took = network.until(limit, on_lan);
            slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}, {lost} of 1000 lost: not within {limit:?}")));
        }
        println!("{lost} of 1000 lost: within {slowest:?}");
    }
}

#[test]
fn who_only_receives_knows_the_way_too() {
    for seed in SEEDS {
        let mut network = Network::new(seed, &[LAN, WAN], [&A, &B]);
        network.hosts[0].talks = true;
        network.run(s(5));
        assert!(on_lan(&network), "seed {seed}");
    }
}

#[test]
fn a_way_that_works_is_not_left() {
    // Both ends send: what is heard bridges lost probes.
    for seed in FEW_SEEDS {
        let mut network = settled(seed, &[lossy(LAN, 50), lossy(WAN, 50)]);
        let before = network.hosts.each_ref().map(|host| host.moves.len());
        network.run(s(600));
        let after = network.hosts.each_ref().map(|host| host.moves.len());
        assert!(on_lan(&network) && before == after, "seed {seed}: {:?}", network.hosts.each_ref().map(|host| host.moves.clone()));
    }
}

#[test]
fn two_equal_ways_with_jitter_do_not_take_turns() {
    let addresses: [&[&str]; 2] = [&["203.0.113.1:1", "[2001:db8:1::1]:1"], &["203.0.113.2:1", "[2001:db8:1::2]:1"]];
    let mut most = 0;
    for seed in FEW_SEEDS {
        let mut network = Network::new(seed, &[WAN, V6], addresses);
        both_talk(&mut network, true);
        network.run(s(60));
        let before = network.hosts.each_ref().map(|host| host.moves.len());
        network.run(s(1800));
        for (host, before) in network.hosts.iter().zip(before) {
            most = most.max(host.moves.len() - before);
            assert!(host.moves.len() - before <= 1, "seed {seed}: {:?}", host.moves);
        }
    }
    println!("at most {most} moves in half an hour");
}

#[test]
fn idle_nodes_are_silent() {
    for seed in SEEDS {
        let mut network = settled(seed, &[lossy(LAN, 50), lossy(WAN, 50)]);
        both_talk(&mut network, false);
        let stopped = network.now;
        network.run(s(600));
        for host in &network.hosts {
            let last = host.probes.last().copied().unwrap_or_default();
            assert!(last <= stopped + s(50), "seed {seed}: {:?} after the last data", last.since(stopped));
            assert_eq!(host.paths.poll_timeout(), None);
        }
        // And awake at once.
        both_talk(&mut network, true);
        let heard = |network: &Network| network.hosts.iter().all(|host| host.heard.is_some_and(|at| at > stopped + s(500)));
        assert!(network.until(ms(700), heard).is_some(), "seed {seed}");
    }
}

#[test]
fn talking_costs_a_ping_in_three_seconds_and_no_more() {
    let mut network = settled(1, &[LAN, WAN]);
    let before = network.hosts[0].paths.counters().pings_out;
    network.run(s(300));
    let pings = network.hosts[0].paths.counters().pings_out - before;
    assert!((95..=101).contains(&pings), "{pings}");
}

/// Node B gets other addresses, and tells nobody.
fn move_b(network: &mut Network, addresses: &[&str]) -> Time {
    network.hosts[1].addresses = addresses.iter().map(|a| address(a)).collect();
    network.now
}

#[test]
fn a_peer_that_moves_while_it_sends_is_followed_at_once() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let mut network = settled(seed, &[LAN, WAN]);
        move_b(&mut network, &["192.168.1.77:41641", "203.0.113.2:41641"]);
        let took = network.until(s(1), |network| network.hosts[0].best() == direct("192.168.1.77:41641"));
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
        network.run(s(1));
        let before = network.hosts.each_ref().map(|host| (host.sent, host.received));
        network.run(s(5));
        let after = network.hosts.each_ref().map(|host| (host.sent, host.received));
        assert!(after[0].1 - before[0].1 >= 99 && after[1].1 - before[1].1 >= 99, "seed {seed}: {before:?} {after:?}");
    }
    // It sends every 50 ms; then its old address has two round trips and 20 ms.
    println!("within {slowest:?}");
    assert!(slowest <= ms(75), "{slowest:?}");
}

#[test]
fn a_peer_that_goes_from_the_local_network_to_the_internet_is_followed_at_once() {
    for seed in SEEDS {
        let mut network = settled(seed, &[LAN, WAN]);
        move_b(&mut network, &["203.0.113.99:41641"]);
        let took = network.until(s(6), |network| network.hosts[0].best() == direct("203.0.113.99:41641"));
        assert!(took.is_some(), "seed {seed}: {:?}", network.hosts[0].best());
    }
}

#[test]
fn a_silent_peer_that_moves_is_found_when_the_map_says_where() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let mut network = Network::new(seed, &[LAN, WAN], [&A[..1], &B[..1]]);
        network.hosts[0].talks = true;
        network.run(s(10) + ms(seed * 50));
        let moved = move_b(&mut network, &["192.168.1.77:41641"]);
        network.run(ms(300));
        network.tell_map();
        let took = network.until(s(10), |network| network.hosts[1].heard.is_some_and(|at| at > moved + ms(10)));
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
    }
    // A heartbeat within 3 s, a second to notice that it stays unanswered.
    println!("within {slowest:?}");
    assert!(slowest <= ms(4200), "{slowest:?}");
}

#[test]
fn a_way_that_breaks_is_replaced_and_taken_again_when_it_is_back() {
    let mut slowest = Duration::ZERO;
    for seed in FEW_SEEDS {
        let mut network = settled(seed, &[LAN, WAN]);
        network.wire("192.168.").lost = 1000;
        let broken = network.now;
        let flows = |network: &Network| network.hosts.iter().all(|host| host.heard.is_some_and(|at| at > broken + ms(10)));
        let took = network.until(s(10), flows);
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
        network.run(s(60));
        network.wire("192.168.").lost = 0;
        assert!(network.until(s(62), on_lan).is_some(), "seed {seed}");
    }
    println!("within {slowest:?}");
    assert!(slowest <= ms(4200), "{slowest:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut network = settled(seed, &[lossy(LAN, 200), lossy(WAN, 200)]);
        network.run(s(100));
        network.hosts.map(|host| (host.probes, host.moves, host.received))
    };
    assert!(run(5) == run(5));
    assert!(run(5) != run(6));
}
