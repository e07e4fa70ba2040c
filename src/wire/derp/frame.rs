//! The frames: types, payloads, and how they are written.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::{HEADER_LEN, KEY_LEN, MAGIC, MAX_PACKET, MAX_PAYLOAD};
use crate::ident::{NodePublic, RelayPublic};

pub(super) const SERVER_KEY: u8 = 0x01;
pub(super) const CLIENT_INFO: u8 = 0x02;
pub(super) const SERVER_INFO: u8 = 0x03;
pub(super) const SEND_PACKET: u8 = 0x04;
pub(super) const RECV_PACKET: u8 = 0x05;
pub(super) const KEEP_ALIVE: u8 = 0x06;
pub(super) const NOTE_PREFERRED: u8 = 0x07;
pub(super) const PEER_GONE: u8 = 0x08;
pub(super) const PEER_PRESENT: u8 = 0x09;
pub(super) const FORWARD_PACKET: u8 = 0x0a;
pub(super) const WATCH_CONNS: u8 = 0x10;
pub(super) const CLOSE_PEER: u8 = 0x11;
pub(super) const PING: u8 = 0x12;
pub(super) const PONG: u8 = 0x13;
pub(super) const HEALTH: u8 = 0x14;
pub(super) const RESTARTING: u8 = 0x15;

/// What a client says of itself fits into a few hundred bytes; strangers are given no more room than this.
const MAX_INFO: usize = 8 * 1024;
/// Frames with fixed fields, and room for fields of later versions.
const MAX_SMALL: usize = 1024;

/// Why a frame was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its type asks for.
    #[error("a frame of type {0:#04x} is cut short")]
    Short(u8),
    /// The relay's first frame has another magic.
    #[error("the other side is no relay")]
    Magic,
}

/// Why a peer is gone. Unknown reasons are read as `Disconnected`, as is none (old relays).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GoneReason {
    /// It was connected here and no longer is.
    Disconnected,
    /// It is not connected here.
    NotHere,
}

/// What kind of client is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PresentFlags(pub u8);

impl PresentFlags {
    /// A node.
    pub const REGULAR: Self = Self(1);
    /// Another relay of the region.
    pub const MESH_PEER: Self = Self(2);
    /// A monitoring program.
    pub const PROBER: Self = Self(4);
    /// A node that would rather be at another relay of the region.
    pub const NOT_IDEAL: Self = Self(8);

    /// Both sets of flags.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One frame; packets and boxes are borrowed from where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The relay's first: who it is. Fields of later versions are passed over.
    ServerKey(RelayPublic),
    /// The client's first.
    ClientInfo {
        /// Who the client claims to be; the box proves it.
        key: NodePublic,
        /// Nonce and box, see [`super::ClientInfo`].
        sealed: &'a [u8],
    },
    /// The relay lets the client in.
    ServerInfo {
        /// Nonce and box, see [`super::ServerInfo`].
        sealed: &'a [u8],
    },
    /// Client to relay: a packet for another client.
    SendPacket {
        /// Whom it is for.
        to: NodePublic,
        /// The packet.
        packet: &'a [u8],
    },
    /// Relay to client: a packet from another client. The key is the sender's proven one.
    RecvPacket {
        /// Who sent it.
        from: NodePublic,
        /// The packet.
        packet: &'a [u8],
    },
    /// Relay to client, each minute.
    KeepAlive,
    /// Client to relay: whether this is its home.
    NotePreferred(bool),
    /// Relay to client: a peer cannot be reached here.
    PeerGone {
        /// Which.
        key: NodePublic,
        /// Why.
        reason: GoneReason,
    },
    /// Relay to relay: a client is connected here.
    PeerPresent {
        /// Which.
        key: NodePublic,
        /// From where.
        address: Option<SocketAddr>,
        /// Of what kind.
        flags: PresentFlags,
    },
    /// Relay to relay: a packet from a client here to a client there.
    ForwardPacket {
        /// Who sent it.
        from: NodePublic,
        /// Whom it is for.
        to: NodePublic,
        /// The packet.
        packet: &'a [u8],
    },
    /// Relay to relay: "tell me who is connected, now and from now on".
    WatchConns,
    /// Relay to relay: "end this client's connections".
    ClosePeer(NodePublic),
    /// Either way: to be answered with the same bytes.
    Ping([u8; 8]),
    /// The answer.
    Pong([u8; 8]),
    /// Relay to client: something is wrong with this connection; empty once it is right again.
    Health(&'a [u8]),
    /// Relay to client: the relay is about to restart.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// For how long to try before another relay is better.
        try_for: Duration,
    },
}

/// The most bytes that are held of a frame's payload; `None` if the type is not known and its payload is passed over.
pub(super) fn held(kind: u8) -> Option<usize> {
    match kind {
        CLIENT_INFO | SERVER_INFO => Some(MAX_INFO),
        SEND_PACKET | RECV_PACKET => Some(KEY_LEN + MAX_PACKET),
        FORWARD_PACKET => Some(2 * KEY_LEN + MAX_PACKET),
        SERVER_KEY | KEEP_ALIVE | NOTE_PREFERRED | PEER_GONE | PEER_PRESENT | WATCH_CONNS | CLOSE_PEER | PING | PONG | HEALTH
        | RESTARTING => Some(MAX_SMALL),
        _ => None,
    }
}

fn node(payload: &[u8], short: FrameError) -> Result<(NodePublic, &[u8]), FrameError> {
    let (key, rest) = payload.split_first_chunk().ok_or(short)?;
    Ok((NodePublic::from_bytes(*key), rest))
}

fn millis(payload: &[u8]) -> Option<(Duration, &[u8])> {
    let (bytes, rest) = payload.split_first_chunk()?;
    Some((Duration::from_millis(u32::from_be_bytes(*bytes).into()), rest))
}

