//! Which way packets take to a peer: candidates and the choice among them.
//!
//! A [`Chooser`] is one peer's. It is told what happened (candidates from the network map, authentic packets, handshakes sent and
//! answered) and says where to send. It knows nothing of sockets and keys, and what it is told must be authenticated already.
//!
//! Until path probes (disco) exist, WireGuard's own handshake is the probe: an initiation goes to every candidate, the
//! one it is answered from is taken, and a later authentic packet from elsewhere moves the path there (roaming), except away
//! from a local network that still answers. A handshake that stays unanswered for [`UNANSWERED`] puts all candidates back into play.
//! Probes will add latency to what a candidate is ranked by and make [`Chooser::best`] move without a handshake; a relay will be a
//! second kind of [`Path`].

mod choice;

pub use choice::{Chooser, KEEPALIVE, MAX_CANDIDATES, Origin, TRUST, UNANSWERED};

use std::net::{IpAddr, SocketAddr};

/// A way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// UDP to this address.
    Direct(SocketAddr),
}

/// How desirable an address is by its kind alone, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// The same machine.
    Loopback,
    /// The same link.
    Link,
    /// A local network (RFC 1918, IPv6 unique local).
    Local,
    /// The internet.
    Global,
}

impl Reach {
    /// The kind of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            ip if ip.is_loopback() => Self::Loopback,
            IpAddr::V4(v4) if v4.is_link_local() => Self::Link,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Self::Link,
            IpAddr::V4(v4) if v4.is_private() => Self::Local,
            IpAddr::V6(v6) if v6.is_unique_local() => Self::Local,
            _ => Self::Global,
        }
    }

    /// Whether no NAT is to be expected on the way, so that nothing must be sent to keep a mapping open.
    pub fn is_local(self) -> bool {
        self < Self::Global
    }
}

/// Whether packets may be sent to an address at all: it names one machine and a port.
pub fn is_usable(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}
