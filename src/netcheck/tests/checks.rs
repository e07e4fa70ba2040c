//! The machine: questions out, answers in.

use super::*;
use crate::wire::stun::{self, TxId};

struct Bench {
    checker: Checker,
    sent: Vec<(TxId, RegionId, Family, Time)>,
    events: Vec<Event>,
}

impl Bench {
    fn new(numbers: &[u16]) -> Self {
        let mut checker = Checker::new([7; 32]);
        checker.set_v6(true);
        checker.set_told(true);
        let mut bench = Self { checker, sent: Vec::new(), events: Vec::new() };
        bench.checker.set_regions(at(0), plain(numbers));
        bench.drain(at(0));
        bench
    }

    fn drain(&mut self, now: Time) {
        while let Some(probe) = self.checker.poll_probe(now) {
            self.checker.sent(now, probe.tx);
            let n = probe.server.name.trim_end_matches(['1', '2']).parse().unwrap_or(1);
            self.sent.push((probe.tx, region(n), probe.family, now));
        }
        self.events.extend(std::iter::from_fn(|| self.checker.poll_event()));
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, until: Time) {
        while let Some(deadline) = self.checker.poll_timeout().filter(|deadline| deadline.at <= until) {
            self.checker.handle_timeout(deadline.at);
            self.drain(deadline.at);
        }
    }

    /// The n-th question is answered.
    fn answer(&mut self, now: Time, n: usize, observed: &str) -> bool {
        let taken = self.checker.handle_datagram(now, &stun::response(self.sent[n].0, address(observed)));
        self.drain(now);
        taken
    }

    fn done(&mut self) -> bool {
        let done = self.events.contains(&Event::Done);
        self.events.clear();
        done
    }

    fn report(&self) -> &Report {
        self.checker.report().unwrap()
    }
}

const V4: &str = "203.0.113.9:41641";
const V6: &str = "[2001:db8::9]:41641";

#[test]
fn a_check_ends_when_everybody_has_answered() {
    let mut bench = Bench::new(&[3, 4]);
    assert_eq!(bench.sent.len(), 4, "both regions, both families");
    for (n, (_, _, family, _)) in bench.sent.clone().into_iter().enumerate() {
        assert!(!bench.done());
        assert!(bench.answer(at(10 + 5 * n as u64), n, if family == Family::V4 { V4 } else { V6 }));
    }
    assert!(bench.done());
    let report = bench.report().clone();
    assert_eq!((report.udp, report.v4, report.v6), (true, Some(address(V4)), Some(address(V6))));
    assert_eq!((report.mapping_varies, report.home), (Some(false), Some(region(3))));
    assert_eq!(report.latencies[&region(3)], Latency { v4: Some(ms(10)), v6: Some(ms(15)), https: None });
    let info = report.net_info();
    assert_eq!((info.preferred_derp, info.working_udp, info.working_ipv6), (3, Some(true), Some(true)));
    assert_eq!(
        info.derp_latency,
        BTreeMap::from([("3-v4", 0.010), ("3-v6", 0.015), ("4-v4", 0.020), ("4-v6", 0.025)].map(|(k, v)| (k.to_owned(), v)))
    );
    assert_eq!(bench.checker.poll_timeout(), None, "nobody talks, so nothing is asked");
}

#[test]
fn who_has_answered_is_not_asked_again() {
    let mut bench = Bench::new(&[3, 4]);
    assert!(bench.answer(at(10), 0, V4));
    bench.pass(at(150));
    let again: Vec<_> = bench.sent[4..].iter().map(|(_, region, family, _)| (region.0, *family)).collect();
    assert_eq!(again, [(3, Family::V6), (4, Family::V4), (4, Family::V6)]);
}

#[test]
fn three_answers_are_enough_and_the_others_have_a_little_time_only() {
    let mut bench = Bench::new(&[3, 4, 5, 6, 7]);
    let v4: Vec<usize> = (0..bench.sent.len()).filter(|n| bench.sent[*n].2 == Family::V4).collect();
    for n in &v4[..3] {
        bench.answer(at(40), *n, V4);
    }
    bench.pass(at(139));
    assert!(!bench.done());
    bench.pass(at(140));
    assert!(bench.done(), "twice the slowest, and 20 ms");
    assert_eq!(bench.report().latencies.len(), 3);
}

#[test]
fn one_answer_does_not_say_what_kind_of_nat_it_is_and_neither_does_ipv6() {
    for (answers, varies) in [
        (&[(0, V4)][..], None),
        (&[(0, V4), (1, V6), (3, "[2001:db8::77]:1")], None),
        (&[(0, V4), (2, V4)], Some(false)),
        (&[(0, V4), (2, "203.0.113.9:7")], Some(true)),
    ] {
        let mut bench = Bench::new(&[3, 4]);
        for (n, observed) in answers {
            assert!(bench.answer(at(10), *n, observed));
        }
        bench.pass(at(3000));
        assert!(bench.done());
        assert_eq!(bench.report().mapping_varies, varies, "{answers:?}");
    }
}

#[test]
fn answers_to_nothing_that_was_asked_and_second_ones_do_not_count() {
    let mut bench = Bench::new(&[3]);
    assert!(!bench.checker.handle_datagram(at(5), &stun::response(TxId([9; 12]), address(V4))));
    assert!(!bench.checker.handle_datagram(at(5), b"junk"));
    assert!(bench.answer(at(10), 0, V4));
    assert!(!bench.answer(at(11), 0, "198.51.100.1:1"));
    assert!(bench.answer(at(12), 1, V6));
    assert_eq!(bench.report().v4, Some(address(V4)));
    assert!(!bench.answer(at(13), 1, V6), "the check is over");
}

