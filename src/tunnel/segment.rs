//! Splitting a super-packet read from the TUN into the packets it stands for.
//!
//! It happens in place: the headers of a segment are written right before its payload, over the end of the payload before it,
//! which has been sealed by then. So each segment must be used up before the next is asked for; the borrow checker sees to it.
//!
//! ```text
//! [headers][payload 0][payload 1][payload 2]      as read
//! [headers][payload 0]                            segment 0
//!             [headers][payload 1]                segment 1
//! ```

use super::checksum::Sum;
use super::packet::{CWR, FIN, Layout, MAX_PACKET, PSH, Segmentation, Transport, VirtioHeader, put, u16_at, u32_at};

/// IPv4 with all options and TCP with all options.
const MAX_HEADERS: usize = 60 + 60;
/// IPv6 may have extension headers before TCP; the kernel puts few there.
const MAX_HEADERS_V6: usize = MAX_HEADERS + 40;

/// The longest super-packet: the largest of IPv4 may have got an IPv6 header, whose length does not count its own.
const LONGEST: usize = MAX_PACKET + 40 - 20;

/// What was read from the TUN is not what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the TUN brought a packet that does not fit its virtio-net header")]
pub struct BadPacket;

/// The packets of one read, one after the other.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a mut [u8],
    cut: Option<Cut>,
    done: bool,
}

#[derive(Debug)]
struct Cut {
    layout: Layout,
    headers: [u8; MAX_HEADERS_V6],
    size: usize,
    index: usize,
    sequence: u32,
    id: u16,
    flags: u8,
}

/// A checksum of zero means "none" to UDP; this is the other way to write it (RFC 768).
fn not_none(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] { [0xff, 0xff] } else { checksum }
}

fn finish_checksum(header: &VirtioHeader, packet: &mut [u8]) -> Result<(), BadPacket> {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    if at + 2 > packet.len() {
        return Err(BadPacket);
    }
    let covered = packet.get(start..).ok_or(BadPacket)?;
    let udp = usize::from(header.checksum_offset) == Transport::Udp.checksum_at();
    let checksum = Sum::default().add(covered).checksum();
    put(packet, at, if udp { not_none(checksum) } else { checksum });
    Ok(())
}

impl<'a> Segments<'a> {
    /// Takes what one read of the TUN brought, after its header.
    ///
    /// # Errors
    ///
    /// If header and packet contradict each other; the packet is to be dropped.
    pub fn new(header: &VirtioHeader, packet: &'a mut [u8]) -> Result<Self, BadPacket> {
        if packet.is_empty() || packet.len() > LONGEST {
            return Err(BadPacket);
        }
        if header.segmentation == Segmentation::None {
            if header.needs_checksum {
                finish_checksum(header, packet)?;
            }
            return Ok(Self { packet, cut: None, done: false });
        }
        let cut = Cut::new(header, packet).ok_or(BadPacket)?;
        Ok(Self { packet, cut: Some(cut), done: false })
    }

    /// The next packet, whole and with right checksums.
    #[allow(clippy::should_implement_trait, reason = "an iterator cannot lend")]
    pub fn next(&mut self) -> Option<&mut [u8]> {
        if self.done {
            return None;
        }
        match &mut self.cut {
            None => {
                self.done = true;
                Some(self.packet)
            }
            Some(cut) => {
                let (segment, last) = cut.next(self.packet)?;
                self.done = last;
                Some(segment)
            }
        }
    }
}

impl Cut {
    fn new(header: &VirtioHeader, packet: &[u8]) -> Option<Self> {
        let v4 = packet.first()? >> 4 == 4;
        let transport = match (header.segmentation, v4, packet.first()? >> 4) {
            (Segmentation::Tcp4, true, _) | (Segmentation::Tcp6, false, 6) => Transport::Tcp,
            (Segmentation::Udp, true, _) | (Segmentation::Udp, false, 6) => Transport::Udp,
            _ => return None,
        };
        let transport_at = usize::from(header.checksum_start);
        let ip_header = if v4 { usize::from(packet.first()? & 0xf) * 4 } else { 40 };
        // IPv4's header says where it ends; IPv6's may be followed by others.
        let agrees = if v4 { ip_header >= 20 && ip_header == transport_at } else { ip_header <= transport_at };
        if !agrees || usize::from(header.checksum_offset) != transport.checksum_at() || header.segment_size == 0 {
            return None;
        }
        let layout = Layout::with_transport_at(packet, v4, transport, transport_at)?;
        let mut headers = [0; MAX_HEADERS_V6];
        headers.get_mut(..layout.payload_at)?.copy_from_slice(packet.get(..layout.payload_at)?);
        Some(Self {
            layout,
            headers,
            size: header.segment_size.into(),
            index: 0,
            sequence: u32_at(packet, transport_at + 4)?,
            id: u16_at(packet, 4)?,
            flags: packet.get(transport_at + 13).copied().unwrap_or_default(),
        })
    }

    /// The next segment in place, and whether it is the last.
    fn next<'p>(&mut self, packet: &'p mut [u8]) -> Option<(&'p mut [u8], bool)> {
        let Layout { v4, transport, transport_at, payload_at } = self.layout;
        let start = self.index * self.size;
        let payload = packet.len().checked_sub(payload_at + start)?.min(self.size);
        let last = start + payload_at + payload == packet.len();
        let segment = packet.get_mut(start..start + payload_at + payload)?;
        segment.get_mut(..payload_at)?.copy_from_slice(self.headers.get(..payload_at)?);
        if v4 {
            let step = u16::try_from(self.index & 0xffff).unwrap_or_default();
            put(segment, 4, self.id.wrapping_add(step).to_be_bytes());
        }
        if transport == Transport::Tcp {
            let step = u32::try_from(start).unwrap_or_default();
            put(segment, transport_at + 4, self.sequence.wrapping_add(step).to_be_bytes());
            let mut flags = self.flags;
            if !last {
                flags &= !(FIN | PSH);
            }
            if self.index > 0 {
                flags &= !CWR;
            }
            put(segment, transport_at + 13, [flags]);
        }
        let length = segment.len();
        self.layout.set_length(segment, length);
        self.finish_checksum(segment);
        self.index += 1;
        Some((segment, last))
    }

    fn finish_checksum(&self, segment: &mut [u8]) {
        let Layout { transport, transport_at, .. } = self.layout;
        let at = transport_at + transport.checksum_at();
        put(segment, at, [0, 0]);
        let covered = segment.get(transport_at..).unwrap_or_default();
        let checksum = self.layout.pseudo(segment, covered.len()).add(covered).checksum();
        put(segment, at, if transport == Transport::Udp { not_none(checksum) } else { checksum });
    }
}
