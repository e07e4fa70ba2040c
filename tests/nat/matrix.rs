//! Every place against every place.
//!
//! Each node is behind a router of its own, and all inner networks have the same addresses. One coordinator with its relay is in the middle.

use std::time::{Duration, Instant};

use super::coordinator::Coordinator;
use super::game::{Game, LIMIT, Outcome, play_all, report, summary};
use super::netns::{Machine, eventually, lacking};
use super::node::{Kind, Node, peers};
use super::place::{ALL, Internet, Place, TOGETHER};
use super::turn;

/// The first answer takes no longer than this, direct or not.
const FIRST: Duration = Duration::from_secs(1);

/// Where ports are guessed a direct way is found within this time.
const GUESSING: Duration = Duration::from_secs(60);

/// Nodes by place, and the machines they are on.
struct World {
    /// For each place, a node of each of the kinds asked for.
    apart: Vec<Vec<Node>>,
    /// For each of [`TOGETHER`], two nodes.
    together: Vec<[Node; 2]>,
    _bystanders: Vec<Node>,
    _coordinator: Coordinator,
    _machines: Vec<Machine>,
    _internet: Internet,
    _home: tempfile::TempDir,
}

impl World {
    fn new(apart: &[Kind], pair: [Kind; 2]) -> Self {
        let started = Instant::now();
        let home = tempfile::tempdir().unwrap();
        let internet = Internet::new();
        let coordinator = Coordinator::start(&internet.centre, home.path());
        let mut machines = Vec::new();
        let start = |kind: Kind, machine: &Machine, name: String| Node::start_as(kind, machine, &name, home.path(), &coordinator);
        let nodes_of = |(n, place): (usize, Place)| {
            let nodes = apart.iter().enumerate().map(|(end, kind)| {
                let (host, routers) = internet.settle(place);
                let node = start(*kind, &host, format!("n{n}-{end}"));
                machines.push(host);
                machines.extend(routers);
                node
            });
            nodes.collect()
        };
        let apart: Vec<Vec<Node>> = ALL.into_iter().enumerate().map(nodes_of).collect();
        let (mut together, mut bystanders) = (Vec::new(), Vec::new());
        for (n, how) in TOGETHER.into_iter().enumerate() {
            let place = internet.settle_together(how);
            together.push([0, 1].map(|end| start(pair[end], &place.hosts[end], format!("t{n}-{end}"))));
            bystanders.extend(place.bystander.as_ref().map(|machine| start(Kind::Ours, machine, format!("t{n}-x"))));
            machines.extend(place.hosts.into_iter().chain(place.routers).chain(place.bystander));
        }
        let all: Vec<&Node> = apart.iter().flatten().chain(together.iter().flatten()).chain(&bystanders).collect();
        for node in &all {
            let what = format!("{} knows the others and their relays", node.name);
            eventually(&what, Duration::from_secs(60), || node.is_settled(all.len() - 1));
        }
        println!("{} nodes after {:.1} s", all.len(), started.elapsed().as_secs_f64());
        Self { apart, together, _bystanders: bystanders, _coordinator: coordinator, _machines: machines, _internet: internet, _home: home }
    }

    fn apart(&self, (from, a): (usize, usize), (to, b): (usize, usize)) -> Game<'_> {
        let places = [ALL[from].name(), ALL[to].name()];
        let nodes = [&self.apart[from][a], &self.apart[to][b]];
        let all = |kind| nodes.iter().all(|node| node.kind == kind);
        let guesses = all(Kind::Ours) && ALL[from].guesses(ALL[to]);
        let limit = match () {
            // Each turn is through with 98 of 100, and a node guesses for one peer at a time.
            () if guesses => GUESSING,
            // Two stock nodes are not to be good enough here, but to be measured.
            () if all(Kind::Stock) => 4 * LIMIT,
            () => LIMIT,
        };
        Game { nodes, places, possible: guesses || ALL[from].reaches(ALL[to]), limit }
    }

    fn together(&self) -> impl Iterator<Item = Game<'_>> {
        let pairs = self.together.iter().zip(TOGETHER);
        pairs.map(|([a, b], how)| Game { nodes: [a, b], places: [how.name(); 2], possible: how.way().is_some(), limit: LIMIT })
    }
}

