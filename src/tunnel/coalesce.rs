//! Joining the packets of one flow into a super-packet to be written to the TUN: what the kernel does with what a network card
//! receives (GRO), done for what the tunnel receives.
//!
//! Only what can be cut up again into the same packets is joined (but for the IPv4 identification of packets that may not be
//! fragmented, which means nothing, RFC 6864): TCP segments that follow one another, with nothing but
//! ACK (and PSH on the last) set, the same acknowledgement, window and options; UDP datagrams of one size. Checksums are verified
//! before, because the kernel is told to make new ones. Everything else passes as it is, and a flow's packets keep their order.
//!
//! The packets stay where they were opened (the arena); a super-packet is a list of pieces for one vectored write.

use std::io::IoSlice;
use std::ops::Range;

use super::packet::{ACK, Layout, MAX_PACKET, PSH, Segmentation, Transport, VirtioHeader, put, u16_at, u32_at};

/// The most packets joined into one.
const MAX_JOINED: usize = 64;
/// Pieces of one write: the virtio-net header, the first packet, the payloads of the others.
const MAX_PIECES: usize = MAX_JOINED + 1;
/// How many flows are looked at to be continued; those beyond are written as they are. More cost time for every packet.
const OPEN_FLOWS: usize = 8;

/// Which super-packets the TUN takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// None: one packet a write.
    Nothing,
    /// Those of TCP.
    Tcp,
    /// Those of TCP and UDP.
    TcpAndUdp,
}

#[derive(Debug, Clone)]
struct Packet {
    range: Range<usize>,
    /// The next one of the same group.
    next: Option<usize>,
}

#[derive(Debug, Clone)]
struct Group {
    first: usize,
    last: usize,
    count: usize,
    length: usize,
    /// Of the first packet, if it is TCP or UDP at all.
    layout: Option<Layout>,
    segment_size: usize,
    /// The sequence number a TCP segment must have to be next.
    sequence: u32,
    verified: bool,
    /// The last packet had PSH set.
    pushed: bool,
    header: VirtioHeader,
}

/// Joins the packets of one batch. Reused for all batches; grows to the largest and stays there.
#[derive(Debug)]
pub struct Coalescer {
    joining: Joining,
    packets: Vec<Packet>,
    groups: Vec<Group>,
    /// Groups that may be continued.
    open: Vec<usize>,
}

/// What about a packet decides whether it may be joined.
struct Candidate {
    layout: Layout,
    payload: usize,
    sequence: u32,
    pushed: bool,
}

fn candidate(packet: &[u8], layout: Layout) -> Option<Candidate> {
    let payload = packet.len() - layout.payload_at;
    let flags = match layout.transport {
        Transport::Tcp => *packet.get(layout.transport_at + 13)?,
        Transport::Udp => ACK,
    };
    let plain = payload > 0 && flags & !PSH == ACK && (!layout.v4 || layout.transport_at == 20);
    plain.then_some(Candidate { layout, payload, sequence: u32_at(packet, layout.transport_at + 4)?, pushed: flags & PSH != 0 })
}

/// Addresses and ports, which stand together in IPv4 without options and in IPv6.
fn flow(packet: &[u8], layout: &Layout) -> Option<(Range<usize>, Transport, bool)> {
    let range = if layout.v4 { 12..24 } else { 8..44 };
    let ports_follow = layout.transport_at + 4 == range.end;
    (ports_follow && packet.len() >= range.end).then_some((range, layout.transport, layout.v4))
}

/// Whether the parts of the headers agree that all packets of a super-packet share.
fn same_headers(a: &[u8], b: &[u8], layout: &Layout, nth: usize) -> bool {
    let same = |range: Range<usize>| a.get(range.clone()) == b.get(range);
    let ip = if layout.v4 {
        // Without "don't fragment" the identification matters, and cutting counts it up.
        let counted = || u16_at(a, 4).map(|id| id.wrapping_add(u16::try_from(nth).unwrap_or_default())) == u16_at(b, 4);
        let may_not_fragment = a.get(6).is_some_and(|byte| byte & 0x40 != 0);
        same(1..2) && same(6..9) && (may_not_fragment || counted())
    } else {
        same(0..4) && same(7..8)
    };
    let at = layout.transport_at;
    // Acknowledgement and header length; window; urgent pointer and options.
    let transport =
        layout.transport == Transport::Udp || same(at + 8..at + 13) && same(at + 14..at + 16) && same(at + 18..layout.payload_at);
    ip && transport
}

impl Coalescer {
    /// A coalescer for a TUN that takes these super-packets.
    pub fn new(joining: Joining) -> Self {
        Self { joining, packets: Vec::new(), groups: Vec::new(), open: Vec::with_capacity(OPEN_FLOWS) }
    }

    /// Changes what is joined from the next packet on: a kernel turned out to refuse it.
    pub fn set_joining(&mut self, joining: Joining) {
        self.joining = joining;
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Adds the IP packet that lies at `range` of the arena, in the order packets came. A range outside the arena is passed over.
    pub fn push(&mut self, arena: &[u8], range: Range<usize>) {
        let Some(packet) = arena.get(range.clone()) else { return };
        let layout = if self.joining == Joining::Nothing { None } else { Layout::of(packet) };
        let joinable = |l: &Layout| l.transport == Transport::Tcp || self.joining == Joining::TcpAndUdp;
        let Some((layout, key)) = layout.filter(joinable).and_then(|l| Some((l, flow(packet, &l)?))) else {
            self.start(range, None, None);
            return;
        };
        let candidate = candidate(packet, layout);
        let found = self.open.iter().position(|group| self.is_of_flow(arena, *group, packet, &key));
        if let Some(at) = found {
            if let (Some(candidate), Some(group)) = (&candidate, self.open.get(at).copied())
                && self.join(arena, group, packet, &range, candidate)
            {
                if candidate.pushed || self.is_full(group) {
                    self.open.remove(at);
                }
                return;
            }
            self.open.remove(at);
        }
        self.start(range, Some(layout), candidate);
    }

    fn first_of<'a>(&self, arena: &'a [u8], group: usize) -> Option<(&'a [u8], &Group)> {
        let group = self.groups.get(group)?;
        Some((arena.get(self.packets.get(group.first)?.range.clone())?, group))
    }

