//! The core by value: what goes in, what comes out.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::ident::{DiscoPrivate, DiscoPublic, NodePublic};
use crate::time::Time;
use crate::wire::disco::{Envelope, Message, SharedKey, TxId};

const LAN: &str = "192.168.1.5:41641";
const WAN: &str = "203.0.113.5:41641";
const CAFE: &str = "198.51.100.9:1024";

fn ms(milliseconds: u64) -> Time {
    Time::from_start(Duration::from_millis(milliseconds))
}

fn at(seconds: u64) -> Time {
    ms(seconds * 1000)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn direct(text: &str) -> Path {
    Path::Direct(address(text))
}

fn node(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn disco(n: u8) -> DiscoPrivate {
    DiscoPrivate::from_seed([n; 32])
}

/// What our node is in these tests.
const US: u8 = 1;
/// And the peer.
const THEM: u8 = 2;

struct Bench {
    paths: Paths,
    them: DiscoPrivate,
    sent: Vec<(SocketAddr, Message)>,
    events: Vec<Event>,
    next_tx: u8,
}

impl Bench {
    fn with(peers: &[Peer]) -> Self {
        let mut paths = Paths::new(node(US), disco(US), [7; 32]);
        paths.set_peers(at(0), peers);
        Self { paths, them: disco(THEM), sent: Vec::new(), events: Vec::new(), next_tx: 0 }
    }

    /// A bench with one peer that has a disco key.
    fn new(addresses: &[&str]) -> Self {
        Self::with(&[peer(addresses)])
    }

    fn key(&self) -> SharedKey {
        SharedKey::new(&self.them, &disco(US).public())
    }

    /// What has been sent since the last look, opened as the peer would.
    fn sent(&mut self) -> Vec<(SocketAddr, Message)> {
        self.drain();
        std::mem::take(&mut self.sent)
    }

    fn drain(&mut self) {
        while let Some(Transmit { to: Path::Direct(to), contents }) = self.paths.poll_transmit() {
            let envelope = Envelope::parse(&contents).unwrap();
            assert_eq!(envelope.sender, disco(US).public());
            self.sent.push((to, Message::decode(&self.key().open(&envelope).unwrap()).unwrap()));
        }
        self.events.extend(std::iter::from_fn(|| self.paths.poll_event()));
    }

    fn pings(&mut self) -> Vec<(SocketAddr, TxId)> {
        let ping = |(to, message)| match message {
            Message::Ping { tx, node: Some(key) } => {
                assert_eq!(key, node(US));
                Some((to, tx))
            }
            _ => None,
        };
        self.sent().into_iter().filter_map(ping).collect()
    }

    fn pinged(&mut self) -> Vec<SocketAddr> {
        self.pings().into_iter().map(|(to, _)| to).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        self.drain();
        std::mem::take(&mut self.events)
    }

    fn receive(&mut self, now: Time, from: &str, message: &Message) {
        let packet = self.key().seal(&self.them.public(), [9; 24], &message.encode());
        self.paths.handle_datagram(now, address(from), &packet);
    }

    fn pong(&mut self, now: Time, from: &str, tx: TxId) {
        self.receive(now, from, &Message::Pong { tx, observed: address("203.0.113.77:9") });
    }

    fn ping(&mut self, now: Time, from: &str) -> TxId {
        self.next_tx += 1;
        let tx = TxId([self.next_tx; 12]);
        self.receive(now, from, &Message::Ping { tx, node: Some(node(THEM)) });
        tx
    }

    fn send(&mut self, now: Time) {
        self.paths.sending(now, &node(THEM));
    }

    fn hear(&mut self, now: Time, from: &str) {
        self.paths.heard(now, &node(THEM), address(from));
    }

    fn ask(&mut self, now: Time) -> Vec<Path> {
        self.paths.ask(now, &node(THEM))
    }

    fn answered(&mut self, now: Time, from: &str) {
        self.paths.answered(now, &node(THEM), address(from));
    }

    fn best(&self) -> Option<Path> {
        self.paths.route(&node(THEM)).0
    }

    /// Sends data at `now` and answers the pings to these addresses, each so many milliseconds later.
    fn prove(&mut self, now: Time, answers: &[(&str, u64)]) {
        self.send(now);
        let pings = self.pings();
        for (to, latency) in answers {
            let tx = pings.iter().find(|(address, _)| *address == to.parse().unwrap()).unwrap().1;
            self.pong(now + Duration::from_millis(*latency), to, tx);
        }
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, until: Time) {
        while let Some(deadline) = self.paths.poll_timeout().filter(|deadline| deadline.at <= until) {
            self.paths.handle_timeout(deadline.at);
        }
    }

    fn counters(&self) -> Counters {
        self.paths.counters()
    }
}

fn peer(addresses: &[&str]) -> Peer {
    Peer { key: node(THEM), disco: Some(disco(THEM).public()), addresses: addresses.iter().map(|a| address(a)).collect() }
}

fn without_disco(addresses: &[&str]) -> Bench {
    Bench::with(&[Peer { disco: None, ..peer(addresses) }])
}

#[test]
fn the_first_handshake_goes_to_all_candidates_local_ones_first() {
    for mut bench in [without_disco(&[WAN, LAN]), Bench::new(&[WAN, LAN])] {
        assert_eq!(bench.best(), None);
        assert_eq!(bench.ask(at(0)), [direct(LAN), direct(WAN)]);
    }
}

#[test]
fn the_candidate_that_answers_a_handshake_is_taken_and_asked_alone_next_time() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.ask(at(0));
    bench.answered(at(1), WAN);
    assert_eq!(bench.best(), Some(direct(WAN)));
    assert_eq!(bench.events(), [Event::Moved(node(THEM))]);
    assert_eq!(bench.ask(at(120)), [direct(WAN)]);
}

#[test]
fn a_handshake_unanswered_for_five_seconds_goes_to_all_again() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.answered(at(1), WAN);
    assert_eq!(bench.ask(at(120)), [direct(WAN)]);
    assert_eq!(bench.ask(at(124)), [direct(WAN)]);
    assert_eq!(bench.ask(at(125)), [direct(LAN), direct(WAN)]);
    assert_eq!(bench.best(), Some(direct(WAN)), "there is nowhere better yet");
    bench.answered(at(126), LAN);
    assert_eq!(bench.best(), Some(direct(LAN)));
    assert_eq!(bench.ask(at(240)), [direct(LAN)]);
}

