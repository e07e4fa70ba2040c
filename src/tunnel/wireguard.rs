//! One peer's WireGuard: boringtun's state machine, with its results turned into values.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use x25519_dalek::{PublicKey, StaticSecret};

use super::demux::{self, Kind};
use super::{MIN_ROOM, OVERHEAD};
use crate::ident::{NodePrivate, NodePublic};

/// Why a packet was dropped. For counting, not for the user: anyone can send anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Sealed with other keys, or changed on the way.
    Forged,
    /// Not a WireGuard message, or what it holds is not an IP packet.
    Malformed,
    /// A session or handshake we do not have (any more).
    NoSession,
    /// Seen before, or too old.
    Replayed,
}

impl From<WireGuardError> for Refusal {
    fn from(error: WireGuardError) -> Self {
        use WireGuardError as E;
        match error {
            E::WrongKey | E::InvalidMac | E::InvalidAeadTag | E::UnderLoad => Self::Forged,
            E::InvalidTai64nTimestamp | E::WrongTai64nTimestamp | E::InvalidCounter | E::DuplicateCounter => Self::Replayed,
            E::WrongIndex | E::UnexpectedPacket | E::NoCurrentSession | E::ConnectionExpired => Self::NoSession,
            E::DestinationBufferTooSmall | E::IncorrectPacketLength | E::WrongPacketType | E::InvalidPacket | E::LockFailed => {
                Self::Malformed
            }
        }
    }
}

/// What became of a packet to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// The first so many bytes of the room are a data packet for the peer.
    Data(usize),
    /// There is no session yet. The packet waits; the first so many bytes of the room are a handshake initiation to send.
    Initiation(usize),
    /// There is no session yet and a handshake is under way: the packet waits (or is dropped, if 256 already wait).
    Waiting,
}

/// What a received message held.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened<'a> {
    /// An IP packet from the peer, with its source address.
    Packet(&'a mut [u8], IpAddr),
    /// Authentic, nothing for the TUN (a keepalive, a cookie).
    Nothing,
    /// Authentic handshake message; send this back to where it came from. If `established`, a session is ready from now on.
    Reply {
        /// A handshake response or a first (empty) data packet.
        message: &'a [u8],
        /// Whether we may send data now; the responder may only once the initiator's first data packet has come.
        established: bool,
    },
    /// Drop it.
    Refused(Refusal),
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Nothing.
    Nothing,
    /// The first so many bytes of the room are a handshake initiation to send (again).
    Initiation(usize),
    /// The first so many bytes of the room are a keepalive to send.
    Keepalive(usize),
}

/// WireGuard with one peer. Not shared between threads without a lock.
pub struct Tunnel {
    tunn: Tunn,
    waiting: bool,
    answer: Answer,
    /// The numbers of the last two sessions that something was heard in.
    heard: [Option<u8>; 2],
}

/// What is known of the peer's answer to our last initiation.
///
/// The same initiation goes out by several ways at once, and wireguard-go, which works on handshakes in parallel, may answer two copies of
/// it that arrive together. We have the session of the first answer then, the peer that of the second, and neither can read the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Nothing to doubt: none came, or something has come in the session since.
    Settled,
    /// One came, and nothing in the session yet.
    Unheard,
    /// Another came as well.
    Doubted,
}

/// A second answer counts for this long after the first.
const SECOND_ANSWER: Duration = Duration::from_secs(1);
/// Initiations that follow each other closer than 20 ms are dropped by wireguard-go.
pub(super) const INITIATION_GAP: Duration = Duration::from_millis(25);

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

/// The low bits of a session index count sessions; the rest is the tunnel's own index.
const SESSION_BITS: u32 = 8;
/// How many tunnels one node can have: what is left of 32 bits.
pub const MAX_TUNNELS: u32 = 1 << (32 - SESSION_BITS);

impl Tunnel {
    /// A tunnel to a peer. `index` (below 2^24, unique in this node) is what the peer's messages will carry, see [`Tunnel::index_of`].
    pub fn new(own: &NodePrivate, peer: &NodePublic, index: u32) -> Self {
        let secret = StaticSecret::from(*own.as_bytes());
        // The load limit is the gate's, before any tunnel; this one must never trip, or handshakes would be counted twice.
        let limiter = Arc::new(RateLimiter::new(&PublicKey::from(&secret), u64::MAX));
        let tunn = Tunn::new(secret, PublicKey::from(*peer.as_bytes()), None, None, index % MAX_TUNNELS, Some(limiter));
        Self { tunn, waiting: false, answer: Answer::Settled, heard: [None; 2] }
    }

    /// The tunnel's own index in the index that a message carries.
    pub const fn index_of(receiver: u32) -> u32 {
        receiver >> SESSION_BITS
    }

    /// The destination of an IP packet.
    pub fn destination(packet: &[u8]) -> Option<IpAddr> {
        Tunn::dst_address(packet)
    }

    /// Seals an IP packet into `room`, which must hold the packet and [`OVERHEAD`], and at least [`MIN_ROOM`] bytes;
    /// a smaller one is our defect and gives [`Sealed::Waiting`] with the packet dropped.
    pub fn seal(&mut self, packet: &[u8], room: &mut [u8]) -> Sealed {
        if room.len() < MIN_ROOM.max(packet.len().saturating_add(OVERHEAD)) {
            debug_assert!(false, "the room is too small");
            return Sealed::Waiting;
        }
        match self.tunn.encapsulate(packet, room) {
            TunnResult::WriteToNetwork(message) => match demux::classify(message) {
                Kind::Data { .. } => Sealed::Data(message.len()),
                _ => {
                    self.waiting = true;
                    Sealed::Initiation(message.len())
                }
            },
            _ => {
                self.waiting = true;
                Sealed::Waiting
            }
        }
    }

