//! What the mesh programs say to one another inside the tunnel (TSMP): pings and their answers, refusals.
//!
//! What is said of itself goes back to the peer alone whose packet brought it about, in its own session, and never faster than the peer's
//! [`Bucket`] allows. None of it comes from the TUN or reaches it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Shared;
use super::counters::add;
use super::inbound::{Arrival, Origin};
use super::outbound::{initiate, lock_for_sending};
use super::table::{Peer, State};
use crate::filter::{Refusal, Refused};
use crate::ident::NodePublic;
use crate::path::Path;
use crate::sys::entropy;
use crate::time::{Bucket, Time};
use crate::tunnel::{MIN_ROOM, OVERHEAD, Sealed};
use crate::wire::tsmp::{Message, Packet, Token};

/// A peer is told so many things at once, and so many a second from then on. Not for all peers together: one that knocks at every port must
/// not keep the others from their answers.
const ANSWERS: u64 = 10;
/// The longest packet that is made here, sealed: a disco key in IPv6, and WireGuard's padding.
const ROOM: usize = 256;

/// What there is to say to a peer, and what it has said.
pub(super) struct Talk {
    answers: Bucket,
    /// What it has not let in.
    pub(super) refused: Refused,
}

impl Default for Talk {
    fn default() -> Self {
        Self { answers: Bucket::new(Time::default(), ANSWERS, ANSWERS), refused: Refused::default() }
    }
}

/// The answer to a ping inside the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InsidePong {
    /// How long it took.
    pub latency: Duration,
    /// The way it came.
    pub path: Path,
    /// The port of the peer's peer API, if it has one.
    pub peer_api: Option<u16>,
}

/// Why a peer cannot be pinged inside the tunnel.
#[derive(Debug, thiserror::Error)]
pub enum Unpinged {
    /// Packets to the address go to no peer.
    #[error("no node has {0}, or a network that it is in")]
    NoPeer(IpAddr),
    /// This node has no address of that family.
    #[error("this node has no address of the family of {0}")]
    NoAddress(IpAddr),
    /// The system has no randomness.
    #[error(transparent)]
    Entropy(#[from] std::io::Error),
}

/// Those who wait for the answer to a ping inside the tunnel.
#[derive(Default)]
pub(super) struct Pings(Mutex<HashMap<Token, Waiting>>);

struct Waiting {
    peer: NodePublic,
    sent: Time,
    answer: oneshot::Sender<InsidePong>,
}

impl Pings {
    fn expect(&self, token: Token, waiting: Waiting) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asked gives up in time.
        all.retain(|_, waiting| !waiting.answer.is_closed());
        all.insert(token, waiting);
    }

    /// A peer has answered; says whether it was asked.
    fn answered(&self, now: Time, peer: &NodePublic, from: Origin, token: Token, peer_api: u16) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(&token).is_none_or(|waiting| waiting.peer != *peer) {
            return false;
        }
        let Some(Waiting { sent, answer, .. }) = all.remove(&token) else { return false };
        // Whoever asked may have gone.
        let peer_api = Some(peer_api).filter(|port| *port != 0);
        let _ = answer.send(InsidePong { latency: now.since(sent), path: from.path, peer_api });
        true
    }
}

impl Arrival<'_> {
    /// A peer says something; `is_own` says that the packet's source is one of the peer's addresses. Gives what is to be said to that.
    pub(super) fn heard(self, peer: &Peer, state: &mut State, packet: &Packet, is_own: bool) -> Option<Vec<u8>> {
        let Self { shared, filter, from, .. } = self;
        let now = shared.now();
        match packet.message {
            Message::DiscoKey(disco) => shared.paths().told_disco(now, &peer.key, disco),
            // Whose address that is may ping and refuse, nobody else.
            _ if !is_own => add(&shared.counters.not_allowed, 1),
            Message::Ping(token) => {
                let peer_api = filter.door_at(packet.to).unwrap_or_default();
                return self.answer(state, &Packet { from: packet.to, to: packet.from, message: Message::Pong { token, peer_api } });
            }
            Message::Pong { token, peer_api } => {
                if !shared.pings.answered(now, &peer.key, from, token, peer_api) {
                    add(&shared.counters.unasked, 1);
                }
            }
            Message::Reject(reject) if filter.is_here(packet.to) => {
                tracing::debug!(peer = peer.name, to = %packet.from, port = reject.port, reason = ?reject.reason, "a packet of ours was refused");
                state.talk.refused.note(now, packet);
            }
            Message::Reject(_) => add(&shared.counters.unasked, 1),
            Message::Unknown => add(&shared.counters.junk, 1),
        }
        None
    }

    /// What a peer is told whose packet was not let in.
    pub(super) fn objection(self, state: &mut State, packet: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
        let objection = self.filter.objection(packet, refusal)?;
        self.answer(state, &objection)
    }

    fn answer(self, state: &mut State, answer: &Packet) -> Option<Vec<u8>> {
        if state.talk.answers.take(self.shared.now(), 1) {
            return answer.write();
        }
        add(&self.shared.counters.unsaid, 1);
        None
    }
}

/// Says something to a peer by the way its data takes, or where none is proven yet by the one it came from.
pub(super) fn say(shared: &Shared, peer: &Peer, state: &mut State, packet: &[u8], from: Option<Origin>) {
    let mut room = [0; ROOM];
    if packet.len() + OVERHEAD > ROOM {
        debug_assert!(false, "nothing that is said here is that long");
        return;
    }
    match state.tunnel.seal(packet, &mut room) {
        Sealed::Data(length) => {
            let message = room.get(..length).unwrap_or_default();
            let ways = state.route.ways(shared.now());
            match from.filter(|_| ways.is_none()) {
                Some(from) => from.reply(shared, message),
                None => shared.send_on(ways, &peer.key, message),
            }
            state.sent = shared.now();
        }
        Sealed::Initiation(length) => {
            let mut message = [0; MIN_ROOM];
            if let (Some(copy), Some(original)) = (message.get_mut(..length), room.get(..length)) {
                copy.copy_from_slice(original);
                initiate(shared, peer, state, copy);
            }
        }
        Sealed::Waiting => {}
    }
    peer.tx_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
}

impl Shared {
    /// Pings the mesh program that packets to an address go to. It counts as data.
    pub(super) fn ping_inside(&self, from: IpAddr, to: IpAddr) -> Result<oneshot::Receiver<InsidePong>, Unpinged> {
        let table = self.table();
        let peer = table.by_address(to).ok_or(Unpinged::NoPeer(to))?;
        let token = entropy::bytes()?;
        let packet = Packet { from, to, message: Message::Ping(token) }.write().ok_or(Unpinged::NoAddress(to))?;
        let (answer, receiver) = oneshot::channel();
        let now = self.now();
        self.pings.expect(token, Waiting { peer: peer.key, sent: now, answer });
        let mut state = lock_for_sending(self, peer, now);
        say(self, peer, &mut state, &packet, None);
        Ok(receiver)
    }

    /// What a peer has refused, and how long ago.
    pub(super) fn refused(&self, state: &State) -> Vec<(crate::filter::RefusedFlow, Duration)> {
        let now = self.now();
        state.talk.refused.flows().map(|flow| (*flow, now.since(flow.at))).collect()
    }
}