#[test]
fn without_probes_the_path_follows_a_peer_that_moves() {
    let mut bench = without_disco(&[WAN]);
    bench.answered(at(1), WAN);
    bench.hear(at(2), CAFE);
    assert_eq!(bench.best(), Some(direct(CAFE)));
}

#[test]
fn without_probes_a_local_path_that_works_is_not_left_for_a_global_one() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.answered(at(1), LAN);
    bench.hear(at(2), WAN);
    assert_eq!(bench.best(), Some(direct(LAN)));
    bench.hear(at(8), WAN);
    assert_eq!(bench.best(), Some(direct(WAN)), "the local one fell silent");
    bench.hear(at(9), LAN);
    assert_eq!(bench.best(), Some(direct(LAN)));
}

#[test]
fn the_map_takes_back_its_candidates_but_not_the_path_in_use() {
    let mut bench = without_disco(&[WAN, LAN]);
    bench.answered(at(1), WAN);
    bench.paths.set_peers(at(2), &[Peer { disco: None, ..peer(&[CAFE]) }]);
    assert_eq!(bench.best(), Some(direct(WAN)));
    bench.ask(at(2));
    assert_eq!(bench.ask(at(7)), [direct(WAN), direct(CAFE)]);
}

#[test]
fn candidates_are_bounded_and_the_staleest_learned_one_makes_room() {
    let mut bench = without_disco(&[WAN]);
    for n in 0..1000 {
        bench.hear(at(n), &format!("198.51.100.1:{}", 1024 + n));
    }
    bench.ask(at(2000));
    let all = bench.ask(at(2006));
    assert_eq!(all.len(), MAX_LEARNED + 1);
    assert!(all.contains(&direct(WAN)) && all.contains(&direct("198.51.100.1:2023")));
    let many: Vec<String> = (1..200).map(|n| format!("203.0.113.{n}:1")).collect();
    let mut bench = Bench::new(&many.iter().map(String::as_str).collect::<Vec<_>>());
    bench.send(at(0));
    assert_eq!(bench.pinged().len(), MAX_LISTED);
    // A full list from the map does not keep the peer from moving.
    bench.hear(at(1), CAFE);
    assert_eq!(bench.best(), Some(direct(CAFE)));
}

