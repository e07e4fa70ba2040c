//! Which way packets take to a peer: candidate addresses, probes (disco), and the choice among what has been proven.
//!
//! [`Paths`] is one node's: a core that is told of peers, datagrams, packets sent and heard, and the passing of time; it gives
//! datagrams to send, events, and its next deadline. It knows nothing of sockets. [`Route`] is the copy of its decision that
//! the packet threads keep with each peer, so that data waits for nothing here; it says when the core must hear of something.
//!
//! How a way is chosen, for a peer with a disco key:
//! * A ping that is answered proves the address it was *sent to*, in both directions, for [`TRUST`]. Of proven addresses the
//!   better one is used ([`is_better`]); where an answer came from proves nothing.
//! * While we have data for a peer (and [`ACTIVE`] after it) the address in use is pinged every [`HEARTBEAT`]. Nobody is pinged
//!   who is not talked to, and a ping from a peer is no talk.
//! * A ping that stays unanswered, or authentic packets that begin to come from elsewhere, raise a doubt: both addresses are
//!   pinged at once, and the one in use has two round trips to answer.
//! * While nothing is proven, WireGuard's own handshake is the probe, as it is for peers without a disco key: an initiation goes to
//!   every candidate, the one it is answered from is taken, and the path follows authentic packets, except away from a local
//!   network that still answers. A handshake unanswered for [`UNANSWERED`] puts all candidates back into play.
//!
//! An address learned from a ping alone, which anyone may send again from elsewhere, gets one answer and one ping, never data and
//! never a handshake, until it is proven.
//!
//! A relay will be a second kind of [`Path`]; pings and call-me-maybes will come and go through it as well.

mod candidates;
mod paths;
mod peer;
mod probes;
mod rank;
mod route;
#[cfg(test)]
mod tests;

pub use candidates::{MAX_LEARNED, MAX_LISTED};
pub use paths::{Counters, Event, Paths, Peer, Pong, Transmit, Unreached};
pub use rank::is_better;
pub use route::{KEEPALIVE, Route};

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long an answered ping makes an address trusted: two heartbeats and some slack.
pub const TRUST: Duration = Duration::from_millis(6500);
/// How often the address in use is pinged while a peer is talked to.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long after the last data the heartbeat goes on, and how long a learned address is kept without a sign of life.
pub const ACTIVE: Duration = Duration::from_secs(45);
/// A ping unanswered for so long never will be.
pub const PING_LOST: Duration = Duration::from_secs(5);
/// How long a handshake may stay unanswered before all candidates are tried: WireGuard's own REKEY_TIMEOUT.
pub const UNANSWERED: Duration = Duration::from_secs(5);

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

/// The same address in its one form: an IPv4 address is never written as an IPv6 one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
