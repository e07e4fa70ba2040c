//! Which conversations came in as IPv6, so that their answers leave as IPv6.
//!
//! A machine at a site answers the peer's IPv4 address. The same peer may talk to the same machine by plain IPv4, through a route of that
//! family; the ports tell the two apart. Where they are the same, the family in which the peer spoke last has the answers.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::super::packet::u16_at;
use super::header::{V4, V6, is_first};
use super::{ICMP, ICMPV6, TCP, UDP};
use crate::time::Time;

/// Flows of one generation. Two are kept, so that at least this many of those used last are known.
const GENERATION: usize = 16_384;
/// Packets in fragments that are on their way at a time.
const FRAGMENTED: usize = 64;

/// How long a flow is known after its last packet (RFC 6146, section 4: 2 h 4 min at least for TCP, 5 min, 60 s; conntrack decides for its
/// own).
const TCP_IDLE: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
const UDP_IDLE: Duration = Duration::from_secs(5 * 60);
const ICMP_IDLE: Duration = Duration::from_secs(60);
/// How long the rest of a fragmented packet is waited for (RFC 6146, section 3.4: 2 s at least).
const FRAGMENT_IDLE: Duration = Duration::from_secs(15);

/// A conversation, as it is in IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The peer's own IPv4 address.
    pub peer: Ipv4Addr,
    /// The machine at the site.
    pub machine: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// The peer's port and the machine's; of a ping, its identifier and zero.
    pub ports: (u16, u16),
}

/// Where a conversation came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The site whose number the peer wrote.
    pub site: u32,
    /// The address the peer spoke from.
    pub peer: Ipv6Addr,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    origin: Origin,
    used: Time,
}

/// What the fragments of one packet share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Whole {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    id: u16,
}

/// The flows used last. Bounded: the least used are forgotten, a generation at a time.
#[derive(Debug, Default)]
pub struct Flows {
    young: HashMap<Flow, Entry>,
    old: HashMap<Flow, Entry>,
    fragmented: VecDeque<(Whole, Origin, Time)>,
}

fn idle(protocol: u8) -> Duration {
    match protocol {
        TCP => TCP_IDLE,
        UDP => UDP_IDLE,
        _ => ICMP_IDLE,
    }
}

/// What tells conversations apart in a transport header: source and destination port, or a ping's identifier, which stands for the one who
/// asks.
fn ports(protocol: u8, segment: &[u8], echo: u8) -> Option<(u16, u16)> {
    match protocol {
        TCP | UDP => Some((u16_at(segment, 0)?, u16_at(segment, 2)?)),
        ICMP | ICMPV6 if *segment.first()? == echo => Some((u16_at(segment, 4)?, 0)),
        _ => None,
    }
}

impl Flow {
    /// Of a packet from a peer to a machine, in IPv4. `None` for what begins no conversation.
    pub fn of_peer(packet: &[u8]) -> Option<Self> {
        let header = V4::read(packet)?;
        Self::forth(&header, packet.get(header.at..)?)
    }

    /// From a whole packet's or a quoted one's header and what follows it.
    pub(super) fn forth(header: &V4, segment: &[u8]) -> Option<Self> {
        let ports = ports(header.protocol, segment, 8).filter(|_| is_first(header.fragment))?;
        Some(Self { peer: header.source, machine: header.destination, protocol: header.protocol, ports })
    }

    /// The same before it is turned: the peer's and the machine's IPv4 address are known already.
    pub(super) fn of_v6(header: &V6, segment: &[u8], peer: Ipv4Addr, machine: Ipv4Addr) -> Option<Self> {
        let ports = ports(header.protocol, segment, 128).filter(|_| is_first(header.fragment))?;
        let protocol = if header.protocol == ICMPV6 { ICMP } else { header.protocol };
        Some(Self { peer, machine, protocol, ports })
    }

    /// Of a packet from a machine to a peer.
    fn back(header: &V4, segment: &[u8]) -> Option<Self> {
        let (source, destination) = ports(header.protocol, segment, 0).filter(|_| is_first(header.fragment))?;
        let ports = if header.protocol == ICMP { (source, destination) } else { (destination, source) };
        Some(Self { peer: header.destination, machine: header.source, protocol: header.protocol, ports })
    }
}

impl Flows {
    /// A peer has spoken, in IPv6.
    pub fn spoken(&mut self, now: Time, flow: Flow, origin: Origin) {
        let entry = Entry { origin, used: now };
        if let Some(known) = self.young.get_mut(&flow) {
            *known = entry;
            return;
        }
        if self.young.len() >= GENERATION {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.old.remove(&flow);
        self.young.insert(flow, entry);
    }

    /// A peer has spoken, in plain IPv4: the answers are for that.
    pub fn spoken_plainly(&mut self, flow: &Flow) {
        self.young.remove(flow);
        self.old.remove(flow);
    }

    /// Whether an IPv4 packet that leaves for the mesh answers what came in as IPv6, and what that was. It counts as use.
    pub fn answered(&mut self, now: Time, packet: &[u8]) -> Option<Origin> {
        let header = V4::read(packet)?;
        let segment = packet.get(header.at..)?;
        let whole = Whole { source: header.source, destination: header.destination, protocol: header.protocol, id: header.id };
        if !is_first(header.fragment) {
            return self
                .fragmented
                .iter()
                .rev()
                .find(|(other, _, at)| *other == whole && now.since(*at) < FRAGMENT_IDLE)
                .map(|(_, o, _)| *o);
        }
        let flow = Flow::back(&header, segment).or_else(|| super::icmp::quoted_flow(&header, segment))?;
        let origin = self.known(now, &flow)?;
        if header.fragment.is_some() {
            if self.fragmented.len() >= FRAGMENTED {
                self.fragmented.pop_front();
            }
            self.fragmented.push_back((whole, origin, now));
        }
        Some(origin)
    }

    /// How many are kept.
    pub fn count(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn known(&mut self, now: Time, flow: &Flow) -> Option<Origin> {
        let fresh = |entry: &Entry| now.since(entry.used) < idle(flow.protocol);
        if let Some(entry) = self.young.get_mut(flow).filter(|entry| fresh(entry)) {
            entry.used = now;
            return Some(entry.origin);
        }
        let entry = self.old.get(flow).copied().filter(fresh)?;
        self.spoken(now, *flow, entry.origin);
        Some(entry.origin)
    }
}
