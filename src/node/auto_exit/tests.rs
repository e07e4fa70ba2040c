//! The choice by value: exit nodes that answer after so long or not at all, and a laptop that talks through the chosen one.

#![allow(clippy::indexing_slicing, reason = "test code")]

use std::collections::BTreeMap;

use super::*;
use crate::coord::client::MapSession;
use crate::wire::control::json::from_slice;

const A: NodeId = NodeId(2);
const B: NodeId = NodeId(3);
const C: NodeId = NodeId(4);

/// A laptop and its exit nodes.
struct Bench {
    core: AutoExit,
    now: Time,
    /// How long each takes to answer; those that are not here are dead.
    latency: BTreeMap<NodeId, u64>,
    answers: Vec<(Time, NodeId, Duration)>,
    pings: Vec<(Time, NodeId)>,
    /// Data goes out; and comes back from one that lives.
    talks: bool,
    one_way: bool,
    carried: (u64, u64),
    /// What was chosen, and when.
    choices: Vec<(u128, NodeId)>,
}

fn map(online: &[(NodeId, bool)]) -> NetMap {
    let peer = |(id, online): &(NodeId, bool)| {
        let n = id.0;
        format!(
            r#"{{"ID":{n},"Name":"exit-{n}.mesh.","Key":"{}","Addresses":["100.64.0.{n}/32"],"Online":{online},
                "AllowedIPs":["100.64.0.{n}/32","0.0.0.0/0","::/0"]}}"#,
            NodePublic::from_bytes([u8::try_from(n).unwrap(); 32])
        )
    };
    let peers: Vec<String> = online.iter().map(peer).collect();
    let json = format!(r#"{{"Node":{{"ID":1,"Name":"laptop.mesh."}},"Peers":[{}]}}"#, peers.join(","));
    let mut session = MapSession::default();
    session.apply(from_slice(json.as_bytes()).unwrap(), Wall::UNIX_EPOCH).unwrap();
    session.netmap().unwrap().clone()
}

impl Bench {
    fn new(latencies: &[(NodeId, u64)]) -> Self {
        let latency: BTreeMap<_, _> = latencies.iter().copied().collect();
        let mut bench = Self {
            core: AutoExit::default(),
            now: Time::from_start(Duration::from_secs(1000)),
            latency,
            answers: Vec::new(),
            pings: Vec::new(),
            talks: true,
            one_way: false,
            carried: (0, 0),
            choices: Vec::new(),
        };
        let online: Vec<_> = latencies.iter().map(|(id, _)| (*id, true)).collect();
        bench.map(&online);
        bench
    }

    fn map(&mut self, online: &[(NodeId, bool)]) {
        self.core.set_map(self.now, &map(online), Wall::UNIX_EPOCH);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some((id, _)) = self.core.poll_ping() {
            self.pings.push((self.now, id));
            if let Some(ms) = self.latency.get(&id) {
                let latency = Duration::from_millis(*ms);
                self.answers.push((self.now + latency, id, latency));
            }
        }
        let chosen = self.chosen();
        if let Some(id) = chosen.filter(|_| self.choices.last().map(|(_, id)| *id) != chosen) {
            self.choices.push((self.now.since(Time::from_start(Duration::from_secs(1000))).as_millis(), id));
        }
    }

    /// Lets time pass, in steps of 10 ms.
    fn pass(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds / 10 {
            self.now = self.now + Duration::from_millis(10);
            let (due, later) = self.answers.drain(..).partition(|(at, ..)| *at <= self.now);
            self.answers = later;
            let due: Vec<_> = due;
            for (_, id, latency) in due {
                self.core.answered(self.now, id, latency);
            }
            if self.talks {
                self.carried.0 += 100;
                let lives = self.chosen().is_some_and(|id| self.latency.contains_key(&id));
                self.carried.1 += u64::from(lives && !self.one_way) * 100;
            }
            if self.core.poll_timeout().is_some_and(|deadline| deadline.at <= self.now) {
                self.core.handle_timeout(self.now, self.chosen().map(|_| self.carried));
                assert!(self.core.poll_timeout().is_none_or(|deadline| deadline.at > self.now), "{:?}", self.core);
            }
            self.drain();
        }
    }

