//! What is done with a message that came: data goes towards the TUN, all else is answered or told to the cores.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Shared;
use super::announce::announce;
use super::counters::add;
use super::opening::Opening;
use super::outbound::initiate;
use super::table::{Peer, State, Table};
use super::translation::Spoken;
use super::tsmp::say;
use crate::filter::{Filter, Last};
use crate::ident::NodePublic;
use crate::path::{Local, Path};
use crate::tunnel::demux::{Kind, classify};
use crate::tunnel::translate::Sites;
use crate::tunnel::{Admission, MIN_ROOM, Opened, Shares, Tunnel};
use crate::wire::tsmp;

/// How long a handshake may stay without an answer when its peer shows that it is there.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Where a message came from: by which way, to which of our sockets, and through a relay from whom, for which the relay vouches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    pub(super) path: Path,
    pub(super) local: Local,
    pub(super) sender: Option<NodePublic>,
}

impl Origin {
    /// What stands for it in cookies.
    fn ip(&self) -> IpAddr {
        self.path.as_address().ip()
    }

    /// Whether a message that names this peer may come from there: nobody speaks for another through a relay.
    fn may_be(&self, peer: &NodePublic) -> bool {
        self.sender.is_none_or(|sender| sender == *peer)
    }

    /// Sends a message straight back.
    pub(super) fn reply(&self, shared: &Shared, message: &[u8]) {
        match (self.path, self.sender) {
            (Path::Direct(to), _) => {
                shared.sockets.with(self.local, |socket| socket.send_now(shared, to, message));
            }
            (path, Some(sender)) => shared.send_by(path, self.local, &sender, message),
            (Path::Relay(_), None) => {}
        }
    }
}

/// Sends what waited for a session.
fn release(shared: &Shared, peer: &Peer, state: &mut State, room: &mut [u8]) {
    while let Some(length) = state.tunnel.release(room) {
        let ways = state.route.ways(shared.now());
        if ways.is_none() {
            return;
        }
        shared.send_on(ways, &peer.key, room.get(..length).unwrap_or_default());
        peer.tx_bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
}

/// A handshake message that passed the gate, or a cookie.
fn handshake(shared: &Shared, peer: &Peer, from: Origin, message: &[u8], room: &mut [u8]) {
    let kind = classify(message);
    let mut state = peer.lock();
    match state.tunnel.open(from.ip(), message, room) {
        Opened::Reply { message, established } => {
            if established {
                // Only the peer could answer what we sent. An initiation may be an old one, sent again by anyone: it gets
                // its response, and the path moves when data follows.
                let mut paths = shared.paths();
                paths.answered(shared.now(), &peer.key, from.path);
                state.follow(&paths, &peer.key);
                tracing::debug!(peer = peer.name, from = ?from.path, "handshake answered");
            } else {
                shared.paths().met(shared.now(), &peer.key);
            }
            state.sent = shared.now();
            from.reply(shared, message);
            if let (true, Kind::Response { receiver }) = (established, kind) {
                announce(shared, peer, &mut state, receiver, from, room);
            }
            release(shared, peer, &mut state, room);
        }
        Opened::Refused(refusal) => shared.counters.refuse(refusal),
        Opened::Packet(..) | Opened::Nothing => {}
    }
    drop(state);
    shared.attend(|_, _| ());
}

/// Where a received message came from, and what it meets here.
#[derive(Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) shared: &'a Shared,
    pub(super) table: &'a Table,
    pub(super) filter: &'a Filter,
    pub(super) sites: Option<&'a Sites>,
    pub(super) from: Origin,
}

impl Arrival<'_> {
    /// What one received message holds: datagrams of `stride` bytes from one sender, the last may be shorter.
    pub(super) fn message(self, contents: &[u8], stride: usize, opening: &mut Opening, shares: &mut Shares) {
        let mut rest = contents.chunks(stride.max(1));
        let mut next = rest.next();
        while let Some(one) = next {
            let peer = match classify(one) {
                Kind::Data { receiver } => self.table.by_receiver(receiver).map(|peer| (peer, receiver)),
                _ => None,
            };
            let peer = peer.filter(|(peer, _)| self.from.may_be(&peer.key));
            next = match peer {
                // What one sender has sent at once is one peer's, nearly always.
                Some((_, receiver)) if !shares.admits(Tunnel::index_of(receiver), one.len() * (1 + rest.len())) => {
                    let before = rest.len();
                    let after = rest.find(|other| classify(other) != (Kind::Data { receiver }));
                    add(&self.shared.counters.overload, (before - rest.len() + usize::from(after.is_none())) as u64);
                    after
                }
                Some((peer, receiver)) => self.data(peer, receiver, std::iter::once(one).chain(&mut rest), opening),
                None => {
                    control(self.shared, self.table, self.from, one, opening.room());
                    rest.next()
                }
            };
        }
    }

    /// A run of datagrams for one session: the peer is locked once for all of them. Returns the datagram after the run.
    fn data<'d>(
        self,
        peer: &Arc<Peer>,
        receiver: u32,
        datagrams: impl Iterator<Item = &'d [u8]>,
        opening: &mut Opening,
    ) -> Option<&'d [u8]> {
        let Self { shared, table, filter, sites, from } = self;
        let mut state = peer.lock();
        let mut authentic = false;
        let mut allowed = None;
        let mut last = Last::default();
        let mut spoken = Spoken::default();
        let mut bytes = 0;
        let mut after = None;
        let mut told = false;
        // Few: the peer's bucket bounds them.
        let mut answers: Vec<Vec<u8>> = Vec::new();
        for message in datagrams {
            if classify(message) != (Kind::Data { receiver }) {
                after = Some(message);
                break;
            }
            match state.tunnel.open(from.ip(), message, opening.room()) {
                Opened::Packet(packet, source) => {
                    authentic = true;
                    let length = packet.len();
                    if allowed != Some(source) && table.by_address(source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                        allowed = Some(source);
                    }
                    if let Some(said) = tsmp::Packet::read(packet) {
                        answers.extend(self.heard(peer, &mut state, &said, allowed == Some(source)));
                    } else if allowed != Some(source) {
                        add(&shared.counters.not_allowed, 1);
                    } else if let Err(refusal) = filter.admit(packet, &mut last, |flow| shared.flows().answers(flow)) {
                        add(&shared.counters.filtered, 1);
                        answers.extend(self.objection(&mut state, packet, refusal));
                    } else if let Some(range) = shared.translation.arriving(shared, sites, packet, state.v4, &mut spoken) {
                        bytes += length as u64;
                        opening.keep(range);
                    } else {
                        add(&shared.counters.untranslated, 1);
                    }
                }
                Opened::Nothing => authentic = true,
                Opened::Refused(refusal) => shared.counters.refuse(refusal),
                Opened::Reply { message, .. } => from.reply(shared, message),
            }
        }
        if authentic {
            let now = shared.now();
            told = state.route.tell_heard(now, from.path);
            if told {
                let mut paths = shared.paths();
                paths.heard(now, &peer.key, from.path);
                state.follow(&paths, &peer.key);
            }
            peer.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
            announce(shared, peer, &mut state, receiver, from, opening.room());
            if state.tunnel.has_waiting() {
                release(shared, peer, &mut state, opening.room());
            }
            for answer in answers {
                say(shared, peer, &mut state, &answer, Some(from));
            }
        }
        drop(state);
        if told {
            shared.attend(|_, _| ());
        }
        after
    }
}

