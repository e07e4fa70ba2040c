//! Relays: in place of an address, beside one in doubt, and as the way to find one.

use super::*;

const HOME: RegionId = RegionId(901);
const OTHER: RegionId = RegionId(902);

/// A bench whose peer has a home relay; our own addresses are fresh.
fn bench(addresses: &[&str]) -> Bench {
    let mut bench = Bench::with(&[Peer { home: Some(HOME), ..peer(addresses) }]);
    bench.paths.set_relay(at(0), HOME, RelayState::Up);
    bench.paths.set_endpoints(at(0), vec![address("203.0.113.77:9")]);
    bench.events();
    bench
}

impl Bench {
    fn ways(&self, now: Time) -> Ways {
        self.paths.route(&node(THEM)).ways(now)
    }

    fn relayed(&mut self) -> Vec<(RegionId, Message)> {
        self.drain();
        std::mem::take(&mut self.relayed)
    }

    fn calls(&mut self) -> usize {
        self.relayed().iter().filter(|(_, message)| matches!(message, Message::CallMeMaybe(_))).count()
    }

    fn receive_relayed(&mut self, now: Time, region: RegionId, from: NodePublic, message: &Message) {
        let packet = self.key().seal(&self.them.public(), [9; 24], &message.encode());
        self.paths.handle_relayed(now, region, from, &packet);
    }

    fn call(&mut self, now: Time, addresses: &[&str]) {
        let addresses = addresses.iter().map(|a| address(a)).collect();
        self.receive_relayed(now, HOME, node(THEM), &Message::CallMeMaybe(addresses));
    }

    fn hear_relayed(&mut self, now: Time, region: RegionId) {
        self.paths.heard(now, &node(THEM), Path::Relay(region));
    }

    /// Answers the newest ping to an address.
    fn answer(&mut self, now: Time, to: &str) {
        let tx = self.pings().into_iter().rev().find(|(target, _)| *target == address(to)).expect("it was pinged").1;
        self.pong(now, to, tx);
    }
}

fn both(address: &str) -> Ways {
    Ways { direct: Some(super::address(address)), relay: Some(HOME), local: Local::MAIN }
}

fn alone(address: &str) -> Ways {
    Ways { direct: Some(super::address(address)), relay: None, local: Local::MAIN }
}

const RELAY: Ways = Ways { direct: None, relay: Some(HOME), local: Local::MAIN };

#[test]
fn the_first_packets_go_through_the_peers_home_relay_and_the_rest_directly() {
    let mut bench = bench(&[WAN]);
    assert_eq!(bench.ways(at(0)), RELAY);
    assert_eq!(bench.ask(at(0)), [direct(WAN), Path::Relay(HOME)]);
    bench.send(at(0));
    let way = bench.paths.way(&node(THEM)).unwrap();
    assert_eq!((way.path, way.since), (Path::Relay(HOME), at(0)));
    bench.answer(ms(30), WAN);
    assert_eq!(bench.ways(ms(30)), alone(WAN));
    let way = bench.paths.way(&node(THEM)).unwrap();
    assert_eq!((way.path, way.since, way.why), (direct(WAN), ms(30), "it has answered"));
}

