//! Guessing ports together with a peer (see `path::spread`): what is said, and what is done then.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand_core::RngCore as _;

use super::Paths;
use crate::ident::{DiscoPublic, NodePublic};
use crate::path::spread::{Sockets, Spray};
use crate::path::{Event, Local, Outside, Path, Reach, canonical, is_usable};
use crate::time::{Deadline, Time};
use crate::wire::disco::{Message, TxId};

/// How long an offer waits to be accepted: for our own address to be found out, or another peer's turn to end.
const OFFER_LASTS: Duration = Duration::from_secs(8);

/// What goes on, at most one of each.
#[derive(Debug, Default)]
pub(super) struct Spreading {
    /// The NAT in front of us, if ports are to be guessed at all.
    outside: Option<Outside>,
    /// What peers have said of it: whether they see another port than a STUN server does.
    varies: Option<bool>,
    /// Who has been offered many ports, and when.
    offered: Option<(NodePublic, Time)>,
    /// Whose offer is accepted as soon as our own address is known.
    wanted: Option<(NodePublic, Ipv4Addr, Time)>,
    sockets: Sockets,
    spray: Option<Spray>,
}

impl Spreading {
    /// Whether each destination sees another port of ours.
    fn varies(&self) -> Option<bool> {
        self.outside.and_then(|outside| outside.varies).or(self.varies)
    }

    pub(super) fn deadline(&self) -> Option<Deadline> {
        let spray = self.spray.as_ref().map(|spray| Deadline { at: spray.deadline(), why: "more ports are guessed" });
        let open = self.sockets.deadline().map(|at| Deadline { at, why: "ports are opened, or closed again" });
        spray.into_iter().chain(open).min()
    }
}

impl Paths {
    /// What is known of the NAT in front of this node; nothing keeps it from guessing ports, and from asking others to.
    pub fn set_outside(&mut self, outside: Option<Outside>) {
        let seen = |outside: Option<Outside>| outside.map(|outside| outside.seen);
        if seen(outside) != seen(self.spreading.outside) {
            self.spreading.varies = None;
        }
        self.spreading.outside = outside;
    }

    /// A peer has seen our main socket at this address.
    pub(super) fn note_seen_at(&mut self, now: Time, observed: SocketAddr) {
        let Some(outside) = self.spreading.outside else { return };
        let observed = canonical(observed);
        if observed.ip() != *outside.seen.ip() {
            return;
        }
        let same = observed.port() == outside.seen.port();
        // A port that was found out long ago may have changed for all.
        if same || self.endpoints.fresh(now).is_some() {
            self.spreading.varies = Some(!same);
        }
    }

    /// The sockets that are to be there beside the main one.
    pub fn sockets(&self) -> BTreeSet<Local> {
        self.spreading.sockets.wanted()
    }

    /// The socket from which an address is talked to.
    pub fn local(&self, address: SocketAddr) -> Local {
        self.spreading.sockets.local(address)
    }

    /// Asks a peer to guess ports of our NAT, if that can be of use.
    pub(super) fn offer(&mut self, now: Time, key: NodePublic) {
        let Some(outside) = self.spreading.outside.filter(|_| self.spreading.varies() != Some(false)) else { return };
        if self.spreading.sockets.is_open() {
            self.with(now, key, |paths, _| paths.take_offer_back(now));
            return;
        }
        self.spreading.offered = Some((key, now));
        self.counters.offers_out += 1;
        self.tell(key, &Message::SpreadOffer { outside: *outside.seen.ip() });
    }

    /// Says something through the peer's relay.
    fn tell(&mut self, key: NodePublic, message: &Message) {
        let Some(entry) = self.peers.get(&key) else { return };
        if let (Some(disco), Some(region)) = (entry.paths.disco(), entry.paths.relay()) {
            self.send(disco, key, Path::Relay(region), message);
        }
    }

    /// A peer wants ports guessed at this address.
    pub(super) fn offered(&mut self, now: Time, from: NodePublic, at: Ipv4Addr) {
        let useful = self.spreading.outside.is_some_and(|own| self.spreading.varies() != Some(true) && *own.seen.ip() != at);
        let allowed = Reach::of(at.into()) == Reach::Global && is_usable(SocketAddr::new(at.into(), 1));
        let known = self.peers.get(&from).is_some_and(|entry| entry.paths.is_known_at(at.into()));
        let waits = self.spreading.wanted.is_some_and(|(_, _, since)| now.since(since) <= OFFER_LASTS);
        if !(useful && allowed && known) || waits {
            return;
        }
        if self.with(now, from, |paths, _| paths.offered(now)) == Some(true) {
            self.counters.offers_in += 1;
            self.spreading.wanted = Some((from, at, now));
            if self.endpoints.fresh(now).is_none() {
                self.events.push_back(Event::Refresh);
            }
            self.accept(now);
        }
    }

