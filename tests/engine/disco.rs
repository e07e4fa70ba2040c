//! The same with path probes between the two.

use super::*;
use pvemesh::ident::NodePublic;

fn with_disco(n: u8, endpoints: &[&str]) -> PeerConfig {
    let at = |n| IpAddr::from([100, 64, 0, n]);
    PeerConfig { disco: Some(disco(n).public()), ends: Some((at(3 - n), at(n))), ..peer(n, endpoints) }
}

/// Two engines that know each other and each other's disco key.
fn probing_mesh() -> (Node, Node) {
    let (a, b) = pair();
    let (a, b) = (Node::new(a, 1, true), Node::new(b, 2, true));
    a.peers(&[with_disco(2, &["192.0.2.2:41641"])]);
    b.peers(&[with_disco(1, &["192.0.2.1:41641"])]);
    (a, b)
}

fn other(node: &Node) -> NodePublic {
    key(3 - node.n).public()
}

fn latency(node: &Node) -> Option<Duration> {
    node.with(|engine| engine.peers().first().and_then(|peer| peer.latency))
}

/// Pings the other node by disco.
fn disco_ping(node: &Node) -> Option<pvemesh::path::Pong> {
    let answer = node.with(|engine| engine.ping(&other(node))).unwrap();
    answer.blocking_recv().ok()
}

#[test]
fn everything_passes_with_path_probes_and_the_way_is_proven_at_both_ends() {
    need_root!(read);
    let (a, b) = probing_mesh();
    udp_of_many_sizes(&a, &b);
    tcp_both_ways(&a, &b, "100.64.0.2", 5_000_000);
    tcp_both_ways(&a, &b, "fd7a:115c:a1e0::2", 5_000_000);
    eventually("a proven way", LIMIT, || latency(&a).is_some() && latency(&b).is_some());
    println!("{:?} {:?}", a.with(Engine::probe_counters), b.with(Engine::probe_counters));
    assert_eq!((a.endpoint(), b.endpoint()), (Some("192.0.2.2:41641".parse().unwrap()), Some("192.0.2.1:41641".parse().unwrap())));
    assert_eq!((a.counters().forged, b.counters().forged), (0, 0));
}

#[test]
fn probes_do_not_add_handshakes_to_the_first_packet() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    assert!(reaches(&at_a, &at_b, 100), "the first datagram arrives");
    assert!(reaches(&at_b, &at_a, 100));
    eventually("a proven way", LIMIT, || latency(&a).is_some() && latency(&b).is_some());
    assert_eq!((a.counters().initiations, b.counters().initiations), (1, 0));
}

#[test]
fn a_peer_can_be_pinged_without_the_tunnel() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let pong = disco_ping(&a).expect("an answer");
    println!("{pong:?}");
    assert_eq!(pong.path, pvemesh::path::Path::Direct("192.0.2.2:41641".parse().unwrap()));
    assert_eq!(pong.observed, "192.0.2.1:41641".parse().unwrap());
    assert!(pong.latency < Duration::from_secs(1));
    b.stop();
    assert_eq!(disco_ping(&a), None, "nobody answers");
    assert!(a.with(|engine| engine.ping(&key(9).public())).is_err());
    b.start();
}

#[test]
fn a_node_with_probes_and_one_without_talk_as_before() {
    need_root!(read);
    let (a, b) = probing_mesh();
    a.peers(&[peer(2, &["192.0.2.2:41641"])]);
    b.peers(&[peer(1, &["192.0.2.1:41641"])]);
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    assert!(reaches(&at_a, &at_b, 100));
    assert!(reaches(&at_b, &at_a, 100));
    // Only one of the two knows of the other's probes: they are answered by nobody, and nothing is lost.
    a.peers(&[with_disco(2, &["192.0.2.2:41641"])]);
    for n in 0..50 {
        assert!(reaches(&at_a, &at_b, 100 + n));
        assert!(reaches(&at_b, &at_a, 100 + n));
    }
    assert!(b.with(Engine::probe_counters).stranger > 0);
    assert_eq!(latency(&a), None);
}

