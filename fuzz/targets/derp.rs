//! Relaying: the stream of frames as a relay reads it from a stranger and from a member, and as a client reads it. The first byte says in which pieces
//! it arrives. What both sides hold has to stay bounded.

#![no_main]

use std::sync::LazyLock;
use std::task::Waker;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pvemesh::ident::{MeshKey, NodePrivate, RelayPrivate};
use pvemesh::relay::client::{Client, QUEUE};
use pvemesh::relay::server::{Arrival, Config, Connection, Progress, QUEUE_BYTES, Relay};
use pvemesh::time::Time;
use pvemesh::wire::derp::{ClientInfo, Decoder, Frame, MAX_PACKET, NONCE_LEN, ServerInfo, SharedKey, read_anything};

struct Fixed {
    relay: RelayPrivate,
    node: NodePrivate,
    shared: SharedKey,
    mesh: MeshKey,
    /// What a member and another relay of the region say first.
    greetings: [Vec<u8>; 2],
    welcome: Vec<u8>,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let (relay, node, mesh) = (RelayPrivate::from_seed([1; 32]), NodePrivate::from_seed([2; 32]), MeshKey::from_bytes([3; 32]));
    let shared = SharedKey::of_client(&node, &relay.public());
    let greeting = |mesh| shared.client_info(node.public(), [4; NONCE_LEN], &ClientInfo::new(mesh));
    let greetings = [greeting(None), greeting(Some(&mesh))];
    let welcome = shared.server_info([5; NONCE_LEN], &ServerInfo { version: 2, bytes_per_second: 1000, bytes_burst: 0 });
    Fixed { relay, node, shared, mesh, greetings, welcome }
});

fn feed(connection: &mut Connection, now: Time, mut bytes: &[u8]) -> bool {
    loop {
        match connection.handle_bytes(now, &mut bytes) {
            Ok(Progress::Drained) => return true,
            Ok(Progress::Ask(_)) if connection.admit(now, true).is_ok() => {}
            _ => return false,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, data)) = data.split_first() else { return };
    let (piece, now) = (usize::from(piece) + 1, Time::from_start(Duration::from_secs(1)));
    read_anything(data, piece, &FIXED.shared);

    let config = Config { key: FIXED.relay.clone(), mesh_key: Some(FIXED.mesh.clone()), max_connections: 8, rate: None };
    let relay = Relay::new(config, [6; 32]);
    for greeting in [None, Some(&FIXED.greetings[0]), Some(&FIXED.greetings[1])] {
        let Ok(mut connection) = relay.connect(now, Arrival::default()) else { unreachable!("there is room") };
        let mut alive = greeting.is_none_or(|greeting| feed(&mut connection, now, greeting));
        for piece in data.chunks(piece) {
            alive = alive && feed(&mut connection, now, piece);
        }
        let mut frames = Vec::new();
        let _ = connection.poll_transmit(&mut frames, Waker::noop());
        let held: usize = frames.iter().map(Vec::len).sum();
        assert!(held <= 2 * (QUEUE_BYTES + MAX_PACKET) + data.len() * 16 + 4096, "{held} bytes wait");
        // What the relay would send is well-formed.
        let mut decoder = Decoder::default();
        for frame in &frames {
            let mut bytes = frame.as_slice();
            assert!(matches!(decoder.next(&mut bytes).map(|raw| raw.map(|raw| raw.frame())), Ok(Some(Ok(Some(_))))));
        }
    }
    assert_eq!((relay.connections(), relay.nodes()), (0, 0), "nothing is left behind");

    for welcome in [false, true] {
        let mut client = Client::new(now, [7; 32], FIXED.node.clone(), ClientInfo::new(None), Some(FIXED.relay.public()));
        if welcome {
            client.handle_bytes(now, &FIXED.welcome);
            client.send(now, FIXED.node.public(), b"x");
        }
        for piece in data.chunks(piece) {
            client.handle_bytes(now, piece);
        }
        let transmits = std::iter::from_fn(|| client.poll_transmit()).count();
        assert!(transmits <= 2 * QUEUE + 70, "{transmits} frames wait");
        let _ = Frame::decode(data.first().copied().unwrap_or_default(), data);
    }
});
