//! The relay's side of all connections.
//!
//! [`Relay`] is shared; each connection has its own [`Connection`], which the task that reads and writes it owns: bytes go in, whole frames to
//! write come out. A packet goes from one connection into the mailbox of another and meets no lock that all share: a connection keeps
//! where its packets go, and looks again only when somebody came or went ([`Relay`] counts these). Whose mailbox was filled is woken once
//! for all packets that arrived together.
//!
//! Everything is bounded: mailboxes ([`QUEUE`] packets and [`QUEUE_BYTES`] of each kind, the oldest are dropped), connections
//! ([`Config::max_connections`]), what is remembered of whom a client sent to. Nobody waits for a receiver that does not read.
//!
//! Pure: time is an argument, the seed comes with the configuration, and who wakes a task is `std::task`'s own way.

mod connection;
mod counters;
mod mailbox;
mod mesh;
mod registry;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

pub use connection::{Connection, Progress};
pub use counters::{DROPS, Drop, Snapshot};
pub use mailbox::{QUEUE, QUEUE_BYTES};
pub use mesh::Link;
pub use registry::ConnectionId;

use super::rate_limit;
use crate::ident::{MeshKey, NodePublic, RelayPrivate, RelayPublic};
use crate::time::{Bucket, Time};
use crate::wire::derp::{Frame, NONCE_LEN};
use counters::Counters;
use registry::{Registry, Target};

/// How long a client may take to say who it is.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a client is told that the connection lives; up to [`KEEPALIVE_JITTER`] is added, so that not all are told at once.
pub const KEEPALIVE: Duration = Duration::from_secs(60);
/// What is added at most.
pub const KEEPALIVE_JITTER: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is cut off.
pub const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// The same for other relays, whose connection carries many clients' packets.
pub const MESH_WRITE_LIMIT: Duration = Duration::from_secs(30);

/// How many bytes a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// On average.
    pub bytes_per_second: u64,
    /// At once; at least one packet of the largest size.
    pub burst: u64,
}

/// What a relay is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its key.
    pub key: RelayPrivate,
    /// What the relays of its region know.
    pub mesh_key: Option<MeshKey>,
    /// Connections at once.
    pub max_connections: usize,
    /// What each client may send at first ([`Relay::set_rate`] changes it); other relays may send anything.
    pub rate: Option<Rate>,
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The stream cannot be read on.
    #[error("{0}")]
    Stream(crate::wire::derp::StreamError),
    /// A frame that has no place there, or is cut short.
    #[error("the client does not keep to the protocol")]
    Protocol,
    /// The client does not have the key it claims.
    #[error("the client cannot prove its key: {0}")]
    Unproven(crate::wire::derp::HandshakeError),
    /// The client did not say who it is in time.
    #[error("the client did not say who it is within 10 s")]
    Handshake,
    /// The client is not to be served.
    #[error("the client is not a known node")]
    Refused,
    /// Only relays of the same region may do what it asked for.
    #[error("the client is no relay of this region")]
    Untrusted,
    /// It does not read what it is told.
    #[error("the other side reads too slowly")]
    Slow,
    /// Another relay of the region, or the owner of this one, asked for it.
    #[error("it was asked for")]
    Asked,
    /// The relay stops.
    #[error("the relay stops")]
    Stopping,
}

/// The relay holds as many connections as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay holds all the connections it may")]
pub struct Full;

/// How a connection begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Where from.
    pub address: Option<SocketAddr>,
    /// It would rather be at another relay of the region.
    pub not_ideal: bool,
}

/// A relay.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    public: RelayPublic,
    registry: Mutex<Registry>,
    /// Counts changes of the registry after which packets may go elsewhere.
    changes: AtomicU64,
    connections: AtomicUsize,
    next: AtomicU64,
    rng: Mutex<ChaCha20Rng>,
    health: Mutex<String>,
    /// What each client may send now, and the number of times that it was changed.
    rate: Mutex<Option<Rate>>,
    rates: AtomicU64,
    counters: Counters,
}

impl Relay {
    /// A relay without clients.
    pub fn new(config: Config, seed: [u8; 32]) -> Arc<Self> {
        Arc::new(Self {
            public: config.key.public(),
            rate: Mutex::new(config.rate),
            rates: AtomicU64::new(0),
            config,
            registry: Mutex::default(),
            changes: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            rng: Mutex::new(ChaCha20Rng::from_seed(seed)),
            health: Mutex::default(),
            counters: Counters::default(),
        })
    }

    /// Its key.
    pub fn key(&self) -> RelayPublic {
        self.public
    }

    /// Connections now, those that have not said who they are included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Different nodes connected now.
    pub fn nodes(&self) -> usize {
        self.registry().len()
    }

    /// What was counted.
    pub fn counters(&self) -> Snapshot {
        self.counters.snapshot()
    }

    /// Changes what each client may send; for those connected already it counts from their next packet on.
    pub fn set_rate(&self, rate: Option<Rate>) {
        let mut current = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        *current = rate;
        self.rates.fetch_add(1, Ordering::Release);
    }

    /// What a client may send, and as of which change.
    fn limit(&self, now: Time) -> (Option<Bucket>, u64) {
        let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        (rate.map(|rate| rate_limit(now, rate.bytes_per_second, rate.burst)), self.rates.load(Ordering::Acquire))
    }

    /// Tells every client what is wrong with the relay; empty: it is right again. Who comes later is told as well.
    pub fn set_health(&self, text: &str) {
        text.clone_into(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
        self.tell_all(&Frame::Health(text.as_bytes()));
    }

    /// Tells every client that the relay is about to restart: when to come back, and for how long to try.
    pub fn announce_restart(&self, reconnect_in: Duration, try_for: Duration) {
        self.tell_all(&Frame::Restarting { reconnect_in, try_for });
    }

    /// Ends every connection.
    pub fn stop(&self) {
        self.registry().mailboxes(None).for_each(|(_, mailbox)| mailbox.close(Closed::Stopping));
    }

    /// Ends a node's connections.
    pub fn close_peer(&self, key: &NodePublic) {
        self.registry().mailboxes(Some(key)).for_each(|(_, mailbox)| mailbox.close(Closed::Asked));
    }

    /// Ends the connections of all nodes that are no longer to be served; other relays stay.
    pub fn keep_only(&self, mut serve: impl FnMut(&NodePublic) -> bool) {
        let registry = self.registry();
        let refused = registry.mailboxes(None).filter(|(key, mailbox)| !mailbox.is_trusted() && !serve(key));
        refused.for_each(|(_, mailbox)| mailbox.close(Closed::Refused));
    }

    fn tell_all(&self, frame: &Frame<'_>) {
        self.registry().mailboxes(None).for_each(|(_, mailbox)| mailbox.tell(frame.to_bytes()));
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes who is where; connections look again where their packets go.
    fn change<T>(&self, act: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = self.registry();
        let result = act(&mut registry);
        self.changes.fetch_add(1, Ordering::Release);
        result
    }

    /// Where packets for a key go, and as of which change.
    fn route(&self, from: Option<&NodePublic>, to: &NodePublic) -> (Target, u64) {
        let mut registry = self.registry();
        (registry.route(from, to), self.changes.load(Ordering::Acquire))
    }

    fn number(&self) -> ConnectionId {
        ConnectionId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut nonce);
        nonce
    }

    fn jitter(&self) -> Duration {
        let random = self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u32();
        KEEPALIVE_JITTER.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    fn health(&self) -> String {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
