use pvemesh::ident::MeshKey;
use pvemesh::relay::client::Event;
use pvemesh::relay::server::{Closed, Config, Drop, Relay};
use pvemesh::wire::derp::{ClientInfo, Frame, GoneReason};

use super::at;
use super::world::*;

fn region_relay(seed: u8) -> std::sync::Arc<Relay> {
    Relay::new(Config { mesh_key: Some(mesh_key()), ..config(seed) }, [seed; 32])
}

#[test]
fn a_mesh_key_has_to_be_the_right_one() {
    let relay = region_relay(1);
    for (shown, trusted) in [(mesh_key(), true), (MeshKey::from_bytes([1; 32]), false)] {
        let mut peer = Peer::start(&relay, at(0), node(1), ClientInfo::new(Some(&shown)));
        peer.pump(at(0)).unwrap();
        assert!(peer.client.is_ready(), "without it, it is a client like others");
        let closed = peer.feed(at(0), &Frame::WatchConns.to_bytes());
        assert_eq!(closed, if trusted { Ok(()) } else { Err(Closed::Untrusted) });
    }
    let without = Relay::new(config(2), [2; 32]);
    let mut peer = Peer::start(&without, at(0), node(1), ClientInfo::new(Some(&mesh_key())));
    peer.pump(at(0)).unwrap();
    assert_eq!(peer.feed(at(0), &Frame::WatchConns.to_bytes()), Err(Closed::Untrusted), "a relay without a mesh key trusts nobody");
}

#[test]
fn who_watches_is_told_who_is_there_and_who_comes_and_goes() {
    let relay = region_relay(1);
    let a = Peer::join(&relay, 1);
    let mut watcher = Peer::join_trusted(&relay, 50);
    watcher.client.watch();
    watcher.pump(at(0)).unwrap();
    let present: Vec<_> = watcher.events();
    assert_eq!(present.len(), 2, "the client and the watcher itself: {present:?}");
    let again = Peer::join(&relay, 1);
    let b = Peer::join(&relay, 2);
    let (key_a, key_b) = (a.key, b.key);
    drop(a);
    drop(b);
    watcher.pump(at(0)).unwrap();
    let events = watcher.events();
    assert!(
        matches!(events[..], [Event::PeerPresent { peer, .. }, Event::PeerGone { peer: gone, reason: GoneReason::Disconnected }] if peer == key_b && gone == key_b)
    );
    drop(again);
    watcher.pump(at(0)).unwrap();
    assert_eq!(watcher.events(), [Event::PeerGone { peer: key_a, reason: GoneReason::Disconnected }]);
}

#[test]
fn packets_cross_to_the_other_relay_of_the_region_once() {
    let (one, two) = (region_relay(1), region_relay(2));
    let (mut a, mut b) = (Peer::join(&one, 1), Peer::join(&two, 2));
    let (mut to_two, mut to_one) = (Mesh::dial(&one, &two, 101), Mesh::dial(&two, &one, 102));
    assert!(one.is_itself(&to_one.peer.client) && !one.is_itself(&to_two.peer.client));
    a.send(at(0), b.key, b"there");
    to_two.pump();
    assert_eq!(b.packets(at(0)), [(a.key, b"there".to_vec())]);
    b.send(at(0), a.key, b"and back");
    to_one.pump();
    assert_eq!(a.packets(at(0)), [(b.key, b"and back".to_vec())]);
    assert_eq!((one.counters().forwarded, two.counters().forwarded), (1, 1));

    // The client has left there, but this relay does not know it yet: the packet goes there, and nowhere on.
    let key_b = b.key;
    drop(b);
    a.send(at(0), key_b, b"too late");
    to_two.pump();
    assert_eq!(two.counters().dropped(Drop::UnknownForForwarded), 1);
    a.send(at(0), key_b, b"known to be gone");
    assert_eq!(one.counters().dropped(Drop::UnknownDestination), 1);
    drop(a);
    drop(to_two);
}

#[test]
fn a_client_here_comes_before_one_there_and_the_earliest_relay_before_others() {
    let (one, two, three) = (region_relay(1), region_relay(2), region_relay(3));
    let mut a = Peer::join(&one, 1);
    let (mut at_two, mut at_three) = (Peer::join(&two, 2), Peer::join(&three, 2));
    let (mut to_two, mut to_three) = (Mesh::dial(&one, &two, 101), Mesh::dial(&one, &three, 102));
    let mut deliver = |packet: &[u8], to_two: &mut Option<&mut Mesh>| {
        a.send(at(0), at_two.key, packet);
        if let Some(mesh) = to_two {
            mesh.pump();
        }
        to_three.pump();
        (at_two.packets(at(0)).len(), at_three.packets(at(0)).len())
    };
    assert_eq!(deliver(b"1", &mut Some(&mut to_two)), (1, 0), "the earliest");
    drop(to_two);
    assert_eq!(deliver(b"2", &mut None), (0, 1), "the other one, once the link is gone");
    let mut here = Peer::join(&one, 2);
    assert_eq!(deliver(b"3", &mut None), (0, 0));
    assert_eq!(here.packets(at(0)).len(), 1, "here, if it is here");
}

#[test]
fn a_relay_may_end_a_clients_connections() {
    let relay = region_relay(1);
    let (victim, mut other) = (Peer::join(&relay, 1), Peer::join_trusted(&relay, 50));
    other.client.close_peer(victim.key);
    other.write(at(0)).unwrap();
    assert_eq!(victim.waiting(), Err(Closed::Asked));
}

#[test]
fn a_relay_that_watches_and_does_not_read_is_ended_rather_than_told_half() {
    let relay = Relay::new(Config { mesh_key: Some(mesh_key()), max_connections: 20, ..config(1) }, [0; 32]);
    let mut watcher = Peer::join_trusted(&relay, 50);
    watcher.client.watch();
    watcher.write(at(0)).unwrap();
    for n in 0..200 {
        drop(Peer::join(&relay, n));
    }
    assert_eq!(watcher.waiting(), Err(Closed::Slow));
}
