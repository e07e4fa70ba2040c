//! What goes into the core and comes out of it.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Local, Path};
use crate::ident::{DiscoPublic, NodePublic, RegionId};

/// A peer as the network map has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its node key.
    pub key: NodePublic,
    /// Its disco key; without one it is never pinged.
    pub disco: Option<DiscoPublic>,
    /// Where it says it may be reached.
    pub addresses: Vec<SocketAddr>,
    /// The region of its home relay.
    pub home: Option<RegionId>,
}

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// By which way.
    pub to: Path,
    /// From which of our sockets, if the way is an address.
    pub from: Local,
    /// To whom, for a relay to know.
    pub peer: NodePublic,
    /// What.
    pub contents: Vec<u8>,
}

/// The answer to a ping that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// The way that was pinged.
    pub path: Path,
    /// How long the answer took.
    pub latency: Duration,
    /// Where the peer sees us; through a relay, what stands for it.
    pub observed: SocketAddr,
}

/// What the driver has to do or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The way to a peer is another one now, see [`super::Paths::route`].
    Moved(NodePublic),
    /// A peer is to be told our addresses, and what is known of them is too old: they are to be found out, and told by
    /// [`super::Paths::set_endpoints`].
    Refresh,
    /// A peer's process is another one than before: its WireGuard session is to be dropped.
    Restarted(NodePublic),
    /// Other sockets are wanted now than before, see [`super::Paths::sockets`]: before anything is sent.
    Sockets,
    /// A handshake with this peer would be answered now. If there is no session, one is to be started, even if an earlier
    /// attempt still runs: it could not be answered.
    Meet(NodePublic),
    /// What became of a ping that was asked for; `None` if nothing came back.
    Answered {
        /// What [`super::Paths::ping`] was given.
        token: u64,
        /// The first answer.
        pong: Option<Pong>,
    },
}

/// Why a ping that was asked for is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// The key is no peer's.
    #[error("no peer has this key")]
    NoPeer,
    /// The peer's program does not know path probes.
    #[error("the peer does not answer path probes")]
    NoDisco,
    /// No address of the peer is known, and no relay leads to it.
    #[error("no address of the peer is known, and no relay leads to it")]
    NoAddress,
}
