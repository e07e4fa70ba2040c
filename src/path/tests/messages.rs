//! What comes from the network, and what it may change.

use super::*;

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
        bench.paths.handle_datagram(ms(10), Local::MAIN, address(CAFE), &packet);
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
    assert_eq!((bench.best(), bench.paths.route(&node(3)).direct), (Some(direct(WAN)), Some(address(CAFE))));
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
fn a_disco_key_told_inside_the_tunnel_counts_until_the_map_has_another() {
    let mut bench = Bench::new(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.events();
    bench.them = disco(9);
    bench.paths.told_disco(at(1), &node(THEM), disco(9).public());
    bench.ping(at(1), WAN);
    assert!(!bench.sent().is_empty(), "the new process is answered");
    bench.paths.set_peers(at(2), &[peer(&[WAN])]);
    bench.paths.set_peers(at(3), &[Peer { disco: Some(disco(9).public()), ..peer(&[WAN]) }]);
    bench.ping(at(3), WAN);
    assert!(!bench.sent().is_empty());
    assert_eq!(bench.events(), [], "neither the old map nor the new one ends the live session");
    bench.them = disco(10);
    bench.paths.set_peers(at(4), &[Peer { disco: Some(disco(10).public()), ..peer(&[WAN]) }]);
    assert_eq!(bench.paths.poll_event(), Some(Event::Restarted(node(THEM))));
    bench.paths.told_disco(at(5), &node(THEM), disco(US).public());
    bench.paths.told_disco(at(5), &node(77), disco(11).public());
    bench.ping(at(5), WAN);
    assert!(!bench.sent().is_empty());
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
