//! Guessing ports: what is agreed to, and with whom; which socket an address is talked to from.

use super::*;

const HOME: RegionId = RegionId(901);
const OWN: &str = "203.0.113.77:9";

/// A bench that knows where it is seen, and whether each destination sees another port.
fn bench(varies: Option<bool>) -> Bench {
    let mut bench = Bench::with(&[Peer { home: Some(HOME), ..peer(&[WAN, LAN]) }]);
    bench.paths.set_relay(at(0), HOME, RelayState::Up);
    bench.paths.set_outside(Some(Outside { seen: OWN.parse().unwrap(), varies }));
    bench.paths.set_endpoints(at(0), vec![address(OWN)]);
    bench
}

impl Bench {
    fn told(&mut self, now: Time, message: &Message) {
        let packet = self.key().seal(&self.them.public(), [9; 24], &message.encode());
        self.paths.handle_relayed(now, HOME, node(THEM), &packet);
    }

    fn says(&mut self) -> Vec<Message> {
        self.drain();
        std::mem::take(&mut self.relayed)
            .into_iter()
            .map(|(_, message)| message)
            .filter(|m| !matches!(m, Message::CallMeMaybe(_)))
            .collect()
    }

    fn comes_to(&mut self, now: Time, local: Local, from: &str, message: &Message) {
        let packet = self.key().seal(&self.them.public(), [9; 24], &message.encode());
        self.paths.handle_datagram(now, local, address(from), &packet);
    }

    /// Talks in vain until the peer is asked to guess, and has agreed.
    fn agreed(&mut self) -> Vec<Local> {
        self.send(at(0));
        self.pass(ms(900));
        assert_eq!(self.says(), [offer("203.0.113.77")]);
        self.told(ms(900), &Message::SpreadAccept { at: address(WAN) });
        self.paths.sockets().into_iter().collect()
    }
}

fn offer(outside: &str) -> Message {
    Message::SpreadOffer { outside: outside.parse().unwrap() }
}

fn ping(n: u8) -> Message {
    Message::Ping { tx: TxId([n; 12]), node: Some(node(THEM)) }
}

#[test]
fn a_peer_is_asked_to_guess_after_pings_were_in_vain_and_nobody_is_whose_nat_keeps_its_port() {
    for (varies, asked) in [(None, 1), (Some(true), 1), (Some(false), 0)] {
        let mut bench = bench(varies);
        bench.send(at(0));
        bench.pass(ms(799));
        assert_eq!(bench.says(), []);
        bench.pass(ms(900));
        assert_eq!(bench.says().len(), asked, "{varies:?}");
    }
}

#[test]
fn a_peer_that_sees_us_where_the_stun_server_does_spares_the_question() {
    let mut bench = bench(None);
    bench.paths.set_peers(at(0), &[Peer { home: Some(HOME), ..peer(&[WAN]) }]);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    bench.receive(ms(30), WAN, &Message::Pong { tx, observed: address(OWN) });
    bench.paths.network_changed(at(1));
    assert_eq!(bench.paths.counters().offers_out, 0);
    let mut bench = self::bench(None);
    bench.send(at(0));
    let tx = bench.pings()[0].1;
    bench.receive(ms(30), WAN, &Message::Pong { tx, observed: address("203.0.113.77:4711") });
    bench.told(at(9), &offer("203.0.113.5"));
    assert_eq!(bench.says(), [], "our NAT is as hard as theirs");
}

#[test]
fn ports_are_guessed_only_where_the_peer_is_known_to_be_and_for_an_offer_through_the_relay() {
    for (message, agreed) in [
        (offer("203.0.113.5"), true),
        (offer("198.51.100.9"), false),
        (offer("192.168.1.5"), false),
        (offer("127.0.0.1"), false),
        (offer("203.0.113.77"), false),
    ] {
        let mut bench = bench(None);
        bench.receive(at(1), WAN, &message);
        bench.pass(at(2));
        assert_eq!((bench.counters().guesses_out, bench.counters().misplaced), (0, 1), "{message:?}");
        bench.told(at(2), &message);
        let said = if agreed { vec![Message::SpreadAccept { at: address(OWN) }] } else { vec![] };
        assert_eq!(bench.says(), said, "{message:?}");
        bench.pass(at(60));
        assert_eq!(bench.counters().guesses_out, if agreed { u64::from(GUESSES) } else { 0 });
        assert!(bench.pinged().iter().all(|to| to.ip() == address(WAN).ip() && to.port() >= 1024));
    }
}

