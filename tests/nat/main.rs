//! Real nodes behind NATs of every kind: which way results between each two, and after how long.
//!
//! Every place has two machines, each behind a router of its own, and all inner networks have the same addresses. One coordinator with its relay is in
//! the middle. The table is printed and written to target/nat-matrix.json.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "test code")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, missing_docs, unreachable_pub, reason = "test code")]

mod moving;
#[path = "../engine/netns.rs"]
mod netns;
mod node;
mod place;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netns::{Machine, eventually, lacking};
use node::{Coordinator, Node};
use place::{ALL, Internet, Place};

/// A direct way is found within this time after the first packet, or there is none.
const LIMIT: Duration = Duration::from_secs(2);
/// How often a packet is sent meanwhile.
const PAUSE: Duration = Duration::from_millis(25);
/// Pairs that are tried at a time.
const AT_ONCE: usize = 3;

/// One test at a time: they look at the clock.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a pair.
struct Outcome {
    places: (String, String),
    expected: bool,
    direct: Option<Duration>,
    first: Option<Duration>,
    address: String,
}

/// Two nodes talk until both are direct, or the time is up.
fn play(a: &Node, b: &Node, places: (String, String), expected: bool, numbers: &AtomicU64) -> Outcome {
    let start = Instant::now();
    let mut asked = Vec::new();
    let mut direct = None;
    while direct.is_none() && start.elapsed() < LIMIT {
        let number = numbers.fetch_add(2, Ordering::Relaxed) | 1;
        asked.push(number);
        a.ask(b, number);
        std::thread::sleep(PAUSE);
        let both = [a.path(b), b.path(a)];
        direct = both.iter().all(|(path, _)| path == "direct").then(|| start.elapsed());
    }
    let answers = || asked.iter().filter_map(|number| a.came(number + 1)).min();
    let first = answers().map(|at| at.duration_since(start));
    Outcome { places, expected, direct, first, address: a.path(b).1 }
}

fn report(outcomes: &[Outcome]) {
    let ms = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()));
    println!("{:<12} {:<12} {:<8} {:>9} {:>9}  address", "from", "to", "way", "direct", "first");
    for outcome in outcomes {
        let way = if outcome.direct.is_some() { "direct" } else { "relay" };
        let (from, to) = &outcome.places;
        println!("{from:<12} {to:<12} {way:<8} {:>9} {:>9}  {}", ms(outcome.direct), ms(outcome.first), outcome.address);
    }
    let rows: Vec<serde_json::Value> = outcomes
        .iter()
        .map(|o| {
            let ms = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
            serde_json::json!({ "from": o.places.0, "to": o.places.1, "direct_ms": ms(o.direct), "first_answer_ms": ms(o.first),
                                "possible": o.expected, "address": o.address })
        })
        .collect();
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let _ = std::fs::create_dir_all(&target);
    std::fs::write(target.join("nat-matrix.json"), serde_json::to_string_pretty(&rows).unwrap()).unwrap();
}

/// Nodes two by two, and the machines they are on.
struct World {
    pairs: Vec<[Node; 2]>,
    _coordinator: Coordinator,
    _machines: Vec<Machine>,
    _internet: Internet,
    _home: tempfile::TempDir,
}

fn world() -> World {
    let home = tempfile::tempdir().unwrap();
    let internet = Internet::new();
    let coordinator = Coordinator::start(&internet.centre, home.path());
    let (mut pairs, mut machines) = (Vec::new(), Vec::new());
    for (n, place) in ALL.into_iter().enumerate() {
        pairs.push(["a", "b"].map(|end| {
            let (host, routers) = internet.settle(place);
            let node = Node::start(&host, &format!("n{n}{end}"), home.path(), &coordinator);
            machines.push(host);
            machines.extend(routers);
            node
        }));
    }
    let (hosts, router) = internet.settle_together();
    let [a, b] = ["la", "lb"];
    pairs.push([Node::start(&hosts[0], a, home.path(), &coordinator), Node::start(&hosts[1], b, home.path(), &coordinator)]);
    machines.extend(hosts);
    machines.push(router);
    let others = pairs.len() * 2 - 1;
    for node in pairs.iter().flatten() {
        eventually(&format!("{} knows the others and their relays", node.name), Duration::from_secs(30), || node.is_settled(others));
    }
    World { pairs, _coordinator: coordinator, _machines: machines, _internet: internet, _home: home }
}

#[test]
fn wherever_a_direct_way_is_possible_it_is_found_and_packets_flow_before() {
    if let Some(reason) = lacking() {
        println!("skipped: {reason}");
        return;
    }
    let _turn = turn();
    let started = Instant::now();
    let world = world();
    println!("{} nodes after {:.1} s", world.pairs.len() * 2, started.elapsed().as_secs_f64());
    let name = |n: usize| ALL.get(n).map_or("one LAN", |place| place.name()).to_owned();
    let all = (0..ALL.len()).flat_map(|a| (a..ALL.len()).map(move |b| (a, b)));
    let games: Vec<(usize, usize)> = all.chain([(ALL.len(), ALL.len())]).collect();
    let (next, numbers, outcomes) = (AtomicUsize::new(0), AtomicU64::new(1), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((a, b)) = games.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let expected = a == ALL.len() || ALL[a].reaches(ALL[b]);
                    let outcome = play(&world.pairs[a][0], &world.pairs[b][1], (name(a), name(b)), expected, &numbers);
                    outcomes.lock().unwrap().push(((a, b), outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(game, _)| *game);
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, outcome)| outcome).collect();
    report(&outcomes);
    println!("all after {:.1} s", started.elapsed().as_secs_f64());
    for outcome in &outcomes {
        let (from, to) = &outcome.places;
        assert!(
            outcome.first.is_some_and(|first| first < Duration::from_secs(1)),
            "{from} to {to}: the first answer after {:?}",
            outcome.first
        );
        assert_eq!(outcome.direct.is_some(), outcome.expected, "{from} to {to}: direct after {:?}", outcome.direct);
    }
    let together = outcomes.last().unwrap();
    assert!(together.address.starts_with("192.168.5."), "behind one router, the local network is used: {}", together.address);
    assert!(
        Place::Ipv6.reaches(Place::Ipv6) && outcomes.iter().any(|o| o.address.starts_with("[2001:db8:")),
        "IPv6 is used where both have it"
    );
}
