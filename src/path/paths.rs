//! All peers' ways: who a disco packet is from and what it may do, and the deadlines.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::peer::{Draw, Effects, PeerPaths};
use super::{Path, is_usable};
use crate::ident::{DiscoPrivate, DiscoPublic, NodePublic};
use crate::time::{Deadline, Time};
use crate::wire::disco::{Envelope, Message, MessageError, NONCE_LEN, SharedKey, TxId};

/// Pings of one disco key that are remembered, so that one sent again by somebody else is noticed.
const REMEMBERED: usize = 64;

/// A peer as the network map has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its node key.
    pub key: NodePublic,
    /// Its disco key; without one it is never pinged.
    pub disco: Option<DiscoPublic>,
    /// Where it says it may be reached.
    pub addresses: Vec<SocketAddr>,
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// By which way.
    pub to: Path,
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
    /// Where the peer sees us.
    pub observed: SocketAddr,
}

/// What the driver has to do or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The way to a peer is another one now, see [`Paths::route`].
    Moved(NodePublic),
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
    /// No address of the peer is known.
    #[error("no address of the peer is known")]
    NoAddress,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Disco packets that came and went, and those dropped, by the reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[allow(missing_docs, reason = "named by the macro's caller")]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)+
        }
    };
}

counters! {
    /// Pings sent.
    pings_out,
    /// Pongs sent.
    pongs_out,
    /// Pings accepted.
    pings_in,
    /// Pongs accepted.
    pongs_in,
    /// Dropped before any cryptography: the sender's key is no peer's.
    stranger,
    /// Dropped: sealed with other keys (as after a restart of ours), or altered.
    forged,
    /// Dropped: not a disco packet, or a message cut short.
    malformed,
    /// Dropped: a message we do not read.
    unknown,
    /// Dropped: a ping in the name of a node that does not have this disco key; among them our own, sent back to us.
    wrong_node,
    /// Dropped: a ping seen before.
    replayed,
    /// Dropped: a pong to no ping of ours.
    unasked,
    /// Dropped: a call-me-maybe that did not come through a relay.
    misplaced,
}

/// A disco key and the nodes that have it.
struct Contact {
    key: Option<SharedKey>,
    nodes: Vec<NodePublic>,
    seen: VecDeque<TxId>,
}

impl Contact {
    fn shared(&mut self, own: &DiscoPrivate, peer: &DiscoPublic) -> &SharedKey {
        self.key.get_or_insert_with(|| SharedKey::new(own, peer))
    }

    /// Whether a ping with this id has not been seen yet.
    fn is_new(&mut self, tx: TxId) -> bool {
        if self.seen.contains(&tx) {
            return false;
        }
        if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(tx);
        true
    }
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
                paths.list(now, &peer.addresses, draw);
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
            let contact = self.contacts.entry(disco).or_insert_with(|| Contact { key: None, nodes: Vec::new(), seen: VecDeque::new() });
            contact.nodes = nodes;
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
                self.send(disco, to, &Message::Ping { tx, node: Some(self.own) });
            }
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

    fn send(&mut self, disco: DiscoPublic, to: SocketAddr, message: &Message) {
        let Some(contact) = self.contacts.get_mut(&disco) else { return };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill_bytes(&mut nonce);
        let contents = contact.shared(&self.secret, &disco).seal(&self.public, nonce, &message.encode());
        self.transmits.push_back(Transmit { to: Path::Direct(to), contents });
    }

    /// A datagram came that [looks like](crate::wire::disco::looks_like) a disco packet.
    pub fn handle_datagram(&mut self, now: Time, from: SocketAddr, datagram: &[u8]) {
        let Some(envelope) = Envelope::parse(datagram).filter(|_| is_usable(from)) else {
            self.counters.malformed += 1;
            return;
        };
        let disco = envelope.sender;
        let Some(contact) = self.contacts.get_mut(&disco) else {
            self.counters.stranger += 1;
            return;
        };
        let Ok(bytes) = contact.shared(&self.secret, &disco).open(&envelope) else {
            self.counters.forged += 1;
            return;
        };
        match Message::decode(&bytes) {
            Ok(Message::Ping { tx, node }) => self.pinged(now, disco, from, tx, node),
            Ok(Message::Pong { tx, observed }) => self.ponged(now, disco, tx, observed),
            Ok(Message::CallMeMaybe(_)) => self.counters.misplaced += 1,
            Err(MessageError::Unknown(_)) => self.counters.unknown += 1,
            Err(MessageError::Short) => self.counters.malformed += 1,
        }
    }

    fn pinged(&mut self, now: Time, disco: DiscoPublic, from: SocketAddr, tx: TxId, node: Option<NodePublic>) {
        let Some(contact) = self.contacts.get_mut(&disco) else { return };
        if node.is_some_and(|node| !contact.nodes.contains(&node)) {
            self.counters.wrong_node += 1;
            return;
        }
        if !contact.is_new(tx) {
            self.counters.replayed += 1;
            return;
        }
        self.counters.pings_in += 1;
        self.counters.pongs_out += 1;
        let nodes = contact.nodes.clone();
        self.send(disco, from, &Message::Pong { tx, observed: from });
        // Any of the nodes with this disco key is there: they live in one process.
        for key in nodes {
            self.with(now, key, |paths, draw| paths.pinged(now, from, draw));
        }
    }

    fn ponged(&mut self, now: Time, disco: DiscoPublic, tx: TxId, observed: SocketAddr) {
        let nodes = self.contacts.get(&disco).map(|contact| contact.nodes.clone()).unwrap_or_default();
        let taken = nodes.into_iter().any(|key| self.with(now, key, |paths, draw| paths.ponged(now, tx, observed, draw)) == Some(true));
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
    pub fn heard(&mut self, now: Time, key: &NodePublic, from: SocketAddr) {
        self.with(now, *key, |paths, draw| paths.heard(now, from, draw));
    }

    /// A handshake that we started was answered.
    pub fn answered(&mut self, now: Time, key: &NodePublic, from: SocketAddr) {
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
        let path = Some(Path::Direct(address));
        let mut keys: Vec<_> = self.peers.iter().filter(|(_, entry)| entry.paths.best() == path).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        for key in keys {
            self.with(now, key, |paths, draw| paths.unreachable(now, draw));
        }
    }

    /// This machine's networks have changed: nothing is proven any more.
    pub fn network_changed(&mut self, now: Time) {
        let mut keys: Vec<_> = self.peers.keys().copied().collect();
        keys.sort_unstable();
        for key in keys {
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

    /// Where data to a peer goes, and whether the peer is probed.
    pub fn route(&self, key: &NodePublic) -> (Option<Path>, bool) {
        self.peers.get(key).map_or((None, false), |entry| (entry.paths.best(), entry.paths.disco().is_some()))
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
