//! All peers' ways: who a disco packet is from and what it may do, and the deadlines.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::calls::OwnEndpoints;
use super::contacts::Contact;
use super::counters::Counters;
use super::peer::{Draw, Effects, PeerPaths, Way};
use super::relays::{RelayState, Relays};
use super::{Choice, Path, is_usable};
use crate::ident::{DiscoPrivate, DiscoPublic, NodePublic, RegionId};
use crate::time::{Deadline, Time};
use crate::wire::disco::{Envelope, Message, MessageError, NONCE_LEN, TxId};

/// A peer as the network map has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its node key.
    pub key: NodePublic,
    /// Its disco key; without one it is never pinged.
    pub disco: Option<DiscoPublic>,
    /// Where it says it may be reached.
    pub addresses: Vec<SocketAddr>,
    /// The region of its home relay.
    pub home: Option<RegionId>,
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// By which way.
    pub to: Path,
    /// To whom, for a relay to know.
    pub peer: NodePublic,
    /// What.
    pub contents: Vec<u8>,
}

/// The answer to a ping that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// The way that was pinged.
    pub path: Path,
    /// How long the answer took.
    pub latency: Duration,
    /// Where the peer sees us; through a relay, what stands for it.
    pub observed: SocketAddr,
}

/// What the driver has to do or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The way to a peer is another one now, see [`Paths::route`].
    Moved(NodePublic),
    /// A peer is to be told our addresses, and what is known of them is too old: they are to be found out, and told by
    /// [`Paths::set_endpoints`].
    Refresh,
    /// A peer's process is another one than before: its WireGuard session is to be dropped.
    Restarted(NodePublic),
    /// A handshake with this peer would be answered now. If there is no session, one is to be started, even if an earlier
    /// attempt still runs: it could not be answered.
    Meet(NodePublic),
    /// What became of a ping that was asked for; `None` if nothing came back.
    Answered {
        /// What [`Paths::ping`] was given.
        token: u64,
        /// The first answer.
        pong: Option<Pong>,
    },
}

/// Why a ping that was asked for is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// The key is no peer's.
    #[error("no peer has this key")]
    NoPeer,
    /// The peer's program does not know path probes.
    #[error("the peer does not answer path probes")]
    NoDisco,
    /// No address of the peer is known, and no relay leads to it.
    #[error("no address of the peer is known, and no relay leads to it")]
    NoAddress,
}

/// A peer's state and when it is due.
#[derive(Default)]
struct Entry {
    paths: PeerPaths,
    due: Option<Deadline>,
    /// The disco key the map has, and one the peer has told since, by a live session.
    listed: Option<DiscoPublic>,
    told: Option<DiscoPublic>,
}

/// The ways to all peers of a node.
pub struct Paths {
    own: NodePublic,
    secret: DiscoPrivate,
    public: DiscoPublic,
    random: ChaCha12Rng,
    peers: HashMap<NodePublic, Entry>,
    contacts: HashMap<DiscoPublic, Contact>,
    relays: Relays,
    endpoints: OwnEndpoints,
    due: BTreeSet<(Deadline, NodePublic)>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths").field("peers", &self.peers.len()).field("due", &self.due.first()).finish_non_exhaustive()
    }
}

