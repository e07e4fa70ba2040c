//! TSMP: the few messages that mesh nodes send one another inside the tunnel, as IP packets of protocol 99.
//!
//! | type | body | meaning |
//! |---|---|---|
//! | `a` | 32 bytes | the sender's disco key, told in each new session, so that peers know it even while the coordinator is away |
//! | `p` | 8 bytes | a ping, which the peer's mesh program answers, not its system |
//! | `o` | the same 8 bytes, u16 | the answer, with the port of the peer API; 0 if there is none |
//! | `!` | protocol, reason, u16, u16, flags | a packet was refused: its source and destination port |
//!
//! Numbers are big-endian; what follows a known body is passed over, for later versions may say more. WireGuard vouches for the sender. None
//! of it is for the system: whoever takes packets out of a tunnel keeps those of this protocol, known or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ident::DiscoPublic;

/// IP protocol 99, "any private encryption scheme".
pub const PROTOCOL: u8 = 99;
const DISCO_KEY: u8 = b'a';
const PING: u8 = b'p';
const PONG: u8 = b'o';
const REJECT: u8 = b'!';
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const HOPS: u8 = 64;
/// In a refusal's flags: the refused end may be out of order, rather than closed.
const MAYBE_BROKEN: u8 = 1;

/// What tells one ping from another.
pub type Token = [u8; 8];

/// A message, and the addresses of the IP header around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The address of the node that says it. In a refusal, the refused packet's destination.
    pub from: IpAddr,
    /// The address it is said to. In a refusal, the refused packet's source.
    pub to: IpAddr,
    /// What is said.
    pub message: Message,
}

/// What one node says to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The sender's disco key.
    DiscoKey(DiscoPublic),
    /// Wants a pong.
    Ping(Token),
    /// Answers a ping.
    Pong {
        /// The ping's.
        token: Token,
        /// Where the sender's peer API listens; 0 if it has none.
        peer_api: u16,
    },
    /// A packet of the receiver's was not let in.
    Reject(Reject),
    /// Not known here, cut short, or a fragment.
    Unknown,
}

/// Which packet was refused, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Its IP protocol number.
    pub protocol: u8,
    /// Why.
    pub reason: Reason,
    /// Its source port.
    pub source_port: u16,
    /// Its destination port.
    pub port: u16,
    /// Whoever refuses suspects a fault rather than a rule.
    pub maybe_broken: bool,
}

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The mesh's policy does not allow it (`A`).
    Policy,
    /// The node lets nothing in (`S`).
    ShieldsUp,
    /// The node does not forward packets, though its routes say so (`F`).
    NotForwarded,
    /// The machine's own firewall (`W`).
    HostFirewall,
    /// An address that an app connector has not given out (`T`).
    UnknownTransit,
    /// A letter that is not known here.
    Other(u8),
}

impl Reason {
    const KNOWN: [(u8, Self); 5] = [
        (b'A', Self::Policy),
        (b'S', Self::ShieldsUp),
        (b'F', Self::NotForwarded),
        (b'W', Self::HostFirewall),
        (b'T', Self::UnknownTransit),
    ];

    fn read(letter: u8) -> Self {
        Self::KNOWN.into_iter().find(|(known, _)| *known == letter).map_or(Self::Other(letter), |(_, reason)| reason)
    }

    fn letter(self) -> u8 {
        match self {
            Self::Other(letter) => letter,
            known => Self::KNOWN.into_iter().find(|(_, reason)| *reason == known).map_or(0, |(letter, _)| letter),
        }
    }
}

