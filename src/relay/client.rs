//! One connection of a node to a relay.
//!
//! [`Client`] begins where the stream of frames begins: behind the HTTP answer, or with a fast start right behind the request, the key
//! then being known from the relay's certificate. [`Client::handle_bytes`] takes what arrives; [`Client::poll_transmit`] gives what is to be
//! written, one frame after the other; [`Client::poll_event`] says what happened. An end is final: make another one.
//!
//! Packets wait in two queues of [`QUEUE`], one for path discovery and one for the rest, and the oldest is dropped when one is full: whoever
//! has data to send never waits for a slow connection, and probes are not stuck behind data.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};

use super::rate_limit;
use crate::ident::{NodePrivate, NodePublic, RelayPublic};
use crate::time::{Bucket, Deadline, Time};
use crate::wire::derp::{
    ClientInfo, Decoder, Frame, FrameError, GoneReason, HEADER_LEN, KEY_LEN, MAX_PACKET, NONCE_LEN, PresentFlags, ServerInfo, SharedKey,
};
use crate::wire::disco;

/// Packets that wait, of each of the two kinds.
pub const QUEUE: usize = 32;
/// Relays say something each 60 to 65 s; twice that without a word, and the connection is dead.
pub const SILENCE: Duration = Duration::from_secs(120);
/// How long the relay may take to let us in.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a ping's answer is waited for.
pub const PING: Duration = Duration::from_secs(3);
/// Pings of ours that may be under way at once.
const MAX_PINGS: usize = 8;
/// Answers to pings and the like that wait at most; a relay that floods us with pings gets no more answers than this.
const MAX_CONTROL: usize = 64;
/// Bytes of a health text that are kept.
const MAX_HEALTH: usize = 512;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// The stream cannot be read on.
    #[error("{0}")]
    Stream(#[from] crate::wire::derp::StreamError),
    /// Before the handshake was through, something came that is no part of it.
    #[error("{0}")]
    Greeting(FrameError),
    /// The relay's word did not open: it is not the one whose key it showed.
    #[error("the relay cannot prove its key: {0}")]
    Unproven(#[from] crate::wire::derp::HandshakeError),
    /// It did not let us in within [`HANDSHAKE`].
    #[error("the relay did not let us in within 10 s")]
    Handshake,
    /// No frame came for [`SILENCE`].
    #[error("the relay was silent for 120 s")]
    Silence,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The relay let us in.
    Ready {
        /// What it says of itself.
        info: ServerInfo,
    },
    /// A packet.
    Packet {
        /// Who sent it: the relay vouches for this key, and nothing inside the packet does.
        from: NodePublic,
        /// The packet.
        bytes: Vec<u8>,
    },
    /// A peer we sent to is not here, or no longer.
    PeerGone {
        /// Which.
        peer: NodePublic,
        /// Why.
        reason: GoneReason,
    },
    /// To relays that watch: a client is connected there.
    PeerPresent {
        /// Which.
        peer: NodePublic,
        /// Of what kind.
        flags: PresentFlags,
    },
    /// The relay says what is wrong with this connection; `None`: it is right again. The text is the relay's, cut to 512 bytes.
    Health(Option<String>),
    /// The relay is about to restart.
    Restarting {
        /// Connect again after this.
        reconnect_in: Duration,
        /// Try for this long before another relay is taken.
        try_for: Duration,
    },
    /// A ping of ours was answered.
    Pong {
        /// What [`Client::ping`] returned.
        ping: u64,
        /// Round trip.
        after: Duration,
    },
    /// A ping of ours was not answered within [`PING`].
    PingLost {
        /// What [`Client::ping`] returned.
        ping: u64,
    },
    /// The connection is over.
    Ended(Ended),
}

/// What was dropped and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that waited too long behind others.
    pub queue_full: u64,
    /// Packets above what the relay allows us, or longer than any it would take.
    pub over_limit: u64,
    /// Frames that were cut short or had no place.
    pub stray_frames: u64,
}

enum State {
    /// The relay's key is awaited.
    Greeting,
    /// We said who we are.
    Introduced(SharedKey),
    Ready,
    Ended,
}

struct PingSent {
    number: u64,
    at: Time,
}