#[test]
fn when_trust_is_over_packets_go_both_ways_until_the_address_answers_or_its_ping_is_lost() {
    let mut bench = bench(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    assert_eq!(bench.ways(ms(6520)), alone(WAN));
    assert_eq!(bench.ways(ms(6521)), both(WAN));
    // The heartbeat at three seconds stays unanswered, and so does what follows it.
    bench.pass(ms(7999));
    assert_eq!(bench.ways(ms(7999)), both(WAN));
    bench.pass(at(8));
    assert_eq!(bench.ways(at(8)), RELAY);
    assert_eq!(bench.paths.way(&node(THEM)).unwrap().why, "the address in use stopped answering");
    bench.answer(at(9), WAN);
    assert_eq!(bench.ways(at(9)), alone(WAN));
}

#[test]
fn a_relay_is_no_address_and_its_pong_proves_none() {
    let mut bench = bench(&[WAN]);
    assert_eq!(bench.paths.ping(at(0), &node(THEM), 7), Ok(()));
    bench.drain();
    let ping = |message: &Message| if let Message::Ping { tx, .. } = message { Some(*tx) } else { None };
    let tx = bench.relayed.iter().find_map(|(_, message)| ping(message)).unwrap();
    let observed = address("127.3.3.40:901");
    // Nor may its answer come another way, or through another relay.
    bench.receive(ms(40), WAN, &Message::Pong { tx, observed });
    bench.receive_relayed(ms(40), OTHER, node(THEM), &Message::Pong { tx, observed });
    assert_eq!((bench.counters().unasked, bench.events()), (2, vec![]));
    bench.receive_relayed(ms(50), HOME, node(THEM), &Message::Pong { tx, observed });
    let pong = Pong { path: Path::Relay(HOME), latency: Duration::from_millis(50), observed };
    assert_eq!(bench.events(), [Event::Answered { token: 7, pong: Some(pong) }]);
    assert_eq!(bench.ways(ms(50)), RELAY);
}

#[test]
fn an_answer_through_a_relay_to_a_ping_that_went_directly_proves_nothing() {
    let mut bench = bench(&[WAN]);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    bench.receive_relayed(ms(30), HOME, node(THEM), &Message::Pong { tx, observed: address(CAFE) });
    assert_eq!((bench.ways(ms(30)), bench.counters().unasked), (RELAY, 1));
}

#[test]
fn a_ping_through_a_relay_is_answered_there_and_adds_no_candidate() {
    let mut bench = bench(&[]);
    let ping = Message::Ping { tx: TxId([5; 12]), node: Some(node(THEM)) };
    bench.receive_relayed(at(0), OTHER, node(THEM), &ping);
    let pong = Message::Pong { tx: TxId([5; 12]), observed: address("127.3.3.40:902") };
    assert_eq!(bench.relayed(), [(OTHER, pong)]);
    assert_eq!(bench.sent(), []);
    bench.receive_relayed(at(1), OTHER, node(THEM), &ping);
    assert_eq!((bench.relayed(), bench.counters().replayed), (vec![], 1));
}

#[test]
fn what_a_relay_brings_counts_for_the_key_it_vouches_for_only() {
    let mut bench = bench(&[]);
    let ping = |node| Message::Ping { tx: TxId([6; 12]), node };
    bench.receive_relayed(at(0), HOME, node(77), &ping(Some(node(THEM))));
    bench.receive_relayed(at(0), HOME, node(THEM), &ping(Some(node(77))));
    bench.receive_relayed(at(0), HOME, node(77), &Message::CallMeMaybe(vec![address(CAFE)]));
    assert_eq!((bench.counters().wrong_node, bench.relayed(), bench.sent()), (3, vec![], vec![]));
    // After the peer's restart its old key says nothing any more.
    bench.paths.set_peers(at(1), &[Peer { disco: Some(disco(9).public()), ..peer(&[]) }]);
    bench.call(at(2), &[CAFE]);
    assert_eq!((bench.counters().stranger, bench.sent()), (1, vec![]));
}

#[test]
fn a_call_follows_our_own_pings_with_our_addresses_in_it() {
    let mut bench = bench(&[WAN]);
    bench.send(at(0));
    let order: Vec<Path> = std::iter::from_fn(|| bench.paths.poll_transmit()).map(|transmit| transmit.to).collect();
    assert_eq!(order, [direct(WAN), Path::Relay(HOME)]);
    bench.send(ms(500));
    assert_eq!((bench.pinged().len(), bench.calls()), (1, 0), "not with each ping");
    bench.pass(at(30));
    let (calls, pings) = (bench.calls(), bench.pings().len());
    assert!((5..=8).contains(&calls) && calls < pings, "{calls} calls, {pings} pings");
}

#[test]
fn a_peer_without_known_addresses_is_called_too() {
    let mut bench = bench(&[]);
    bench.send(at(0));
    assert_eq!(bench.relayed(), [(HOME, Message::CallMeMaybe(vec![address("203.0.113.77:9")]))]);
}

#[test]
fn own_addresses_that_are_too_old_are_found_out_anew_before_anybody_is_called() {
    let mut bench = bench(&[WAN]);
    bench.send(at(28));
    assert_eq!((bench.calls(), bench.events()), (0, vec![Event::Refresh]));
    bench.send(at(29));
    assert_eq!((bench.calls(), bench.events()), (0, vec![]), "once");
    bench.paths.set_endpoints(at(30), vec![address(CAFE)]);
    assert_eq!(bench.relayed(), [(HOME, Message::CallMeMaybe(vec![address(CAFE)]))]);
    // Who has an address by then needs no call.
    bench.pass(at(60));
    bench.relayed();
    bench.answer(at(60), WAN);
    bench.paths.set_endpoints(at(61), vec![address(CAFE)]);
    assert_eq!(bench.calls(), 0);
}

#[test]
fn a_call_has_all_addresses_pinged_at_once_and_is_not_returned() {
    let mut bench = bench(&[WAN]);
    bench.send(at(0));
    assert_eq!(bench.pinged(), [address(WAN)]);
    bench.relayed();
    // Half a second has not passed: without the call nothing would be pinged.
    bench.call(ms(50), &[CAFE, LAN, "[fe80::1]:5", "224.0.0.1:5"]);
    assert_eq!(bench.pinged(), [address(LAN), address(WAN), address(CAFE)]);
    assert_eq!(bench.calls(), 0);
    // Another takes the place of what the first named.
    bench.call(at(1), &[LAN]);
    assert_eq!(bench.pinged(), [address(LAN), address(WAN)]);
}

#[test]
fn a_call_that_comes_by_udp_is_not_heeded() {
    let mut bench = bench(&[WAN]);
    bench.receive(at(0), WAN, &Message::CallMeMaybe(vec![address(CAFE)]));
    assert_eq!((bench.sent(), bench.counters().misplaced), (vec![], 1));
}

#[test]
fn a_flood_of_calls_makes_no_flood_of_pings() {
    let mut bench = bench(&[WAN]);
    let many: Vec<String> = (1..64).map(|n| format!("198.51.100.{n}:5")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for n in 0..1000 {
        bench.call(ms(n), &many);
    }
    let pings = bench.pinged().len();
    assert!(pings <= 4 * (MAX_CALLED + 1), "{pings}");
}

#[test]
fn a_ping_from_an_address_that_did_not_answer_ours_is_answered_by_one_at_once() {
    let mut bench = bench(&[WAN]);
    bench.send(at(0));
    bench.pinged();
    // The peer's NAT has dropped ours; its own ping opens the way.
    bench.ping(ms(60), WAN);
    assert_eq!(bench.pinged(), [address(WAN)]);
    bench.ping(ms(70), WAN);
    assert_eq!(bench.pinged(), [], "not again and again");
}

#[test]
fn with_a_relay_packets_from_an_unproven_address_prove_nothing() {
    let mut bench = bench(&[WAN]);
    bench.send(at(0));
    bench.pinged();
    bench.hear(ms(40), CAFE);
    assert_eq!((bench.ways(ms(40)), bench.pinged()), (RELAY, vec![address(CAFE)]));
    bench.answered(ms(50), CAFE);
    assert_eq!(bench.ways(ms(50)), RELAY);
}

#[test]
fn a_way_that_dies_silently_while_data_is_sent_is_doubled_within_half_a_second() {
    let mut bench = bench(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.relayed();
    // Data goes to and fro: nobody is pinged.
    for n in 1..10 {
        bench.send(ms(n * 200));
        bench.hear(ms(n * 200 + 30), WAN);
        bench.pass(ms(n * 200 + 199));
    }
    assert_eq!(bench.pinged(), []);
    // Then nothing comes back.
    bench.send(at(2));
    bench.pass(ms(2349));
    assert_eq!(bench.pinged(), []);
    bench.pass(ms(2350));
    assert_eq!((bench.pinged(), bench.ways(ms(2350))), (vec![address(WAN)], alone(WAN)));
    bench.pass(ms(2440));
    assert_eq!(bench.ways(ms(2440)), both(WAN));
    assert_eq!(bench.calls(), 1, "another way is looked for at once");
    // It was a pause only.
    bench.hear(ms(2500), WAN);
    assert_eq!(bench.ways(ms(2500)), alone(WAN));
}

#[test]
fn data_that_goes_one_way_only_costs_a_ping_now_and_then() {
    let mut bench = bench(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    let mut pings = 0;
    for n in 1..300 {
        bench.send(ms(n * 200));
        bench.pass(ms(n * 200));
        for (_, tx) in bench.pings() {
            pings += 1;
            bench.pong(ms(n * 200 + 20), WAN, tx);
        }
        assert_eq!(bench.ways(ms(n * 200)), alone(WAN), "at {} ms", n * 200);
    }
    assert!((60..=180).contains(&pings), "{pings} in a minute");
}

#[test]
fn packets_through_the_relay_have_a_silent_address_doubted_at_once() {
    let mut bench = bench(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.hear(ms(500), WAN);
    bench.hear_relayed(ms(600), HOME);
    assert_eq!((bench.ways(ms(600)), bench.pinged()), (alone(WAN), vec![]), "it was heard a moment ago");
    bench.hear_relayed(ms(1200), HOME);
    assert_eq!(bench.ways(ms(1200)), both(WAN));
    bench.answer(ms(1220), WAN);
    assert_eq!(bench.ways(ms(1220)), alone(WAN));
}

#[test]
fn a_peer_that_only_ever_uses_the_relay_has_us_ask_ever_less_often() {
    let mut bench = bench(&[WAN]);
    let mut alarms = 0;
    for n in 0..1200 {
        let now = ms(n * 100);
        bench.send(now);
        bench.pass(now);
        if n > 50 {
            let before = bench.ways(now);
            bench.hear_relayed(now, HOME);
            alarms += usize::from(before != bench.ways(now));
        }
        for (_, tx) in bench.pings() {
            bench.pong(now + Duration::from_millis(20), WAN, tx);
        }
    }
    assert!((1..10).contains(&alarms), "{alarms} in two minutes");
}

#[test]
fn a_peer_without_a_home_is_answered_where_it_was_heard_until_it_is_gone_from_there() {
    let mut bench = Bench::with(&[peer(&[])]);
    assert!(bench.ways(at(0)).is_none());
    bench.hear_relayed(at(1), OTHER);
    assert_eq!(bench.ways(at(1)), Ways { direct: None, relay: Some(OTHER), local: Local::MAIN });
    bench.paths.peer_gone(at(2), HOME, &node(THEM));
    assert_eq!(bench.ways(at(2)).relay, Some(OTHER), "gone from somewhere else");
    bench.paths.peer_gone(at(3), OTHER, &node(THEM));
    assert!(bench.ways(at(3)).is_none());
}

#[test]
fn a_relay_that_is_down_is_no_way_and_handshakes_find_one_again() {
    let mut bench = bench(&[WAN]);
    bench.paths.set_relay(at(1), HOME, RelayState::Down);
    assert_eq!(bench.events(), [Event::Moved(node(THEM))]);
    assert!(bench.ways(at(1)).is_none());
    bench.answered(at(2), CAFE);
    assert_eq!(bench.ways(at(2)), alone(CAFE));
    bench.paths.set_relay(at(3), HOME, RelayState::Idle);
    assert_eq!(bench.ways(at(3)), both(CAFE), "never proven by a ping");
}

#[test]
fn when_the_relay_goes_down_the_address_that_packets_came_from_is_taken() {
    let mut bench = bench(&[WAN]);
    bench.answered(at(1), CAFE);
    assert_eq!(bench.ways(at(1)), RELAY);
    bench.paths.set_relay(at(2), HOME, RelayState::Down);
    assert_eq!(bench.ways(at(2)), alone(CAFE));
}

#[test]
fn after_a_change_of_networks_packets_go_both_ways_and_own_addresses_are_found_out() {
    let mut bench = bench(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.sent();
    bench.relayed();
    bench.events();
    bench.paths.network_changed(at(1));
    assert_eq!(bench.ways(at(1)), both(WAN));
    assert_eq!((bench.pinged(), bench.calls()), (vec![address(WAN)], 0));
    assert!(bench.events().contains(&Event::Refresh));
    bench.paths.set_endpoints(at(2), vec![address(CAFE)]);
    assert_eq!(bench.calls(), 1);
}

#[test]
fn idle_peers_cost_nothing_with_a_relay_either() {
    let mut bench = bench(&[WAN]);
    bench.prove(at(0), &[(WAN, 20)]);
    bench.pass(at(300));
    assert_eq!(bench.paths.poll_timeout(), None);
    bench.hear_relayed(at(400), HOME);
    bench.pass(at(500));
    assert_eq!(bench.paths.poll_timeout(), None);
}
