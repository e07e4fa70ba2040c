//! All peers' ways, and their deadlines.
//!
//! Here is what the driver says and asks; `peers` is who they are, `messages` what they say to one another, `spreading` how ports are
//! guessed.

mod messages;
mod peers;
mod spreading;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use self::peers::Entry;
use self::spreading::Spreading;
use super::calls::OwnEndpoints;
use super::contacts::Contact;
use super::counters::Counters;
use super::peer::{Draw, Effects, PeerPaths, Way};
use super::relays::{RelayState, Relays};
use super::{Choice, Event, Local, Path, Transmit, Unreached};
use crate::ident::{DiscoPrivate, DiscoPublic, NodePublic, RegionId};
use crate::time::{Deadline, Time};
use crate::wire::disco::{Message, TxId};

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
    spreading: Spreading,
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
            spreading: Spreading::default(),
            due: BTreeSet::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
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
        if effects.offer {
            self.offer(now, key);
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
        self.end_spreading();
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

    /// Measures a peer: pings it as [`Self::ping`] does, by each way that may be good, but does not count as data, so that nothing goes on
    /// afterwards. [`Event::Answered`] tells the first answer.
    ///
    /// # Errors
    /// There is nothing to ping.
    pub fn measure(&mut self, now: Time, key: &NodePublic, token: u64) -> Result<(), Unreached> {
        let entry = self.peers.get(key).ok_or(Unreached::NoPeer)?;
        entry.paths.disco().ok_or(Unreached::NoDisco)?;
        match self.with(now, *key, |paths, draw| paths.measure(now, token, draw)) {
            Some(true) => Ok(()),
            _ => Err(Unreached::NoAddress),
        }
    }

    /// Where data to a peer goes.
    pub fn route(&self, key: &NodePublic) -> Choice {
        let choice = self.peers.get(key).map(|entry| entry.paths.choice()).unwrap_or_default();
        Choice { local: choice.direct.map_or(Local::MAIN, |address| self.local(address)), ..choice }
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
        self.spread(now);
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
        let peers = self.due.first().map(|(deadline, _)| *deadline);
        peers.into_iter().chain(self.spreading.deadline()).min()
    }

    /// What came, went and was dropped.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