#[test]
fn unusable_addresses_are_passed_over() {
    let mut bench = Bench::new(&["0.0.0.0:1", "1.2.3.4:0", "224.0.0.1:5", "255.255.255.255:5", "[ff02::1]:5", "[::]:1", "[fe80::1]:5"]);
    assert_eq!(bench.ask(at(0)), []);
    bench.paths.set_peers(at(0), &[peer(&["[::ffff:1.2.3.4]:5", "1.2.3.4:5"])]);
    assert_eq!(bench.ask(at(0)), [direct("1.2.3.4:5")]);
}

#[test]
fn a_peer_without_a_disco_key_is_never_pinged_and_costs_no_deadline() {
    let mut bench = without_disco(&[WAN]);
    bench.send(at(0));
    bench.hear(at(0), LAN);
    bench.ask(at(0));
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
    assert!(!bench.paths.route(&node(THEM)).1);
    assert_eq!(bench.paths.ping(at(0), &node(THEM), 1), Err(Unreached::NoDisco));
}

#[test]
fn only_a_peer_that_is_talked_to_is_pinged() {
    let mut bench = Bench::new(&[WAN, LAN]);
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
    bench.hear(at(0), WAN);
    bench.hear(at(1), WAN);
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
    bench.send(at(2));
    assert_eq!(bench.pinged(), [address(LAN), address(WAN)]);
    bench.send(at(2));
    assert_eq!(bench.pinged(), [], "they have just been pinged");
}

#[test]
fn a_pong_proves_where_the_ping_went_and_not_where_the_pong_came_from() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    bench.pong(ms(30), CAFE, tx);
    assert_eq!(bench.best(), Some(direct(WAN)));
    assert_eq!(bench.paths.latency(ms(30), &node(THEM)), Some(Duration::from_millis(30)));
    assert_eq!(bench.events(), [Event::Moved(node(THEM))]);
    bench.send(ms(31));
    assert_eq!(bench.pinged(), [], "where the pong came from is no candidate");
}

#[test]
fn of_proven_addresses_the_better_one_is_taken() {
    for (answers, best) in
        [([(LAN, 2), (WAN, 3)], LAN), ([(WAN, 2), (LAN, 2)], LAN), ([(WAN, 10), (LAN, 40)], WAN), ([(LAN, 40), (WAN, 10)], WAN)]
    {
        let mut bench = Bench::new(&[WAN, LAN]);
        bench.prove(at(0), &answers);
        assert_eq!(bench.best(), Some(direct(best)), "{answers:?}");
    }
}