fn first_answers_come_at_once(outcomes: &[&Outcome<'_>]) {
    for outcome in outcomes {
        assert!(outcome.first.is_some_and(|first| first < FIRST), "{}: the first answer after {:?}", outcome.title(), outcome.first);
    }
}

fn addresses_are_the_right_ones(outcomes: &[&Outcome<'_>]) {
    for how in TOGETHER {
        let outcome = outcomes.iter().find(|outcome| outcome.game.places[0] == how.name()).unwrap();
        match how.way() {
            Some(start) => assert!(outcome.address.starts_with(start), "{}: by {}", outcome.title(), outcome.address),
            None => assert!(outcome.direct.is_none(), "{}: by {}", outcome.title(), outcome.address),
        }
    }
    assert!(outcomes.iter().any(|outcome| outcome.address.starts_with("[2001:db8:")), "IPv6 is used where both have it");
}

#[test]
fn wherever_a_direct_way_is_possible_it_is_found_and_packets_flow_before() {
    if let Some(reason) = lacking() {
        println!("skipped: {reason}");
        return;
    }
    let _turn = turn();
    let world = World::new(&[Kind::Ours, Kind::Ours], [Kind::Ours, Kind::Ours]);
    let apart = (0..ALL.len()).flat_map(|a| (a..ALL.len()).map(move |b| ((a, 0), (b, 1))));
    let outcomes = play_all(apart.map(|(a, b)| world.apart(a, b)).chain(world.together()).collect());
    report(&outcomes);
    let outcomes: Vec<&Outcome<'_>> = outcomes.iter().collect();
    println!("{}", summary(&outcomes));
    first_answers_come_at_once(&outcomes);
    for outcome in &outcomes {
        assert_eq!(outcome.direct.is_some(), outcome.game.possible, "{}: direct after {:?}", outcome.title(), outcome.direct);
    }
    addresses_are_the_right_ones(&outcomes);
}

#[test]
fn with_stock_nodes_a_direct_way_is_found_wherever_two_stock_nodes_find_one() {
    if let Some(reason) = lacking().map(str::to_owned).or_else(|| peers().err()) {
        println!("skipped: {reason}");
        return;
    }
    let _turn = turn();
    // In each place: ours, and two stock ones to compare with.
    let world = World::new(&[Kind::Ours, Kind::Stock, Kind::Stock], [Kind::Ours, Kind::Stock]);
    let (ours, stock, other) = (0, 1, 2);
    let all = || (0..ALL.len()).flat_map(|a| (0..ALL.len()).map(move |b| (a, b)));
    let mixed = all().map(|(a, b)| world.apart((a, ours), (b, stock)));
    let reference = all().filter(|(a, b)| a <= b).map(|(a, b)| world.apart((a, stock), (b, other)));
    // Taking turns, so that neither plays with nodes that have rested longer.
    let (mixed, reference): (Vec<Game<'_>>, Vec<_>) = (mixed.chain(world.together()).collect(), reference.collect());
    let (many, few) = (mixed.len(), reference.len());
    let mixed = mixed.into_iter().enumerate().map(|(n, game)| (n * few, game));
    let mut games: Vec<_> = mixed.chain(reference.into_iter().enumerate().map(|(n, game)| (n * many, game))).collect();
    games.sort_by_key(|(turn, _)| *turn);
    let mut outcomes = play_all(games.into_iter().map(|(_, game)| game).collect());
    outcomes.sort_by_key(|outcome| outcome.game.nodes[0].kind == Kind::Stock);
    report(&outcomes);
    let (mixed, reference): (Vec<&Outcome<'_>>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.game.nodes[0].kind == Kind::Ours);
    println!("pvemesh to tailscaled: {}", summary(&mixed));
    println!("tailscaled to tailscaled: {}", summary(&reference));
    first_answers_come_at_once(&mixed);
    for outcome in &mixed {
        // What the two stock nodes found in this very run counts too, whatever the table says.
        let places = outcome.game.places;
        let found = reference.iter().any(|r| r.direct.is_some() && (r.game.places == places || r.game.places == [places[1], places[0]]));
        assert!(outcome.direct.is_some() || !(outcome.game.possible || found), "{}: no direct way", outcome.title());
    }
    addresses_are_the_right_ones(&mixed);
}
