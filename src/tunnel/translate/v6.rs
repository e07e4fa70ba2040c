//! What machines at a site answer.

use super::flows::Origin;
use super::header::{Fragment, V4, V6, is_first};
use super::{FRAGMENT_HEADER, ICMP, Refusal, Sites, TCP, UDP, V4_HEADER, V6_HEADER, adjust, checksum_at, clamp, icmp};
use crate::ident::Via;
use crate::tunnel::checksum::Sum;
use crate::tunnel::packet::{Layout, MAX_PACKET, Segmentation, Transport, VirtioHeader, put, u16_at};

/// By how much a packet grows that is turned where it lies: the room it needs before it.
pub const GROWTH: usize = V6_HEADER - V4_HEADER;
/// The room that any packet needs that is turned elsewhere.
pub const ROOM: usize = FRONT + MAX_PACKET;
/// What of it lies before the transport header.
const FRONT: usize = V6_HEADER + FRAGMENT_HEADER;
/// The most that an IPv4 error holds (RFC 1812, section 4.3.2.3).
const MAX_ERROR: usize = 576;

impl Origin {
    /// The header of the packet that answers this, but for what differs by protocol.
    fn answer(&self, header: &V4, at: usize) -> V6 {
        V6 {
            class: header.class,
            hops: header.hops,
            source: Via::address(self.site, header.source),
            destination: self.peer,
            fragment: header.fragment,
            protocol: header.protocol,
            at,
            length: header.length,
        }
    }
}

/// Turns a packet or super-packet of TCP or UDP where it lies, from `start` of the buffer to its end. Its virtio-net header is made to fit,
/// and says smaller segments where those of TCP would get too long. Returns where the packet begins now; `None` leaves all as it is, for
/// [`to_v6`].
pub fn to_v6_in_place(header: &mut VirtioHeader, buffer: &mut [u8], start: usize, origin: &Origin, sites: &Sites) -> Option<usize> {
    let packet = buffer.get(start..)?;
    let old = V4::read(packet).filter(|old| old.at + old.length == packet.len() && old.fragment.is_none())?;
    let transport = match old.protocol {
        TCP => Transport::Tcp,
        UDP => Transport::Udp,
        _ => return None,
    };
    let new = origin.answer(&old, start + old.at);
    let turned = virtio(header, packet, &old, transport, sites.mtu)?;
    if new.at < V6_HEADER || !sites.contain(new.source) {
        return None;
    }
    let segment = buffer.get_mut(new.at..)?;
    let at = checksum_at(old.protocol);
    let checksum = *segment.get(at..)?.first_chunk::<2>()?;
    if turned.needs_checksum {
        clamp(segment, sites.segment_size());
        put(segment, at, Sum::shifted(checksum, old.addresses(), new.addresses()));
    } else {
        if transport == Transport::Udp && checksum == [0, 0] {
            return None;
        }
        adjust(segment, old.protocol, old.addresses(), new.addresses());
        if transport == Transport::Tcp
            && let Some((old_sum, new_sum)) = clamp(segment, sites.segment_size())
        {
            adjust(segment, old.protocol, old_sum, new_sum);
        }
    }
    *header = turned;
    new.write(buffer)
}

/// The virtio-net header of a packet that is turned; `None` if it does not fit the packet, or the packet the tunnel.
fn virtio(header: &VirtioHeader, packet: &[u8], old: &V4, transport: Transport, mtu: u16) -> Option<VirtioHeader> {
    let mut turned = *header;
    let to = |at: u16| at.checked_sub(u16::try_from(old.at).ok()?)?.checked_add(u16::try_from(V6_HEADER).ok()?);
    if header.needs_checksum || header.segmentation != Segmentation::None {
        let fits = usize::from(header.checksum_start) == old.at && usize::from(header.checksum_offset) == transport.checksum_at();
        turned.checksum_start = to(header.checksum_start).filter(|_| fits)?;
        turned.needs_checksum = true;
    }
    match (header.segmentation, transport) {
        (Segmentation::None, _) => return (V6_HEADER + old.length <= usize::from(mtu)).then_some(turned),
        (Segmentation::Tcp4, Transport::Tcp) => turned.segmentation = Segmentation::Tcp6,
        (Segmentation::Udp, Transport::Udp) => {}
        _ => return None,
    }
    let headers = Layout::with_transport_at(packet, true, transport, old.at)?.payload_at - old.at + V6_HEADER;
    let most = mtu.checked_sub(u16::try_from(headers).ok()?).filter(|most| *most > 0)?;
    if header.segment_size > most {
        // How a stream is cut does not matter; datagrams are what they are.
        (transport == Transport::Tcp).then_some(())?;
        turned.segment_size = most;
    }
    turned.header_length = u16::try_from(headers).ok()?;
    Some(turned)
}

