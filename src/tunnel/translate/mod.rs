//! From IPv6 to IPv4 and back, for networks of sites that use the same IPv4 addresses ("4via6").
//!
//! A peer sends IPv6 packets to fd7a:115c:a1e0:b1a:0:SITE:a.b.c.d; the router that carries that prefix turns them into IPv4 packets from
//! the peer's own IPv4 address to a.b.c.d, for the kernel to forward like any other. Headers are translated without state, by RFC 7915;
//! what comes back is told from plain IPv4 by [`Flows`]. docs/decisions/4via6.md says what is left out, and why.
//!
//! * [`to_v4`] turns a packet from a peer, in place: IPv4's headers are shorter.
//! * [`to_v6_in_place`] turns what comes back where it lies, super-packets too; [`to_v6`] what that cannot: ICMP, fragments, packets that
//!   get too long.
//!
//! The hop limit is left alone: the kernel that forwards the packet counts the hop.

mod flows;
mod header;
mod icmp;
mod sites;
#[cfg(test)]
mod tests;
mod v4;
mod v6;

pub use flows::{Flow, Flows, Origin};
pub use sites::{Sites, SitesConfig};
pub use v4::{Identifications, Turned, to_v4};
pub use v6::{GROWTH, ROOM, to_v6, to_v6_in_place, too_big};

use super::checksum::Sum;
use super::packet::{put, u16_at};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

/// Without options, as they are written here.
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// The smallest MTU of IPv6 (RFC 8200, section 5).
const MIN_MTU: u16 = 1280;

const SYN: u8 = 0x02;
/// Kinds of TCP options (RFC 9293, section 3.2).
const END: u8 = 0;
const NOTHING: u8 = 1;
const MAX_SEGMENT_SIZE: u8 = 2;

/// Why a packet is not turned. It is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is cut short, or its headers contradict each other.
    Malformed,
    /// There is nothing in the other family that means the same.
    Untranslatable,
    /// No peer may reach that address through here.
    Forbidden,
    /// It gets too long for the tunnel and may not be fragmented: [`too_big`] says so to its sender.
    TooBig,
}

/// What the addresses add to a checksum that covers them.
fn addresses(source: &[u8], destination: &[u8]) -> Sum {
    Sum::default().add(source).add(destination)
}

/// Where the checksum is in a TCP or UDP header.
fn checksum_at(protocol: u8) -> usize {
    if protocol == UDP { 6 } else { 16 }
}

/// Has the checksum of a TCP or UDP header follow a change of what it covers. One that is cut off is none to care for.
fn adjust(segment: &mut [u8], protocol: u8, old: Sum, new: Sum) {
    let at = checksum_at(protocol);
    if let Some(checksum) = segment.get(at..).and_then(|rest| rest.first_chunk::<2>()).copied() {
        let adjusted = Sum::adjusted(checksum, old, new);
        // "None" to UDP; this is the other way to write it (RFC 768).
        put(segment, at, if protocol == UDP && adjusted == [0, 0] { [0xff, 0xff] } else { adjusted });
    }
}

/// Lowers the segment size that the opening of a TCP connection tells, so that packets of that size fit both ways (RFC 9293, section
/// 3.7.1). Says how the sum of the header changed, which has the bytes of the checksum itself in it both times.
fn clamp(segment: &mut [u8], limit: u16) -> Option<(Sum, Sum)> {
    let header = usize::from(*segment.get(12)? >> 4) * 4;
    let header = segment.get_mut(..header).filter(|header| header.get(13).is_some_and(|flags| flags & SYN != 0))?;
    let old = Sum::default().add(header);
    let mut at = 20;
    loop {
        let length = match *header.get(at)? {
            END => return None,
            NOTHING => 1,
            MAX_SEGMENT_SIZE => break,
            _ => usize::from(*header.get(at + 1)?).max(2),
        };
        at += length;
    }
    if *header.get(at + 1)? != 4 || u16_at(header, at + 2)? <= limit {
        return None;
    }
    put(header, at + 2, limit.to_be_bytes());
    Some((old, Sum::default().add(header)))
}
