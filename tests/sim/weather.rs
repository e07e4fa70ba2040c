//! What networks do on bad days: losses in bursts, packets out of order, routers that forget, hosts that roam.

use std::time::Duration;

use pvemesh::time::Time;

use super::nat::{Depends, Nat};
use super::network::{Network, Wire};
use super::relayed::{RELAY, behind, both_direct};
use super::{FEW_SEEDS, LAN, SEEDS, WAN, both_talk, lossy, ms, on_lan, s};

const EASY: (Depends, Depends) = (Depends::Nothing, Depends::AddressAndPort);
const INTERNET: &str = "203.0.113.";

/// How often each host has changed its address in use.
fn changes(network: &Network) -> [usize; 2] {
    network.hosts.each_ref().map(|host| host.changes())
}

fn heard_directly_since(network: &Network, since: Time) -> bool {
    network.hosts.iter().all(|host| host.heard_directly.is_some_and(|at| at > since))
}

/// The longest time that each host goes without data while `change` is made again and again.
fn longest_silence(network: &mut Network, rounds: u32, mut change: impl FnMut(&mut Network, u32)) -> Duration {
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        change(network, round);
        let start = network.now;
        let mut last = [start; 2];
        while network.now.since(start) < s(8) {
            network.run(ms(10));
            for (last, host) in last.iter_mut().zip(&network.hosts) {
                *last = host.heard.filter(|at| *at > *last).unwrap_or(*last);
                longest = longest.max(network.now.since(*last));
            }
        }
    }
    longest
}

#[test]
fn losses_in_bursts_do_not_drive_a_way_away_and_the_relay_bridges_the_long_ones() {
    let mut longest = Duration::ZERO;
    for seed in FEW_SEEDS {
        let mut network = Network::new(seed, &[LAN, WAN], [&super::A, &super::B]);
        network.relay = Some(RELAY);
        network.tell_map();
        both_talk(&mut network, true);
        network.run(s(10));
        assert!(on_lan(&network), "seed {seed}");
        let before = changes(&network);
        let silence = longest_silence(&mut network, 40, |network, round| {
            for prefix in ["192.168.", INTERNET] {
                network.wire(prefix).lost = 1000;
            }
            network.run(ms(100 + (seed * 131 + u64::from(round) * 67) % 700));
            for prefix in ["192.168.", INTERNET] {
                network.wire(prefix).lost = 0;
            }
        });
        longest = longest.max(silence);
        assert!(on_lan(&network), "seed {seed}: {:?}", network.hosts[0].best());
        assert_eq!(before, changes(&network), "seed {seed}");
    }
    // The silence counts from a burst's end.
    println!("within {longest:?} of a burst's end");
    assert!(longest <= ms(120), "{longest:?}");
}

#[test]
fn packets_out_of_order_do_not_drive_a_way_away() {
    for seed in FEW_SEEDS {
        // Three packets are on their way at a time, and come in any order.
        let wild = Wire { jitter: ms(150), ..WAN };
        let mut network = behind(seed, [EASY, EASY], lossy(wild, 20));
        network.run(s(20));
        assert!(both_direct(&network), "seed {seed}");
        let before = changes(&network);
        network.run(s(600));
        assert!(both_direct(&network), "seed {seed}");
        assert_eq!(before, changes(&network), "seed {seed}");
    }
}

#[test]
fn routers_that_forget_everything_are_bridged_within_a_second_and_passed_directly_when_own_addresses_are_found_out_anew() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let mut network = behind(seed, [EASY, EASY], WAN);
        network.run(s(10) + ms(seed * 777));
        assert!(both_direct(&network), "seed {seed}");
        for nat in network.nats.iter_mut().flatten() {
            nat.forget();
        }
        let forgotten = network.now;
        network.run(ms(60));
        let flows = |network: &Network| network.hosts.iter().all(|host| host.heard.is_some_and(|at| at > forgotten + ms(60)));
        assert!(network.until(ms(940), flows).is_some(), "seed {seed}");
        // What they tell one another is up to 27 s old.
        let took = network.until(s(35), |network| heard_directly_since(network, forgotten + ms(60)));
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
    }
    println!("directly within {slowest:?}");
}

#[test]
fn mappings_that_time_out_while_nobody_talks_cost_no_packet_and_the_way_is_direct_again_within_two_seconds() {
    let mut slowest = Duration::ZERO;
    for seed in SEEDS {
        let mut network = behind(seed, [EASY, EASY], WAN);
        network.run(s(10));
        both_talk(&mut network, false);
        // Heartbeats end 45 s after the last data, and mappings 30 s after that. The map's addresses lead nowhere now.
        network.run(s(120) + ms(seed * 31));
        let (sent, received) = (network.hosts[0].sent, network.hosts[1].distinct.len() as u64);
        assert_eq!(sent, received, "seed {seed}");
        both_talk(&mut network, true);
        let start = network.now;
        slowest = slowest.max(network.until(s(2), |network| heard_directly_since(network, start)).unwrap_or_else(|| panic!("seed {seed}")));
        network.run(s(5));
        both_talk(&mut network, false);
        network.run(s(1));
        for n in 0..2 {
            assert_eq!(network.hosts[n].sent, network.hosts[1 - n].distinct.len() as u64, "seed {seed}");
        }
    }
    println!("within {slowest:?}");
}

#[test]
fn a_host_that_roams_to_and_fro_is_never_missed_for_more_than_a_second() {
    let mut longest = Duration::ZERO;
    for seed in FEW_SEEDS {
        let mut network = behind(seed, [EASY, EASY], WAN);
        network.run(s(10));
        longest = longest.max(longest_silence(&mut network, 12, |network, round| {
            // Now and then into a network that lets nothing directly through; its ports are nobody's from before.
            let hard = (Depends::AddressAndPort, Depends::AddressAndPort);
            let (last, (mapping, filtering)) = if round % 4 == 3 { (150 + round, hard) } else { (100 + round % 3, EASY) };
            let ip = format!("{INTERNET}{last}").parse().unwrap();
            network.nats[1] = Some(Nat::new(ip, mapping, filtering));
            let now = network.now;
            network.hosts[1].paths.network_changed(now);
            network.settle(1);
        }));
        // The last network lets nothing directly through.
        let left = network.hosts[0].heard_directly;
        network.run(s(5));
        assert_eq!(network.hosts[0].heard_directly, left, "seed {seed}");
    }
    println!("the longest silence {longest:?}");
    assert!(longest <= s(1), "{longest:?}");
}
