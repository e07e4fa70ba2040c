//! TSMP: the few messages that mesh nodes send one another inside the tunnel, as IP packets of protocol 99.
//!
//! Only the announcement of a disco key is read (type `a`, capability version 144 and later): a node sends it first in each new
//! session, so that its peers know its new key even while the coordinator is away. WireGuard vouches for the sender. We do not send it.

use crate::ident::DiscoPublic;

/// IP protocol 99, "any private encryption scheme".
const PROTOCOL: u8 = 99;
const DISCO_KEY: u8 = b'a';

/// The payload of a TSMP packet: IPv4 without options, or IPv6 without extension headers.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    match packet.first()? {
        0x45 if packet.get(9) == Some(&PROTOCOL) => packet.get(20..),
        0x60..=0x6f if packet.get(6) == Some(&PROTOCOL) => packet.get(40..),
        _ => None,
    }
}

/// The disco key that a packet from a peer announces as its sender's, if it is such a packet.
pub fn disco_key(packet: &[u8]) -> Option<DiscoPublic> {
    let (&kind, rest) = payload(packet)?.split_first()?;
    let key = rest.first_chunk().filter(|_| kind == DISCO_KEY)?;
    Some(DiscoPublic::from_bytes(*key))
}
