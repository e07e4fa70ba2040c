//! One relay and its clients, both as cores, joined by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use pvemesh::ident::{MeshKey, NodePrivate, NodePublic, RelayPrivate};
use pvemesh::relay::client::{Client, Event};
use pvemesh::relay::server::{Arrival, Closed, Config, Connection, Link, Progress, Rate, Relay};
use pvemesh::time::Time;
use pvemesh::wire::derp::ClientInfo;

use super::at;

/// Counts how often it was woken.
#[derive(Default)]
pub(super) struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Alarm {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) fn config(seed: u8) -> Config {
    Config { key: RelayPrivate::from_seed([seed; 32]), mesh_key: None, max_connections: 20_000, rate: None }
}

pub(super) fn mesh_key() -> MeshKey {
    MeshKey::from_bytes([0x77; 32])
}

pub(super) fn relay() -> Arc<Relay> {
    Relay::new(config(200), [1; 32])
}

pub(super) fn limited(rate: Rate) -> Arc<Relay> {
    Relay::new(Config { rate: Some(rate), ..config(200) }, [1; 32])
}

pub(super) fn node(n: u64) -> NodePrivate {
    let mut seed = [0; 32];
    seed[8..16].copy_from_slice(&n.to_be_bytes());
    NodePrivate::from_seed(seed)
}

/// A client and its connection at the relay.
pub(super) struct Peer {
    pub(super) key: NodePublic,
    pub(super) client: Client,
    pub(super) connection: Connection,
    pub(super) alarm: Arc<Alarm>,
}

impl Peer {
    pub(super) fn start(relay: &Arc<Relay>, now: Time, key: NodePrivate, info: ClientInfo) -> Self {
        let connection = relay.connect(now, Arrival::default()).unwrap();
        let public = key.public();
        Self { key: public, client: Client::new(now, [5; 32], key, info, None), connection, alarm: Arc::default() }
    }

    /// A node that is let in.
    pub(super) fn join(relay: &Arc<Relay>, n: u64) -> Self {
        let mut peer = Self::start(relay, at(0), node(n), ClientInfo::new(None));
        peer.pump(at(0)).unwrap();
        assert_eq!(peer.events().len(), 1, "it is let in");
        peer
    }

    /// Another relay that is let in.
    pub(super) fn join_trusted(relay: &Arc<Relay>, n: u64) -> Self {
        let mut peer = Self::start(relay, at(0), node(n), ClientInfo::new(Some(&mesh_key())));
        peer.pump(at(0)).unwrap();
        assert!(peer.client.is_ready());
        peer.events();
        peer
    }

    /// Has the relay take what the client wants to write.
    pub(super) fn write(&mut self, now: Time) -> Result<(), Closed> {
        while let Some(frame) = self.client.poll_transmit() {
            self.feed(now, &frame)?;
        }
        Ok(())
    }

    pub(super) fn feed(&mut self, now: Time, bytes: &[u8]) -> Result<(), Closed> {
        let mut bytes = bytes;
        while let Progress::Ask(key) = self.connection.handle_bytes(now, &mut bytes)? {
            assert_eq!(key, self.key);
            self.connection.admit(now, true)?;
        }
        Ok(())
    }

    /// The frames that wait at the relay.
    pub(super) fn waiting(&self) -> Result<Vec<Vec<u8>>, Closed> {
        let mut frames = Vec::new();
        self.connection.poll_transmit(&mut frames, &Waker::from(self.alarm.clone()))?;
        Ok(frames)
    }

    /// Has the client take what waits at the relay.
    pub(super) fn read(&mut self, now: Time) -> Result<(), Closed> {
        for frame in self.waiting()? {
            self.client.handle_bytes(now, &frame);
        }
        Ok(())
    }

    /// Both, until nothing moves.
    pub(super) fn pump(&mut self, now: Time) -> Result<(), Closed> {
        for _ in 0..4 {
            self.read(now)?;
            self.write(now)?;
        }
        self.read(now)
    }

    pub(super) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }

    /// What arrived since, with nothing else beside it.
    pub(super) fn packets(&mut self, now: Time) -> Vec<(NodePublic, Vec<u8>)> {
        self.read(now).unwrap();
        let taken = self.events().into_iter().map(|event| match event {
            Event::Packet { from, bytes } => (from, bytes),
            other => panic!("{other:?}"),
        });
        taken.collect()
    }

    pub(super) fn send(&mut self, now: Time, to: NodePublic, packet: &[u8]) {
        self.client.send(now, to, packet);
        self.write(now).unwrap();
    }
}

/// The link of one relay to another: a client there, driven beside the link's own mailbox.
pub(super) struct Mesh {
    pub(super) peer: Peer,
    pub(super) link: Link,
}

impl Mesh {
    pub(super) fn dial(from: &Arc<Relay>, to: &Arc<Relay>, n: u64) -> Self {
        let mut peer = Peer::start(to, at(0), node(n), ClientInfo::new(Some(&mesh_key())));
        peer.client.watch();
        let mut mesh = Self { peer, link: from.link() };
        mesh.pump();
        mesh
    }

    /// Moves everything both ways.
    pub(super) fn pump(&mut self) {
        self.peer.pump(at(0)).unwrap();
        for event in self.peer.events() {
            self.link.handle_event(&event);
        }
        let mut frames = Vec::new();
        self.link.poll_transmit(&mut frames, Waker::noop()).unwrap();
        for frame in frames {
            self.peer.feed(at(0), &frame).unwrap();
        }
    }
}
