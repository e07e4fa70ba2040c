//! What a filter looks at in an IP packet (RFC 791, 8200, 9293, 768, 9260, 792, 4443).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::tsmp;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// IPv6 headers that may come before the one that counts.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// More of them than this is nothing anybody sends.
const MAX_EXTENSIONS: usize = 8;

/// A fragment that begins before this many 8-byte units could change the ports of the first one: the longest IPv4 header and a TCP header.
const FIRST_LATER_UNIT: u16 = 10;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) kind: Kind,
}

/// What is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A fragment after the first.
    LaterFragment,
    /// `opens`: it asks for a new connection (SYN without ACK).
    Tcp { source_port: u16, port: u16, opens: bool },
    /// UDP or SCTP.
    Datagram { protocol: u8, source_port: u16, port: u16 },
    /// `asks`: it is neither an echo reply nor an error.
    Icmp { asks: bool },
    /// A message between mesh programs.
    Tsmp,
    /// Any other protocol.
    Other(u8),
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Packet {
    /// Reads the headers; `None` for what cannot be judged.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::v4(bytes),
            6 => Self::v6(bytes),
            _ => None,
        }
    }

    fn v4(bytes: &[u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 0xf) * 4;
        let bytes = bytes.get(..u16_at(bytes, 2)?.into())?;
        if header < 20 {
            return None;
        }
        let body = bytes.get(header..)?;
        let source = Ipv4Addr::from(*bytes.get(12..)?.first_chunk::<4>()?);
        let destination = Ipv4Addr::from(*bytes.get(16..)?.first_chunk::<4>()?);
        let kind = match u16_at(bytes, 6)? & 0x1fff {
            0 => Kind::parse(*bytes.get(9)?, body)?,
            FIRST_LATER_UNIT.. => Kind::LaterFragment,
            _ => return None,
        };
        Some(Self { source: source.into(), destination: destination.into(), kind })
    }

    fn v6(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..40 + usize::from(u16_at(bytes, 4)?))?;
        let source = Ipv6Addr::from(*bytes.get(8..)?.first_chunk::<16>()?);
        let destination = Ipv6Addr::from(*bytes.get(24..)?.first_chunk::<16>()?);
        let kind = v6_kind(*bytes.get(6)?, bytes.get(40..)?)?;
        Some(Self { source: source.into(), destination: destination.into(), kind })
    }
}

/// Walks the extension headers to what counts.
fn v6_kind(mut next: u8, mut body: &[u8]) -> Option<Kind> {
    for _ in 0..MAX_EXTENSIONS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION => 8 * (1 + usize::from(*body.get(1)?)),
            FRAGMENT => {
                match u16_at(body, 2)? >> 3 {
                    0 => {}
                    FIRST_LATER_UNIT.. => return Some(Kind::LaterFragment),
                    _ => return None,
                }
                8
            }
            _ => return Kind::parse(next, body),
        };
        next = *body.first()?;
        body = body.get(length..)?;
    }
    None
}

impl Kind {
    /// From a whole transport header, or at least all of it that counts.
    fn parse(protocol: u8, body: &[u8]) -> Option<Self> {
        Some(match protocol {
            TCP => {
                let flags = *body.get(..20)?.get(13)?;
                Self::Tcp { source_port: u16_at(body, 0)?, port: u16_at(body, 2)?, opens: flags & (SYN | ACK) == SYN }
            }
            UDP | SCTP => {
                let header = if protocol == UDP { 8 } else { 12 };
                let body = body.get(..header)?;
                Self::Datagram { protocol, source_port: u16_at(body, 0)?, port: u16_at(body, 2)? }
            }
            // Echo reply, unreachable, time exceeded, parameter problem.
            ICMP => Self::Icmp { asks: !matches!(body.get(..8)?.first()?, 0 | 3 | 11 | 12) },
            // Unreachable, too big, time exceeded, parameter problem, echo reply.
            ICMPV6 => Self::Icmp { asks: !matches!(body.get(..8)?.first()?, 1..=4 | 129) },
            tsmp::PROTOCOL => Self::Tsmp,
            other => Self::Other(other),
        })
    }
}
