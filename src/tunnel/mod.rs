//! WireGuard for one peer, and the shaping of packets around it.
//!
//! * [`Tunnel`] is one peer's WireGuard state (boringtun), [`Gate`] what is shared by all peers in front of it: cookies against
//!   floods, and finding the peer a handshake initiation belongs to; [`Strangers`] keeps those that came too early.
//! * [`demux`] tells apart what arrives on the one UDP socket.
//! * [`Segments`] splits a super-packet read from the TUN, [`Coalescer`] joins packets into one to be written to it.
//! * [`Shares`] says whose packets are given up when more comes than can be opened.
//! * [`translate`] turns IPv6 packets into IPv4 and back, for networks of sites ("4via6").
//!
//! It does no I/O. It is the one core that may read a clock and draw the system's randomness, through boringtun, which
//! keeps its timers and makes its ephemeral keys itself: whoever
//! drives a [`Tunnel`] calls [`Tunnel::tick`] about four times a second and gets WireGuard's timers to that precision.
//! Bytes from the wire never panic here and never grow anything; what is bad is a [`Refusal`], for counting.

mod checksum;
mod coalesce;
pub mod demux;
mod gate;
mod packet;
mod segment;
#[cfg(test)]
mod shaping_tests;
mod shares;
mod strangers;
pub mod translate;
mod wireguard;
#[cfg(test)]
mod wireguard_tests;

pub use coalesce::{Coalescer, Joining};
pub use gate::{Admission, Gate};
pub use packet::{MAX_PACKET, Segmentation, VirtioHeader};
pub use segment::{BadPacket, Segments};
pub use shares::Shares;
pub use strangers::{Stranger, Strangers};
pub use wireguard::{MAX_TUNNELS, Opened, Refusal, Sealed, Tick, Tunnel};

/// What a data packet adds to the IP packet in it: type 4, index 4, counter 8, tag 16 bytes (WireGuard paper, section 5.4.6).
pub const OVERHEAD: usize = 32;
/// The room any sealed packet or handshake message needs at least (an initiation is the largest).
pub const MIN_ROOM: usize = 148;