    /// Begins with what a peer wants, once it can be told where we are seen, and it is its turn.
    pub(super) fn accept(&mut self, now: Time) {
        if self.endpoints.fresh(now).is_none() || self.spreading.spray.is_some() {
            return;
        }
        let Some((key, at, since)) = self.spreading.wanted.take() else { return };
        let Some(outside) = self.spreading.outside.filter(|_| now.since(since) <= OFFER_LASTS) else { return };
        self.tell(key, &Message::SpreadAccept { at: outside.seen.into() });
        let mut seed = [0; 16];
        self.random.fill_bytes(&mut seed);
        self.spreading.spray = Some(Spray::new(now, key, at, seed));
    }

    /// The peer guesses: many ports are opened towards it.
    pub(super) fn accepted(&mut self, now: Time, from: NodePublic, at: SocketAddr) {
        let at = canonical(at);
        let asked = self.spreading.offered.take_if(|(key, since)| *key == from && now.since(*since) <= OFFER_LASTS).is_some();
        let known = self.peers.get(&from).is_some_and(|entry| entry.paths.is_known_at(at.ip()) && !entry.paths.is_trusted(now));
        if asked && known && at.is_ipv4() && is_usable(at) {
            self.spreading.sockets.open(now, from, at);
            self.events.push_back(Event::Sockets);
        }
    }

    /// Sends what is due, and ends what is over.
    pub(super) fn spread(&mut self, now: Time) {
        if let Some((peer, to, from)) = self.spreading.sockets.due(now)
            && let Some(disco) = self.peers.get(&peer).and_then(|entry| entry.paths.disco())
        {
            for local in from {
                let mut id = [0; 12];
                self.random.fill_bytes(&mut id);
                self.counters.openings_out += 1;
                self.send_from(local, disco, peer, Path::Direct(to), &Message::Ping { tx: TxId(id), node: Some(self.own) });
            }
        }
        if self.spreading.sockets.expire(now) {
            self.events.push_back(Event::Sockets);
        }
        let trusted = |peer: &NodePublic| self.peers.get(peer).is_none_or(|entry| entry.paths.is_trusted(now));
        if self.spreading.spray.take_if(|spray| spray.is_over(now) || trusted(&spray.peer)).is_some() {
            self.accept(now);
        }
        let Some(spray) = &mut self.spreading.spray else { return };
        let (peer, guesses) = (spray.peer, spray.due(now));
        let Some(disco) = self.peers.get(&peer).and_then(|entry| entry.paths.disco()) else { return };
        for (tx, address) in guesses {
            self.counters.guesses_out += 1;
            self.send(disco, peer, Path::Direct(address), &Message::Ping { tx, node: Some(self.own) });
        }
    }

    /// An answer came from one of these nodes; whether it is to a guess.
    pub(super) fn guessed(&mut self, now: Time, nodes: &[NodePublic], tx: TxId) -> bool {
        let Some((peer, address)) = self.spreading.spray.as_ref().and_then(|spray| Some((spray.peer, spray.hit(tx)?))) else {
            return false;
        };
        if !nodes.contains(&peer) {
            return false;
        }
        self.spreading.spray = None;
        self.with(now, peer, |paths, draw| paths.found(now, address, draw));
        self.accept(now);
        true
    }

    /// Something authentic came from an address to one of our sockets. Whether it is heeded: an address is talked to from one socket. The first
    /// to be found by a peer is kept for it, until nothing comes there any more.
    pub(super) fn came_to(&mut self, now: Time, local: Local, from: SocketAddr, disco: DiscoPublic) -> bool {
        let from = canonical(from);
        let usual = self.local(from);
        if local == usual {
            return true;
        }
        let in_use = |entry: &super::Entry| entry.paths.best() == Some(from) && entry.paths.is_trusted(now);
        let kept_for = self.spreading.sockets.peer_of(from);
        if kept_for.and_then(|peer| self.peers.get(&peer)).is_some_and(in_use) {
            return false;
        }
        let opened_for = self.spreading.sockets.opened_for(local);
        let theirs = |peer: &NodePublic| self.contacts.get(&disco).is_some_and(|contact| contact.nodes.contains(peer));
        match opened_for.filter(theirs) {
            Some(peer) => {
                self.spreading.sockets.bind(now, from, local);
                self.events.push_back(Event::Sockets);
                self.events.push_back(Event::Moved(peer));
                self.with(now, peer, |paths, draw| paths.found(now, from, draw));
                true
            }
            None if local == Local::MAIN => {
                self.events.extend(self.spreading.sockets.unbind(from).map(Event::Moved));
                self.events.push_back(Event::Sockets);
                true
            }
            None => false,
        }
    }

    /// What goes on with those who are no peers any more ends.
    pub(super) fn forget_spreading(&mut self) {
        let Self { spreading, peers, .. } = self;
        spreading.spray.take_if(|spray| !peers.contains_key(&spray.peer));
        if spreading.sockets.retain(|peer| peers.contains_key(peer)) {
            self.events.push_back(Event::Sockets);
        }
    }

    /// This machine is in another network: its ports lead nowhere.
    pub(super) fn end_spreading(&mut self) {
        let spreading = &mut self.spreading;
        (spreading.varies, spreading.offered, spreading.wanted, spreading.spray) = (None, None, None, None);
        if spreading.sockets.retain(|_| false) {
            self.events.push_back(Event::Sockets);
        }
    }
}