/// The connection.
pub struct Client {
    key: NodePrivate,
    info: ClientInfo,
    state: State,
    relay: Option<RelayPublic>,
    rng: ChaCha8Rng,
    decoder: Decoder,
    bucket: Option<Bucket>,
    started: Time,
    heard: Time,
    preferred: bool,
    told_preferred: bool,
    pings: Vec<PingSent>,
    /// The handshake's frame; goes before anything else.
    greeting: Option<Vec<u8>>,
    control: VecDeque<Vec<u8>>,
    disco: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = (self.control.len(), self.disco.len(), self.data.len());
        f.debug_struct("Client")
            .field("relay", &self.relay)
            .field("ready", &self.is_ready())
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A connection whose stream begins now. `relay`: the relay's key, if its certificate told it (fast start); then what the relay
    /// says first is passed over.
    pub fn new(now: Time, seed: [u8; 32], key: NodePrivate, info: ClientInfo, relay: Option<RelayPublic>) -> Self {
        let mut client = Self {
            key,
            info,
            state: State::Greeting,
            relay: None,
            rng: ChaCha8Rng::from_seed(seed),
            decoder: Decoder::default(),
            bucket: None,
            started: now,
            heard: now,
            preferred: false,
            told_preferred: false,
            pings: Vec::new(),
            greeting: None,
            control: VecDeque::new(),
            disco: VecDeque::new(),
            data: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        };
        if let Some(relay) = relay {
            client.introduce(relay);
        }
        client
    }

    /// The relay's key, once it is known.
    pub fn relay(&self) -> Option<RelayPublic> {
        self.relay
    }

    /// Whether the relay let us in.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// When a frame was last heard; the start, if none was.
    pub fn last_heard(&self) -> Time {
        self.heard
    }