#[test]
fn beside_a_way_that_works_others_are_tried_four_times_and_then_once_a_minute_if_it_is_slow() {
    for (latency, rounds) in [(20, 4 + 2), (3, 4)] {
        let mut bench = Bench::new(&[WAN, CAFE]);
        bench.prove(at(0), &[(WAN, latency)]);
        let mut tried = 1;
        for second in 1..=125 {
            bench.send(at(second));
            bench.pass(at(second));
            for (to, tx) in bench.pings() {
                if to == address(WAN) {
                    bench.pong(at(second) + Duration::from_millis(latency), WAN, tx);
                } else {
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, rounds, "at {latency} ms");
        assert_eq!(bench.best(), Some(direct(WAN)));
    }
}

#[test]
fn the_heartbeat_ends_forty_five_seconds_after_the_last_data() {
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    let mut beats = Vec::new();
    while let Some(deadline) = bench.paths.poll_timeout() {
        assert!(deadline.at < at(60), "{deadline}");
        bench.paths.handle_timeout(deadline.at);
        for (to, tx) in bench.pings() {
            beats.push(deadline.at);
            bench.pong(deadline.at + Duration::from_millis(20), WAN, tx);
            assert_eq!(to, address(WAN));
            // Received packets and pings are no activity.
            bench.hear(deadline.at, WAN);
            bench.ping(deadline.at, WAN);
        }
    }
    assert_eq!(beats, (1..=15).map(|n| at(3 * n)).collect::<Vec<_>>());
}

#[test]
fn unanswered_candidates_are_tried_again_ever_more_slowly_and_only_while_there_is_data() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let mut tries = vec![0];
    bench.pings();
    while let Some(deadline) = bench.paths.poll_timeout() {
        bench.paths.handle_timeout(deadline.at);
        tries.extend(bench.pings().iter().map(|_| deadline.at.since(at(0)).as_millis()));
    }
    assert_eq!(tries[..7], [0, 500, 1500, 3500, 7500, 12_500, 17_500]);
    assert!(tries.last().is_some_and(|last| *last <= 48_000), "{tries:?}");
}

#[test]
fn a_ping_is_answered_at_once_to_where_it_came_from() {
    let mut bench = Bench::new(&[WAN]);
    let tx = bench.ping(at(0), CAFE);
    let sent = bench.sent();
    assert_eq!(sent[0], (address(CAFE), Message::Pong { tx, observed: address(CAFE) }));
    assert!(matches!(sent[1..], [(to, Message::Ping { .. })] if to == address(CAFE)), "so that both ends know the way: {sent:?}");
    bench.ping(at(0), CAFE);
    assert!(matches!(bench.sent()[..], [(_, Message::Pong { .. })]), "which has just been tried");
    assert_eq!(bench.best(), None, "it may have been anyone who sent it again");
    assert_eq!(bench.ask(at(0)), [direct(WAN)]);
}

#[test]
fn pings_cannot_make_two_idle_nodes_talk_for_ever() {
    let mut bench = Bench::new(&[WAN]);
    bench.ping(at(0), WAN);
    let (_, tx) = bench.pings()[0];
    bench.pong(ms(20), WAN, tx);
    assert_eq!(bench.best(), Some(direct(WAN)));
    bench.pass(at(100));
    assert_eq!((bench.sent(), bench.paths.poll_timeout()), (Vec::new(), None));
}

#[test]
fn what_is_sent_to_an_unproven_address_stays_in_proportion() {
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    // Someone lets the peer's own fresh pings seem to come from a thousand victims.
    let mut to_victims = 0;
    for n in 0..200_u16 {
        bench.ping(ms(100 + u64::from(n)), &format!("198.51.100.{}:1", n + 1));
        to_victims += bench.sent().iter().filter(|(to, _)| *to != address(WAN)).count();
    }
    assert_eq!(to_victims, 200, "a pong each, which is shorter than a ping");
    assert_eq!(bench.best(), Some(direct(WAN)));
    assert!(bench.ask(at(1)).len() == 1);
}

#[test]
fn forged_replayed_reflected_and_misplaced_packets_are_counted_and_change_nothing() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let mut ping = Vec::new();
    while let Some(transmit) = bench.paths.poll_transmit() {
        ping = transmit.contents;
    }
    let before = bench.counters();
    let state = (bench.best(), bench.paths.poll_timeout());
    let key = bench.key();
    let seal = |sender: DiscoPublic, message: &[u8]| key.seal(&sender, [3; 24], message);
    let pong = Message::Pong { tx: TxId([5; 12]), observed: address(CAFE) }.encode();
    let mut reflected = ping.clone();
    reflected[6..38].copy_from_slice(disco(THEM).public().as_bytes());
    let mut altered = seal(disco(THEM).public(), &pong);
    altered[80] ^= 1;
    let wrong = Message::Ping { tx: TxId([6; 12]), node: Some(node(77)) }.encode();
    let packets = [
        ("our own, as it was", ping),
        ("our own in the peer's name", reflected),
        ("a pong to no ping", seal(disco(THEM).public(), &pong)),
        ("altered", altered),
        ("a stranger's", seal(disco(77).public(), &pong)),
        ("in another node's name", seal(disco(THEM).public(), &wrong)),
        ("a call-me-maybe by UDP", seal(disco(THEM).public(), &Message::CallMeMaybe(vec![address(CAFE)]).encode())),
        ("an unknown type", seal(disco(THEM).public(), &[200, 0, 1])),
        ("cut short", seal(disco(THEM).public(), &[1, 0, 1])),
        ("no disco packet", b"TS".to_vec()),
    ];
    for (what, packet) in packets {
        bench.paths.handle_datagram(ms(10), address(CAFE), &packet);
        assert_eq!(bench.sent(), [], "{what}");
        assert_eq!((bench.best(), bench.paths.poll_timeout()), state, "{what}");
    }
    let expected = Counters { stranger: 2, forged: 1, malformed: 2, unknown: 1, wrong_node: 2, unasked: 1, misplaced: 1, ..before };
    assert_eq!(bench.counters(), expected);
}

