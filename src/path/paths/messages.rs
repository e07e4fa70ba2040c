//! Disco messages: who one is from and what it may do, and those that are sent.

use std::net::SocketAddr;

use rand_core::RngCore as _;

use super::Paths;
use crate::ident::{DiscoPublic, NodePublic, RegionId};
use crate::path::{Event, Local, Path, Transmit, is_usable};
use crate::time::Time;
use crate::wire::disco::{Envelope, Message, MessageError, NONCE_LEN, TxId};

impl Paths {
    /// A datagram came to one of our sockets that [looks like](crate::wire::disco::looks_like) a disco packet.
    pub fn handle_datagram(&mut self, now: Time, local: Local, from: SocketAddr, datagram: &[u8]) {
        let opened = if is_usable(from) { self.open(datagram) } else { self.malformed() };
        let Some((disco, message)) = opened else { return };
        if !self.came_to(now, local, from, disco) {
            self.counters.elsewhere += 1;
            return;
        }
        match message {
            Message::Ping { tx, node } => self.pinged(now, disco, from, tx, node),
            Message::Pong { tx, observed } => {
                if self.ponged(now, disco, None, tx, observed) && local == Local::MAIN {
                    self.note_seen_at(now, observed);
                }
            }
            // Anyone could repeat it, and have us ping whom it names.
            Message::CallMeMaybe(_) | Message::SpreadOffer { .. } | Message::SpreadAccept { .. } => self.counters.misplaced += 1,
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
            Message::Pong { tx, observed } => {
                self.ponged(now, disco, Some((region, from)), tx, observed);
            }
            Message::CallMeMaybe(addresses) => {
                self.counters.calls_in += 1;
                self.with(now, from, |paths, draw| paths.called(now, &addresses, draw));
            }
            Message::SpreadOffer { outside } => self.offered(now, from, outside),
            Message::SpreadAccept { at } => self.accepted(now, from, at),
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

    /// `through` is the relay and the peer it vouches for. Whether it answers a ping of ours.
    fn ponged(&mut self, now: Time, disco: DiscoPublic, through: Option<(RegionId, NodePublic)>, tx: TxId, observed: SocketAddr) -> bool {
        let mut nodes = self.contacts.get(&disco).map(|contact| contact.nodes.clone()).unwrap_or_default();
        nodes.retain(|node| through.is_none_or(|(_, from)| from == *node));
        let via = through.map(|(region, _)| region);
        if via.is_none() && self.guessed(now, &nodes, tx) {
            self.counters.pongs_in += 1;
            return true;
        }
        let taken =
            nodes.into_iter().any(|key| self.with(now, key, |paths, draw| paths.ponged(now, tx, via, observed, draw)) == Some(true));
        if taken {
            self.counters.pongs_in += 1;
        } else {
            self.counters.unasked += 1;
        }
        taken
    }

    /// Tells a peer our addresses, at once or as soon as they are known.
    pub(super) fn call(&mut self, now: Time, key: NodePublic) {
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
        self.accept(now);
    }

    pub(super) fn send(&mut self, disco: DiscoPublic, peer: NodePublic, to: Path, message: &Message) {
        let from = to.direct().map_or(Local::MAIN, |address| self.local(address));
        self.send_from(from, disco, peer, to, message);
    }

    /// The same, from a socket that is not the usual one for the address.
    pub(super) fn send_from(&mut self, from: Local, disco: DiscoPublic, peer: NodePublic, to: Path, message: &Message) {
        let Some(contact) = self.contacts.get_mut(&disco) else { return };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill_bytes(&mut nonce);
        let contents = contact.shared(&self.secret, &disco).seal(&self.public, nonce, &message.encode());
        self.transmits.push_back(Transmit { to, from, peer, contents });
    }
}
