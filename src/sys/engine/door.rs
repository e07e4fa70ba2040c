//! What those who live outside the packet threads, on tokio, do with an engine: carry packets to relays, ask STUN servers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use tokio::sync::{Notify, oneshot};

use super::Shared;
use super::counters::add;
use super::relays::{Arrived, Outgoing};
use crate::ident::{NodePublic, RegionId};
use crate::path::{Pong, RelayState, Unreached};
use crate::time::Time;

/// A running engine, from outside. Clones are the same door; it leads nowhere once the engine has stopped, and does not keep it
/// from stopping: TUN and port are free for the next one then.
#[derive(Clone)]
pub struct Door {
    shared: Weak<Shared>,
    left: Arc<Notify>,
    refresh: Arc<Notify>,
    started: Instant,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Door")
    }
}

impl Door {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let (left, refresh) = (Arc::clone(&shared.relays.left), Arc::clone(&shared.refresh));
        Self { shared: Arc::downgrade(shared), left, refresh, started: shared.started }
    }

    fn with<T>(&self, act: impl FnOnce(&Shared) -> T) -> Option<T> {
        self.shared.upgrade().map(|shared| act(&shared))
    }

    /// The time by the engine's clock.
    pub fn now(&self) -> Time {
        Time::from_start(self.started.elapsed())
    }

    /// Waits until there are packets for relays, and says for which.
    pub async fn packets_for(&self) -> BTreeSet<RegionId> {
        loop {
            let news = self.with(|shared| shared.relays.news()).unwrap_or_default();
            if !news.is_empty() {
                return news;
            }
            self.left.notified().await;
        }
    }

    /// The next packet for a relay.
    pub fn next_packet(&self, region: RegionId) -> Option<Outgoing> {
        self.with(|shared| shared.relays.next(region)).flatten()
    }

    /// Whether packets wait for a relay.
    pub fn has_packets(&self, region: RegionId) -> bool {
        self.with(|shared| shared.relays.has(region)) == Some(true)
    }

    /// A packet came through a relay, which vouches for its sender.
    pub fn deliver(&self, region: RegionId, from: NodePublic, packet: Vec<u8>) {
        self.with(|shared| {
            add(&shared.counters.relay_in, 1);
            let dropped = shared.relays.deliver(Arrived { region, from, packet });
            add(&shared.counters.relay_full, dropped);
        });
    }

    /// How the connection to a relay is doing.
    pub fn set_relay(&self, region: RegionId, state: RelayState) {
        self.with(|shared| shared.attend(|paths, now| paths.set_relay(now, region, state)));
    }

    /// A relay says that a peer is not there.
    pub fn peer_gone(&self, region: RegionId, peer: &NodePublic) {
        self.with(|shared| shared.attend(|paths, now| paths.peer_gone(now, region, peer)));
    }

    /// Sends a datagram from the engine's own socket.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.with(|shared| shared.sockets.main.send_now(shared, to, datagram));
    }

    /// Pings a peer, as [`super::Engine::ping`] does; `None` once the engine has stopped.
    pub fn ping(&self, peer: &NodePublic) -> Option<Result<oneshot::Receiver<Pong>, Unreached>> {
        self.with(|shared| shared.ping(peer))
    }

    /// Whether the engine's socket can send to IPv6 addresses at all.
    pub fn has_v6(&self) -> bool {
        self.with(|shared| shared.sockets.main.has_v6()) == Some(true)
    }

    /// Waits until the own addresses are to be found out anew.
    pub async fn refresh_wanted(&self) {
        self.refresh.notified().await;
    }

    /// When data last went to some peer.
    pub fn last_traffic(&self) -> Option<Time> {
        self.with(Shared::last_traffic).flatten()
    }
}