    /// Opens a message that came from `from`. `room` must be at least as long as the message and [`MIN_ROOM`].
    pub fn open<'a>(&mut self, from: IpAddr, message: &[u8], room: &'a mut [u8]) -> Opened<'a> {
        if message.is_empty() || room.len() < MIN_ROOM.max(message.len()) {
            return Opened::Refused(Refusal::Malformed);
        }
        match self.tunn.decapsulate(Some(from), message, room) {
            TunnResult::Done => {
                self.answer = Answer::Settled;
                Opened::Nothing
            }
            TunnResult::Err(error) => {
                let second = self.answer == Answer::Unheard && self.session_age().is_some_and(|age| age < SECOND_ANSWER);
                if second && matches!(demux::classify(message), Kind::Response { .. }) {
                    self.answer = Answer::Doubted;
                }
                Opened::Refused(error.into())
            }
            TunnResult::WriteToNetwork(message) => {
                let established = matches!(demux::classify(message), Kind::Data { .. });
                if established {
                    self.answer = Answer::Unheard;
                }
                Opened::Reply { message, established }
            }
            TunnResult::WriteToTunnelV4(packet, source) => {
                self.answer = Answer::Settled;
                Opened::Packet(packet, source.into())
            }
            TunnResult::WriteToTunnelV6(packet, source) => {
                self.answer = Answer::Settled;
                Opened::Packet(packet, source.into())
            }
        }
    }

    /// Whether something authentic that named this receiver is the first of its session. What comes late in the session before is not.
    pub fn begins(&mut self, receiver: u32) -> bool {
        let [number, ..] = receiver.to_le_bytes();
        let [last, before] = self.heard;
        let begins = last != Some(number) && before != Some(number);
        if begins {
            self.heard = [Some(number), last];
        }
        begins
    }

    /// Whether packets wait for a session; after something authentic came, [`Tunnel::release`] may send them.
    pub fn has_waiting(&self) -> bool {
        self.waiting
    }

    /// Seals the next waiting packet into `room`; `None` if none waits or there is still no session.
    pub fn release(&mut self, room: &mut [u8]) -> Option<usize> {
        if !self.waiting || !self.has_session() || room.len() < MIN_ROOM {
            return None;
        }
        match self.tunn.decapsulate(None, &[], room) {
            TunnResult::WriteToNetwork(message) if matches!(demux::classify(message), Kind::Data { .. }) => Some(message.len()),
            TunnResult::WriteToNetwork(_) => None,
            _ => {
                self.waiting = false;
                None
            }
        }
    }

    /// Runs the timers; to be called about every 250 ms. `room` must hold [`MIN_ROOM`] bytes.
    pub fn tick(&mut self, room: &mut [u8]) -> Tick {
        if room.len() < MIN_ROOM {
            return Tick::Nothing;
        }
        if self.answer == Answer::Doubted && self.session_age().is_none_or(|age| age >= INITIATION_GAP) {
            // Once for each session: whoever repeats an answer brings about one handshake more, at most.
            self.answer = Answer::Settled;
            if let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(room, true) {
                return Tick::Initiation(message.len());
            }
            return Tick::Nothing;
        }
        match self.tunn.update_timers(room) {
            TunnResult::WriteToNetwork(message) => match demux::classify(message) {
                Kind::Data { .. } => Tick::Keepalive(message.len()),
                _ => Tick::Initiation(message.len()),
            },
            _ => Tick::Nothing,
        }
    }

    /// Starts a handshake unless one is under way; the length of the initiation in `room`.
    pub fn initiate(&mut self, room: &mut [u8]) -> Option<usize> {
        if room.len() < MIN_ROOM {
            return None;
        }
        match self.tunn.format_handshake_initiation(room, false) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Starts a handshake unless there is a session. One that is under way is started anew: the peer could not answer it.
    pub fn meet(&mut self, room: &mut [u8]) -> Option<usize> {
        if self.has_session() || room.len() < MIN_ROOM {
            return None;
        }
        match self.tunn.format_handshake_initiation(room, true) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Drops all sessions: the peer has lost its own. Packets that wait go on waiting, for the next handshake.
    pub fn forget_sessions(&mut self, own: &NodePrivate) {
        let secret = StaticSecret::from(*own.as_bytes());
        let public = PublicKey::from(&secret);
        // The only way boringtun offers; the key is the same as before.
        let limiter = Arc::new(RateLimiter::new(&public, u64::MAX));
        self.tunn.set_static_private(secret, public, Some(limiter));
        self.heard = [None; 2];
    }

    /// An empty data packet, if there is a session to send it in. Unlike [`Tunnel::seal`] it starts no handshake.
    pub fn keepalive(&mut self, room: &mut [u8]) -> Option<usize> {
        if !self.has_session() || room.len() < MIN_ROOM {
            return None;
        }
        match self.tunn.encapsulate(&[], room) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }

    /// Whether data can be sent now.
    pub fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    /// How long ago the session in use was agreed on.
    pub fn session_age(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
}