impl Paths {
    /// The ways of the node with these keys. The disco key is to be a new one for each run of the program, and so is the seed.
    pub fn new(own: NodePublic, disco: DiscoPrivate, seed: [u8; 32]) -> Self {
        Self {
            own,
            public: disco.public(),
            secret: disco,
            random: ChaCha12Rng::from_seed(seed),
            peers: HashMap::new(),
            contacts: HashMap::new(),
            relays: Relays::new(),
            endpoints: OwnEndpoints::default(),
            due: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Replaces the peers. What was learned of those that stay is kept.
    pub fn set_peers(&mut self, now: Time, peers: &[Peer]) {
        let wanted: BTreeMap<NodePublic, &Peer> = peers.iter().map(|peer| (peer.key, peer)).collect();
        self.peers.retain(|key, entry| {
            let keep = wanted.contains_key(key);
            if let (false, Some(due)) = (keep, entry.due) {
                self.due.remove(&(due, *key));
            }
            keep
        });
        for (key, peer) in &wanted {
            let listed = self.usable(peer.disco);
            let entry = self.peers.entry(*key).or_default();
            // A map that has not heard of it yet does not take back what the peer itself has told.
            if entry.listed != listed {
                (entry.listed, entry.told) = (listed, None);
            }
        }
        self.index();
        for (key, peer) in wanted {
            let disco = self.peers.get(&key).and_then(|entry| entry.told.or(entry.listed));
            let restarted = self.with(now, key, |paths, draw| {
                let restarted = paths.set_disco(disco, draw);
                paths.list(now, &peer.addresses, peer.home, draw);
                restarted
            });
            if restarted == Some(true) {
                self.events.push_back(Event::Restarted(key));
            }
        }
    }

    /// Sorts the peers by their disco keys.
    fn index(&mut self) {
        let mut nodes: BTreeMap<DiscoPublic, Vec<NodePublic>> = BTreeMap::new();
        for (key, entry) in &self.peers {
            if let Some(disco) = entry.told.or(entry.listed) {
                nodes.entry(disco).or_default().push(*key);
            }
        }
        self.contacts.retain(|disco, _| nodes.contains_key(disco));
        for (disco, mut nodes) in nodes {
            nodes.sort_unstable();
            self.contacts.entry(disco).or_insert_with(Contact::new).nodes = nodes;
        }
    }

    /// A peer has told its disco key inside the tunnel. Its session is as new as the key, so nothing of it is dropped.
    pub fn told_disco(&mut self, now: Time, key: &NodePublic, disco: DiscoPublic) {
        let Some(disco) = self.usable(Some(disco)) else { return };
        let Some(entry) = self.peers.get_mut(key).filter(|entry| entry.paths.disco() != Some(disco)) else { return };
        entry.told = Some(disco);
        self.index();
        self.with(now, *key, |paths, draw| paths.set_disco(Some(disco), draw));
    }

    fn usable(&self, disco: Option<DiscoPublic>) -> Option<DiscoPublic> {
        disco.filter(|key| !key.is_zero() && *key != self.public)
    }

    /// Lets one peer's state change and carries out what it asks for.
    fn with<T>(&mut self, now: Time, key: NodePublic, change: impl FnOnce(&mut PeerPaths, &mut Draw<'_>) -> T) -> Option<T> {
        let entry = self.peers.get_mut(&key)?;
        let random = &mut self.random;
        let mut tx = || {
            let mut id = [0; 12];
            random.fill_bytes(&mut id);
            TxId(id)
        };
        let mut draw = Draw { tx: &mut tx, effects: Effects::default() };
        let result = change(&mut entry.paths, &mut draw);
        entry.paths.look_at_relays(now, &self.relays, &mut draw);
        let effects = draw.effects;
        let due = entry.paths.deadline(now);
        if entry.due != due {
            if let Some(before) = entry.due {
                self.due.remove(&(before, key));
            }
            self.due.extend(due.map(|deadline| (deadline, key)));
            entry.due = due;
        }
        if let Some(disco) = entry.paths.disco() {
            for (tx, to) in effects.probes {
                self.counters.pings_out += 1;
                self.send(disco, key, to, &Message::Ping { tx, node: Some(self.own) });
            }
        }
        if effects.call {
            self.call(now, key);
        }
        if effects.moved {
            self.events.push_back(Event::Moved(key));
        }
        if effects.meet {
            self.events.push_back(Event::Meet(key));
        }
        self.events.extend(effects.answers.into_iter().map(|(token, pong)| Event::Answered { token, pong }));
        Some(result)
    }

    /// Tells a peer our addresses, at once or as soon as they are known.
    fn call(&mut self, now: Time, key: NodePublic) {
        let Some(addresses) = self.endpoints.fresh(now) else {
            if self.endpoints.waiting.is_empty() {
                self.events.push_back(Event::Refresh);
            }
            self.endpoints.waiting.insert(key);
            return;
        };
        let message = Message::CallMeMaybe(addresses.to_vec());
        let Some(entry) = self.peers.get(&key) else { return };
        if let (Some(disco), Some(region)) = (entry.paths.disco(), entry.paths.relay()) {
            self.counters.calls_out += 1;
            self.send(disco, key, Path::Relay(region), &message);
        }
    }

    /// Where this node may be reached, best guess first, as found out just now. Peers that wait for it are told.
    pub fn set_endpoints(&mut self, now: Time, addresses: Vec<SocketAddr>) {
        self.endpoints.set(now, addresses);
        for key in std::mem::take(&mut self.endpoints.waiting) {
            if self.peers.get(&key).is_some_and(|entry| !entry.paths.is_trusted(now)) {
                self.call(now, key);
            }
        }
    }

    /// How our connection to a region's relay is doing.
    pub fn set_relay(&mut self, now: Time, region: RegionId, state: RelayState) {
        let before = match state {
            RelayState::Idle => self.relays.remove(&region),
            state => self.relays.insert(region, state),
        };
        if before != Some(state) {
            for key in self.keys() {
                self.with(now, key, |_, _| ());
            }
        }
    }

    /// A relay says that a peer is not there, or no longer.
    pub fn peer_gone(&mut self, now: Time, region: RegionId, key: &NodePublic) {
        self.with(now, *key, |paths, _| paths.gone_from(region));
    }

    fn keys(&self) -> Vec<NodePublic> {
        let mut keys: Vec<_> = self.peers.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    fn send(&mut self, disco: DiscoPublic, peer: NodePublic, to: Path, message: &Message) {
        let Some(contact) = self.contacts.get_mut(&disco) else { return };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill_bytes(&mut nonce);
        let contents = contact.shared(&self.secret, &disco).seal(&self.public, nonce, &message.encode());
        self.transmits.push_back(Transmit { to, peer, contents });
    }

    /// A datagram came that [looks like](crate::wire::disco::looks_like) a disco packet.
    pub fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: &[u8]) {
        let opened = if is_usable(from) { self.open(datagram) } else { self.malformed() };
        let Some((disco, message)) = opened else { return };
        match message {
            Message::Ping { tx, node } => self.pinged(now, disco, from, tx, node),
            Message::Pong { tx, observed } => self.ponged(now, disco, None, tx, observed),
            // Anyone could repeat it, and have us ping whom it names.
            Message::CallMeMaybe(_) => self.counters.misplaced += 1,
        }
    }

    /// The same came through a relay, which vouches for the sender's node key.
    pub fn handle_relayed(&mut self, now: Time, region: RegionId, from: NodePublic, datagram: &[u8]) {
        let Some((disco, message)) = self.open(datagram) else { return };
        // A peer that has another key by now, or somebody else who sends a peer's packet once more.
        if self.peers.get(&from).is_none_or(|entry| entry.paths.disco() != Some(disco)) {
            self.counters.wrong_node += 1;
            return;
        }
        match message {
            Message::Ping { tx, node } => {
                if node.is_some_and(|node| node != from) {
                    self.counters.wrong_node += 1;
                } else if self.is_new(disco, tx) {
                    let to = Path::Relay(region);
                    self.pong(disco, from, to, tx);
                }
            }
            Message::Pong { tx, observed } => self.ponged(now, disco, Some((region, from)), tx, observed),
            Message::CallMeMaybe(addresses) => {
                self.counters.calls_in += 1;
                self.with(now, from, |paths, draw| paths.called(now, &addresses, draw));
            }
        }
    }

    fn malformed<T>(&mut self) -> Option<T> {
        self.counters.malformed += 1;
        None
    }

    /// Whose it is, and what it says.
    fn open(&mut self, datagram: &[u8]) -> Option<(DiscoPublic, Message)> {
        let Some(envelope) = Envelope::parse(datagram) else { return self.malformed() };
        let disco = envelope.sender;
        let Some(contact) = self.contacts.get_mut(&disco) else {
            self.counters.stranger += 1;
            return None;
        };
        let Ok(bytes) = contact.shared(&self.secret, &disco).open(&envelope) else {
            self.counters.forged += 1;
            return None;
        };
        match Message::decode(&bytes) {
            Ok(message) => Some((disco, message)),
            Err(MessageError::Unknown(_)) => {
                self.counters.unknown += 1;
                None
            }
            Err(MessageError::Short) => self.malformed(),
        }
    }

    /// Whether a ping has not been seen before.
    fn is_new(&mut self, disco: DiscoPublic, tx: TxId) -> bool {
        let is_new = self.contacts.get_mut(&disco).is_some_and(|contact| contact.is_new(tx));
        if !is_new {
            self.counters.replayed += 1;
        }
        is_new
    }

    /// Answers a ping the way it came.
    fn pong(&mut self, disco: DiscoPublic, peer: NodePublic, to: Path, tx: TxId) {
        self.counters.pings_in += 1;
        self.counters.pongs_out += 1;
        self.send(disco, peer, to, &Message::Pong { tx, observed: to.as_address() });
    }

    fn pinged(&mut self, now: Time, disco: DiscoPublic, from: SocketAddr, tx: TxId, node: Option<NodePublic>) {
        let nodes = self.contacts.get(&disco).map(|contact| contact.nodes.clone()).unwrap_or_default();
        if node.is_some_and(|node| !nodes.contains(&node)) {
            self.counters.wrong_node += 1;
            return;
        }
        let Some(first) = nodes.first().copied().filter(|_| self.is_new(disco, tx)) else { return };
        self.pong(disco, first, Path::Direct(from), tx);
        // Any of the nodes with this disco key is there: they live in one process.
        for key in nodes {
            self.with(now, key, |paths, draw| paths.pinged(now, from, draw));
        }
    }

    /// `through` is the relay and the peer it vouches for.
    fn ponged(&mut self, now: Time, disco: DiscoPublic, through: Option<(RegionId, NodePublic)>, tx: TxId, observed: SocketAddr) {
        let mut nodes = self.contacts.get(&disco).map(|contact| contact.nodes.clone()).unwrap_or_default();
        nodes.retain(|node| through.is_none_or(|(_, from)| from == *node));
        let via = through.map(|(region, _)| region);
        let taken =
            nodes.into_iter().any(|key| self.with(now, key, |paths, draw| paths.ponged(now, tx, via, observed, draw)) == Some(true));
        if taken {
            self.counters.pongs_in += 1;
        } else {
            self.counters.unasked += 1;
        }
    }

    /// Data is being sent to a peer, as [`super::Route::tell_sending`] says.
    pub fn sending(&mut self, now: Time, key: &NodePublic) {
        self.with(now, *key, |paths, draw| paths.sending(now, draw));
    }

    /// An authentic packet came from a peer, as [`super::Route::tell_heard`] says.
    pub fn heard(&mut self, now: Time, key: &NodePublic, from: Path) {
        self.with(now, *key, |paths, draw| paths.heard(now, from, draw));
    }

    /// A handshake that we started was answered.
    pub fn answered(&mut self, now: Time, key: &NodePublic, from: Path) {
        self.with(now, *key, |paths, draw| paths.answered(now, from, draw));
    }

    /// A handshake that the peer started was answered.
    pub fn met(&mut self, now: Time, key: &NodePublic) {
        self.with(now, *key, |paths, _| paths.met());
    }

    /// Where a handshake initiation goes that is sent now.
    pub fn ask(&mut self, now: Time, key: &NodePublic) -> Vec<Path> {
        self.with(now, *key, |paths, _| paths.ask(now)).unwrap_or_default()
    }

    /// The system has refused to send to an address: there is no way to it.
    pub fn unreachable(&mut self, now: Time, address: SocketAddr) {
        let mut keys = self.keys();
        keys.retain(|key| self.peers.get(key).is_some_and(|entry| entry.paths.best() == Some(address)));
        for key in keys {
            self.with(now, key, |paths, draw| paths.unreachable(now, draw));
        }
    }

    /// This machine's networks have changed: nothing is proven any more.
    pub fn network_changed(&mut self, now: Time) {
        self.endpoints.doubt();
        for key in self.keys() {
            self.with(now, key, |paths, draw| paths.network_changed(now, draw));
        }
    }

    /// Pings a peer because somebody asks; [`Event::Answered`] tells with this token what came of it.
    ///
    /// # Errors
    /// There is nothing to ping.
    pub fn ping(&mut self, now: Time, key: &NodePublic, token: u64) -> Result<(), Unreached> {
        let entry = self.peers.get(key).ok_or(Unreached::NoPeer)?;
        entry.paths.disco().ok_or(Unreached::NoDisco)?;
        match self.with(now, *key, |paths, draw| paths.ping(now, token, draw)) {
            Some(true) => Ok(()),
            _ => Err(Unreached::NoAddress),
        }
    }

    /// Where data to a peer goes.
    pub fn route(&self, key: &NodePublic) -> Choice {
        self.peers.get(key).map(|entry| entry.paths.choice()).unwrap_or_default()
    }

    /// How a peer is reached, since when, and why; for people. `None` if it has never been tried.
    pub fn way(&self, key: &NodePublic) -> Option<Way> {
        self.peers.get(key)?.paths.way()
    }

    /// How long an answer takes on the way in use, if it is proven at this moment.
    pub fn latency(&self, now: Time, key: &NodePublic) -> Option<Duration> {
        self.peers.get(key)?.paths.latency(now)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some((_, key)) = self.due.first().filter(|(deadline, _)| deadline.at <= now).copied() {
            let before = self.peers.get(&key).and_then(|entry| entry.due);
            self.with(now, key, |paths, draw| paths.handle_timeout(now, draw));
            let after = self.peers.get(&key).and_then(|entry| entry.due);
            debug_assert!(before != after, "{before:?} is still due at {now:?}");
            if before == after {
                // A defect, but one peer's deadline must not stop the others.
                self.due.pop_first();
            }
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is due next, and why.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// What came, went and was dropped.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