#[test]
fn a_peer_that_moves_is_followed_and_proven_anew() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100) && reaches(&at_b, &at_a, 100));
    eventually("a proven way", LIMIT, || latency(&a).is_some());
    b.machine.ip("addr add 192.0.2.77/24 dev data-b");
    b.machine.ip("addr del 192.0.2.2/24 dev data-b");
    b.machine.ip("addr replace 192.0.2.77/24 dev data-b");
    // It sends: what comes from elsewhere puts the old address to the test.
    eventually("a datagram from the new address", LIMIT, || reaches(&at_b, &at_a, 100));
    let new = Some("192.0.2.77:41641".parse().unwrap());
    eventually("the new way", Duration::from_secs(1), || a.endpoint() == new);
    eventually("a datagram to the new address", Duration::from_secs(1), || reaches(&at_a, &at_b, 100));
    eventually("the proof of the new way", Duration::from_secs(1), || a.endpoint() == new && latency(&a).is_some());
}

#[test]
fn a_silent_peer_that_moves_is_found_by_the_map() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    b.machine.ip("addr add 192.0.2.77/24 dev data-b");
    b.machine.ip("addr del 192.0.2.2/24 dev data-b");
    b.machine.ip("addr replace 192.0.2.77/24 dev data-b");
    a.peers(&[with_disco(2, &["192.0.2.77:41641"])]);
    eventually("a datagram to the new address", Duration::from_secs(5), || reaches(&at_a, &at_b, 100));
}

#[test]
fn a_restarted_peer_is_reached_at_once_when_the_map_tells_its_new_disco_key() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    b.stop();
    b.start_as(disco(77));
    b.peers(&[with_disco(1, &["192.0.2.1:41641"])]);
    a.peers(&[PeerConfig { disco: Some(disco(77).public()), ..peer(2, &["192.0.2.2:41641"]) }]);
    assert!(reaches(&at_a, &at_b, 101), "the first datagram after the news waits for the new session and is not lost");
}

/// The map says nothing of it: the coordinator is away. Probes open again once the key has been told inside the tunnel.
#[test]
fn a_restarted_peer_tells_its_new_disco_key_itself() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    eventually("a proven way", LIMIT, || latency(&a).is_some());
    for disco in [disco(77), disco(78)] {
        b.stop();
        b.start_as(disco);
        b.peers(&[with_disco(1, &["192.0.2.1:41641"])]);
        eventually("a datagram", LIMIT, || reaches(&at_b, &at_a, 101));
        eventually("a proven way at both ends", Duration::from_secs(2), || {
            let _ = (reaches(&at_a, &at_b, 102), reaches(&at_b, &at_a, 103));
            latency(&a).is_some() && latency(&b).is_some()
        });
    }
    let given = (a.counters().filtered, b.counters().filtered, a.counters().not_allowed, b.counters().not_allowed);
    assert_eq!(given, (0, 0, 0, 0), "what is said between nodes is not taken for traffic");
}

#[test]
fn a_network_that_is_gone_and_back_is_used_again_at_once() {
    need_root!(read);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    a.machine.ip("link set data-a down");
    assert!(!reaches(&at_a, &at_b, 100));
    a.machine.ip("link set data-a up");
    a.machine.ip("addr replace fd00::1/64 dev data-a nodad");
    a.with(Engine::network_changed);
    eventually("a datagram", Duration::from_secs(3), || reaches(&at_a, &at_b, 100));
}

#[test]
fn a_flood_of_forged_probes_is_counted_and_changes_nothing() {
    need_root!(write);
    let (a, b) = probing_mesh();
    let (at_a, at_b) = (a.udp("100.64.0.1"), b.udp("100.64.0.2"));
    eventually("the first datagram", LIMIT, || reaches(&at_a, &at_b, 100));
    let before = resident();
    let attacker = a.machine.run(|| UdpSocket::bind("192.0.2.1:0").unwrap());
    let senders = [*disco(1).public().as_bytes(), *disco(2).public().as_bytes(), [7; 32]];
    for length in 0..3000 {
        for sender in &senders {
            let packet = [&b"TS\xf0\x9f\x92\xac"[..], sender, &bytes(24 + length % 1400, length)].concat();
            attacker.send_to(&packet, "192.0.2.2:41641").unwrap();
        }
        if length % 64 == 0 {
            eventually("a datagram during the flood", LIMIT, || reaches(&at_a, &at_b, 100 + length % 1000));
        }
    }
    let counters = b.with(Engine::probe_counters);
    println!("{counters:?}");
    assert!(counters.forged > 2000 && counters.stranger > 4000, "{counters:?}");
    assert_eq!(b.endpoint(), Some("192.0.2.1:41641".parse().unwrap()));
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "grew by {grown} bytes");
}
