//! With a relay between the two: NATs of every kind, ways that die, relays that fail.

use std::time::Duration;

use pvemesh::path::Path;

use super::nat::{ALL, Depends, Nat};
use super::network::{Network, Wire};
use super::{LAN, SEEDS, WAN, direct, lossy, ms, on_lan, s};

pub const RELAY: Duration = Duration::from_millis(20);
/// Fewer, where there are many cases.
const GRID_SEEDS: std::ops::Range<u64> = 0..3;

/// Two hosts behind NATs that know nothing but what the map says, and both send.
pub fn behind(seed: u64, nats: [(Depends, Depends); 2], wire: Wire) -> Network {
    let mut network = Network::new(seed, &[wire], [&["192.168.1.1:41641"], &["192.168.2.1:41641"]]);
    for (n, (mapping, filtering)) in nats.into_iter().enumerate() {
        network.nats[n] = Some(Nat::new(format!("203.0.113.{}", n + 1).parse().unwrap(), mapping, filtering));
    }
    network.relay = Some(RELAY);
    network.look_outside();
    network.tell_map();
    network.hosts.iter_mut().for_each(|host| host.talks = true);
    network
}

pub fn both_direct(network: &Network) -> bool {
    network.hosts.iter().all(|host| host.best().is_some())
}

fn is_hard(depends: Depends) -> bool {
    depends != Depends::Nothing
}

/// Whether the first one's packets get in at the address that the other one has told, and the answers get back.
pub fn leads(from: (Depends, Depends), to: (Depends, Depends)) -> bool {
    // What leaves a hard NAT has a port that nobody has been told, so a strict filter at the other end drops it. And what a hard NAT has
    // opened for somebody is another port than the one that was told.
    let strict = |filter| filter == Depends::AddressAndPort;
    let gets_in = if is_hard(to.0) { to.1 == Depends::Nothing } else { !strict(to.1) || !is_hard(from.0) };
    gets_in && (!is_hard(to.0) || !strict(from.1))
}

#[test]
fn a_direct_way_is_found_within_two_seconds_wherever_there_is_one_and_packets_flow_before() {
    let (mut slowest, mut found) = (Duration::ZERO, 0);
    for (a, b) in
        ALL.iter().flat_map(|m| ALL.map(|f| (*m, f))).flat_map(|a| ALL.iter().flat_map(|m| ALL.map(|f| (*m, f))).map(move |b| (a, b)))
    {
        let possible = leads(a, b) || leads(b, a);
        for seed in GRID_SEEDS {
            let mut network = behind(seed, [a, b], WAN);
            let took = network.until(s(2), both_direct);
            assert_eq!(took.is_some(), possible, "seed {seed}: {a:?} to {b:?} took {took:?}");
            slowest = slowest.max(took.unwrap_or_default());
            found += usize::from(possible);
            let first = network.hosts.each_ref().map(|host| host.first.expect("the relay works").since(pvemesh::time::Time::default()));
            assert!(first.iter().all(|first| *first <= ms(120)), "seed {seed}: {a:?} to {b:?}: first packets after {first:?}");
            network.run(s(60));
            assert_eq!(both_direct(&network), possible, "seed {seed}: {a:?} to {b:?}, a minute later");
        }
    }
    println!("{found} direct ways, the slowest after {slowest:?}");
}

#[test]
fn a_direct_way_is_found_although_packets_are_lost() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let easy = (Depends::Nothing, Depends::AddressAndPort);
        let mut network = behind(seed, [easy, easy], lossy(WAN, 200));
        let took = network.until(s(20), both_direct);
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
    }
    println!("a fifth lost: within {slowest:?}");
}

#[test]
fn a_way_that_dies_silently_is_replaced_by_the_relay_within_a_second() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let easy = (Depends::Nothing, Depends::AddressAndPort);
        let mut network = behind(seed, [easy, easy], WAN);
        network.run(s(10) + ms(seed * 77));
        assert!(both_direct(&network), "seed {seed}");
        network.wire("203.0.113.").lost = 1000;
        let broken = network.now;
        network.run(ms(40));
        let flows = |network: &Network| network.hosts.iter().all(|host| host.heard.is_some_and(|at| at > broken + ms(40)));
        let took = network.until(s(3), flows);
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
        // It stays so, and the direct way is taken again when it is back.
        network.run(s(30));
        assert!(network.hosts.iter().all(|host| host.best().is_none()), "seed {seed}");
        network.wire("203.0.113.").lost = 0;
        assert!(network.until(s(6), both_direct).is_some(), "seed {seed}");
    }
    println!("within {slowest:?}");
    assert!(slowest <= ms(700), "{slowest:?}");
}

