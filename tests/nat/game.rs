//! A game: two nodes that have never heard of each other's addresses talk until both are direct, or the time is up. And its report.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::Node;

/// A direct way is found within this time after the first packet, or there is none.
pub const LIMIT: Duration = Duration::from_secs(2);
/// How often a packet is sent meanwhile.
const PAUSE: Duration = Duration::from_millis(25);
/// Pairs that are tried at a time.
const AT_ONCE: usize = 3;

/// Who plays, and what is expected of them.
pub struct Game<'a> {
    pub nodes: [&'a Node; 2],
    pub places: [&'static str; 2],
    /// Whether stock nodes in these places find a direct way.
    pub possible: bool,
    /// When to give up.
    pub limit: Duration,
}

/// What came of it.
pub struct Outcome<'a> {
    pub game: Game<'a>,
    /// When both nodes said that they are direct, from the first packet on.
    pub direct: Option<Duration>,
    /// When the first answer came.
    pub first: Option<Duration>,
    /// The address of the second that the first uses.
    pub address: String,
}

/// Plays all games, a few at a time; outcomes are in the games' order.
pub fn play_all(games: Vec<Game<'_>>) -> Vec<Outcome<'_>> {
    let (next, numbers) = (AtomicUsize::new(0), AtomicU64::new(1));
    let waiting: Vec<Mutex<Option<Game<'_>>>> = games.into_iter().map(|game| Mutex::new(Some(game))).collect();
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = waiting.get(n) else { return };
                    let game = place.lock().unwrap().take().unwrap();
                    let outcome = play(game, &numbers);
                    outcomes.lock().unwrap().push((n, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(n, _)| *n);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn play<'a>(game: Game<'a>, numbers: &AtomicU64) -> Outcome<'a> {
    let [a, b] = game.nodes;
    let start = Instant::now();
    let mut asked = Vec::new();
    let (mut direct, mut first) = (None, None);
    while (direct.is_none() || first.is_none()) && start.elapsed() < game.limit {
        let number = numbers.fetch_add(2, Ordering::Relaxed) | 1;
        asked.push(number);
        a.ask(b, number);
        std::thread::sleep(PAUSE);
        let both = [a.path(b), b.path(a)];
        let now = both.iter().all(|(path, _)| path == "direct").then(|| start.elapsed());
        direct = direct.or(now);
        first = asked.iter().filter_map(|number| a.came(number + 1)).min().map(|at| at.duration_since(start));
    }
    let address = a.path(b).1;
    Outcome { game, direct, first, address }
}

impl Outcome<'_> {
    pub fn title(&self) -> String {
        let [from, to] = self.game.places;
        let [a, b] = self.game.nodes.map(|node| node.kind.name());
        format!("{from} ({a}) to {to} ({b})")
    }

    fn row(&self) -> Value {
        let ms = |time: Option<Duration>| time.map(|time| time.as_millis() as u64);
        json!({ "nodes": self.game.nodes.map(|node| node.kind.name()), "from": self.game.places[0], "to": self.game.places[1],
                "way": if self.direct.is_some() { "direct" } else { "relay" }, "direct_ms": ms(self.direct),
                "first_answer_ms": ms(self.first), "possible": self.game.possible, "address": self.address })
    }
}

/// Prints the outcomes, and puts them into target/nat-matrix.json in place of those of the same programs and places.
pub fn report(outcomes: &[Outcome<'_>]) {
    let ms = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |time| format!("{} ms", time.as_millis()));
    println!("{:<11} {:<12} {:<11} {:<12} {:<7} {:>8} {:>8}  address", "node", "from", "node", "to", "way", "direct", "first");
    for outcome in outcomes {
        let way = if outcome.direct.is_some() { "direct" } else { "relay" };
        let ([a, b], [from, to]) = (outcome.game.nodes.map(|node| node.kind.name()), outcome.game.places);
        let (direct, first) = (ms(outcome.direct), ms(outcome.first));
        println!("{a:<11} {from:<12} {b:<11} {to:<12} {way:<7} {direct:>8} {first:>8}  {}", outcome.address);
    }
    let target = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let _ = std::fs::create_dir_all(&target);
    let file = target.join("nat-matrix.json");
    let new: Vec<Value> = outcomes.iter().map(Outcome::row).collect();
    let old = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Vec<Value>>(&text).ok()).unwrap_or_default();
    let rows: Vec<Value> = old
        .into_iter()
        .filter(|row| new.iter().all(|n| n["nodes"] != row["nodes"] || n["from"] != row["from"] || n["to"] != row["to"]))
        .chain(new.iter().cloned())
        .collect();
    std::fs::write(file, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
}

/// The time until both were direct, of all games that got there: how many, the median and the longest.
pub fn summary(outcomes: &[&Outcome<'_>]) -> String {
    let mut times: Vec<u128> = outcomes.iter().filter_map(|outcome| outcome.direct).map(|time| time.as_millis()).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    format!("{} of {} direct, median {median} ms, longest {} ms", times.len(), outcomes.len(), times.last().copied().unwrap_or_default())
}