    /// What was dropped.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn introduce(&mut self, relay: RelayPublic) {
        let shared = SharedKey::of_client(&self.key, &relay);
        let mut nonce = [0; NONCE_LEN];
        self.rng.fill_bytes(&mut nonce);
        self.greeting = Some(shared.client_info(self.key.public(), nonce, &self.info));
        self.relay = Some(relay);
        self.state = State::Introduced(shared);
    }

    fn end(&mut self, why: Ended) {
        if !self.has_ended() {
            self.state = State::Ended;
            for queue in [&mut self.control, &mut self.disco, &mut self.data] {
                queue.clear();
            }
            self.greeting = None;
            self.events.push_back(Event::Ended(why));
        }
    }

    /// Takes a packet for a peer. It is dropped if the relay would not take it, or would have us send less.
    pub fn send(&mut self, now: Time, to: NodePublic, packet: &[u8]) {
        self.enqueue(now, &Frame::SendPacket { to, packet }, packet);
    }

    /// Takes a packet that came from a client of this relay for a client of the other one. Needs the mesh key.
    pub fn forward(&mut self, now: Time, from: NodePublic, to: NodePublic, packet: &[u8]) {
        self.enqueue(now, &Frame::ForwardPacket { from, to, packet }, packet);
    }

    fn enqueue(&mut self, now: Time, frame: &Frame<'_>, packet: &[u8]) {
        if self.has_ended() {
            return;
        }
        let allowed = self.bucket.as_mut().is_none_or(|bucket| bucket.take(now, HEADER_LEN + KEY_LEN + packet.len()));
        if packet.len() > MAX_PACKET || !allowed {
            self.counters.over_limit += 1;
            return;
        }
        let queue = if disco::looks_like(packet) { &mut self.disco } else { &mut self.data };
        if queue.len() >= QUEUE {
            queue.pop_front();
            self.counters.queue_full += 1;
        }
        queue.push_back(frame.to_bytes());
    }

    fn say(&mut self, frame: &Frame<'_>) {
        if !self.has_ended() && self.control.len() < MAX_CONTROL {
            self.control.push_back(frame.to_bytes());
        }
    }

    /// Tells the relay whether it is our home; what it knows already is not told again.
    pub fn note_preferred(&mut self, preferred: bool) {
        self.preferred = preferred;
    }

    /// Asks the relay for a sign of life; the number comes back with the answer. `None` while eight others are unanswered.
    pub fn ping(&mut self, now: Time) -> Option<u64> {
        if self.has_ended() || self.pings.len() >= MAX_PINGS {
            return None;
        }
        let number = self.rng.next_u64();
        self.pings.push(PingSent { number, at: now });
        self.say(&Frame::Ping(number.to_be_bytes()));
        Some(number)
    }

    /// Asks to be told who is connected, now and from now on. Needs the mesh key.
    pub fn watch(&mut self) {
        self.say(&Frame::WatchConns);
    }

    /// Has a client's connections to the relay ended. Needs the mesh key.
    pub fn close_peer(&mut self, peer: NodePublic) {
        self.say(&Frame::ClosePeer(peer));
    }

    /// Bytes of the stream, as they arrived.
    pub fn handle_bytes(&mut self, now: Time, mut bytes: &[u8]) {
        let mut decoder = std::mem::take(&mut self.decoder);
        while !self.has_ended() {
            match decoder.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(raw)) => {
                    self.heard = now;
                    match raw.frame() {
                        Ok(Some(frame)) => self.handle_frame(now, &frame),
                        Ok(None) => {}
                        Err(error) if matches!(self.state, State::Greeting) => self.end(Ended::Greeting(error)),
                        Err(_) => self.counters.stray_frames += 1,
                    }
                }
                Err(error) => self.end(error.into()),
            }
        }
        self.decoder = decoder;
    }

    fn handle_frame(&mut self, now: Time, frame: &Frame<'_>) {
        match (&self.state, frame) {
            (State::Greeting, Frame::ServerKey(relay)) => self.introduce(*relay),
            (State::Introduced(shared), Frame::ServerInfo { sealed }) => match shared.open::<ServerInfo>(sealed) {
                Ok(info) => {
                    self.bucket = (info.bytes_per_second > 0).then(|| rate_limit(now, info.bytes_per_second, info.bytes_burst));
                    self.state = State::Ready;
                    self.events.push_back(Event::Ready { info });
                }
                Err(error) => self.end(error.into()),
            },
            // With a fast start the relay's key comes although it is known.
            (State::Introduced(_) | State::Ready, Frame::ServerKey(_)) => {}
            (State::Ready, frame) => self.handle_ready(now, frame),
            _ => self.counters.stray_frames += 1,
        }
    }

    fn handle_ready(&mut self, now: Time, frame: &Frame<'_>) {
        match *frame {
            Frame::RecvPacket { from, packet } => self.events.push_back(Event::Packet { from, bytes: packet.to_vec() }),
            Frame::KeepAlive => {}
            Frame::PeerGone { key, reason } => self.events.push_back(Event::PeerGone { peer: key, reason }),
            Frame::PeerPresent { key, flags, .. } => self.events.push_back(Event::PeerPresent { peer: key, flags }),
            Frame::Ping(data) => self.say(&Frame::Pong(data)),
            Frame::Pong(data) => {
                let number = u64::from_be_bytes(data);
                match self.pings.iter().position(|ping| ping.number == number) {
                    Some(at) => {
                        let ping = self.pings.swap_remove(at);
                        self.events.push_back(Event::Pong { ping: number, after: now.since(ping.at) });
                    }
                    None => self.counters.stray_frames += 1,
                }
            }
            Frame::Health(text) => {
                let text = String::from_utf8_lossy(text.get(..text.len().min(MAX_HEALTH)).unwrap_or_default());
                self.events.push_back(Event::Health((!text.is_empty()).then(|| text.into_owned())));
            }
            Frame::Restarting { reconnect_in, try_for } => self.events.push_back(Event::Restarting { reconnect_in, try_for }),
            Frame::ServerKey(_)
            | Frame::ServerInfo { .. }
            | Frame::ClientInfo { .. }
            | Frame::SendPacket { .. }
            | Frame::NotePreferred(_)
            | Frame::ForwardPacket { .. }
            | Frame::WatchConns
            | Frame::ClosePeer(_) => self.counters.stray_frames += 1,
        }
    }

    /// The next frame to write. Frames may be written right behind the introduction, without waiting to be let in.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        if !matches!(self.state, State::Introduced(_) | State::Ready) {
            return None;
        }
        if self.preferred != self.told_preferred {
            self.told_preferred = self.preferred;
            return Some(Frame::NotePreferred(self.preferred).to_bytes());
        }
        self.control.pop_front().or_else(|| self.disco.pop_front()).or_else(|| self.data.pop_front())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When something is due, and what.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let end = match self.state {
            State::Ended => return None,
            State::Ready => Deadline { at: self.heard + SILENCE, why: "the relay must have said something" },
            State::Greeting | State::Introduced(_) => Deadline { at: self.started + HANDSHAKE, why: "the relay must have let us in" },
        };
        let pings = self.pings.iter().map(|ping| Deadline { at: ping.at + PING, why: "the relay must have answered a ping" });
        pings.chain([end]).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        let (lost, waiting) = std::mem::take(&mut self.pings).into_iter().partition::<Vec<_>, _>(|ping| now >= ping.at + PING);
        self.pings = waiting;
        self.events.extend(lost.into_iter().map(|ping| Event::PingLost { ping: ping.number }));
        match self.state {
            State::Greeting | State::Introduced(_) if now >= self.started + HANDSHAKE => self.end(Ended::Handshake),
            State::Ready if now >= self.heard + SILENCE => self.end(Ended::Silence),
            _ => {}
        }
    }
}
