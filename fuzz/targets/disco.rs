//! Path probes as a node's core takes them: from the internet and through a relay, sealed by a peer or not at all.

#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pvemesh::ident::{DiscoPrivate, NodePrivate, RegionId};
use pvemesh::path::{Local, Outside, Paths, Peer, RelayState};
use pvemesh::time::Time;
use pvemesh::wire::disco::{SharedKey, read_anything};

fuzz_target!(|data: &[u8]| {
    let (own, peer) = (DiscoPrivate::from_seed([1; 32]), DiscoPrivate::from_seed([2; 32]));
    let (own_node, peer_node) = (NodePrivate::from_seed([3; 32]).public(), NodePrivate::from_seed([4; 32]).public());
    let key = SharedKey::new(&peer, &own.public());
    read_anything(data, &key);
    let mut paths = Paths::new(own_node, own, [5; 32]);
    let home = Some(RegionId(1));
    let addresses = vec![SocketAddr::from(([192, 0, 2, 1], 1))];
    paths.set_peers(Time::default(), &[Peer { key: peer_node, disco: Some(peer.public()), addresses, home }]);
    paths.set_relay(Time::default(), RegionId(1), RelayState::Up);
    paths.set_outside(Some(Outside { seen: "203.0.113.1:1".parse().unwrap(), varies: None }));
    paths.set_endpoints(Time::default(), vec![SocketAddr::from(([203, 0, 113, 1], 1))]);
    // Messages of a peer that means no good: a byte says how long each is, and how it comes.
    let (mut rest, mut now) = (data, Time::default());
    while let Some((&how, after)) = rest.split_first() {
        let (message, after) = after.split_at(after.len().min(usize::from(how >> 1)));
        rest = after;
        now = now + Duration::from_millis(u64::from(how) * 10);
        let packet = key.seal(&peer.public(), [how; 24], message);
        if how % 2 == 0 {
            let local = if how < 128 { Local::MAIN } else { Local::from_number(how.into()) };
            paths.handle_datagram(now, local, SocketAddr::from(([198, 51, 100, how], 1)), &packet);
        } else {
            paths.handle_relayed(now, RegionId(1), peer_node, &packet);
        }
        paths.sending(now, &peer_node);
        paths.handle_timeout(now);
        let sent = std::iter::from_fn(|| paths.poll_transmit()).count();
        assert!(sent < 200, "{sent} packets for one");
        while paths.poll_event().is_some() {}
    }
});
