//! STUN (RFC 5389), as far as the mesh uses it: a node asks a relay under which address the relay sees it.
//!
//! [`request`] is the one request nodes send, 40 bytes of a fixed shape: servers answer no other, so that nobody can use them to throw
//! packets at third parties. [`read_request`] is the server's look at it, [`response`] its answer, [`read_response`] the node's look at that.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The UDP port of a STUN server unless told otherwise.
pub const PORT: u16 = 3478;
/// The length of [`request`]'s datagram.
pub const REQUEST_LEN: usize = 40;
/// The longest datagram that is read. Other servers' answers carry more than ours, but never this much.
const MAX_DATAGRAM: usize = 1500;

const HEADER_LEN: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0, 1];
const BINDING_SUCCESS: [u8; 2] = [1, 1];

const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// What some servers call it, from a draft of the RFC.
const XOR_MAPPED_ADDRESS_DRAFT: u16 = 0x8020;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
/// The software that relays answer.
const NODE_SOFTWARE: &[u8; 8] = b"tailnode";
/// Length of a FINGERPRINT attribute.
const FINGERPRINT_LEN: usize = 8;
const FINGERPRINT_MASK: u32 = 0x5354_554e;

/// What ties an answer to its request: 96 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

impl fmt::Debug for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a datagram is not answered, or no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// No STUN message, or one whose lengths do not add up.
    #[error("not a STUN message")]
    Malformed,
    /// A STUN message of another kind.
    #[error("a STUN message of another kind")]
    OtherKind,
    /// A request of other software than mesh nodes.
    #[error("a request that does not come from a mesh node")]
    Stranger,
    /// The checksum is missing, not at the end, or wrong.
    #[error("the fingerprint is missing or wrong")]
    Fingerprint,
    /// An answer without an address.
    #[error("the answer holds no address")]
    NoAddress,
}

/// Kind, transaction and attributes of a message.
struct Message<'a> {
    kind: [u8; 2],
    tx: TxId,
    attributes: &'a [u8],
}

fn read(datagram: &[u8]) -> Result<Message<'_>, StunError> {
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(StunError::Malformed)?;
    let [k0, k1, l0, l1, c0, c1, c2, c3, tx @ ..] = *header;
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    if datagram.len() > MAX_DATAGRAM || [c0, c1, c2, c3] != COOKIE || rest.len() != length {
        return Err(StunError::Malformed);
    }
    Ok(Message { kind: [k0, k1], tx: TxId(tx), attributes: rest })
}

/// The attributes of a message: type, value, and where the attribute begins among them. What does not add up ends the list.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8], usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (&[t0, t1, l0, l1], body) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let value = body.get(..length)?;
        let begin = at;
        let padded = length.next_multiple_of(4);
        // Some programs leave out the padding of the last attribute.
        rest = body.get(padded..).unwrap_or_default();
        at += 4 + padded;
        Some((u16::from_be_bytes([t0, t1]), value, begin))
    })
}

fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    // Values made here are at most 20 bytes long.
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(value);
}

fn header(kind: [u8; 2], length: u16, tx: TxId) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + usize::from(length));
    out.extend_from_slice(&kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&tx.0);
    out
}

/// The checksum of a message whose header already counts the attribute that will hold it.
fn fingerprint(before: &[u8]) -> [u8; 4] {
    (crc32fast::hash(before) ^ FINGERPRINT_MASK).to_be_bytes()
}

/// The request for our own address.
pub fn request(tx: TxId) -> Vec<u8> {
    let mut out = header(BINDING_REQUEST, 20, tx);
    // The order matters: servers in front of relays look at fixed places.
    put_attribute(&mut out, SOFTWARE, NODE_SOFTWARE);
    let sum = fingerprint(&out);
    put_attribute(&mut out, FINGERPRINT, &sum);
    out
}

/// Reads a request as a server does, which answers mesh nodes and nobody else.
///
/// # Errors
/// It deserves no answer.
pub fn read_request(datagram: &[u8]) -> Result<TxId, StunError> {
    let message = read(datagram)?;
    if message.kind != BINDING_REQUEST {
        return Err(StunError::OtherKind);
    }
    let mut software = false;
    let mut last = None;
    for (kind, value, begin) in attributes(message.attributes) {
        software |= kind == SOFTWARE && value == NODE_SOFTWARE;
        last = Some((kind, value, begin));
    }
    if !software {
        return Err(StunError::Stranger);
    }
    let Some((FINGERPRINT, sum, begin)) = last else { return Err(StunError::Fingerprint) };
    let before = datagram.get(..HEADER_LEN + begin).ok_or(StunError::Malformed)?;
    if begin + FINGERPRINT_LEN != message.attributes.len() || *sum != fingerprint(before) {
        return Err(StunError::Fingerprint);
    }
    Ok(message.tx)
}

/// The server's answer to a request that came from this address: 32 bytes for IPv4, 44 for IPv6, so little more than the request.
pub fn response(tx: TxId, from: SocketAddr) -> Vec<u8> {
    let (family, mut address) = match from.ip().to_canonical() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    mask(&mut address, tx);
    let [p0, p1] = from.port().to_be_bytes();
    let mut value = vec![0, family, p0 ^ COOKIE[0], p1 ^ COOKIE[1]];
    value.append(&mut address);
    let length = if family == 1 { 12 } else { 24 };
    let mut out = header(BINDING_SUCCESS, length, tx);
    put_attribute(&mut out, XOR_MAPPED_ADDRESS, &value);
    out
}

/// Addresses are masked, because some NATs replace addresses wherever they see them.
fn mask(address: &mut [u8], tx: TxId) {
    for (byte, mask) in address.iter_mut().zip(COOKIE.iter().chain(&tx.0)) {
        *byte ^= mask;
    }
}

/// An address attribute's value, masked or not.
fn read_address(value: &[u8], masked: Option<TxId>) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], address) = value.split_first_chunk()?;
    let mut address = address.to_vec();
    let mut port = u16::from_be_bytes([p0, p1]);
    if let Some(tx) = masked {
        mask(&mut address, tx);
        port ^= u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
    }
    let ip: IpAddr = match family {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).into(),
        // A server that listens for both families at once may forget what an IPv4 address looks like.
        2 => Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Reads an answer: to which request, and the address the server has seen.
///
/// # Errors
/// It is none, or holds no address.
pub fn read_response(datagram: &[u8]) -> Result<(TxId, SocketAddr), StunError> {
    let message = read(datagram)?;
    if message.kind != BINDING_SUCCESS {
        return Err(StunError::OtherKind);
    }
    let mut plain = None;
    for (kind, value, _) in attributes(message.attributes) {
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_DRAFT => {
                if let Some(address) = read_address(value, Some(message.tx)) {
                    return Ok((message.tx, address));
                }
            }
            MAPPED_ADDRESS => plain = plain.or_else(|| read_address(value, None)),
            _ => {}
        }
    }
    plain.map(|address| (message.tx, address)).ok_or(StunError::NoAddress)
}
