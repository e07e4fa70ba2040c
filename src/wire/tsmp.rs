//! TSMP: the few messages that mesh nodes send one another inside the tunnel, as IP packets of protocol 99.
//!
//! Only the announcement of a disco key is known here (type `a`): 33 bytes, the type and the sender's key. A node sends it in each new
//! session, so that its peers know its new key even while the coordinator is away. WireGuard vouches for the sender.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ident::DiscoPublic;

/// IP protocol 99, "any private encryption scheme".
const PROTOCOL: u8 = 99;
const DISCO_KEY: u8 = b'a';
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
/// The length of an announcement without and with the IPv4 header, which counts itself.
const ANNOUNCEMENT: u8 = 33;
const V4_LENGTH: u8 = 20 + ANNOUNCEMENT;
const HOPS: u8 = 64;

/// The payload of a TSMP packet: IPv4 without options, or IPv6 without extension headers.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? {
        0x45 if packet.get(9) == Some(&PROTOCOL) => packet.get(V4_HEADER..),
        0x60..=0x6f if packet.get(6) == Some(&PROTOCOL) => packet.get(V6_HEADER..),
        _ => None,
    }
}

/// The disco key that a packet from a peer announces as its sender's, if it is such a packet.
pub fn disco_key(packet: &[u8]) -> Option<DiscoPublic> {
    let (&kind, rest) = payload(packet)?.split_first()?;
    let key = rest.first_chunk().filter(|_| kind == DISCO_KEY)?;
    Some(DiscoPublic::from_bytes(*key))
}

/// The packet that announces a disco key as that of the node at `from`. `None` if the addresses are of different families.
pub fn announce(from: IpAddr, to: IpAddr, disco: &DiscoPublic) -> Option<Vec<u8>> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => v4_header(from, to).to_vec(),
        (IpAddr::V6(from), IpAddr::V6(to)) => v6_header(from, to),
        _ => return None,
    };
    packet.push(DISCO_KEY);
    packet.extend_from_slice(disco.as_bytes());
    Some(packet)
}

/// RFC 791. One packet, never in pieces, so its identification says nothing (RFC 6864).
fn v4_header(from: Ipv4Addr, to: Ipv4Addr) -> [u8; V4_HEADER] {
    let [a, b, c, d] = from.octets();
    let [e, f, g, h] = to.octets();
    let mut header = [0x45, 0, 0, V4_LENGTH, 0, 0, 0, 0, HOPS, PROTOCOL, 0, 0, a, b, c, d, e, f, g, h];
    let sum: u32 = header.chunks_exact(2).map(|pair| pair.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))).sum();
    let fold = |sum: u32| (sum & 0xffff) + (sum >> 16);
    let [_, _, high, low] = (!fold(fold(sum))).to_be_bytes();
    (header[10], header[11]) = (high, low);
    header
}

/// RFC 8200.
fn v6_header(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let start = [0x60, 0, 0, 0, 0, ANNOUNCEMENT, PROTOCOL, HOPS];
    [&start[..], &from.octets(), &to.octets()].concat()
}
