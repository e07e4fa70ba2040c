//! Thousands of nodes in one mesh: what holds for two holds for each of them, and nothing grows.

#![allow(clippy::disallowed_methods, reason = "the machine is asked what all of it costs; the cores ask nobody")]

use std::time::{Duration, Instant};

use pvemesh::ident::RegionId;

use super::crowd::{Crowd, Kind, REGIONS};
use super::nat::Depends;
use super::relayed::leads;
use super::{ms, s};

/// Nodes that the whole mesh is shown to and that many talk to: exit nodes, servers.
const HUBS: usize = 4;
/// Whom each hub is called by at a time.
const CALLERS: usize = 100;
/// How long a talk takes.
const TALK: Duration = Duration::from_secs(10);
/// Talks begin within this time.
const SPREAD: u64 = 40_000;
/// Heartbeats end 45 s after the last data, the last one up to 3 s later, and a ping is lost after 5 s more.
const QUIET: Duration = Duration::from_secs(54);

/// So many that it takes half a minute in a debug build; `PVEMESH_CROWD=10000` takes some three.
fn size() -> usize {
    std::env::var("PVEMESH_CROWD").map_or(2_000, |text| text.parse().expect("PVEMESH_CROWD is a number"))
}

fn kind(n: usize) -> Kind {
    let (open, easy, hard) =
        (None, Some((Depends::Nothing, Depends::AddressAndPort)), Some((Depends::AddressAndPort, Depends::AddressAndPort)));
    match n % 10 {
        0 | 7 => open,
        3 | 9 => hard,
        5 => Some((Depends::Nothing, Depends::Address)),
        8 => Some((Depends::Nothing, Depends::Nothing)),
        _ => easy,
    }
}

fn possible(a: Kind, b: Kind) -> bool {
    // No NAT is the most lenient of all.
    let nat = |kind: Kind| kind.unwrap_or((Depends::Nothing, Depends::Nothing));
    leads(nat(a), nat(b)) || leads(nat(b), nat(a))
}

/// Bytes of memory in use.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Everybody's partner is the one half the mesh away.
fn partner(n: usize, size: usize) -> usize {
    (n + size / 2) % size
}

/// Every second of these talks to its partner, and so many call each hub; ends when all have fallen silent.
fn all_talk(crowd: &mut Crowd, pairs: impl Iterator<Item = usize>) -> usize {
    let (first, size, begin) = (crowd.talks.len(), crowd.members.len(), crowd.now);
    for n in pairs {
        let start = begin + ms(crowd.any(SPREAD));
        crowd.talk([n, partner(n, size)], start, TALK);
    }
    for hub in 0..HUBS {
        for _ in 0..CALLERS.min(size / 20) {
            let (start, caller) = (begin + ms(crowd.any(SPREAD)), HUBS + crowd.any((size - HUBS) as u64) as usize);
            if partner(caller, size) != hub {
                crowd.talk([caller, hub], start, TALK);
            }
        }
    }
    crowd.run(begin + ms(SPREAD) + TALK + QUIET);
    first
}

/// What is true of every talk since the given one, and of everybody when all is over.
fn check(crowd: &Crowd, first: usize, what: &str) {
    let (mut direct, mut slowest, mut relayed, mut longest) = (0, Duration::ZERO, 0, Duration::ZERO);
    for talk in &crowd.talks[first..] {
        let [a, b] = talk.ends;
        let kinds = [crowd.members[a].kind, crowd.members[b].kind];
        let answer = talk.first.unwrap_or_else(|| panic!("{what}: {a} to {b}, {kinds:?}: no answer")).since(talk.start);
        longest = longest.max(answer);
        if possible(kinds[0], kinds[1]) {
            let at = talk.direct.map(|at| {
                at.unwrap_or_else(|| panic!("{what}: {a} to {b}, {kinds:?}, from {:?}: not direct: {:?}", talk.start, talk.direct))
                    .since(talk.start)
            });
            slowest = slowest.max(at[0]).max(at[1]);
            direct += 1;
            let lost = talk.asked - talk.answers.len() as u64;
            assert!(lost <= 5, "{what}: {a} to {b}, {kinds:?}: {lost} of {} unanswered", talk.asked);
        } else {
            assert_eq!(talk.direct, [None; 2], "{what}: {a} to {b}, {kinds:?}");
            relayed += 1;
            assert_eq!(talk.answers.len() as u64, talk.asked, "{what}: {a} to {b}, {kinds:?}: relays lose nothing");
        }
    }
    println!("{what}: {direct} direct, the slowest after {slowest:?}; {relayed} by relay; first answers within {longest:?}");
    assert!(longest <= ms(500), "{what}: {longest:?}");
    assert!(slowest <= s(5), "{what}: {slowest:?}");
    for (n, member) in crowd.members.iter().enumerate() {
        assert_eq!(member.paths.poll_timeout(), None, "{what}: {n} has nothing to do");
    }
}

#[test]
fn thousands_of_nodes_find_their_ways_fall_silent_and_need_no_more_memory_the_next_time() {
    let (started, size, seed) = (Instant::now(), size(), 1);
    println!("{size} nodes, seed {seed}");
    let before = resident();
    let mut crowd = Crowd::new(seed, (0..size).map(kind));
    for n in 0..size {
        if n < HUBS {
            crowd.show(n, 0..size);
        } else {
            crowd.show(n, (0..HUBS).chain([partner(n, size)]));
        }
    }
    let silent: u64 = crowd.members.iter().map(|member| member.paths.counters().pings_out).sum();
    assert_eq!(silent, 0, "a map alone has nobody send");
    println!("told after {:?}, {} MiB", started.elapsed(), (resident() - before) >> 20);

    let first = all_talk(&mut crowd, 0..size / 2);
    check(&crowd, first, "all for the first time");
    let talks = crowd.talks.len() as u64;
    let pings: u64 = crowd.members.iter().map(|member| member.paths.counters().pings_out).sum();
    println!("{:?}: {} steps, {} pings for each end of a talk", started.elapsed(), crowd.steps_done, pings / talks / 2);
    // A heartbeat each 3 s for 10 s and the 45 s after, for each end, and what finding a way costs; where none is found, it is looked for
    // again while there is data.
    assert!(pings <= talks * 2 * 60, "{pings} pings for {talks} talks");

    // A region dies, those at home there move, and then the coordinator is gone; some restart, and nobody else can tell their new keys.
    let dead = RegionId(900);
    crowd.kill_region(dead);
    for member in crowd.members.iter_mut().filter(|member| member.home == dead) {
        member.home = RegionId(900 + 1 + member.home.0 % (REGIONS - 1));
    }
    crowd.tell_homes();
    let restarted: Vec<usize> = (HUBS..size / 2).step_by(20).collect();
    restarted.iter().for_each(|n| crowd.restart(*n));
    let first = all_talk(&mut crowd, restarted.iter().copied().chain((HUBS + 1..size / 2).step_by(20)));
    check(&crowd, first, "a region and the coordinator gone");

    let second = resident();
    crowd.forget_talks();
    let first = all_talk(&mut crowd, 0..size / 2);
    check(&crowd, first, "all once more");
    let grown = resident().saturating_sub(second);
    println!(
        "{:?}: {} steps; {} MiB in use, {} KiB more than before the last round",
        started.elapsed(),
        crowd.steps_done,
        resident() >> 20,
        grown >> 10
    );
    assert!(resident() - before <= size * (40 << 10), "{} bytes for each node", (resident() - before) / size);
    assert!(grown <= size * 2048, "{grown} bytes more");
}
