//! Translation, by value: packets are made and checked byte by byte from the RFCs, without the code that is tested.
#![allow(clippy::indexing_slicing, reason = "test code")]

mod back;
mod errors;
mod flows;
mod forth;
mod hostile;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::tunnel::checksum::tests::slow;

pub(super) const PEER_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 9);
pub(super) const PEER_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 9);
pub(super) const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
/// 192.168.1.2 at site 7.
pub(super) const MACHINE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0x0b1a, 0, 7, 0xc0a8, 0x0102);
pub(super) const OWN: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1);
pub(super) const ORIGIN: Origin = Origin { site: 7, peer: PEER_V6 };
const MTU: u16 = 1280;

pub(super) fn sites() -> Sites {
    let config = SitesConfig {
        routes: vec!["fd7a:115c:a1e0:b1a:0:7:c0a8:100/120".parse().unwrap()],
        own: Some(OWN),
        kept_out: vec![Ipv4Addr::new(192, 168, 1, 255)],
    };
    Sites::new(&config, MTU).unwrap()
}

pub(super) fn short(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap().to_be_bytes()
}

/// An IPv6 header and what follows it.
pub(super) fn v6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x6b, 0x81, 0x23, 0x45];
    packet.extend(short(body.len()));
    packet.extend([next, 61]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(body);
    packet
}

/// An IPv4 header, with "don't fragment" or without, and what follows it.
pub(super) fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0xb8];
    packet.extend(short(20 + body.len()));
    packet.extend([0x12, 0x34]);
    packet.extend(flags.to_be_bytes());
    packet.extend([61, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let checksum = !slow(&packet);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(body);
    packet
}

/// What a transport checksum covers besides the segment.
fn pseudo(packet: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    [addresses, &[0, 0], &short(length), &[0, protocol]].concat()
}

/// Puts the right checksum into the segment at `at` of a packet.
pub(super) fn finish(packet: &mut [u8], protocol: u8, at: usize) {
    let place = at
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
    packet[place..place + 2].fill(0);
    let covered = if protocol == ICMP { Vec::new() } else { pseudo(packet, protocol, packet.len() - at) };
    let sum = !slow(&[&covered, &packet[at..]].concat());
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether header and transport checksums of a packet are right.
pub(super) fn is_right(packet: &[u8]) -> bool {
    let (at, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    let header = at == 40 || slow(&packet[..20]) == 0xffff;
    let covered = if protocol == ICMP { Vec::new() } else { pseudo(packet, protocol, packet.len() - at) };
    let none = protocol == UDP && packet[at + 6..at + 8] == [0, 0];
    header && !none && slow(&[&covered, &packet[at..]].concat()) == 0xffff
}

pub(super) fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

/// A TCP segment without a checksum. With SYN it tells its segment size, at an odd place.
pub(super) fn tcp(ports: (u16, u16), flags: u8, told: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let options = told.map_or(Vec::new(), |size| [&[1, 2, 4], &size.to_be_bytes()[..], &[1, 1, 0]].concat());
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend([0, 0, 1, 0, 0, 0, 2, 0]);
    segment.extend([u8::try_from((20 + options.len()) / 4 * 16).unwrap(), flags, 1, 0, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(payload);
    segment
}

/// A datagram without a checksum.
pub(super) fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &short(8 + payload.len()), &[0, 0], payload].concat()
}

/// An ICMP message of either family without a checksum.
pub(super) fn icmp(kind: u8, code: u8, word: u32, rest: &[u8]) -> Vec<u8> {
    [&[kind, code, 0, 0], &word.to_be_bytes()[..], rest].concat()
}

pub(super) fn whole(mut packet: Vec<u8>) -> Vec<u8> {
    let (at, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    finish(&mut packet, protocol, at);
    packet
}

/// From the peer to the machine, as the peer sends it.
pub(super) fn forth_v6(next: u8, body: &[u8]) -> Vec<u8> {
    whole(v6(PEER_V6, MACHINE_V6, next, body))
}

/// The same, as the site sees it.
pub(super) fn forth_v4(protocol: u8, body: &[u8]) -> Vec<u8> {
    whole(v4(PEER_V4, MACHINE, protocol, 0, body))
}

/// From the machine to the peer, as the machine sends it.
pub(super) fn back_v4(protocol: u8, flags: u16, body: &[u8]) -> Vec<u8> {
    whole(v4(MACHINE, PEER_V4, protocol, flags, body))
}

/// The same, as the peer sees it.
pub(super) fn back_v6(next: u8, body: &[u8]) -> Vec<u8> {
    whole(v6(MACHINE_V6, PEER_V6, next, body))
}

/// A conversation and where it came from.
type Spoken = Option<(Flow, Origin)>;

/// A packet turned to IPv4, and its conversation.
pub(super) fn turned(mut packet: Vec<u8>) -> Result<(Vec<u8>, Spoken), Refusal> {
    let Turned { range, flow } = to_v4(&mut packet, PEER_V4, &sites(), &Identifications::default())?;
    Ok((packet[range].to_vec(), flow))
}

/// A packet turned to IPv6, in as many as it takes.
pub(super) fn answered(packet: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut found = Vec::new();
    to_v6(packet, &ORIGIN, &sites(), &mut vec![0; ROOM], |packet| found.push(packet.to_vec()))?;
    Ok(found)
}

/// Without what differs by right: an IPv4 packet's identification, and so its checksum; an IPv6 packet's flow label.
pub(super) fn apart_from_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    } else {
        packet[1] &= 0xf0;
        packet[2..4].fill(0);
    }
    packet
}
