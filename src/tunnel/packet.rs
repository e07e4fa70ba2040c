//! Where things are in an IP packet with TCP or UDP in it (RFC 791, 8200, 9293, 768), and the virtio-net header before it.

use super::checksum::Sum;

/// FIN, PSH, ACK and CWR in the thirteenth byte of a TCP header after the flags' byte.
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The largest IP packet, and all that a super-packet's 16-bit length can say.
pub const MAX_PACKET: usize = 65_535;

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Where the checksum is in the transport header; virtio's `csum_offset`.
    pub(super) fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

/// The headers of one packet: all offsets lie within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) v4: bool,
    pub(super) transport: Transport,
    /// Where the transport header begins.
    pub(super) transport_at: usize,
    /// Where the payload begins.
    pub(super) payload_at: usize,
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|b| b.first_chunk_mut()) {
        *place = value;
    }
}

/// A length of at most [`MAX_PACKET`] in 16 bits.
fn short(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

impl Layout {
    /// Reads the headers of a whole packet: IPv4 without fragmentation or IPv6, directly followed by TCP or UDP. Lengths in the
    /// headers must agree with the packet's; IPv4 options are passed over.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let version = packet.first()? >> 4;
        let (v4, transport_at, number) = match version {
            4 => {
                let header = usize::from(packet.first()? & 0xf) * 4;
                let fragment = u16_at(packet, 6)? & 0x3fff;
                let whole = usize::from(u16_at(packet, 2)?) == packet.len();
                if header < 20 || fragment != 0 || !whole {
                    return None;
                }
                (true, header, *packet.get(9)?)
            }
            6 => {
                if usize::from(u16_at(packet, 4)?) + 40 != packet.len() {
                    return None;
                }
                (false, 40, *packet.get(6)?)
            }
            _ => return None,
        };
        let transport = match number {
            TCP => Transport::Tcp,
            UDP => Transport::Udp,
            _ => return None,
        };
        Self::with_transport_at(packet, v4, transport, transport_at)
    }

    /// The same where the IP header is known to end at `transport_at`.
    pub(super) fn with_transport_at(packet: &[u8], v4: bool, transport: Transport, transport_at: usize) -> Option<Self> {
        let header = match transport {
            Transport::Tcp => usize::from(packet.get(transport_at + 12)? >> 4) * 4,
            Transport::Udp => 8,
        };
        let least = if transport == Transport::Tcp { 20 } else { 8 };
        let payload_at = transport_at + header;
        (header >= least && payload_at <= packet.len()).then_some(Self { v4, transport, transport_at, payload_at })
    }

    /// The part of the transport checksum that comes from the IP header, for a transport header and payload of `length` bytes.
    pub(super) fn pseudo(&self, packet: &[u8], length: usize) -> Sum {
        let addresses = if self.v4 { packet.get(12..20) } else { packet.get(8..40) };
        Sum::default().add(addresses.unwrap_or_default()).add_u16(self.transport.number().into()).add_u16(short(length))
    }

    /// Whether the checksums of transport and IPv4 header are right. None at all (UDP over IPv4) is not.
    pub(super) fn has_valid_checksums(&self, packet: &[u8]) -> bool {
        if self.v4 && !packet.get(..self.transport_at).is_some_and(|header| Sum::default().add(header).is_valid()) {
            return false;
        }
        let Some(segment) = packet.get(self.transport_at..) else { return false };
        let none = self.transport == Transport::Udp && u16_at(segment, 6) == Some(0);
        !none && self.pseudo(packet, segment.len()).add(segment).is_valid()
    }

    /// Writes the packet's length into its IP header (and UDP header), and the IPv4 header checksum.
    pub(super) fn set_length(&self, packet: &mut [u8], length: usize) {
        if self.v4 {
            put(packet, 2, short(length).to_be_bytes());
            put(packet, 10, [0, 0]);
            let checksum = Sum::default().add(packet.get(..self.transport_at).unwrap_or_default()).checksum();
            put(packet, 10, checksum);
        } else {
            put(packet, 4, short(length.saturating_sub(40)).to_be_bytes());
        }
        if self.transport == Transport::Udp {
            put(packet, self.transport_at + 4, short(length - self.transport_at).to_be_bytes());
        }
    }
}

/// How a super-packet is to be cut (VIRTIO 1.2, section 5.1.6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Segmentation {
    /// Not at all: one packet.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// The 10 bytes before each packet on a TUN with IFF_VNET_HDR (`struct virtio_net_hdr`, in the machine's byte order).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// The transport checksum is not finished: its field holds the pseudo header's sum.
    pub needs_checksum: bool,
    /// Whether and how the packet is a super-packet.
    pub segmentation: Segmentation,
    /// Bytes of headers. The kernel's own values are not reliable for TCP.
    pub header_length: u16,
    /// Payload bytes of each segment but the last.
    pub segment_size: u16,
    /// Where the checksum's coverage begins: the transport header.
    pub checksum_start: u16,
    /// Where the checksum is, from there.
    pub checksum_offset: u16,
}

/// The value of `segmentation` on the wire, and the bit that marks congestion notification in it, which changes nothing here.
const ECN: u8 = 0x80;

impl VirtioHeader {
    /// The header's length.
    pub const LENGTH: usize = 10;

    /// Reads a header; `None` for a kind of super-packet that nobody asked the kernel for.
    pub fn read(bytes: [u8; Self::LENGTH]) -> Option<Self> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = bytes;
        let segmentation = match kind & !ECN {
            0 => Segmentation::None,
            1 => Segmentation::Tcp4,
            4 => Segmentation::Tcp6,
            5 => Segmentation::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: flags & 1 != 0,
            segmentation,
            header_length: u16::from_ne_bytes([h0, h1]),
            segment_size: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// The header as it is written.
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let kind = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::Tcp4 => 1,
            Segmentation::Tcp6 => 4,
            Segmentation::Udp => 5,
        };
        let [h0, h1] = self.header_length.to_ne_bytes();
        let [s0, s1] = self.segment_size.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        [u8::from(self.needs_checksum), kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}