fn present(rest: &[u8]) -> (Option<SocketAddr>, PresentFlags) {
    let Some((ip, rest)) = rest.split_first_chunk::<16>() else { return (None, PresentFlags::default()) };
    let Some((port, rest)) = rest.split_first_chunk() else { return (None, PresentFlags::default()) };
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*ip)).to_canonical(), u16::from_be_bytes(*port));
    let known = !(address.ip().is_unspecified() && address.port() == 0);
    (known.then_some(address), rest.first().map_or(PresentFlags::default(), |flags| PresentFlags(*flags)))
}

impl<'a> Frame<'a> {
    /// Reads a payload; `None` for a type that is not known. What follows the known fields is passed over.
    ///
    /// # Errors
    /// Too short, or a relay's greeting that is none.
    pub fn decode(kind: u8, payload: &'a [u8]) -> Result<Option<Self>, FrameError> {
        let short = FrameError::Short(kind);
        let frame = match kind {
            SERVER_KEY => {
                let (magic, rest) = payload.split_first_chunk().ok_or(short)?;
                let key = rest.first_chunk().ok_or(short)?;
                if *magic != MAGIC {
                    return Err(FrameError::Magic);
                }
                Self::ServerKey(RelayPublic::from_bytes(*key))
            }
            CLIENT_INFO => {
                let (key, sealed) = node(payload, short)?;
                Self::ClientInfo { key, sealed }
            }
            SERVER_INFO => Self::ServerInfo { sealed: payload },
            SEND_PACKET => {
                let (to, packet) = node(payload, short)?;
                Self::SendPacket { to, packet }
            }
            RECV_PACKET => {
                let (from, packet) = node(payload, short)?;
                Self::RecvPacket { from, packet }
            }
            KEEP_ALIVE => Self::KeepAlive,
            NOTE_PREFERRED => Self::NotePreferred(*payload.first().ok_or(short)? != 0),
            PEER_GONE => {
                let (key, rest) = node(payload, short)?;
                let reason = if rest.first() == Some(&1) { GoneReason::NotHere } else { GoneReason::Disconnected };
                Self::PeerGone { key, reason }
            }
            PEER_PRESENT => {
                let (key, rest) = node(payload, short)?;
                let (address, flags) = present(rest);
                Self::PeerPresent { key, address, flags }
            }
            FORWARD_PACKET => {
                let (from, rest) = node(payload, short)?;
                let (to, packet) = node(rest, short)?;
                Self::ForwardPacket { from, to, packet }
            }
            WATCH_CONNS => Self::WatchConns,
            CLOSE_PEER => Self::ClosePeer(node(payload, short)?.0),
            PING => Self::Ping(*payload.first_chunk().ok_or(short)?),
            PONG => Self::Pong(*payload.first_chunk().ok_or(short)?),
            HEALTH => Self::Health(payload),
            RESTARTING => {
                let (reconnect_in, rest) = millis(payload).ok_or(short)?;
                let (try_for, _) = millis(rest).ok_or(short)?;
                Self::Restarting { reconnect_in, try_for }
            }
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    /// Appends the frame, header included. Payloads beyond the limits are the caller's fault and are cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::ServerKey(key) => write(out, SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Self::ClientInfo { key, sealed } => write(out, CLIENT_INFO, &[key.as_bytes(), sealed]),
            Self::ServerInfo { sealed } => write(out, SERVER_INFO, &[sealed]),
            Self::SendPacket { to, packet } => write(out, SEND_PACKET, &[to.as_bytes(), packet]),
            Self::RecvPacket { from, packet } => write(out, RECV_PACKET, &[from.as_bytes(), packet]),
            Self::KeepAlive => write(out, KEEP_ALIVE, &[]),
            Self::NotePreferred(home) => write(out, NOTE_PREFERRED, &[&[u8::from(*home)]]),
            Self::PeerGone { key, reason } => write(out, PEER_GONE, &[key.as_bytes(), &[u8::from(*reason == GoneReason::NotHere)]]),
            Self::PeerPresent { key, address, flags } => {
                let address = address.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into());
                let ip = match address.ip() {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                write(out, PEER_PRESENT, &[key.as_bytes(), &ip.octets(), &address.port().to_be_bytes(), &[flags.0]]);
            }
            Self::ForwardPacket { from, to, packet } => write(out, FORWARD_PACKET, &[from.as_bytes(), to.as_bytes(), packet]),
            Self::WatchConns => write(out, WATCH_CONNS, &[]),
            Self::ClosePeer(key) => write(out, CLOSE_PEER, &[key.as_bytes()]),
            Self::Ping(data) => write(out, PING, &[data]),
            Self::Pong(data) => write(out, PONG, &[data]),
            Self::Health(text) => write(out, HEALTH, &[text]),
            Self::Restarting { reconnect_in, try_for } => {
                let millis = |time: &Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX).to_be_bytes();
                write(out, RESTARTING, &[&millis(reconnect_in), &millis(try_for)]);
            }
        }
    }

    /// The frame's bytes, header included.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + 2 * KEY_LEN);
        self.encode(&mut out);
        out
    }
}

fn write(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>().min(MAX_PAYLOAD);
    out.reserve(HEADER_LEN + length);
    out.push(kind);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
    let mut left = length;
    for part in parts {
        let taken = part.get(..left.min(part.len())).unwrap_or_default();
        out.extend_from_slice(taken);
        left -= taken.len();
    }
}

/// A `RecvPacket` frame in a buffer of exactly its size: what a relay makes of each packet.
pub fn packet_frame(from: &NodePublic, packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + KEY_LEN + packet.len());
    Frame::RecvPacket { from: *from, packet }.encode(&mut out);
    out
}