#[test]
fn a_ping_that_is_repeated_is_not_answered_again_and_its_sender_not_learned() {
    let mut bench = Bench::new(&[]);
    let tx = bench.ping(at(0), WAN);
    assert_eq!(bench.sent().len(), 2);
    bench.receive(at(1), CAFE, &Message::Ping { tx, node: Some(node(THEM)) });
    assert_eq!((bench.sent(), bench.counters().replayed), (Vec::new(), 1));
    bench.send(at(6));
    assert_eq!(bench.pinged(), [address(WAN)]);
}

#[test]
fn a_pong_counts_once() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    for _ in 0..3 {
        bench.pong(ms(20), WAN, tx);
    }
    assert_eq!((bench.counters().pongs_in, bench.counters().unasked), (1, 2));
    bench.send(at(20));
    let late = bench.pings()[0].1;
    bench.pass(at(25));
    bench.pong(at(25), WAN, late);
    assert_eq!((bench.counters().pongs_in, bench.counters().unasked), (1, 3), "too late");
}

#[test]
fn several_nodes_may_have_one_disco_key() {
    let twin = Peer { key: node(3), ..peer(&[CAFE]) };
    let mut bench = Bench::with(&[peer(&[WAN]), twin]);
    bench.send(at(0));
    bench.paths.sending(at(0), &node(3));
    let pings = bench.pings();
    assert_eq!(pings.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [address(WAN), address(CAFE)]);
    for (to, tx) in pings {
        bench.pong(ms(10), &to.to_string(), tx);
    }
    assert_eq!((bench.best(), bench.paths.route(&node(3)).0), (Some(direct(WAN)), Some(direct(CAFE))));
    // A ping that does not say which of them it is from is a candidate for both, and gets one pong.
    bench.receive(at(8), LAN, &Message::Ping { tx: TxId([1; 12]), node: None });
    let sent = bench.sent();
    let pongs = sent.iter().filter(|(_, message)| matches!(message, Message::Pong { .. })).count();
    assert_eq!((pongs, sent.len()), (1, 3));
    assert!(sent.iter().all(|(to, _)| *to == address(LAN)));
}

#[test]
fn another_disco_key_means_another_process() {
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.events();
    bench.paths.set_peers(at(1), &[peer(&[WAN, LAN])]);
    assert_eq!(bench.events(), [], "the same key");
    bench.send(at(2));
    bench.pass(at(3));
    let old = bench.pings();
    bench.paths.set_peers(at(4), &[Peer { disco: Some(disco(9).public()), ..peer(&[WAN, LAN]) }]);
    assert_eq!(bench.paths.poll_event(), Some(Event::Restarted(node(THEM))));
    assert_eq!(bench.best(), Some(direct(WAN)), "still the best guess");
    bench.pong(at(4), WAN, old[0].1);
    assert_eq!(bench.counters().stranger, 1, "the old process is a stranger now");
    bench.them = disco(9);
    assert_eq!(bench.pinged(), [address(WAN), address(LAN)], "the new one is found while there is data for it");
    for (before, after) in [(None, Some(disco(THEM).public())), (Some(disco(THEM).public()), None)] {
        let mut bench = Bench::with(&[Peer { disco: before, ..peer(&[WAN]) }]);
        bench.paths.set_peers(at(1), &[Peer { disco: after, ..peer(&[WAN]) }]);
        assert_eq!(bench.events(), [], "from {before:?} to {after:?} nobody has restarted");
    }
}

#[test]
fn our_own_disco_key_and_the_key_of_nobody_are_no_peers() {
    for key in [disco(US).public(), DiscoPublic::ZERO] {
        let mut bench = Bench::with(&[Peer { disco: Some(key), ..peer(&[WAN]) }]);
        bench.send(at(0));
        assert_eq!(bench.sent(), []);
    }
}

