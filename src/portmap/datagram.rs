//! NAT-PMP and PCP messages. Both go to the same port of the router, and an answer's first byte tells which it is.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

/// Where routers listen (RFC 6886, section 1.1; RFC 6887, section 19.1).
pub const PORT: u16 = 5351;

/// Ties a PCP answer to its request, and a renewal to its mapping (RFC 6887, section 11.1).
pub type Nonce = [u8; 12];

const PMP: u8 = 0;
const PCP: u8 = 2;
const UDP: u8 = 17;
/// Set in the opcode of each answer.
const RESPONSE: u8 = 0x80;
const PMP_ADDRESS: u8 = 0;
const PMP_MAP_UDP: u8 = 1;
const PCP_ANNOUNCE: u8 = 0;
const PCP_MAP: u8 = 1;
const PCP_HEADER: usize = 24;
const PCP_MAP_LENGTH: usize = 36;

/// Asks for the router's public address (RFC 6886, section 3.2).
pub const fn pmp_address() -> [u8; 2] {
    [PMP, PMP_ADDRESS]
}

/// Asks for a mapping of a UDP port (RFC 6886, section 3.3); a lifetime of 0 gives it up.
pub fn pmp_map(internal: u16, external: u16, lifetime: Duration) -> [u8; 12] {
    let mut message = [0; 12];
    message[1] = PMP_MAP_UDP;
    message[4..6].copy_from_slice(&internal.to_be_bytes());
    // To give it up, no external port may be named (section 3.4).
    let external = if lifetime.is_zero() { 0 } else { external };
    message[6..8].copy_from_slice(&external.to_be_bytes());
    message[8..12].copy_from_slice(&seconds(lifetime).to_be_bytes());
    message
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

fn pcp_header(opcode: u8, lifetime: Duration, client: Ipv4Addr) -> [u8; PCP_HEADER] {
    let mut header = [0; PCP_HEADER];
    header[0] = PCP;
    header[1] = opcode;
    header[4..8].copy_from_slice(&seconds(lifetime).to_be_bytes());
    header[8..24].copy_from_slice(&client.to_ipv6_mapped().octets());
    header
}

/// Asks whether the router speaks PCP (RFC 6887, section 14.1).
pub fn pcp_announce(client: Ipv4Addr) -> [u8; PCP_HEADER] {
    pcp_header(PCP_ANNOUNCE, Duration::ZERO, client)
}

/// Asks for a mapping of a UDP port (RFC 6887, section 11.1); a lifetime of 0 gives it up. `external` is what was mapped before, or a
/// port that would be welcome with an unspecified address.
pub fn pcp_map(
    client: Ipv4Addr,
    nonce: Nonce,
    internal: u16,
    external: SocketAddrV4,
    lifetime: Duration,
) -> [u8; PCP_HEADER + PCP_MAP_LENGTH] {
    let mut message = [0; PCP_HEADER + PCP_MAP_LENGTH];
    message[..PCP_HEADER].copy_from_slice(&pcp_header(PCP_MAP, lifetime, client));
    message[24..36].copy_from_slice(&nonce);
    message[36] = UDP;
    message[40..42].copy_from_slice(&internal.to_be_bytes());
    message[42..44].copy_from_slice(&external.port().to_be_bytes());
    message[44..60].copy_from_slice(&external.ip().to_ipv6_mapped().octets());
    message
}

/// What a router has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its public address, by NAT-PMP.
    PmpAddress {
        /// The address; unspecified while the router has none.
        address: Ipv4Addr,
    },
    /// A mapping by NAT-PMP.
    PmpMapped {
        /// Our port.
        internal: u16,
        /// The router's.
        external: u16,
        /// How long it holds.
        lifetime: Duration,
    },
    /// It speaks PCP.
    PcpThere,
    /// A mapping by PCP.
    PcpMapped {
        /// The request's.
        nonce: Nonce,
        /// Our port.
        internal: u16,
        /// Address and port of the router's.
        external: SocketAddrV4,
        /// How long it holds.
        lifetime: Duration,
    },
    /// It speaks NAT-PMP and refuses this, with its result code.
    PmpRefused(u16),
    /// It speaks PCP and refuses this, with its result code. A code of 1 means that it speaks another version, such as NAT-PMP.
    PcpRefused(u8),
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes)
}

/// Reads a datagram from the router; `None` if it is nothing that answers a question of ours.
pub fn read(datagram: &[u8]) -> Option<Answer> {
    let (version, opcode) = (*datagram.first()?, datagram.get(1)?.checked_sub(RESPONSE)?);
    match version {
        PMP => read_pmp(opcode, datagram),
        PCP => read_pcp(opcode, datagram),
        _ => None,
    }
}