/// Data for a session we do not have: if it comes from where a peer is known to be, we were restarted and the peer does not know.
/// A handshake now spares it the 15 s until it would notice. While one is under way a second is started only if the first has got no
/// answer for [`ASK_AGAIN`]: the peer was not to be reached then, and is now.
fn lost(shared: &Shared, table: &Table, from: Origin, room: &mut [u8]) {
    add(&shared.counters.no_session, 1);
    let peer = match (from.path, from.sender) {
        (Path::Direct(address), _) => table.by_endpoint(address),
        (Path::Relay(_), sender) => sender.and_then(|sender| table.by_key(&sender)),
    };
    let Some(peer) = peer else { return };
    let mut state = peer.lock();
    if state.tunnel.has_session() {
        return;
    }
    let stale = shared.now().since(state.asked) >= ASK_AGAIN;
    let initiation = if stale { state.tunnel.meet(room) } else { state.tunnel.initiate(room) };
    if let Some(length) = initiation {
        initiate(shared, peer, &mut state, room.get(..length).unwrap_or_default());
    }
}

/// A message that is not data.
fn control(shared: &Shared, table: &Table, from: Origin, message: &[u8], room: &mut [u8]) {
    let counters = &shared.counters;
    let mut cookie = [0; MIN_ROOM];
    match classify(message) {
        kind @ (Kind::Initiation | Kind::Response { .. }) => match shared.gate.admit(from.ip(), message, &mut cookie) {
            Admission::Initiation(key) => match table.by_key(&key) {
                Some(peer) if from.may_be(&key) => handshake(shared, peer, from, message, room),
                known => {
                    add(&counters.stranger, 1);
                    if known.is_none() && from.may_be(&key) {
                        shared.strangers().keep(shared.now(), key, from.path.as_address(), message);
                    }
                }
            },
            Admission::Response => {
                let Kind::Response { receiver } = kind else { return };
                match table.by_receiver(receiver).filter(|peer| from.may_be(&peer.key)) {
                    Some(peer) => handshake(shared, peer, from, message, room),
                    None => add(&counters.no_session, 1),
                }
            }
            Admission::Cookie(cookie) => {
                add(&counters.cookies, 1);
                from.reply(shared, cookie);
            }
            Admission::Refused(refusal) => counters.refuse(refusal),
        },
        Kind::Cookie { receiver } => match table.by_receiver(receiver).filter(|peer| from.may_be(&peer.key)) {
            Some(peer) => handshake(shared, peer, from, message, room),
            None => add(&counters.no_session, 1),
        },
        Kind::Data { .. } => lost(shared, table, from, room),
        Kind::Disco => shared.attend(|paths, now| match (from.path, from.sender) {
            (Path::Direct(address), _) => paths.handle_datagram(now, from.local, address, message),
            (Path::Relay(region), Some(sender)) => paths.handle_relayed(now, region, sender, message),
            (Path::Relay(_), None) => {}
        }),
        Kind::Stun => {
            if from.sender.is_some() || shared.stun.try_send((shared.now(), message.to_vec())).is_err() {
                add(&counters.unasked, 1);
            }
        }
        Kind::Junk => add(&counters.junk, 1),
    }
}

/// Answers the initiations of those who were strangers when they came and are peers now.
pub(super) fn meet_strangers(shared: &Shared) {
    let table = shared.table();
    let mut room = [0; 2 * MIN_ROOM];
    let known = shared.strangers().take(shared.now(), |key| table.by_key(key).is_some());
    for stranger in known {
        if let Some(peer) = table.by_key(&stranger.key) {
            let path = Path::from_address(stranger.from);
            let from = Origin { path, local: Local::MAIN, sender: path.region().map(|_| stranger.key) };
            handshake(shared, peer, from, &stranger.message, &mut room);
        }
    }
}
