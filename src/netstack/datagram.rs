//! Packets of UDP and ICMP for peers, with finished checksums.

use std::net::IpAddr;

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket, checksum};

use super::{Ends, MTU};

const HOPS: u8 = 64;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// What an ICMPv4 error quotes of a packet (RFC 792), and an ICMPv6 error (RFC 4443, section 2.4: as much as fits).
const QUOTED_V4: usize = 28;
const QUOTED_V6: usize = MTU - V6_HEADER - 8;
/// The longest UDP payload, over IPv4.
const MAX_PAYLOAD: usize = 65_507;

/// What a peer is told about a packet that did not get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No way leads there.
    Host,
    /// Nobody listens.
    Port,
    /// It is not allowed.
    Forbidden,
}

/// The packets of a UDP datagram from `ends.local` to `ends.remote`: one, or its fragments, which bear the number `id`. None if it is longer than UDP
/// allows or the ends are of different families.
pub fn udp(ends: Ends, payload: &[u8], id: u32) -> Vec<Vec<u8>> {
    let length = 8 + payload.len();
    let (Ok(short), true) = (u16::try_from(length), payload.len() <= MAX_PAYLOAD) else { return Vec::new() };
    let mut bytes = vec![0; length];
    if let Some(place) = bytes.get_mut(8..) {
        place.copy_from_slice(payload);
    }
    let mut datagram = UdpPacket::new_unchecked(&mut bytes);
    datagram.set_src_port(ends.local.port());
    datagram.set_dst_port(ends.remote.port());
    datagram.set_len(short);
    datagram.fill_checksum(&IpAddress::from(ends.local.ip()), &IpAddress::from(ends.remote.ip()));
    packets(ends.local.ip(), ends.remote.ip(), IpProtocol::Udp, &bytes, id)
}

/// The packets of an echo reply from `local` to `remote`; see [`udp`].
pub fn echo_reply(local: IpAddr, remote: IpAddr, contents: &[u8], id: u32) -> Vec<Vec<u8>> {
    let kind = if local.is_ipv4() { 0 } else { 129 };
    let message = [&[kind, 0, 0, 0], contents].concat();
    icmp(local, remote, message, id)
}

/// The packet that tells the sender of `packet` that it did not get there, in its destination's name. `None` for what must not be answered: fragments but
/// the first, and what is no whole packet.
pub fn unreachable(packet: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let (local, remote, quoted, kind, code) = match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok().filter(|ip| ip.frag_offset() == 0)?;
            let code = match why {
                Unreachable::Host => 1,
                Unreachable::Port => 3,
                Unreachable::Forbidden => 13,
            };
            (IpAddr::V4(ip.dst_addr()), IpAddr::V4(ip.src_addr()), QUOTED_V4, 3, code)
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let code = match why {
                Unreachable::Host => 3,
                Unreachable::Port => 4,
                Unreachable::Forbidden => 1,
            };
            (IpAddr::V6(ip.dst_addr()), IpAddr::V6(ip.src_addr()), QUOTED_V6, 1, code)
        }
        _ => return None,
    };
    let quote = packet.get(..quoted.min(packet.len()))?;
    icmp(local, remote, [&[kind, code, 0, 0, 0, 0, 0, 0], quote].concat(), 0).pop()
}

fn icmp(local: IpAddr, remote: IpAddr, mut message: Vec<u8>, id: u32) -> Vec<Vec<u8>> {
    let sum = checksum::data(&message);
    let (protocol, sum) = match u32::try_from(message.len()) {
        Ok(length) if local.is_ipv6() => {
            let pseudo = checksum::pseudo_header(&local.into(), &remote.into(), IpProtocol::Icmpv6, length);
            (IpProtocol::Icmpv6, checksum::combine(&[pseudo, sum]))
        }
        _ => (IpProtocol::Icmp, sum),
    };
    if let Some(place) = message.get_mut(2..4) {
        place.copy_from_slice(&(!sum).to_be_bytes());
    }
    packets(local, remote, protocol, &message, id)
}

/// The payload in one packet, or in fragments.
fn packets(local: IpAddr, remote: IpAddr, protocol: IpProtocol, payload: &[u8], id: u32) -> Vec<Vec<u8>> {
    match (local, remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let piece = (MTU - V4_HEADER) / 8 * 8;
            let whole = payload.len() <= MTU - V4_HEADER;
            cut(payload, if whole { payload.len().max(1) } else { piece })
                .map(|(offset, more, part)| {
                    let mut bytes = vec![0; V4_HEADER];
                    bytes.extend_from_slice(part);
                    let total = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
                    let mut ip = Ipv4Packet::new_unchecked(&mut bytes);
                    ip.set_version(4);
                    ip.set_header_len(20);
                    ip.set_total_len(total);
                    // What may not be cut needs no number (RFC 6864).
                    ip.set_ident(if whole { 0 } else { u16::try_from(id & 0xffff).unwrap_or_default() });
                    ip.set_dont_frag(whole);
                    ip.set_more_frags(more);
                    ip.set_frag_offset(u16::try_from(offset).unwrap_or_default());
                    ip.set_hop_limit(HOPS);
                    ip.set_next_header(protocol);
                    ip.set_src_addr(local);
                    ip.set_dst_addr(remote);
                    ip.fill_checksum();
                    bytes
                })
                .collect()
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let header = |next: IpProtocol, length: usize| {
                let mut bytes = vec![0; V6_HEADER];
                let mut ip = Ipv6Packet::new_unchecked(&mut bytes);
                ip.set_version(6);
                ip.set_payload_len(u16::try_from(length).unwrap_or(u16::MAX));
                ip.set_next_header(next);
                ip.set_hop_limit(HOPS);
                ip.set_src_addr(local);
                ip.set_dst_addr(remote);
                bytes
            };
            if payload.len() <= MTU - V6_HEADER {
                return vec![[header(protocol, payload.len()), payload.to_vec()].concat()];
            }
            let piece = (MTU - V6_HEADER - FRAGMENT_HEADER) / 8 * 8;
            cut(payload, piece)
                .map(|(offset, more, part)| {
                    let [high, low] = u16::try_from(offset).unwrap_or_default().to_be_bytes();
                    let [a, b, c, d] = id.to_be_bytes();
                    let fragment = [u8::from(protocol), 0, high, low | u8::from(more), a, b, c, d];
                    [&*header(IpProtocol::Ipv6Frag, FRAGMENT_HEADER + part.len()), &fragment, part].concat()
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Pieces of at most so many bytes: where each begins, whether more follow, and itself.
fn cut(payload: &[u8], piece: usize) -> impl Iterator<Item = (usize, bool, &[u8])> {
    let length = payload.len();
    payload.chunks(piece).enumerate().map(move |(index, part)| (index * piece, index * piece + part.len() < length, part))
}