    /// It answers no more, not even to what was asked before.
    fn die(&mut self, id: NodeId) {
        self.latency.remove(&id);
        self.answers.retain(|(_, other, _)| *other != id);
    }

    fn chosen(&self) -> Option<NodeId> {
        self.core.choice().map(|choice| choice.id)
    }

    fn answers(&self) -> bool {
        self.core.choice().is_some_and(|choice| choice.answers)
    }

    fn pinged(&mut self) -> usize {
        std::mem::take(&mut self.pings).len()
    }
}

#[test]
fn the_fastest_is_taken_as_soon_as_all_have_answered() {
    let mut bench = Bench::new(&[(A, 40), (B, 20), (C, 60)]);
    bench.pass(1000);
    assert_eq!(bench.choices, [(360, B)]);
    let choice = bench.core.choice().unwrap();
    assert_eq!((choice.why, choice.answers, choice.latency), (Why::Fastest, true, Some(Duration::from_millis(20))));
}

#[test]
fn the_first_choice_does_not_wait_for_the_dead_and_a_single_one_is_taken_at_once() {
    let mut bench = Bench::new(&[(A, 40), (B, 20), (C, 5)]);
    bench.die(C);
    bench.pass(1000);
    assert!(bench.choices.len() == 1 && (700..800).contains(&bench.choices[0].0) && bench.chosen() == Some(B), "{:?}", bench.choices);

    let bench = Bench::new(&[(A, 40)]);
    assert_eq!((bench.choices[0], bench.core.choice().unwrap().why), ((0, A), Why::Only));

    // None answers: the first is used, and traffic waits for it.
    let mut bench = Bench::new(&[(A, 40), (B, 20)]);
    bench.die(A);
    bench.die(B);
    bench.pass(1100);
    assert_eq!((bench.choices[0], bench.answers(), bench.core.choice().unwrap().why), ((1000, A), false, Why::First));
}

#[test]
fn a_small_difference_changes_nothing_and_a_clear_one_only_after_minutes() {
    let mut bench = Bench::new(&[(A, 30), (B, 40)]);
    bench.pass(1000);
    bench.latency.insert(B, 22);
    bench.pass(600_000);
    assert_eq!(bench.chosen(), Some(A), "a third faster, but by 8 ms");
    bench.latency.insert(A, 100);
    bench.latency.insert(B, 80);
    bench.pass(600_000);
    assert_eq!(bench.chosen(), Some(A), "20 ms faster, but not by a third");

    bench.latency.insert(B, 20);
    bench.pass(100_000);
    assert_eq!(bench.chosen(), Some(A), "not yet");
    bench.latency.insert(B, 100);
    bench.pass(70_000);
    bench.latency.insert(B, 20);
    bench.pass(100_000);
    assert_eq!(bench.chosen(), Some(A), "it began anew");
    bench.pass(90_000);
    assert_eq!((bench.chosen(), bench.core.choice().unwrap().why), (Some(B), Why::Faster(A)));
    assert_eq!(bench.choices.len(), 2);
}

#[test]
fn one_that_dies_under_traffic_is_left_within_two_seconds_and_gets_nothing_back_by_returning() {
    let mut bench = Bench::new(&[(A, 15), (B, 20), (C, 30)]);
    bench.pass(5000);
    bench.latency.remove(&A);
    bench.pass(2000);
    assert_eq!((bench.chosen(), bench.core.choice().unwrap().why), (Some(B), Why::Died(A)));
    assert!(bench.choices.iter().any(|(at, id)| *id == B && *at <= 7000), "{:?}", bench.choices);

    bench.latency.insert(A, 15);
    bench.pass(600_000);
    assert_eq!((bench.chosen(), bench.choices.len()), (Some(B), 2));
}

