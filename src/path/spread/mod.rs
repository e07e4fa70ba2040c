//! The birthday spread: a direct way between a node behind a hard NAT, which gives each destination another port and lets in whom it
//! has sent to, and one whose NAT lets in whom it has sent to, too, but keeps its port.
//!
//! The one behind the hard NAT opens [`PORTS`] sockets and sends from each to the other's address: as many ports of its NAT lead to it
//! then. The other pings ports of that NAT at random, each once. A guess hits with 1 in 252, so half of all spreads are through after
//! 174 guesses, and 98 of 100 after [`GUESSES`]. The socket that was hit is kept for this address, the rest are closed.
//!
//! Two hard NATs would have to guess both ports at once: 54,000 packets each way for an even chance, which is not tried.
//!
//! Both ends agree to it through the relay, by messages that stock programs pass over, so that with those nothing is opened and
//! nothing guessed. What a peer can have us send is bounded: [`GUESSES`] pings of about 130 bytes at [`BURST`] each [`PACE`], to one
//! address at a time that the peer is known by anyway, and no sooner again than after [`HEED_GAP`].

mod offers;
mod sockets;
mod spray;

use std::net::SocketAddrV4;
use std::time::Duration;

pub(super) use offers::Offers;
pub(super) use sockets::Sockets;
pub(super) use spray::Spray;

/// Sockets that are opened at once.
pub const PORTS: u16 = 256;
/// Pings to guessed ports, for one offer.
pub const GUESSES: u32 = 1024;
/// Guesses sent together.
pub(super) const BURST: u32 = 5;
/// And the pause after them.
pub(super) const PACE: Duration = Duration::from_millis(20);
/// How long after the last guess an answer may come.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// An offer of the same peer that comes sooner after the last one is passed over.
pub(super) const HEED_GAP: Duration = Duration::from_secs(14);

/// One of this node's own UDP sockets, where there are several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Local(u16);

impl Local {
    /// The one that everything goes through, but what [`super::Paths::local`] says otherwise of.
    pub const MAIN: Self = Self(0);

    /// Its number; the main socket's is 0.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The socket with this number.
    pub fn from_number(number: u16) -> Self {
        Self(number)
    }
}

/// What is known of the NAT in front of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outside {
    /// Where this node is seen; there may be no NAT at all.
    pub seen: SocketAddrV4,
    /// Whether each destination sees another port. Unknown where there is one STUN server only.
    pub varies: Option<bool>,
}