impl Packet {
    /// Reads an IP packet of this protocol; `None` for all others. An IPv6 packet with extension headers is one of the others.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let (from, to, header, whole) = match first >> 4 {
            4 if packet.get(9) == Some(&PROTOCOL) => {
                let address = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<4>()?));
                let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?);
                (address(12)?, address(16)?, usize::from(first & 0xf) * 4, fragment & 0x3fff == 0)
            }
            6 if packet.get(6) == Some(&PROTOCOL) => {
                let address = |at: usize| Some(IpAddr::from(*packet.get(at..)?.first_chunk::<16>()?));
                (address(8)?, address(24)?, V6_HEADER, true)
            }
            _ => return None,
        };
        let body = packet.get(header..).filter(|_| whole && header >= V4_HEADER);
        let message = body.and_then(Message::read).unwrap_or(Message::Unknown);
        Some(Self { from, to, message })
    }

    /// The IP packet. `None` if the addresses are of different families, or there is nothing to say.
    pub fn write(&self) -> Option<Vec<u8>> {
        let body = self.message.write();
        if body.is_empty() {
            return None;
        }
        let length = u16::try_from(body.len()).ok()?;
        let header = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => v4_header(from, to, length).to_vec(),
            (IpAddr::V6(from), IpAddr::V6(to)) => v6_header(from, to, length),
            _ => return None,
        };
        Some([header, body].concat())
    }
}

impl Message {
    fn read(body: &[u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        Some(match *kind {
            DISCO_KEY => Self::DiscoKey(DiscoPublic::from_bytes(*rest.first_chunk()?)),
            PING => Self::Ping(*rest.first_chunk()?),
            PONG => {
                let (token, rest) = rest.split_first_chunk()?;
                Self::Pong { token: *token, peer_api: rest.first_chunk().copied().map_or(0, u16::from_be_bytes) }
            }
            REJECT => {
                let ([protocol, reason, a, b, c, d], flags) = rest.split_first_chunk()?;
                Self::Reject(Reject {
                    protocol: *protocol,
                    reason: Reason::read(*reason),
                    source_port: u16::from_be_bytes([*a, *b]),
                    port: u16::from_be_bytes([*c, *d]),
                    maybe_broken: flags.first().is_some_and(|flags| flags & MAYBE_BROKEN != 0),
                })
            }
            _ => return None,
        })
    }

    fn write(&self) -> Vec<u8> {
        match self {
            Self::DiscoKey(key) => [&[DISCO_KEY][..], key.as_bytes()].concat(),
            Self::Ping(token) => [&[PING][..], token].concat(),
            Self::Pong { token, peer_api } => [&[PONG][..], token, &peer_api.to_be_bytes()].concat(),
            Self::Reject(Reject { protocol, reason, source_port, port, maybe_broken }) => {
                let mut body = vec![REJECT, *protocol, reason.letter()];
                body.extend(source_port.to_be_bytes());
                body.extend(port.to_be_bytes());
                // Absent flags are none, and the older form.
                body.extend(maybe_broken.then_some(MAYBE_BROKEN));
                body
            }
            Self::Unknown => Vec::new(),
        }
    }
}

/// RFC 791. One packet, never in pieces, so its identification says nothing (RFC 6864). The body is shorter than a packet can be.
fn v4_header(from: Ipv4Addr, to: Ipv4Addr, body: u16) -> [u8; V4_HEADER] {
    let [a, b, c, d] = from.octets();
    let [e, f, g, h] = to.octets();
    let [high, low] = body.saturating_add(20).to_be_bytes();
    let mut header = [0x45, 0, high, low, 0, 0, 0, 0, HOPS, PROTOCOL, 0, 0, a, b, c, d, e, f, g, h];
    let sum: u32 = header.chunks_exact(2).map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))).sum();
    let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!fold(fold(sum))).to_be_bytes();
    (header[10], header[11]) = (high, low);
    header
}

/// RFC 8200.
fn v6_header(from: Ipv6Addr, to: Ipv6Addr, body: u16) -> Vec<u8> {
    let [high, low] = body.to_be_bytes();
    let start = [0x60, 0, 0, 0, high, low, PROTOCOL, HOPS];
    [&start[..], &from.octets(), &to.octets()].concat()
}
