//! What lies in the box: a type, a version, a payload that may have grown since.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ident::NodePublic;

/// Addresses taken from one call-me-maybe; the rest is passed over.
pub const MAX_ENDPOINTS: usize = 64;

const PING: u8 = 1;
const PONG: u8 = 2;
const CALL_ME_MAYBE: u8 = 3;
/// Far from the numbers that stock programs give out one after the other.
const SPREAD: u8 = 0x70;
const OFFER: u8 = 0;
const ACCEPT: u8 = 1;
/// The only version there is.
const VERSION: u8 = 0;
/// An address and a port.
const ENDPOINT_LEN: usize = 18;

/// What ties a pong to its ping: 96 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

impl fmt::Debug for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why the content of a box is no message. Newer programs may say things we do not know, so this is nobody's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Shorter than its type asks for.
    #[error("the message is cut short")]
    Short,
    /// Of a type that is not read here.
    #[error("messages of type {0} are not read")]
    Unknown(u8),
}

/// A disco message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// "Does this reach you?"
    Ping {
        /// To be repeated in the pong.
        tx: TxId,
        /// The sender's node key; very old programs leave it out. One disco key may belong to several nodes.
        node: Option<NodePublic>,
    },
    /// "It does."
    Pong {
        /// The ping's.
        tx: TxId,
        /// Where the ping came from, as its receiver saw it.
        observed: SocketAddr,
    },
    /// "Try these addresses of mine, I am trying yours." Comes through a relay only.
    CallMeMaybe(Vec<SocketAddr>),
    /// "My NAT gives each destination another port: would you guess one, at this address?" Ours alone: stock programs pass over it.
    /// Through a relay only.
    SpreadOffer {
        /// Where the sender is seen.
        outside: Ipv4Addr,
    },
    /// "I am guessing; open many ports towards this address of mine." The answer to an offer, through a relay only.
    SpreadAccept {
        /// Where the sender of this is seen, by everybody.
        at: SocketAddr,
    },
}

fn read_endpoint(bytes: [u8; ENDPOINT_LEN]) -> SocketAddr {
    let [ip @ .., high, low] = bytes;
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), u16::from_be_bytes([high, low]))
}

fn write_endpoint(address: SocketAddr, out: &mut Vec<u8>) {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&address.port().to_be_bytes());
}

impl Message {
    /// Reads a message. What follows the known fields is passed over: padding, or fields of later versions.
    ///
    /// # Errors
    /// Too short, or of an unknown type.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (&[kind, version], payload) = bytes.split_first_chunk().ok_or(MessageError::Short)?;
        match kind {
            PING => {
                let (tx, rest) = payload.split_first_chunk().ok_or(MessageError::Short)?;
                let node = rest.first_chunk().map(|key| NodePublic::from_bytes(*key));
                Ok(Self::Ping { tx: TxId(*tx), node })
            }
            PONG => {
                let (tx, rest) = payload.split_first_chunk().ok_or(MessageError::Short)?;
                let observed = rest.first_chunk().ok_or(MessageError::Short)?;
                Ok(Self::Pong { tx: TxId(*tx), observed: read_endpoint(*observed) })
            }
            CALL_ME_MAYBE => {
                // A list of another version, or one that does not add up, is empty: not an error (magicsock does the same).
                let whole = version == VERSION && payload.len() % ENDPOINT_LEN == 0;
                let list = if whole { payload } else { &[] };
                let endpoints = list.chunks_exact(ENDPOINT_LEN).take(MAX_ENDPOINTS);
                Ok(Self::CallMeMaybe(endpoints.filter_map(|one| one.first_chunk().copied()).map(read_endpoint).collect()))
            }
            SPREAD => {
                let (&role, rest) = payload.split_first().ok_or(MessageError::Short)?;
                let address = read_endpoint(*rest.first_chunk().ok_or(MessageError::Short)?);
                match (role, address.ip()) {
                    (OFFER, IpAddr::V4(outside)) => Ok(Self::SpreadOffer { outside }),
                    (ACCEPT, _) => Ok(Self::SpreadAccept { at: address }),
                    _ => Err(MessageError::Unknown(SPREAD)),
                }
            }
            other => Err(MessageError::Unknown(other)),
        }
    }

    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(46);
        match self {
            Self::Ping { tx, node } => {
                out.extend_from_slice(&[PING, VERSION]);
                out.extend_from_slice(&tx.0);
                if let Some(node) = node {
                    out.extend_from_slice(node.as_bytes());
                }
            }
            Self::Pong { tx, observed } => {
                out.extend_from_slice(&[PONG, VERSION]);
                out.extend_from_slice(&tx.0);
                write_endpoint(*observed, &mut out);
            }
            Self::CallMeMaybe(endpoints) => {
                out.extend_from_slice(&[CALL_ME_MAYBE, VERSION]);
                for endpoint in endpoints.iter().take(MAX_ENDPOINTS) {
                    write_endpoint(*endpoint, &mut out);
                }
            }
            Self::SpreadOffer { outside } => {
                out.extend_from_slice(&[SPREAD, VERSION, OFFER]);
                write_endpoint(SocketAddr::new((*outside).into(), 0), &mut out);
            }
            Self::SpreadAccept { at } => {
                out.extend_from_slice(&[SPREAD, VERSION, ACCEPT]);
                write_endpoint(*at, &mut out);
            }
        }
        out
    }
}