    fn is_of_flow(&self, arena: &[u8], group: usize, packet: &[u8], key: &(Range<usize>, Transport, bool)) -> bool {
        let Some((first, group)) = self.first_of(arena, group) else { return false };
        let (range, transport, v4) = key;
        group.layout.is_some_and(|l| l.transport == *transport && l.v4 == *v4) && first.get(range.clone()) == packet.get(range.clone())
    }

    /// A group ends with a packet shorter than the others.
    fn is_full(&self, group: usize) -> bool {
        self.groups.get(group).is_none_or(|g| {
            let headers = g.layout.map_or(0, |l| l.payload_at);
            g.length != headers + g.count * g.segment_size || g.count >= MAX_JOINED || g.length + g.segment_size > MAX_PACKET
        })
    }

    fn join(&mut self, arena: &[u8], at: usize, packet: &[u8], range: &Range<usize>, candidate: &Candidate) -> bool {
        let Some((first, group)) = self.first_of(arena, at) else { return false };
        let layout = candidate.layout;
        let follows = group.layout == Some(layout)
            && candidate.payload <= group.segment_size
            && (layout.transport == Transport::Udp || candidate.sequence == group.sequence)
            && same_headers(first, packet, &layout, group.count);
        if !follows {
            return false;
        }
        let (verified, last) = (group.verified, group.last);
        if !verified && !layout.has_valid_checksums(first) || !layout.has_valid_checksums(packet) {
            return false;
        }
        let new = self.packets.len();
        self.packets.push(Packet { range: range.start + layout.payload_at..range.end, next: None });
        if let Some(previous) = self.packets.get_mut(last) {
            previous.next = Some(new);
        }
        let Some(group) = self.groups.get_mut(at) else { return false };
        group.verified = true;
        group.last = new;
        group.count += 1;
        group.length += candidate.payload;
        group.sequence = group.sequence.wrapping_add(u32::try_from(candidate.payload).unwrap_or_default());
        group.pushed = candidate.pushed;
        true
    }

    fn start(&mut self, range: Range<usize>, layout: Option<Layout>, candidate: Option<Candidate>) {
        let first = self.packets.len();
        let length = range.len();
        self.packets.push(Packet { range, next: None });
        let (segment_size, sequence, pushed) = candidate.as_ref().map_or((0, 0, true), |c| (c.payload, c.sequence, c.pushed));
        let step = u32::try_from(segment_size).unwrap_or_default();
        self.groups.push(Group {
            first,
            last: first,
            count: 1,
            length,
            layout,
            segment_size,
            sequence: sequence.wrapping_add(step),
            verified: false,
            pushed: false,
            header: VirtioHeader::default(),
        });
        if !pushed {
            if self.open.len() == OPEN_FLOWS {
                self.open.remove(0);
            }
            self.open.push(self.groups.len() - 1);
        }
    }

    /// Ends the batch: puts the headers of joined packets in order and hands each packet or super-packet to `write` as the pieces
    /// of one vectored write, with how many packets it stands for. The first piece is the virtio-net header.
    pub fn finish(&mut self, arena: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>], usize)) {
        self.open.clear();
        for group in &mut self.groups {
            if group.count > 1
                && let Some(layout) = group.layout
                && let Some(first) = self.packets.get(group.first).and_then(|p| arena.get_mut(p.range.clone()))
            {
                group.header = head(first, &layout, group);
            }
        }
        for group in &self.groups {
            let header = group.header.bytes();
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let mut used = 0;
            let mut add = |piece| {
                if let Some(place) = pieces.get_mut(used) {
                    *place = IoSlice::new(piece);
                    used += 1;
                }
            };
            add(&header);
            let mut next = Some(group.first);
            while let Some(packet) = next.and_then(|n| self.packets.get(n)) {
                add(arena.get(packet.range.clone()).unwrap_or_default());
                next = packet.next;
            }
            write(pieces.get(..used).unwrap_or_default(), group.count);
        }
        self.groups.clear();
        self.packets.clear();
    }
}

/// Makes the headers of the first packet those of the super-packet.
fn head(first: &mut [u8], layout: &Layout, group: &Group) -> VirtioHeader {
    let at = layout.transport_at;
    if group.pushed && layout.transport == Transport::Tcp {
        let flags = first.get(at + 13).copied().unwrap_or_default();
        put(first, at + 13, [flags | PSH]);
    }
    layout.set_length(first, group.length);
    let pseudo = layout.pseudo(first, group.length - at).partial();
    put(first, at + layout.transport.checksum_at(), pseudo);
    let small = |n: usize| u16::try_from(n).unwrap_or_default();
    VirtioHeader {
        needs_checksum: true,
        segmentation: match (layout.transport, layout.v4) {
            (Transport::Tcp, true) => Segmentation::Tcp4,
            (Transport::Tcp, false) => Segmentation::Tcp6,
            (Transport::Udp, _) => Segmentation::Udp,
        },
        header_length: small(layout.payload_at),
        segment_size: small(group.segment_size),
        checksum_start: small(at),
        checksum_offset: small(layout.transport.checksum_at()),
    }
}