#[test]
fn one_that_dies_again_and_again_has_to_prove_itself_for_longer() {
    let mut bench = Bench::new(&[(A, 10), (B, 50)]);
    bench.pass(1000);
    let mut stays = Vec::new();
    for _ in 0..3 {
        bench.latency.remove(&A);
        bench.pass(3000);
        assert_eq!(bench.chosen(), Some(B));
        bench.latency.insert(A, 10);
        let back = bench.now;
        while bench.chosen() == Some(B) {
            bench.pass(1000);
            assert!(bench.now.since(back) < Duration::from_secs(3600));
        }
        stays.push(bench.now.since(back).as_secs() / 60);
    }
    assert_eq!(stays, [5, 9, 17]);
}

#[test]
fn when_none_answers_the_choice_stays_and_whoever_answers_first_ends_the_wait() {
    let mut bench = Bench::new(&[(A, 10), (B, 20)]);
    bench.pass(5000);
    let all = std::mem::take(&mut bench.latency);
    bench.pass(60_000);
    assert_eq!((bench.chosen(), bench.answers(), bench.choices.len()), (Some(A), false, 1));
    // Our own network was away: all is as before.
    bench.latency = all;
    bench.core.network_changed(bench.now);
    bench.pass(1000);
    assert_eq!((bench.chosen(), bench.answers(), bench.choices.len()), (Some(A), true, 1));

    bench.latency.clear();
    bench.pass(60_000);
    bench.pinged();
    bench.pass(60_000);
    assert!(bench.pinged() <= 5 * 10, "it is tried ever less often");
    bench.latency.insert(B, 20);
    bench.pass(17_000);
    assert_eq!((bench.chosen(), bench.answers()), (Some(B), true));
}

#[test]
fn an_idle_node_asks_nobody_and_a_busy_one_once_a_minute() {
    let mut bench = Bench::new(&[(A, 10), (B, 20)]);
    bench.pass(1000);
    bench.talks = false;
    bench.pass(1000);
    bench.pinged();
    // The traffic of before earns one round.
    bench.pass(3_600_000);
    assert!(bench.pinged() <= 4);
    bench.talks = true;
    bench.pass(600_000);
    let busy = bench.pinged();
    assert!((36..=44).contains(&busy), "{busy} pings in ten minutes");
}

#[test]
fn data_that_goes_one_way_only_costs_a_ping_now_and_then() {
    let mut bench = Bench::new(&[(A, 10), (B, 20)]);
    bench.pass(1000);
    bench.one_way = true;
    bench.pinged();
    bench.pass(60_000);
    let pings = bench.pinged();
    assert!(bench.choices.len() == 1 && (20..40).contains(&pings), "{pings}");
}

#[test]
fn one_that_is_no_longer_offered_is_left_at_once_and_an_offline_one_unless_it_answers() {
    let mut bench = Bench::new(&[(A, 10), (B, 20)]);
    bench.talks = false;
    bench.pass(5000);
    bench.map(&[(A, false), (B, true)]);
    bench.pass(5000);
    assert_eq!(bench.chosen(), Some(A), "only its connection to the coordinator is lost");
    bench.map(&[(A, true), (B, true)]);
    bench.latency.remove(&A);
    bench.map(&[(A, false), (B, true)]);
    bench.pass(1100);
    assert_eq!(bench.chosen(), Some(B));
    bench.map(&[(A, true), (C, true)]);
    bench.latency.insert(C, 30);
    bench.pass(1500);
    assert_eq!(bench.chosen(), Some(C), "the other one is dead");
    bench.map(&[]);
    bench.pass(1000);
    assert_eq!((bench.chosen(), bench.core.poll_timeout()), (None, None));
    bench.map(&[(B, false)]);
    assert_eq!(bench.chosen(), None, "an offline one is nobody's choice");
    bench.map(&[(B, true)]);
    assert_eq!(bench.chosen(), Some(B));
}

#[test]
fn eight_are_looked_at_and_no_more() {
    let many: Vec<_> = (2..40).map(|n| (NodeId(n), 20)).collect();
    let mut bench = Bench::new(&many);
    bench.pass(200);
    assert_eq!(bench.pinged(), MAX_CANDIDATES);
}