#[test]
fn a_removed_peer_leaves_nothing_behind() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    bench.paths.set_peers(at(1), &[]);
    assert_eq!(bench.paths.poll_timeout(), None);
    bench.pong(at(1), WAN, tx);
    bench.ping(at(1), WAN);
    assert_eq!((bench.sent(), bench.counters().stranger), (Vec::new(), 2));
    assert_eq!(bench.best(), None);
}

#[test]
fn packets_from_elsewhere_put_the_address_in_use_to_the_test() {
    // The peer has moved: the old address is silent, the new one answers.
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.hear(at(1), WAN);
    bench.hear(at(2), CAFE);
    let pings = bench.pings();
    assert_eq!(pings.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [address(WAN), address(CAFE)]);
    bench.pong(ms(2020), CAFE, pings[1].1);
    assert_eq!(bench.best(), Some(direct(WAN)), "it still has time");
    bench.pass(ms(2061));
    assert_eq!(bench.best(), Some(direct(CAFE)), "two round trips and 20 ms later");
    // It has only made another choice: the address in use answers and stays.
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.hear(at(2), CAFE);
    let pings = bench.pings();
    bench.pong(ms(2020), CAFE, pings[1].1);
    bench.pong(ms(2020), WAN, pings[0].1);
    bench.pass(at(3));
    assert_eq!(bench.best(), Some(direct(WAN)));
    assert_eq!(bench.pinged(), [address(WAN)], "the heartbeat");
}

#[test]
fn packets_repeated_from_elsewhere_do_not_take_the_path() {
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    // Someone is faster with the peer's packets, from ever new addresses that answer no ping.
    for n in 1..=100_u64 {
        let now = ms(1000 + n * 10);
        bench.hear(now, &format!("198.51.100.{n}:1"));
        for (to, tx) in bench.pings() {
            if to == address(WAN) {
                bench.pong(now + Duration::from_millis(20), WAN, tx);
            }
        }
        bench.pass(now);
        assert_eq!(bench.best(), Some(direct(WAN)));
    }
    assert!(bench.counters().pings_out < 10, "{:?}", bench.counters());
}

#[test]
fn a_path_that_dies_is_left_within_four_and_a_half_seconds() {
    let mut bench = Bench::new(&[WAN, LAN]);
    bench.prove(at(0), &[(LAN, 1), (WAN, 20)]);
    assert_eq!(bench.best(), Some(direct(LAN)));
    // From here on the local address is dead; data goes on.
    let mut now = ms(20);
    while bench.best() == Some(direct(LAN)) {
        now = now + Duration::from_millis(10);
        assert!(now <= ms(4500), "{:?}", bench.paths.poll_timeout());
        bench.send(now);
        bench.pass(now);
        for (to, tx) in bench.pings() {
            if to == address(WAN) {
                bench.pong(now + Duration::from_millis(20), WAN, tx);
            }
        }
    }
    assert_eq!(bench.best(), Some(direct(WAN)));
    // The dead one coming back is noticed by the next round, and taken.
    for second in 5..=70 {
        bench.send(at(second));
        bench.pass(at(second));
        for (to, tx) in bench.pings() {
            bench.pong(at(second) + Duration::from_millis(if to == address(LAN) { 1 } else { 20 }), WAN, tx);
        }
    }
    assert_eq!(bench.best(), Some(direct(LAN)));
}

#[test]
fn one_lost_heartbeat_changes_nothing() {
    let mut bench = Bench::new(&[WAN, LAN]);
    bench.prove(at(0), &[(LAN, 1), (WAN, 20)]);
    bench.events();
    let mut lost = false;
    for tenth in 1..600_u64 {
        let now = ms(tenth * 100);
        bench.send(now);
        bench.pass(now);
        for (to, tx) in bench.pings() {
            if !lost && tenth > 30 && to == address(LAN) {
                lost = true;
                continue;
            }
            bench.pong(now + Duration::from_millis(if to == address(LAN) { 1 } else { 20 }), WAN, tx);
        }
    }
    assert_eq!((lost, bench.events()), (true, Vec::new()));
}