#[test]
fn where_udp_is_blocked_https_is_measured_instead() {
    let mut bench = Bench::new(&[3, 4]);
    bench.pass(at(999));
    assert!(bench.events.is_empty());
    bench.pass(at(1000));
    let asked: Vec<_> =
        bench.events.iter().map(|event| if let Event::Measure(id, servers) = event { (id.0, servers.len()) } else { panic!() }).collect();
    assert_eq!(asked, [(3, 2), (4, 2)]);
    bench.events.clear();
    bench.checker.measured(at(1080), region(4), Some(ms(30)));
    bench.checker.measured(at(1090), region(3), None);
    bench.drain(at(1090));
    assert!(bench.done());
    assert_eq!((bench.report().udp, bench.report().v4, bench.report().home), (false, None, Some(region(4))));
    assert_eq!(bench.report().net_info().derp_latency, BTreeMap::from([("4-v4".to_owned(), 0.030)]));
}

#[test]
fn where_nothing_at_all_answers_a_home_is_picked_and_kept() {
    let mut bench = Bench::new(&[3, 4, 5]);
    bench.pass(at(4999));
    assert!(!bench.done());
    bench.pass(at(5000));
    assert!(bench.done());
    let home = bench.checker.home();
    assert!(home.is_some());
    for n in 1..20 {
        bench.checker.request(at(n * 10_000), true);
        bench.pass(at(n * 10_000 + 5000));
        assert_eq!(bench.checker.home(), home);
    }
}

#[test]
fn an_only_relay_is_home_at_once() {
    assert_eq!(Bench::new(&[3]).checker.home(), Some(region(3)));
    assert_eq!(Bench::new(&[3, 4]).checker.home(), None);
}

#[test]
fn the_home_does_not_move_while_the_coordinator_is_away() {
    let mut bench = Bench::new(&[3, 4]);
    let finish = |bench: &mut Bench, now: u64, slow: u64, fast: u64| {
        let begin = bench.sent.len();
        bench.checker.request(at(now), true);
        bench.drain(at(now));
        // Region 4 first, so that it is fast.
        for (latency, wanted) in [(fast, 4), (slow, 3)] {
            let n = (begin..bench.sent.len()).find(|n| bench.sent[*n].1.0 == wanted && bench.sent[*n].2 == Family::V4).unwrap();
            bench.answer(at(now + latency), n, V4);
        }
        bench.pass(at(now + 4000));
    };
    bench.answer(at(50), 0, V4);
    bench.pass(at(3000));
    assert_eq!(bench.checker.home(), Some(region(3)));
    bench.checker.set_told(false);
    finish(&mut bench, 10_000, 100, 5);
    assert_eq!(bench.checker.home(), Some(region(3)), "nobody would learn of another");
    bench.checker.set_told(true);
    finish(&mut bench, 20_000, 100, 5);
    assert_eq!(bench.checker.home(), Some(region(4)));
}

#[test]
fn a_home_that_dies_is_left_at_once_though_it_was_heard_a_moment_ago() {
    let mut bench = Bench::new(&[3, 4]);
    bench.answer(at(5), 0, V4);
    bench.pass(at(3000));
    assert_eq!(bench.checker.home(), Some(region(3)));
    bench.checker.note_heard(at(4000), region(3));
    bench.checker.note_lost(at(4100), region(3));
    let begin = bench.sent.len();
    bench.drain(at(4100));
    let other = (begin..bench.sent.len()).find(|n| bench.sent[*n].1 == region(4)).unwrap();
    bench.answer(at(4140), other, V4);
    bench.pass(at(8000));
    assert_eq!(bench.checker.home(), Some(region(4)));
}

#[test]
fn while_there_is_traffic_a_check_follows_every_twenty_to_twenty_six_seconds() {
    let mut bench = Bench::new(&[3]);
    bench.answer(at(1), 0, V4);
    bench.answer(at(1), 1, V6);
    assert!(bench.done());
    let mut starts = Vec::new();
    for second in 0..200 {
        if second < 120 {
            bench.checker.note_traffic(at(second * 1000));
        }
        let before = bench.sent.len();
        bench.pass(at(second * 1000));
        if bench.sent.len() > before {
            starts.push(bench.sent[before].3);
            for n in before..bench.sent.len() {
                let observed = if bench.sent[n].2 == Family::V4 { V4 } else { V6 };
                bench.answer(at(second * 1000 + 1), n, observed);
            }
        }
    }
    assert!((6..=9).contains(&starts.len()), "{starts:?}");
    for pair in starts.windows(2) {
        let gap = pair[1].since(pair[0]);
        assert!(gap >= ms(20_000) && gap <= ms(27_000), "{gap:?}");
    }
    assert!(starts.last().is_some_and(|last| *last <= at(120_000 + 45_000)));
}

#[test]
fn a_check_that_is_asked_for_during_another_follows_it() {
    let mut bench = Bench::new(&[3]);
    bench.checker.request(at(1), false);
    bench.checker.request(at(2), true);
    bench.checker.request(at(3), false);
    bench.answer(at(5), 0, V4);
    bench.answer(at(5), 1, V6);
    assert!(bench.done());
    assert!(bench.checker.is_running());
    assert_eq!(bench.sent.len(), 4);
    bench.answer(at(10), 2, V4);
    bench.answer(at(10), 3, V6);
    assert!(bench.report().full && !bench.checker.is_running());
}

#[test]
fn without_relays_a_check_ends_with_nothing() {
    let mut bench = Bench::new(&[]);
    bench.checker.request(at(10), true);
    bench.drain(at(10));
    assert!(bench.done());
    assert_eq!((bench.report().udp, bench.report().home), (false, None));
}
