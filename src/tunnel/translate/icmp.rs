//! ICMP and ICMPv6: pings, and errors with the packet they are about (RFC 7915, sections 4.2, 4.3, 5.2, 5.3).
//!
//! Extensions of errors (RFC 4884) are left out rather than moved.

use std::net::Ipv4Addr;
use std::ops::Range;

use super::super::checksum::Sum;
use super::super::packet::{put, u16_at, u32_at};
use super::flows::{Flow, Origin};
use super::header::{V4, V6, is_first};
use super::{ICMP, ICMPV6, MIN_MTU, Refusal, TCP, UDP, V4_HEADER, V6_HEADER, adjust};
use crate::ident::Via;

/// Type, code, checksum and the four bytes that differ.
const HEADER: usize = 8;

const V4_ECHO_REPLY: u8 = 0;
const V4_UNREACHABLE: u8 = 3;
const V4_ECHO: u8 = 8;
const V4_TIME_EXCEEDED: u8 = 11;
const V4_PARAMETER: u8 = 12;

const V6_UNREACHABLE: u8 = 1;
const V6_TOO_BIG: u8 = 2;
const V6_TIME_EXCEEDED: u8 = 3;
const V6_PARAMETER: u8 = 4;
const V6_ECHO: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// What paths usually carry, for routers that do not say (RFC 1191, section 7.1).
const PLATEAUS: [u16; 8] = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006];

/// Type, code, and the four bytes after the checksum.
type Head = (u8, u8, u32);

/// By how much a packet grows, and an MTU shrinks.
fn difference() -> u16 {
    u16::try_from(V6_HEADER - V4_HEADER).unwrap_or_default()
}

/// An ICMPv6 error's head in ICMP; `mtu` is the tunnel's.
fn head_to_v4((kind, code, word): Head, mtu: u16) -> Option<Head> {
    Some(match (kind, code) {
        (V6_UNREACHABLE, 0 | 2 | 3) => (V4_UNREACHABLE, 1, 0),
        (V6_UNREACHABLE, 1) => (V4_UNREACHABLE, 10, 0),
        (V6_UNREACHABLE, 4) => (V4_UNREACHABLE, 3, 0),
        (V6_TOO_BIG, _) => (V4_UNREACHABLE, 4, word.min(mtu.into()).saturating_sub(difference().into())),
        (V6_TIME_EXCEEDED, _) => (V4_TIME_EXCEEDED, code, 0),
        (V6_PARAMETER, 0) => (V4_PARAMETER, 0, u32::from(pointer_to_v4(word)?) << 24),
        (V6_PARAMETER, 1) => (V4_UNREACHABLE, 2, 0),
        _ => return None,
    })
}