/// Turns a whole packet, with right checksums, into one or several, which are made in `room`, of [`ROOM`] bytes, one after the other: each
/// is to be used up in `emit`.
///
/// # Errors
///
/// The packet is to be dropped, for this reason.
pub fn to_v6(packet: &[u8], origin: &Origin, sites: &Sites, room: &mut [u8], mut emit: impl FnMut(&mut [u8])) -> Result<(), Refusal> {
    let header = V4::read(packet).filter(|header| header.at + header.length == packet.len()).ok_or(Refusal::Malformed)?;
    let segment = packet.get(header.at..).unwrap_or_default();
    let mut outer = origin.answer(&header, FRONT);
    if !sites.contain(outer.source) {
        // Routers before the machine, and this one, speak of a peer's packets too (RFC 6791, section 3).
        outer.source = sites.own.filter(|_| header.protocol == ICMP).ok_or(Refusal::Untranslatable)?;
    }
    match header.protocol {
        TCP | UDP => {
            let place = room.get_mut(FRONT..FRONT + segment.len()).ok_or(Refusal::TooBig)?;
            place.copy_from_slice(segment);
            if is_first(header.fragment) {
                transport(place, &header, &outer, sites.segment_size())?;
            }
        }
        // The checksum gets the length of the whole in it, which a fragment does not know.
        ICMP if header.fragment.is_none() => icmp::to_v6(segment, *origin, &mut outer, sites.mtu, room)?,
        _ => return Err(Refusal::Untranslatable),
    }
    let mtu = usize::from(sites.mtu);
    if outer.header_length() + outer.length <= mtu {
        let start = outer.write(room).ok_or(Refusal::Malformed)?;
        emit(room.get_mut(start..FRONT + outer.length).ok_or(Refusal::Malformed)?);
        return Ok(());
    }
    if header.may_not_fragment {
        return Err(Refusal::TooBig);
    }
    let whole = header.fragment.unwrap_or(Fragment { offset: 0, more: false, id: header.id.into() });
    let step = (mtu - FRONT) & !7;
    for done in (0..outer.length).step_by(step) {
        let length = step.min(outer.length - done);
        let more = whole.more || done + length < outer.length;
        let offset = whole.offset.saturating_add(u16::try_from(done / 8).unwrap_or(u16::MAX));
        let piece = V6 { fragment: Some(Fragment { offset, more, id: whole.id }), at: FRONT + done, length, ..outer };
        let start = piece.write(room).ok_or(Refusal::Malformed)?;
        emit(room.get_mut(start..piece.at + length).ok_or(Refusal::Malformed)?);
    }
    Ok(())
}

fn transport(segment: &mut [u8], old: &V4, new: &V6, segment_size: u16) -> Result<(), Refusal> {
    if old.protocol == UDP && u16_at(segment, 6) == Some(0) {
        // IPv6 has no UDP without a checksum, and one over all fragments cannot be made from the first (RFC 7915, section 4.5).
        if old.fragment.is_some() {
            return Err(Refusal::Untranslatable);
        }
        let checksum = new.pseudo().add(segment).checksum();
        put(segment, 6, if checksum == [0, 0] { [0xff, 0xff] } else { checksum });
        return Ok(());
    }
    adjust(segment, old.protocol, old.addresses(), new.addresses());
    if old.protocol == TCP
        && let Some((old_sum, new_sum)) = clamp(segment, segment_size)
    {
        adjust(segment, old.protocol, old_sum, new_sum);
    }
    Ok(())
}

/// The error that tells the sender of an IPv4 packet what fits, as if from the peer it is for: the kernel takes none from its own
/// addresses. Returns its length in `room`; `None` if the packet is one that no error answers.
pub fn too_big(packet: &[u8], sites: &Sites, room: &mut [u8]) -> Option<usize> {
    let header = V4::read(packet).filter(|header| is_first(header.fragment))?;
    let segment = packet.get(header.at..)?;
    if header.protocol == ICMP && icmp::is_error(segment) {
        return None;
    }
    let quote = packet.get(..MAX_ERROR - V4_HEADER - 8).unwrap_or(packet);
    let length = icmp::too_big_length(quote);
    let told = sites.mtu.saturating_sub(u16::try_from(GROWTH).ok()?);
    icmp::write_too_big(room.get_mut(V4_HEADER..V4_HEADER + length)?, told, quote);
    let error = V4 {
        class: 0,
        id: 0,
        may_not_fragment: false,
        fragment: None,
        hops: 64,
        protocol: ICMP,
        source: header.destination,
        destination: header.source,
        at: V4_HEADER,
        length,
    };
    error.write(room)?;
    Some(V4_HEADER + length)
}
