//! The peers, as the threads see them: a table that is replaced whole.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tsmp::Talk;
use super::{PeerStatus, Shared};
use crate::ident::{NodePrivate, NodePublic, PrefixMap, is_quad100};
use crate::node::PeerConfig;
use crate::path::{self, Paths, Route, Way};
use crate::time::{Time, Wall};
use crate::tunnel::{MAX_TUNNELS, Tunnel};

/// What changes with every batch of a peer's packets.
pub(super) struct State {
    pub(super) tunnel: Tunnel,
    pub(super) route: Route,
    /// When anything was last sent to the peer.
    pub(super) sent: Time,
    /// When a handshake was last asked for.
    pub(super) asked: Time,
    /// When the newest session was agreed on.
    pub(super) last_handshake: Option<Wall>,
    /// Our address and the peer's, for what is said inside the tunnel.
    pub(super) ends: Option<(IpAddr, IpAddr)>,
    /// The peer's own IPv4 address.
    pub(super) v4: Option<Ipv4Addr>,
    /// What is said there beside that.
    pub(super) talk: Talk,
}

impl State {
    /// Takes over where the peer's packets go.
    pub(super) fn follow(&mut self, paths: &Paths, key: &NodePublic) {
        self.route.set(paths.route(key));
    }

    /// Notes when the session in use was agreed on, before it is forgotten.
    pub(super) fn note_handshake(&mut self, now: Wall) {
        if let Some(age) = self.tunnel.session_age()
            && let Ok(at) = now.checked_sub(age)
        {
            self.last_handshake = Some(at);
        }
    }
}

/// One peer.
pub(super) struct Peer {
    pub(super) key: NodePublic,
    pub(super) name: String,
    index: u32,
    state: Mutex<State>,
    pub(super) rx_bytes: AtomicU64,
    pub(super) tx_bytes: AtomicU64,
}

impl Peer {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `known` is the latency, and the way with its age.
    pub(super) fn status(&self, shared: &Shared, now: Wall, known: (Option<Duration>, Option<(Way, Duration)>)) -> PeerStatus {
        let mut state = self.lock();
        state.note_handshake(now);
        PeerStatus {
            key: self.key,
            endpoint: state.route.direct(),
            latency: known.0,
            way: known.1,
            last_handshake: state.last_handshake,
            refused: shared.refused(&state),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
        }
    }
}

/// All peers, by what packets name them by. Never changed once the threads see it.
#[derive(Default)]
pub(super) struct Table {
    by_key: HashMap<NodePublic, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    by_endpoint: HashMap<SocketAddr, Arc<Peer>>,
    routes: PrefixMap<Arc<Peer>>,
}

impl Table {
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_key.values()
    }

    /// The peer with this WireGuard key.
    pub(super) fn by_key(&self, key: &NodePublic) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }

    /// The peer whose session a message names.
    pub(super) fn by_receiver(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&Tunnel::index_of(receiver))
    }

    /// The peer the network map has at this address. A hint: addresses are not identities.
    pub(super) fn by_endpoint(&self, address: SocketAddr) -> Option<&Arc<Peer>> {
        self.by_endpoint.get(&address)
    }

    /// The peer that packets to this address go to, and that packets from it may come from. The resolver's address is this machine's alone,
    /// whatever network or exit it lies in: while it is missing from the interface, questions wait rather than leave.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        if is_quad100(address) { None } else { self.routes.find(address) }
    }
}

/// Makes tables: keeps peers across changes and hands out indices.
pub(super) struct Registry {
    own: NodePrivate,
    next_index: u32,
    peers: HashMap<NodePublic, Arc<Peer>>,
}

impl Registry {
    /// `first_index` should be random, so that late packets for an earlier run of this program meet no session.
    pub(super) fn new(own: NodePrivate, first_index: u32) -> Self {
        Self { own, next_index: first_index, peers: HashMap::new() }
    }

    fn make(&mut self, config: &PeerConfig) -> Arc<Peer> {
        let taken = |index| self.peers.values().any(|p| p.index == index);
        let mut index = self.next_index % MAX_TUNNELS;
        while taken(index) {
            index = (index + 1) % MAX_TUNNELS;
        }
        self.next_index = index.wrapping_add(1);
        let state = State {
            tunnel: Tunnel::new(&self.own, &config.key, index),
            route: Route::default(),
            sent: Time::default(),
            asked: Time::default(),
            last_handshake: None,
            ends: None,
            v4: None,
            talk: Talk::default(),
        };
        Arc::new(Peer {
            key: config.key,
            name: config.name.clone(),
            index,
            state: Mutex::new(state),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
        })
    }

    /// The table for these peers, and the same for the core that finds their ways. A peer that is not among them loses its session.
    pub(super) fn update(&mut self, configs: &[PeerConfig]) -> (Table, Vec<path::Peer>) {
        let mut ways = Vec::with_capacity(configs.len());
        let mut table = Table::default();
        let own = self.own.public();
        for config in configs {
            // Our own entry, a peer without a key, or the same one twice have no tunnel.
            if config.key == own || config.key.is_zero() || table.by_key.contains_key(&config.key) {
                continue;
            }
            let peer = match self.peers.get(&config.key) {
                Some(peer) => Arc::clone(peer),
                None => self.make(config),
            };
            {
                let mut state = peer.lock();
                (state.ends, state.v4) = (config.ends, config.v4);
            }
            ways.push(path::Peer { key: config.key, disco: config.disco, addresses: config.endpoints.clone(), home: config.home });
            for endpoint in &config.endpoints {
                let address = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
                table.by_endpoint.entry(address).or_insert_with(|| Arc::clone(&peer));
            }
            for prefix in &config.allowed_ips {
                if !table.routes.insert(*prefix, Arc::clone(&peer)) {
                    tracing::debug!(%prefix, peer = config.name, "another peer has this prefix already");
                }
            }
            table.by_index.insert(peer.index, Arc::clone(&peer));
            self.peers.insert(config.key, Arc::clone(&peer));
            table.by_key.insert(config.key, peer);
        }
        self.peers.retain(|key, _| table.by_key.contains_key(key));
        (table, ways)
    }
}
