//! What peers send to a site.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use super::flows::{Flow, Origin};
use super::header::{V4, V6, is_first};
use super::{ICMP, ICMPV6, MIN_MTU, Refusal, Sites, TCP, UDP, V4_HEADER, V6_HEADER, adjust, clamp, icmp};
use crate::tunnel::packet::u16_at;

/// IPv4 packets up to this may be fragmented on their way: their sender has no right to be told of a smaller MTU (RFC 7915, section 5.1).
const MAY_FRAGMENT: usize = MIN_MTU as usize - (V6_HEADER - V4_HEADER);

/// How many counters there are.
const COUNTERS: usize = 256;

/// Where the identifications of packets that may be fragmented come from (RFC 6864, section 4.1): counters, several, so that the packets of
/// one flow are mostly counted one by one, and can be joined.
#[derive(Debug)]
pub struct Identifications([AtomicU16; COUNTERS]);

impl Default for Identifications {
    fn default() -> Self {
        Self([const { AtomicU16::new(0) }; COUNTERS])
    }
}

impl Identifications {
    fn next(&self, machine: Ipv4Addr, segment: &[u8]) -> u16 {
        let ports = u16_at(segment, 0).unwrap_or_default() ^ u16_at(segment, 2).unwrap_or_default();
        let at = usize::from(ports.to_be_bytes().into_iter().chain(machine.octets()).fold(0_u8, |sum, byte| sum.rotate_left(3) ^ byte));
        self.0.get(at).map_or(0, |counter| counter.fetch_add(1, Ordering::Relaxed))
    }
}

/// An IPv6 packet that is an IPv4 packet now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    /// Where in the bytes of the old one it lies.
    pub range: Range<usize>,
    /// The conversation it belongs to, if answers may come.
    pub flow: Option<(Flow, Origin)>,
}

/// Turns a packet for a site behind this node into one from the peer's own IPv4 address, in place.
///
/// # Errors
///
/// The packet is to be dropped, for this reason; its bytes may have been changed.
pub fn to_v4(packet: &mut [u8], peer: Ipv4Addr, sites: &Sites, ids: &Identifications) -> Result<Turned, Refusal> {
    let header = V6::read(packet).filter(|header| header.at + header.length == packet.len()).ok_or(Refusal::Malformed)?;
    let (site, machine) = sites.machine(header.destination)?;
    let segment = packet.get(header.at..).unwrap_or_default();
    let id = match header.fragment {
        Some(fragment) => u16::try_from(fragment.id & 0xffff).unwrap_or_default(),
        None => ids.next(machine, segment),
    };
    let flow = Flow::of_v6(&header, segment, peer, machine).map(|flow| (flow, Origin { site, peer: header.source }));
    let mut turned = V4 {
        class: header.class,
        id,
        may_not_fragment: header.fragment.is_none() && V4_HEADER + header.length > MAY_FRAGMENT,
        fragment: header.fragment,
        hops: header.hops,
        protocol: header.protocol,
        source: peer,
        destination: machine,
        at: header.at,
        length: header.length,
    };
    let mut end = packet.len();
    match header.protocol {
        TCP | UDP if is_first(header.fragment) => {
            let segment = packet.get_mut(header.at..).unwrap_or_default();
            transport(segment, header.protocol, &header, &turned, sites.segment_size())?;
        }
        TCP | UDP => {}
        // Its checksum has the length of the whole in it, which a fragment does not know.
        ICMPV6 if header.fragment.is_none_or(|fragment| fragment.offset == 0 && !fragment.more) => {
            let message = icmp::to_v4(packet, &header, peer, sites.mtu)?;
            (turned.protocol, turned.at, turned.length) = (ICMP, message.start, message.len());
            end = message.end;
        }
        _ => return Err(Refusal::Untranslatable),
    }
    let start = turned.write(packet).ok_or(Refusal::Malformed)?;
    Ok(Turned { range: start..end, flow })
}

fn transport(segment: &mut [u8], protocol: u8, old: &V6, new: &V4, segment_size: u16) -> Result<(), Refusal> {
    // Without a checksum there is no UDP over IPv6 (RFC 8200, section 8.1).
    if segment.len() < 8 || protocol == UDP && u16_at(segment, 6) == Some(0) {
        return Err(Refusal::Malformed);
    }
    adjust(segment, protocol, old.addresses(), new.addresses());
    if protocol == TCP
        && let Some((old, new)) = clamp(segment, segment_size)
    {
        adjust(segment, protocol, old, new);
    }
    Ok(())
}