fn read_pmp(opcode: u8, datagram: &[u8]) -> Option<Answer> {
    let result = be16(datagram, 2)?;
    if result != 0 {
        return Some(Answer::PmpRefused(result));
    }
    match opcode {
        PMP_ADDRESS => Some(Answer::PmpAddress { address: Ipv4Addr::from_bits(be32(datagram, 8)?) }),
        PMP_MAP_UDP => Some(Answer::PmpMapped {
            internal: be16(datagram, 8)?,
            external: be16(datagram, 10)?,
            lifetime: Duration::from_secs(be32(datagram, 12)?.into()),
        }),
        _ => None,
    }
}

fn read_pcp(opcode: u8, datagram: &[u8]) -> Option<Answer> {
    if datagram.len() < PCP_HEADER {
        return None;
    }
    match (*datagram.get(3)?, opcode) {
        (0, PCP_ANNOUNCE) => Some(Answer::PcpThere),
        (0, PCP_MAP) => {
            let address = Ipv6Addr::from(*datagram.get(44..)?.first_chunk::<16>()?).to_ipv4_mapped()?;
            (*datagram.get(36)? == UDP).then_some(())?;
            Some(Answer::PcpMapped {
                nonce: *datagram.get(24..)?.first_chunk()?,
                internal: be16(datagram, 40)?,
                external: SocketAddrV4::new(address, be16(datagram, 42)?),
                lifetime: Duration::from_secs(be32(datagram, 4)?.into()),
            })
        }
        (0, _) => None,
        (result, _) => Some(Answer::PcpRefused(result)),
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "test code")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);

    #[test]
    fn nat_pmp_messages_are_those_of_rfc_6886() {
        assert_eq!(pmp_address(), [0, 0]);
        assert_eq!(pmp_map(41641, 4500, Duration::from_secs(7200)), [0, 1, 0, 0, 0xa2, 0xa9, 0x11, 0x94, 0, 0, 0x1c, 0x20]);
        assert_eq!(pmp_map(41641, 4500, Duration::ZERO)[6..], [0; 6], "giving up names no external port");
        let address = [0, 0x80, 0, 0, 0, 0, 0, 9, 203, 0, 113, 7];
        assert_eq!(read(&address), Some(Answer::PmpAddress { address: Ipv4Addr::new(203, 0, 113, 7) }));
        let mapped = [0, 0x81, 0, 0, 0, 0, 0, 9, 0xa2, 0xa9, 0x11, 0x94, 0, 0, 0x0e, 0x10];
        assert_eq!(read(&mapped), Some(Answer::PmpMapped { internal: 41641, external: 4500, lifetime: Duration::from_secs(3600) }));
        assert_eq!(read(&[0, 0x81, 0, 2, 0, 0, 0, 9]), Some(Answer::PmpRefused(2)));
    }

    #[test]
    fn pcp_messages_are_those_of_rfc_6887() {
        let announce = pcp_announce(CLIENT);
        assert_eq!((announce[0], announce[1], &announce[18..]), (2, 0, &[0xff, 0xff, 192, 168, 1, 2][..]));
        let external = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 41641);
        let mut message = pcp_map(CLIENT, [7; 12], 41641, external, LIFETIME_OF_TEST).to_vec();
        assert_eq!((message.len(), message[1], message[36], &message[40..44]), (60, 1, 17, &[0xa2, 0xa9, 0xa2, 0xa9][..]));
        // The answer has the same form (section 11.1), with a result in place of reserved bits.
        message[1] |= 0x80;
        message[42..44].copy_from_slice(&4500_u16.to_be_bytes());
        message[44..60].copy_from_slice(&Ipv4Addr::new(203, 0, 113, 7).to_ipv6_mapped().octets());
        let expected = Answer::PcpMapped {
            nonce: [7; 12],
            internal: 41641,
            external: SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 4500),
            lifetime: LIFETIME_OF_TEST,
        };
        assert_eq!(read(&message), Some(expected));
        message[3] = 12;
        assert_eq!(read(&message), Some(Answer::PcpRefused(12)));
        message[1] = 0x80;
        message[3] = 0;
        assert_eq!(read(&message), Some(Answer::PcpThere));
    }

    const LIFETIME_OF_TEST: Duration = Duration::from_secs(7200);

    #[test]
    fn requests_and_short_answers_are_no_answers() {
        assert_eq!(read(&pmp_map(1, 2, Duration::ZERO)), None);
        assert_eq!(read(&pcp_announce(CLIENT)), None);
        for answer in
            [&[0, 0x80, 0, 0, 0, 0, 0, 9, 203, 0, 113, 7][..], &[0, 0x81, 0, 0, 0, 0, 0, 9, 0xa2, 0xa9, 0x11, 0x94, 0, 0, 0x0e, 0x10]]
        {
            for length in 0..answer.len() {
                assert_eq!(read(&answer[..length]), None, "{length} of {answer:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(&bytes);
        }
    }
}