#[test]
fn an_address_the_system_cannot_reach_is_left_at_once() {
    let mut bench = Bench::new(&[WAN, LAN]);
    bench.prove(at(0), &[(LAN, 1), (WAN, 20)]);
    bench.paths.unreachable(at(1), address(WAN));
    assert_eq!(bench.best(), Some(direct(LAN)), "it is not in use");
    bench.paths.unreachable(at(1), address(LAN));
    assert_eq!(bench.best(), Some(direct(WAN)));
}

#[test]
fn a_change_of_our_own_network_has_everything_proven_anew() {
    let mut bench = Bench::new(&[WAN, LAN]);
    bench.prove(at(0), &[(LAN, 1), (WAN, 20)]);
    bench.paths.network_changed(at(1));
    assert_eq!(bench.pinged(), [address(LAN), address(WAN)]);
    assert_eq!(bench.best(), Some(direct(LAN)), "there is nowhere better yet");
    let mut idle = Bench::new(&[WAN]);
    idle.paths.network_changed(at(1));
    assert_eq!(idle.sent(), [], "nobody is talked to");
}

#[test]
fn a_handshake_is_repeated_when_the_peer_has_learned_our_address() {
    let mut bench = Bench::new(&[WAN]);
    bench.send(at(0));
    assert_eq!(bench.ask(at(0)), [direct(WAN)]);
    bench.ping(ms(1), WAN);
    bench.pass(ms(29));
    assert!(!bench.events().contains(&Event::Meet(node(THEM))));
    bench.pass(ms(30));
    assert!(bench.events().contains(&Event::Meet(node(THEM))), "not sooner than 30 ms after the last one");
    // Not again and again while it does not help.
    bench.ask(ms(30));
    for n in 0..10 {
        bench.ping(ms(100 + n), WAN);
    }
    bench.pass(ms(1000));
    assert!(!bench.events().contains(&Event::Meet(node(THEM))));
    bench.pass(ms(1100));
    assert!(bench.events().contains(&Event::Meet(node(THEM))));
    // And not if it was answered.
    bench.ping(ms(3000), WAN);
    bench.answered(ms(3001), WAN);
    bench.ping(ms(3002), WAN);
    bench.paths.met(ms(3003), &node(THEM));
    bench.pass(at(4));
    assert!(!bench.events().contains(&Event::Meet(node(THEM))));
}

#[test]
fn a_ping_on_request_says_which_way_and_how_long() {
    let mut bench = Bench::new(&[WAN, LAN]);
    assert_eq!(bench.paths.ping(at(0), &node(77), 1), Err(Unreached::NoPeer));
    assert_eq!(bench.paths.ping(at(0), &node(THEM), 1), Ok(()));
    let pings = bench.pings();
    assert_eq!(pings.len(), 2, "both, and nothing twice: {pings:?}");
    bench.pong(ms(20), WAN, pings.iter().find(|(to, _)| *to == address(WAN)).unwrap().1);
    bench.pong(ms(30), LAN, pings.iter().find(|(to, _)| *to == address(LAN)).unwrap().1);
    let answer = |token, pong| Event::Answered { token, pong };
    let pong = Pong { path: direct(WAN), latency: Duration::from_millis(20), observed: address("203.0.113.77:9") };
    let answers =
        |bench: &mut Bench| -> Vec<Event> { bench.events().into_iter().filter(|event| matches!(event, Event::Answered { .. })).collect() };
    assert_eq!(answers(&mut bench), [answer(1, Some(pong))]);
    bench.paths.ping(at(1), &node(THEM), 2).unwrap();
    assert_eq!(bench.pinged().len(), 1, "the address in use is proven");
    bench.pass(at(6));
    assert_eq!(answers(&mut bench), [answer(2, None)]);
    bench.paths.ping(at(100), &node(THEM), 3).unwrap();
    bench.paths.set_peers(at(100), &[Peer { disco: Some(disco(9).public()), ..peer(&[WAN]) }]);
    bench.sent.clear();
    bench.events.extend(std::iter::from_fn(|| bench.paths.poll_event()));
    assert!(bench.events.contains(&answer(3, None)), "nobody will answer it");
    assert_eq!(Bench::new(&[]).paths.ping(at(0), &node(THEM), 4), Err(Unreached::NoAddress));
}