/// An ICMP error's head in ICMPv6. `quoted` is the length of the packet that the error is about.
fn head_to_v6((kind, code, word): Head, quoted: usize, mtu: u16) -> Option<Head> {
    Some(match (kind, code) {
        (V4_UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => (V6_UNREACHABLE, 0, 0),
        // The next header's place in an IPv6 header.
        (V4_UNREACHABLE, 2) => (V6_PARAMETER, 1, 6),
        (V4_UNREACHABLE, 3) => (V6_UNREACHABLE, 4, 0),
        (V4_UNREACHABLE, 4) => {
            let told = u16::try_from(word & 0xffff).unwrap_or_default();
            let lower = || PLATEAUS.into_iter().find(|plateau| usize::from(*plateau) < quoted).unwrap_or(MIN_MTU);
            let v4 = if told == 0 { lower() } else { told };
            (V6_TOO_BIG, 0, v4.saturating_add(difference()).min(mtu).max(MIN_MTU).into())
        }
        (V4_UNREACHABLE, 9 | 10 | 13 | 15) => (V6_UNREACHABLE, 1, 0),
        (V4_TIME_EXCEEDED, _) => (V6_TIME_EXCEEDED, code, 0),
        (V4_PARAMETER, 0 | 2) => (V6_PARAMETER, 0, pointer_to_v6(word >> 24)?.into()),
        _ => return None,
    })
}

/// Where in the other header the faulty byte is (RFC 7915, figure 6).
fn pointer_to_v4(v6: u32) -> Option<u8> {
    Some(match v6 {
        0 => 0,
        1 => 1,
        4 | 5 => 2,
        6 => 9,
        7 => 8,
        8..=23 => 12,
        24..=39 => 16,
        _ => return None,
    })
}

/// The same the other way (RFC 7915, figure 3).
fn pointer_to_v6(v4: u32) -> Option<u8> {
    Some(match v4 {
        0 => 0,
        1 => 1,
        2 | 3 => 4,
        8 => 7,
        9 => 6,
        12..=15 => 8,
        16..=19 => 24,
        _ => return None,
    })
}

fn head(message: &[u8]) -> Option<Head> {
    Some((*message.first()?, *message.get(1)?, u32_at(message, 4)?))
}

/// Gives a ping another type. The checksum follows, also where the addresses come or go that ICMPv6 has in it.
fn retype(message: &mut [u8], kind: u8, old: Sum, new: Sum) {
    let Some([before, code, c0, c1]) = message.first_chunk::<4>().copied() else { return };
    let checksum = Sum::adjusted([c0, c1], old.add(&[before, code]), new.add(&[kind, code]));
    put(message, 0, [kind, code]);
    put(message, 2, checksum);
}

/// Turns the message behind an IPv6 header, in place. Says where it is afterwards.
pub(super) fn to_v4(packet: &mut [u8], outer: &V6, peer: Ipv4Addr, mtu: u16) -> Result<Range<usize>, Refusal> {
    let message = packet.get_mut(outer.at..).unwrap_or_default();
    let head @ (kind, ..) = head(message).ok_or(Refusal::Malformed)?;
    if let Some(kind) = ping_to_v4(kind) {
        retype(message, kind, outer.pseudo(), Sum::default());
        return Ok(outer.at..packet.len());
    }
    let (kind, code, word) = head_to_v4(head, mtu).ok_or(Refusal::Untranslatable)?;
    // It gets a new checksum, which must not make it right.
    if !outer.pseudo().add(message).is_valid() {
        return Err(Refusal::Malformed);
    }
    let quote_at = outer.at + HEADER;
    let quote = match head {
        // The first of the four bytes is the quote's length, in units of eight.
        (V6_UNREACHABLE | V6_TIME_EXCEEDED, _, word) => quote(message, usize::try_from(word >> 24).unwrap_or_default() * 8),
        _ => quote(message, 0),
    };
    let quote = quote.ok_or(Refusal::Malformed)?;
    let end = quote_at + quote.len();
    let quoted = V6::read(quote).ok_or(Refusal::Malformed)?;
    let (_, machine) = Via::parts(quoted.source).ok_or(Refusal::Untranslatable)?;
    let at = quote_at + quoted.at;
    let inner = V4 {
        class: quoted.class,
        id: quoted.fragment.map_or(0, |fragment| u16::try_from(fragment.id & 0xffff).unwrap_or_default()),
        may_not_fragment: false,
        fragment: quoted.fragment,
        hops: quoted.hops,
        protocol: if quoted.protocol == ICMPV6 { ICMP } else { quoted.protocol },
        source: machine,
        destination: peer,
        at,
        length: quoted.length,
    };
    let segment = packet.get_mut(at..end).ok_or(Refusal::Malformed)?;
    match quoted.protocol {
        TCP | UDP if is_first(quoted.fragment) => adjust(segment, quoted.protocol, quoted.addresses(), inner.addresses()),
        TCP | UDP => {}
        ICMPV6 if quoted.fragment.is_none() => {
            let kind = segment.first().and_then(|kind| ping_to_v4(*kind)).ok_or(Refusal::Untranslatable)?;
            retype(segment, kind, quoted.pseudo(), Sum::default());
        }
        _ => return Err(Refusal::Untranslatable),
    }
    let start = inner.write(packet).and_then(|start| start.checked_sub(HEADER)).ok_or(Refusal::Malformed)?;
    finish(packet.get_mut(start..end).ok_or(Refusal::Malformed)?, (kind, code, word), Sum::default());
    Ok(start..end)
}

/// Writes an error's head and checksum.
fn finish(message: &mut [u8], (kind, code, word): Head, pseudo: Sum) {
    put(message, 0, [kind, code, 0, 0]);
    put(message, 4, word.to_be_bytes());
    let checksum = pseudo.add(message).checksum();
    put(message, 2, checksum);
}

fn ping_to_v4(kind: u8) -> Option<u8> {
    match kind {
        V6_ECHO => Some(V4_ECHO),
        V6_ECHO_REPLY => Some(V4_ECHO_REPLY),
        _ => None,
    }
}

fn ping_to_v6(kind: u8) -> Option<u8> {
    match kind {
        V4_ECHO => Some(V6_ECHO),
        V4_ECHO_REPLY => Some(V6_ECHO_REPLY),
        _ => None,
    }
}

/// The packet that an error quotes: so many bytes of what follows the head if extensions come after it, else all (RFC 4884, section 4).
fn quote(message: &[u8], length: usize) -> Option<&[u8]> {
    let quote = message.get(HEADER..)?;
    if length == 0 { Some(quote) } else { quote.get(..length) }
}

/// Turns the message of a whole IPv4 packet into one at `outer.at` of the room, whose type and length `outer` then has.
pub(super) fn to_v6(message: &[u8], origin: Origin, outer: &mut V6, mtu: u16, room: &mut [u8]) -> Result<(), Refusal> {
    outer.protocol = ICMPV6;
    let head @ (kind, ..) = head(message).ok_or(Refusal::Malformed)?;
    if let Some(kind) = ping_to_v6(kind) {
        let place = room.get_mut(outer.at..outer.at + message.len()).ok_or(Refusal::TooBig)?;
        place.copy_from_slice(message);
        retype(place, kind, Sum::default(), outer.pseudo());
        return Ok(());
    }
    if !Sum::default().add(message).is_valid() {
        return Err(Refusal::Malformed);
    }
    let quote = quote_in_v4(message).ok_or(Refusal::Malformed)?;
    let quoted = V4::read(quote).ok_or(Refusal::Malformed)?;
    let head = head_to_v6(head, quoted.at + quoted.length, mtu).ok_or(Refusal::Untranslatable)?;
    let mut inner = V6 {
        class: quoted.class,
        hops: quoted.hops,
        source: origin.peer,
        destination: Via::address(origin.site, quoted.destination),
        fragment: quoted.fragment,
        protocol: if quoted.protocol == ICMP { ICMPV6 } else { quoted.protocol },
        at: 0,
        length: quoted.length,
    };
    inner.at = outer.at + HEADER + inner.header_length();
    // An error is not to be fragmented itself (RFC 4443, section 2.4).
    let most = usize::from(MIN_MTU) - V6_HEADER - HEADER - inner.header_length();
    let segment = quote.get(quoted.at..).unwrap_or_default();
    let segment = segment.get(..most).unwrap_or(segment);
    let place = room.get_mut(inner.at..inner.at + segment.len()).ok_or(Refusal::TooBig)?;
    place.copy_from_slice(segment);
    match quoted.protocol {
        UDP if u16_at(place, 6) == Some(0) => {}
        TCP | UDP if is_first(quoted.fragment) => adjust(place, quoted.protocol, quoted.addresses(), inner.addresses()),
        TCP | UDP => {}
        ICMP if quoted.fragment.is_none() => {
            let kind = place.first().and_then(|kind| ping_to_v6(*kind)).ok_or(Refusal::Untranslatable)?;
            retype(place, kind, Sum::default(), inner.pseudo());
        }
        _ => return Err(Refusal::Untranslatable),
    }
    let end = inner.at + segment.len();
    inner.write(room).ok_or(Refusal::Malformed)?;
    outer.length = end - outer.at;
    finish(room.get_mut(outer.at..end).ok_or(Refusal::Malformed)?, head, outer.pseudo());
    Ok(())
}

fn quote_in_v4(message: &[u8]) -> Option<&[u8]> {
    match *message.first()? {
        // The second of the four bytes is the quote's length, in units of four.
        V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER => quote(message, usize::from(*message.get(5)?) * 4),
        _ => None,
    }
}

/// The flow that an error to a peer is about: the peer's own packet is quoted.
pub(super) fn quoted_flow(header: &V4, message: &[u8]) -> Option<Flow> {
    let quote = quote_in_v4(message).filter(|_| header.protocol == ICMP)?;
    let quoted = V4::read(quote).filter(|quoted| quoted.source == header.destination)?;
    Flow::forth(&quoted, quote.get(quoted.at..)?)
}

/// Whether a message is an error, which no error answers (RFC 1122, section 3.2.2).
pub(super) fn is_error(message: &[u8]) -> bool {
    message.first().is_none_or(|kind| !matches!(*kind, V4_ECHO | V4_ECHO_REPLY))
}

/// The error that says what fits, about a packet of which so much is quoted.
pub(super) fn write_too_big(message: &mut [u8], mtu: u16, quote: &[u8]) {
    if let Some(place) = message.get_mut(HEADER..HEADER + quote.len()) {
        place.copy_from_slice(quote);
    }
    finish(message, (V4_UNREACHABLE, 4, mtu.into()), Sum::default());
}

/// Bytes of such an error.
pub(super) fn too_big_length(quote: &[u8]) -> usize {
    HEADER + quote.len()
}