#[test]
fn an_offer_that_follows_the_last_one_closely_is_passed_over() {
    let mut bench = bench(None);
    for second in 1..=28 {
        bench.told(at(second), &offer("203.0.113.5"));
        bench.pass(at(second));
    }
    bench.pass(at(60));
    assert_eq!((bench.counters().offers_in, bench.counters().guesses_out), (2, 2 * u64::from(GUESSES)));
}

#[test]
fn where_we_are_seen_is_found_out_before_an_offer_is_accepted() {
    let mut bench = bench(None);
    bench.told(at(100), &offer("203.0.113.5"));
    assert_eq!((bench.says(), bench.events().contains(&Event::Refresh)), (vec![], true));
    bench.paths.set_endpoints(at(101), vec![address(OWN)]);
    assert_eq!(bench.says(), [Message::SpreadAccept { at: address(OWN) }]);
}

#[test]
fn nothing_is_opened_for_who_was_not_asked_or_names_somebody_elses_address() {
    let mut bench = bench(None);
    bench.told(at(1), &Message::SpreadAccept { at: address(WAN) });
    assert!(bench.paths.sockets().is_empty());
    bench.send(at(1));
    bench.pass(at(3));
    bench.told(at(3), &Message::SpreadAccept { at: address(CAFE) });
    assert!(bench.paths.sockets().is_empty());
}

#[test]
fn the_first_socket_that_is_hit_is_kept_and_others_are_not_listened_to() {
    let mut bench = bench(None);
    let open = bench.agreed();
    assert_eq!(open.len(), usize::from(PORTS));
    let (first, second) = (open[100], open[7]);
    bench.pass(at(1));
    bench.sent();
    bench.comes_to(at(1), first, WAN, &ping(1));
    assert_eq!((bench.paths.sockets().into_iter().collect::<Vec<_>>(), bench.paths.local(address(WAN))), (vec![first], first));
    // Answered, and pinged in return, from that socket.
    let mut sent = Vec::new();
    while let Some(Transmit { to, from, .. }) = bench.paths.poll_transmit() {
        sent.push((to, from));
    }
    assert_eq!(sent, [(direct(WAN), first), (direct(WAN), first)]);
    for other in [second, Local::MAIN] {
        bench.comes_to(at(1), other, CAFE, &ping(2));
    }
    assert_eq!(bench.paths.local(address(CAFE)), Local::MAIN);
    assert_eq!(bench.counters().elsewhere, 1, "a closed socket");
}

#[test]
fn an_address_in_use_stays_with_its_socket_and_a_silent_one_goes_to_the_next() {
    let mut bench = bench(None);
    let open = bench.agreed();
    bench.pass(at(1));
    bench.sent();
    bench.comes_to(at(1), open[0], WAN, &ping(1));
    let tx = bench.pings().last().unwrap().1;
    bench.comes_to(ms(1030), open[0], WAN, &Message::Pong { tx, observed: address(CAFE) });
    assert_eq!(bench.paths.route(&node(THEM)).local, open[0]);
    bench.comes_to(at(2), Local::MAIN, WAN, &ping(2));
    assert_eq!((bench.counters().elsewhere, bench.paths.route(&node(THEM)).local), (1, open[0]));
    bench.comes_to(at(20), Local::MAIN, WAN, &ping(3));
    assert_eq!((bench.counters().elsewhere, bench.paths.route(&node(THEM)).local), (1, Local::MAIN));
    assert!(bench.paths.sockets().is_empty() && bench.events().contains(&Event::Sockets));
}

#[test]
fn in_another_network_and_without_the_peer_all_sockets_are_closed() {
    for away in [|bench: &mut Bench| bench.paths.network_changed(at(2)), |bench: &mut Bench| bench.paths.set_peers(at(2), &[])] {
        let mut bench = bench(None);
        let open = bench.agreed();
        bench.comes_to(at(1), open[0], WAN, &ping(1));
        away(&mut bench);
        assert!(bench.paths.sockets().is_empty() && bench.events().contains(&Event::Sockets));
        assert_eq!(bench.paths.local(address(WAN)), Local::MAIN);
    }
}
