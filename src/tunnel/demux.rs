//! Telling apart what arrives on the node's one UDP socket: WireGuard, path probes (disco), STUN, junk.
//!
//! The order matters: a STUN binding response starts 01 01, a WireGuard initiation 01 00 00 00, so STUN is looked for first.

use crate::wire::disco;

/// RFC 5389, section 6.
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// What a datagram claims to be. Nothing of it is authenticated yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// WireGuard handshake initiation.
    Initiation,
    /// WireGuard handshake response to the initiation sent with this index.
    Response {
        /// Our index.
        receiver: u32,
    },
    /// WireGuard cookie reply to the handshake message sent with this index.
    Cookie {
        /// Our index.
        receiver: u32,
    },
    /// WireGuard data for the session with this index.
    Data {
        /// Our index.
        receiver: u32,
    },
    /// A path probe.
    Disco,
    /// A STUN answer.
    Stun,
    /// Nothing the mesh knows.
    Junk,
}

fn word(datagram: &[u8], at: usize) -> Option<[u8; 4]> {
    datagram.get(at..)?.first_chunk().copied()
}

/// Classifies a datagram by its first bytes and its length.
pub fn classify(datagram: &[u8]) -> Kind {
    let Some(first) = word(datagram, 0) else { return Kind::Junk };
    if first[0] & 0xc0 == 0 && first[1] == 1 && word(datagram, 4) == Some(STUN_COOKIE) {
        return Kind::Stun;
    }
    if disco::looks_like(datagram) {
        return Kind::Disco;
    }
    let index = |at| word(datagram, at).map(u32::from_le_bytes);
    match (u32::from_le_bytes(first), datagram.len()) {
        (1, 148) => Kind::Initiation,
        (2, 92) => index(8).map_or(Kind::Junk, |receiver| Kind::Response { receiver }),
        (3, 64) => index(4).map_or(Kind::Junk, |receiver| Kind::Cookie { receiver }),
        (4, 32..) => index(4).map_or(Kind::Junk, |receiver| Kind::Data { receiver }),
        _ => Kind::Junk,
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use super::*;

    #[test]
    fn a_stun_response_is_not_taken_for_an_initiation() {
        let mut stun = vec![0; 148];
        stun[..8].copy_from_slice(&[1, 1, 0, 128, 0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(classify(&stun), Kind::Stun);
        let mut initiation = vec![0; 148];
        initiation[0] = 1;
        assert_eq!(classify(&initiation), Kind::Initiation);
    }

    #[test]
    fn a_message_of_the_wrong_length_is_junk() {
        for (kind, length) in [(1, 147), (1, 149), (2, 91), (3, 65), (4, 31), (5, 148)] {
            let mut datagram = vec![0; length];
            datagram[0] = kind;
            assert_eq!(classify(&datagram), Kind::Junk, "type {kind}, {length} bytes");
        }
        for length in 0..4 {
            assert_eq!(classify(&vec![4; length]), Kind::Junk);
        }
    }

    #[test]
    fn the_index_is_read_from_its_place() {
        let mut data = vec![0; 48];
        data[0] = 4;
        data[4..8].copy_from_slice(&0x0102_0304_u32.to_le_bytes());
        assert_eq!(classify(&data), Kind::Data { receiver: 0x0102_0304 });
        let mut response = vec![0; 92];
        response[0] = 2;
        response[8..12].copy_from_slice(&7_u32.to_le_bytes());
        assert_eq!(classify(&response), Kind::Response { receiver: 7 });
    }

    #[test]
    fn disco_needs_its_magic_and_its_length() {
        let mut probe = vec![0; 62];
        probe[..6].copy_from_slice("TS💬".as_bytes());
        assert_eq!(classify(&probe), Kind::Disco);
        assert_eq!(classify(&probe[..61]), Kind::Junk);
    }
}
