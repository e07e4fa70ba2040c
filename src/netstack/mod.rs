//! An IP stack inside the process, for a node that has no TUN: what peers send is taken apart here, and what goes back is put together.
//!
//! [`arrival::read`] says what a packet is; [`Connection`] is one TCP connection (smoltcp), [`datagram`] makes UDP and ICMP packets, and
//! [`Reassembly`] joins fragments. There is no table of everything in here: each connection stands alone, whoever drives them keeps them by
//! their [`Ends`], and one packet costs one look into a hash table however many there are.
//!
//! Checksums of TCP are left for the one who seals the packet to finish, as a network card would: a super-packet's are made when it is cut up.

pub mod arrival;
mod connection;
pub mod datagram;
mod reassembly;
mod room;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use connection::{Connection, Departure, Read, State};
pub use reassembly::Reassembly;
pub use room::room_for;

/// The largest IP packet that the mesh carries without cutting it up, in bytes.
pub const MTU: usize = 1280;

/// The two ends of a flow, as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// The address that peers have sent to, or that we send from. It need not be one of this machine's.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}