#[test]
fn no_packet_is_lost_on_the_way_from_the_relay_to_a_direct_path() {
    for seed in SEEDS {
        let easy = (Depends::Nothing, Depends::AddressAndPort);
        let mut network = behind(seed, [easy, easy], WAN);
        network.run(s(5));
        assert!(both_direct(&network), "seed {seed}");
        network.hosts.iter_mut().for_each(|host| host.talks = false);
        network.run(s(1));
        for n in 0..2 {
            let (sent, received) = (network.hosts[n].sent, network.hosts[1 - n].distinct.len() as u64);
            assert_eq!(sent, received, "seed {seed}");
        }
    }
}

#[test]
fn a_lossy_way_with_a_relay_beside_it_is_not_left() {
    for seed in 0..8 {
        let mut network = Network::new(seed, &[lossy(LAN, 50), lossy(WAN, 50)], [&super::A, &super::B]);
        network.relay = Some(RELAY);
        network.hosts.iter_mut().for_each(|host| host.talks = true);
        network.run(s(10));
        let before = network.hosts.each_ref().map(|host| host.changes());
        network.run(s(300));
        assert!(on_lan(&network), "seed {seed}");
        assert_eq!(before, network.hosts.each_ref().map(|host| host.changes()), "seed {seed}");
    }
}

#[test]
fn a_dead_relay_does_not_matter_where_there_is_a_direct_way_and_comes_back_where_there_is_none() {
    for seed in GRID_SEEDS {
        let hard = (Depends::AddressAndPort, Depends::AddressAndPort);
        let mut network = behind(seed, [hard, hard], WAN);
        network.run(s(10));
        assert!(network.hosts.iter().all(|host| host.best().is_none() && host.received > 150), "seed {seed}");
        network.set_relay(false);
        network.run(s(5));
        let stopped = network.now;
        network.run(s(5));
        assert!(network.hosts.iter().all(|host| host.heard.is_none_or(|at| at < stopped)), "seed {seed}: nothing leads there");
        network.set_relay(true);
        let back = network.now;
        let flows = |network: &Network| network.hosts.iter().all(|host| host.heard.is_some_and(|at| at > back));
        assert!(network.until(ms(200), flows).is_some(), "seed {seed}");
    }
}

#[test]
fn a_node_that_moves_to_another_network_is_back_within_a_second() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let easy = (Depends::Nothing, Depends::AddressAndPort);
        let mut network = behind(seed, [easy, easy], WAN);
        network.run(s(10));
        network.nats[1] = Some(Nat::new("203.0.113.99".parse().unwrap(), easy.0, easy.1));
        let moved = network.now;
        let now = network.now;
        network.hosts[1].paths.network_changed(now);
        network.settle(1);
        network.run(ms(60));
        let flows = |network: &Network| network.hosts.iter().all(|host| host.heard.is_some_and(|at| at > moved + ms(60)));
        let took = network.until(s(3), flows).unwrap_or_else(|| panic!("seed {seed}"));
        slowest = slowest.max(took + ms(60));
        let there = |network: &Network| {
            network.hosts[0].best().is_some_and(|p| matches!(p, Path::Direct(a) if a.ip().to_string() == "203.0.113.99"))
        };
        assert!(network.until(s(3), there).is_some(), "seed {seed}: {:?}", network.hosts[0].best());
    }
    println!("within {slowest:?}");
    assert!(slowest <= s(1), "{slowest:?}");
}

#[test]
fn the_local_network_is_taken_although_both_are_behind_one_nat() {
    for seed in SEEDS {
        let mut network = Network::new(seed, &[LAN, WAN], [&["192.168.1.1:41641"], &["192.168.1.2:41641"]]);
        network.relay = Some(RELAY);
        network.hosts.iter_mut().for_each(|host| host.talks = true);
        network.tell_map();
        assert!(network.until(ms(200), on_lan_alone).is_some(), "seed {seed}");
    }
}

fn on_lan_alone(network: &Network) -> bool {
    network.hosts[0].best() == direct("192.168.1.2:41641") && network.hosts[1].best() == direct("192.168.1.1:41641")
}
