use pvemesh::ident::NodePublic;
use pvemesh::relay::client::Event;
use pvemesh::relay::server::{
    Arrival, Closed, Config, Drop, HANDSHAKE, KEEPALIVE, KEEPALIVE_JITTER, Progress, QUEUE, QUEUE_BYTES, Rate, Relay,
};
use pvemesh::time::Time;
use pvemesh::wire::derp::{ClientInfo, Decoder, Frame, GoneReason, MAX_PACKET, PresentFlags};
use pvemesh::wire::disco;

use super::at;
use super::world::*;

fn probe(n: u8) -> Vec<u8> {
    [&disco::MAGIC[..], &[n; 100]].concat()
}

fn gone(peer: NodePublic, reason: GoneReason) -> Event {
    Event::PeerGone { peer, reason }
}

#[test]
fn packets_go_from_one_client_to_another_and_name_the_sender() {
    let relay = relay();
    let (mut a, mut b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    a.send(at(1), b.key, b"hello");
    a.send(at(1), b.key, &vec![7; MAX_PACKET]);
    b.send(at(1), a.key, b"back");
    assert_eq!(b.packets(at(1)), [(a.key, b"hello".to_vec()), (a.key, vec![7; MAX_PACKET])]);
    assert_eq!(a.packets(at(1)), [(b.key, b"back".to_vec())]);
    assert_eq!((relay.counters().packets, relay.nodes(), relay.connections()), (3, 2, 2));
    let itself = a.key;
    a.send(at(1), itself, b"to myself");
    assert_eq!(a.packets(at(1)), [(itself, b"to myself".to_vec())]);
}

#[test]
fn the_receiver_is_woken_once_for_what_arrived_together() {
    let relay = relay();
    let (mut a, b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    assert!(b.waiting().unwrap().is_empty(), "it waits");
    let frames: Vec<u8> = (0..10).flat_map(|n| Frame::SendPacket { to: b.key, packet: &[n; 50] }.to_bytes()).collect();
    a.feed(at(0), &frames).unwrap();
    assert_eq!((b.alarm.count(), b.waiting().unwrap().len()), (1, 10));
}

#[test]
fn a_client_that_cannot_prove_its_key_or_is_not_known_is_refused() {
    let relay = relay();
    let mut forger = Peer::start(&relay, at(0), node(1), ClientInfo::new(None));
    forger.read(at(0)).unwrap();
    let mut introduction = forger.client.poll_transmit().unwrap();
    introduction[5..37].copy_from_slice(node(2).public().as_bytes());
    assert!(matches!(forger.feed(at(0), &introduction), Err(Closed::Unproven(_))));

    let mut stranger = Peer::start(&relay, at(0), node(3), ClientInfo::new(None));
    stranger.client.send(at(0), node(1).public(), b"early");
    stranger.read(at(0)).unwrap();
    let said: Vec<u8> = std::iter::from_fn(|| stranger.client.poll_transmit()).flatten().collect();
    let mut bytes = said.as_slice();
    assert_eq!(stranger.connection.handle_bytes(at(0), &mut bytes), Ok(Progress::Ask(stranger.key)));
    assert!(!bytes.is_empty(), "what follows waits until it is let in");
    let left = bytes.len();
    assert_eq!(stranger.connection.handle_bytes(at(0), &mut bytes), Ok(Progress::Ask(stranger.key)));
    assert_eq!(bytes.len(), left);
    assert_eq!(stranger.connection.admit(at(0), false), Err(Closed::Refused));
    assert_eq!((relay.counters().refused, relay.counters().packets, relay.nodes()), (2, 0, 0));
}

#[test]
fn what_is_no_handshake_and_what_has_no_place_ends_the_connection() {
    let relay = relay();
    for frame in [Frame::KeepAlive, Frame::SendPacket { to: NodePublic::ZERO, packet: b"x" }, Frame::Ping([0; 8])] {
        let mut peer = Peer::start(&relay, at(0), node(1), ClientInfo::new(None));
        assert_eq!(peer.feed(at(0), &frame.to_bytes()), Err(Closed::Protocol), "{frame:?} before the handshake");
    }
    for frame in [
        Frame::WatchConns,
        Frame::ClosePeer(node(2).public()),
        Frame::ForwardPacket { from: node(1).public(), to: node(2).public(), packet: b"x" },
    ] {
        let mut peer = Peer::join(&relay, 1);
        assert_eq!(peer.feed(at(0), &frame.to_bytes()), Err(Closed::Untrusted), "{frame:?}");
    }
    let mut peer = Peer::join(&relay, 1);
    assert_eq!(peer.feed(at(0), &[0x12, 0, 0, 0, 1, 0]), Err(Closed::Protocol), "cut short");
    let mut peer = Peer::join(&relay, 1);
    let over = [&[0x04][..], &u32::try_from(MAX_PACKET + 33).unwrap().to_be_bytes()].concat();
    assert!(matches!(peer.feed(at(0), &over), Err(Closed::Stream(_))), "a packet above 64 KiB");
    let mut peer = Peer::join(&relay, 1);
    peer.feed(at(0), &[0x7f, 0, 0, 0, 2, 1, 1]).unwrap();
    peer.feed(at(0), &Frame::KeepAlive.to_bytes()).unwrap();
    assert_eq!(relay.counters().stray_frames, 1, "unknown types are passed over, known ones without a place counted");
}

#[test]
fn a_client_that_says_nothing_is_cut_off_and_others_are_told_that_it_lives() {
    let relay = relay();
    let mut silent = Peer::start(&relay, at(0), node(1), ClientInfo::new(None));
    let limit = silent.connection.poll_timeout().at;
    assert_eq!(limit, Time::from_start(HANDSHAKE));
    assert_eq!(silent.connection.handle_timeout(limit), Err(Closed::Handshake));
    let mut due = Vec::new();
    for n in 0..100 {
        let mut peer = Peer::join(&relay, n);
        let first = peer.connection.poll_timeout().at;
        assert!(first >= Time::from_start(KEEPALIVE) && first <= Time::from_start(KEEPALIVE + KEEPALIVE_JITTER));
        peer.connection.handle_timeout(first).unwrap();
        assert_eq!(peer.waiting().unwrap(), [Frame::KeepAlive.to_bytes()]);
        assert_eq!(peer.connection.poll_timeout().at.since(first), first.since(at(0)), "the same interval again");
        due.push(first);
    }
    due.sort_unstable();
    due.dedup();
    assert!(due.len() > 90, "not all at the same time");
}

#[test]
fn trap_18_one_stuck_receiver_holds_nobody_up_and_probes_do_not_die_behind_data() {
    let relay = relay();
    let (mut a, mut stuck, mut b) = (Peer::join(&relay, 1), Peer::join(&relay, 2), Peer::join(&relay, 3));
    for n in 0..200 {
        a.send(at(0), stuck.key, &[n; 1000]);
        if n % 10 == 0 {
            a.send(at(0), b.key, &[n]);
        }
        if n == 0 {
            a.send(at(0), stuck.key, &probe(9));
        }
    }
    assert_eq!(b.packets(at(0)).len(), 20);
    let got = stuck.packets(at(0));
    assert_eq!(got.len(), QUEUE + 1);
    assert_eq!(got[0].1, probe(9), "the probe is not dropped for data, and goes first");
    assert_eq!((got[1].1[0], got[QUEUE].1[0]), (200 - u8::try_from(QUEUE).unwrap(), 199), "the oldest data is");
    assert_eq!(relay.counters().dropped(Drop::QueueHead), 200 - QUEUE as u64);
    for n in 0..100 {
        a.send(at(0), stuck.key, &probe(n));
    }
    assert_eq!(stuck.packets(at(0)).len(), QUEUE, "probes drop probes");
}

#[test]
fn a_client_that_never_reads_holds_a_bounded_amount() {
    let relay = relay();
    let (mut a, stuck) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    for _ in 0..100 {
        a.send(at(0), stuck.key, &vec![0; MAX_PACKET]);
        a.send(at(0), stuck.key, &[&disco::MAGIC[..], &vec![0; MAX_PACKET - 6]].concat());
    }
    let mut stuck = stuck;
    for n in 0..10_000u64 {
        stuck.feed(at(0), &Frame::Ping(n.to_be_bytes()).to_bytes()).unwrap();
    }
    let bytes: usize = stuck.waiting().unwrap().iter().map(Vec::len).sum();
    assert!(bytes <= 2 * QUEUE_BYTES + 64 * 13, "{bytes}");
}

#[test]
fn trap_19_a_sender_cannot_choose_its_name() {
    let relay = relay();
    let (mut a, mut b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    let lie = Frame::RecvPacket { from: node(9).public(), packet: b"lie" }.to_bytes();
    a.feed(at(0), &lie).unwrap();
    a.send(at(0), b.key, &[node(9).public().as_bytes(), &b"inner"[..]].concat());
    let got = b.packets(at(0));
    assert_eq!((got.len(), got[0].0), (1, a.key));
}

#[test]
fn trap_20_not_here_is_said_for_probes_only_and_not_too_often() {
    let relay = relay();
    let mut a = Peer::join(&relay, 1);
    let nobody = node(99).public();
    for _ in 0..10 {
        a.send(at(0), nobody, b"data");
    }
    assert!(a.waiting().unwrap().is_empty(), "data to nobody is dropped without a word");
    for _ in 0..10 {
        a.send(at(0), nobody, &probe(1));
    }
    a.read(at(0)).unwrap();
    assert_eq!(a.events(), vec![gone(nobody, GoneReason::NotHere); 3]);
    for second in 1..4 {
        for _ in 0..5 {
            a.send(at(second * 1000), nobody, &probe(1));
        }
        a.read(at(0)).unwrap();
        assert_eq!(a.events().len(), 1, "one a second");
    }
    assert_eq!((relay.counters().dropped(Drop::UnknownDestination), relay.counters().told_not_here), (35, 6));
}

#[test]
fn trap_20_who_leaves_is_reported_to_those_it_sent_to_and_to_nobody_else() {
    let relay = relay();
    let (mut a, mut b, mut c) = (Peer::join(&relay, 1), Peer::join(&relay, 2), Peer::join(&relay, 3));
    a.send(at(0), b.key, b"x");
    c.send(at(0), a.key, b"y");
    let left = a.key;
    assert_eq!(b.packets(at(0)).len(), 1);
    drop(a);
    b.read(at(0)).unwrap();
    c.read(at(0)).unwrap();
    assert_eq!(b.events(), [gone(left, GoneReason::Disconnected)]);
    assert_eq!(c.events(), [], "it only sent to it");
    c.send(at(0), left, &probe(0));
    c.read(at(0)).unwrap();
    assert_eq!(c.events(), [gone(left, GoneReason::NotHere)]);
    assert_eq!(relay.nodes(), 2);
}

#[test]
fn trap_21_a_second_connection_with_a_key_does_not_end_the_first() {
    let relay = relay();
    let (mut first, mut b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    first.send(at(0), b.key, b"from the first");
    let mut second = Peer::join(&relay, 1);
    b.send(at(0), first.key, b"1");
    assert_eq!((first.packets(at(0)).len(), second.packets(at(0)).len()), (0, 1), "the latest to connect gets them");
    first.send(at(0), b.key, b"again");
    b.send(at(0), first.key, b"2");
    assert_eq!((first.packets(at(0)).len(), second.packets(at(0)).len()), (1, 0), "or the latest to send");
    b.packets(at(0));
    drop(first);
    b.send(at(0), second.key, b"3");
    assert_eq!(second.packets(at(0)).len(), 1, "the one that is left takes over");
    assert_eq!(b.packets(at(0)), [], "the node is not gone");
    let key = second.key;
    drop(second);
    b.read(at(0)).unwrap();
    assert_eq!(b.events(), [gone(key, GoneReason::Disconnected)], "now it is");
}

#[test]
fn packets_find_a_node_that_comes_back() {
    let relay = relay();
    let (mut a, b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    let key = b.key;
    a.send(at(0), key, b"1");
    drop(b);
    a.send(at(0), key, b"2");
    let mut b = Peer::join(&relay, 2);
    a.send(at(0), key, b"3");
    assert_eq!(b.packets(at(0)), [(a.key, b"3".to_vec())]);
}

#[test]
fn pings_are_answered_and_a_rate_pauses_the_reader() {
    let relay = limited(Rate { bytes_per_second: 1000, burst: 0 });
    let (mut a, mut b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    a.feed(at(0), &Frame::Ping([4; 8]).to_bytes()).unwrap();
    assert_eq!(a.waiting().unwrap(), [Frame::Pong([4; 8]).to_bytes()]);
    assert_eq!(a.connection.pause(at(0)), None);
    a.send(at(0), b.key, &vec![0; MAX_PACKET]);
    assert_eq!(a.connection.pause(at(0)), None, "one whole packet is always allowed");
    a.send(at(0), b.key, &[0; 463]);
    assert_eq!(a.connection.pause(at(0)), Some(at(500)), "500 bytes too many at 1000 a second");
    assert_eq!(a.connection.pause(at(501)), None);
    assert_eq!(b.packets(at(0)).len(), 2, "nothing is dropped for it");
}

#[test]
fn another_rate_counts_for_clients_that_are_connected_and_for_those_that_come() {
    let relay = relay();
    let (mut a, b) = (Peer::join(&relay, 1), Peer::join(&relay, 2));
    let over_by_500 = |peer: &mut Peer| {
        peer.send(at(0), b.key, &vec![0; MAX_PACKET]);
        peer.send(at(0), b.key, &[0; 463]);
        peer.connection.pause(at(0))
    };
    assert_eq!(over_by_500(&mut a), None, "there is no limit");
    relay.set_rate(Some(Rate { bytes_per_second: 1000, burst: 0 }));
    assert_eq!(over_by_500(&mut a), Some(at(500)));
    relay.set_rate(Some(Rate { bytes_per_second: 2000, burst: 0 }));
    assert_eq!(over_by_500(&mut a), Some(at(250)));
    assert_eq!(over_by_500(&mut Peer::join(&relay, 3)), Some(at(250)));
    relay.set_rate(None);
    assert_eq!(over_by_500(&mut a), None);
}

#[test]
fn health_and_restarts_are_told_and_a_stop_ends_everybody() {
    let relay = relay();
    let mut a = Peer::join(&relay, 1);
    relay.set_health("disk full");
    a.read(at(0)).unwrap();
    assert_eq!(a.events(), [Event::Health(Some("disk full".into()))]);
    let mut late = Peer::start(&relay, at(0), node(2), ClientInfo::new(None));
    late.pump(at(0)).unwrap();
    assert_eq!(late.events()[1..], [Event::Health(Some("disk full".into()))]);
    relay.set_health("");
    let (soon, long) = (std::time::Duration::from_secs(1), std::time::Duration::from_secs(60));
    relay.announce_restart(soon, long);
    a.read(at(0)).unwrap();
    assert_eq!(a.events(), [Event::Health(None), Event::Restarting { reconnect_in: soon, try_for: long }]);
    relay.close_peer(&late.key);
    assert_eq!((late.waiting(), a.waiting()), (Err(Closed::Asked), Ok(Vec::new())));
    let kept = a.key;
    let other = Peer::join(&relay, 7);
    relay.keep_only(|key| *key == kept);
    assert_eq!((other.waiting(), a.waiting()), (Err(Closed::Refused), Ok(Vec::new())));
    relay.stop();
    assert_eq!(a.waiting(), Err(Closed::Stopping));
}

#[test]
fn ten_thousand_connections_fit_and_one_more_than_allowed_does_not() {
    let relay = Relay::new(Config { max_connections: 3, ..config(1) }, [0; 32]);
    let held: Vec<_> = (0..3).map(|_| relay.connect(at(0), Arrival::default()).unwrap()).collect();
    assert!(relay.connect(at(0), Arrival::default()).is_err());
    drop(held);
    assert!(relay.connect(at(0), Arrival::default()).is_ok());
}

#[test]
fn a_client_that_sends_to_ten_thousand_unknown_keys_is_not_remembered_for_it() {
    let relay = relay();
    let mut a = Peer::join(&relay, 1);
    for n in 0..10_000u64 {
        let mut key = [9; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        let to = NodePublic::from_bytes(key);
        a.feed(at(0), &Frame::SendPacket { to, packet: &probe(0) }.to_bytes()).unwrap();
    }
    assert_eq!(relay.counters().dropped(Drop::UnknownDestination), 10_000);
    assert_eq!(a.waiting().unwrap().len(), 3);
    assert_eq!(relay.nodes(), 1);
}

#[test]
fn what_kind_of_client_it_is_is_told_to_those_who_watch() {
    let relay = Relay::new(Config { mesh_key: Some(mesh_key()), ..config(1) }, [0; 32]);
    let mut watcher = Peer::join_trusted(&relay, 50);
    watcher.client.watch();
    watcher.pump(at(0)).unwrap();
    assert_eq!(watcher.events(), [Event::PeerPresent { peer: watcher.key, flags: PresentFlags::MESH_PEER }]);
    let address = "203.0.113.9:4242".parse().unwrap();
    let mut connection = relay.connect(at(0), Arrival { address: Some(address), not_ideal: true }).unwrap();
    let mut hello = Peer::start(&relay, at(0), node(1), ClientInfo::new(None));
    hello.read(at(0)).unwrap();
    let said = hello.client.poll_transmit().unwrap();
    assert!(matches!(connection.handle_bytes(at(0), &mut said.as_slice()), Ok(Progress::Ask(_))));
    connection.admit(at(0), true).unwrap();
    let waiting = watcher.waiting().unwrap();
    let mut decoder = Decoder::default();
    let mut bytes = waiting[0].as_slice();
    let told = decoder.next(&mut bytes).unwrap().unwrap().frame().unwrap().unwrap();
    let flags = PresentFlags::REGULAR.and(PresentFlags::NOT_IDEAL);
    assert_eq!(told, Frame::PeerPresent { key: node(1).public(), address: Some(address), flags });
}
