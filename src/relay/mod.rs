//! Relaying: packets by node key, for nodes that have no direct way to each other yet, or never get one.
//!
//! [`client`] is one connection of a node to a relay, [`server`] the relay: cores that take the bytes of a stream and give bytes, events
//! and deadlines.

pub mod client;
pub mod region;
pub mod server;

use crate::time::{Bucket, Time};

/// A packet of the largest size with its key.
const SMALLEST_BURST: u64 = 64 * 1024 + 32 + 5;

/// Limits a connection to so many bytes a second. A burst of less than one frame would let nothing through; it is at least one full packet.
fn rate_limit(now: Time, bytes_per_second: u64, burst: u64) -> Bucket {
    Bucket::new(now, bytes_per_second, burst.max(SMALLEST_BURST))
}
