//! What stands before all peers: cookies against handshake floods, and finding the peer of an initiation.

use std::fmt;
use std::net::IpAddr;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use x25519_dalek::{PublicKey, StaticSecret};

use super::wireguard::Refusal;
use crate::ident::{NodePrivate, NodePublic};

/// Handshake messages a second above which senders must first prove their address with a cookie. One handshake costs a core
/// about 0.7 ms, so this is at most a tenth of it; a mesh of hundreds of nodes stays well below except at a mass restart.
const HANDSHAKES_PER_SECOND: u64 = 100;

/// What to do with a handshake message.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<'a> {
    /// An initiation that claims to come from the peer with this key (not proven yet): give it to that peer's tunnel.
    Initiation(NodePublic),
    /// A response, well formed and meant for us: give it to the tunnel its index names.
    Response,
    /// We are under load: send this back to where the message came from and forget it.
    Cookie(&'a [u8]),
    /// Drop it.
    Refused(Refusal),
}

/// The node's own key and the load limiter, shared by all peers.
pub struct Gate {
    secret: StaticSecret,
    public: PublicKey,
    limiter: RateLimiter,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate(..)")
    }
}

impl Gate {
    /// A gate for the node with this key.
    pub fn new(key: &NodePrivate) -> Self {
        let secret = StaticSecret::from(*key.as_bytes());
        let public = PublicKey::from(&secret);
        let limiter = RateLimiter::new(&public, HANDSHAKES_PER_SECOND);
        Self { secret, public, limiter }
    }

    /// Looks at a handshake initiation or response before any peer sees it. `room` takes a cookie reply (at least 64 bytes).
    ///
    /// The first checksum (mac1) is checked before anything costly, so a stranger who does not know our public key costs us one hash.
    pub fn admit<'a>(&self, from: IpAddr, message: &[u8], room: &'a mut [u8]) -> Admission<'a> {
        if room.len() < super::MIN_ROOM {
            return Admission::Refused(Refusal::Malformed);
        }
        match self.limiter.verify_packet(Some(from), message, room) {
            Ok(Packet::HandshakeInit(initiation)) => match parse_handshake_anon(&self.secret, &self.public, &initiation) {
                Ok(half) => Admission::Initiation(NodePublic::from_bytes(half.peer_static_public)),
                Err(error) => Admission::Refused(Refusal::from(error)),
            },
            Ok(Packet::HandshakeResponse(_)) => Admission::Response,
            Ok(_) => Admission::Refused(Refusal::Malformed),
            Err(TunnResult::WriteToNetwork(cookie)) => Admission::Cookie(cookie),
            Err(TunnResult::Err(error)) => Admission::Refused(Refusal::from(error)),
            Err(_) => Admission::Refused(Refusal::Malformed),
        }
    }

    /// Starts the next second of the load limit; to be called at least once a second.
    pub fn tick(&self) {
        self.limiter.reset_count();
    }
}
