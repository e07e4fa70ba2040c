//! Which way packets take to a peer: candidate addresses, probes (disco), and the choice among what has been proven.
//!
//! [`Paths`] is one node's: a core that is told of peers, datagrams, packets sent and heard, and the passing of time; it gives
//! datagrams to send, events, and its next deadline. It knows nothing of sockets. [`Route`] is the copy of its decision that
//! the packet threads keep with each peer, so that data waits for nothing here; it says when the core must hear of something.
//!
//! How a way is chosen, for a peer with a disco key:
//! * A ping that is answered proves the address it was *sent to*, in both directions, for [`TRUST`]. Of proven addresses the
//!   better one is used ([`is_better`]); where an answer came from proves nothing.
//! * Until an address is proven, packets go through a relay: that of the region the peer calls its home, or the one it was last
//!   heard through. When the address in use is in doubt they go both ways, so that nothing is lost either way; a relay is never the
//!   better address, and a ping through one proves nothing about an address.
//! * While an address is looked for, the peer is told ours through the relay (a call-me-maybe) so that it pings them: two
//!   pings that cross open two NATs. Ours go first. It is never taken from anywhere but a relay.
//! * While we have data for a peer (and [`ACTIVE`] after it) the address in use is pinged every [`HEARTBEAT`]. Nobody is pinged
//!   who is not talked to, and a ping from a peer is no talk.
//! * Silence in answer to our data, a ping that stays unanswered, or authentic packets that begin to come another way raise a
//!   doubt: the address is pinged at once, and has two round trips to answer.
//! * While nothing is proven and there is no relay, WireGuard's own handshake is the probe, as it is for peers without a disco key:
//!   an initiation goes to every candidate, the one it is answered from is taken, and the path follows authentic packets, except away
//!   from a local network that still answers. A handshake unanswered for [`UNANSWERED`] puts all candidates back into play.
//! * Where all of that has been in vain for a while, two nodes of ours guess a port together (`spread`); one of them may talk to an
//!   address from another socket than the main one then ([`Local`]).
//!
//! An address learned from a ping alone, which anyone may send again from elsewhere, gets one answer and one ping, never data and
//! never a handshake, until it is proven.

mod calls;
mod candidates;
mod contacts;
mod counters;
mod exchange;
mod paths;
mod peer;
mod probes;
mod rank;
mod relays;
mod route;
mod spread;
#[cfg(test)]
mod tests;

pub use candidates::{MAX_CALLED, MAX_LEARNED, MAX_LISTED};
pub use counters::Counters;
pub use exchange::{Event, Peer, Pong, Transmit, Unreached};
pub use paths::Paths;
pub use peer::Way;
pub use rank::is_better;
pub use relays::RelayState;
pub use route::{Choice, KEEPALIVE, Route, Ways};
pub use spread::{GUESSES, Local, Outside, PORTS};

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::ident::RegionId;

/// How long an answered ping makes an address trusted: two heartbeats and some slack.
pub const TRUST: Duration = Duration::from_millis(6500);
/// How often the address in use is pinged while a peer is talked to.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long after the last data the heartbeat goes on, and how long a learned address is kept without a sign of life.
pub const ACTIVE: Duration = Duration::from_secs(45);
/// A ping unanswered for so long never will be.
pub const PING_LOST: Duration = Duration::from_secs(5);
/// How long our data may stay without anything in return, while there is a relay, before the address in use is asked whether it
/// still is there: a way that has died silently is noticed within a second, and nobody is asked while packets go to and fro.
pub const QUIET: Duration = Duration::from_millis(350);
/// Own addresses older than this are found out anew before a peer is told them: NATs forget.
pub const FRESH: Duration = Duration::from_secs(27);
/// How long a handshake may stay unanswered before all candidates are tried: WireGuard's own REKEY_TIMEOUT.
pub const UNANSWERED: Duration = Duration::from_secs(5);

/// A way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// UDP to this address.
    Direct(SocketAddr),
    /// Through a relay of this region.
    Relay(RegionId),
}

/// The address that stands for relays where the wire has room for an address only; the port is the region's number.
const RELAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);

impl Path {
    /// The region of the relay, if it leads through one.
    pub fn region(self) -> Option<RegionId> {
        match self {
            Self::Direct(_) => None,
            Self::Relay(region) => Some(region),
        }
    }

    /// The address, if it is one.
    pub fn direct(self) -> Option<SocketAddr> {
        match self {
            Self::Direct(address) => Some(address),
            Self::Relay(_) => None,
        }
    }

    /// The way that an address stands for, as [`Self::as_address`] makes it. Not to be asked of where a datagram came from.
    pub fn from_address(address: SocketAddr) -> Self {
        if address.ip() == RELAY_ADDRESS { Self::Relay(RegionId(address.port())) } else { Self::Direct(address) }
    }

    /// What stands for it where only an address can: in pongs, and for cookies.
    pub fn as_address(self) -> SocketAddr {
        match self {
            Self::Direct(address) => address,
            Self::Relay(region) => SocketAddr::new(RELAY_ADDRESS.into(), region.0),
        }
    }
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
